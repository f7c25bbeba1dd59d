# Which part of focal attention UPerNet gains by, on the embedded data set. Four of its images make
# one: of two enlarged ones a batch, it learned where shapes are, but not yet which.
_base_ = ['../../../configs/mmseg/focal_upernet_shapes.py', 'parts.py']

comparison = dict(title='Parts of focal attention: UPerNet', metrics={'mIoU': 'mIoU, %'})

custom_imports = dict(imports=['mmfocal', 'tools.dev.comparing.tiles'])
flip = dict(
    type='RandomFlip',
    prob=[0.25, 0.25, 0.25],
    direction=['horizontal', 'vertical', 'diagonal'],
)
pack = dict(type='PackSegInputs')
dataset = dict(type='TiledShapes', pipeline=[pack])
train_dataloader = dict(
    batch_size={{_base_.batch_size}}, dataset=dict(type='TiledShapes', pipeline=[flip, pack])
)
val_dataloader = dict(batch_size={{_base_.batch_size}}, dataset=dataset)
test_dataloader = dict(batch_size={{_base_.batch_size}}, dataset=dataset)

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
