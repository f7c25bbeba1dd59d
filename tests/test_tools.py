"""The tools as users start them, on a few drawn images, for both families."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmfocal import cli
from mmfocal.cli import demo
from mmfocal.cli import train as cli_train
from mmfocal.engine import load_checkpoint_file, load_config, settings
from mmfocal.engine.config import find_config

ROOT = Path(__file__).parents[1]

DETECTOR = """
_base_ = '{root}/configs/mmdet/focal_maskrcnn_shapes.py'
data_root = '{data}'
num_images = dict(train=8, val=4)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(data_root=data_root, num_images=num_images))
val_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(data_root=data_root, num_images=num_images))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + '/annotations/instances_val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
randomness = dict(_delete_=True)
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')
"""

SEGMENTER = """
_base_ = 'mmseg::_base_/default_runtime.py'
custom_imports = dict(imports=['mmfocal'])
norm_cfg = dict(type='BN')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127] * 3, std=[60] * 3, size=(128, 128),
        pad_val=0, seg_pad_val=255),
    backbone=dict(
        type='FocalTransformer',
        arch=dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)), out_indices=(3,)),
    decode_head=dict(
        type='FCNHead', in_channels=64, channels=16, num_convs=1, num_classes=7,
        norm_cfg=norm_cfg, loss_decode=dict(type='CrossEntropyLoss')),
    test_cfg=dict(mode='whole'))
def dataset(split, pipeline):
    return dict(
        type='BaseSegDataset', data_root='{data}', img_suffix='.jpg', seg_map_suffix='.png',
        data_prefix=dict(img_path=split, seg_map_path='labels/' + split), pipeline=pipeline,
        metainfo=dict(classes=('ground', 'circle', 'square', 'triangle', 'star', 'cross', 'ring'),
                      palette=[[i * 30] * 3 for i in range(7)]))
load = dict(type='LoadImageFromFile')
annotations = dict(type='LoadAnnotations')
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler'),
    dataset=dataset('train', [load, annotations, dict(type='PackSegInputs')]))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dataset('val', [load, annotations, dict(type='PackSegInputs')]))
test_dataloader = val_dataloader
tta_pipeline = [load, dict(type='TestTimeAug', transforms=[
    [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
    [annotations], [dict(type='PackSegInputs')]])]
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
    visualization=dict(type='SegVisualizationHook'))
"""


def run_tool(tool, *args, cwd, status=0):
    """Runs a tool as a user does, from another folder than the repository."""
    start = ['-m', tool] if tool.startswith('tools.dev.') else [str(ROOT / 'tools' / tool)]
    result = subprocess.run(
        [sys.executable, *start, *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
    )
    assert result.returncode == status, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def fails(monkeypatch, capsys, tool, *args):
    """Runs a tool that ends before training, in this process; returns what the user reads."""
    monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        cli.run(Path(tool).stem)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert 'Traceback' not in message
    return message


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('tools')


@pytest.fixture(scope='module')
def detector(folder):
    """A config, and the work folder of a run of two iterations."""
    config = folder / 'detector.py'
    config.write_text(DETECTOR.format(root=ROOT, data=folder / 'shapes'))
    output = run_tool('train.py', config, '--work-dir', 'det', '--deterministic', cwd=folder)
    assert 'training in float32' in output
    return config, folder / 'det'


def test_training_writes_checkpoint_metrics_and_seed(detector):
    _, work_dir = detector
    checkpoint = load_checkpoint_file(work_dir / 'iter_2.pth')
    assert checkpoint['meta']['iter'] == 2
    dumped = (work_dir / 'detector.py').read_text()
    assert f'randomness = dict(deterministic=True, seed={checkpoint["meta"]["seed"]})' in dumped
    assert '--deterministic' in checkpoint['mmfocal_provenance']['command']
    scalars = [json.loads(x) for x in next(work_dir.glob('*/vis_data/scalars.json')).open()]
    assert {'loss', 'coco/bbox_mAP', 'coco/segm_mAP'} <= {key for row in scalars for key in row}


def test_training_resumes_where_it_stopped(detector):
    config, work_dir = detector
    output = run_tool(
        'train.py',
        config,
        '--work-dir',
        work_dir,
        '--resume',
        '--cfg-options',
        'train_cfg.max_iters=4',
        cwd=work_dir.parent,
    )
    assert 'iter_2.pth' in output and (work_dir / 'iter_4.pth').is_file()
    seeds = {load_checkpoint_file(path)['meta']['seed'] for path in work_dir.glob('*.pth')}
    assert len(seeds) == 1
    assert f'randomness = dict(seed={seeds.pop()})' in (work_dir / 'detector.py').read_text()


def test_testing_writes_metrics_predictions_and_images(detector):
    config, work_dir = detector
    out, images = work_dir / 'results.json', work_dir / 'images'
    run_tool(
        'test.py',
        config,
        work_dir / 'iter_2.pth',
        '--out',
        out,
        '--show-dir',
        images,
        '--cfg-options',
        'model.test_cfg.rcnn.score_thr=0.0',
        cwd=work_dir.parent,
    )
    results = json.loads(out.read_text())
    assert 0 <= results['metrics']['coco/bbox_mAP'] <= 1
    boxes = json.loads(out.with_suffix('.bbox.json').read_text())
    assert boxes and {'image_id', 'bbox', 'score', 'category_id'} <= set(boxes[0])
    assert len(list(images.glob('*'))) == 4


def test_analysis_runs_the_model_and_shows_its_curves(detector):
    config, work_dir = detector
    options = ('--out', 'analysis', '--images', 1, '--score-thr', 0.0)
    output = run_tool(
        *('analyze_results.py', config, work_dir, *options, '--cfg-options'),
        'model.test_cfg.rcnn.score_thr=0.0',
        cwd=work_dir.parent,
    )
    assert 'mask AP50' in output and 'missed' in output
    page = (work_dir.parent / 'analysis/report.html').read_text()
    assert 'alt="Losses, metrics and learning rate' in page and page.count('data:image/') >= 3


def test_segmenter_trains_and_tests(folder, detector):
    config = folder / 'segmenter.py'
    config.write_text(SEGMENTER.format(data=folder / 'shapes'))
    run_tool('train.py', config, '--work-dir', 'seg', '--seed', 3, cwd=folder)
    out = folder / 'seg.json'
    checkpoint = folder / 'seg/iter_2.pth'
    output = run_tool(
        *('test.py', config, checkpoint, '--tta', '--out', out, '--show-dir', 'images'),
        cwd=folder,
    )
    assert 'SegTTAModel' in output
    assert 0 <= json.loads(out.read_text())['metrics']['mIoU'] <= 100
    assert len(list(folder.glob('images/**/*.png'))) == 4


TTA = """
_base_ = ['detector.py', '{root}/configs/mmdet/_base_/tta_htcpp.py']
custom_imports = dict(imports=['mmfocal', 'mmfocal.detection'])
"""


def test_boxes_and_masks_are_merged_over_views(detector, folder):
    _, work_dir = detector
    config, out = folder / 'tta.py', folder / 'tta.json'
    config.write_text(TTA.format(root=ROOT))
    scales = {
        f'tta_pipeline.1.transforms.0.{i}.scale': f'({side},{side})'
        for i, side in enumerate((64, 96, 128, 128, 160, 192))
    }
    options = [f'{key}={value}' for key, value in scales.items()]
    options += ['model.test_cfg.rcnn.max_per_img=10']
    # Masks of each view are made of all that is kept: 1000 objects take minutes.
    options += ['tta_model.tta_cfg.max_per_img=20']
    output = run_tool(
        *('test.py', config, work_dir / 'iter_2.pth', '--tta', '--out', out),
        *('--cfg-options', 'model.test_cfg.rcnn.score_thr=0.0', *options),
        cwd=folder,
    )
    assert 'InstanceTTAModel' in output
    found = json.loads(out.with_suffix('.segm.json').read_text())
    assert found and {'bbox', 'score', 'segmentation'} <= set(found[0])


def test_rings_are_compared(detector, folder):
    config, work_dir = detector
    output = run_tool(
        *('tools.dev.compare_rings', config, work_dir / 'iter_2.pth', folder / 'shapes/val'),
        *('--expand-sizes', 3, 3, 3, 0, '--num-images', 2, '--rings', 'normal', 0, -100),
        cwd=folder,
    )
    lines = [line.strip('| ').split(' | ') for line in output.splitlines() if line[:1] == '|']
    distances = {ring: list(map(float, values)) for ring, *values in lines[2:]}
    assert list(distances) == ['normal', '0.0', '-100.0']
    # Attention of two iterations is nearly even: a bias of -100 outweighs all scores.
    assert distances['-100.0'] == [0, 0, 0, 0]
    for ring in ('normal', '0.0'):
        assert distances[ring][:2] == [0, 0] and distances[ring][2] > 0


def test_two_processes_train_together(detector):
    config, work_dir = detector
    result = subprocess.run(
        [
            *(ROOT / 'tools/dist_train.sh', config, '2', '--work-dir', work_dir / 'two'),
            '--val-loss',
            *('--cfg-options', 'env_cfg.dist_cfg.backend=gloo', 'model.neck.norm_cfg=None'),
        ],
        cwd=work_dir,
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'},
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert (work_dir / 'two/iter_2.pth').is_file()
    (log,) = (work_dir / 'two').glob('*/vis_data/scalars.json')
    assert '"val/loss_mask": ' in log.read_text()
    assert 'world_size: 2' in result.stdout.replace('  ', ' ') or 'GPU number: 2' in result.stdout


def test_missing_data_is_told_without_a_trace(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    message = fails(monkeypatch, capsys, 'train.py', 'configs/mmdet/focal_maskrcnn_ms-1x.py')
    assert str(tmp_path / 'data/coco/train2017') in message
    assert 'focal_maskrcnn_shapes.py' in message


@pytest.mark.parametrize(
    'tool, args, expected',
    [
        ('train.py', ['focal_maskrcn_3x.py'], 'configs/mmdet/focal_maskrcnn_3x.py'),
        ('train.py', ['focal_maskrcnn_shapes', '--resume', 'no.pth'], 'there is no file no.pth'),
        (
            'train.py',
            ['focal_maskrcnn_shapes', '--resume', '--work-dir', '.'],
            'iter_5.pth is passed',
        ),
        ('train.py', ['focal_maskrcnn_shapes', '--auto-scale-lr'], 'base_batch_size'),
        ('train.py', ['x', '--amp', '--precision', 'bf16'], 'not allowed with argument --amp'),
        (
            'train.py',
            ['focal_maskrcnn_shapes', '--cfg-options', 'train_pipeline.99=1'],
            'do not fit',
        ),
        ('test.py', ['focal_maskrcnn_shapes', 'no.pth'], 'There is no checkpoint no.pth'),
        ('test.py', ['focal_maskrcnn_shapes', __file__, '--out', 'r.pkl'], '--out writes JSON'),
        ('test.py', ['focal_maskrcnn_shapes', __file__, '--tta'], 'lacks tta_model'),
        ('test.py', ['focal_maskrcnn_shapes', __file__], 'could not be read as a checkpoint'),
    ],
)
def test_wrong_arguments_are_told_without_a_trace(
    monkeypatch, capsys, tmp_path, tool, args, expected
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MMFOCAL_CACHE', str(tmp_path))
    monkeypatch.setattr('mmfocal.datasets.shapes.NUM_IMAGES', dict(train=1, val=1))
    (tmp_path / 'iter_5.pth').touch()  # of a run that was killed while it wrote
    assert expected in fails(monkeypatch, capsys, tool, *args)


def test_ctrl_c_says_how_training_resumes(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_train, 'train', interrupted)
    monkeypatch.setattr(sys, 'argv', ['train', 'focal_retinanet_shapes'])
    with pytest.raises(KeyboardInterrupt):
        cli_train.main()
    assert '--resume' in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU for it')
def test_amp_without_gpu_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert '--amp needs a GPU' in fails(
        monkeypatch, capsys, 'train.py', 'focal_maskrcnn_shapes', '--amp'
    )


@pytest.mark.parametrize(
    'task, line, told',
    [
        (
            'detection',
            'Iter(val) [25/25]  coco/bbox_mAP: 0.536  coco/bbox_mAP_50: 0.9  coco/segm_mAP: 0.495',
            'box mAP 0.536, mask mAP 0.495',
        ),
        (
            'segmentation',
            'Iter(val) [25/25]    aAcc: 97.1  mIoU: 81.2500  mAcc: 88.0',
            'mIoU 0.812',
        ),
    ],
)
def test_demo_tells_progress_and_metrics(capsys, task, line, told):
    assert find_config(demo.DEMOS[task].config).is_file()
    with demo.Progress(demo.DEMOS[task]) as progress:
        for done in (10, 20, 50):
            progress.read(f'Iter(train) [ {done}/100]  eta: 0:01:00  time: 0.1  loss: 1.5000\n')
        progress.read('Iter(val) [10/25]    eta: 0:00:01  time: 0.1\n')
        progress.read(line + '\n')
    lines = [text.strip() for text in capsys.readouterr().out.splitlines()]
    expected = [f'{done}/100  loss 1.5000  time left 0:01:00' for done in (10, 20, 50)]
    assert lines[:-1] == expected
    assert lines[-1].endswith(told)


# --- What is watched ------------------------------------------------------------------------


def test_switches_of_a_run(detector, folder):
    """Averaged weights, the best checkpoint, an early end, curves."""
    config, _ = detector
    output = run_tool(
        'train.py',
        config,
        *('--work-dir', 'watched', '--ema', '--save-best', '--early-stop', '1', '--log-to'),
        *('--seed', '0', '--cfg-options', 'train_cfg.max_iters=8', 'train_cfg.val_interval=1'),
        'optim_wrapper.optimizer.lr=0.0',  # results do not get better and better
        cwd=folder,
    )
    assert 'the monitored metric did not improve' in output
    work_dir = folder / 'watched'
    (best,) = work_dir.glob('best_coco_bbox_mAP_iter_*.pth')
    assert 'ema_state_dict' in load_checkpoint_file(best)
    assert not (work_dir / 'iter_8.pth').exists()
    with Image.open(work_dir / 'curves.png') as image:
        assert np.asarray(image.convert('L')).std() > 5  # not blank
    assert not list(work_dir.glob('*/vis_data/events*'))


@pytest.mark.parametrize(
    'options, message',
    [
        (['--early-stop', '0'], 'expected a number of validations, got 0'),
        (['--log-to', 'wandb'], 'pip install wandb'),
    ],
)
def test_switches_that_cannot_be_are_told(monkeypatch, capsys, detector, options, message):
    monkeypatch.setitem(sys.modules, 'wandb', None)  # whether it is installed or not
    config, work_dir = detector
    assert message in fails(
        monkeypatch, capsys, 'train.py', config, '--work-dir', work_dir.with_name('none'), *options
    )


@pytest.mark.parametrize('there', [True, False])
def test_tensorboard_is_used_where_it_is_installed(monkeypatch, there):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        settings.importlib.util,
        'find_spec',
        lambda name: there if name == 'tensorboard' else find_spec(name),
    )
    cfg = load_config('focal_upernet_160k')
    settings.set_logs(cfg)
    kinds = [backend['type'] for backend in cfg.visualizer.vis_backends]
    assert kinds == ['LocalVisBackend'] + ['TensorboardVisBackend'] * there
