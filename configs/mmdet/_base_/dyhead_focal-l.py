# DyHead with Focal-L: ATSS with six DyHead blocks in place of the convolutions of its head.
_base_ = 'atss_focal.py'

custom_imports = dict(imports=['mmfocal', 'mmfocal.detection'], allow_failed_imports=False)

model = dict(
    data_preprocessor=dict(pad_size_divisor=128),
    backbone=dict(
        arch='large',
        downsample='merging',
        init_cfg=dict(checkpoint={{_base_.swin_checkpoints.large}}),
    ),
    neck=[
        dict(
            type='FPN',
            in_channels=[384, 768, 1536],
            out_channels=256,
            start_level=0,
            add_extra_convs='on_output',
            num_outs=5,
        ),
        # Offsets start at random, as in the official implementation.
        dict(
            type='DyHead', in_channels=256, out_channels=256, num_blocks=6, zero_init_offset=False
        ),
    ],
    bbox_head=dict(stacked_convs=0, pred_kernel_size=1, anchor_generator=dict(center_offset=0.5)),
)
