# DINO with Focal-T and four feature levels, no published figure with Focal. mmdet's recipe of 12
# epochs; norms and position biases of the backbone are free of weight decay, as everywhere here.
_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    '../_base_/focal_backbone.py',
    '../_base_/no_decay.py',
]

model = dict(
    backbone={{_base_.focal_from_stride_8}},
    neck=dict(in_channels=[192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg={{_base_.backbone_at_a_tenth}})
