"""Types in configs: as names, with a scope or a module before them, and as classes."""

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import IterBasedTrainLoop

from mmfocal.engine import settings
from mmfocal.utils.config import type_name


@pytest.mark.parametrize(
    'config',
    [
        dict(type='EMAHook'),
        dict(type='mmengine.EMAHook'),
        dict(type='mmengine.hooks.EMAHook'),
        dict(type=EMAHook),
        'mmengine.EMAHook',
        EMAHook,
    ],
    ids=str,
)
def test_all_forms_have_one_name(config):
    assert type_name(config) == 'EMAHook'


def test_configs_without_a_type_have_no_name():
    assert type_name({}) == type_name(dict(type=None)) == ''


def in_all_forms(kind):
    return pytest.mark.parametrize('kind', [kind.__name__, f'mmengine.{kind.__name__}', kind])


@in_all_forms(CheckpointHook)
def test_checkpoints_are_written_whole(kind):
    cfg = Config(dict(default_hooks=dict(checkpoint=dict(type=kind, interval=3)), train_cfg={}))
    settings.set_reliability(cfg)
    assert cfg.default_hooks.checkpoint == dict(
        type='BestCheckpointHook', interval=3, backend_args=dict(backend='atomic')
    )


@pytest.mark.parametrize(
    'given, expected',
    [
        (dict(max_keep_ckpts=1), dict(max_keep_ckpts=2, backend_args=dict(backend='atomic'))),
        (dict(max_keep_ckpts=5), dict(max_keep_ckpts=5, backend_args=dict(backend='atomic'))),
        (dict(out_dir='s3://bucket/a'), dict(out_dir='s3://bucket/a')),
        (dict(backend_args=dict(backend='own')), dict(backend_args=dict(backend='own'))),
    ],
)
def test_other_storage_is_left_alone_and_two_checkpoints_are_kept(given, expected):
    cfg = Config(dict(default_hooks=dict(checkpoint=given), train_cfg={}, work_dir='a'))
    settings.set_reliability(cfg)
    assert cfg.default_hooks.checkpoint == dict(expected, type='BestCheckpointHook')


@in_all_forms(IterBasedTrainLoop)
def test_loops_can_be_resumed_exactly(kind):
    cfg = Config(dict(train_cfg=dict(type=kind, max_iters=9)))
    assert settings.set_reliability(cfg) is None
    assert cfg.train_cfg.type == 'ResumableIterBasedTrainLoop'


@in_all_forms(EMAHook)
def test_weights_are_averaged_once(kind):
    cfg = Config(dict(custom_hooks=[dict(type=kind, momentum=0.1)]))
    settings.set_ema(cfg)
    assert len(cfg.custom_hooks) == 1


@in_all_forms(AmpOptimWrapper)
def test_mixed_precision_without_a_gpu_is_float32(kind, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    cfg = Config(dict(optim_wrapper=dict(type=kind, loss_scale='dynamic')))
    assert 'float32' in settings.set_precision(cfg)
    assert cfg.optim_wrapper == dict(type='OptimWrapper')


def of_others(stock):
    """Their class of the same name, by its module and itself."""
    theirs = type(stock.__name__, (stock,), dict(__module__='their.module'))
    return pytest.mark.parametrize('kind', [f'their.module.{stock.__name__}', theirs])


@of_others(CheckpointHook)
def test_checkpoint_hooks_of_others_are_left_alone(kind):
    cfg = Config(dict(default_hooks=dict(checkpoint=dict(type=kind)), train_cfg={}))
    settings.set_reliability(cfg)
    assert cfg.default_hooks.checkpoint.type == kind


@of_others(IterBasedTrainLoop)
def test_loops_of_others_are_left_alone(kind):
    cfg = Config(dict(train_cfg=dict(type=kind, max_iters=9)))
    assert settings.set_reliability(cfg) is not None
    assert cfg.train_cfg.type == kind
