# A small Focal Transformer with a narrow UPerNet on the embedded data set, from scratch, in
# minutes on two CPU cores.
_base_ = [
    '_base_/upernet_focal.py',
    '../_base_/shapes_backbone.py',
    '../_base_/shapes_training.py',
    '_base_/shapes.py',
    '_base_/runtime_small.py',
]

num_classes = 7  # 0 is the ground
width = 96  # channels of the heads
norm_cfg = dict(type='BN')
# The ground covers most of an image, and it is the names of the shapes that take time to learn.
# Pixels of label 255 are ignored, which mmseg's CrossEntropyLoss with class_weight is not fit for.
cross_entropy = dict(
    type='ClassWeightedCrossEntropyLoss', class_weight=[0.4] + [1.0] * (num_classes - 1)
)
dice = dict(type='DiceLoss', loss_name='loss_dice', loss_weight=2.0)

data_preprocessor = dict(size={{_base_.crop_size}})
model = dict(
    data_preprocessor=data_preprocessor,
    # The map of stride 4 costs more time than it saves iterations.
    backbone={{_base_.shapes_backbone_from_stride_8}},
    decode_head=dict(
        in_channels=[64, 128, 256],
        in_index=[0, 1, 2],
        channels=width,
        num_classes=num_classes,
        dropout_ratio=0.0,
        norm_cfg=norm_cfg,
        loss_decode=[cross_entropy, dice],
    ),
    auxiliary_head=dict(
        in_channels=128,
        in_index=1,
        channels=width,
        num_classes=num_classes,
        dropout_ratio=0.0,
        norm_cfg=norm_cfg,
        loss_decode=dict(_delete_=True, **cross_entropy),
    ),
)

max_iters = 2200
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 4)

# Full speed for two thirds of the time: names are learned while the learning rate is high.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='LinearLR',
        start_factor=1.0,
        end_factor=0.01,
        by_epoch=False,
        begin=max_iters * 2 // 3,
        end=max_iters,
    ),
]
default_hooks = dict(checkpoint=dict(interval=max_iters // 4))
