# The data of mmdet's own 1x configs. The published 1x results are likely to be those of
# focal_maskrcnn_ms-1x.py: the Swin-T beside them gives its 43.7 AP at many scales, at one 42.7.
_base_ = [
    '_base_/maskrcnn_focal.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '_base_/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
