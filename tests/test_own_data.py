"""From a folder of images to a trained model, by the commands of docs/training.md."""

import importlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import test_docs
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image

from mmfocal.cli import export
from mmfocal.datasets import prepare_shapes
from mmfocal.datasets.checks import Report
from mmfocal.datasets.formats import Folder, Source, prepare_detection
from mmfocal.datasets.shapes import CLASSES
from mmfocal.engine import load_config
from mmfocal.engine.own_data import check_base, config_text
from mmfocal.utils.errors import UserError

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs/training.md'
# What pages leave open, and the tools that take a trained model.
OPEN = {
    'CONFIG': 'mine.py',
    'CHECKPOINT': 'work_dirs/mine',
    'IMAGE': 'photo.jpg',
    'X': '20',
    'Y': '30',
    'focal_maskrcnn_3x': 'focal_maskrcnn_shapes',
    'focal_upernet_160k': 'focal_upernet_shapes',
    # The narrow model begins with random weights unless it is told to load some.
    "'model.backbone.init_cfg.checkpoint': 'focal_tiny.pth'": (
        "'model.backbone.init_cfg': dict(type='Pretrained', checkpoint='focal_tiny.pth')"
    ),
    'epochs=12': 'epochs=1',
    'iterations=20000': 'iterations=2',
}
TOOLS = {'analyze_results', 'export', 'infer', 'publish', 'show_attention', 'test'}
PUBLISHED = re.compile(r'mine-\w{8}(?=\.(?:pth|py|safetensors))')  # as pages write such a name
# After what new_config writes: a run of seconds.
SHORT = """
train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader.update(num_workers=0, persistent_workers=False)
train_cfg = dict(max_iters=2, val_interval=2)
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Images with masks; photographs and a video lie beside them."""
    folder = tmp_path_factory.mktemp('own')
    data = prepare_shapes(folder / 'my_data', num_images=dict(train=6, val=3))
    for place in ('photo.jpg', 'photos/photo.jpg', 'more/photo.jpg', 'archive/2026/photo.png'):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.open(data / 'val/000000.jpg').resize((320, 240)).save(folder / place)
    write_video(folder / 'clip.mp4', data / 'val/000000.jpg')
    return data


def prepared(root):
    return prepare_detection(Source(Folder(root), root.with_name(f'{root.name}_data')), Report())


def commands_of_the_page():
    """Each block of commands, in the order of the page."""
    blocks = [block for block in PAGE.read_text().split('```\n') if block.startswith('mmfocal ')]
    return [block.splitlines() for block in blocks]


def run(command, folder):
    """Runs a command with a small model in the place of Focal-T; gives what it printed."""
    for large, small in (('maskrcnn_3x', 'maskrcnn_shapes'), ('upernet_160k', 'upernet_shapes')):
        command = command.replace(large, small)
    name, *arguments = shlex.split(command)
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
        with (folder / arguments[-1]).open('a') as file:
            file.write(SHORT)
    elif 'check_data' in arguments:
        assert 'no errors' in output
    return output


@pytest.fixture(scope='module')
def detector(data):
    """The folder in which the page's first commands were run, and what they printed."""
    return data.parent, [run(command, data.parent) for command in commands_of_the_page()[0]]


def test_commands_of_the_page_train_a_detector(detector):
    folder, outputs = detector
    assert 'Recognised COCO' in outputs[0] and '6 classes: circle' in outputs[0]
    assert (folder / 'work_dirs/mine/curves.png').is_file()
    assert (folder / 'sheet.png').is_file()
    assert len(list((folder / 'images').iterdir())) == 3
    assert (folder / 'predictions/pictures/photo.jpg').is_file()


def filled(text, folder):
    """A command or an example with what is in the folder, where its page leaves that open."""
    for written, meant in OPEN.items():
        text = re.sub(rf'(?<![\w-]){re.escape(written)}(?![\w-])', meant, text)
    for suffix in re.findall(r'mine-\w{8}(\.\w+)', text):
        (published,) = folder.glob(f'mine-*{suffix}')
        text = re.sub(rf'mine-\w{{8}}{suffix}', published.name, text)
    return text


def steps(name):
    """What of a page can be run with a detector of few images: commands, and examples of Python.

    Other commands need COCO, several GPUs or a camera; tests/test_docs.py has their options read.
    Backbones are exported in tests/test_export.py, since each takes a minute.
    """
    for kind, block in test_docs.FENCED.findall(test_docs.page_text(name)):
        if kind == 'python' and '>>> ' not in block and not test_docs.is_config(block):
            yield None, block
        elif kind in ('', 'bash'):
            for words in test_docs.commands_of(block):
                module, arguments = test_docs.module_and_arguments(words) or ('', [])
                tool, first = module.rpartition('.')[2], ' '.join(arguments[:1])
                ours = first in ('CONFIG', 'mine.py', 'work_dirs/mine') or PUBLISHED.search(first)
                left_out = arguments[2:3] == ['0'] or 'backbone' in arguments
                if tool in TOOLS and ours and not left_out:
                    yield tool, shlex.join(arguments)


WITH_STEPS = {name: found for name in test_docs.PROSE if (found := [*steps(name)])}
# Commands of this page and of no other need another test, which trains first.
del WITH_STEPS['docs/training.md']


@pytest.mark.parametrize('name', WITH_STEPS)
def test_examples_of_a_page_run(detector, name, monkeypatch, tmp_path):
    """All in turn, in one folder and one process, as a reader tries them.

    Files are compared with the model on 3 of the 20 sizes that tests/test_export.py takes.
    """
    monkeypatch.setattr(export, 'SIZES', export.SIZES[:3])
    # PyTorch's exporter tells each of its steps to pytest's log, which takes minutes.
    monkeypatch.setattr(logging.root.manager, 'disable', logging.DEBUG)
    folder = tmp_path / 'folder'
    shutil.copytree(detector[0], folder)
    shutil.copytree(folder / 'my_data', folder / 'data/my_data')  # where a published config looks
    monkeypatch.chdir(folder)
    names = {}
    for tool, text in WITH_STEPS[name]:
        if tool is None:
            exec(filled(text, folder), names)
            continue
        before = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
        argv = [f'mmfocal {tool}', *shlex.split(filled(text, folder))]
        if tool == 'infer' and '--out' not in argv:
            argv += ['--force']  # of an earlier command of the page
        monkeypatch.setattr(sys, 'argv', argv)
        assert not importlib.import_module(f'mmfocal.cli.{tool}').main(), argv
        after = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
        assert after != before, argv  # each writes something


def test_examples_are_found():
    found = [step for steps_ in WITH_STEPS.values() for step in steps_]
    assert {tool for tool, _ in found} == {None, *TOOLS}
    assert {'README.md', 'docs/deployment.md', 'docs/inference.md'} <= set(WITH_STEPS)
    assert len(found) > 20


def test_python_of_the_page_trains(data, monkeypatch, tmp_path):
    shutil.copytree(data, tmp_path / 'my_data')
    segmentation_folder(data, tmp_path / 'my_maps')
    (tmp_path / 'my_maps/classes.txt').rename(tmp_path / 'classes.txt')
    backbone = MODELS.build(load_config('focal_maskrcnn_shapes').model.backbone)
    torch.save(backbone.state_dict(), tmp_path / 'focal_tiny.pth')
    monkeypatch.chdir(tmp_path)
    examples = [block for tool, block in steps('docs/training.md') if tool is None]
    assert len(examples) == 2
    for example, metric in zip(examples, ('coco/bbox_mAP', 'mIoU'), strict=True):
        names = {}
        exec(filled(example, tmp_path), names)
        assert metric in names['result'].metrics


def segmentation_folder(data, maps):
    """Images with label maps of the same names, and the names of the classes."""
    for split in ('train', 'val'):
        shutil.copytree(data / split, maps / 'img_dir' / split)
        shutil.copytree(data / 'labels' / split, maps / 'ann_dir' / split)
    for path in (*(maps / 'img_dir').rglob('000001.*'), *(maps / 'ann_dir').rglob('000001.*')):
        image = Image.open(path)
        image.crop((10, 0, 100, 80)).save(path)  # not all have the same size
    (maps / 'classes.txt').write_text('ground\n' + '\n'.join(CLASSES))


def write_video(path, image):
    pixels = cv2.imread(str(image))
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), 5, pixels.shape[1::-1])
    for _ in range(2):
        video.write(pixels)
    video.release()


def test_commands_of_the_page_train_a_segmenter(data):
    folder = data.parent
    maps = folder / 'my_maps'
    segmentation_folder(data, maps)
    before = {path: path.read_bytes() for path in maps.rglob('*') if path.is_file()}
    outputs = [run(command, folder) for command in commands_of_the_page()[1]]
    assert '7 classes: ground, circle' in outputs[0] and 'used in place' in outputs[0]
    assert 'mIoU' in outputs[-1]
    assert (folder / 'work_dirs/streets/curves.png').is_file()
    assert before == {path: path.read_bytes() for path in maps.rglob('*') if path.is_file()}


def test_any_name_of_a_folder_is_written(data, tmp_path):
    """Quotation marks, blanks, line breaks and letters of any script."""
    root = tmp_path / 'Bob\'s "data" \n Ж'
    shutil.copytree(data, root)
    path = tmp_path / 'mine.py'
    path.write_text(config_text(root, prepared(root), 'focal_maskrcnn_3x'))
    assert load_config(path).train_dataloader.dataset.data_root == f'{root}/'


@pytest.mark.parametrize(
    'base, heads',
    [
        ('focal_maskrcnn_3x', ('bbox_head', 'mask_head')),
        ('focal_cascade-maskrcnn_3x', ('bbox_head', 'mask_head')),
        ('focal_atss_3x', ()),
    ],
)
def test_classes_stand_in_one_place(data, tmp_path, base, heads):
    path = tmp_path / 'mine.py'
    text = config_text(data, prepared(data), base)
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
    text = config_text(data, prepared(data), 'focal_maskrcnn_ms-1x')
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


def without_masks(split, content):
    for each in content['annotations']:
        del each['segmentation']


def test_masks_that_are_not_there_are_told(data, tmp_path):
    folder = rewritten(data, tmp_path / 'boxes', without_masks)
    source = Source(Folder(folder), tmp_path / 'mine_data', needs_masks=True)
    with pytest.raises(UserError, match=r'without masks.*focal_retinanet_3x'):
        prepare_detection(source, Report())
    splits = prepared(folder)
    assert 'num_classes' in config_text(folder, splits, 'focal_retinanet_3x')


@pytest.mark.parametrize('base', ['focal-l_htcpp_3x', 'focal_shapes'])
def test_base_with_other_data_is_told(base):
    with pytest.raises(
        UserError, match=r'has training data of type .*expected a config of mmdet|label maps'
    ):
        check_base(base)
