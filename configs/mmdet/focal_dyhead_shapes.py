# A narrow DyHead on the embedded data set. As on COCO, its finest map has a stride of 8 pixels;
# the deformable convolutions of mmcv take most of the time on a CPU.
_base_ = [
    '_base_/dyhead_focal-l.py',
    '../_base_/shapes_backbone.py',
    '_base_/shapes_detection.py',
    '_base_/runtime_shapes_long.py',
]

width = 48  # channels of neck and head

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone={{_base_.shapes_backbone_from_stride_8}},
    neck=[
        dict(
            type='FPN',
            in_channels=[64, 128, 256],
            out_channels=width,
            num_outs=3,
            norm_cfg=dict(type='GN', num_groups=8),
        ),
        dict(
            type='DyHead',
            in_channels=width,
            out_channels=width,
            num_blocks=2,
            zero_init_offset=False,
        ),
    ],
    bbox_head=dict(
        num_classes=6,
        in_channels=width,
        feat_channels=width,
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32]),
    ),
)
