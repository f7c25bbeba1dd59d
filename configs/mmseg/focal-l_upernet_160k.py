# A recipe: no weights of Focal-L were released. It begins with Swin-L of ImageNet-22K; the authors
# are reported to have tuned theirs on ImageNet-1K in between, as focal-l_in1k_from-swin.py does.
# Crops of 640 x 640 pixels.
_base_ = [
    '_base_/upernet_focal.py',
    'mmseg::_base_/datasets/ade20k_640x640.py',
    '_base_/schedule_160k.py',
    '_base_/tta.py',
    'mmseg::_base_/default_runtime.py',
]

data_preprocessor = dict(size={{_base_.crop_size}})
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(
        arch='large',
        downsample='merging',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint={{_base_.swin_checkpoints.large}}),
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536], num_classes=150),
    auxiliary_head=dict(in_channels=768, num_classes=150),
)
train_dataloader = dict(batch_size=2)
tta_pipeline = {{_base_.multi_scale.ade20k_640x640}}
