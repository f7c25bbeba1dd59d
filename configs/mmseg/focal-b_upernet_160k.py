_base_ = 'focal_upernet_160k.py'

model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint={{_base_.checkpoints.base}})),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
