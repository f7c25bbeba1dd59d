# The data of mmdet's own 1x configs. The published 1x results are likely to be those of
# focal_retinanet_ms-1x.py, as for Mask R-CNN.
_base_ = [
    '_base_/retinanet_focal.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '_base_/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
