# Six scales, each also flipped, as ViT-Adapter's HTC++ has them; Focal's own were not published.
tta_model = dict(
    type='InstanceTTAModel',
    # COCO's AP counts 100 detections of each class, so that those beyond 100 in all matter.
    tta_cfg=dict(nms=dict(type='soft_nms', iou_threshold=0.5, min_score=0.001), max_per_img=1000),
    # What each scale is trusted with.
    object_sizes=[
        ('large',),
        ('large',),
        ('medium', 'large'),
        ('small', 'medium'),
        ('small', 'medium'),
        ('small', 'medium'),
    ],
)
tta_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(3000, short_side), keep_ratio=True)
                for short_side in (600, 800, 1000, 1200, 1400, 1600)
            ],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations', with_bbox=True, with_mask=True)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(
                        'img_id',
                        'img_path',
                        'ori_shape',
                        'img_shape',
                        'scale_factor',
                        'flip',
                        'flip_direction',
                    ),
                )
            ],
        ],
    ),
]
