"""Types in configs: as names, with a scope or a module before them, and as classes."""

import pytest
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.config.lazy import LazyObject
from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import HOOKS, METRICS, MODELS
from mmengine.runner import IterBasedTrainLoop

from mmfocal.datasets import prepare_shapes
from mmfocal.engine import TrainOptions, load_config, settings, train
from mmfocal.engine.own_data import check_base
from mmfocal.engine.results import set_predictions_file
from mmfocal.utils.config import class_of, family_of, is_third_party, type_name
from mmfocal.utils.errors import UserError


@pytest.mark.parametrize(
    'config',
    [
        dict(type='EMAHook'),
        dict(type='mmengine.EMAHook'),
        dict(type='mmengine.hooks.EMAHook'),
        dict(type=EMAHook),
        'mmengine.EMAHook',
        EMAHook,
        LazyObject('mmengine.hooks', 'EMAHook'),
        LazyObject('mmengine.hooks').EMAHook,
        dict(type=LazyObject(['mmengine', 'mmengine.hooks']).hooks.EMAHook),
    ],
    ids=str,
)
def test_all_forms_have_one_name(config):
    assert type_name(config) == 'EMAHook' and not is_third_party(config)
    assert class_of(config, HOOKS, 'mmdet') is EMAHook


@pytest.mark.parametrize(
    'config', ['my.hooks.EMAHook', LazyObject('my.hooks', 'EMAHook')], ids=str
)
def test_classes_of_others_are_told_apart(config):
    assert type_name(config) == 'EMAHook' and is_third_party(config)
    assert class_of(config, HOOKS, 'mmdet') is None


def test_configs_without_a_type_have_no_name():
    assert type_name({}) == type_name(dict(type=None)) == ''


@pytest.mark.parametrize(
    'config, expected',
    [
        (dict(default_scope='mmseg', model=dict(type='EncoderDecoder')), 'mmseg'),
        (dict(default_scope=None, model=dict(type='mmdet.models.RetinaNet')), 'mmdet'),
        (dict(model=dict(type=class_of('RetinaNet', MODELS, 'mmdet'))), 'mmdet'),
        (dict(model=dict(type='RetinaNet')), None),
        (dict(default_scope=None), None),
    ],
)
def test_family_is_that_of_the_scope_or_the_model(config, expected):
    assert family_of(config) == expected


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


@of_others(AmpOptimWrapper)
def test_wrappers_of_others_keep_their_precision(kind, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    cfg = Config(dict(optim_wrapper=dict(type=kind, loss_scale='dynamic')))
    assert settings.set_precision(cfg) is None
    assert cfg.optim_wrapper.type == kind


@of_others(IterBasedTrainLoop)
def test_loops_of_others_are_left_alone(kind):
    cfg = Config(dict(train_cfg=dict(type=kind, max_iters=9)))
    assert settings.set_reliability(cfg) is not None
    assert cfg.train_cfg.type == kind


# --- Pure-Python configs ----------------------------------------------------------------------

RUNTIME = """
from mmengine.hooks import CheckpointHook, DistSamplerSeedHook, LoggerHook, ParamSchedulerHook
from mmengine.visualization import LocalVisBackend
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.visualization import DetLocalVisualizer

default_scope = None
default_hooks = dict(
    logger=dict(type=LoggerHook, interval=1),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=CheckpointHook, interval=1),
    sampler_seed=dict(type=DistSamplerSeedHook),
    visualization=dict(type=DetVisualizationHook),
)
visualizer = dict(type=DetLocalVisualizer, vis_backends=[dict(type=LocalVisBackend)])
"""
DETECTOR = """
from mmengine.config import read_base
from mmcv.ops import nms
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset.sampler import DefaultSampler
from mmengine.optim.optimizer import OptimWrapper
from mmengine.optim.scheduler.lr_scheduler import LinearLR
from mmengine.runner import EpochBasedTrainLoop, TestLoop, ValLoop
from torch.optim.sgd import SGD
from mmdet.datasets import AspectRatioBatchSampler, CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, Resize
from mmdet.evaluation import CocoMetric
from mmdet.models import (
    FPN, DetDataPreprocessor, FocalLoss, L1Loss, ResNet, RetinaHead, RetinaNet)
from mmdet.models import task_modules as tasks

with read_base():
    from .runtime import *

model = dict(
    type=RetinaNet,
    data_preprocessor=dict(type=DetDataPreprocessor, mean=[0, 0, 0], std=[99, 99, 99]),
    backbone=dict(type=ResNet, depth=18, norm_eval=True),
    neck=dict(
        type=FPN, in_channels=[64, 128, 256, 512], out_channels=8, start_level=1, num_outs=3),
    bbox_head=dict(
        type=RetinaHead, num_classes=6, in_channels=8, stacked_convs=1, feat_channels=8,
        anchor_generator=dict(
            type=tasks.AnchorGenerator, scales=[4], ratios=[1.0], strides=[8, 16, 32]),
        bbox_coder=dict(type=tasks.DeltaXYWHBBoxCoder),
        loss_cls=dict(type=FocalLoss, use_sigmoid=True),
        loss_bbox=dict(type=L1Loss)),
    train_cfg=dict(
        assigner=dict(type=tasks.MaxIoUAssigner, pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
        sampler=dict(type=tasks.PseudoSampler), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(
        nms_pre=50, min_bbox_size=0, score_thr=0.0, nms=dict(type=nms, iou_threshold=0.5),
        max_per_img=9))
resize = dict(type=Resize, scale=(64, 64), keep_ratio=True)
boxes = dict(type=LoadAnnotations, with_bbox=True)
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
data_root = DATA
metainfo = dict(classes=('circle', 'square', 'triangle', 'star', 'cross', 'ring'))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=True),
    batch_sampler=dict(type=AspectRatioBatchSampler),
    dataset=dict(
        type=CocoDataset, data_root=data_root, metainfo=metainfo,
        ann_file='annotations/instances_train.json', data_prefix=dict(img='train/'),
        pipeline=[dict(type=LoadImageFromFile), boxes, resize, dict(type=PackDetInputs)]))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=CocoDataset, data_root=data_root, metainfo=metainfo, test_mode=True,
        ann_file='annotations/instances_val.json', data_prefix=dict(img='val/'),
        pipeline=[
            dict(type=LoadImageFromFile), resize, boxes,
            dict(type=PackDetInputs, meta_keys=meta_keys)]))
val_evaluator = dict(
    type=CocoMetric, ann_file=data_root + '/annotations/instances_val.json', metric='bbox')
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1)
val_cfg = dict(type=ValLoop)
param_scheduler = [dict(type=LinearLR, start_factor=0.1, by_epoch=False, begin=0, end=2)]
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.001))
"""


@pytest.fixture(scope='module')
def pure_python(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pure_python')
    root = prepare_shapes(folder / 'data', num_images=dict(train=4, val=2))
    (folder / 'runtime.py').write_text(RUNTIME)
    (folder / 'detector.py').write_text(DETECTOR.replace('DATA', repr(str(root))))
    return folder


def test_pure_python_configs_are_trained_as_others(pure_python, tmp_path, capsys):
    cfg = load_config(pure_python / 'detector.py')
    runner = train(
        cfg,
        TrainOptions(
            work_dir=str(tmp_path),
            log_to=[],
            ema=True,
            save_best=True,
            early_stop=3,
            val_loss=True,
        ),
    )
    assert cfg.default_scope == 'mmdet'
    assert type(runner.train_loop).__name__ == 'ResumableEpochBasedTrainLoop'
    names = [type(hook).__name__ for hook in runner.hooks]
    assert len(names) == len(set(names))
    assert {'EMAHook', 'BestCheckpointHook', 'ValidationLossHook', 'RunStateHook'} <= set(names)
    (checkpoint,) = (hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
    assert checkpoint.backend_args == dict(backend='atomic')
    assert checkpoint.save_best == ['coco/bbox_mAP']
    assert (tmp_path / 'epoch_1.pth').is_file()
    assert 'may not continue exactly' not in capsys.readouterr().out
    assert 'val/val/loss' in runner.message_hub.log_scalars


def test_pure_python_configs_cannot_be_bases_of_written_ones(pure_python):
    base = str(pure_python / 'detector.py')
    with pytest.raises(UserError, match='pure-Python'):
        check_base(base)


@METRICS.register_module()
class OwnCocoMetric(BaseMetric):
    """Of somebody else, with a name like mmdet's."""


@METRICS.register_module()
class CocoMetricOfFour(CocoMetric):
    """mmdet's, with another name."""


@pytest.mark.parametrize(
    'kind, expected',
    [
        ('CocoMetric', 'outfile_prefix'),
        ('mmdet.CocoMetric', 'outfile_prefix'),
        (CocoMetric, 'outfile_prefix'),
        ('CocoMetricOfFour', 'outfile_prefix'),
        ('mmseg.IoUMetric', 'output_dir'),
        ('OwnCocoMetric', None),
        ('VOCMetric', None),
    ],
    ids=str,
)
def test_predictions_are_asked_of_metrics_that_write_them(kind, expected, tmp_path):
    cfg = Config(dict(default_scope='mmdet', test_evaluator=[dict(type=kind)]))
    set_predictions_file(cfg, str(tmp_path / 'a.json'))
    assert set(cfg.test_evaluator[0]) == {'type', expected} - {None}
