"""Third-party checkpoints: every layout, at every size, and what is said about it."""

import gc
import hashlib
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmfocal import FocalTransformer, FocalTransformerFast
from mmfocal.geometry import FocalGeometry
from mmfocal.models.focal_transformer import PatchMerging
from mmfocal.models.settings import ARCH_SETTINGS
from mmfocal.ops import available_backends, why_not
from mmfocal.utils.errors import UserError
from mmfocal.weights import load_pretrained, read_weights, resizing
from mmfocal.weights.authors import from_authors
from mmfocal.weights.safe_loading import CheckpointError
from mmfocal.weights.saving import save_tensors

ROOT = Path(__file__).parents[1]
ARCH = dict(embed_dims=8, depths=(2, 1, 1, 1), num_heads=(1, 1, 2, 2))
TABLE = 'relative_position_bias_table'


def random_state(model):
    """A state dict of a model with numbers that tell its tensors apart."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: value
        if not value.is_floating_point()
        else torch.randn(value.shape, generator=generator) * 0.2
        for name, value in model.state_dict().items()
    }


# --- Third-party files, from ours by a second set of rules ---------------------------------------


def authors_names(state):
    renamed = {}
    for name, value in state.items():
        if not name.startswith('norm'):
            name = name.replace('stages.', 'layers.').replace('attn.pools', 'pool_layers')
            renamed[name.replace('attn.position_bias.', 'attn.')] = value
    return renamed


def authors_file(arch=ARCH, use_conv_embed=False):
    """As the authors save their ImageNet classifiers: no ring in stage 4, index buffers, head."""
    model = FocalTransformer(arch, expand_sizes=(3, 3, 3, 0), use_conv_embed=use_conv_embed)
    state = authors_names(random_state(model))
    width = state['layers.3.blocks.0.norm1.weight'].shape[0]
    attention = 'layers.0.blocks.0.attn'
    state |= {
        'norm.weight': torch.ones(width),
        'norm.bias': torch.zeros(width),
        'head.weight': torch.zeros(10, width),
        'head.bias': torch.zeros(10),
        f'{attention}.relative_position_index': torch.zeros(49, 49).long(),
        f'{attention}.relative_position_index_0': torch.zeros(49, 49).long(),
        f'{attention}.valid_ind_rolled': torch.zeros(132).long(),
        'layers.0.blocks.1.attn_mask': torch.zeros(64, 49, 49),
    }
    return {'model': state, 'epoch': 299}


def swin():
    """mmdet's Swin Transformer of :data:`ARCH`, unshifted, and its weights."""
    from mmdet.models.backbones import SwinTransformer

    model = SwinTransformer(
        embed_dims=8, depths=ARCH['depths'], num_heads=ARCH['num_heads'], drop_path_rate=0.0
    )
    model.load_state_dict(random_state(model))
    for stage in model.stages:
        for block in stage.blocks:
            block.attn.shift_size = 0
    model.eval()
    return model


def official_swin(state):
    """The layout of Swin's authors: the inverse of what mmdet's own converter does."""
    from mmdet.models.backbones.swin import swin_converter

    official = {}
    for name, value in state.items():
        new = name.replace('patch_embed.projection', 'patch_embed.proj').replace('w_msa.', '')
        new = new.replace('ffn.layers.0.0', 'mlp.fc1').replace('ffn.layers.1', 'mlp.fc2')
        new = new.replace('stages.', 'layers.')
        if 'downsample' in name:  # which channel of theirs each one of mmdet's is
            channels = torch.arange(value.shape[-1]).expand(value.shape)
            (order,) = swin_converter({new: channels}).values()
            value = value[..., order.view(-1, value.shape[-1])[0].argsort()]
        if not name.startswith('norm'):
            official[new] = value
    return official


def swin_file(layout):
    """The same function in the layout of each library."""
    mmdet = {k: v for k, v in swin().state_dict().items() if not k.startswith('norm')}
    official = official_swin(mmdet)
    if layout == 'mmdet':
        return {'state_dict': {f'backbone.{name}': value for name, value in mmdet.items()}}
    if layout == 'official':
        return {'model': official | {'head.weight': torch.zeros(3, 64)}}
    renamed = {}
    for name, value in official.items():
        parts = name.split('.')
        if layout == 'timm' and 'downsample' in name:
            parts[1] = str(int(parts[1]) + 1)
        elif layout == 'torchvision' and name.startswith('patch_embed'):
            parts = ['features', '0', '0' if parts[1] == 'proj' else '2', parts[2]]
        elif layout == 'torchvision' and 'downsample' in name:
            parts = ['features', str(2 * int(parts[1]) + 2), *parts[3:]]
        elif layout == 'torchvision':
            rest = '.'.join(parts[3:]).replace('mlp.fc1', 'mlp.0').replace('mlp.fc2', 'mlp.3')
            parts = ['features', str(2 * int(parts[1]) + 1), rest]
        renamed['.'.join(parts)] = value
    head = 'head.fc.weight' if layout == 'timm' else 'head.weight'
    return renamed | {'norm.weight': torch.zeros(64), head: torch.zeros(3, 64)}


def our_file(kind):
    state = random_state(FocalTransformer(ARCH))
    if kind == 'backbone':
        return state
    prefix = 'backbone.'
    state = {prefix + name: value for name, value in state.items()}
    other = 'bbox_head.conv.weight' if kind == 'detector' else 'head.fc.weight'
    return {'meta': dict(epoch=12), 'state_dict': state | {other: torch.zeros(3)}}


FILES = {
    'authors': authors_file,
    'authors, conv embedding': lambda: authors_file(use_conv_embed=True),
    'ours': lambda: our_file('backbone'),
    'ours, detector': lambda: our_file('detector'),
    'ours, classifier': lambda: our_file('classifier'),
    'Swin, official': lambda: swin_file('official'),
    'Swin, mmdet': lambda: swin_file('mmdet'),
    'Swin, timm': lambda: swin_file('timm'),
    'Swin, torchvision': lambda: swin_file('torchvision'),
}


def model_for(file, arch=ARCH, **kwargs):
    if 'Swin' in file:
        kwargs.setdefault('downsample', 'merging')
    return FocalTransformer(arch, use_conv_embed='conv' in file, **kwargs)


# --- Loading ------------------------------------------------------------------------------------


@pytest.mark.parametrize('saved_as', ['pth', 'safetensors'])
@pytest.mark.parametrize('file', FILES)
def test_same_size_takes_every_tensor_as_it_is(file, saved_as, tmp_path):
    content, path = FILES[file](), tmp_path / f'weights.{saved_as}'
    if saved_as == 'pth':
        torch.save(content, path)
    else:
        save_tensors(content.get('state_dict', content.get('model', content)), path)
    model = model_for(file)
    report = load_pretrained(model, str(path))
    assert not report.resized
    weights = read_weights(content, str(path))
    state = model.state_dict()
    assert sorted(report.loaded) == sorted(weights.tensors)
    for name, value in weights.tensors.items():
        assert torch.equal(state[name], value), name
    new = {name for name in state if name not in weights.tensors}
    assert set(report.new) == new
    if file.startswith('authors'):
        rings = {name for name in new if not name.startswith('norm')}
        assert rings == {f'stages.3.blocks.0.attn.position_bias.{TABLE}_to_neighbors'}
    elif file.startswith('ours'):
        assert not new
    else:
        kinds = ('norm', 'attn.pools', '_to_neighbors', '_to_windows')
        assert all(any(kind in name for kind in kinds) for name in new)


@pytest.mark.parametrize('file', FILES)
def test_wider_focal_windows_resize_the_tables_of_pooled_cells_alone(file):
    model = model_for(file, focal_windows=(15, 13, 9, 7))
    report = load_pretrained(model, FILES[file]())
    expected = [] if 'Swin' in file else [n for n in model.state_dict() if '_to_windows' in n]
    assert sorted(report.resized) == sorted(expected)
    assert model.stages[0].blocks[0].attn.position_bias.relative_position_bias_table_to_windows[
        0
    ].shape == (1, 21**2)


@pytest.mark.parametrize('file', FILES)
def test_other_windows_resize_every_table_and_the_pooling(file):
    model = model_for(file, window_size=5, expand_sizes=2, focal_windows=(5, 5, 3, 3))
    report = load_pretrained(model, FILES[file](), interpolation='bicubic', ring=0)
    resized = {name.rpartition('attn.')[2] for name in report.resized}
    tables = {f'position_bias.{TABLE}'}
    if 'Swin' not in file:
        tables |= {f'position_bias.{TABLE}_to_neighbors', 'pools.0.weight'}
        tables |= {f'position_bias.{TABLE}_to_windows.0'}
    assert resized == tables
    model(torch.zeros(1, 3, 40, 56))


@pytest.mark.parametrize('file', FILES)
def test_other_architecture_is_an_error_that_names_both(file):
    other = dict(embed_dims=16, depths=(2, 1, 2, 1), num_heads=(1, 1, 2, 4))
    model = model_for(file, other)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_pretrained(model, FILES[file]())
    text = str(error.value)
    assert 'file:  embed_dims 8, depths (2, 1, 1, 1)' in text
    assert 'model: embed_dims 16, depths (2, 1, 2, 1)' in text
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize('arch', ['tiny', 'small', 'base'])
def test_published_sizes_load_for_detection(arch):
    """With the authors' exact keys and shapes, which need no memory here."""
    with torch.device('meta'):
        state = authors_names(FocalTransformer(arch, expand_sizes=(3, 3, 3, 0)).state_dict())
    state = {name: torch.zeros(1).expand(value.shape) for name, value in state.items()}
    model = FocalTransformer(arch, focal_windows=(15, 13, 9, 7), out_indices=(1, 2, 3))
    report = load_pretrained(model, {'model': state})
    rings = [name for name in report.new if name.endswith('_to_neighbors')]
    assert len(rings) == ARCH_SETTINGS[arch]['depths'][3] and not report.left_out
    others = {name for name in report.new if name not in rings}
    assert others == {f'norm{i}.{kind}' for i in (1, 2, 3) for kind in ('weight', 'bias')}


def test_named_architecture_is_told_by_its_name():
    with torch.device('meta'):
        state = authors_names(FocalTransformer('base').state_dict())
    state = {name: torch.zeros(1).expand(value.shape) for name, value in state.items()}
    with pytest.raises(CheckpointError, match=r"file:  'base', (?s:.*)model: 'tiny', "):
        load_pretrained(FocalTransformer('tiny'), state)


def test_smaller_model_takes_its_stages(caplog):
    model = FocalTransformer(ARCH, out_indices=(0, 1))
    report = load_pretrained(model, our_file('backbone'))
    assert not report.new
    assert all(re_stage(name) >= 1 for name in report.left_out)


def re_stage(name):
    return int(name.split('.')[1]) if name.startswith('stages') else int(name[4])


@pytest.mark.parametrize('shift', [False, True])
@pytest.mark.parametrize('file', [file for file in FILES if 'Swin' in file])
def test_swins_function_is_reproduced(file, shift):
    theirs = swin()
    for stage in theirs.stages:
        for j, block in enumerate(stage.blocks):
            block.attn.shift_size = 3 if shift and j % 2 else 0
    ours = model_for(file, focal_levels=1, expand_sizes=0, use_shift=shift, out_norm=False)
    report = load_pretrained(ours.eval(), FILES[file]())
    assert not report.new
    for i in range(4):
        setattr(theirs, f'norm{i}', nn.Identity())
    image = torch.randn(2, 3, 100, 140)
    with torch.no_grad():
        for want, got in zip(theirs(image), ours(image), strict=True):
            assert (want - got).norm() < 1e-5 * want.norm()


def test_swins_weights_load_beside_a_convolution_between_stages():
    model = FocalTransformer(ARCH)
    report = load_pretrained(model, swin_file('official'))
    assert {n for n in report.new if 'downsample' in n} == {
        f'stages.{i}.downsample.{part}.{kind}'
        for i in range(3)
        for part in ('proj', 'norm')
        for kind in ('weight', 'bias')
    }
    assert sum('downsample' in name for name in report.left_out) == 9


def test_classifier_of_the_authors_computes_the_same_after_loading():
    content = authors_file()
    config = dict(
        embed_dim=8, depths=[2, 1, 1, 1], num_heads=[1, 1, 2, 2], focal_levels=[2, 2, 2, 2]
    )
    kwargs, weights = from_authors(config, content['model'])
    want, got = FocalTransformer(**kwargs).eval(), FocalTransformer(**kwargs).eval()
    want.load_state_dict(weights)
    load_pretrained(got, content)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for a, b in zip(want(image), got(image), strict=True):
            assert torch.equal(a, b)


def fast_file():
    """As the authors save Focal-fast: with index tables, and pooling as in the first version."""
    state = {}
    for name, value in random_state(FocalTransformerFast(ARCH)).items():
        if not name.startswith('norm'):
            name = name.replace('stages.', 'layers.').replace('attn.pools', 'pool_layers')
            state[name.replace('attn.position_bias.mlps', 'attn.coord2rpb_all')] = value
    attention = 'layers.0.blocks.0.attn'
    state |= {f'{attention}.topk_cloest_indice_0': torch.zeros(64, 128).long()}
    return {'model': state | {'head.weight': torch.zeros(10, 64)}}


@pytest.mark.parametrize('window', [7, 5])
def test_focal_fast_loads_at_any_window(window):
    model = FocalTransformerFast(ARCH, window_size=window)
    report = load_pretrained(model, fast_file())
    assert report.layout == "the authors' Focal-fast"
    assert set(report.left_out) == {
        'head.weight',
        'layers.0.blocks.0.attn.topk_cloest_indice_0',
    }
    resized = {name.rpartition('attn.')[2] for name in report.resized}
    assert resized == (set() if window == 7 else {'pools.0.weight'})
    assert all(name.startswith('norm') for name in report.new)
    again = FocalTransformerFast(ARCH, window_size=window)
    assert not load_pretrained(again, {'state_dict': model.state_dict()}).new
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_versions_of_the_model_are_told_apart():
    with pytest.raises(CheckpointError, match=r'fast True(?s:.*)model: .*fast False'):
        load_pretrained(FocalTransformer(ARCH, use_conv_embed=True), fast_file())
    with pytest.raises(CheckpointError, match=r'fast False(?s:.*)model: .*fast True'):
        load_pretrained(FocalTransformerFast(ARCH), authors_file(use_conv_embed=True))


def test_absolute_position_embedding_is_turned_to_a_map():
    state = authors_file()['model']
    embedding = torch.randn(1, 56 * 56, 8)
    model = FocalTransformer(ARCH, use_abs_pos_embed=True)
    load_pretrained(model, state | {'absolute_pos_embed': embedding})
    assert torch.equal(model.absolute_pos_embed[0, :, 3, 5], embedding[0, 3 * 56 + 5])


# --- What cannot be loaded ----------------------------------------------------------------------


@pytest.mark.parametrize(
    'content, expected',
    [
        ({'conv1.weight': torch.zeros(1)}, r'no weights of a Focal or Swin .* begin with: conv1'),
        ({'state_dict': {}, 'epoch': 3}, 'holds no state dict'),
        ({'layers.0.blocks.0.attn.logit_scale': torch.zeros(1)}, 'Swin Transformer V2'),
    ],
)
def test_other_files_are_told(content, expected):
    with pytest.raises(CheckpointError, match=expected):
        load_pretrained(FocalTransformer(ARCH), content)


def test_file_of_a_single_tensor_is_told(tmp_path):
    path = tmp_path / 'tensor.pth'
    torch.save(torch.zeros(3), path)
    with pytest.raises(CheckpointError, match='no tensors by name, but a Tensor'):
        load_pretrained(FocalTransformer(ARCH), str(path))


def test_wrong_prefix_is_told():
    with pytest.raises(CheckpointError, match=r"under 'neck\.'"):
        load_pretrained(FocalTransformer(ARCH), our_file('detector'), prefix='neck.')
    assert load_pretrained(FocalTransformer(ARCH), our_file('detector'), prefix='backbone.').loaded


def test_tensors_of_another_shape_are_named():
    state = our_file('backbone')
    state['stages.0.blocks.1.mlp.fc1.weight'] = torch.zeros(5, 8)
    with pytest.raises(
        CheckpointError, match=r'blocks\.1\.mlp\.fc1\.weight is \(5, 8\), not \(32, 8\)'
    ):
        load_pretrained(FocalTransformer(ARCH), state)


QKV = 'stages.0.blocks.1.attn.qkv.weight'
WINDOW_TABLE = f'stages.1.blocks.0.attn.position_bias.{TABLE}'
UNUSABLE = {
    'sparse': (QKV, lambda value: value.to_sparse()),
    'compressed': (QKV, lambda value: value.to_sparse_csr()),
    'quantised': (QKV, lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)),
    'of no device': (QKV, lambda value: value.to('meta')),
    'nested': (QKV, lambda value: torch.nested.nested_tensor([value[0], value[1, :3]])),
    'text': (QKV, lambda value: 'text'),
    'array': (QKV, lambda value: value.numpy()),
    'single number': (QKV, lambda value: value[0, 0]),
    'table of a single number': (WINDOW_TABLE, lambda value: value[0, 0]),
    'table of three dimensions': (WINDOW_TABLE, lambda value: value[None]),
    'empty table': (WINDOW_TABLE, lambda value: value[:0]),
    'stem of a single number': ('patch_embed.proj.weight', lambda value: value[0, 0, 0, 0]),
    'complex': (QKV, lambda value: value.cfloat()),
    'int8': (QKV, lambda value: value.char()),
    'int64': (WINDOW_TABLE, lambda value: value.long()),
    'bool': ('norm0.bias', lambda value: value > 0),
    'NaN': (QKV, lambda value: value.clone().fill_(torch.nan)),
    'one inf': (WINDOW_TABLE, lambda value: value.index_fill(0, torch.tensor([3]), torch.inf)),
    'too large for float32': (QKV, lambda value: value.double() * 1e300),
}


@pytest.mark.parametrize('kind', UNUSABLE)
@pytest.mark.filterwarnings('ignore:.*(prototype|beta)')
def test_unusable_tensors_are_named_and_change_nothing(kind):
    name, change = UNUSABLE[kind]
    state, model = our_file('backbone'), FocalTransformer(ARCH)
    state[name] = change(state[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=re.escape(name)):
        load_pretrained(model, state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_counters_of_another_norm_are_left_out():
    state = our_file('backbone') | {'norm0.num_batches_tracked': torch.tensor(3)}
    report = load_pretrained(FocalTransformer(ARCH), state)
    assert report.left_out == ['norm0.num_batches_tracked']


def test_names_that_are_no_text_are_told():
    state = our_file('backbone') | {17: torch.zeros(1)}
    with pytest.raises(CheckpointError, match='17 is a name of type int'):
        load_pretrained(FocalTransformer(ARCH), state)


def test_odd_shapes_that_have_to_be_rearranged_are_named():
    state = swin_file('mmdet')
    name = 'backbone.stages.0.downsample.reduction.weight'
    for odd in (torch.zeros(()), torch.zeros(16, 31)):
        state['state_dict'][name] = odd
        with pytest.raises(CheckpointError, match=re.escape(name)):
            load_pretrained(model_for('Swin'), state)
    positions = our_file('backbone') | {'absolute_pos_embed': torch.zeros(1, 7, 8)}
    with pytest.raises(CheckpointError, match='absolute_pos_embed'):
        load_pretrained(FocalTransformer(ARCH, use_abs_pos_embed=True), positions)


def test_layer_scale_of_a_file_is_loaded_or_refused():
    scaled = random_state(FocalTransformer(ARCH, layer_scale_init_value=1e-4))
    names = [name for name in scaled if '.gamma_' in name]
    model = FocalTransformer(ARCH, layer_scale_init_value=1e-4)
    assert len(names) == 2 * sum(ARCH['depths'])
    load_pretrained(model, {'model': authors_names(scaled)})
    for name in names:
        assert torch.equal(model.state_dict()[name], scaled[name])
    with pytest.raises(CheckpointError, match='layer_scale True'):
        load_pretrained(FocalTransformer(ARCH), {'model': authors_names(scaled)})


@pytest.mark.parametrize(
    'name, value', [('interpolation', 'odd'), ('ring', 'odd'), ('ring', True), ('ring', None)]
)
def test_unknown_choices_are_told(name, value):
    with pytest.raises(ValueError, match=rf'{name} must be one of .*, got {value!r}'):
        load_pretrained(FocalTransformer(ARCH), our_file('backbone'), **{name: value})


def test_hash_is_compared(tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(our_file('backbone'), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    load_pretrained(FocalTransformer(ARCH), str(path), sha256=digest[:12].upper())
    with pytest.raises(CheckpointError, match=f'expected: 00, found: {digest}'):
        load_pretrained(FocalTransformer(ARCH), f'file://{path}', sha256='00')


def test_failed_download_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    with pytest.raises(CheckpointError) as error:
        load_pretrained(FocalTransformer(ARCH), 'http://127.0.0.1:9/focal-tiny-is224-ws7.pth')
    text = str(error.value)
    assert 'could not be downloaded' in text and 'init_cfg.checkpoint=FILE' in text
    for path in ('configs/mmdet/focal_maskrcnn_ms-1x_from-swin.py', 'docs/weights.md'):
        assert path in text and (ROOT / path).is_file()


# --- Through a config ---------------------------------------------------------------------------


def detector(checkpoint, **init_cfg):
    init_default_scope('mmdet')
    backbone = dict(
        type='FocalTransformer',
        arch=ARCH,
        out_indices=(1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint), **init_cfg),
    )
    return MODELS.build(
        dict(
            type='mmdet.ATSS',
            backbone=backbone,
            neck=dict(type='mmdet.FPN', in_channels=[16, 32, 64], out_channels=8, num_outs=3),
            bbox_head=dict(
                type='mmdet.ATSSHead',
                num_classes=2,
                in_channels=8,
                feat_channels=8,
                stacked_convs=1,
                norm_cfg=None,
                anchor_generator=dict(
                    type='mmdet.AnchorGenerator',
                    ratios=[1.0],
                    octave_base_scale=4,
                    scales_per_octave=1,
                    strides=[8, 16, 32],
                ),
            ),
        )
    )


def test_init_cfg_loads_files_of_others(tmp_path):
    path = tmp_path / 'authors.pth'
    torch.save(authors_file(), path)
    model = detector(path, ring=-10.0)
    model.init_weights()
    state = model.backbone.state_dict()
    for name, value in read_weights(authors_file(), '').tensors.items():
        assert torch.equal(state[name], value), name
    assert (state[f'stages.3.blocks.0.attn.position_bias.{TABLE}_to_neighbors'] == -10).all()
    assert model.backbone.init_cfg['type'] == 'Pretrained'  # as it was
    with torch.no_grad():
        model.backbone.patch_embed.proj.weight.zero_()
    model.backbone.init_weights()  # a second time does nothing, as everywhere in mmengine
    assert not model.backbone.patch_embed.proj.weight.any()


def test_init_cfg_of_other_types_stays_mmengines(tmp_path):
    path = tmp_path / 'ours.pth'
    torch.save(our_file('backbone'), path)
    constant = dict(type='Constant', layer='Linear', val=0.5)
    model = FocalTransformer(ARCH, init_cfg=constant)
    model.init_weights()
    assert (model.stages[0].blocks[0].mlp.fc1.weight == 0.5).all()
    both = FocalTransformer(
        ARCH, init_cfg=[dict(type='Pretrained', checkpoint=str(path)), constant]
    )
    both.init_weights()
    for name, value in our_file('backbone').items():
        assert torch.equal(both.state_dict()[name], value)


def test_resumed_run_does_not_ask_for_pretrained_weights(tmp_path):
    from mmengine.config import Config

    from mmfocal.engine.settings import build_runner

    cfg = Config(
        dict(
            model=dict(
                type='FocalTransformer',
                arch=ARCH,
                init_cfg=dict(type='Pretrained', checkpoint='nowhere.pth'),
            ),
            work_dir=str(tmp_path),
            resume=True,
            load_from='last.pth',
        )
    )
    runner = build_runner(cfg)
    assert runner.model.init_cfg is None
    assert runner.cfg.model.init_cfg.checkpoint == 'nowhere.pth'


# --- Resizing -----------------------------------------------------------------------------------


def cubic(distance, a=-0.75):
    distance = abs(distance)
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    if distance < 2:
        return a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    return 0.0


def linear(distance):
    return max(0.0, 1 - abs(distance))


def resized_by_definition(grid, side, kernel):
    """Each output is a weighted sum of the inputs around its centre; borders are repeated."""
    old = len(grid)
    out = np.zeros((side, side))
    for i in range(side):
        for j in range(side):
            row, col = ((k + 0.5) * old / side - 0.5 for k in (i, j))
            for di in range(-2, 3):
                for dj in range(-2, 3):
                    near = int(np.floor(row)) + di, int(np.floor(col)) + dj
                    weight = kernel(row - near[0]) * kernel(col - near[1])
                    out[i, j] += weight * grid[tuple(np.clip(near, 0, old - 1))]
    return out


@pytest.mark.parametrize('old, new', [(13, 21), (9, 15), (21, 13), (5, 6), (1, 3)])
@pytest.mark.parametrize('interpolation, kernel', [('bilinear', linear), ('bicubic', cubic)])
def test_grids_are_resized_as_defined(old, new, interpolation, kernel):
    grid = torch.randn(2, old * old, dtype=torch.float64)
    got = resizing.resize_grid(grid, new, interpolation)
    for one, result in zip(grid, got, strict=True):
        want = resized_by_definition(one.view(old, old).numpy(), new, kernel)
        np.testing.assert_allclose(result.view(new, new).numpy(), want, atol=1e-12)


def test_same_size_is_the_identity():
    grid, ring = torch.randn(2, 49), torch.randn(1, 2, 49, 132)
    geometry = FocalGeometry(focal_window=13)
    assert resizing.resize_grid(grid, 7, 'bicubic') is grid
    assert resizing.resize_pool(grid, 7) is grid
    assert resizing.resize_ring_table(ring, FocalGeometry(), geometry, 'bilinear') is ring


def test_window_tables_keep_heads_apart():
    table = torch.randn(169, 3, dtype=torch.float64)
    got = resizing.resize_grid(table.T, 23, 'bilinear').T
    assert got.shape == (23**2, 3)
    want = resizing.resize_grid(table[:, 1][None], 23, 'bilinear')[0]
    # Libraries of products sum in another order for three heads than for one.
    torch.testing.assert_close(got[:, 1], want, rtol=1e-12, atol=1e-12)


def test_pooling_keeps_its_sum():
    weight = torch.full((1, 49), 1 / 49, dtype=torch.float64)
    got = resizing.resize_pool(weight, 12)
    torch.testing.assert_close(got, torch.full((1, 144), 1 / 144, dtype=torch.float64))
    rows = torch.arange(7.0).repeat_interleave(7)[None]
    got = resizing.resize_pool(rows, 12).view(12, 12)
    assert (got.diff(dim=0)[1:-1] > 0).all() and (got.diff(dim=1) == 0).all()


@pytest.mark.parametrize('window, expand', [(12, 3), (12, 6), (5, 2), (7, 2), (7, 5), (4, 1)])
def test_ring_tables_follow_the_place_in_the_windows_scale(window, expand):
    """A bias that is linear in the places of query and key stays so between known places."""
    old, new = FocalGeometry(), FocalGeometry(window_size=window, expand_size=expand)

    def table(geometry, scale):
        places = torch.tensor([place for _, place in geometry.authors_ring]).double()
        places = (places + 0.5) * scale - 0.5
        query = (torch.arange(geometry.window_size).double() + 0.5) * scale - 0.5
        query = torch.cartesian_prod(query, query)
        bias = 0.3 * query[:, :1] - 0.1 * query[:, 1:] + 0.7 * places[:, 0] - 0.2 * places[:, 1]
        return bias[None, None]

    got = resizing.resize_ring_table(table(old, 1.0), old, new, 'bilinear')
    scale = 7 / window
    want = table(new, scale)
    assert got.shape == want.shape
    # Inside the grid of queries, and of keys with four listed neighbours in the same copy.
    query = (torch.arange(window).double() + 0.5) * scale - 0.5
    inside = ((query >= 0) & (query <= 6)).nonzero().flatten()
    rows = (inside[:, None] * window + inside).flatten()
    listed = set(old.authors_ring)
    columns = []
    for column, (copy, place) in enumerate(new.authors_ring):
        row, col = ((along + 0.5) * scale - 0.5 for along in place)
        near = [(int(np.floor(row)) + i, int(np.floor(col)) + j) for i in (0, 1) for j in (0, 1)]
        if all((copy, each) in listed for each in near):
            columns.append(column)
    assert columns or expand * scale < 2
    got, want = got[0, 0][rows][:, columns], want[0, 0][rows][:, columns]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_ring_tables_never_leave_the_range_of_what_was_learned():
    old, new = FocalGeometry(), FocalGeometry(window_size=12, expand_size=8)
    ring = torch.rand(1, 1, 49, 132, dtype=torch.float64)
    got = resizing.resize_ring_table(ring, old, new, 'bilinear')
    assert got.shape == (1, 1, 144, len(new.authors_ring))
    assert ring.min() <= got.min() and got.max() <= ring.max()
    constant = resizing.resize_ring_table(torch.full_like(ring, 0.25), old, new, 'bicubic')
    torch.testing.assert_close(constant, torch.full_like(constant, 0.25))


# --- A ring that was not there ------------------------------------------------------------------


def test_missing_ring_begins_as_asked():
    geometry = FocalGeometry(window_size=3, expand_size=1)
    table = torch.arange(25.0)[:, None]  # relative rows and columns from -2 to 2
    like = torch.empty(1, 1, 9, len(geometry.authors_ring))
    torch.manual_seed(0)
    normal = resizing.missing_ring('normal', table, like.new_empty(1, 8, 49, 132), geometry)
    assert normal.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(normal.mean()) < 0.001 and normal.abs().max() > 3.5 * 0.02  # not cut off
    assert not resizing.missing_ring(0, table, like, geometry).any()
    assert (resizing.missing_ring(-10.0, table, like, geometry) == -10).all()
    nearest = resizing.missing_ring('nearest', table, like, geometry)[0, 0]
    places = [place for _, place in geometry.authors_ring]
    # Query (0, 0) and key (-1, 1): one row up, one column right, index (1 + 2) * 5 + (-1 + 2).
    assert nearest[0, places.index((-1, 1))] == 16
    # Query (2, 1) and key (-1, 1): three rows up, which the table takes for two.
    assert nearest[7, places.index((-1, 1))] == 22


def test_ring_of_negative_bias_is_next_to_not_seen():
    """The function of the model without a ring stays, whichever backend computes it."""
    content = authors_file()
    kwargs = dict(border='mask', focal_windows=(15, 13, 9, 7), out_norm=False)
    without = FocalTransformer(ARCH, expand_sizes=(3, 3, 3, 0), **kwargs).eval()
    load_pretrained(without, content)
    image = torch.randn(1, 3, 256, 320)
    distance = {}
    for ring in (*resizing.RINGS, -10.0):
        for backend in available_backends():
            if why_not(backend, image.device, image.dtype, head_dim=8):
                continue
            model = FocalTransformer(ARCH, attention_backend=backend, **kwargs).eval()
            load_pretrained(model, content, ring=ring)
            with torch.no_grad():
                want, got = without(image)[3], model(image)[3]
            distance[ring] = float((want - got).norm() / want.norm())
    assert distance[-10.0] < 1e-3 < distance['normal']


# --- Patch merging ------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(8, 10), (7, 9)])
def test_patch_merging_takes_tokens_in_swins_order(size):
    merging = PatchMerging(2, 8, dict(type='LN'))
    merging.norm = nn.Identity()
    merging.reduction = nn.Identity()
    x = torch.randn(1, 2, *size)
    got = merging(x)
    padded = torch.zeros(1, 2, 8, 10)
    padded[..., : size[0], : size[1]] = x
    token = [padded[0, :, 2 + i, 4 + j] for j in (0, 1) for i in (0, 1)]
    assert got.shape == (1, 4, 5, 8)
    assert torch.equal(got[0, 1, 2], torch.cat(token))


@pytest.mark.parametrize('setting', ['use_conv_embed', 'use_pre_norm'])
def test_patch_merging_excludes_what_is_about_the_convolution(setting):
    with pytest.raises(ValueError, match="downsample='merging' takes the place"):
        FocalTransformer(ARCH, downsample='merging', **{setting: True})
    with pytest.raises(ValueError, match='downsample must be one of'):
        FocalTransformer(ARCH, downsample='pool')


# --- Conversion to a file -----------------------------------------------------------------------


def convert(*args):
    command = [sys.executable, ROOT / 'tools/convert_checkpoint.py', *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


def test_conversion_renames_or_fits_and_overwrites_nothing(tmp_path):
    source, config = tmp_path / 'authors.pth', tmp_path / 'config.py'
    torch.save(authors_file(), source)
    config.write_text(
        'model = dict(backbone=dict(type="FocalTransformer", '
        f'arch={ARCH}, focal_windows=(15, 13, 9, 7)))'
    )
    renamed, fitted = tmp_path / 'renamed.pth', tmp_path / 'fitted.safetensors'
    status, output = convert(source, renamed)
    assert status == 0 and 'left out  head.weight' in output, output
    status, output = convert(source, fitted, '--config', config, '--ring', 0)
    assert status == 0, output
    assert f'new       stages.3.blocks.0.attn.position_bias.{TABLE}_to_neighbors' in output
    assert f'resized   stages.0.blocks.0.attn.position_bias.{TABLE}_to_windows.0' in output
    for path in (renamed, fitted):
        model = FocalTransformer(ARCH, focal_windows=(15, 13, 9, 7))
        report = load_pretrained(model, str(path), ring=0)
        assert report.layout == 'mmfocal' and not report.left_out
        assert bool(report.resized) == (path == renamed)
    before = fitted.read_bytes()
    status, output = convert(source, fitted)
    assert status == 2 and '--force' in output and fitted.read_bytes() == before
    status, output = convert(source, fitted, '--force')
    assert status == 0 and fitted.read_bytes() != before
    broken = authors_file()
    broken['model']['layers.0.blocks.0.attn.qkv.weight'][0, 0] = torch.nan
    torch.save(broken, source)
    for extra in ((), ('--config', config)):
        status, output = convert(source, tmp_path / 'new.pth', *extra)
        assert status == 2 and 'layers.0.blocks.0.attn.qkv.weight' in output, output
        assert not (tmp_path / 'new.pth').exists()
    status, output = convert(source, tmp_path / 'weights.bin')
    assert status == 2 and '.pth or .safetensors' in output


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_failed_writing_leaves_what_was_there(tmp_path, suffix, monkeypatch):
    path = tmp_path / f'weights.{suffix}'
    path.write_bytes(b'before')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # as on a full disk
    try:
        with pytest.raises(UserError, match='could not be written: File too large'):
            save_tensors(dict(a=torch.ones(100_000)), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    # What the error held on to can be given back: a crash on Python 3.12, and told by others.
    told = []
    monkeypatch.setattr(sys, 'unraisablehook', lambda problem: told.append(problem.exc_value))
    gc.collect()
    assert not told
    assert path.read_bytes() == b'before'
    assert list(tmp_path.iterdir()) == [path]


def test_ring_geometries_are_read_from_tables():
    """Every width of a ring has a number of listed places of its own."""
    from mmfocal.weights.loading import _expand

    for window in (1, 2, 7, 12):
        for expand in range(window + 1):
            geometry = replace(FocalGeometry(), window_size=window, expand_size=expand)
            assert _expand(window, len(geometry.authors_ring)) == expand
    with pytest.raises(ValueError, match='no ring around a window of 7'):
        _expand(7, 131)
