# Focal-T on ImageNet-1K at 224x224 pixels, as the authors trained and evaluated it: their recipe
# is Swin Transformer's, with mixed precision and gradient clipping.
_base_ = [
    'classifier.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(
    head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)

# 8 GPUs make the 1024 images that the learning rate is for.
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(type='AmpOptimWrapper', clip_grad=dict(max_norm=5.0))
# As the authors' timm, whose cosine counts iterations from the first epoch, not from the end of
# the warm-up. Until there both factors are multiplied here, and timm has the warm-up's only: up to
# 1 % more.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, begin=0, end=300, convert_to_iter_based=True),
]
