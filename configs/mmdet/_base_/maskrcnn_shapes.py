# What Mask R-CNN and its cascades share on the embedded data set: narrow layers, few regions.
_base_ = ['../../_base_/shapes_backbone.py', 'shapes_instance.py', 'runtime_shapes.py']

num_classes = 6
width = 48  # channels of neck and heads
norm_cfg = dict(type='BN')
proposals = dict(nms_pre=300, max_per_img=100)
shapes = dict(
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
    # Regions below 40 pixels are taken from the finest map.
    roi_extractor=dict(out_channels=width, finest_scale=20, roi_layer=dict(sampling_ratio=1)),
    mask_head=dict(
        in_channels=width,
        conv_out_channels=width,
        num_convs=2,
        num_classes=num_classes,
        class_agnostic=True,
        norm_cfg=norm_cfg,
    ),
    rpn_training=dict(sampler=dict(num=128)),
    cascade_training=[
        dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou
            ),
            sampler=dict(type='RandomSampler', num=32, pos_fraction=0.5),
            mask_size=28,
            pos_weight=-1,
        )
        for iou in (0.5, 0.6, 0.7)
    ],
    test_cfg=dict(rpn=proposals, rcnn=dict(max_per_img=50)),
)
