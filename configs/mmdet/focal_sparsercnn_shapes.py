# A small Sparse R-CNN on the embedded data set: 20 proposals, three stages. It has to learn where
# to look, and takes more than twice as many iterations.
_base_ = [
    '_base_/sparsercnn_focal.py',
    '../_base_/shapes_backbone.py',
    '_base_/shapes_detection.py',
    '_base_/runtime_shapes.py',
]

num_stages = 3
num_proposals = 20
width = 64  # channels of neck, proposals and heads

model = dict(
    backbone={{_base_.shapes_backbone}},
    neck=dict(
        in_channels={{_base_.shapes_backbone_channels}},
        out_channels=width,
        norm_cfg=dict(type='BN'),
    ),
    rpn_head=dict(num_proposals=num_proposals, proposal_feature_channel=width),
    roi_head=dict(
        num_stages=num_stages,
        stage_loss_weights=[1] * num_stages,
        proposal_feature_channel=width,
        # Regions below 40 pixels are taken from the finest map.
        bbox_roi_extractor=dict(out_channels=width, finest_scale=20),
        bbox_head=[
            dict(
                type='DIIHead',
                num_classes=6,
                num_ffn_fcs=2,
                num_heads=4,
                num_cls_fcs=1,
                num_reg_fcs=2,
                feedforward_channels=4 * width,
                in_channels=width,
                dropout=0.0,
                ffn_act_cfg=dict(type='ReLU', inplace=True),
                dynamic_conv_cfg=dict(
                    type='DynamicConv',
                    in_channels=width,
                    feat_channels=width // 4,
                    out_channels=width,
                    input_feat_shape=7,
                    act_cfg=dict(type='ReLU', inplace=True),
                    norm_cfg=dict(type='LN'),
                ),
                loss_bbox=dict(type='L1Loss', loss_weight=5.0),
                loss_iou=dict(type='GIoULoss', loss_weight=2.0),
                loss_cls=dict(
                    type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0
                ),
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder', clip_border=False, target_stds=[0.5, 0.5, 1.0, 1.0]
                ),
            )
            for _ in range(num_stages)
        ],
    ),
    train_cfg=dict(
        rcnn=[
            dict(
                assigner=dict(
                    type='HungarianAssigner',
                    match_costs=[
                        dict(type='FocalLossCost', weight=2.0),
                        dict(type='BBoxL1Cost', weight=5.0, box_format='xyxy'),
                        dict(type='IoUCost', iou_mode='giou', weight=2.0),
                    ],
                ),
                sampler=dict(type='PseudoSampler'),
                pos_weight=1,
            )
            for _ in range(num_stages)
        ]
    ),
    test_cfg=dict(rcnn=dict(max_per_img=num_proposals)),
)

max_iters = 4000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 5)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=max_iters, eta_min_ratio=0.01),
]
default_hooks = dict(checkpoint=dict(interval=max_iters // 5))
