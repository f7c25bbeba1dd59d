# A narrow HTC++ on the embedded data set, label maps included.
_base_ = ['_base_/htcpp_focal.py', '_base_/maskrcnn_shapes.py']

model = dict(
    backbone={{_base_.shapes_backbone}},
    neck={{_base_.shapes.neck}},
    rpn_head={{_base_.shapes.rpn_head}},
    roi_head=dict(
        bbox_roi_extractor={{_base_.shapes.roi_extractor}},
        semantic_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=1),
            out_channels={{_base_.width}},
            featmap_strides=[4],
        ),
        semantic_head=dict(
            num_ins=4,
            fusion_level=0,
            seg_scale_factor=1 / 4,
            num_convs=2,
            in_channels={{_base_.width}},
            conv_out_channels={{_base_.width}},
            num_classes=7,  # 0 is the background
        ),
        bbox_head=[
            dict(
                type='ConvFCBBoxHead',
                num_shared_convs=2,
                num_shared_fcs=1,
                in_channels={{_base_.width}},
                conv_out_channels={{_base_.width}},
                fc_out_channels=256,
                roi_feat_size=7,
                num_classes={{_base_.num_classes}},
                norm_cfg={{_base_.norm_cfg}},
                bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=stds),
                reg_class_agnostic=True,
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0),
            )
            for stds in (
                [0.1, 0.1, 0.2, 0.2],
                [0.05, 0.05, 0.1, 0.1],
                [0.033, 0.033, 0.067, 0.067],
            )
        ],
        mask_roi_extractor={{_base_.shapes.roi_extractor}},
        mask_head=[
            dict(
                type='HTCMaskHead',
                with_conv_res=stage > 0,
                num_convs=2,
                in_channels={{_base_.width}},
                conv_out_channels={{_base_.width}},
                num_classes={{_base_.num_classes}},
                class_agnostic=True,
                norm_cfg={{_base_.norm_cfg}},
                loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0),
            )
            for stage in range(3)
        ],
    ),
    train_cfg=dict(
        rpn={{_base_.shapes.rpn_training}},
        # Faster than soft-NMS.
        rpn_proposal=dict(nms_pre=300, max_per_img=100, nms=dict(type='nms')),
        rcnn={{_base_.shapes.cascade_training}},
    ),
    test_cfg={{_base_.shapes.test_cfg}},
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, with_seg=True),
    {{_base_.flips}},
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img='train/', seg='labels/train/'),
        seg_map_suffix='.png',
        pipeline=train_pipeline,
    )
)
