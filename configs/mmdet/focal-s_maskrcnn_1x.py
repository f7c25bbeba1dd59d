_base_ = 'focal_maskrcnn_1x.py'

model = dict(backbone=dict(arch='small'))
