# Swin Transformer as large as configs/_base_/small_backbone.py, of mmdet or mmseg.
swin = dict(
    _delete_=True,
    type='SwinTransformer',
    embed_dims=32,
    depths=(2, 2, 2, 2),
    num_heads=(1, 2, 4, 8),
    drop_path_rate=0.0,
)
