"""The configs that are tried, all out of the wheels of mmdet and mmseg."""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmdet.registry
from mmengine.config import Config
from mmengine.registry import Registry

from .shrinking import shrink


@dataclass(frozen=True)
class Case:
    """A config, and what is changed besides what :func:`~.shrinking.shrink` does.

    Attributes:
        config: ``<package>/<path in its .mim/configs>`` without ``.py``.
        covers: what it has that others have not.
        changes: settings by dotted name.
        edit: changes the config before.
        pure: whether it becomes a pure Python config, with classes in the place of names.
        workers: of each data loader.
        as_if: changes of the stock run, where ours is meant to do as if the config said so.
        our_error: what our message has in it, where it is meant to be another than stock's.
    """

    config: str
    covers: str
    changes: dict[str, Any] = field(default_factory=dict)
    edit: Callable[[Config], None] | None = None
    pure: bool = False
    workers: int = 0
    as_if: dict[str, Any] = field(default_factory=dict)
    our_error: str = ''

    def load(self, work_dir: Path, root: Path) -> Config:
        """The config, made small.

        Args:
            work_dir: work folder of the run.
            root: of the drawn data.
        """
        package, _, path = self.config.partition('/')
        home = Path(importlib.util.find_spec(package).submodule_search_locations[0])
        cfg = Config.fromfile(home / '.mim/configs' / f'{path}.py')
        cfg.work_dir = str(work_dir)
        if self.edit is not None:
            self.edit(cfg)
        cfg.merge_from_dict(copy.deepcopy(self.changes))
        shrink(cfg, root, self.workers)
        return _as_pure_python(cfg, root / 'pure.py') if self.pure else cfg


def _as_pure_python(cfg: Config, path: Path) -> Config:
    """Writes a config with classes in the place of names, and reads it; wheels have none such."""
    imports = set()

    def _class(match: re.Match) -> str:
        kinds = (registry.get(match[1]) for registry in REGISTRIES)
        modules = {kind.__module__ for kind in kinds if isinstance(kind, type)}
        for module in modules:
            # Layers of PyTorch are looked up by mmcv in its own way.
            if module.startswith(('mmdet.', 'mmengine.', 'torch.optim.')):
                imports.add(f'from {module} import {match[1]}')
                return f'type={match[1]}'
        return match[0]

    text = re.sub(r"type='(\w+)'", _class, cfg.pretty_text)
    path.write_text('\n'.join([*sorted(imports), text]))
    return Config.fromfile(path, lazy_import=True)


REGISTRIES = [
    value
    for value in vars(mmdet.registry).values()
    if isinstance(value, Registry) and value.scope == 'mmdet'
]


def _without_repeat(cfg: Config) -> None:
    cfg.train_dataloader.dataset = cfg.train_dataloader.dataset.dataset


NO_VALIDATION = dict(val_dataloader=None, val_evaluator=None, val_cfg=None)
REPLACE = dict(_delete_=True)

VOC = 'mmdet/pascal_voc/faster-rcnn_r50_fpn_1x_voc0712'
COCO = dict(type='CocoMetric', ann_file='')
GN = {'model.bbox_head.norm_cfg': dict(type='GN', num_groups=32, requires_grad=True)}
YOLOX = {
    'model.backbone.widen_factor': 0.125,
    'model.neck.in_channels': [32, 64, 128],
    'model.neck.out_channels': 32,
    'model.bbox_head.in_channels': 32,
    'model.bbox_head.feat_channels': 32,
}


CASES = (
    Case(VOC, 'VOC: repeated, concatenated; VOCMetric'),
    Case(
        VOC,
        'own sampler and batch sampler of two data sets',
        {
            'train_dataloader.sampler': dict(
                REPLACE, type='MultiDataSampler', dataset_ratio=[1, 3]
            ),
            'train_dataloader.batch_sampler': dict(
                REPLACE,
                type='MultiDataAspectRatioBatchSampler',
                num_datasets=2,
                batch_size=[1, 2],
            ),
        },
        edit=_without_repeat,
    ),
    Case(
        VOC,
        'sampler that takes some of one data set and all of another',
        {
            'train_dataloader.sampler': dict(
                REPLACE, type='CustomSampleSizeSampler', dataset_size=[3, -1]
            ),
            'train_dataloader.batch_sampler': None,
        },
        edit=_without_repeat,
    ),
    Case('mmdet/lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1', 'the package lvis is missing'),
    Case(
        'mmdet/lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1',
        'ClassBalancedDataset',
        {
            'model.roi_head.bbox_head.num_classes': 80,
            'model.roi_head.mask_head.num_classes': 80,
            'train_dataloader.dataset.dataset.type': 'CocoDataset',
            'val_dataloader.dataset.type': 'CocoDataset',
            'val_evaluator': dict(REPLACE, **COCO, metric=['bbox', 'segm']),
        },
    ),
    Case(
        'mmdet/yolox/yolox_tiny_8xb8-300e_coco',
        'Mosaic and MixUp, switched off; ExpMomentumEMA',
        YOLOX,
    ),
    Case(
        'mmdet/yolox/yolox_s_8xb8-300e_coco',
        'Mosaic and MixUp with a worker that persists',
        dict(YOLOX, **{'model.backbone.deepen_factor': 0.33}),
        workers=1,
    ),
    Case(
        'mmdet/rtmdet/rtmdet_tiny_8xb32-300e_coco',
        'CachedMosaic, CachedMixUp; pipeline switch',
        YOLOX,
    ),
    Case(
        'mmdet/simple_copy_paste/mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_32xb2-ssj-scp-90k_coco',
        'CopyPaste; infinite sampler',
    ),
    Case(
        'mmdet/soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco',
        'semi-supervised: two sources, teacher',
    ),
    Case(
        'mmdet/panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco',
        'panoptic',
        dict(val_evaluator=dict(REPLACE, type='DumpDetResults', out_file_path='results.pkl')),
    ),
    Case(
        'mmdet/masktrack_rcnn/masktrack-rcnn_mask-rcnn_r50_fpn_8xb1-12e_youtubevis2019',
        'video instances; TrackImgSampler',
    ),
    Case(
        'mmdet/qdtrack/qdtrack_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval',
        'tracking',
        {
            **NO_VALIDATION,
            'model.track_head.embed_head.in_channels': 256,
            'model.track_head.embed_head.conv_out_channels': 256,
            'model.track_head.embed_head.fc_out_channels': 256,
        },
    ),
    Case('mmdet/detr/detr_r18_8xb2-500e_coco', 'DETR'),
    Case(
        'mmdet/deformable_detr/deformable-detr_r50_16xb2-50e_coco',
        'Deformable DETR',
        {'model.bbox_head.embed_dims': 256},
    ),
    Case(
        'mmdet/dino/dino-4scale_r50_8xb2-12e_coco',
        'DINO',
        {
            'model.backbone.depth': 18,
            'model.neck.in_channels': [128, 256, 512],
            'model.encoder.num_layers': 1,
            'model.decoder.num_layers': 2,
        },
    ),
    Case('mmdet/sparse_rcnn/sparse-rcnn_r50_fpn_ms-480-800-3x_coco', 'Sparse R-CNN'),
    Case('mmdet/atss/atss_r50_fpn_1x_coco', 'pure Python config', GN, pure=True),
    Case('mmdet/cascade_rcnn/cascade-mask-rcnn_r50_fpn_20e_coco', 'three stages'),
    Case(
        'mmdet/htc/htc_r50_fpn_1x_coco',
        'label maps besides masks; loop without a type',
        dict(train_cfg=dict(REPLACE, by_epoch=True, max_epochs=12)),
    ),
    Case('mmdet/centernet/centernet_r18_8xb16-crop512-140e_coco', 'RepeatDataset; flipped tests'),
    Case(
        'mmdet/retinanet/retinanet_r50_fpn_90k_coco',
        'finite sampler in an iteration loop; stochastic weight averages',
        {
            'train_dataloader.sampler.type': 'DefaultSampler',
            'custom_hooks': [
                dict(type='EMAHook', ema_type='StochasticWeightAverage', begin_iter=2)
            ],
        },
    ),
    Case(
        'mmdet/objects365/retinanet_r50_fpn_1x_objects365v1',
        'class-aware sampler; annealed averages; early stopping',
        {
            'train_dataloader.sampler': dict(REPLACE, type='ClassAwareSampler'),
            'custom_hooks': [
                dict(type='EMAHook', ema_type='MomentumAnnealingEMA'),
                dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP', stopping_threshold=-1.0),
            ],
        },
    ),
    Case(
        'mmdet/cityscapes/mask-rcnn_r50_fpn_1x_cityscapes',
        'two evaluators; best checkpoint; one is kept',
        {
            'val_evaluator': [dict(COCO, metric='bbox'), dict(COCO, prefix='x', metric='segm')],
            'default_hooks.checkpoint.save_best': 'x/segm_mAP',
            'default_hooks.checkpoint.max_keep_ckpts': 1,
        },
    ),
    Case(
        'mmdet/cityscapes/mask-rcnn_r50_fpn_1x_cityscapes',
        'the package cityscapesscripts is missing',
    ),
    Case(
        'mmdet/yolo/yolov3_mobilenetv2_8xb24-320-300e_coco',
        'RepeatDataset; own box coder',
    ),
    Case('mmdet/yolact/yolact_r50_1xb8-55e_coco', 'batch of one'),
    Case('mmdet/solov2/solov2_r50_fpn_1x_coco', 'instances without boxes'),
    Case(
        'mmdet/mask2former/mask2former_r50_8xb2-lsj-50e_coco',
        'large-scale jitter; validation intervals',
    ),
    Case(
        'mmdet/fcos/fcos_r50-caffe_fpn_gn-head_ms-640-800-2x_coco', 'rates of biases; warm-up', GN
    ),
    Case(
        'mmdet/deepfashion/mask-rcnn_r50_fpn_15e_deepfashion',
        'accumulated gradients',
        {'optim_wrapper.accumulative_counts': 2},
    ),
    Case(
        'mmdet/retinanet/retinanet_r18_fpn_1x_coco',
        'format_only',
        {'val_evaluator.format_only': True, 'val_evaluator.outfile_prefix': ''},
    ),
    Case(
        'mmdet/mask_rcnn/mask-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco',
        'mixed precision, without a GPU',
        as_if={'optim_wrapper.type': 'OptimWrapper'},
    ),
    Case(
        'mmdet/albu_example/mask-rcnn_r50_fpn_albu-1x_coco',
        'the package albumentations is missing',
        our_error='pip install albumentations',
    ),
    Case('mmseg/pspnet/pspnet_r50-d8_4xb4-20k_voc12aug-512x512', 'VOC: two lists of images'),
    Case('mmseg/fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512', 'ADE20K: reduce_zero_label'),
    Case(
        'mmseg/fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512',
        'OHEM',
        {'model.decode_head.sampler': dict(type='OHEMPixelSampler', thresh=0.7, min_kept=100)},
    ),
    Case(
        'mmseg/segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
        'learning rates by layer; warm-up, then poly; infinite sampler and a worker',
        workers=1,
    ),
    Case(
        'mmseg/point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024',
        'Cityscapes: cascade of two heads',
    ),
    Case(
        'mmseg/bisenetv2/bisenetv2_fcn_4xb4-ohem-160k_cityscapes-1024x1024',
        'a config with a misspelt name',
    ),
    Case(
        'mmseg/pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes',
        'edges; fails at pixels to ignore',
    ),
    Case('mmseg/ocrnet/ocrnet_hr18s_4xb2-40k_cityscapes-512x1024', 'HRNet, cascade'),
    Case('mmseg/mask2former/mask2former_r50_8xb2-160k_ade20k-512x512', 'head of mmdet'),
    Case(
        'mmseg/unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64', 'DRIVE: RepeatDataset; sliding window'
    ),
    Case(
        'mmseg/segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512',
        'RepeatDataset',
    ),
    Case('mmseg/upernet/upernet_r18_4xb4-80k_ade20k-512x512', 'a config without a crop size'),
    Case('mmseg/pspnet/pspnet_r50-d8_4xb4-40k_pascal-context-59-480x480', 'Pascal Context'),
    Case('mmseg/deeplabv3plus/deeplabv3plus_r18-d8_4xb4-80k_potsdam-512x512', 'Potsdam'),
    Case('mmseg/knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512', 'K-Net'),
)
