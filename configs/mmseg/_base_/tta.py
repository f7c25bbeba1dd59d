# Views of multi-scale tests: six ratios of the scale at which images are tested, each also
# flipped, as MMSegmentation 0.x made them for the published results (`img_ratios` of its
# MultiScaleFlipAug). The tta_pipeline of MMSegmentation 1.x takes the same ratios of the size at
# which an image is stored.
multi_scale = {
    name: [
        dict(type='LoadImageFromFile', backend_args=None),
        dict(
            type='TestTimeAug',
            transforms=[
                [
                    dict(type='Resize', scale=(int(long * r), int(short * r)), keep_ratio=True)
                    for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
                ],
                [
                    dict(type='RandomFlip', prob=0.0, direction='horizontal'),
                    dict(type='RandomFlip', prob=1.0, direction='horizontal'),
                ],
                [dict(type='LoadAnnotations')],
                [dict(type='PackSegInputs')],
            ],
        ),
    ]
    for name, (long, short) in dict(
        ade20k=(2048, 512), ade20k_640x640=(2560, 640), cityscapes=(2048, 1024)
    ).items()
}
