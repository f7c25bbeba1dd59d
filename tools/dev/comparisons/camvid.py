# Streets: UPerNet with Focal and with Swin, on the test split.
_base_ = ['../../../configs/mmseg/focal_upernet_camvid.py', 'swin.py']

comparison = dict(
    title='CamVid: UPerNet from scratch',
    variants={'Focal': {}, 'Swin': {'model.backbone': {{_base_.swin}}}},
    against=['Swin'],
    metrics={'mIoU': 'mIoU, %'},
    seeds=3,
    tests=True,
)
