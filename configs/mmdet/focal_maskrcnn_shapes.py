# A small Focal Transformer with a narrow Mask R-CNN on the embedded data set, from scratch, in
# minutes on two CPU cores. The model is cut down where COCO needs more; nothing else differs.
_base_ = [
    '_base_/maskrcnn_focal.py',
    '../_base_/shapes_backbone.py',
    '_base_/shapes_instance.py',
    '_base_/runtime_shapes.py',
]

num_classes = 6
width = 48  # channels of neck and heads
norm_cfg = dict(type='BN')

model = dict(
    backbone={{_base_.shapes_backbone}},
    neck=dict(
        in_channels={{_base_.shapes_backbone_channels}},
        out_channels=width,
        num_outs=4,
        norm_cfg=norm_cfg,
    ),
    rpn_head=dict(
        in_channels=width,
        feat_channels=width,
        anchor_generator=dict(scales=[3, 4.5], ratios=[1.0], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        # Regions below 40 pixels are taken from the finest map.
        bbox_roi_extractor=dict(
            out_channels=width, finest_scale=20, roi_layer=dict(sampling_ratio=1)
        ),
        bbox_head=dict(
            type='ConvFCBBoxHead',
            in_channels=width,
            num_shared_convs=2,
            num_shared_fcs=1,
            conv_out_channels=width,
            fc_out_channels=256,
            norm_cfg=norm_cfg,
            num_classes=num_classes,
            reg_class_agnostic=True,
        ),
        mask_roi_extractor=dict(
            out_channels=width, finest_scale=20, roi_layer=dict(sampling_ratio=1)
        ),
        mask_head=dict(
            in_channels=width,
            conv_out_channels=width,
            num_convs=2,
            num_classes=num_classes,
            class_agnostic=True,
            norm_cfg=norm_cfg,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=50)),
)
