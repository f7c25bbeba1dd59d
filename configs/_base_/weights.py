# Files of weights to begin with.

# Classifiers of ImageNet-1K. The authors' links have been reported dead: take PaddleViT's files of
# the same models (docs/weights.md), by --cfg-options model.backbone.init_cfg.checkpoint=FILE.
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
