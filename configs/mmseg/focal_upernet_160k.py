_base_ = [
    '_base_/upernet_focal.py',
    'mmseg::_base_/datasets/ade20k.py',
    '_base_/schedule_160k.py',
    '_base_/tta.py',
    'mmseg::_base_/default_runtime.py',
]

data_preprocessor = dict(size={{_base_.crop_size}})
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(drop_path_rate=0.3),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
train_dataloader = dict(batch_size=2)
tta_pipeline = {{_base_.multi_scale.ade20k}}
