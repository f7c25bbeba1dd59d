# The pyramid and the class loss of the RepPointsV2 paper. No published result of Focal has them.
_base_ = 'focal_reppointsv2_3x.py'

model = dict(
    neck=dict(
        _delete_=True,
        type='FPN',
        in_channels=[192, 384, 768],
        out_channels=256,
        add_extra_convs='on_input',
        num_outs=5,
        norm_cfg=dict(type='GN', num_groups=32, requires_grad=True),
    ),
    bbox_head=dict(loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25)),
)
