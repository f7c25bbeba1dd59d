_base_ = 'focal_retinanet_3x.py'

model = dict(backbone={{_base_.focal_b}}, neck=dict(in_channels=[256, 512, 1024]))
