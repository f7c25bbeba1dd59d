# Which part of focal attention Mask R-CNN gains by, on the embedded data set.
_base_ = ['../../../configs/mmdet/focal_maskrcnn_shapes.py', 'parts.py']

comparison = dict(
    title='Parts of focal attention: Mask R-CNN',
    metrics={'coco/bbox_mAP': 'box AP', 'coco/segm_mAP': 'mask AP'},
)

resize = dict(type='Resize', scale={{_base_.image_size}}, keep_ratio=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    resize,
    {{_base_.flips}},
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(batch_size={{_base_.batch_size}}, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# Shapes are twice as large in pixels as those that the base is for.
extractor = dict(finest_scale=40)
model = dict(
    rpn_head=dict(anchor_generator=dict(scales=[6, 9])),
    roi_head=dict(bbox_roi_extractor=extractor, mask_roi_extractor=extractor),
)

train_cfg = {{_base_.iterations}}
optim_wrapper = dict(optimizer={{_base_.optimizer}})
param_scheduler = {{_base_.warm_up_and_constant}}
default_hooks = dict(checkpoint={{_base_.checkpoint}})
