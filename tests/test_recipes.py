"""Every recipe has the published values, written out; docs/tables/recipes.md has the sources."""

import copy
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import TRANSFORMS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from mmfocal import FocalTransformer

CONFIGS = Path(__file__).parents[1] / 'configs'
# Those have the recipes of MMDetection and MMSegmentation, and no published results.
OF_TODAY = ('dino', 'mask2former', 'rtmdet')
# Small models of our own, for data sets that the paper does not have.
OF_OURS = ('shapes', 'bccd', 'camvid')
RECIPES = [
    str(path.relative_to(CONFIGS).with_suffix(''))
    for path in sorted(CONFIGS.glob('[!_]*/*.py'))
    if not any(name in path.stem for name in OF_OURS + OF_TODAY)
]


def adamw(lr, weight_decay):
    return dict(type='AdamW', lr=lr, betas=[0.9, 0.999], weight_decay=weight_decay)


def scheduler(kind, end, begin=0, by_epoch=True, **settings):
    return dict(type=kind, begin=begin, end=end, by_epoch=by_epoch, **settings)


def schedule(epochs, *milestones):
    """Of a detector: warm-up for 500 iterations, and two drops by 10."""
    warm_up = scheduler('LinearLR', 500, by_epoch=False, start_factor=0.001)
    drops = scheduler('MultiStepLR', epochs, milestones=list(milestones), gamma=0.1)
    return {
        'param_scheduler': [warm_up, drops],
        'train_cfg': dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=1),
    }


def tuning(epochs, warm_up, lowest):
    """Of a classifier: a cosine from the first epoch on, begun by a warm-up."""
    return {
        'param_scheduler': [
            dict(type='LinearLR', start_factor=1e-3, end=warm_up, convert_to_iter_based=True),
            dict(
                type='CosineAnnealingLR',
                eta_min=lowest,
                begin=0,
                end=epochs,
                convert_to_iter_based=True,
            ),
        ],
        'train_cfg.max_epochs': epochs,
    }


def coco(steps, **kinds):
    """Pipeline of training, between loading and packing."""
    load = dict(type='LoadAnnotations', with_bbox=True, **kinds)
    return [dict(type='LoadImageFromFile'), load, *steps, dict(type='PackDetInputs')]


def anchors(strides, ratios=(0.5, 1.0, 2.0), **settings):
    return dict(type='AnchorGenerator', ratios=list(ratios), strides=list(strides), **settings)


def focal_loss(**settings):
    return dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, **settings)


def cross_entropy(weight=1.0, **settings):
    return dict(type='CrossEntropyLoss', loss_weight=weight, **settings)


def nms(threshold, kind='nms'):
    return dict(type=kind, iou_threshold=threshold)


def fpn(*in_channels, **settings):
    return dict(type='FPN', in_channels=list(in_channels), out_channels=256, **settings)


def segmentation(crop, scale, widths, num_classes=150, **load):
    """Of UPerNet, for crops of this height and width and a backbone of these channels."""
    return {
        'model.data_preprocessor.size': crop,
        'train_pipeline': [
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', **load),
            dict(type='RandomResize', scale=scale, ratio_range=[0.5, 2.0], keep_ratio=True),
            dict(type='RandomCrop', crop_size=crop, cat_max_ratio=0.75),
            FLIP,
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ],
        'test_pipeline.1': dict(type='Resize', scale=scale, keep_ratio=True),
        'model.decode_head.in_channels': widths,
        'model.decode_head.num_classes': num_classes,
        'model.auxiliary_head.in_channels': widths[2],
        'model.auxiliary_head.num_classes': num_classes,
    }


FLIP = dict(type='RandomFlip', prob=0.5)
NO_DECAY = {'decay_mult': 0.0}
FREE = dict(
    custom_keys=dict(
        absolute_pos_embed=NO_DECAY, relative_position_bias_table=NO_DECAY, norm=NO_DECAY
    )
)
MS = dict(
    type='RandomChoiceResize',
    scales=[[1333, side] for side in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)],
    keep_ratio=True,
)
MS_CROP = dict(
    type='RandomChoice',
    transforms=[
        [MS],
        [
            dict(MS, scales=[[1333, 400], [1333, 500], [1333, 600]]),
            dict(
                type='RandomCrop',
                crop_type='absolute_range',
                crop_size=[384, 600],
                allow_negative_crop=True,
            ),
            MS,
        ],
    ],
)
MS_960 = dict(MS, scales=[*MS['scales'], *([1333, s] for s in (832, 864, 896, 928, 960))])
SYNC_BN = dict(type='SyncBN', requires_grad=True)
FROM_8, FROM_4 = (8, 16, 32, 64, 128), (4, 8, 16, 32, 64)
STAGE_STDS = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
ATSS = {
    'model.backbone.out_indices': [1, 2, 3],
    'model.neck': fpn(192, 384, 768, start_level=0, add_extra_convs='on_output', num_outs=5),
    'model.bbox_head.type': 'ATSSHead',
    'model.bbox_head.stacked_convs': 4,
    'model.bbox_head.pred_kernel_size': None,
    'model.bbox_head.anchor_generator': anchors(
        FROM_8, [1.0], octave_base_scale=8, scales_per_octave=1
    ),
    'model.bbox_head.bbox_coder.target_stds': [0.1, 0.1, 0.2, 0.2],
    'model.bbox_head.loss_cls': focal_loss(loss_weight=1.0),
    'model.bbox_head.loss_bbox': dict(type='GIoULoss', loss_weight=2.0),
    'model.bbox_head.loss_centerness': cross_entropy(use_sigmoid=True),
    'model.train_cfg.assigner': dict(type='ATSSAssigner', topk=9),
    'model.test_cfg.nms': nms(0.6),
}
# Values by patterns of configs and dotted paths; '*' stands for each item of a list, None for what
# must not be there. A later row replaces the values of an earlier one.
PUBLISHED = {
    'mmdet/*': {
        'optim_wrapper': dict(
            type='AmpOptimWrapper', optimizer=adamw(1e-4, 0.05), paramwise_cfg=FREE
        ),
        'auto_scale_lr': dict(enable=False, base_batch_size=16),
        'train_dataloader.batch_size': 2,
        'train_pipeline': coco([FLIP, MS_CROP]),
        'test_pipeline.1': dict(type='Resize', scale=[1333, 800], keep_ratio=True),
        'repeated': None,
        'images.filter_cfg': dict(filter_empty_gt=True, min_size=32),
        'model.data_preprocessor.mean': [123.675, 116.28, 103.53],
        'model.data_preprocessor.std': [58.395, 57.12, 57.375],
        'model.data_preprocessor.bgr_to_rgb': True,
        'model.data_preprocessor.pad_size_divisor': 32,
        'model.backbone.arch': 'tiny',
        'model.backbone.drop_path_rate': 0.2,
        'model.backbone.focal_windows': [15, 13, 9, 7],
        'model.neck': fpn(96, 192, 384, 768, num_outs=5),
    },
    'mmdet/*1x*': schedule(12, 8, 11),
    'mmdet/*3x*': schedule(36, 27, 33),
    # Heads with regions.
    'mmdet/*rcnn*': {
        'train_pipeline': coco([FLIP, MS_CROP], with_mask=True),
        'model.rpn_head.anchor_generator': anchors(FROM_4, scales=[8]),
        'model.rpn_head.loss_bbox': dict(type='L1Loss', loss_weight=1.0),
        'model.test_cfg.rcnn.nms': nms(0.5),
        'model.test_cfg.rcnn.score_thr': 0.05,
        'model.test_cfg.rcnn.max_per_img': 100,
    },
    'mmdet/*_maskrcnn_1x': {
        'train_pipeline': coco(
            [dict(type='Resize', scale=[1333, 800], keep_ratio=True), FLIP], with_mask=True
        )
    },
    'mmdet/*_maskrcnn*': {
        'model.roi_head.bbox_head.num_classes': 80,
        'model.roi_head.mask_head.num_classes': 80,
        'model.roi_head.bbox_head.loss_bbox': dict(type='L1Loss', loss_weight=1.0),
        'model.roi_head.bbox_head.bbox_coder.target_stds': [0.1, 0.1, 0.2, 0.2],
        'model.roi_head.mask_head.num_convs': 4,
    },
    'mmdet/*_cascade-maskrcnn*': {
        'model.rpn_head.loss_bbox': dict(type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0),
        'model.roi_head.stage_loss_weights': [1, 0.5, 0.25],
        'model.roi_head.bbox_head.*.type': ['ConvFCBBoxHead'] * 3,
        'model.roi_head.bbox_head.*.num_classes': [80] * 3,
        'model.roi_head.bbox_head.*.roi_feat_size': [7] * 3,
        'model.roi_head.bbox_head.*.bbox_coder.target_stds': STAGE_STDS,
        'model.roi_head.mask_head.num_classes': 80,
        'model.roi_head.bbox_head.*.num_shared_convs': [4] * 3,
        'model.roi_head.bbox_head.*.num_shared_fcs': [1] * 3,
        'model.roi_head.bbox_head.*.conv_out_channels': [256] * 3,
        'model.roi_head.bbox_head.*.fc_out_channels': [1024] * 3,
        'model.roi_head.bbox_head.*.norm_cfg': [SYNC_BN] * 3,
        'model.roi_head.bbox_head.*.reg_class_agnostic': [False] * 3,
        'model.roi_head.bbox_head.*.reg_decoded_bbox': [True] * 3,
        'model.roi_head.bbox_head.*.loss_cls': [cross_entropy(use_sigmoid=False)] * 3,
        'model.roi_head.bbox_head.*.loss_bbox': [dict(type='GIoULoss', loss_weight=10.0)] * 3,
        'model.train_cfg.rcnn.*.assigner.pos_iou_thr': [0.5, 0.6, 0.7],
    },
    'mmdet/*_sparsercnn*': {
        'optim_wrapper': dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=2.5e-5, weight_decay=1e-4),
            clip_grad=dict(max_norm=1, norm_type=2),
        ),
        'train_pipeline': coco([FLIP, MS_CROP]),
        'model.neck': fpn(96, 192, 384, 768, num_outs=4),
        'model.rpn_head': dict(
            type='EmbeddingRPNHead', num_proposals=300, proposal_feature_channel=256
        ),
        'model.rpn_head.anchor_generator': None,
        'model.rpn_head.loss_bbox': None,
        'model.roi_head.num_stages': 6,
        'model.roi_head.stage_loss_weights': [1] * 6,
        'model.roi_head.proposal_feature_channel': 256,
        'model.roi_head.bbox_roi_extractor': dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=2),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        ),
        'model.roi_head.bbox_head.*': [
            dict(
                type='DIIHead',
                num_classes=80,
                num_ffn_fcs=2,
                num_heads=8,
                num_cls_fcs=1,
                num_reg_fcs=3,
                feedforward_channels=2048,
                in_channels=256,
                dropout=0.0,
                ffn_act_cfg=dict(type='ReLU', inplace=True),
                dynamic_conv_cfg=dict(
                    type='DynamicConv',
                    in_channels=256,
                    feat_channels=64,
                    out_channels=256,
                    input_feat_shape=7,
                    act_cfg=dict(type='ReLU', inplace=True),
                    norm_cfg=dict(type='LN'),
                ),
                loss_bbox=dict(type='L1Loss', loss_weight=5.0),
                loss_iou=dict(type='GIoULoss', loss_weight=2.0),
                loss_cls=focal_loss(loss_weight=2.0),
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder', clip_border=False, target_stds=[0.5, 0.5, 1.0, 1.0]
                ),
            )
        ]
        * 6,
        'model.train_cfg.rcnn.*': [
            dict(
                assigner=dict(
                    type='HungarianAssigner',
                    match_costs=[
                        dict(type='FocalLossCost', weight=2.0),
                        dict(type='BBoxL1Cost', weight=5.0, box_format='xyxy'),
                        dict(type='IoUCost', iou_mode='giou', weight=2.0),
                    ],
                ),
                sampler=dict(type='PseudoSampler'),
                pos_weight=1,
            )
        ]
        * 6,
        'model.test_cfg': dict(rpn=None, rcnn=dict(max_per_img=300)),
        'model.test_cfg.rcnn.nms': None,
        'model.test_cfg.rcnn.score_thr': None,
        'model.test_cfg.rcnn.max_per_img': 300,
    },
    # ViT-Adapter's (czczup/ViT-Adapter at 9fc8196, detection/configs/htc++/
    # htc++_swin_large_patch4_window12_384_fpn_3x_coco.py and ..._ms.py).
    'mmdet/*_htcpp*': {
        'train_dataloader.batch_size': 1,
        'optim_wrapper': dict(
            type='OptimWrapper', optimizer=adamw(1e-4, 0.05), paramwise_cfg=FREE
        ),
        'train_pipeline': [
            dict(type='LoadImageFromFile'),
            dict(
                type='mmfocal.detection.InstaBoost',
                action_candidate=['normal', 'horizontal', 'skip'],
                action_prob=[1, 0, 0],
                scale=[0.8, 1.2],
                dx=15,
                dy=15,
                theta=[-1, 1],
                color_prob=0.5,
                hflag=False,
                aug_ratio=0.5,
            ),
            *coco(
                [
                    dict(type='RandomResize', scale=[[1600, 400], [1600, 1400]], keep_ratio=True),
                    FLIP,
                ],
                with_mask=True,
                with_seg=True,
            )[1:],
        ],
        'test_pipeline.1': dict(type='Resize', scale=[1600, 1400], keep_ratio=True),
        'model.backbone.arch': 'large',
        'model.backbone.drop_path_rate': 0.3,
        'model.neck': fpn(192, 384, 768, 1536, num_outs=5),
        'model.rpn_head.anchor_generator': anchors(FROM_4, scales=[8]),
        'model.roi_head.stage_loss_weights': [1, 0.5, 0.25],
        'model.roi_head.interleaved': True,
        'model.roi_head.mask_info_flow': True,
        'model.roi_head.semantic_roi_extractor': dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[8],
        ),
        'model.roi_head.semantic_head': dict(
            type='FusedSemanticHead',
            num_ins=5,
            fusion_level=1,
            seg_scale_factor=1 / 8,
            num_convs=4,
            in_channels=256,
            conv_out_channels=256,
            num_classes=183,
            loss_seg=cross_entropy(0.2, ignore_index=255),
        ),
        'model.roi_head.bbox_head.*.type': ['Shared4Conv1FCBBoxHead'] * 3,
        'model.roi_head.bbox_head.*.num_classes': [80] * 3,
        'model.roi_head.bbox_head.*.roi_feat_size': [7] * 3,
        'model.roi_head.bbox_head.*.bbox_coder.target_stds': STAGE_STDS,
        'model.roi_head.bbox_head.*.conv_out_channels': [256] * 3,
        'model.roi_head.bbox_head.*.fc_out_channels': [1024] * 3,
        'model.roi_head.bbox_head.*.reg_class_agnostic': [True] * 3,
        'model.roi_head.bbox_head.*.norm_cfg': [None] * 3,
        'model.roi_head.bbox_head.*.loss_cls': [cross_entropy(use_sigmoid=False)] * 3,
        'model.roi_head.bbox_head.*.loss_bbox': [
            dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0)
        ]
        * 3,
        'model.roi_head.mask_head.*.type': ['HTCMaskHead'] * 3,
        'model.roi_head.mask_head.*.num_classes': [80] * 3,
        'model.roi_head.mask_head.*.conv_out_channels': [256] * 3,
        'model.roi_head.mask_head.*.with_conv_res': [False, True, True],
        'model.roi_head.mask_head.*.num_convs': [4] * 3,
        'model.roi_head.mask_head.*.loss_mask': [cross_entropy(use_mask=True)] * 3,
        'model.roi_head.type': 'HybridTaskCascadeRoIHead',
        'model.rpn_head.bbox_coder.target_stds': [1.0] * 4,
        'model.rpn_head.loss_bbox': dict(type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0),
        'model.train_cfg.rpn_proposal.nms': nms(0.7, 'soft_nms'),
        'model.train_cfg.rpn_proposal.max_per_img': 2000,
        'model.train_cfg.rcnn.*.assigner': [
            dict(
                type='MaxIoUAssigner',
                pos_iou_thr=iou,
                neg_iou_thr=iou,
                min_pos_iou=iou,
                match_low_quality=True,
                ignore_iof_thr=-1,
            )
            for iou in (0.5, 0.6, 0.7)
        ],
        'model.train_cfg.rcnn.*.sampler.num': [512] * 3,
        'model.train_cfg.rcnn.*.sampler.pos_fraction': [0.25] * 3,
        'model.train_cfg.rcnn.*.mask_size': [28] * 3,
        'tta_pipeline.1.transforms.0.*.scale': [
            [3000, short_side] for short_side in (600, 800, 1000, 1200, 1400, 1600)
        ],
        'tta_pipeline.1.transforms.1.*.prob': [0.0, 1.0],
        'tta_model.tta_cfg': dict(
            nms=dict(nms(0.5, 'soft_nms'), min_score=0.001), max_per_img=1000
        ),
        'tta_model.object_sizes': [
            *(['large'], ['large'], ['medium', 'large']),
            *(['small', 'medium'], ['small', 'medium'], ['small', 'medium']),
        ],
        'model.test_cfg.rpn.nms': nms(0.7, 'soft_nms'),
        'model.test_cfg.rpn.max_per_img': 1000,
        'model.test_cfg.rcnn.nms': nms(0.5, 'soft_nms'),
        'model.test_cfg.rcnn.score_thr': 0.001,
        'model.test_cfg.rcnn.max_per_img': 100,
    },
    # Heads without.
    'mmdet/*_retinanet*': {
        'model.backbone.out_indices': [1, 2, 3],
        'model.neck': fpn(192, 384, 768, start_level=0, add_extra_convs='on_input', num_outs=5),
        'model.bbox_head.stacked_convs': 4,
        'model.bbox_head.anchor_generator': anchors(
            FROM_8, octave_base_scale=4, scales_per_octave=3
        ),
        'model.bbox_head.bbox_coder.target_stds': [1.0, 1.0, 1.0, 1.0],
        'model.bbox_head.loss_cls': focal_loss(loss_weight=1.0),
        'model.bbox_head.loss_bbox': dict(type='L1Loss', loss_weight=1.0),
        'model.train_cfg.assigner.pos_iou_thr': 0.5,
        'model.train_cfg.assigner.neg_iou_thr': 0.4,
        'model.test_cfg.nms': nms(0.5),
    },
    'mmdet/*_retinanet_1x': {
        'train_pipeline': coco([dict(type='Resize', scale=[1333, 800], keep_ratio=True), FLIP])
    },
    'mmdet/*_atss*': ATSS,
    'mmdet/*_dyhead*': {
        **ATSS,
        **schedule(12, 8, 11),
        'repeated': 2,
        'optim_wrapper': dict(
            type='OptimWrapper', optimizer=adamw(5e-5, 0.05), paramwise_cfg=FREE
        ),
        'train_pipeline': coco(
            [
                dict(
                    type='RandomResize',
                    scale=[[2000, 480], [2000, 1200]],
                    keep_ratio=True,
                    backend='pillow',
                ),
                FLIP,
            ]
        ),
        'test_pipeline.1': dict(
            type='Resize', scale=[2000, 1200], keep_ratio=True, backend='pillow'
        ),
        'model.data_preprocessor.pad_size_divisor': 128,
        'model.backbone.arch': 'large',
        'model.neck': [
            fpn(384, 768, 1536, start_level=0, add_extra_convs='on_output', num_outs=5),
            dict(
                type='DyHead',
                in_channels=256,
                out_channels=256,
                num_blocks=6,
                zero_init_offset=False,
            ),
        ],
        'model.bbox_head.stacked_convs': 0,
        'model.bbox_head.pred_kernel_size': 1,
        'model.bbox_head.anchor_generator': anchors(
            FROM_8, [1.0], octave_base_scale=8, scales_per_octave=1, center_offset=0.5
        ),
    },
    'mmdet/*_reppointsv2*': {
        'train_pipeline': coco([MS_960, FLIP]),
        'model.backbone.out_indices': [1, 2, 3],
        'model.neck': dict(
            type='BiFPN', in_channels=[192, 384, 768], out_channels=256, num_outs=5
        ),
        'model.bbox_head': dict(type='RepPointsV2Head', num_classes=80, in_channels=256),
        'model.train_cfg': dict(
            init=dict(assigner=dict(type='PointAssigner', scale=4, pos_num=1)),
            refine=dict(assigner=dict(type='ATSSAssigner', topk=9)),
        ),
        'model.test_cfg': dict(
            nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=nms(0.6), max_per_img=100
        ),
    },
    'mmdet/*_reppointsv2-fpn*': {
        'model.neck': fpn(
            *(192, 384, 768),
            add_extra_convs='on_input',
            num_outs=5,
            norm_cfg=dict(type='GN', num_groups=32, requires_grad=True),
        ),
        'model.bbox_head': dict(
            type='RepPointsV2Head', num_classes=80, in_channels=256, loss_cls=focal_loss()
        ),
    },
    'mmdet/focal-s_*': {'model.backbone.arch': 'small'},
    'mmdet/focal-b_*': {'model.backbone.arch': 'base', 'model.backbone.drop_path_rate': 0.3},
    'mmdet/focal-b_maskrcnn*': {'model.neck': fpn(128, 256, 512, 1024, num_outs=5)},
    'mmdet/focal-b_retinanet*': {
        'model.neck': fpn(256, 512, 1024, start_level=0, add_extra_convs='on_input', num_outs=5)
    },
    # Segmentation.
    'mmseg/*': {
        'optim_wrapper': dict(
            type='OptimWrapper', optimizer=adamw(6e-5, 0.01), paramwise_cfg=FREE
        ),
        'param_scheduler': [
            scheduler('LinearLR', 1500, by_epoch=False, start_factor=1e-6),
            scheduler('PolyLR', 160000, begin=1500, by_epoch=False, power=1.0, eta_min=0.0),
        ],
        'train_cfg.max_iters': 160000,
        'auto_scale_lr': dict(enable=False, base_batch_size=16),
        'train_dataloader.batch_size': 2,
        'model.data_preprocessor.mean': [123.675, 116.28, 103.53],
        'model.data_preprocessor.std': [58.395, 57.12, 57.375],
        'model.backbone.arch': 'tiny',
        'model.backbone.drop_path_rate': 0.3,
        'model.backbone.focal_windows': [15, 13, 9, 7],
        **segmentation([512, 512], [2048, 512], [96, 192, 384, 768], reduce_zero_label=True),
        'model.decode_head.type': 'UPerHead',
        'model.decode_head.channels': 512,
        'model.decode_head.pool_scales': [1, 2, 3, 6],
        'model.decode_head.dropout_ratio': 0.1,
        'model.decode_head.norm_cfg': SYNC_BN,
        'model.decode_head.loss_decode': cross_entropy(use_sigmoid=False),
        'model.auxiliary_head.type': 'FCNHead',
        'model.auxiliary_head.in_index': 2,
        'model.auxiliary_head.channels': 256,
        'model.auxiliary_head.num_convs': 1,
        'model.auxiliary_head.dropout_ratio': 0.1,
        'model.auxiliary_head.loss_decode': cross_entropy(0.4, use_sigmoid=False),
        'model.test_cfg': dict(mode='whole'),
        'tta_pipeline.1.transforms.1.*.prob': [0.0, 1.0],
    },
    'mmseg/focal-s_*': {'model.backbone.arch': 'small'},
    'mmseg/focal-b_*': {
        'model.backbone.arch': 'base',
        **segmentation([512, 512], [2048, 512], [128, 256, 512, 1024], reduce_zero_label=True),
    },
    'mmseg/focal-l_*': {
        'model.backbone.arch': 'large',
        **segmentation([640, 640], [2560, 640], [192, 384, 768, 1536], reduce_zero_label=True),
    },
    # MMSegmentation's; nothing was published.
    'mmseg/*_cityscapes': segmentation([512, 1024], [2048, 1024], [96, 192, 384, 768], 19),
    '*/focal-fast_*': {'model.backbone.focal_windows': None},
    # Classification.
    'mmpretrain/*': {
        'optim_wrapper.type': 'AmpOptimWrapper',
        'optim_wrapper.optimizer': dict(adamw(1e-3, 0.05), eps=1e-8),
        'optim_wrapper.clip_grad': dict(max_norm=5.0),
        **tuning(300, 20, 1e-5),
        'auto_scale_lr.base_batch_size': 1024,
        'train_dataloader.batch_size': 128,
        'model.backbone.arch': 'tiny',
        'model.backbone.drop_path_rate': 0.2,
        'model.backbone.clamp_windows': True,
        'model.backbone.out_indices': [3],
        'model.head.in_channels': 768,
        'model.head.num_classes': 1000,
        'test_pipeline.1': dict(
            type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'
        ),
        'test_pipeline.2': dict(type='CenterCrop', crop_size=224),
        'model.head.init_cfg': dict(type='TruncNormal', layer='Linear', std=0.02),
        'model.head.loss': dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        'model.train_cfg.augments': [
            dict(type='Mixup', alpha=0.8),
            dict(type='CutMix', alpha=1.0),
        ],
    },
    'mmpretrain/*_conv-embed': {'model.backbone.use_conv_embed': True},
    'mmpretrain/focal-s_*': {
        'model.backbone.arch': 'small',
        'model.backbone.drop_path_rate': 0.3,
    },
    'mmpretrain/focal-b_*': {
        'model.backbone.arch': 'base',
        'model.backbone.drop_path_rate': 0.5,
        'model.head.in_channels': 1024,
    },
    # As Swin-L was tuned: swin_large_patch4_window7_224_22kto1k_finetune.yaml of
    # microsoft/Swin-Transformer, whose rates are for 512 images.
    'mmpretrain/focal-l_*': {
        'optim_wrapper.optimizer': dict(adamw(2 * 2e-5, 1e-8), eps=1e-8),
        **tuning(30, 5, 2 * 2e-7),
        'model.backbone.arch': 'large',
        'model.backbone.downsample': 'merging',
        'model.head.in_channels': 1536,
    },
}


@cache
def read(name):
    return Config.fromfile(CONFIGS / f'{name}.py')


def plain(value):
    """Lists for tuples, and without what mmengine adds and where files are."""
    if isinstance(value, dict):
        left_out = ('_scope_', 'backend_args')
        return {key: plain(item) for key, item in value.items() if key not in left_out}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def values_of(config):
    """The config, with the training images and pipelines at its root."""
    values = plain(config.to_dict())
    dataset = values['train_dataloader']['dataset']
    values['repeated'] = dataset.get('times')
    values['images'] = dataset.get('dataset', dataset)
    values['train_pipeline'] = values['images']['pipeline']
    tested = [values[f'{split}_dataloader']['dataset']['pipeline'] for split in ('val', 'test')]
    assert tested[0] == tested[1]
    values['test_pipeline'] = tested[0]
    return values


def look_up(values, path):
    first, _, rest = path.partition('.')
    if values is None or not first:
        return values
    if first == '*':
        return [look_up(item, rest) for item in values]
    return look_up(values[int(first)] if first.isdigit() else values.get(first), rest)


@pytest.mark.parametrize('name', RECIPES)
def test_recipe_has_the_published_values(name):
    expected = {}
    for pattern, values in PUBLISHED.items():
        if fnmatch(name, pattern):
            expected |= values
    found = values_of(read(name))
    different = {
        path: (look_up(found, path), value)
        for path, value in expected.items()
        if look_up(found, path) != value
    }
    assert not different  # (found, published)


# What differs from mmdet's and mmseg's recipes for another backbone.
OWN = {
    'mmdet/focal_mask2former_50e': {'model.backbone.drop_path_rate': 0.3},
    'mmdet/focal_mask2former-panoptic_50e': {'model.backbone.drop_path_rate': 0.3},
    'mmseg/focal_mask2former_160k': {'model.backbone.drop_path_rate': 0.3},
    'mmdet/focal_dino_12e': {
        'model.backbone.drop_path_rate': 0.2,
        'model.backbone.out_indices': [1, 2, 3],
        'model.neck.in_channels': [192, 384, 768],
    },
    # rtmdet_swin-b_8xb32-100e_coco.py
    'mmdet/focal_rtmdet-ins_100e': {
        'model.backbone.out_indices': [1, 2, 3],
        'model.data_preprocessor.mean': [123.675, 116.28, 103.53],
        'model.data_preprocessor.std': [58.395, 57.12, 57.375],
        'model.data_preprocessor.bgr_to_rgb': True,
        'train_cfg.max_epochs': 100,
        'train_cfg.dynamic_intervals': [[90, 1]],
        'optim_wrapper.optimizer.lr': 0.001,
        'param_scheduler.0': scheduler('LinearLR', 1000, by_epoch=False, start_factor=1e-5),
        'param_scheduler.1': scheduler(
            'CosineAnnealingLR',
            100,
            begin=50,
            T_max=50,
            eta_min=5e-5,
            convert_to_iter_based=True,
        ),
        'custom_hooks.0.type': 'EMAHook',
        'custom_hooks.0.momentum': 0.0002,
        'custom_hooks.1.switch_epoch': 90,
        'auto_scale_lr.base_batch_size': 128,
    },
}


@pytest.mark.parametrize('name', OWN)
def test_recipe_of_today_has_what_the_backbone_changes(name):
    found = plain(read(name).to_dict())
    assert {path: look_up(found, path) for path in OWN[name]} == OWN[name]


def free_of_decay(name, parameter, recipe):
    """Swin's rule in detectors and segmenters; the authors' classifiers free all flat weights."""
    if 'sparsercnn' in recipe:
        return False
    tables = 'absolute_pos_embed' in name or 'relative_position_bias_table' in name
    if recipe.startswith('mmpretrain'):
        return tables or parameter.ndim == 1
    return tables or 'norm' in name


def test_only_the_published_parameters_are_free_of_weight_decay():
    init_default_scope('mmdet')
    model = nn.Module()
    model.backbone = FocalTransformer(
        dict(embed_dims=4, depths=(1, 1), num_heads=(1, 1)),
        focal_levels=3,
        focal_windows=3,
        focal_stages=(0, 1),
        out_indices=(0, 1),
        use_abs_pos_embed=True,
        layer_scale_init_value=0.1,
    )
    model.head = nn.ModuleDict(dict(conv=nn.Conv2d(4, 4, 1), gn=nn.GroupNorm(2, 4)))
    seen = []
    for recipe in RECIPES:
        settings = ConfigDict(plain(read(recipe).optim_wrapper), type='OptimWrapper')
        if settings in seen:
            continue
        seen.append(settings)
        wrapper = Runner.build_optim_wrapper(
            type('Builder', (), dict(model=model)), copy.deepcopy(settings)
        )
        groups, optimizer = wrapper.param_groups, settings.optimizer
        decays = {p: group['weight_decay'] for group in groups for p in group['params']}
        expected = {
            name: 0.0 if free_of_decay(name, p, recipe) else optimizer.weight_decay
            for name, p in model.named_parameters()
        }
        assert {name: decays[p] for name, p in model.named_parameters()} == expected, recipe
        assert {group['lr'] for group in groups} == {optimizer.lr}
    # Detectors, DyHead, Sparse R-CNN, segmenters, classifiers, and the tuning of Focal-L.
    assert len(seen) == 6


UPERNET = [f'focal{size}_upernet_160k' for size in ('', '-s', '-b', '-l')]
# Short sides of an image in the views of a multi-scale test, as MMSegmentation 0.x resized it.
SQUARE, WIDE = (256, 256), (300, 1500)
PHOTOGRAPHS = [(512, 683), (683, 512), (1024, 2048)]  # heights and widths
OF_512 = [256, 384, 512, 640, 768, 896]
OF_640 = [320, 480, 640, 800, 960, 1120]
OF_1024 = [512, 768, 1024, 1280, 1536, 1792]
VIEWS = {
    **{(name, size): OF_512 for name in UPERNET for size in (SQUARE, *PHOTOGRAPHS)},
    **{(name, WIDE): [205, 307, 410, 512, 614, 717] for name in UPERNET},
    ('focal-fast_upernet_160k', SQUARE): OF_512,
    **{('focal-l_upernet_160k', size): OF_640 for size in (SQUARE, *PHOTOGRAPHS)},
    ('focal-l_upernet_160k', WIDE): [256, 384, 512, 640, 768, 896],
    ('focal_upernet_160k_cityscapes', (1024, 2048)): OF_1024,
    ('focal_upernet_160k_cityscapes', SQUARE): OF_1024,
    **{('focal_mask2former_160k', size): OF_512 for size in (SQUARE, *PHOTOGRAPHS)},
}


@pytest.mark.parametrize('name', sorted({name for name, _ in VIEWS}))
def test_segmenters_are_tested_at_ratios_of_the_test_scale(name):
    config = read(f'mmseg/{name}')
    (test,) = [step for step in config.test_dataloader.dataset.pipeline if step.type == 'Resize']
    scales, flips, *_ = config.tta_pipeline[1].transforms
    assert [flip.prob for flip in flips] == [0.0, 1.0]
    assert scales[2].scale == test.scale and scales[2].keep_ratio and test.keep_ratio
    init_default_scope('mmseg')
    steps = [TRANSFORMS.build(scale) for scale in scales]
    for height, width in (size for of, size in VIEWS if of == name):
        images = [step(dict(img=np.zeros((height, width, 3), np.uint8)))['img'] for step in steps]
        assert [min(image.shape[:2]) for image in images] == VIEWS[name, (height, width)]
        for image in images:
            assert image.shape[1] / image.shape[0] == pytest.approx(width / height, rel=0.01)
