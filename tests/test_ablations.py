"""The ablations of docs/tables/ablations.md: each row builds, and is the authors' where known."""

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS

from mmfocal import FocalTransformer
from mmfocal.cli._arguments import add_config, parser_of
from mmfocal.engine import load_config
from mmfocal.weights.authors import from_authors

ROOT = Path(__file__).parents[1]
SHIFT_CASE = dict(use_conv_embed=True, use_pre_norm=True, layer_scale_init_value=1e-4)
# What a golden case has beside what its row is about.
BESIDE = {
    'conv_embed_shift_layerscale_224': SHIFT_CASE,
    'pool_mean_expand_even_224': dict(use_abs_pos_embed=True, expand_layer='even'),
}
# Keys of a window in the four stages, on the 56, 28, 14 and 7 tokens a side of 224 pixels: 7 ** 2
# tokens of a window, 13 ** 2 with its ring, and focal_windows ** 2 pooled cells.
WINDOW, LOCAL = (49, 49, 49, 49), (169, 169, 169, 49)
FULL = (218, 194, 178, 50)
KEYS = {
    'window only': WINDOW,
    'window and shift': WINDOW,
    'window and ring': LOCAL,
    'window and pooled cells': (98, 74, 58, 50),
    'all': FULL,
    # 14 tokens a side are all of stage 2 and more than stage 3 has.
    '14 tokens': (20**2 + 49, 20**2 + 25, 14**2 + 9, 7**2 + 1),
    # The second pooled level has a region of 6 cells a side: focal_windows - 1 + 2.
    '3 in stages 0 and 1': (169 + 25 + 36, 169 + 25 + 36, 178, 58),
    '1': LOCAL,
    '15, 13, 9, 7 cells': (169 + 225, 169 + 169, 169 + 81, 49 + 49),
}


def rows():
    """Comparison, model, options and golden case of each row."""
    text = (ROOT / 'docs/tables/ablations.md').read_text()
    lines = [line for line in text.splitlines() if line.startswith('|')][2:]
    comparison = ''
    for line in lines:
        first, model, options, case = (cell.strip() for cell in line.strip('|').split('|'))
        comparison = first or comparison
        yield pytest.param(model, options.strip('`'), case.strip('`'), id=f'{comparison}: {model}')


ROWS = list(rows())


def parsed(options):
    parser = parser_of('A tool.')
    add_config(parser)
    arguments = ['--cfg-options', *shlex.split(options)] if options != '-' else []
    return parser.parse_args(['config', *arguments]).cfg_options or {}


def backbone_of(name, options):
    """The backbone of a config with options, without memory for its weights."""
    with torch.device('meta'):
        return MODELS.build(load_config(name, options).model.backbone)


def test_there_are_the_ablations_of_the_paper():
    models = [row.values[0] for row in ROWS]
    assert len(models) == len(set(models)) and set(KEYS) < set(models)
    assert {'2, 2, 2, 2', '2, 2, 4, 2', '2, 2, 6, 2', 'mean', 'max', 'conv'} < set(models)


@pytest.mark.parametrize('model, options, case', ROWS)
def test_row_builds(model, options, case):
    options = parsed(options)
    classifier = backbone_of('focal_in1k', options)
    sides = (56, 28, 14, 7)
    blocks = [stage.blocks[-1].attn for stage in classifier.stages]
    keys = tuple(
        attn.geometry.keys(side, side).num_keys for attn, side in zip(blocks, sides, strict=True)
    )
    assert keys == KEYS.get(model, FULL)
    shifts = [attn.geometry.shift_size > 0 for attn in blocks]
    assert shifts == ([True, True, True, False] if 'shift' in model else [False] * 4)
    depths = tuple(len(stage.blocks) for stage in classifier.stages)
    expected = tuple(map(int, model.split(', '))) if model.startswith('2, 2') else (2, 2, 6, 2)
    assert depths == expected
    methods = {pool.method for attn in blocks for pool in attn.pools}
    assert methods <= {model if model in ('mean', 'max', 'conv') else 'fc'}
    detector = backbone_of('focal_maskrcnn_ms-1x', options)
    given = {key.rpartition('.')[2]: value for key, value in options.items()}
    assert given.keys() <= {
        'arch',
        'focal_levels',
        'expand_sizes',
        'use_shift',
        'window_size',
        'pool_method',
        'focal_windows',
    }
    assert tuple(len(stage.blocks) for stage in detector.stages) == expected


@pytest.mark.parametrize('model, options, case', [row for row in ROWS if row.values[2] != '-'])
def test_row_is_the_authors_model(model, options, case):
    folders = [Path(__file__).with_name('golden'), Path(os.environ.get('MMFOCAL_GOLDEN', '.'))]
    found = [folder / f'{case}.npz' for folder in folders if (folder / f'{case}.npz').is_file()]
    if not found:
        pytest.skip(f'{case} is not committed; MMFOCAL_GOLDEN names a folder with it')
    arrays = np.load(found[-1])
    config = json.loads(str(arrays['config']))
    prefix = 'state.'
    state = {
        name[len(prefix) :]: torch.from_numpy(arrays[name]).double()
        for name in arrays.files
        if name.startswith(prefix)
    }
    row = {key.rpartition('.')[2]: value for key, value in parsed(options).items()}
    ours = (
        FocalTransformer(
            arch=dict(
                embed_dims=config['embed_dim'],
                depths=config['depths'],
                num_heads=config['num_heads'],
            ),
            mlp_ratio=config['mlp_ratio'],
            pretrain_img_size=config['img_size'],
            clamp_windows=True,
            out_norm=False,
            **row,
            **BESIDE.get(case, {}),
        )
        .double()
        .eval()
    )
    ours.load_state_dict(from_authors(config, state)[1])
    with torch.no_grad():
        outputs = ours(torch.from_numpy(arrays['input']).double())
    for i, output in enumerate(outputs):
        want = torch.from_numpy(arrays[f'feature.{i}']).double().flatten()
        step = int(arrays[f'step.feature.{i}']) if f'step.feature.{i}' in arrays.files else 1
        got = output.flatten(2).transpose(1, 2).flatten()[::step]
        assert (got - want).norm() < 1e-5 * want.norm(), i
