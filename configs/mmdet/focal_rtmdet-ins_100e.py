# RTMDet-Ins with Focal-T in place of the medium CSPNeXt, whose maps have the same channels, no
# published figure with Focal. mmdet's recipe of 100 epochs for RTMDet with Swin-B, 4 GPUs x 32.
_base_ = [
    'mmdet::rtmdet/rtmdet-ins_m_8xb32-300e_coco.py',
    '../_base_/focal_backbone.py',
    '../_base_/no_decay.py',
]

norm_cfg = dict(type='GN', num_groups=32)
model = dict(
    # RGB, by the means of ImageNet.
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone={{_base_.focal_from_stride_8}},
    neck=dict(norm_cfg=norm_cfg),
    bbox_head=dict(norm_cfg=norm_cfg),
)

# The base leaves masks out, which losses of validation need.
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(type='Resize', scale=(640, 640), keep_ratio=True),
    dict(type='Pad', size=(640, 640), pad_val=dict(img=(114, 114, 114))),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
tta_model = tta_pipeline = None  # those of the base are for boxes without masks

max_epochs, last_epochs = 100, 10  # the last without Mosaic and MixUp
base_lr = 0.001

train_cfg = dict(max_epochs=max_epochs, dynamic_intervals=[(max_epochs - last_epochs, 1)])
optim_wrapper = dict(
    optimizer=dict(lr=base_lr),
    # Biases and norms are free of decay in the base.
    paramwise_cfg=dict(
        custom_keys=dict(
            absolute_pos_embed={{_base_.no_decay}},
            relative_position_bias_table={{_base_.no_decay}},
        )
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=1000),
    dict(
        type='CosineAnnealingLR',
        eta_min=base_lr * 0.05,
        begin=max_epochs // 2,
        end=max_epochs,
        T_max=max_epochs // 2,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=0.0002,
        update_buffers=True,
        priority=49,
    ),
    dict(
        type='PipelineSwitchHook',
        switch_epoch=max_epochs - last_epochs,
        switch_pipeline={{_base_.train_pipeline_stage2}},
    ),
]
auto_scale_lr = dict(base_batch_size=128)  # the base keeps that of another schedule
