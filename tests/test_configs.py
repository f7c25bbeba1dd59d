"""Every config loads, builds, learns from a batch and detects; so does a user's own."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

CONFIGS = Path(__file__).parents[1] / 'configs'
LEAVES = sorted(path for path in CONFIGS.glob('*/*.py'))

# Parameters in millions; the published 48.8, 71.2 and 110.0 are within 0.5 %.
PARAMETERS = {'focal': 48.72, 'focal-s': 71.00, 'focal-b': 109.66}

USER_CONFIG = """
_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
custom_imports = dict(imports=['mmfocal'])
model = dict(
    backbone=dict(
        _delete_=True,
        type='FocalTransformer',
        arch=dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)),
        out_indices=(1, 2, 3),
    ),
    neck=dict(in_channels=[16, 32, 64], start_level=0),
)
"""


def build_detector(config):
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    model = MODELS.build(config.model)
    model.init_weights()
    return model


def assert_learns_and_detects(model):
    """One training step and one inference on two noise images with random objects."""
    from mmdet.testing import demo_mm_inputs

    torch.manual_seed(0)
    inputs = demo_mm_inputs(
        2,
        [(3, 70, 96), (3, 96, 61)],
        num_items=[3, 0],
        num_classes=3,
        with_mask=True,
        with_semantic=getattr(getattr(model, 'roi_head', None), 'with_semantic', False),
    )
    model.train()
    losses = model(**model.data_preprocessor(inputs, training=True), mode='loss')
    loss, _ = model.parse_losses(losses)
    assert loss.isfinite()
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name

    model.eval()
    with torch.no_grad():
        results = model(**model.data_preprocessor(inputs, training=False), mode='predict')
    assert len(results) == 2
    for result in results:
        assert result.pred_instances.bboxes.isfinite().all()


@pytest.mark.parametrize('path', LEAVES, ids=[path.stem for path in LEAVES])
def test_config_learns_and_detects(path):
    config = Config.fromfile(path)
    assert Config.fromstring(config.pretty_text, '.py')._cfg_dict == config._cfg_dict
    model = build_detector(config)
    size = path.stem.split('_')[0]
    if '_maskrcnn_' in path.stem and not path.stem.endswith('_shapes'):
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert millions == pytest.approx(PARAMETERS[size], abs=0.005)
    assert_learns_and_detects(model)


@pytest.mark.parametrize('schedule, epochs, drops', [('1x', 12, [8, 11]), ('3x', 36, [27, 33])])
def test_schedules_are_the_published_ones(schedule, epochs, drops):
    config = Config.fromfile(CONFIGS / f'mmdet/focal_maskrcnn_{schedule}.py')
    assert config.train_cfg.max_epochs == epochs
    warm_up, steps = config.param_scheduler
    assert (warm_up.type, warm_up.end, warm_up.by_epoch) == ('LinearLR', 500, False)
    assert (steps.type, steps.milestones, steps.end) == ('MultiStepLR', drops, epochs)
    assert config.auto_scale_lr.base_batch_size == 8 * config.train_dataloader.batch_size == 16
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 0.05)
    transforms = [step.type for step in config.train_dataloader.dataset.pipeline]
    assert transforms[-2:] == ['RandomChoice', 'PackDetInputs']


def test_norms_and_position_biases_are_free_of_weight_decay():
    config = Config.fromfile(CONFIGS / 'mmdet/focal_maskrcnn_1x.py')
    model = build_detector(config)
    config.optim_wrapper.type = 'OptimWrapper'
    wrapper = Runner.build_optim_wrapper(
        type('Builder', (), dict(model=model)), config.optim_wrapper
    )
    free = {id(p) for g in wrapper.param_groups if g['weight_decay'] == 0 for p in g['params']}
    names = {name for name, p in model.named_parameters() if id(p) in free}
    assert len(names) == sum('norm' in n or 'bias_table' in n for n, _ in model.named_parameters())
    assert {name.split('.')[0] for name in names} == {'backbone'}


def test_users_config_of_ten_lines_for_a_detector_of_theirs(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(USER_CONFIG)
    assert_learns_and_detects(build_detector(Config.fromfile(path)))
