"""Figures of attention: the weights are the model's, and stand where their keys are."""

import importlib.util
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import oracle
import pytest
import torch
from matplotlib import pyplot as plt
from mmengine.config import Config
from torch import nn

from mmfocal import FocalTransformer, FocalTransformerFast, cli
from mmfocal.engine import load_config
from mmfocal.utils.errors import UserError
from mmfocal.visualization.attention import (
    attention_of_blocks,
    attention_weights,
    draw_attention,
    draw_heads,
)
from mmfocal.visualization.view import View, find_backbone, load_model, view_image

if importlib.util.find_spec('torchvision') is None:  # which mmpretrain imports
    sys.path.append(str(Path(__file__).with_name('stand_ins')))

SMALL = dict(arch=dict(embed_dims=8, depths=(2, 1), num_heads=(2, 4)), patch_size=2)
SMALL |= dict(focal_stages=(0, 1), out_indices=(0, 1), window_size=4, expand_sizes=2)
BACKBONES = {
    'wrap': dict(SMALL, focal_levels=3, focal_windows=3),
    # Windows that sub-windows do not divide leave tokens over.
    'odd window': dict(SMALL, window_size=5, focal_levels=3, focal_windows=1),
    'shift': dict(SMALL, use_shift=True, focal_windows=3),
    'shift, masked': dict(SMALL, use_shift=True, focal_windows=3, border='mask'),
    'one window': dict(SMALL, window_size=10, expand_sizes=3, focal_windows=1),
    'closest': dict(SMALL, focal_levels=3, top_k=21),
    'closest, shift': dict(SMALL, use_shift=True, top_k=21),
}
HEIGHT, WIDTH = 33, 37  # maps of 17x19 and 9x10 tokens


def random_backbone(name, dtype=torch.float64, **settings):
    """A backbone whose weights are large enough for attention to differ from key to key."""
    settings = {**BACKBONES[name], **settings}
    kind = FocalTransformer
    if 'top_k' in settings:
        kind = FocalTransformerFast
        del settings['expand_sizes']
    model = kind(**settings).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def calls_of(model, inputs, stage, block):
    """Input and output of an attention layer, ``(H, W, C)``."""
    layer, kept = model.stages[stage].blocks[block].attn, []
    handle = layer.register_forward_hook(lambda layer, args, out: kept.append((args[0], out)))
    with torch.no_grad():
        model(inputs)
    handle.remove()
    return layer, *(tensor[0].numpy() for tensor in kept[0])


def affine(linear, x):
    return (linear.weight.detach().numpy() @ x).T + linear.bias.detach().numpy()


def padded_to_windows(x, window):
    padding = [(0, -side % window) for side in x.shape[:2]]
    return np.pad(x, [*padding, (0, 0)])


def tokens_under(box, x, stride):
    """The tokens of a map, which repeats, under a box in pixels, float ``(side, side, C)``."""
    left, top, right, bottom = np.array(box) / stride
    assert right - left == bottom - top and float(left).is_integer() and float(top).is_integer()
    rows, cols = (np.arange(start, start + right - left).astype(int) for start in (top, left))
    return x[np.ix_(rows % x.shape[0], cols % x.shape[1])]


@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('point', [(0, 0), (WIDTH - 0.5, HEIGHT - 0.5), (20, 9)])
def test_values_under_the_boxes_make_the_layers_output(name, point):
    """Weights and places at once, computed from what lies in the boxes, key by key."""
    model = random_backbone(name)
    inputs = torch.randn(1, 3, HEIGHT, WIDTH, dtype=torch.float64)
    for stage, block in ((0, 0), (0, -1), (1, 0)):
        attention = attention_weights(model, inputs, point, stage, block)
        layer, x, out = calls_of(model, inputs, stage, block)
        x = padded_to_windows(x, layer.geometry.window_size)
        stride = 2 * 2**stage
        assert attention.stride == stride and attention.block == block % 2 * (1 - stage)
        np.testing.assert_allclose(attention.weights.sum(axis=1), 1, atol=1e-12)
        assert (attention.weights > 0).all()

        left, top, right, bottom = attention.query
        assert left <= point[0] < right == left + stride
        assert top <= point[1] < bottom == top + stride
        if 'closest' not in name:  # of which a window need not be among its own keys
            own = attention.boxes[attention.kinds == 'window'].tolist()
            assert list(attention.query) in own

        dims, heads = layer.head_dims, layer.num_heads
        keys = []
        for kind, box in zip(attention.kinds, attention.boxes, strict=True):
            tokens = tokens_under(box, x, stride)
            key = tokens[0, 0]
            if kind.startswith('level'):
                pool = layer.pools[int(kind[5:]) - 1]
                weight = pool.weight.detach().numpy().reshape(tokens.shape[:2])
                key = np.tensordot(weight, tokens, 2) + pool.bias.item()
            keys.append(key)
        values = affine(layer.qkv, np.array(keys).T)[:, 2 * heads * dims :]
        values = values.reshape(len(keys), heads, dims)
        total = np.einsum('hn,nhd->hd', attention.weights, values).ravel()
        row, col = int(point[1] // stride), int(point[0] // stride)
        np.testing.assert_allclose(affine(layer.proj, total), out[row, col], atol=1e-10)


def test_a_token_that_the_authors_list_twice_has_the_sum_of_both_weights():
    model = random_backbone('wrap', focal_levels=1, expand_sizes=1)
    inputs = torch.randn(1, 3, 32, 48, dtype=torch.float64)  # 16x24 tokens, nothing to pad
    attention = attention_weights(model, inputs, (21, 17), 0, 0)
    layer, x, _ = calls_of(model, inputs, 0, 0)
    (top, left), query = (8, 8), 0 * 4 + 2  # the window of token 8, 10 and the token in it
    own = [(row, col) for row in range(4) for col in range(4)]
    listed = oracle.ring_as_authors_list_it(4, 1)
    assert len(set(listed)) < len(listed)
    bias = layer.position_bias()[:, query, :16].detach().numpy()
    table = layer.position_bias.relative_position_bias_table_to_neighbors[0, :, query]
    bias = np.concatenate([bias, table.detach().numpy()], axis=1)  # a column for each listing
    vectors = [affine(layer.qkv, x[top + row, left + col]) for row, col in own + listed]
    for head in range(2):
        dims = slice(4 * head, 4 * head + 4)
        q = vectors[query][dims] * layer.scale
        scores = np.array([q @ vector[8:16][dims] for vector in vectors]) + bias[head]
        exponentials = np.exp(scores)
        expected = {}
        for (row, col), value in zip(own + listed, exponentials, strict=True):
            box = (2 * (left + col), 2 * (top + row))
            expected[box] = expected.get(box, 0) + value / exponentials.sum()
        drawn = {
            tuple(box[:2]): weight
            for box, weight in zip(attention.boxes, attention.weights[head], strict=True)
        }
        assert len(drawn) == len(attention.boxes)
        assert drawn == pytest.approx(expected, abs=1e-12)


def biased_backbone(kind):
    """A backbone of one block that looks from token 4, 4 to one key: up and left of it."""
    settings = dict(
        SMALL,
        arch=dict(embed_dims=8, depths=(1,), num_heads=(2,)),
        out_indices=(0,),
        focal_stages=(0,),
    )
    model = FocalTransformer(**settings, focal_windows=3).eval()
    bias = model.stages[0].blocks[0].attn.position_bias
    with torch.no_grad():
        if kind == 'ring':
            column = oracle.ring_as_authors_list_it(4, 2).index((-2, -1))
            bias.relative_position_bias_table_to_neighbors[0, :, 0, column] = 30
        elif kind == 'window':
            bias.relative_position_bias_table[bias.relative_position_index[0, 3 * 4 + 1]] = 30
        else:
            bias.relative_position_bias_table_to_windows[0][
                :, bias.relative_position_index_1[0, 1]
            ] = 30
    return model


# Boxes in tokens; the window has tokens 4 to 7, and the cell is the window above it.
PREFERRED = {'window': (5, 7, 6, 8), 'ring': (3, 2, 4, 3), 'level1': (4, 0, 8, 4)}


@pytest.mark.parametrize('kind', PREFERRED)
def test_the_largest_mark_is_at_the_key_that_the_bias_prefers(kind):
    # Tokens of 2 pixels are 1 by 0.8 pixels of this image, of which 3 by 2 are cropped away.
    inputs = torch.randn(1, 3, 24, 32)
    view = View(np.random.randint(0, 255, (40, 50, 3), dtype=np.uint8), inputs, (2, 2.5), (-6, -5))
    expected = np.array(PREFERRED[kind]) * (1, 0.8, 1, 0.8) + (3, 2, 3, 2)
    model = biased_backbone(kind)
    attention = attention_weights(model, view, (7.3, 5.3), 0)
    best = attention.weights.mean(axis=0).argmax()
    assert attention.kinds[best] == kind and attention.share(kind) > 0.99
    np.testing.assert_allclose(attention.boxes[best], expected)

    figure = draw_attention(view, [attention])
    marks = [
        (path.get_extents(), collection)
        for axes in figure.axes
        for collection in axes.collections
        if len(collection.get_facecolor()) > 1  # not the outlines of cells
        for path in collection.get_paths()
    ]
    assert len(marks) == len(attention.boxes)
    extent, collection = max(marks, key=lambda mark: mark[0].width * mark[0].height)
    corners = np.array([extent.min, extent.max])
    np.testing.assert_allclose(corners.mean(axis=0), expected.reshape(2, 2).mean(axis=0))
    assert (expected[:2] < corners[0]).all() and (corners[1] < expected[2:]).all()
    # It is in sight, and on the image that lies there.
    panel = collection.axes
    assert panel.get_xlim()[0] < expected[0] and expected[2] < panel.get_xlim()[1]
    pixel = np.array([expected[0] + 0.1, expected[1] + 0.1])
    (backdrop,) = (tile for tile in panel.get_images() if tile.get_alpha() == 1)
    assert backdrop.get_extent() == [0, 50, 40, 0]
    assert (pixel >= view.seen[:2]).all() and (pixel < view.seen[2:]).all()
    shown = backdrop.get_array()[int(pixel[1]), int(pixel[0])]
    grey = cv2.cvtColor(view.image, cv2.COLOR_RGB2GRAY).astype(float)
    grey = (grey - grey.min()) / np.ptp(grey)
    assert shown == pytest.approx(0.6 + 0.4 * grey[int(pixel[1]), int(pixel[0])], abs=1e-5)
    plt.close(figure)


def test_marks_grow_with_weights_and_captions_tell_shares():
    model = random_backbone('wrap')
    inputs = torch.randn(1, 3, HEIGHT, WIDTH, dtype=torch.float64)
    attention = attention_weights(model, inputs, (20, 9), 0)
    figure = draw_heads(View.of_inputs(inputs), attention)
    panels = [axes for axes in figure.axes if axes.get_images()]
    assert len(panels) == 2 * 3  # heads by fine tokens and two levels
    told = [panel.get_xlabel().split('\n') for panel in panels]
    for head, lines in enumerate((told[:3], told[3:])):
        numbers = [float(re.search(r'([\d.]+) %', line)[1]) for row in lines for line in row]
        shares = [attention.share(k, head) for k in ('window', 'ring', 'level1', 'level2')]
        assert numbers == pytest.approx(np.array(shares) * 100, abs=0.05)
        assert sum(numbers) == pytest.approx(100, abs=0.2)
    weights = attention.weights[0][attention.kinds == 'ring']
    ring = panels[0].collections[1]
    sides = np.array([path.get_extents().width for path in ring.get_paths()])
    assert np.ptp(sides) > 0
    seen = weights > weights.max() * 0.1  # the smallest marks have one size
    factor = sides[seen] ** 2 / weights[seen]
    np.testing.assert_allclose(factor, factor[0], rtol=1e-6)
    colours = [tuple(colour) for colour in ring.get_facecolor()]
    assert colours[weights.argmax()] != colours[weights.argmin()]
    kinds = [type(path).__name__ for path in (panels[0].collections[0].get_paths()[0],)]
    assert kinds == ['Path']
    corners = [len(panels[0].collections[i].get_paths()[0].vertices) for i in (0, 1)]
    assert corners[0] != corners[1]  # squares and circles, which need no colours
    plt.close(figure)


def test_attention_stands_around_a_query_that_a_shift_takes_round_the_border():
    model = random_backbone('shift')
    inputs = torch.randn(1, 3, HEIGHT, WIDTH, dtype=torch.float64)
    attention = attention_weights(model, inputs, (1, 1), 0, 1)
    left, top, right, bottom = attention.window
    assert left < 0 < right and top < 0 < bottom and attention.wraps
    # Beyond the seam nothing of the own window is seen.
    own = attention.boxes[attention.kinds == 'window']
    assert own.min() == 0 and len(own) == 4
    assert not attention_weights(model, inputs, (20, 9), 0, 0).wraps


def test_compiled_blocks_have_the_same_weights():
    model = random_backbone('wrap')
    compiled = FocalTransformer(**BACKBONES['wrap'], compile_blocks=True).double()
    compiled.load_state_dict(model.state_dict())
    inputs = torch.randn(1, 3, HEIGHT, WIDTH, dtype=torch.float64)
    want, found = (attention_weights(m, inputs, (3, 4), 1) for m in (model, compiled.train()))
    np.testing.assert_allclose(found.weights, want.weights, atol=1e-12)
    assert compiled.training


def marked(folder, width=90, height=61):
    """An image with a small light square, and the middle of it."""
    image = np.zeros((height, width, 3), np.uint8)
    image[30:34, 50:54] = 255
    path = folder / 'marked.png'
    cv2.imwrite(str(path), image)
    return path, (52, 32)


class Preprocessor(nn.Module):
    """Pads like mmdet's and mmseg's: at the bottom and right."""

    def forward(self, data, training):
        inputs = data['inputs'][0][None].float()
        height, width = inputs.shape[-2:]
        return dict(inputs=nn.functional.pad(inputs, (0, -width % 32, 0, -height % 32)))


@pytest.mark.parametrize(
    'scope, steps',
    [
        ('mmdet', [dict(type='Resize', scale=(200, 150), keep_ratio=True)]),
        ('mmdet', [dict(type='Resize', scale=(70, 150), keep_ratio=False)]),
        ('mmdet', [dict(type='Pad', size_divisor=50), dict(type='mmcv.Resize', scale=(170, 131))]),
        ('mmdet', [dict(type='mmcv.CenterCrop', crop_size=(51, 40))]),
        ('mmseg', [dict(type='Resize', scale=(2048, 150), keep_ratio=True)]),
        ('mmseg', [dict(type='ResizeToMultiple', size_divisor=32)]),
        (
            'mmpretrain',
            [dict(type='ResizeEdge', scale=77), dict(type='CenterCrop', crop_size=(64, 50))],
        ),
    ],
)
def test_places_follow_the_test_pipeline(tmp_path, scope, steps):
    path, (x, y) = marked(tmp_path)
    pack = dict(mmdet='PackDetInputs', mmseg='PackSegInputs', mmpretrain='PackInputs')[scope]
    annotations = [] if scope == 'mmpretrain' else [dict(type='LoadAnnotations')]
    pipeline = [dict(type='LoadImageFromFile'), *annotations, *steps, dict(type=pack)]
    dataset = dict(type='Any', dataset=dict(type='Any', pipeline=pipeline))
    cfg = Config(dict(default_scope=scope, test_dataloader=dict(dataset=dataset)))
    importlib.import_module(f'{scope}.datasets')
    model = nn.Module()
    model.data_preprocessor = Preprocessor()
    view = view_image(cfg, model, path)
    light = view.inputs[0].mean(dim=0).numpy()
    rows, cols = np.indices(light.shape) + 0.5
    found = np.array([(cols * light).sum(), (rows * light).sum()]) / light.sum()
    # Resizing has no better than quarters of pixels where it rounds sizes.
    np.testing.assert_allclose(view.to_inputs((x, y)), found, atol=0.3)
    np.testing.assert_allclose(view.to_image(view.to_inputs((x, y))), (x, y))
    assert view.image.shape == (61, 90, 3)
    left, top, right, bottom = view.seen
    assert 0 <= left < x < right <= 90 and 0 <= top < y < bottom <= 61


@pytest.fixture(scope='module')
def photograph(tmp_path_factory):
    path = tmp_path_factory.mktemp('attention') / 'photograph.jpg'
    image = np.random.default_rng(0).integers(0, 255, (9, 11, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(image, (101, 67), interpolation=cv2.INTER_CUBIC))
    return path


@pytest.mark.parametrize(
    'name, suffix',
    [
        ('focal_maskrcnn_shapes', 'png'),
        ('focal_maskrcnn_shapes', 'svg'),
        ('focal_upernet_shapes', 'png'),
        ('focal_in1k', 'png'),
    ],
)
def test_models_of_all_families_are_drawn(photograph, tmp_path, name, suffix):
    cfg = load_config(name)
    if name == 'focal_in1k':
        importlib.import_module('mmpretrain.datasets')
    model = load_model(cfg, None)
    view = view_image(cfg, model, photograph)
    stages = [(i, -1) for i in range(4)]
    attentions = attention_of_blocks(model, view, (60, 30), stages)
    for attention in attentions:
        assert attention.weights.sum(axis=1) == pytest.approx(1)
        left, top, right, bottom = attention.query
        assert left <= 60 < right and top <= 30 < bottom
    figure = draw_attention(view, attentions)
    out = tmp_path / f'figure.{suffix}'
    figure.savefig(out, dpi=150)
    plt.close(figure)
    if suffix == 'svg':
        tags = [element.tag.rpartition('}')[2] for element in ElementTree.parse(out).iter()]
        assert tags.count('image') >= 5 and tags.count('path') > 100
    else:
        figure = cv2.imread(str(out))
        assert figure.shape[1] == pytest.approx(8.5 / 2.54 * 150, abs=1)
        assert (figure != 255).any(axis=2).mean() > 0.25 and figure.std() > 20
        # Nothing is cut off at the right, and the query is marked in the colour that is its own.
        assert (figure[:, -2:] == 255).all()
        assert (np.abs(figure.astype(int) - (0, 0x5E, 0xD5)).max(axis=2) < 16).sum() > 50
    if name == 'focal_in1k':
        with pytest.raises(
            UserError, match=r'cropped away .* x from 21\.0 to 79\.8 and y from 4\.2 to'
        ):
            attention_weights(model, view, (3, 30), 0)


def run_tool(monkeypatch, *args, status=0):
    monkeypatch.setattr(sys, 'argv', ['show_attention', *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        cli.run('show_attention')
    assert (stop.value.code or 0) == status


def test_tool_draws_a_checkpoint_and_its_heads(monkeypatch, capsys, tmp_path, photograph):
    cfg = load_config('focal_maskrcnn_shapes')
    model = load_model(cfg, None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    out = tmp_path / 'new/figure.png'
    args = ['focal_maskrcnn_shapes', tmp_path / 'model.pth', photograph, '--point', 100, 0]
    run_tool(monkeypatch, *args, '--out', out, '--stages', 2, 3, '--blocks', 1, 2, '--heads')
    written = sorted(path.name for path in out.parent.iterdir())
    assert written == ['figure-stage2.png', 'figure-stage3.png', 'figure.png']
    assert all(cv2.imread(str(path)).std() > 20 for path in out.parent.iterdir())
    assert capsys.readouterr().out.count('Wrote ') == 3

    # The weights that it drew are those of the file.
    loaded = load_model(cfg, str(tmp_path / 'model.pth'))
    view = view_image(cfg, loaded, photograph)
    want, found = (attention_weights(m.eval(), view, (100, 0), 1) for m in (model, loaded))
    np.testing.assert_array_equal(found.weights, want.weights)
    assert found.weights.std() > 0
    plt.close('all')


@pytest.mark.parametrize(
    'args, expected',
    [
        (['--point', 101, 5], r'outside of the image, which is 101 pixels wide and 67 high'),
        (['--point', 5, -1], r'The point 5 -1 is outside'),
        (['--point', 5, 5, '--stages', 5], r'no stage 5 .*: the backbone has 4'),
        (['--point', 5, 5, '--blocks', 3], r'Stage 1 has no block 3 .*: it has 1'),
        (['--point', 5, 5, '--blocks', 0], r"from 1, got '0'"),
        (['--point', 5, 5, '--blocks', 1, 1], r'one for each of 4 stages, got 2'),
        (['--point', 5, 5, '--out', 'a.jpg'], r'--out must end in \.png or \.svg, got a\.jpg'),
        (
            [
                *('--point', 5, 5, '--cfg-options'),
                'test_dataloader.dataset.pipeline.1.type=RandomAffine',
            ],
            r'has RandomAffine, through which places in an image cannot be followed',
        ),
    ],
)
def test_errors_say_what_was_expected(monkeypatch, capsys, photograph, args, expected):
    run_tool(monkeypatch, 'focal_maskrcnn_shapes', 'none', photograph, *args, status=2)
    message = capsys.readouterr().err
    assert 'Traceback' not in message
    assert re.search(expected, message)


def test_images_and_models_that_do_not_serve_are_named(tmp_path):
    cfg = load_config('focal_maskrcnn_shapes')
    broken = tmp_path / 'broken.jpg'
    broken.write_bytes(b'no image')
    with pytest.raises(UserError, match=r'broken\.jpg'):
        view_image(cfg, nn.Module(), broken)
    with pytest.raises(UserError, match='Linear has no backbone of type FocalTransformer'):
        find_backbone(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r'must be \(1, C, H, W\), got \(2, 3, 8, 8\)'):
        attention_weights(random_backbone('wrap'), torch.rand(2, 3, 8, 8), (0, 0), 0)
    cfg.pop('test_dataloader')
    good, _ = marked(tmp_path)
    with pytest.raises(UserError, match=r'has no test_dataloader\.dataset\.pipeline'):
        view_image(cfg, nn.Module(), good)
