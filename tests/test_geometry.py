"""Which keys a window attends to."""

from contextlib import suppress
from dataclasses import replace
from threading import Barrier, BrokenBarrierError, Thread

import oracle
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from mmfocal.geometry import FocalGeometry, KeyTables
from mmfocal.geometry.caching import TableCache, bytes_of
from mmfocal.geometry.tables import readers_of
from tools.dev.timing.tables import OpCounter

SETTINGS = {
    'published': FocalGeometry(focal_window=7),
    'dense-shift': FocalGeometry(focal_window=5, shift_size=3),
    'three-levels': FocalGeometry(focal_level=3, focal_window=3),
    'mask': FocalGeometry(focal_window=3, border='mask'),
    'mask-shift-levels': FocalGeometry(
        window_size=5, expand_size=2, shift_size=2, focal_level=3, focal_window=1, border='mask'
    ),
    'even-window': FocalGeometry(window_size=4, expand_size=1, focal_level=4, focal_window=3),
    'wide-ring': FocalGeometry(window_size=3, expand_size=3, focal_level=1),
    'window-of-one': FocalGeometry(window_size=1, expand_size=1, focal_level=2, focal_window=3),
}
SMALL = [(height, width) for height in range(1, 21) for width in range(1, 21)]
LARGE = [(50, 84), (61, 7), (3, 97)]


def names_of_tokens(keys):
    """Name of every row of the token axis, as the oracle calls it."""
    names = [
        ('token', row, col)
        for row in range(keys.padded_size[0])
        for col in range(keys.padded_size[1])
    ]
    for level, (rows, cols) in enumerate(keys.pooled_sizes, start=1):
        names += [('cell', level, row, col) for row in range(rows) for col in range(cols)]
    return names


def outputs_of(keys):
    """Row of each query in the output, int64 ``(nW, Wh * Ww)``; -1 for padding."""
    (height, width), (_, padded_width) = keys.map_size, keys.padded_size
    queries = keys.tables().queries
    row, col = queries // padded_width, queries % padded_width
    return torch.where((row < height) & (col < width), row * width + col, -1)


def assert_as_oracle(geometry, height, width):
    keys = geometry.keys(height, width)
    windows = oracle.keys_of_windows(
        height,
        width,
        geometry.window_size,
        geometry.expand_size,
        geometry.shift_size,
        geometry.focal_level,
        geometry.focal_window,
        geometry.border,
    )
    names = names_of_tokens(keys)
    assert len(names) == keys.num_tokens
    assert keys.num_windows == len(windows)
    tables = keys.tables()
    assert tables.num_tokens == keys.num_tokens
    assert tables.index.shape == (keys.num_windows, keys.num_keys)
    queries, index = tables.queries.tolist(), tables.index.tolist()
    allowed = tables.allowed().tolist()
    for w, (expected_queries, expected_keys) in enumerate(windows):
        assert [names[row] for row in queries[w]] == [name for name, _ in expected_queries]
        assert keys.num_keys == len(expected_keys)
        for j, entry in enumerate(expected_keys):
            if entry is not None:
                assert names[index[w][j]] == entry[0]
        # Either one row for all queries of the window or one for each.
        for i, row in enumerate(allowed[w]):
            seen_by = expected_queries if len(allowed[w]) == 1 else [expected_queries[i]]
            for _, region in seen_by:
                expected = [e is not None and e[1] in (0, region) for e in expected_keys]
                assert row == expected


@pytest.mark.parametrize('name', SETTINGS)
def test_keys_are_the_oracles_on_every_small_map(name):
    # Every second setting sees every second size: together all settings see odd and even sides.
    for height, width in SMALL:
        if name in ('published', 'mask-shift-levels') or (height + width) % 3 == 0:
            assert_as_oracle(SETTINGS[name], height, width)


@pytest.mark.parametrize('height, width', LARGE)
def test_keys_are_the_oracles_on_large_maps(height, width):
    assert_as_oracle(SETTINGS['published'], height, width)
    assert_as_oracle(SETTINGS['three-levels'], height, width)


@pytest.mark.parametrize('name', SETTINGS)
@pytest.mark.parametrize('size', [(1, 1), (7, 7), (13, 20)])
def test_every_token_is_a_query_once(name, size):
    keys = SETTINGS[name].keys(*size)
    queries = keys.tables().queries.flatten()
    assert keys.num_map_tokens == keys.padded_size[0] * keys.padded_size[1]
    assert torch.equal(queries.sort().values, torch.arange(keys.num_map_tokens))


@pytest.mark.parametrize('name', SETTINGS)
@pytest.mark.parametrize('size', [(1, 1), (7, 7), (13, 20)])
def test_every_token_of_the_map_has_an_output_and_padding_has_none(name, size):
    keys = SETTINGS[name].keys(*size)
    expected = outputs_of(keys)
    assert keys.num_outputs == size[0] * size[1] == (expected >= 0).sum()
    outputs = keys.make_lists(torch.device('cpu'), 1).outputs
    assert torch.equal(outputs.long(), expected)
    of_map = expected.flatten()[keys.tables().inverse]
    assert torch.equal(of_map, torch.arange(keys.num_outputs))


@pytest.mark.parametrize('name', SETTINGS)
@pytest.mark.parametrize('size', [(1, 1), (7, 7), (13, 20)])
def test_lists_are_the_tables_with_filling(name, size):
    keys = SETTINGS[name].keys(*size)
    tables = keys.tables()
    lists = keys.make_lists(torch.device('cpu'), 32)
    listed = [lists.queries, lists.outputs, lists.keys]
    wanted = [tables.queries, outputs_of(keys), tables.index.masked_fill(~tables.valid, -1)]
    for got, want in zip(listed, wanted, strict=True):
        count = want.shape[1]
        assert got.dtype == torch.int32 and got.is_contiguous()
        assert got.shape[1] % 32 == 0 and got.shape[1] - count < 32
        assert torch.equal(got[:, :count].long(), want) and (got[:, count:] == -1).all()
    if tables.region is None:
        assert lists.regions is None
    else:
        assert torch.equal(lists.regions[:, : keys.num_keys].long(), tables.region)
        assert (lists.regions[:, keys.num_keys :] == 0).all()


@pytest.mark.parametrize('name', SETTINGS)
@pytest.mark.parametrize('size', [(1, 1), (7, 7), (13, 20)])
def test_graphs_compute_the_same_tables(name, size, monkeypatch):
    keys = SETTINGS[name].keys(*size)
    expected = vars(keys.make_tables('cpu'))
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    for what, value in vars(keys.make_tables('cpu')).items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == expected[what].dtype and torch.equal(value, expected[what])
        else:
            assert value == expected[what]


def test_tables_are_made_of_few_operators():
    keys = FocalGeometry(focal_window=15).keys(50, 84)
    with OpCounter() as counter:
        lists = keys.make_lists(torch.device('cpu'), 64)
        readers_of(lists.keys[:, : keys.num_keys], keys.num_tokens)
    # Queries, outputs and keys as sums with -1 for what is missing; then a copy without filling,
    # which counts twice, a sort, and where each number begins. On a GPU there is a copy from the
    # host besides.
    assert counter.count <= 12


@pytest.mark.parametrize('name', SETTINGS)
@pytest.mark.parametrize('size', [(1, 1), (13, 20)])
def test_readers_are_the_index_the_other_way_round(name, size):
    tables = SETTINGS[name].keys(*size).tables()
    entries, offsets = (t.tolist() for t in tables.readers)
    assert offsets[0] == 0 and offsets[-1] == len(entries) == tables.num_valid
    index, valid = tables.index.flatten().tolist(), tables.valid.flatten().tolist()
    for token in range(tables.num_tokens):
        readers = entries[offsets[token] : offsets[token + 1]]
        assert readers == [i for i in sorted(readers) if valid[i] and index[i] == token]


def test_what_windows_see_is_told_in_short():
    open_, hidden = FocalGeometry(focal_level=1), FocalGeometry(focal_window=3)
    assert all(open_.keys(9, 9).tables().all_allowed)
    assert hidden.keys(21, 21).tables().all_allowed == [False] * 4 + [True] + [False] * 4
    keyless = FocalGeometry(window_size=4, expand_size=0, shift_size=2, focal_level=1)
    assert not keyless.keys(5, 9).tables().any_keyless
    assert replace(keyless, border='mask').keys(5, 9).tables().any_keyless


def test_authors_ring_lists_12_of_120_positions_twice():
    geometry = FocalGeometry()
    offsets = geometry.ring_offsets()
    once, first, second = geometry.ring_listings()
    assert (len(offsets), len(once), len(first), len(second)) == (120, 108, 12, 12)
    assert len(offsets.unique(dim=0)) == 120
    inside = ((offsets >= 0) & (offsets < 7)).all(dim=1)
    assert not inside.any()
    assert offsets.min() == -3 and offsets.max() == 9


@pytest.mark.parametrize('window, expand', [(7, 3), (7, 1), (4, 2), (5, 5), (1, 1)])
def test_listings_of_the_ring_are_the_authors(window, expand):
    geometry = FocalGeometry(window_size=window, expand_size=expand, focal_level=1)
    listed = oracle.ring_as_authors_list_it(window, expand)
    offsets = [tuple(offset) for offset in geometry.ring_offsets().tolist()]
    once, first, second = geometry.ring_listings()
    assert sorted(once + first + second) == list(range(len(listed)))
    assert [listed[i] for i in once + first] == offsets
    assert [listed[i] for i in second] == offsets[len(once) :]


def test_wrapping_ring_reaches_the_opposite_border():
    geometry = FocalGeometry(expand_size=3, focal_level=1)
    ring = geometry.sources()['ring']
    wrapped = geometry.keys(21, 21).tables().index[0, ring]  # the first window, at the top left
    rows, cols = wrapped // 21, wrapped % 21
    assert set(rows.tolist()) == {*range(10), 18, 19, 20}
    assert set(cols.tolist()) == {*range(10), 18, 19, 20}


def test_masked_border_hides_what_is_no_token_of_the_map():
    geometry = FocalGeometry(focal_level=2, focal_window=3, border='mask')
    tables = geometry.keys(10, 10).tables()  # padded to 14x14
    fine = slice(geometry.sources()['ring'].stop)
    tokens, index = tables.valid[:, fine], tables.index[:, fine]
    assert (index[tokens] // 14 < 10).all() and (index[tokens] % 14 < 10).all()
    assert not tokens.all()


def test_sources_cover_the_key_axis_in_order():
    sources = FocalGeometry(focal_level=3, focal_window=5).sources()
    assert list(sources) == ['window', 'ring', 'level1', 'level2']
    assert [s.stop - s.start for s in sources.values()] == [49, 120, 25, 36]
    assert [s.start for s in sources.values()] == [0, 49, 169, 194]


def test_tables_are_cached_per_size():
    geometry = FocalGeometry()
    assert geometry.keys(9, 9).tables() is geometry.keys(9, 9).tables('cpu')
    assert geometry.keys(9, 9).tables() is FocalGeometry().keys(9, 9).tables()
    assert geometry.keys(9, 9).tables() is not geometry.keys(9, 10).tables()


def test_cache_is_bounded_by_bytes_of_tables_with_their_readers():
    keys = [FocalGeometry().keys(30, side) for side in range(20, 60)]
    largest = keys[-1].make_tables('cpu').bytes()
    limit = 10 * largest
    cache = TableCache(lambda keys, device: keys.make_tables(device), KeyTables.bytes, limit)
    for each in keys:
        tables = cache.get(each, 'cpu')
        before = tables.bytes()
        listed = tables.readers
        assert tables.bytes() == before > sum(each.nbytes for each in listed)
        assert cache.get(each, 'cpu') is tables
        assert sum(each.bytes() for each in cache) <= limit
    kept = [*cache]
    assert len(kept) >= 10 and kept[-1] is tables
    assert cache.get(keys[-2], 'cpu') is kept[-2]
    assert cache.get(keys[0], 'cpu') is not cache.get(keys[-1], 'cpu')
    assert [*cache][-2].num_tokens == keys[0].num_tokens


def test_one_table_is_kept_whatever_it_takes():
    cache = TableCache(lambda keys, device: keys.make_tables(device), KeyTables.bytes, 1)
    first, second = (FocalGeometry().keys(9, side) for side in (9, 10))
    tables = cache.get(first, 'cpu')
    assert cache.get(first, 'cpu') is tables
    assert cache.get(second, 'cpu') is cache.get(second, 'cpu')
    assert cache.get(first, 'cpu') is not tables


def test_caches_that_need_each_other_do_not_wait_for_each_other():
    """Each of two threads makes something in the cache that the other one needs for that."""
    sizes = [FocalGeometry().keys(9, side).with_plain_sizes() for side in range(9, 13)]
    both_inside = Barrier(2)

    def make_from(other, needed):
        def make(keys, device):
            if keys == needed:
                return torch.zeros(1)
            with suppress(BrokenBarrierError):  # the other one waits outside
                both_inside.wait(timeout=1)
            return caches[other].get(sizes[other], device)

        return make

    caches = [TableCache(make_from(other, sizes[1 - other]), bytes_of, 100) for other in (1, 0)]
    threads = [
        Thread(target=cache.get, args=(keys, 'cpu'), daemon=True)
        for cache, keys in zip(caches, sizes[2:], strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    assert all(len([*cache]) == 2 for cache in caches)


def test_tables_of_fake_tensors_are_not_kept():
    keys = FocalGeometry(window_size=5).keys(14, 17)
    with FakeTensorMode():
        assert isinstance(keys.tables().index, FakeTensor)
    assert type(keys.tables().index) is Tensor


def test_tables_made_in_inference_mode_serve_training():
    geometry = FocalGeometry(window_size=6)
    with torch.inference_mode():
        tables = geometry.keys(11, 13).tables()
    values = torch.zeros(tables.num_tokens, requires_grad=True)
    values.index_select(0, tables.index[0]).sum().backward()
    assert values.grad.sum() == tables.index.shape[1]


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(window_size=0), 'window_size must be at least 1'),
        (dict(expand_size=8), 'expand_size must be between 0 and window_size = 7'),
        (dict(expand_size=-1), 'expand_size must be between 0'),
        (dict(shift_size=7), 'shift_size must be at least 0 and less than window_size = 7'),
        (dict(focal_level=0), 'focal_level must be at least 1'),
        (dict(focal_level=5), 'window_size = 7 allows at most 4 levels, got 5'),
        (dict(focal_window=4), 'focal_window must be an odd number'),
        (dict(border='zero'), "border must be one of .*'zero'"),
    ],
)
def test_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        FocalGeometry(**settings)


def test_setting_of_wrong_type_is_named():
    with pytest.raises(TypeError, match="window_size must be an int, got '7' of type str"):
        FocalGeometry(window_size='7')


def test_empty_map_is_refused():
    with pytest.raises(ValueError, match='at least 1x1 tokens, got 0x5'):
        FocalGeometry().keys(0, 5)
