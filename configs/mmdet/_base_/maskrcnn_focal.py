# Mask R-CNN with Focal-T. 48.7 M parameters.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

custom_imports = dict(imports=['mmfocal'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='FocalTransformer',
        arch='tiny',
        # Wider than (7, 5, 3, 1) of the ImageNet models, for images of 800 instead of 224 pixels.
        focal_windows=(15, 13, 9, 7),
        drop_path_rate=0.2,
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
