# A recipe: no weights of Focal-L were released. It begins with Swin-L of ImageNet-22K; the authors
# are reported to have tuned theirs on ImageNet-1K in between, as focal-l_in1k_from-swin.py does.
# 16 GPUs with one image each.
_base_ = [
    '_base_/htcpp_focal.py',
    '_base_/coco_semantic_ms_1600.py',
    '_base_/schedule_3x.py',
    '_base_/tta_htcpp.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        arch='large',
        downsample='merging',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint={{_base_.swin_checkpoints.large}}),
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)

# In float32, as ViT-Adapter's HTC++.
optim_wrapper = dict(type='OptimWrapper')
