# A small Focal Transformer that names the shapes of the embedded data set, from scratch, in
# minutes on two CPU cores.
_base_ = [
    '_base_/classifier.py',
    '../_base_/shapes_backbone.py',
    '../_base_/shapes_training.py',
    'mmpretrain::_base_/default_runtime.py',
]

side = 64  # pixels
model = dict(
    backbone={{_base_.shapes_backbone_of_classifier}},
    head=dict(num_classes=6, in_channels=256),
)
data_preprocessor = dict(
    num_classes=6,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)

dataset_type = 'mmfocal.datasets.cls_shapes.ShapesClsDataset'
crop = dict(type='mmfocal.datasets.cls_shapes.CropToBox')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    crop,
    dict(type='Resize', scale=(side, side)),
    dict(
        type='RandomFlip',
        prob=[0.25, 0.25, 0.25],
        direction=['horizontal', 'vertical', 'diagonal'],
    ),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    crop,
    dict(type='Resize', scale=(side, side)),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    dataset=dict(type=dataset_type, split='train', pipeline=train_pipeline),
    sampler=dict(type='InfiniteSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    dataset=dict(type=dataset_type, split='val', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator

max_iters = 1500
train_cfg = dict(by_epoch=False, max_iters=max_iters, val_interval=max_iters // 3)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=max_iters, eta_min=5e-6),
]
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(by_epoch=False, interval=max_iters // 3, max_keep_ckpts=2),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
