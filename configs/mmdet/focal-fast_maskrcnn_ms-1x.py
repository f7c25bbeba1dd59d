# Focal-fast-T, the authors' second version with the closest keys, in place of Focal-T. It has the
# settings of their ImageNet model (128 keys a level, overlapping patches); they published no
# detector with it and no settings for one.
_base_ = 'focal_maskrcnn_ms-1x.py'

model = dict(
    backbone=dict(_delete_=True, type='FocalTransformerFast', arch='tiny', drop_path_rate=0.2)
)
