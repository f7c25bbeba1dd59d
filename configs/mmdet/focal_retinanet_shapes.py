# A narrow RetinaNet on the embedded data set. Its finest map has a stride of 4 pixels.
_base_ = [
    '_base_/retinanet_focal.py',
    '../_base_/shapes_backbone.py',
    '_base_/shapes_detection.py',
    '_base_/runtime_shapes_long.py',
]

width = 48  # channels of neck and head
norm_cfg = dict(type='GN', num_groups=8)

model = dict(
    backbone={{_base_.shapes_backbone}},
    neck=dict(
        in_channels={{_base_.shapes_backbone_channels}},
        out_channels=width,
        num_outs=4,
        norm_cfg=norm_cfg,
    ),
    bbox_head=dict(
        num_classes=6,
        in_channels=width,
        feat_channels=width,
        stacked_convs=2,
        norm_cfg=norm_cfg,
        anchor_generator=dict(
            octave_base_scale=3, scales_per_octave=2, ratios=[1.0], strides=[4, 8, 16, 32]
        ),
    ),
)
