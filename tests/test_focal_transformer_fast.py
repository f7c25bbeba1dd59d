"""Focal-fast, the second version of the backbone: sizes, settings and compilation."""

import pytest
import torch
from mmengine.registry import MODELS
from test_focal_transformer import (
    ONE_BLOCK,
    TINY,
    compiler_and_eager_agree,
    needs_compiler,
    shapes_come_without_memory,
    train_in_whole_graphs,
)

from mmfocal import FocalTransformerFast
from mmfocal.models.focal_self_attention import FocalSelfAttention


def small(**kwargs):
    torch.manual_seed(0)
    return FocalTransformerFast(**{'arch': TINY, 'top_k': 20, 'drop_path_rate': 0.0, **kwargs})


SETTINGS = {
    'published': {},
    'plain-patches': dict(use_conv_embed=False, top_k=128),
    'shift': dict(use_shift=True, layer_scale_init_value=0.1),
    'three-levels': dict(focal_levels=(3, 2, 2, 1), pool_method='mean'),
    'local': dict(focal_levels=1),
    'some-pooled': dict(focal_stages=(0, 2), window_size=(4, 5, 6, 7)),
    'dropped-and-checkpointed': dict(attn_drop_rate=0.1, drop_rate=0.1, with_cp=True),
}


@pytest.mark.parametrize('name', SETTINGS)
def test_maps_have_their_strides_and_every_parameter_gets_a_gradient(name):
    model = small(**SETTINGS[name]).train()
    outs = model(torch.rand(2, 3, 250, 299))
    shapes = [(2, 8, 63, 75), (2, 16, 32, 38), (2, 32, 16, 19), (2, 64, 8, 10)]
    assert [tuple(out.shape) for out in outs] == shapes
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), key


@pytest.mark.parametrize('size', [(1, 1), (1, 300), (33, 5), (97, 131)])
@pytest.mark.parametrize('name', ['published', 'shift', 'three-levels'])
def test_any_image_size_with_the_same_result_on_all_backends(size, name):
    model, image = small(**SETTINGS[name]).double().eval(), torch.rand(2, 3, *size).double()
    results = []
    for backend in ('reference', 'gather_sdpa'):
        for module in model.modules():
            if isinstance(module, FocalSelfAttention):
                module.backend = backend
        outs = model(image)
        score = sum(out.square().sum() for out in outs)
        # On a map of one window, some parts of the bias move all scores alike.
        grads = torch.autograd.grad(score, list(model.parameters()), materialize_grads=True)
        results.append([*outs, *grads])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('name', sorted({*SETTINGS} - {'dropped-and-checkpointed'}))
def test_without_memory_there_are_shapes(name):
    shapes_come_without_memory(small, SETTINGS[name])


def test_images_of_a_batch_do_not_see_each_other():
    model, batch = small().eval(), torch.rand(3, 3, 64, 80)
    together = model(batch)
    for i in range(3):
        for whole, single in zip(together, model(batch[i : i + 1]), strict=True):
            torch.testing.assert_close(whole[i : i + 1], single, rtol=1e-4, atol=1e-5)


def test_registered_by_name_with_any_number_of_stages():
    arch = dict(embed_dims=8, depths=(1, 1), num_heads=(1, 2))
    settings = dict(arch=arch, focal_stages=(0, 1), out_indices=(0, 1))
    model = MODELS.build(dict(type='FocalTransformerFast', **settings))
    assert len(model(torch.rand(1, 3, 40, 40))) == 2


@pytest.mark.parametrize(
    'arch, count', [('tiny', 30_220_564), ('small', 51_526_540), ('base', 91_186_824)]
)
def test_parameters_of_the_published_classifiers(arch, count):
    # The authors' README gives 30.2, 51.5 and 91.2 million.
    model = FocalTransformerFast(arch, out_indices=(3,))
    head = 1000 * (model.norm3.normalized_shape[0] + 1)
    assert sum(p.numel() for p in model.parameters()) + head == count


@pytest.mark.parametrize(
    'kwargs, error, message',
    [
        (dict(focal_windows=7), TypeError, 'focal_windows: settings of FocalTransformer that'),
        (dict(border='mask', expand_sizes=3), TypeError, 'expand_sizes, border: settings of'),
        (dict(top_k=0), ValueError, 'stage 0 of FocalTransformerFast: top_k must be at least 1'),
        (dict(top_k='64'), TypeError, "stage 0 .*top_k must be an int, got '64' of type str"),
        (dict(focal_levels=5), ValueError, 'stage 0 .*allows at most 4 levels, got 5'),
        (dict(topk=64), TypeError, "unexpected keyword argument 'topk'"),
        (dict(pool_method='median'), ValueError, "pool_method must be one of .* got 'median'"),
        (dict(stored_map_sizes=(None,)), ValueError, 'stored_map_sizes must .*one entry'),
        (
            dict(stored_map_sizes=(3, 3, 3, 3)),
            ValueError,
            r'stored_map_sizes .*\(height, width\).* \(3',
        ),
    ],
)
def test_wrong_setting_is_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        small(**kwargs)


@needs_compiler
def test_compiled_backbone_is_one_graph_and_the_eager_one():
    arch = dict(embed_dims=8, depths=(2,), num_heads=(2,))
    model = small(arch=arch, use_shift=True, focal_stages=(0,), out_indices=(0,))
    compiled = torch.compile(model, fullgraph=True)
    compiler_and_eager_agree(model, compiled, torch.randn(2, 3, 60, 100))


def test_compiled_blocks_are_whole_graphs_in_training():
    train_in_whole_graphs(small(**ONE_BLOCK))


@needs_compiler
def test_compiled_blocks_serve_every_size():
    settings = dict(arch=dict(embed_dims=8, depths=(1,), num_heads=(2,)), out_indices=(0,))
    settings |= dict(focal_stages=(0,))
    model, compiled = (small(**settings, compile_blocks=flag) for flag in (False, True))
    for size in ((60, 100), (96, 80), (33, 65)):
        compiler_and_eager_agree(model, compiled, torch.randn(2, 3, *size))
