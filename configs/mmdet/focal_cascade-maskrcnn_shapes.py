# A narrow Cascade Mask R-CNN on the embedded data set.
_base_ = [
    '_base_/cascade-maskrcnn_focal.py',
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
        bbox_head=[
            dict(
                type='ConvFCBBoxHead',
                num_shared_convs=2,
                num_shared_fcs=1,
                in_channels=width,
                conv_out_channels=width,
                fc_out_channels=256,
                roi_feat_size=7,
                num_classes=num_classes,
                norm_cfg=norm_cfg,
                bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=stds),
                reg_class_agnostic=True,
                reg_decoded_bbox=True,
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
            )
            for stds in (
                [0.1, 0.1, 0.2, 0.2],
                [0.05, 0.05, 0.1, 0.1],
                [0.033, 0.033, 0.067, 0.067],
            )
        ],
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
        rcnn=[
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
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=50)),
)
