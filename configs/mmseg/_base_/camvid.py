# CamVid, street images of 480x360 pixels with labels of 11 classes: 367 to train on, 101 to
# validate with and 233 to test on. `python tools/prepare_dataset.py camvid FOLDER` lays it out.
_base_ = 'mmseg::_base_/datasets/ade20k.py'

data_root = 'data/camvid'
metainfo = dict(
    classes=(
        'sky',
        'building',
        'pole',
        'road',
        'pavement',
        'tree',
        'sign',
        'fence',
        'car',
        'pedestrian',
        'cyclist',
    ),
    palette=[
        [128, 128, 128],
        [128, 0, 0],
        [192, 192, 128],
        [128, 64, 128],
        [0, 0, 192],
        [128, 128, 0],
        [192, 128, 128],
        [64, 64, 128],
        [64, 0, 128],
        [64, 64, 0],
        [0, 128, 192],
    ],
)
crop_size = (256, 256)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
splits = {
    name: dict(
        type='BaseSegDataset',
        data_root=data_root,
        ann_file=f'{name}.txt',  # names of images, with their suffix
        data_prefix=dict(img_path=f'img_dir/{name}', seg_map_path=f'label_maps/{name}'),
        img_suffix='',
        seg_map_suffix='.png',
        metainfo=metainfo,
        pipeline=train_pipeline if name == 'train' else test_pipeline,
    )
    for name in ('train', 'val', 'test')
}
train_dataloader = dict(batch_size=4, num_workers=1, dataset=splits['train'])
val_dataloader = dict(batch_size=4, num_workers=1, dataset=splits['val'])
test_dataloader = dict(batch_size=4, num_workers=1, dataset=splits['test'])
