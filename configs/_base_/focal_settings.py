# The backbones that detectors and segmenters choose from, apart from focal_backbone.py for configs
# whose bases have imports of their own.
_base_ = 'weights.py'

focal = dict(
    _delete_=True,
    type='FocalTransformer',
    arch='tiny',
    # Wider than (7, 5, 3, 1) of the ImageNet models, for images of 800 instead of 224 pixels.
    focal_windows=(15, 13, 9, 7),
    drop_path_rate=0.2,
    init_cfg=dict(type='Pretrained', checkpoint={{_base_.checkpoints.tiny}}),
)
# Focal-B in the place of Focal-T, in detectors.
focal_b = dict(
    arch='base', drop_path_rate=0.3, init_cfg=dict(checkpoint={{_base_.checkpoints.base}})
)
# For detectors whose finest map has a stride of 8 pixels.
focal_from_stride_8 = dict(**focal, out_indices=(1, 2, 3))
# For Mask2Former, as its recipes have Swin-T.
focal_mask2former = dict(focal, drop_path_rate=0.3)

# What Swin Transformer's weights fit into, patch merging included.
from_swin = dict(downsample='merging', init_cfg=dict(checkpoint={{_base_.swin_checkpoints.tiny}}))
