# RepPointsV2 with Focal-T, BiFPN and quality focal loss.
_base_ = 'retinanet_focal.py'

custom_imports = dict(imports=['mmfocal', 'mmfocal.detection'], allow_failed_imports=False)

model = dict(
    type='RepPointsV2Detector',
    neck=dict(
        _delete_=True, type='BiFPN', in_channels=[192, 384, 768], out_channels=256, num_outs=5
    ),
    bbox_head=dict(_delete_=True, type='RepPointsV2Head', num_classes=80, in_channels=256),
    train_cfg=dict(
        _delete_=True,
        init=dict(assigner=dict(type='PointAssigner', scale=4, pos_num=1)),
        refine=dict(assigner=dict(type='ATSSAssigner', topk=9)),
    ),
    test_cfg=dict(nms=dict(iou_threshold=0.6)),
)
