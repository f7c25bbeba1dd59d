# BCCD, photographs of blood of 640x480 pixels with boxes: 205 to train on, 87 to validate with and
# 72 to test on. `python tools/prepare_dataset.py bccd FOLDER` lays it out.
_base_ = 'mmdet::_base_/datasets/coco_detection.py'

data_root = 'data/bccd/'
classes = ('Platelets', 'RBC', 'WBC')
resize = dict(type='Resize', scale=(320, 240), keep_ratio=True)  # half of the width and height

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    resize,
    # Blood has no side that is up.
    dict(
        type='RandomFlip',
        prob=[0.25, 0.25, 0.25],
        direction=['horizontal', 'vertical', 'diagonal'],
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
splits = {
    name: dict(
        data_root=data_root,
        ann_file=f'coco/{name}.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=classes),
        pipeline=train_pipeline if name == 'train' else test_pipeline,
    )
    for name in ('train', 'val', 'test')
}

train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=splits['train'],
)
val_dataloader = dict(batch_size=8, num_workers=1, dataset=splits['val'])
test_dataloader = dict(batch_size=8, num_workers=1, dataset=splits['test'])
val_evaluator = dict(ann_file=data_root + 'coco/val.json')
test_evaluator = dict(ann_file=data_root + 'coco/test.json')
