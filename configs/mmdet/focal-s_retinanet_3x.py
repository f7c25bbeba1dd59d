_base_ = 'focal_retinanet_3x.py'

model = dict(backbone=dict(arch='small'))
