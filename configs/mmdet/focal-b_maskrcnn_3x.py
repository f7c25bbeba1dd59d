_base_ = 'focal_maskrcnn_3x.py'

model = dict(backbone={{_base_.focal_b}}, neck=dict(in_channels=[128, 256, 512, 1024]))
