# A narrow Cascade Mask R-CNN on the embedded data set.
_base_ = ['_base_/cascade-maskrcnn_focal.py', '_base_/maskrcnn_shapes.py']

model = dict(
    backbone={{_base_.shapes_backbone}},
    neck={{_base_.shapes.neck}},
    rpn_head={{_base_.shapes.rpn_head}},
    roi_head=dict(
        bbox_roi_extractor={{_base_.shapes.roi_extractor}},
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
        mask_roi_extractor={{_base_.shapes.roi_extractor}},
        mask_head={{_base_.shapes.mask_head}},
    ),
    train_cfg=dict(
        rpn={{_base_.shapes.rpn_training}},
        rpn_proposal={{_base_.proposals}},
        rcnn={{_base_.shapes.cascade_training}},
    ),
    test_cfg={{_base_.shapes.test_cfg}},
)
