# Crops of 512 x 1024 pixels. The authors published no result on Cityscapes.
_base_ = [
    '_base_/upernet_focal.py',
    'mmseg::_base_/datasets/cityscapes.py',
    '_base_/schedule_160k.py',
    '_base_/tta.py',
    'mmseg::_base_/default_runtime.py',
]

data_preprocessor = dict(size={{_base_.crop_size}})
model = dict(data_preprocessor=data_preprocessor, backbone=dict(drop_path_rate=0.3))
tta_pipeline = {{_base_.multi_scale.cityscapes}}
