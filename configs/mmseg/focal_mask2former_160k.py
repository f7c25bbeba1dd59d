# Mask2Former with Focal-T on ADE20K, no published figure with Focal. mmseg's recipe for Swin-T.
_base_ = [
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    '../_base_/focal_settings.py',
    '../_base_/no_decay.py',
    '_base_/tta.py',
]

custom_imports = dict(imports=['mmdet.models', 'mmfocal'])

model = dict(
    backbone={{_base_.focal_mask2former}},
    decode_head=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg={{_base_.backbone_at_a_tenth}})
tta_pipeline = {{_base_.multi_scale.ade20k}}
