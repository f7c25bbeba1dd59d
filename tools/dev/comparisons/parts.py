# What comparisons of the parts of focal attention share: backbones that differ in one part each,
# on images of 256 pixels, and a schedule of which every validation is the end of a training.

image_size = (256, 256)
batch_size = 2
# Maps of 256 pixels have 64, 32, 16 and 8 tokens a side: 64, 16, 4 windows, and a single one.
window = dict(
    _delete_=True,
    type='FocalTransformer',
    arch=dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)),
    window_size=8,
    expand_sizes=0,
    focal_levels=1,
    # As Swin Transformer embeds and merges patches, so that attention is all that differs.
    downsample='merging',
    mlp_ratio=3.0,
    drop_path_rate=0.0,
)
ring = dict(expand_sizes=(4, 4, 4, 0))
pooled_cells = dict(focal_levels=2, focal_windows=(7, 5, 3, 1))
swin = dict(
    _delete_=True,
    type='SwinTransformer',
    embed_dims=32,
    depths=(2, 2, 2, 2),
    num_heads=(1, 2, 4, 8),
    window_size=8,
    mlp_ratio=3,
    drop_path_rate=0.0,
)
comparison = dict(
    variants={
        'window': {'model.backbone': window},
        'window and shift': {'model.backbone': dict(**window, use_shift=True)},
        'window and ring': {'model.backbone': {**window, **ring}},
        'window and pooled cells': {'model.backbone': {**window, **pooled_cells}},
        'all (Focal)': {'model.backbone': {**window, **ring, **pooled_cells}},
        'Swin': {'model.backbone': swin},
    },
    against=['Swin', 'window'],
    seeds=5,
    equal_time=True,
)

# Validations from the iteration on that the slowest has reached when the fastest is complete.
iterations = dict(type='IterBasedTrainLoop', max_iters=600, val_begin=360, val_interval=120)
checkpoint = dict(interval=120, max_keep_ckpts=1)
# A constant rate, and weights that are averaged over the last tenth of the iterations: each
# validation shows what a training of that length would have come to, with no run for each. Half of
# the base's rate, which falls, since the whole one made one of the first four runs diverge.
optimizer = dict(lr=1e-3)
warm_up_and_constant = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
]
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='MomentumAnnealingEMA',
        gamma=10,
        momentum=0.01,
        update_buffers=True,
    )
]
