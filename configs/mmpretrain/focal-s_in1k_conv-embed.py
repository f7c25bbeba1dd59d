# With overlapping patches.
_base_ = './focal-s_in1k.py'

model = dict(backbone=dict(use_conv_embed=True))
