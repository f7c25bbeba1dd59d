# A small Focal Transformer with a narrow ATSS on BCCD, photographs of blood, from scratch and
# without a GPU. Its finest map has a stride of 4 pixels.
_base_ = [
    '_base_/atss_focal.py',
    '../_base_/small_backbone.py',
    '_base_/bccd_detection.py',
    '_base_/runtime_shapes_long.py',
]

width = 48  # channels of neck and head
norm_cfg = dict(type='GN', num_groups=8)

model = dict(
    backbone={{_base_.small_backbone}},
    neck=dict(
        in_channels={{_base_.small_backbone_channels}},
        out_channels=width,
        num_outs=4,
        norm_cfg=norm_cfg,
    ),
    bbox_head=dict(
        num_classes=3,
        in_channels=width,
        feat_channels=width,
        stacked_convs=2,
        norm_cfg=norm_cfg,
        anchor_generator=dict(octave_base_scale=4, strides=[4, 8, 16, 32]),
    ),
)

max_iters = 700
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=max_iters, eta_min_ratio=0.01),
]
default_hooks = dict(checkpoint=dict(interval=max_iters // 2))
