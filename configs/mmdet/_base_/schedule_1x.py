# 12 epochs with batches of 16 = 8 GPUs x 2 images; the rate drops at epochs 8 and 11.
_base_ = ['mmdet::_base_/schedules/schedule_1x.py', '../../_base_/no_decay.py']

optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg={{_base_.norms_and_position_biases}},
)
