# A small Focal Transformer for few photographs and no pretrained weights; all but its size is that
# of Focal-T, with the windows of the classifiers.
small_backbone = dict(
    _delete_=True,
    type='FocalTransformer',
    arch=dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)),
    drop_path_rate=0.0,
)
small_backbone_channels = [32, 64, 128, 256]
