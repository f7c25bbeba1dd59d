# Training images at one of 11 scales, half of the time after a random crop, as in DETR, Sparse
# R-CNN and Swin Transformer.
scales = [(1333, short_side) for short_side in range(480, 801, 32)]

multi_scale_crop = dict(
    type='RandomChoice',
    transforms=[
        [dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)],
        [
            dict(
                type='RandomChoiceResize',
                scales=[(1333, 400), (1333, 500), (1333, 600)],
                keep_ratio=True,
            ),
            dict(
                type='RandomCrop',
                crop_type='absolute_range',
                # Each side is drawn between these two lengths in pixels.
                crop_size=(384, 600),
                allow_negative_crop=True,
            ),
            dict(type='RandomChoiceResize', scales=scales, keep_ratio=True),
        ],
    ],
)
