_base_ = [
    '_base_/maskrcnn_focal.py',
    '_base_/coco_instance_ms_crop.py',
    '_base_/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
