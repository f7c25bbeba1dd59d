# A small Focal Transformer with a narrow Mask R-CNN on the embedded data set, from scratch, in
# minutes on two CPU cores. The model is cut down where COCO needs more; nothing else differs.
_base_ = ['_base_/maskrcnn_focal.py', '_base_/maskrcnn_shapes.py']

model = dict(
    backbone={{_base_.shapes_backbone}},
    neck={{_base_.shapes.neck}},
    rpn_head={{_base_.shapes.rpn_head}},
    roi_head=dict(
        bbox_roi_extractor={{_base_.shapes.roi_extractor}},
        bbox_head=dict(
            type='ConvFCBBoxHead',
            in_channels={{_base_.width}},
            num_shared_convs=2,
            num_shared_fcs=1,
            conv_out_channels={{_base_.width}},
            fc_out_channels=256,
            norm_cfg={{_base_.norm_cfg}},
            num_classes={{_base_.num_classes}},
            reg_class_agnostic=True,
        ),
        mask_roi_extractor={{_base_.shapes.roi_extractor}},
        mask_head={{_base_.shapes.mask_head}},
    ),
    train_cfg=dict(
        rpn={{_base_.shapes.rpn_training}},
        rpn_proposal={{_base_.proposals}},
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg={{_base_.shapes.test_cfg}},
)
