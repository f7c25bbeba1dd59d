# Photographs of blood: ATSS with Focal and with Swin, on the test split.
_base_ = ['../../../configs/mmdet/focal_atss_bccd.py', 'swin.py']

comparison = dict(
    title='BCCD: ATSS from scratch',
    variants={'Focal': {}, 'Swin': {'model.backbone': {{_base_.swin}}}},
    against=['Swin'],
    metrics={'coco/bbox_mAP': 'box AP', 'coco/bbox_mAP_50': 'box AP at IoU 0.5'},
    seeds=3,
    tests=True,
)
