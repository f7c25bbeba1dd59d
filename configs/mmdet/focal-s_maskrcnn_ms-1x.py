_base_ = 'focal_maskrcnn_ms-1x.py'

model = dict(backbone=dict(arch='small', init_cfg=dict(checkpoint={{_base_.checkpoints.small}})))
