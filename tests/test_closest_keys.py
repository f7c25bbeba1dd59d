"""Which keys are the closest, where their columns of the bias stand, and the bias itself."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mmfocal.geometry import ClosestGeometry, closest
from mmfocal.geometry.caching import tensors_in
from mmfocal.models.position_bias import CoordinatePositionBias

SIZES = [(1, 1), (3, 11), (12, 12), (9, 25), (2, 40), (17, 13)]
SETTINGS = {
    'small': ClosestGeometry(window_size=4, top_k=9),
    'shift': ClosestGeometry(window_size=4, shift_size=2, top_k=14),
    'three-levels': ClosestGeometry(window_size=5, focal_level=3, top_k=6),
    'more-than-there-are': ClosestGeometry(window_size=3, top_k=500),
    'window-of-one': ClosestGeometry(window_size=1, top_k=5, focal_level=1),
}
GOLDEN = [Path(__file__).with_name('golden') / 'fast_224.npz']
if folder := os.environ.get('MMFOCAL_GOLDEN'):
    GOLDEN += sorted(Path(folder).glob('fast_*.npz'))


def level_keys(keys, level):
    """Of each window, the places of its keys on the map of the level, as lists of (row, col).

    Places on the map are those of the moved grid of windows.
    """
    tables = keys.tables()
    stop = sum(keys.keys_per_level[: level + 1])
    index = tables.index[:, stop - keys.keys_per_level[level] : stop]
    if level == 0:
        height, width = keys.padded_size
        row, col = index // width, index % width
        shift = keys.geometry.shift_size
        row, col = (row - shift) % height, (col - shift) % width
    else:
        height, width = keys.pooled_sizes[level - 1]
        start = keys.num_map_tokens + sum(h * w for h, w in keys.pooled_sizes[: level - 1])
        index = index - start
        # Level 2, 3, ... look up the numbers of level 1.
        row, col = index // keys.grid[1], index % keys.grid[1]
    places = torch.stack([row, col], dim=-1)
    return [[tuple(place) for place in window] for window in places.tolist()]


def by_distance(keys, level, centre):
    """All (squared distance, row, col) of a level from a centre, ascending; only map tokens."""
    if level == 0:
        (height, width), shift = keys.padded_size, keys.geometry.shift_size
        places = [
            (row, col)
            for row in range(height)
            for col in range(width)
            if (row + shift) % height < keys.map_size[0]
            and (col + shift) % width < keys.map_size[1]
        ]
    else:
        places = [(row, col) for row in range(keys.grid[0]) for col in range(keys.grid[1])]
    return sorted(
        ((row - centre[0]) ** 2 + (col - centre[1]) ** 2, row, col) for row, col in places
    )


def centres(keys, level):
    window = keys.geometry.window_size
    for row in range(keys.grid[0]):
        for col in range(keys.grid[1]):
            pixel = (row * window + window // 2, col * window + window // 2)
            yield pixel if level == 0 else (row, col)


@pytest.mark.parametrize('rule', ['whole map', 'near the window'])
@pytest.mark.parametrize('name', SETTINGS)
@pytest.mark.parametrize('size', SIZES)
def test_keys_are_the_closest(name, size, rule, monkeypatch):
    if rule == 'near the window':
        monkeypatch.setattr(closest, 'MAX_PAIRS', 0)
    geometry = SETTINGS[name]
    keys = geometry.keys(*size)
    tables = keys.make_tables('cpu')
    monkeypatch.setattr(type(keys), 'tables', lambda self, device='cpu': tables)
    assert tables.index.shape == (keys.num_windows, keys.num_keys)
    assert tables.valid.all() and tables.region is None
    assert keys.keys_per_level[0] == min(geometry.top_k, size[0] * size[1])
    for level in range(geometry.focal_level):
        chosen = level_keys(keys, level)
        for window, centre in enumerate(centres(keys, level)):
            count = keys.keys_per_level[level]
            expected = by_distance(keys, level, centre)[:count]
            got = sorted(
                ((row - centre[0]) ** 2 + (col - centre[1]) ** 2, row, col)
                for row, col in chosen[window]
            )
            assert len(set(got)) == count
            if rule == 'near the window':  # with ties in row-major order
                assert got == expected
            else:
                assert [entry[0] for entry in got] == [entry[0] for entry in expected]


def test_keys_of_a_corner_and_of_an_interior_window():
    # Windows of 3 on 9x9 tokens: centres at 1, 4 and 7. A token has 4 neighbours at distance 1.
    keys = ClosestGeometry(window_size=3, top_k=5, focal_level=2).keys(9, 9)
    tokens, cells = level_keys(keys, 0), level_keys(keys, 1)
    assert tokens[4] == [(3, 4), (4, 3), (4, 4), (4, 5), (5, 4)]
    assert tokens[0] == [(0, 1), (1, 0), (1, 1), (1, 2), (2, 1)]
    assert cells[4] == [(0, 1), (1, 0), (1, 1), (1, 2), (2, 1)]
    # The corner cell: itself, two at distance 1, one at sqrt 2, and one of the two at 2.
    assert set(cells[0]) > {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert len(set(cells[0]) & {(0, 2), (2, 0)}) == 1


def test_offsets_lead_from_key_to_centre_in_tokens():
    keys = ClosestGeometry(window_size=3, top_k=5).keys(9, 9)
    tables = keys.tables()
    offsets = torch.cat(tables.offsets)[tables.columns]
    expected = torch.tensor([[1, 0], [0, 1], [0, 0], [0, -1], [-1, 0]]).float()
    assert torch.equal(offsets[4, :5], expected)
    assert torch.equal(offsets[4, 5:], 3 * expected)
    # All windows have these tokens around their centre, so that they share five columns.
    assert len(tables.offsets[0]) == 5 and (tables.columns[:, :5] == tables.columns[4, :5]).all()
    assert len(tables.offsets[1]) > 5


@pytest.mark.parametrize('name', SETTINGS)
@pytest.mark.parametrize('size', SIZES)
def test_columns_stand_for_different_offsets_and_all_are_used(name, size):
    keys = SETTINGS[name].keys(*size)
    tables = keys.tables()
    start = 0
    for level, offsets in enumerate(tables.offsets):
        first = sum(keys.keys_per_level[:level])
        columns = tables.columns[:, first : first + keys.keys_per_level[level]]
        assert torch.equal(columns.unique(), torch.arange(start, start + len(offsets)))
        assert len(offsets.unique(dim=0)) == len(offsets)
        side = 1 if level == 0 else keys.geometry.window_size
        chosen = torch.tensor(level_keys(keys, level))
        centre = torch.tensor(list(centres(keys, level)))[:, None]
        assert torch.equal(offsets[columns - start], (side * (centre - chosen)).float())
        start += len(offsets)
    assert keys.num_bias_columns('cpu') == start


@pytest.mark.parametrize('path', GOLDEN, ids=lambda path: path.stem)
def test_ties_are_resolved_as_in_the_authors_tables(path):
    arrays = np.load(path)
    config = json.loads(str(arrays['config']))
    for stage, size in enumerate(arrays['resolution'].tolist()):
        window = min(config['window_size'], *size)
        keys = ClosestGeometry(window, top_k=config['focal_topK']).keys(*size)
        for level in range(2):
            name = f'state.layers.{stage}.blocks.0.attn.topk_cloest_indice_{level}'
            width = size[1] if level == 0 else keys.grid[1]
            for ours, theirs in zip(level_keys(keys, level), arrays[name].tolist(), strict=True):
                assert sorted(row * width + col for row, col in ours) == sorted(theirs)


def test_large_maps_are_not_compared_pair_by_pair():
    keys = ClosestGeometry().keys(200, 334)  # the first stage at 800x1333 pixels
    assert keys.num_windows * 200 * 334 > closest.MAX_PAIRS
    tables = keys.make_tables('cpu')
    # An interior window: 128 tokens within a radius of 6.4.
    window = 14 * 48 + 24
    offsets = torch.cat(tables.offsets)[tables.columns[window]]
    assert offsets[:128].norm(dim=1).max() < 6.5
    assert sum(map(len, tables.offsets)) < 1000


def test_padding_is_never_a_key():
    keys = ClosestGeometry(window_size=4, shift_size=2, top_k=30, focal_level=1).keys(5, 6)
    index = keys.tables().index
    assert (index // 8 < 5).all() and (index % 8 < 6).all()
    assert all(len(row.unique()) == 30 for row in index)


def test_finer_pooled_levels_look_up_the_numbers_of_the_first():
    # As the authors' code does, see `ClosestKeys.make_tables`.
    keys = ClosestGeometry(window_size=4, top_k=3, focal_level=3).keys(8, 12)
    first, second = keys.tables().index[:, 3:].split(3, dim=1)
    assert torch.equal(first - keys.num_map_tokens, second - keys.num_map_tokens - 2 * 3)


def test_each_key_has_a_column_of_its_own_on_a_map_with_separate_columns():
    geometry = ClosestGeometry(window_size=4, top_k=7, separate_height=9, separate_width=10)
    shared = ClosestGeometry(window_size=4, top_k=7).keys(9, 10).tables()
    tables = geometry.keys(9, 10).tables()
    assert torch.equal(tables.index, shared.index)
    assert len(tables.columns.unique()) == tables.columns.numel()
    for each in (tables, shared):
        each_offset = torch.cat(each.offsets)[each.columns]
        assert torch.equal(each_offset, torch.cat(shared.offsets)[shared.columns])
    assert not geometry.keys(9, 11).separate


@pytest.mark.parametrize(
    'settings, error, message',
    [
        (dict(top_k=0), ValueError, 'top_k must be at least 1 key, got 0'),
        (dict(top_k=2.0), TypeError, r'top_k must be an int, got 2\.0 of type float'),
        (dict(window_size=0), ValueError, 'window_size must be at least 1 token, got 0'),
        (dict(shift_size=7), ValueError, 'shift_size must be at least 0 and less than'),
        (dict(focal_level=5), ValueError, 'window_size = 7 allows at most 4 levels, got 5'),
    ],
)
def test_setting_out_of_range_is_named(settings, error, message):
    with pytest.raises(error, match=message):
        ClosestGeometry(**settings)


def mlp_bias(geometry, heads=2, head_dims=4):
    torch.manual_seed(0)
    return CoordinatePositionBias(geometry, heads, head_dims).double()


def test_bias_is_the_mlp_of_query_minus_key():
    geometry = ClosestGeometry(window_size=3, top_k=5)
    keys, module = geometry.keys(9, 9), mlp_bias(geometry)
    bias, tables = module(keys), keys.tables()
    assert bias.shape == (2, 9, keys.num_bias_columns('cpu'))
    for window, query, key in ((4, 0, 1), (0, 8, 4), (7, 5, 9), (2, 3, 5)):
        level = int(key >= 5)
        row, col = level_keys(keys, level)[window][key - 5 * level]
        at = (window // 3, window % 3)
        if level == 0:  # positions on the map
            relative = (at[0] * 3 + query // 3 - row, at[1] * 3 + query % 3 - col)
        else:  # from the cell to the window's cell, in tokens, to the query
            relative = (
                (at[0] - row) * 3 + query // 3 - 1,
                (at[1] - col) * 3 + query % 3 - 1,
            )
        expected = module.mlps[level](torch.tensor(relative).double())
        got = bias[:, query, tables.columns[window, key]]
        torch.testing.assert_close(got, expected)


def test_stored_coordinates_replace_the_computed_ones_on_their_map_alone():
    settings = dict(window_size=4, top_k=7)
    stored = mlp_bias(ClosestGeometry(**settings, separate_height=9, separate_width=10))
    plain = mlp_bias(ClosestGeometry(**settings))
    assert {name for name in stored.state_dict() if name not in plain.state_dict()} == {
        'coordinates.0',
        'coordinates.1',
    }

    def of_keys(module, geometry, size):
        keys = geometry.keys(*size)
        return module(keys)[:, :, keys.tables().columns]

    separate = ClosestGeometry(**settings, separate_height=9, separate_width=10)
    shared = ClosestGeometry(**settings)
    for size in ((9, 10), (10, 9)):
        torch.testing.assert_close(of_keys(stored, separate, size), of_keys(plain, shared, size))
    stored.coordinates.get_buffer('1').add_(1)
    assert not torch.allclose(of_keys(stored, separate, (9, 10)), of_keys(plain, shared, (9, 10)))
    torch.testing.assert_close(of_keys(stored, separate, (10, 9)), of_keys(plain, shared, (10, 9)))


def test_bias_keeps_its_precision_under_autocast():
    geometry = ClosestGeometry()
    keys, module = geometry.keys(70, 90), CoordinatePositionBias(geometry, 3, 32)
    # Autocast leaves float64 alone, wherever it is switched on.
    expected = copy.deepcopy(module).double()(keys)
    plain = module(keys)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(module(keys), plain)
    torch.testing.assert_close(plain.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('device', ['meta', 'cpu'])
def test_tables_are_made_wherever_tensors_are_by_default(device):
    keys = ClosestGeometry(window_size=3, top_k=11).keys(16, 17 + len(device))  # of only this test
    with torch.device('meta'):
        tables = keys.tables(device)
    assert {each.device.type for each in tensors_in(tables)} == {device}
    assert torch.equal(keys.tables().index, keys.make_tables('cpu').index)
