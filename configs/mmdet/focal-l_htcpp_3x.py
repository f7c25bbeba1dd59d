# A recipe: no weights of Focal-L were released. 16 GPUs with one image each.
_base_ = [
    '_base_/htcpp_focal.py',
    '_base_/coco_semantic_ms_1600.py',
    '_base_/schedule_3x.py',
    '_base_/tta_htcpp.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.3),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
