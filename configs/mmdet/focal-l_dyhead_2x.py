# A recipe: no weights of Focal-L were released. It begins with Swin-L of ImageNet-22K; the authors
# are reported to have tuned theirs on ImageNet-1K in between, as focal-l_in1k_from-swin.py does.
# Twelve epochs of each image twice.
_base_ = [
    '_base_/dyhead_focal-l.py',
    '_base_/coco_detection_ms_2000.py',
    '_base_/schedule_1x.py',
    '_base_/tta_dyhead.py',
    'mmdet::_base_/default_runtime.py',
]

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=5e-5))
