# A small Focal Transformer with a narrow UPerNet on CamVid, street images, from scratch and
# without a GPU.
_base_ = [
    '_base_/upernet_focal.py',
    '../_base_/small_backbone.py',
    '../_base_/shapes_training.py',
    '_base_/camvid.py',
    '_base_/runtime_small.py',
]

num_classes = 11
width = 64  # channels of the heads
norm_cfg = dict(type='BN')
cross_entropy = dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)
dice = dict(type='DiceLoss', loss_name='loss_dice', loss_weight=1.0)

data_preprocessor = dict(size={{_base_.crop_size}})
model = dict(
    data_preprocessor=data_preprocessor,
    backbone={{_base_.small_backbone}},
    decode_head=dict(
        in_channels={{_base_.small_backbone_channels}},
        channels=width,
        num_classes=num_classes,
        dropout_ratio=0.0,
        norm_cfg=norm_cfg,
        # Poles, signs and people have few pixels; the Dice loss counts every class as one.
        loss_decode=[cross_entropy, dice],
    ),
    auxiliary_head=dict(
        in_channels=128,
        channels=width,
        num_classes=num_classes,
        dropout_ratio=0.0,
        norm_cfg=norm_cfg,
    ),
)

# At twice this rate, gradients of the patch embedding spiked and threw one of three runs back.
optim_wrapper = dict(optimizer=dict(lr=1e-3))
max_iters = 900
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 2)

param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=max_iters, eta_min_ratio=0.01),
]
default_hooks = dict(checkpoint=dict(interval=max_iters // 2))
