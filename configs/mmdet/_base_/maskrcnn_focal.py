# Mask R-CNN with Focal-T.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', '../../_base_/focal_backbone.py']

model = dict(backbone={{_base_.focal}}, neck=dict(in_channels=[96, 192, 384, 768]))
