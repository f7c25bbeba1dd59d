"""Classifiers of mmpretrain: configs, the authors' weights in them, and single drawn shapes."""

import copy
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope

from mmfocal.datasets import prepare_shapes
from mmfocal.models.settings import ARCH_SETTINGS
from mmfocal.weights.authors import authors_version, from_authors
from mmfocal.weights.classifier import load_classifier
from mmfocal.weights.safe_loading import CheckpointError, load_checkpoint_file

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'configs/mmpretrain').glob('*.py'))
STAND_INS = str(Path(__file__).with_name('stand_ins'))
HAS_TORCHVISION = importlib.util.find_spec('torchvision') is not None
if not HAS_TORCHVISION:
    sys.path.append(STAND_INS)

from mmpretrain.engine import LearningRateDecayOptimWrapperConstructor  # noqa: E402
from mmpretrain.registry import DATASETS, MODELS  # noqa: E402
from mmpretrain.structures import DataSample  # noqa: E402
from test_paddle import GOLDEN as PADDLEVIT  # noqa: E402
from test_paddle import as_paddle  # noqa: E402
from test_paddle import saved as saved_by_paddle  # noqa: E402

# Table 1 of the paper has them in millions; they are those of the authors' files.
PARAMETERS = {
    'focal_in1k': 28_880_380,
    'focal-s_in1k': 51_141_940,
    'focal-b_in1k': 89_815_400,
}


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmpretrain')


def build(config, **head):
    config = Config.fromfile(config) if isinstance(config, Path) else copy.deepcopy(config)
    config.model.head.update(head)
    return MODELS.build(dict(config.model, data_preprocessor=config.get('data_preprocessor')))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_classifier_of_config_learns_and_names(path):
    config = Config.fromfile(path)
    assert Config.fromstring(config.pretty_text, '.py')._cfg_dict == config._cfg_dict
    side = 64 if path.stem == 'focal_shapes' else 224
    if path.stem in PARAMETERS:
        with torch.device('meta'):
            assert sum(p.numel() for p in build(path).parameters()) == PARAMETERS[path.stem]
    backbone = config.model.backbone
    if isinstance(backbone.arch, str):  # two blocks a stage are wired as eighteen are
        backbone.arch = dict(ARCH_SETTINGS[backbone.arch], depths=(2, 2, 2, 2))
    model = build(config)
    images = torch.rand(2, 3, side, side)
    samples = [DataSample().set_gt_label(label) for label in (0, 5)]
    losses = model.train()(images, copy.deepcopy(samples), mode='loss')
    assert losses['loss'].isfinite()
    losses['loss'].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    with torch.no_grad():
        for result in model.eval()(images, samples, mode='predict'):
            assert result.pred_score.shape == (model.head.num_classes,)
            assert result.pred_score.sum().item() == pytest.approx(1, abs=1e-5)


def rates_of(config, epoch_length):
    """Learning rate of each iteration, with so many in an epoch."""
    optimizer = torch.optim.AdamW([torch.zeros(1)], lr=config.optim_wrapper.optimizer.lr)
    schedulers = [
        PARAM_SCHEDULERS.build(
            dict(each, epoch_length=epoch_length), default_args=dict(optimizer=optimizer)
        )
        for each in config.param_scheduler
    ]
    for _ in range(config.train_cfg.max_epochs * epoch_length):
        yield optimizer.param_groups[0]['lr']
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


@pytest.mark.parametrize(
    'name, peak, warm_up, epochs, while_warming',
    [('focal_in1k', 1e-3, 20, 300, 0.01), ('focal-l_in1k_from-swin', 4e-5, 5, 30, 0.07)],
)
def test_learning_rates_are_the_authors(name, peak, warm_up, epochs, while_warming):
    # timm's CosineLRScheduler without warmup_prefix, by iterations: lr_scheduler.py of Swin
    # Transformer, which the authors' main.py imports by that name.
    length = 10
    ours = list(rates_of(Config.fromfile(ROOT / f'configs/mmpretrain/{name}.py'), length))
    lowest, first = peak / 100, peak / 1000
    steps, total = warm_up * length, epochs * length
    theirs = [first + (peak - first) * t / steps for t in range(steps)]
    theirs += [
        lowest + (peak - lowest) * (1 + math.cos(math.pi * t / total)) / 2
        for t in range(steps, total)
    ]
    assert ours[0] == pytest.approx(first, rel=1e-6)
    assert ours[:steps] == pytest.approx(theirs[:steps], rel=while_warming)
    assert ours[steps:] == pytest.approx(theirs[steps:], rel=1e-3)
    assert sum(ours) == pytest.approx(sum(theirs), rel=5e-3)


# --- The authors' weights -------------------------------------------------------------------


GOLDEN = sorted(ROOT.glob('tests/golden/*.npz'))
if FULL := os.environ.get('MMFOCAL_GOLDEN'):
    GOLDEN = sorted(Path(FULL).glob('*.npz'))
# Buffers that the geometry replaces.
INDICES = {'relative_position_index', 'relative_position_index_0', 'valid_ind_rolled'}


def golden(path):
    arrays = np.load(path)
    config = json.loads(str(arrays['config']))
    state = {
        key.removeprefix('state.'): torch.from_numpy(arrays[key])
        for key in arrays.files
        if key.startswith('state.')
    }
    return arrays, config, state


def golden_classifier(config, state):
    kwargs, _ = from_authors(config, state, authors_version(state))
    name = 'FocalTransformerFast' if authors_version(state) == 2 else 'FocalTransformer'
    last = len(config['depths']) - 1
    kwargs.update(type=f'mmfocal.{name}', out_indices=(last,), out_norm=True)
    classes, channels = state['head.weight'].shape
    return dict(
        type='ImageClassifier',
        backbone=kwargs,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=classes, in_channels=channels),
    )


@pytest.mark.parametrize('path', GOLDEN, ids=lambda path: path.stem)
def test_logits_are_the_authors(path):
    arrays, config, state = golden(path)
    model = MODELS.build(golden_classifier(config, state))
    load_classifier(model, {'model': state})
    if (version := authors_version(state)) == 2:
        # Positions of the closest keys follow from the geometry; those of the case are random.
        model.backbone.load_state_dict(from_authors(config, state, version)[1], strict=False)
    model = model.double().eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(arrays['input']).double(), mode='tensor')
    want = torch.from_numpy(arrays['logits']).double()
    assert (logits - want).norm() < 1e-6 * want.norm()


@pytest.mark.parametrize('path', PADDLEVIT, ids=lambda path: path.stem)
def test_logits_are_those_of_paddlevit(path):
    arrays = np.load(path.with_name(f'{path.stem}_out.npz'))
    state = load_checkpoint_file(path)
    model = MODELS.build(golden_classifier(json.loads(str(arrays['config'])), state)).eval()
    report = load_classifier(model, str(path))
    assert {'head.fc.weight', 'backbone.norm3.weight'} <= set(report.loaded)
    assert not report.new and {key.rpartition('.')[2] for key in report.left_out} <= INDICES
    with torch.no_grad():
        logits = model(torch.from_numpy(arrays['input']), mode='tensor')
    assert float((logits - torch.from_numpy(arrays['logits'])).abs().max()) < 1e-5


def test_other_number_of_classes_and_missing_head_are_told():
    _, config, state = golden(ROOT / 'tests/golden/conv_embed_shift_layerscale_224.npz')
    settings = golden_classifier(config, state)
    settings['head']['num_classes'] = 7
    with pytest.raises(
        CheckpointError, match=r'head\.weight is \(10, 64\), that of the model \(7, 64\)'
    ):
        load_classifier(MODELS.build(settings), state, 'a.pth')
    settings['head']['num_classes'] = 10
    headless = {name: value for name, value in state.items() if not name.startswith('head.')}
    with pytest.raises(CheckpointError, match=r'a\.pth lacks head\.weight'):
        load_classifier(MODELS.build(settings), headless, 'a.pth')


# --- The tools ------------------------------------------------------------------------------

CLASSIFIER = """
_base_ = '{root}/configs/mmpretrain/focal_shapes.py'
num_images = dict(train=8, val=4)
loader = dict(batch_size=4, num_workers=0, persistent_workers=False,
              dataset=dict(data_root='{data}', num_images=num_images))
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
"""
AUTHORS = """
_base_ = '{root}/configs/mmpretrain/focal_shapes.py'
model = dict(backbone=dict(_delete_=True, **{backbone}), head=dict(num_classes=10, in_channels=64))
data_preprocessor = dict(num_classes=10)
loader = dict(batch_size=4, num_workers=0, persistent_workers=False,
              dataset=dict(data_root='{data}', num_images=dict(train=8, val=4)))
val_dataloader = loader
test_dataloader = loader
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('classifier')
    prepare_shapes(folder / 'shapes', num_images=dict(train=8, val=4))
    return folder


def run_tool(tool, *args, cwd, status=0):
    path = os.environ.get('PYTHONPATH', '')
    result = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / tool), *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            'OMP_NUM_THREADS': '1',
            'PYTHONPATH': path if HAS_TORCHVISION else f'{STAND_INS}{os.pathsep}{path}',
        },
    )
    output = result.stdout + result.stderr
    assert result.returncode == status, output[-3000:]
    return output


def test_classifier_trains_and_tests(folder):
    config, out = folder / 'classifier.py', folder / 'out.json'
    config.write_text(CLASSIFIER.format(root=ROOT, data=folder / 'shapes'))
    output = run_tool('train.py', config, '--work-dir', 'run', '--val-loss', cwd=folder)
    assert 'val/loss: ' in output
    checkpoint = folder / 'run/iter_2.pth'
    output = run_tool(
        *('test.py', config, checkpoint, '--out', out, '--show-dir', 'pictures'), cwd=folder
    )
    assert 'Pretrained weights' not in output
    assert 0 <= json.loads(out.read_text())['metrics']['accuracy/top1'] <= 100
    assert list(folder.glob('pictures/*.png'))


def test_files_of_the_authors_are_tested_as_they_are(folder):
    _, config, state = golden(ROOT / 'tests/golden/conv_embed_shift_layerscale_224.npz')
    torch.save({'model': state}, folder / 'authors.pth')
    backbone = golden_classifier(config, state)['backbone']
    path = folder / 'authors.py'
    path.write_text(AUTHORS.format(root=ROOT, data=folder / 'shapes', backbone=backbone))
    output = run_tool('test.py', path, folder / 'authors.pth', cwd=folder)
    assert "the authors' Focal Transformer" in output
    assert 'norm.weight' not in output and 'accuracy/top1' in output
    # Nothing is silently left as it was.
    assert 'missing keys' not in output and 'unexpected key' not in output
    saved_by_paddle(folder / 'authors.pdparams', as_paddle(state))
    again = run_tool('test.py', path, folder / 'authors.pdparams', cwd=folder)
    accuracy = re.compile(r'accuracy/top1: \S+')
    assert accuracy.search(again)[0] == accuracy.search(output)[0]
    assert f"authors.pdparams, the authors' Focal Transformer: {len(state)} tensors" in again
    output = run_tool('infer.py', path, folder / 'authors.pth', folder / 'shapes/val', cwd=folder)
    assert "the authors' Focal Transformer" in output and '4 images and frames' in output
    # Ten classes, of which the data set names six.
    predictions = json.loads((folder / 'inference/predictions.json').read_text())
    categories = {category['id'] for category in predictions['categories']}
    assert {annotation['category_id'] for annotation in predictions['annotations']} <= categories
    state.pop('head.bias')
    torch.save({'model': state}, folder / 'damaged.pth')
    output = run_tool('test.py', path, folder / 'damaged.pth', cwd=folder, status=2)
    assert 'damaged.pth lacks head.bias' in output
    assert 'Traceback' not in output


@pytest.mark.parametrize('source, suffix', [('pth', 'safetensors'), ('pdparams', 'pth')])
def test_converted_classifier_is_loaded_by_mmengine_itself(folder, source, suffix):
    path = ROOT / 'tests/golden/conv_embed_shift_layerscale_224.npz'
    _, config, state = golden(path)
    torch.save({'model': state}, folder / 'authors.pth')
    saved_by_paddle(folder / 'authors.pdparams', as_paddle(state))
    settings = golden_classifier(config, state)
    config_file, converted = folder / 'convert.py', folder / f'ours.{suffix}'
    config_file.write_text(f"default_scope = 'mmpretrain'\nmodel = {settings}\n")
    args = (folder / f'authors.{source}', converted, '--config', config_file)
    output = run_tool('convert_checkpoint.py', *args, cwd=folder)
    assert 'left out' not in output and 'new  ' not in output
    model, want = MODELS.build(settings), MODELS.build(settings)
    load_classifier(want, state)
    loaded = load_checkpoint_file(converted)
    model.load_state_dict(loaded.get('state_dict', loaded))  # strict
    for name, value in want.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_missing_data_is_told(folder):
    output = run_tool('test.py', 'focal_in1k', 'none.pth', cwd=folder, status=2)
    assert f'{folder}/data/imagenet/val' in output
    assert 'test_dataloader.dataset.data_root=FOLDER' in output
    assert 'configs/mmpretrain/focal_shapes.py' in output


def test_missing_torchvision_is_told(folder, monkeypatch):
    (folder / 'sitecustomize.py').write_text(
        'from importlib.machinery import PathFinder\n'
        'find_spec = PathFinder.find_spec\n'
        'PathFinder.find_spec = lambda name, *args: (\n'
        "    None if name == 'torchvision' else find_spec(name, *args))\n"
    )
    monkeypatch.setenv('PYTHONPATH', str(folder))
    output = run_tool('train.py', 'configs/mmpretrain/focal_shapes.py', cwd=folder, status=2)
    assert 'pip install torchvision' in output and 'Traceback' not in output


# --- Single shapes --------------------------------------------------------------------------


def test_samples_are_single_shapes(folder):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='mmfocal.datasets.cls_shapes.CropToBox', margin=0.0),
        dict(type='PackInputs'),
    ]
    settings = dict(
        type='mmfocal.datasets.cls_shapes.ShapesClsDataset',
        split='val',
        data_root=str(folder / 'shapes'),
        num_images=dict(train=8, val=4),
        pipeline=pipeline,
    )
    dataset = DATASETS.build(settings)
    content = json.loads((folder / 'shapes/annotations/instances_val.json').read_text())
    shapes = [
        shape
        for shape in content['annotations']
        if not shape['iscrowd'] and max(shape['bbox'][2:]) >= 16
    ]
    assert len(dataset) == len(shapes) > 0
    for sample, shape in zip(dataset, shapes, strict=True):
        assert sample['data_samples'].gt_label.item() == shape['category_id'] - 1
        height, width = sample['inputs'].shape[1:]
        assert height == width and abs(width - max(shape['bbox'][2:])) <= 1
    assert len(DATASETS.build(dict(settings, min_size=0))) >= len(shapes)


@pytest.mark.parametrize(
    'box, expected',
    [
        ((40, 30, 20, 10), (37, 22, 26)),  # a square around the middle, with its margin
        ((0, 0, 20, 20), (0, 0, 26)),  # moved into the image
        ((100, 90, 28, 38), (79, 79, 49)),
        ((0, 0, 128, 128), (0, 0, 128)),  # never larger than the image
        ((5, 5, 0, 0), (4, 4, 1)),
    ],
)
def test_crop_is_a_square_within_the_image(box, expected):
    from mmfocal.datasets.cls_shapes import CropToBox

    rows, columns = np.mgrid[:128, :128]
    image = np.stack([columns, rows, rows], axis=2).astype(np.uint8)
    result = CropToBox()(dict(img=image, box=box))
    x, y, side = expected
    assert result['img_shape'] == result['img'].shape[:2] == (side, side)
    assert result['img'][0, 0].tolist() == [x, y, y]


def test_layers_have_rates_of_their_own_by_mmpretrains_constructor():
    model = build(ROOT / 'configs/mmpretrain/focal_shapes.py')
    constructor = LearningRateDecayOptimWrapperConstructor(
        dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05)), dict(layer_decay_rate=0.5)
    )
    groups = constructor(model).optimizer.param_groups
    blocks = sum(len(stage.blocks) for stage in model.backbone.stages)
    assert {group['lr'] for group in groups} == {0.5**steps for steps in range(blocks + 2)}
