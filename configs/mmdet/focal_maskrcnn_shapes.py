# A small Focal Transformer with a narrow Mask R-CNN on the embedded data set, from scratch, in
# minutes on two CPU cores. The model is cut down where COCO needs more; nothing else differs.
_base_ = [
    '_base_/maskrcnn_focal.py',
    '_base_/shapes_instance.py',
    'mmdet::_base_/default_runtime.py',
]

num_classes = 6
width = 48  # channels of neck and heads
norm_cfg = dict(type='BN')

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=32, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8)),
        # Maps of 128 pixels have 32, 16, 8 and 4 tokens a side: whole windows, and in the last
        # two stages a single one, around which there is nothing more to see.
        window_size=(8, 8, 8, 4),
        expand_sizes=(3, 3, 0, 0),
        focal_levels=(2, 2, 1, 1),
        focal_windows=(3, 1, 1, 1),
        use_conv_embed=True,
        mlp_ratio=3.0,
        drop_path_rate=0.0,
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=width, num_outs=4, norm_cfg=norm_cfg),
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

max_iters = 850
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05, fused=True),
    paramwise_cfg=dict(norm_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=100,
        end=max_iters,
        eta_min_ratio=0.01,
    ),
]
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=max_iters // 2, max_keep_ckpts=2),
    logger=dict(interval=25),
)
log_processor = dict(by_epoch=False)
train_dataloader = dict(sampler=dict(type='InfiniteSampler', shuffle=True))
randomness = dict(seed=0)
