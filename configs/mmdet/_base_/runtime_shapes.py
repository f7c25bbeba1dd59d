# Schedule and runtime for the embedded data set: minutes on two CPU cores.
_base_ = ['mmdet::_base_/default_runtime.py', '../../_base_/shapes_training.py']

max_iters = 850
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=max_iters, eta_min_ratio=0.01),
]
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=max_iters // 2, max_keep_ckpts=2),
    logger=dict(interval=25),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
