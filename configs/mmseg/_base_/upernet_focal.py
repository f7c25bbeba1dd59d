# UPerNet with Focal-T.
_base_ = ['mmseg::_base_/models/upernet_swin.py', '../../_base_/focal_backbone.py']

model = dict(backbone={{_base_.focal}})
