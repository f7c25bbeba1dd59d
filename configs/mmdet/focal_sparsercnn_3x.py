_base_ = [
    '_base_/sparsercnn_focal.py',
    '_base_/coco_detection_ms_crop.py',
    '_base_/schedule_3x.py',
    'mmdet::_base_/default_runtime.py',
]

# The settings that FocalNet's authors released, in float32. Swin Transformer's paper has the 1e-4
# and 0.05 of the other detectors here.
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2.5e-5, weight_decay=1e-4),
    clip_grad=dict(max_norm=1, norm_type=2),
)
