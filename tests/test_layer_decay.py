"""Layers nearer to the image learn at lower rates."""

import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

import mmfocal.engine.optim.layer_decay  # noqa: F401  registers itself
from mmfocal import FocalTransformer, FocalTransformerFast

ARCH = dict(embed_dims=8, depths=(1, 2, 1, 1), num_heads=(1, 1, 1, 1))
LAYERS = 7  # the embedding, five blocks, and what comes after the backbone


class Model(nn.Module):
    def __init__(self, backbone=FocalTransformer):
        super().__init__()
        self.backbone = backbone(arch=ARCH) if backbone is not None else nn.Linear(2, 2)
        self.head = nn.Linear(4, 4)


def build(model, **paramwise):
    return build_optim_wrapper(
        model,
        dict(
            constructor='LayerDecayOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
            paramwise_cfg=paramwise,
        ),
    )


def rates(model, **paramwise):
    """Learning rate and weight decay by name."""
    groups = build(model, **paramwise).optimizer.param_groups
    found = {id(group['params'][0]): (group['lr'], group['weight_decay']) for group in groups}
    named = dict(model.named_parameters())
    assert len(found) == len(named)
    return {name: found[id(parameter)] for name, parameter in named.items()}


@pytest.mark.parametrize('backbone', [FocalTransformer, FocalTransformerFast])
def test_rates_fall_towards_the_image(backbone):
    found = rates(Model(backbone), layer_decay_rate=0.5)
    expected = {
        'head.weight': 0,
        'backbone.norm0.weight': 0,
        'backbone.stages.3.blocks.0.attn.qkv.weight': 1,
        'backbone.stages.2.blocks.0.norm1.bias': 2,
        'backbone.stages.2.downsample.proj.weight': 2,
        'backbone.stages.1.blocks.1.mlp.fc1.weight': 3,
        'backbone.stages.1.blocks.0.mlp.fc1.weight': 4,
        'backbone.stages.0.blocks.0.mlp.fc2.bias': 5,
        'backbone.patch_embed.proj.weight': LAYERS - 1,
    }
    for name, steps in expected.items():
        assert found[name][0] == 0.5**steps, name
    assert {rate for rate, _ in found.values()} == {0.5**steps for steps in range(LAYERS)}


def test_other_settings_hold_as_well():
    found = rates(
        Model(),
        layer_decay_rate=0.5,
        norm_decay_mult=0.0,
        custom_keys={'head': dict(lr_mult=10.0), 'attn': dict(lr_mult=2.0, decay_mult=0.1)},
    )
    assert found['head.bias'] == (10.0, 0.05)
    assert found['backbone.stages.3.blocks.0.attn.proj.bias'] == (1.0, pytest.approx(0.005))
    assert found['backbone.stages.3.blocks.0.norm2.weight'] == (0.5, 0.0)


def test_frozen_layers_are_left_out():
    model = Model()
    model.backbone.patch_embed.requires_grad_(False)
    groups = build(model, layer_decay_rate=0.5).optimizer.param_groups
    assert min(group['lr'] for group in groups) == 0.5 ** (LAYERS - 2)


@pytest.mark.parametrize('rate', [None, 0.0, 1.5, 'half'])
def test_wrong_rate_is_told(rate):
    with pytest.raises(ValueError, match=f'above 0 and up to 1.*got {rate!r}'):
        build(Model(), layer_decay_rate=rate, norm_decay_mult=1.0)


def test_backbone_without_layers_is_told():
    with pytest.raises(ValueError, match='get_layer_depth, such as FocalTransformer; Model has'):
        build(Model(None), layer_decay_rate=0.5)
