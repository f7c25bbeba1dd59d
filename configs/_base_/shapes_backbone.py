# A small backbone for the embedded data set, instead of Focal-T.
shapes_backbone = dict(
    _delete_=True,
    type='FocalTransformer',
    arch=dict(embed_dims=32, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8)),
    # Maps of 128 pixels have 32, 16, 8 and 4 tokens a side: whole windows, and in the last two
    # stages a single one, around which there is nothing more to see.
    window_size=(8, 8, 8, 4),
    expand_sizes=(3, 3, 0, 0),
    focal_levels=(2, 2, 1, 1),
    focal_windows=(3, 1, 1, 1),
    use_conv_embed=True,
    mlp_ratio=3.0,
    drop_path_rate=0.0,
)
shapes_backbone_channels = [32, 64, 128, 256]
shapes_backbone_from_stride_8 = dict(**shapes_backbone, out_indices=(1, 2, 3))
# For single shapes, 64 pixels a side: maps have 16, 8, 4 and 2 tokens a side.
shapes_backbone_of_classifier = {
    **shapes_backbone,
    'window_size': (8, 8, 4, 2),
    'out_indices': (3,),
}
