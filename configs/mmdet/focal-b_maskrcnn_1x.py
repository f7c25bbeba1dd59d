_base_ = 'focal_maskrcnn_1x.py'

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint={{_base_.checkpoints.base}}),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
