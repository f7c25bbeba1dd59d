# From Swin-L of ImageNet-22K to the Focal-L that detectors and segmenters begin with: 30 epochs on
# ImageNet-1K. The authors are reported to have taken this step; their settings are not known.
# These are those by which Swin Transformer's authors tuned Swin-L. No published figure.
_base_ = ['_base_/in1k.py', '../_base_/weights.py']

model = dict(
    backbone=dict(
        arch='large',
        downsample='merging',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint={{_base_.swin_checkpoints.large}}),
    ),
    head=dict(in_channels=1536),
)
optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=1e-8))
train_cfg = dict(max_epochs=30)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=4e-7, begin=0, end=30, convert_to_iter_based=True),
]
