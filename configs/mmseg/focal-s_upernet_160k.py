_base_ = 'focal_upernet_160k.py'

model = dict(backbone=dict(arch='small'))
