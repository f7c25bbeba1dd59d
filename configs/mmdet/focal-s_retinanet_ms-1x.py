_base_ = 'focal_retinanet_ms-1x.py'

model = dict(backbone=dict(arch='small', init_cfg=dict(checkpoint={{_base_.checkpoints.small}})))
