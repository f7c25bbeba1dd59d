# RetinaNet with Focal-T. The coarsest maps are made of the backbone's last: its number of
# parameters says so.
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', '../../_base_/focal_backbone.py']

model = dict(
    backbone={{_base_.focal_from_stride_8}},
    neck=dict(in_channels=[192, 384, 768], start_level=0),
)
