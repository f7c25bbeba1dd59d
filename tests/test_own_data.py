"""From a folder of images to a trained model, by the commands of docs/own_data.md."""

import json
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
from mmengine.config import Config
from PIL import Image

from mmfocal.datasets import prepare_shapes
from mmfocal.datasets.checks import Report
from mmfocal.datasets.formats import Folder, Source, prepare_detection
from mmfocal.datasets.shapes import CLASSES
from mmfocal.engine import load_config
from mmfocal.engine.own_data import check_base, config_text
from mmfocal.utils.errors import UserError

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs/own_data.md'
# What pages leave open, and tools that take a trained model and write something.
OPEN = dict(
    CONFIG='mine.py',
    CHECKPOINT='work_dirs/mine',
    CHECKPOINT_OR_WORK_FOLDER='work_dirs/mine',
    IMAGE='photo.jpg',
    X='20',
    Y='30',
)
TOOLS = {'analyze_results', 'infer', 'show_attention'}
DEFAULTS = dict(analyze_results='work_dirs/mine/analysis', infer='inference')
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


def commands_with_a_trained_model():
    """Of all pages, with the detector of this one where they leave open which it is."""
    found = []
    for name in test_docs.PROSE:
        for words in test_docs.commands(name):
            module, arguments = test_docs.module_and_arguments(words) or ('', [])
            tool = module.rpartition('.')[2]
            arguments = [OPEN.get(each, each) for each in arguments]
            is_camera = '0' in arguments
            if tool in TOOLS and arguments[:2] == ['mine.py', 'work_dirs/mine'] and not is_camera:
                found.append(shlex.join(['mmfocal', tool, *arguments]))
    return sorted({*found} - {*commands_of_the_page()[0]})


@pytest.mark.parametrize('command', commands_with_a_trained_model())
def test_commands_of_other_pages_take_the_detector(detector, command):
    folder, _ = detector
    image = next((folder / 'my_data/val').iterdir())
    for place in ('photo.jpg', 'photos/photo.jpg', 'more/photo.jpg', 'archive/2026/photo.png'):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.open(image).resize((320, 240)).save(folder / place)
    if not (folder / 'clip.mp4').is_file():
        write_video(folder / 'clip.mp4', image)
    out = re.search(r'--out (\S+)', command)
    out = folder / (out[1] if out else DEFAULTS[command.split()[1]])
    if out.is_dir():
        shutil.rmtree(out)
    run(command, folder)
    assert out.is_file() or any(out.iterdir())


def write_video(path, image):
    pixels = cv2.imread(str(image))
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), 5, pixels.shape[1::-1])
    for _ in range(2):
        video.write(pixels)
    video.release()


def test_such_commands_are_found():
    tools = {command.split()[1] for command in commands_with_a_trained_model()}
    assert tools == TOOLS


def test_python_of_the_pages_takes_the_detector(detector, monkeypatch, capsys):
    folder, _ = detector
    monkeypatch.chdir(folder)
    image = next((folder / 'my_data/val').iterdir())
    Path('photos').mkdir(exist_ok=True)
    shutil.copy(image, 'photos/photo.jpg')
    if not Path('clip.mp4').is_file():
        write_video(folder / 'clip.mp4', image)
    examples = [each for name in test_docs.PROSE for each in test_docs.examples(name)]
    examples = [each for each in examples if 'import Inferencer' in each]
    # Those that predict; others are of published files, see test_publish.py.
    examples = [each for each in examples if 'clip.mp4' in each]
    assert len(examples) == 2
    for example in examples:
        example = example.replace(
            "'focal_maskrcnn_3x', 'checkpoint.pth'", "'mine.py', 'work_dirs/mine'"
        )
        exec(example, {})
        assert 'photo.jpg tensor' in capsys.readouterr().out


def test_commands_of_the_page_train_a_segmenter(data):
    folder = data.parent
    maps = folder / 'my_maps'
    for split in ('train', 'val'):
        shutil.copytree(data / split, maps / 'img_dir' / split)
        shutil.copytree(data / 'labels' / split, maps / 'ann_dir' / split)
    for path in (*(maps / 'img_dir').rglob('000001.*'), *(maps / 'ann_dir').rglob('000001.*')):
        image = Image.open(path)
        image.crop((10, 0, 100, 80)).save(path)  # not all have the same size
    (maps / 'classes.txt').write_text('ground\n' + '\n'.join(CLASSES))
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
