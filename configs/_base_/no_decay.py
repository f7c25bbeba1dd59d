# Weights of the backbone that are free of weight decay, by parts of their names.
no_decay = dict(decay_mult=0.0)
norms_and_position_biases = dict(
    custom_keys={
        'absolute_pos_embed': no_decay,
        'relative_position_bias_table': no_decay,
        'norm': no_decay,
    }
)
