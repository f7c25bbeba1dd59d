_base_ = [
    '_base_/reppointsv2_focal.py',
    '_base_/coco_detection_ms.py',
    '_base_/schedule_3x.py',
    'mmdet::_base_/default_runtime.py',
]
