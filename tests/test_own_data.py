"""From a folder of images to a trained detector, by the commands of docs/own_data.md."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from mmfocal.datasets import prepare_shapes
from mmfocal.engine import load_config
from mmfocal.engine.own_data import config_text, find_splits
from mmfocal.utils.errors import UserError

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs/own_data.md'
# After what new_config writes: a run of seconds.
SHORT = """
train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader.update(num_workers=0, persistent_workers=False)
train_cfg = dict(max_iters=2, val_interval=2)
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return prepare_shapes(
        tmp_path_factory.mktemp('own') / 'my_data', num_images=dict(train=6, val=3)
    )


def test_commands_of_the_page_train_a_detector(data):
    """On drawn shapes, with a small model in the place of Focal-T."""
    blocks = [block for block in PAGE.read_text().split('```\n') if block.startswith('mmfocal ')]
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) >= 4
    folder = data.parent
    for command in commands:
        name, *arguments = shlex.split(command.replace('maskrcnn_3x', 'maskrcnn_shapes'))
        assert name == 'mmfocal'
        done = subprocess.run(
            [sys.executable, '-W', 'ignore', '-m', 'mmfocal', *arguments],
            cwd=folder,
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
            capture_output=True,
            text=True,
        )
        output = done.stdout + done.stderr
        assert done.returncode == 0, f'{command}\n{output[-3000:]}'
        if 'new_config' in arguments:
            with (folder / 'mine.py').open('a') as file:
                file.write(SHORT)
        elif 'check_data' in arguments:
            assert 'no errors' in output
    assert (folder / 'work_dirs/mine/curves.png').is_file()
    assert len(list((folder / 'images').iterdir())) == 3


@pytest.mark.parametrize(
    'base, heads',
    [
        ('focal_maskrcnn_3x', ('bbox_head', 'mask_head')),
        ('focal_cascade-maskrcnn_3x', ('bbox_head', 'mask_head')),
        ('focal_atss_3x', ()),
    ],
)
def test_classes_stand_in_one_place(data, tmp_path, base, heads):
    splits = find_splits(data)
    path = tmp_path / 'mine.py'
    text = config_text(data, splits, base)
    path.write_text(text.replace("'circle', 'square', ", "'circle', "))
    cfg = load_config(path)
    assert cfg.classes == ('circle', 'triangle', 'star', 'cross', 'ring')
    found = [cfg.model.bbox_head] if not heads else [cfg.model.roi_head[name] for name in heads]
    for head in found:
        for each in head if isinstance(head, list) else [head]:
            assert each.num_classes == 5
    for split in ('train', 'val', 'test'):
        assert cfg[f'{split}_dataloader'].dataset.metainfo.classes == cfg.classes
    # Nothing else of the model differs.
    model = Config(dict(model=load_config(base).model))
    assert cfg.model.backbone == model.model.backbone
    assert cfg.model.keys() == model.model.keys()


def test_few_images_get_more_epochs(data, tmp_path):
    splits = find_splits(data)
    text = config_text(data, splits, 'focal_maskrcnn_ms-1x')
    assert 'max_epochs = 300  # 3 iterations each' in text
    (tmp_path / 'mine.py').write_text(text)
    cfg = load_config(tmp_path / 'mine.py')
    assert cfg.param_scheduler[0].end == 90 and cfg.param_scheduler[1].milestones == [225, 275]
    assert cfg.auto_scale_lr.enable and cfg.auto_scale_lr.base_batch_size == 16


def rewritten(data, folder, change):
    """A copy of the annotations with a change; images are found in the copy, too."""
    for split in ('train', 'val'):
        (folder / split).mkdir(parents=True)
        content = json.loads((data / f'annotations/instances_{split}.json').read_text())
        for image in content['images']:
            (folder / split / image['file_name']).write_bytes(b'')
        change(split, content)
        (folder / split / '_annotations.coco.json').write_text(json.dumps(content))
    return folder


def test_layout_of_other_tools_is_found(data, tmp_path):
    """Annotations beside the images, and a category without objects above the others."""
    folder = rewritten(
        data,
        tmp_path / 'export',
        lambda split, content: content['categories'].insert(0, dict(id=99, name='shapes')),
    )
    splits = find_splits(folder)
    assert splits['train'].images == folder / 'train'
    assert splits['train'].classes == ('circle', 'square', 'triangle', 'star', 'cross', 'ring')
    assert splits['val'].num_images == 3 and splits['val'].has_masks


def without_masks(split, content):
    for each in content['annotations']:
        del each['segmentation']


def test_masks_that_are_not_there_are_told(data, tmp_path):
    folder = rewritten(data, tmp_path / 'boxes', without_masks)
    splits = find_splits(folder)
    with pytest.raises(UserError, match=r'learns masks.*focal_retinanet_3x'):
        config_text(folder, splits, 'focal_maskrcnn_3x')
    assert 'num_classes' in config_text(folder, splits, 'focal_retinanet_3x')


@pytest.mark.parametrize('base', ['focal-l_htcpp_3x', 'focal_upernet_160k'])
def test_base_with_other_data_is_told(data, base):
    with pytest.raises(
        UserError, match=r'has training data of type .*expected a config of mmdet|label maps'
    ):
        config_text(data, find_splits(data), base)


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda root: (root / 'val/_annotations.coco.json').unlink(),
            r'no annotations for "val".*--val-json',
        ),
        (
            lambda root: (root / 'train.json').write_bytes(
                (root / 'train/_annotations.coco.json').read_bytes()
            ),
            r'several annotation files for "train": train.json, train/_annot.*--train-json',
        ),
        (
            lambda root: [path.unlink() for path in (root / 'train').glob('*.jpg')],
            'in no folder of',
        ),
        (lambda root: root.rename(root.with_name('moved')), 'There is no folder'),
    ],
)
def test_what_is_not_found_is_told(data, tmp_path, change, message):
    root = rewritten(data, tmp_path / 'data', lambda split, content: None)
    change(root)
    with pytest.raises(UserError, match=message):
        find_splits(root)
