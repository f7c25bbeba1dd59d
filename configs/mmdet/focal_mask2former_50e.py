# Mask2Former for instances with Focal-T, no published figure with Focal. mmdet's recipe of 50
# epochs for Swin-T: images of 1024 x 1024 pixels after large-scale jitter.
_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    '../_base_/focal_backbone.py',
    '../_base_/no_decay.py',
]

model = dict(
    backbone={{_base_.focal_mask2former}},
    panoptic_head=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg={{_base_.backbone_at_a_tenth}})
