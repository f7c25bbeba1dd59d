# For detectors that learn more slowly than Mask R-CNN, which runtime_shapes.py is enough for.
_base_ = 'runtime_shapes.py'

max_iters = 2000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=max_iters, eta_min_ratio=0.01),
]
default_hooks = dict(checkpoint=dict(interval=max_iters // 5))
