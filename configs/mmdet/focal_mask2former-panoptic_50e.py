# Mask2Former for panoptic segmentation with Focal-T, no published figure with Focal. mmdet's
# recipe of 50 epochs for Swin-T. mmdet reads and scores panoptic maps with a package that it does
# not require: pip install git+https://github.com/cocodataset/panopticapi.git
_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    '../_base_/focal_backbone.py',
    '../_base_/no_decay.py',
]

model = dict(
    backbone={{_base_.focal_mask2former}},
    panoptic_head=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg={{_base_.backbone_at_a_tenth}})
