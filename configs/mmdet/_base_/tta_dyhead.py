# Six scales, each also flipped. The published result does not say which; these are a guess. At
# most 2000 pixels wide, as in single tests, photographs of 3:2 would not reach 1400.
tta_model = dict(
    type='InstanceTTAModel',
    tta_cfg=dict(nms=dict(type='soft_nms', iou_threshold=0.6, min_score=0.001), max_per_img=100),
)
tta_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(3000, short_side), keep_ratio=True, backend='pillow')
                for short_side in (400, 600, 800, 1000, 1200, 1400)
            ],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations', with_bbox=True)],
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
