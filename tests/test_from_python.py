"""Training from Python: what it gives, and that its process is as it was, whatever happens."""

import inspect
import json
import logging
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from mmengine.utils import ManagerMixin

import mmfocal
from mmfocal.cli import train as cli_train
from mmfocal.datasets import prepare_shapes
from mmfocal.datasets.shapes import CLASSES
from mmfocal.engine import TrainOptions, load_config, schedule
from mmfocal.engine.hooks import NonFiniteHook
from mmfocal.engine.process import left_as_found
from mmfocal.engine.schedule import set_length
from mmfocal.utils.errors import UserError

SMALL = {
    'train_dataloader.batch_size': 2,
    'train_cfg.val_interval': 500,  # of as many: once
    **{
        f'{split}_dataloader.{key}': value
        for split in ('train', 'val', 'test')
        for key, value in (('num_workers', 0), ('persistent_workers', False))
    },
}
DETECTOR, SEGMENTER = 'focal_maskrcnn_shapes', 'focal_upernet_shapes'
TINY = {  # images of a detector
    f'{split}_dataloader.dataset.pipeline.{step}.scale': (64, 64)
    for split, step in (('train', 2), ('val', 1), ('test', 1))
}


@pytest.fixture(scope='module')
def boxes(tmp_path_factory):
    return prepare_shapes(
        tmp_path_factory.mktemp('python') / 'boxes', num_images=dict(train=5, val=2)
    )


@pytest.fixture(scope='module')
def config(boxes):
    """For a detector on the boxes."""
    written = mmfocal.new_config(boxes, DETECTOR, boxes.with_name('mine.py'))
    assert written.data.classes == CLASSES and 'train: 5 images' in written.lines
    return written.path


@pytest.fixture(scope='module')
def maps(boxes):
    folder = boxes.with_name('maps')
    for split in ('train', 'val'):
        shutil.copytree(boxes / split, folder / 'img_dir' / split)
        shutil.copytree(boxes / 'labels' / split, folder / 'ann_dir' / split)
    (folder / 'classes.txt').write_text('ground\n' + '\n'.join(CLASSES))
    return folder


def state_of_process():
    """What a run may change, and is to leave."""
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    return (
        handlers,
        getattr(DefaultScope.get_current_instance(), 'scope_name', None),
        [name for name in MMLogger._instance_dict if name != 'mmengine'],  # the root
        torch.get_rng_state().tolist(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        matplotlib.get_backend(),
        sys.stdout,
    )


def is_free(work_dir):
    return (Path(work_dir) / 'run.lock').read_text() == ''


def test_detector_segmenter_and_detector_again_in_one_process(
    boxes, maps, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    before = state_of_process()
    first = mmfocal.train(DETECTOR, data=boxes, epochs=1, options=SMALL | TINY)
    assert state_of_process() == before
    assert first.work_dir == tmp_path / f'work_dirs/{DETECTOR}_boxes'
    # 3 iterations of 2 images are an epoch of 5.
    assert first.checkpoint == first.work_dir / 'iter_3.pth' and first.checkpoint.is_file()
    assert first.best_checkpoint.name.startswith('best_coco_bbox_mAP_iter_')
    assert (
        first.metrics['coco/bbox_mAP'] >= 0 and first.best_metrics.keys() >= first.metrics.keys()
    )
    cfg = load_config(first.config)
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[-1].end == 3
    assert cfg.data_root == f'{boxes}/' and cfg.model.roi_head.bbox_head.num_classes == len(
        CLASSES
    )
    assert is_free(first.work_dir)
    assert 'Config:' in capsys.readouterr().out

    second = mmfocal.train(
        SEGMENTER, data=maps, iterations=2, options=SMALL, quiet=True, work_dir='maps_run', seed=3
    )
    assert state_of_process() == before
    assert second.checkpoint == tmp_path / 'maps_run/iter_2.pth'
    assert 0 <= second.metrics['mIoU'] <= 100
    assert load_config(second.config).randomness.seed == 3
    output = capsys.readouterr().out
    assert 'Config:' not in output and 'Iteration 2: ' in output and 'mIoU' in output
    assert 'Config:' in next(second.work_dir.glob('*/*.log')).read_text()

    third = mmfocal.train(
        DETECTOR, data=boxes, iterations=2, options=SMALL | TINY, quiet=True, save_best=False
    )
    assert third.checkpoint.name == 'iter_2.pth' and third.best_checkpoint is None
    assert third.best_metrics == {}
    # Each run has logged into its own folder.
    for result, last in ((second, 2), (third, 2)):
        log = max(result.work_dir.glob('*/vis_data/scalars.json'))
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        assert [row['step'] for row in rows if 'loss' in row][-1] == last
        assert result.curves.axes[0].lines

    model = second.inferencer()
    (prediction,) = model(maps / 'img_dir/val/000000.jpg')
    assert prediction.sample.pred_sem_seg.shape == (128, 128)
    assert third.test(quiet=True)['coco/bbox_mAP'] == third.metrics['coco/bbox_mAP']
    assert third.inferencer(score_thr=0).checkpoint == str(third.checkpoint)
    assert state_of_process()[:3] == before[:3]


def test_an_interrupted_run_is_resumed(config, tmp_path, monkeypatch, capsys):
    call = dict(iterations=2, work_dir=tmp_path / 'run', quiet=True, seed=0)

    def interrupt(hook, runner, *args, **kwargs):
        if runner.iter == 1:
            raise KeyboardInterrupt

    before = state_of_process()
    with monkeypatch.context() as patch:
        patch.setattr(NonFiniteHook, 'after_train_iter', interrupt)
        with pytest.raises(KeyboardInterrupt):
            mmfocal.train(config, **call, options=SMALL | TINY)
    assert state_of_process() == before
    assert is_free(tmp_path / 'run')
    assert 'resume=True' in capsys.readouterr().err
    assert not (tmp_path / 'run/iter_2.pth').exists()

    result = mmfocal.train(config, **call, options=SMALL | TINY, resume=True)
    log = max((tmp_path / 'run').glob('*/*.log')).read_text()
    assert 'iter_1.pth' in log
    assert result.checkpoint.name == 'iter_2.pth'
    # Of both starts.
    steps = [line.get_xdata() for line in result.curves.axes[0].lines]
    assert any(list(each) == [1, 2] for each in steps)


@pytest.mark.parametrize(
    'asked, message',
    [
        (dict(epoch=3), 'nearest to it: epochs'),
        (dict(lr=0.1), 'go into options'),
        (dict(epochs=0), 'whole number from 1, got 0'),
        (dict(epochs=True), 'whole number from 1, got True'),
        (dict(epochs=1, iterations=2), 'exclude each other'),
        (dict(seed='x'), '--seed'),
        (dict(launcher='pytorch', data='boxes'), 'mmfocal new_config'),
        (dict(launcher='pytorch'), 'not started by it'),
        (dict(options={'model.backbone.depth': 3}), 'depth'),
        (dict(precision='bf16'), 'GPU'),
        (dict(options=['a=1']), 'expected a dict'),
    ],
)
def test_errors_are_raised_and_leave_no_lock(config, tmp_path, asked, message):
    if asked.get('precision') and torch.cuda.is_available():
        pytest.skip('this machine has what is refused')
    before = state_of_process()
    with pytest.raises(UserError, match=message):
        mmfocal.train(config, work_dir=tmp_path / 'run', **asked)
    assert state_of_process() == before
    assert not (tmp_path / 'run/run.lock').exists() or is_free(tmp_path / 'run')


def test_config_that_is_read_is_taken_and_not_changed(config, tmp_path):
    given = load_config(config)
    before = given.to_dict()
    result = mmfocal.train(given, work_dir=tmp_path / 'run', iterations=1, seed=3)
    assert given.to_dict() == before
    assert result.config.is_file() and result.checkpoint.name == 'iter_1.pth'
    assert load_config(result.config).train_cfg.max_iters == 1


@pytest.mark.parametrize('given', [None, 3])
def test_what_is_no_config_is_told(given):
    with pytest.raises(UserError, match=f'got {given}'):
        mmfocal.train(given)


def test_config_that_is_read_and_data_exclude_each_other(config, boxes):
    with pytest.raises(UserError, match='got a Config'):
        mmfocal.train(load_config(config), data=boxes)


def test_data_that_is_none_is_told(tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='no files'):
        mmfocal.train(DETECTOR, data=tmp_path / 'empty', work_dir=tmp_path / 'run')
    assert is_free(tmp_path / 'run')


def test_instances_of_before_are_neither_used_nor_lost(monkeypatch):
    scope = DefaultScope.get_instance('of a notebook', scope_name='mmseg')
    logger = MMLogger.get_instance('of a notebook')
    stdout = logging.StreamHandler
    with pytest.raises(ZeroDivisionError), left_as_found():
        assert DefaultScope.get_current_instance() is None
        DefaultScope.get_instance('of a run', scope_name='mmdet')
        assert MMLogger.get_instance('of a notebook') is not logger
        raise ZeroDivisionError
    assert DefaultScope.get_current_instance() is scope
    assert MMLogger.get_instance('of a notebook') is logger
    assert any(type(each) is stdout for each in logger.handlers)
    for kind in (DefaultScope, MMLogger):
        assert issubclass(kind, ManagerMixin)
        del kind._instance_dict['of a notebook']


@pytest.mark.parametrize('error', [None, SystemExit, ZeroDivisionError, KeyboardInterrupt])
def test_a_run_that_fails_does_not_wait_for_the_processes_of_its_group(tmp_path, error):
    """To leave a group of GPUs takes all its processes, and the others know of no error."""
    options = dict(init_method=f'file://{tmp_path}/group', rank=0, world_size=1)
    with nullcontext() if error is None else pytest.raises(error), left_as_found():
        torch.distributed.init_process_group('gloo', **options)
        if error is not None:
            raise error
    stays = torch.distributed.is_initialized()
    if stays:
        torch.distributed.destroy_process_group()
    assert stays == (error not in (None, SystemExit))


# Threads of OpenCV's that a forked process does not have.
FORKED = """
import os, cv2, numpy
from mmfocal.engine.process import left_as_found

cv2.setNumThreads(4)
cv2.GaussianBlur(numpy.zeros((2000, 2000, 3), numpy.uint8), (31, 31), 3)
cv2.setNumThreads(0)
if os.fork() == 0:
    with left_as_found():
        cv2.setNumThreads(0)
    print('went on', flush=True)
    os._exit(0)
os.wait()
"""


def test_a_forked_process_gets_its_threads_back_without_waiting():
    result = subprocess.run(
        [sys.executable, '-c', FORKED], capture_output=True, text=True, timeout=120
    )
    assert result.stdout == 'went on\n', result.stderr


def test_every_option_of_the_tool_is_an_argument():
    names = list(inspect.signature(mmfocal.train).parameters)
    assert names == ['config', 'data', 'options', *(each.name for each in fields(TrainOptions))]
    assert 'epochs' in names and 'resume' in names


def test_lengths_are_options_of_the_tool_too(monkeypatch):
    asked = []
    monkeypatch.setattr(cli_train, 'train', lambda cfg, options: asked.append(options))
    for arguments in (['--epochs', '12'], ['--iterations', '90', '--quiet']):
        monkeypatch.setattr(sys, 'argv', ['mmfocal train', DETECTOR, *arguments])
        cli_train.main()
    assert [(each.epochs, each.iterations) for each in asked] == [(12, None), (None, 90)]
    assert [each.quiet for each in asked] == [False, True]


# --- Schedules ------------------------------------------------------------------------------


@pytest.fixture
def batches(monkeypatch):
    """Sets how many iterations an epoch has, without a data set."""

    def set_batches(number):
        monkeypatch.setattr(schedule, '_iterations_per_epoch', lambda cfg: number)

    return set_batches


def times(cfg):
    return [
        {key: each[key] for key in ('begin', 'end', 'milestones') if key in each}
        for each in cfg.param_scheduler
    ]


@pytest.mark.parametrize(
    'epochs, per_epoch, warm_up, milestones',
    [
        (12, 7330, 500, [9, 11]),
        (72, 7330, 500, [54, 66]),
        (4, 100, 55, [3]),  # the share that it had: 500 of 36 epochs
        (12, 3, 166, [9, 11]),
        (1, 7330, 500, [1]),
        (2, 7330, 500, [1]),
    ],
)
def test_schedules_by_epochs(batches, epochs, per_epoch, warm_up, milestones):
    batches(per_epoch)
    cfg = load_config('focal_maskrcnn_3x')
    set_length(cfg, epochs=epochs)
    assert cfg.train_cfg.max_epochs == epochs and cfg.train_cfg.val_interval == 1
    assert times(cfg) == [
        dict(begin=0, end=warm_up),
        dict(begin=0, end=epochs, milestones=milestones),
    ]


@pytest.mark.parametrize(
    'asked, total, warm_up, interval',
    [
        (dict(iterations=40000), 40000, 1500, 4000),
        (dict(iterations=320000), 320000, 1500, 16000),
        (dict(iterations=100), 100, 10, 10),
        (dict(iterations=1), 1, 1, 1),
        (dict(epochs=50), 5000, 500, 500),
    ],
)
def test_schedules_by_iterations(batches, asked, total, warm_up, interval):
    batches(100)
    cfg = load_config('focal_upernet_160k')
    note = set_length(cfg, **asked)
    rest = [dict(begin=warm_up, end=total)] if warm_up < total else []
    assert times(cfg) == [dict(begin=0, end=warm_up), *rest]
    assert cfg.train_cfg.max_iters == total and cfg.train_cfg.val_interval == interval
    assert cfg.default_hooks.checkpoint.interval == interval
    assert str(total) in note and '160000' in note


def test_learning_rates_of_a_shorter_run(batches):
    """As mmengine computes them, iteration by iteration."""
    batches(100)
    cfg = load_config('focal_maskrcnn_3x')
    set_length(cfg, epochs=12)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    warm_up, steps = (
        PARAM_SCHEDULERS.build(dict(each), default_args=dict(optimizer=optimizer))
        for each in cfg.param_scheduler
    )
    rates = []
    for _ in range(12):
        for _ in range(100):
            rates.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            warm_up.step()
        steps.step()
    end = cfg.param_scheduler[0].end
    assert end == 166
    assert rates[0] == pytest.approx(0.001)
    assert all(a < b for a, b in pairwise(rates[: end - 1]))
    assert rates[end:900] == pytest.approx([1.0] * (900 - end))
    assert rates[900:1100] == pytest.approx([0.1] * 200)
    assert rates[1100:] == pytest.approx([0.01] * 100)


def test_other_kinds_of_schedules():
    cfg = Config(
        dict(
            train_cfg=dict(
                by_epoch=True, max_epochs=300, val_interval=10, dynamic_intervals=[(280, 1)]
            ),
            param_scheduler=[
                dict(type='LinearLR', start_factor=1e-5, by_epoch=True, begin=0, end=5),
                dict(type='CosineAnnealingLR', by_epoch=True, begin=5, end=300, T_max=295),
                dict(type='ConstantLR', by_epoch=True, factor=1, begin=285, end=10**9),
            ],
            default_hooks=dict(checkpoint=dict(interval=10)),
        )
    )
    set_length(cfg, epochs=30)
    assert cfg.train_cfg.val_interval == 1 and cfg.train_cfg.dynamic_intervals == [(28, 1)]
    assert times(cfg) == [
        dict(begin=0, end=1),
        dict(begin=1, end=30),
        dict(begin=28, end=10**9),
    ]
    assert cfg.param_scheduler[1].T_max == 29


def test_what_has_no_time_after_a_warm_up_is_left_out():
    cfg = load_config('focal_maskrcnn_shapes')
    set_length(cfg, iterations=1)
    (only,) = cfg.param_scheduler
    assert (only.type, only.begin, only.end) == ('LinearLR', 0, 1)


def test_a_config_without_a_length_is_told():
    with pytest.raises(UserError, match='neither max_epochs nor max_iters'):
        set_length(Config(dict(train_cfg=dict(type='MyLoop'))), epochs=1)
    with pytest.raises(UserError, match='trains by epochs, 36 of them'):
        set_length(load_config('focal_maskrcnn_3x'), iterations=10)
