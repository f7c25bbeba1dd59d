_base_ = 'focal_upernet_160k.py'

model = dict(backbone=dict(arch='small', init_cfg=dict(checkpoint={{_base_.checkpoints.small}})))
