# The backbones that detectors and segmenters choose from, and the weights that they begin with.
custom_imports = dict(imports=['mmfocal'], allow_failed_imports=False)

# Classifiers of ImageNet-1K. The authors' links have been reported dead: docs/weights.md says what
# to do then, and how to name a file of your own.
authors = 'https://projects4jw.blob.core.windows.net/model/focal-transformer/imagenet1k'
checkpoints = dict(
    tiny=f'{authors}/focal-tiny-is224-ws7.pth',
    small=f'{authors}/focal-small-is224-ws7.pth',
    base=f'{authors}/focal-base-is224-ws7.pth',
)
swin_authors = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0'
swin_checkpoints = dict(
    tiny=f'{swin_authors}/swin_tiny_patch4_window7_224.pth',
    # Of ImageNet-22K. The authors made Focal-L out of it, whose own weights were never released.
    large=f'{swin_authors}/swin_large_patch4_window7_224_22k.pth',
)

focal = dict(
    _delete_=True,
    type='FocalTransformer',
    arch='tiny',
    # Wider than (7, 5, 3, 1) of the ImageNet models, for images of 800 instead of 224 pixels.
    focal_windows=(15, 13, 9, 7),
    drop_path_rate=0.2,
    init_cfg=dict(type='Pretrained', checkpoint=checkpoints['tiny']),
)
# Focal-B in the place of Focal-T, in detectors.
focal_b = dict(arch='base', drop_path_rate=0.3, init_cfg=dict(checkpoint=checkpoints['base']))
# For detectors whose finest map has a stride of 8 pixels.
focal_from_stride_8 = dict(**focal, out_indices=(1, 2, 3))

# What Swin Transformer's weights fit into, patch merging included.
from_swin = dict(downsample='merging', init_cfg=dict(checkpoint=swin_checkpoints['tiny']))
