# Weights of the backbone that are free of weight decay, by parts of their names.
no_decay = dict(decay_mult=0.0)
norms_and_position_biases = dict(
    custom_keys={
        'absolute_pos_embed': no_decay,
        'relative_position_bias_table': no_decay,
        'norm': no_decay,
    }
)

# The same for recipes that train the backbone at a tenth of the learning rate. Of the keys that a
# name contains the longest counts: 'norm' would lose to 'backbone'.
tenth = dict(lr_mult=0.1)
tenth_and_no_decay = dict(**tenth, **no_decay)
backbone_at_a_tenth = dict(
    custom_keys={
        'backbone': tenth,
        'backbone.norm': tenth_and_no_decay,
        'patch_embed.norm': tenth_and_no_decay,
        'downsample.norm': tenth_and_no_decay,
        **{f'norm{i}.{part}': tenth_and_no_decay for i in (1, 2) for part in ('weight', 'bias')},
        'absolute_pos_embed': tenth_and_no_decay,
        'relative_position_bias_table': tenth_and_no_decay,
    }
)
