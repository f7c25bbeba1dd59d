"""The backbone: sizes, settings, freezing, and equality with Swin where both are the same."""

import copy
import re
import shutil

import pytest
import torch
from mmengine.optim import DefaultOptimWrapperConstructor

from mmfocal import FocalTransformer, FocalTransformerFast
from mmfocal.geometry import FocalGeometry
from tools.dev.count_graphs import count_graphs, limit_was_hit

TINY = dict(embed_dims=8, depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 4))


def small(**kwargs):
    torch.manual_seed(0)
    return FocalTransformer(**{'arch': TINY, 'drop_path_rate': 0.0, **kwargs})


SETTINGS = {
    'published': {},
    'dense': dict(focal_windows=(15, 13, 9, 7)),
    'three-levels': dict(focal_levels=(3, 3, 2, 1), focal_windows=5),
    'masked-border': dict(border='mask', use_shift=True),
    'shift': dict(use_shift=True),
    'conv-pool': dict(pool_method='conv'),
    'max-pool': dict(pool_method='max', expand_layer='even'),
    'mean-pool': dict(pool_method='mean', expand_layer='odd', focal_stages=(0, 2)),
    'no-pool': dict(pool_method='none'),
    'local': dict(focal_levels=1, expand_sizes=0),
    'conv-embed': dict(use_conv_embed=True, use_pre_norm=True),
    'layer-scale': dict(layer_scale_init_value=0.1),
    'position-embedding': dict(use_abs_pos_embed=True, pretrain_img_size=(64, 32)),
    'plain': dict(qkv_bias=False, qk_scale=0.5, patch_norm=False, window_size=(4, 5, 6, 7)),
    'drop': dict(drop_rate=0.1, attn_drop_rate=0.1),
    'checkpointed': dict(with_cp=True, drop_rate=0.1),
}


@pytest.mark.parametrize('name', SETTINGS)
def test_maps_have_their_strides_and_every_parameter_gets_a_gradient(name):
    model = small(**SETTINGS[name]).train()
    # Large enough for two windows along each side in the last stage.
    outs = model(torch.rand(2, 3, 250, 299))
    assert [tuple(out.shape) for out in outs] == [
        (2, 8, 63, 75),
        (2, 16, 32, 38),
        (2, 32, 16, 19),
        (2, 64, 8, 10),
    ]
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), key


@pytest.mark.parametrize('size', [(1, 1), (1, 300), (33, 5), (64, 64), (97, 131)])
@pytest.mark.parametrize('name', ['published', 'masked-border', 'conv-embed', 'three-levels'])
def test_any_image_size(size, name):
    model = small(**SETTINGS[name]).eval()
    outs = model(torch.rand(1, 3, *size))
    for out, stride in zip(outs, (4, 8, 16, 32), strict=True):
        assert out.shape[-2:] == (-(-size[0] // stride), -(-size[1] // stride))
        assert out.isfinite().all()


def shapes_come_without_memory(make, settings):
    """Of a small backbone, forward and backward."""
    with torch.device('meta'):
        outs = make(**settings).train()(torch.empty(2, 3, 61, 90))
        sum(out.sum() for out in outs).backward()
    sizes = [tuple(out.shape) for out in outs]
    assert sizes == [(2, 8, 16, 23), (2, 16, 8, 12), (2, 32, 4, 6), (2, 64, 2, 3)]
    assert all(out.is_meta for out in outs)


@pytest.mark.parametrize('name', sorted({*SETTINGS} - {'drop'}))  # which takes the reference
def test_without_memory_there_are_shapes(name):
    shapes_come_without_memory(small, SETTINGS[name])
    assert not FocalGeometry(window_size=7).keys(16, 23).tables().index.is_meta


def test_images_of_a_batch_do_not_see_each_other():
    model = small().eval()
    batch = torch.rand(3, 3, 64, 80)
    together = model(batch)
    for i in range(3):
        for whole, single in zip(together, model(batch[i : i + 1]), strict=True):
            torch.testing.assert_close(whole[i : i + 1], single, rtol=1e-4, atol=1e-5)


def test_only_the_stages_asked_for_are_built_and_returned():
    model = small(out_indices=(1, 2))
    outs = model(torch.rand(1, 3, 64, 64))
    assert [out.shape[1] for out in outs] == [16, 32]
    names = {name.split('.')[0] for name in model.state_dict()}
    assert names == {'patch_embed', 'stages', 'norm1', 'norm2'}
    assert len(model.stages) == 3 and model.stages[2].downsample is None


def test_outputs_are_normalised_each_by_its_own_norm():
    model, image = small().eval(), torch.rand(1, 3, 64, 64)
    plain = copy.deepcopy(model)
    plain.out_norm = False
    for i, (out, raw) in enumerate(zip(model(image), plain(image), strict=True)):
        expected = getattr(model, f'norm{i}')(raw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('kind', [FocalTransformer, FocalTransformerFast])
@pytest.mark.parametrize('out_norm', [True, False])
def test_outputs_are_described_as_they_are(kind, out_norm):
    model = kind(TINY, out_indices=(1, 3), patch_size=2, out_norm=out_norm, use_conv_embed=False)
    seen = {}
    for each in model.feature_info:
        name = each['module']
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output})
        )
    outs = model.eval()(torch.rand(1, 3, 64, 96))
    assert model.num_features == [out.shape[1] for out in outs] == [16, 64]
    for out, each in zip(outs, model.feature_info, strict=True):
        assert out.shape[1:] == (
            each['num_chs'],
            64 // each['reduction'],
            96 // each['reduction'],
        )
        hooked = seen[each['module']]
        hooked = hooked if out_norm else hooked[0]
        assert torch.equal(hooked.permute(0, 3, 1, 2), out)


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 3])
def test_frozen_stages(frozen_stages):
    model = small(
        frozen_stages=frozen_stages, drop_rate=0.5, use_abs_pos_embed=True, pretrain_img_size=64
    )
    assert model.train() is model
    frozen = ['patch_embed', 'absolute_pos_embed'] if frozen_stages >= 0 else []
    frozen += [f'stages.{i}.' for i in range(frozen_stages)]
    frozen += [f'norm{i}.' for i in range(frozen_stages)]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith(tuple(frozen))), name
    for i, stage in enumerate(model.stages):
        assert all(module.training == (i >= frozen_stages) for module in stage.modules())
    assert model.patch_embed.training == model.drop_after_pos.training == (frozen_stages < 0)


def test_checkpointing_changes_no_gradient():
    image = torch.rand(1, 3, 64, 64)
    grads = []
    for with_cp in (False, True):
        model = small(with_cp=with_cp)
        sum(out.sum() for out in model(image)).backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for kept, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(kept, recomputed)


def test_position_embedding_of_its_own_size_is_added_as_it_is():
    model = small(use_abs_pos_embed=True, pretrain_img_size=(64, 32)).eval()
    plain = small().eval()
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing and unexpected == ['absolute_pos_embed']
    image = torch.rand(1, 3, 64, 32)
    with torch.no_grad():
        patches = plain.patch_embed(image) + model.absolute_pos_embed.permute(0, 2, 3, 1)
        expected, _ = plain.stages[0](patches)
    torch.testing.assert_close(model(image)[0], plain.norm0(expected).permute(0, 3, 1, 2))


def test_drop_path_grows_linearly_over_all_blocks():
    model = small(drop_path_rate=0.5)
    rates = [getattr(b.drop_path, 'drop_prob', 0) for s in model.stages for b in s.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize('rate', ['drop_rate', 'attn_drop_rate', 'drop_path_rate'])
def test_drop_rates_are_for_training_alone(rate):
    model, image = small(**{rate: 0.9}), torch.rand(1, 3, 32, 32)
    assert torch.equal(model.eval()(image)[3], model(image)[3])
    model.train()
    assert not all(torch.equal(model(image)[3], model(image)[3]) for _ in range(5))


def test_autocast_keeps_close_to_float32():
    model, image = small().eval(), torch.rand(1, 3, 64, 64)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outs = model(image)
    for out, exact in zip(outs, model(image), strict=True):
        assert (out.float() - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize('shift', [False, True])
def test_one_level_without_ring_is_the_window_attention_of_swin(shift):
    swin = pytest.importorskip('mmdet.models.backbones.swin')
    theirs = swin.ShiftWindowMSA(16, 4, window_size=7, shift_size=3 if shift else 0).double()
    model = FocalTransformer(
        arch=dict(embed_dims=16, depths=(2,), num_heads=(4,)),
        focal_levels=1,
        focal_windows=1,
        expand_sizes=0,
        use_shift=shift,
        focal_stages=(0,),
        out_indices=(0,),
    ).double()
    ours = model.stages[0].blocks[1].attn
    table = theirs.w_msa.relative_position_bias_table
    table.data.normal_()
    ours.load_state_dict(
        {
            'position_bias.relative_position_bias_table': table,
            **{f'qkv.{k}': v for k, v in theirs.w_msa.qkv.state_dict().items()},
            **{f'proj.{k}': v for k, v in theirs.w_msa.proj.state_dict().items()},
        }
    )
    x = torch.randn(2, 17, 23, 16, dtype=torch.float64)
    expected = theirs(x.flatten(1, 2), (17, 23)).unflatten(1, (17, 23))
    torch.testing.assert_close(ours(x, ours.geometry.keys(17, 23)), expected)


def test_optimizer_rules_find_parameters_by_name():
    model = small(use_abs_pos_embed=True, pretrain_img_size=64)
    no_decay = dict(decay_mult=0.0)
    custom_keys = {
        'absolute_pos_embed': no_decay,
        'relative_position_bias_table': no_decay,
        'norm': no_decay,
    }
    optimizer = DefaultOptimWrapperConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05)),
        dict(custom_keys=custom_keys),
    )(model)
    decayed = {id(g['params'][0]) for g in optimizer.param_groups if g['weight_decay'] > 0}
    free = {name for name, p in model.named_parameters() if id(p) not in decayed}
    assert free == {
        name
        for name, _ in model.named_parameters()
        if 'norm' in name or 'position_bias_table' in name or 'absolute' in name
    }
    assert sum('_to_neighbors' in name for name in free) == 6
    assert sum('_to_windows.0' in name for name in free) == 6


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(arch='huge'), "arch must be one of .* got 'huge'"),
        (dict(arch=dict(embed_dims=8)), 'arch must be one of .* exactly the keys'),
        (dict(arch=dict(embed_dims=8, depths=(1, 1), num_heads=(3, 3))), 'divides its 8 channels'),
        (dict(arch=dict(embed_dims=8, depths=(1,), num_heads=(1, 1))), 'one value per stage'),
        (dict(focal_windows=(7, 5, 3)), 'focal_windows must be one value or a sequence of 4'),
        (dict(focal_windows=(7, 5, 4, 1)), 'stage 2 .*focal_windows must be an odd'),
        (dict(expand_sizes=9), 'stage 0 .*expand_sizes must be between 0 and window_size = 7'),
        (dict(pool_method='median'), "pool_method must be one of .* got 'median'"),
        (dict(expand_layer='none'), "expand_layer must be one of .* got 'none'"),
        (dict(border='zero'), "border must be one of .* got 'zero'"),
        (dict(out_indices=(0, 4)), 'out_indices must be ascending stages between 0 and 3'),
        (dict(out_indices=()), 'out_indices must be .*at least one stage'),
        (dict(focal_stages=(-1,)), 'focal_stages must be ascending stages'),
        (dict(frozen_stages=5), 'frozen_stages must be between -1 and 4, got 5'),
        (dict(drop_path_rate=1.0), 'drop_path_rate must be at least 0 and less than 1, got 1.0'),
        (dict(norm_cfg=dict(type='BN')), "norm_cfg must be a norm over the last axis.*'BN'"),
        (dict(use_conv_embed=True, patch_size=8), 'use_conv_embed has patches of stride'),
        (dict(pretrain_img_size=(1, 2, 3), use_abs_pos_embed=True), 'pretrain_img_size must be'),
        (dict(clamp_windows=True, pretrain_img_size=31), 'pretrain_img_size must be at least 32'),
        (dict(attention_backend='flash'), "backend must be one of .* got 'flash'"),
    ],
)
def test_wrong_setting_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small(**kwargs)


def test_setting_of_wrong_type_is_named():
    with pytest.raises(TypeError, match=r'stage 0 .*window_size must be an int, got 7\.0'):
        small(window_size=(7.0, 7, 7, 7))


def compiler_and_eager_agree(model, compiled, image):
    """Outputs and gradients of both; those of the compiled one are the same bits in every run."""
    runs = []
    for run in (model, compiled, compiled):
        outs = run(image)
        score = sum(out.square().mean() for out in outs)
        runs.append([*outs, *torch.autograd.grad(score, list(run.parameters()))])
    for expected, got, again in zip(*runs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(got, again)


needs_compiler = pytest.mark.skipif(
    shutil.which('c++') is None, reason='torch.compile needs a C++ compiler on a CPU'
)


@needs_compiler
def test_compiled_backbone_is_one_graph_and_the_eager_one():
    model = small(use_shift=True, out_indices=(0, 1))
    compiled = torch.compile(model, fullgraph=True)
    compiler_and_eager_agree(model, compiled, torch.randn(2, 3, 60, 100))


@needs_compiler
def test_compiled_blocks_serve_every_size():
    settings = dict(arch=dict(embed_dims=8, depths=(1,), num_heads=(2,)), out_indices=(0,))
    settings |= dict(focal_windows=5, focal_levels=2, focal_stages=(0,), expand_sizes=3)
    model, compiled = (small(**settings, compile_blocks=flag) for flag in (False, True))
    assert model.state_dict().keys() == compiled.state_dict().keys()
    for size in ((60, 100), (96, 80), (33, 65)):
        compiler_and_eager_agree(model, compiled, torch.randn(2, 3, *size))


ONE_BLOCK = dict(
    arch=dict(embed_dims=8, depths=(1,), num_heads=(2,)), focal_stages=(0,), out_indices=(0,)
)


def train_in_whole_graphs(model):
    """Training steps in mixed precision; raises where a block is more than one graph."""
    torch._dynamo.reset()
    model.compile_blocks(backend='eager', fullgraph=True)
    for size in ((60, 100), (56, 112)):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            outs = model(torch.randn(2, 3, *size))
        sum(out.float().square().sum() for out in outs).backward()
    assert not [name for name, p in model.named_parameters() if not p.grad.any()]


@pytest.mark.parametrize('name', ['shift', 'conv-pool', 'layer-scale', 'drop', 'checkpointed'])
def test_compiled_blocks_are_whole_graphs_in_training(name):
    train_in_whole_graphs(small(**ONE_BLOCK, focal_windows=3, **SETTINGS[name]))


def test_compiled_blocks_train_in_distributed_runs(tmp_path):
    """Blocks have more parameters than the first bucket of gradients, a mebibyte."""
    torch._dynamo.reset()
    arch = dict(embed_dims=192, depths=(2,), num_heads=(6,))
    model = small(**ONE_BLOCK | dict(arch=arch, focal_windows=3, drop_path_rate=0.2))
    model.compile_blocks(backend='aot_eager')
    options = dict(init_method=f'file://{tmp_path}/group', rank=0, world_size=1)
    torch.distributed.init_process_group('gloo', **options)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        for size in ((64, 96), (75, 110)):
            sum(out.square().mean() for out in wrapped(torch.randn(2, 3, *size))).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert not [name for name, p in model.named_parameters() if not p.grad.any()]


def test_compiled_blocks_make_a_bounded_number_of_graphs():
    arch = dict(embed_dims=8, depths=(2,), num_heads=(2,))
    model = small(arch=arch, focal_stages=(0,), focal_windows=3, out_indices=(0,)).eval()
    # Of whole windows, and padded below, at the right, and both, one image and two at a time.
    patterns = [(56, 112), (60, 112), (56, 100), (57, 97)]
    first = [size for size in patterns for _ in range(2)]
    graphs = count_graphs(model, [*first, (81, 47), (61, 62), (112, 28)], (1, 2))
    assert not limit_was_hit(), 'some blocks run as they are'
    assert graphs[0] == 1, 'blocks of a stage share their graphs'
    assert graphs[-1] <= 10, list(graphs)  # PyTorch 2.13 makes 7, 2.11 makes 9


def test_initial_values_are_those_of_the_authors():
    """Their ``trunc_normal_`` cuts off at -2 and 2, a hundred standard deviations away."""
    torch.manual_seed(0)
    model = FocalTransformer(
        dict(embed_dims=32, depths=(1, 1), num_heads=(8, 16)),
        focal_levels=3,
        focal_windows=(15, 13),
        focal_stages=(0, 1),
        out_indices=(0, 1),
        use_abs_pos_embed=True,
    )
    normal = set()
    for name, parameter in model.named_parameters():
        owner, _, kind = name.rpartition('.')
        module = model.get_submodule(owner)
        table = re.search(r'absolute_pos_embed|_to_neighbors|_to_windows', name)
        if table or (isinstance(module, torch.nn.Linear) and kind == 'weight'):
            normal.add(table[0] if table else 'Linear')
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
            assert abs(parameter.mean()) < 0.001 and parameter.abs().max() > 3 * 0.02, name
        elif kind == 'relative_position_bias_table' or (
            kind == 'bias' and not isinstance(module, torch.nn.Conv2d)
        ):
            assert not parameter.any(), name
        elif 'norm' in owner:
            assert (parameter == 1).all(), name
        elif 'pools' in name:
            # Theirs begins so as well, but their initialisation of linear layers comes after.
            assert (parameter == 1 / parameter.numel()).all(), name
        else:
            assert isinstance(module, torch.nn.Conv2d), name
    assert normal == {'absolute_pos_embed', '_to_neighbors', '_to_windows', 'Linear'}
