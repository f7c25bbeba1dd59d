# A narrow RepPointsV2 on the embedded data set. As on COCO, its finest map has a stride of 8
# pixels; the deformable convolutions of mmcv take most of the time on a CPU.
_base_ = [
    '_base_/reppointsv2_focal.py',
    '../_base_/shapes_backbone.py',
    '_base_/shapes_detection.py',
    '_base_/runtime_shapes_long.py',
]

width = 48  # channels of neck and head
norm_cfg = dict(type='GN', num_groups=8)

model = dict(
    backbone={{_base_.shapes_backbone_from_stride_8}},
    neck=dict(
        in_channels=[64, 128, 256],
        out_channels=width,
        num_outs=3,
        num_repeats=1,
        norm_cfg=norm_cfg,
    ),
    bbox_head=dict(
        num_classes=6,
        in_channels=width,
        feat_channels=width,
        corner_channels=16,
        stacked_convs=2,
        strides=(8, 16, 32),
        norm_cfg=norm_cfg,
    ),
)
