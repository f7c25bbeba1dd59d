# Which part of focal attention UPerNet gains by, on the embedded data set.
_base_ = ['../../../configs/mmseg/focal_upernet_shapes.py', 'parts.py']

comparison = dict(title='Parts of focal attention: UPerNet', metrics={'mIoU': 'mIoU, %'})

resize = dict(type='Resize', scale={{_base_.image_size}}, keep_ratio=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    resize,
    dict(
        type='RandomFlip',
        prob=[0.25, 0.25, 0.25],
        direction=['horizontal', 'vertical', 'diagonal'],
    ),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size={{_base_.batch_size}}, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

width = 48
model = dict(
    data_preprocessor=dict(size={{_base_.image_size}}),
    # Of all four maps, where the base leaves out the first; narrower, to cost no more for that.
    decode_head=dict(in_channels=[32, 64, 128, 256], in_index=[0, 1, 2, 3], channels=width),
    auxiliary_head=dict(in_index=2, channels=width),
)

train_cfg = {{_base_.iterations}}
optim_wrapper = dict(optimizer={{_base_.optimizer}})
param_scheduler = {{_base_.warm_up_and_constant}}
default_hooks = dict(checkpoint={{_base_.checkpoint}})
