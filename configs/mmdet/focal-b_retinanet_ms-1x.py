_base_ = 'focal_retinanet_ms-1x.py'

model = dict(backbone={{_base_.focal_b}}, neck=dict(in_channels=[256, 512, 1024]))
