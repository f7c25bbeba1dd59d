"""Triton kernels without a GPU: what they read, and what Triton's interpreter makes of them.

On a GPU test_focal_attention.py runs them as they are; test_count_kernels.py compiles them.
"""

import os
import re
import subprocess
import sys
import weakref
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_geometry import outputs_of
from torch import Tensor

triton = pytest.importorskip('triton', reason='Triton is not installed')
from mmfocal.geometry import ClosestGeometry, FocalGeometry
from mmfocal.geometry.caching import TableCache, bytes_of
from mmfocal.ops.triton import layout
from mmfocal.ops.triton.forward_pass import run_forward
from mmfocal.ops.triton.layout import layout_of

ROOT = Path(__file__).parents[1]


def version_of(package):
    return tuple(map(int, package.__version__.split('.')[:2]))


# It takes int() of arrays with one number, which numpy 2.4 no longer has.
needs_interpreter = pytest.mark.skipif(
    version_of(triton) < (3, 7) and version_of(np) >= (2, 4),
    reason=f'the interpreter of Triton {triton.__version__} fails with numpy {np.__version__}: '
    'it needs Triton 3.7, or numpy below 2.4',
)


@needs_interpreter
@pytest.mark.parametrize(
    'arguments, at_least',
    [
        # In small groups of heads, and once all at once.
        (
            [
                'tests/test_focal_attention.py',
                '-k',
                'triton and (chunks or lower_precision and published)',
            ],
            50,
        ),
        (['tests/test_checkpoint.py', '-k', 'triton and three_levels and small'], 1),
        (['tests/test_table_bias.py'], 10),
        (['tests/test_tokens.py'], 40),
    ],
    ids=['semantics', 'golden case', 'position bias', 'tokens'],
)
def test_interpreted_kernels_pass(arguments, at_least):
    """The interpreter is chosen when kernels are defined, hence a process of its own."""
    env = {**os.environ, 'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1'}
    env['CUDA_VISIBLE_DEVICES'] = ''
    env.pop('MMFOCAL_GOLDEN', None)
    command = [sys.executable, '-m', 'pytest', *arguments, '--show-capture=no', '-rf']
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    passed = re.search(r'(\d+) passed', done.stdout)
    assert done.returncode == 0 and passed, done.stdout[-3000:] + done.stderr[-3000:]
    assert int(passed[1]) >= at_least


GEOMETRY = FocalGeometry(focal_window=15)  # stage 1 of the detection setting


def test_layout_is_filled_up_to_whole_tiles():
    layout = layout_of(GEOMETRY.keys(50, 84), torch.device('cpu'))
    assert layout.queries.shape[1] == 64 and layout.slots.shape[1] == 448
    assert layout.num_slots == 394 and layout.open_slots == 128 and layout.regions is None


@pytest.mark.parametrize('size', [(3, 8), (14, 21)])
@pytest.mark.parametrize('shift', [0, 3])
def test_layout_holds_the_keys_and_nothing_else(size, shift):
    geometry = FocalGeometry(focal_window=3, shift_size=shift)
    keys = geometry.keys(*size)
    tables, layout = keys.tables(), layout_of(keys, torch.device('cpu'))
    listed = layout.slots[:, : keys.num_keys]
    assert torch.equal(listed >= 0, tables.valid)
    assert torch.equal(listed[tables.valid].long(), tables.index[tables.valid])
    assert (layout.slots[:, keys.num_keys :] == -1).all()
    assert torch.equal(layout.queries[:, :49].long(), tables.queries)
    assert (layout.queries[:, 49:] == -1).all()
    assert torch.equal(layout.outputs[:, :49].long(), outputs_of(keys))
    assert (layout.outputs[:, 49:] == -1).all()
    assert layout.num_outputs == size[0] * size[1]
    assert tables.allowed()[..., : layout.open_slots].all()
    assert (layout.open_slots > 0) == (shift == 0)
    if layout.regions is not None:
        bits = layout.regions[:, : keys.num_keys]
        seen = (bits[:, :49, None] & bits[:, None]) != 0
        asked = layout.outputs[:, :49] >= 0
        assert torch.equal(seen[asked], tables.allowed().expand(-1, 49, -1)[asked])
    assert layout.columns is None
    entries, offsets = tables.readers
    assert torch.equal(layout.entries[layout.offsets[0] :], entries)
    assert torch.equal(layout.offsets - layout.offsets[0], offsets)


def test_layout_of_the_closest_keys_has_their_columns():
    keys = ClosestGeometry(top_k=30).keys(15, 22)
    tables, layout = keys.tables(), layout_of(keys, torch.device('cpu'))
    assert keys.num_keys == 42 and layout.columns.shape == layout.slots.shape == (12, 64)
    assert torch.equal(layout.columns[:, :42].long(), tables.columns)
    assert (layout.slots[:, :42] >= 0).all() and (layout.slots[:, 42:] == -1).all()
    assert layout.open_slots == 0 and layout.regions is None
    assert torch.equal(layout.outputs[:, :49].long(), outputs_of(keys))
    assert torch.equal(layout.entries, tables.readers[0])
    assert torch.equal(layout.offsets, tables.readers[1])
    assert layout_of(ClosestGeometry().keys(56, 56), torch.device('cpu')).open_slots == 192


@pytest.mark.parametrize(('size', 'shared'), [((15, 22), False), ((112, 105), True)])
def test_runs_are_of_windows_with_the_same_columns(size, shared):
    keys = ClosestGeometry(top_k=30).keys(*size)
    columns, runs = keys.tables().columns, layout_of(keys, torch.device('cpu')).runs
    windows, starts = runs.windows.long(), runs.starts.tolist()
    assert torch.equal(windows.sort().values, torch.arange(keys.num_windows))
    listed = []
    for first, last in pairwise(starts):
        assert 0 < last - first <= layout.RUN_WINDOWS
        of_run = columns[windows[first:last]]
        assert (of_run == of_run[0]).all()
        listed.append(of_run[0])
    listed = torch.stack(listed).flatten()
    assert len(listed) == len(runs.entries) and runs.offsets[-1] == len(listed)
    for column, (first, last) in enumerate(pairwise(runs.offsets.tolist())):
        assert last > first and (listed[runs.entries[first:last].long()] == column).all()
    # On a map of 16x15 windows the 56 inside, four cells from the border, are all the same.
    assert (len(starts) - 1 < keys.num_windows) == shared


def test_images_beyond_32_bits_are_refused():
    keys = GEOMETRY.keys(9100, 9100)
    qkv = torch.zeros(1).expand(1, keys.num_tokens, 3, 3, 32)
    bias = torch.zeros(3, 49, keys.num_keys)
    with pytest.raises(ValueError, match=r'2,147,483,648.*24,336,000,000.*gather_sdpa'):
        run_forward(qkv, keys, bias, 0.2)


def test_layouts_are_kept_up_to_their_bytes():
    first = GEOMETRY.keys(20, 30)
    made = layout_of(first, torch.device('cpu'))
    assert layout_of(first, torch.device('cpu')) is made
    assert any(each is made for each in layout.layouts)
    shared = made.queries.nbytes if made.queries is made.outputs else 0
    tables = [each.nbytes for each in made if isinstance(each, torch.Tensor)]
    assert bytes_of(made) == sum(tables) - shared


# --- Tables on a GPU, which the CPU stands in for ---------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """What a cache does with a GPU: tables are on the CPU, and what it is told is noted.

    Attributes:
        device: for ``get``.
        cache: of layouts, up to a limit in bytes.
        capturing: whether a CUDA graph is captured, to be changed.
        events: ``'made'`` and ``'waited'``, in order.
        alive: of each wait, whether the tensor that ``watched`` refers to was there.
        held: references to tensors whose memory waits for the current stream.
    """
    state = SimpleNamespace(
        device=torch.device('cuda', 3), capturing=False, events=[], alive=[], watched=None, held=[]
    )

    def make_on_cpu(keys, device):
        assert device == state.device
        state.events.append('made')
        return layout.make_layout(keys, torch.device('cpu'))

    def wait(device=state.device):
        assert device == state.device
        state.events.append('waited')
        state.alive.append(state.watched is not None and state.watched() is not None)

    state.cache = lambda limit=2**29: TableCache(make_on_cpu, bytes_of, limit)
    monkeypatch.setattr(torch.cuda, 'Stream', lambda device: SimpleNamespace(synchronize=wait))
    monkeypatch.setattr(torch.cuda, 'stream', lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, 'synchronize', wait)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: state.capturing)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 3)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: 'current')

    def record_stream(tensor, stream):
        assert stream == 'current'
        state.held.append(weakref.ref(tensor))

    monkeypatch.setattr(Tensor, 'record_stream', record_stream)
    return state


def test_tables_that_a_graph_reads_are_never_freed(gpu):
    keys = GEOMETRY.keys(20, 30)
    cache = gpu.cache(bytes_of(layout_of(keys, 'cpu')))
    captured = cache.get(keys, gpu.device)
    gpu.capturing = True
    assert cache.get(keys, gpu.device) is captured
    gpu.capturing = False
    for side in range(31, 50):
        cache.get(GEOMETRY.keys(20, side), gpu.device)
    assert len([*cache]) == 2 and cache.get(keys, gpu.device) is captured
    assert gpu.events.count('made') == 20


def test_nothing_is_made_while_a_graph_is_captured(gpu):
    cache, keys = gpu.cache(), GEOMETRY.keys(20, 30)
    gpu.capturing = True
    with pytest.raises(RuntimeError, match=r'captured.* no tables yet for maps of \(20, 30\)'):
        cache.get(keys, gpu.device)
    assert not gpu.events and not [*cache]
    gpu.capturing = False
    cache.get(keys, gpu.device)
    assert gpu.events == ['made', 'waited']  # before any stream reads them


def test_the_gpu_is_done_with_tables_before_they_are_freed(gpu):
    cache = gpu.cache(1)
    first = cache.get(GEOMETRY.keys(20, 30), gpu.device)
    gpu.watched, gpu.alive = weakref.ref(first.slots), []
    del first
    cache.get(GEOMETRY.keys(31, 30), gpu.device)
    assert gpu.alive == [True, True]  # when the others were made, and when these were let go
    assert gpu.watched() is None


def test_tables_that_are_let_go_outlive_the_work_of_who_still_holds_them(gpu):
    """Their memory is the making stream's, which would use it again at once."""
    cache = gpu.cache(1)
    first = cache.get(GEOMETRY.keys(20, 30), gpu.device)
    assert not gpu.held
    cache.get(GEOMETRY.keys(31, 30), gpu.device)
    tensors = {id(each) for each in (*first, *(first.runs or ())) if isinstance(each, Tensor)}
    assert {id(each()) for each in gpu.held} == tensors


def test_a_device_without_a_number_is_the_current_one(gpu):
    cache, keys = gpu.cache(), GEOMETRY.keys(20, 30)
    assert cache.get(keys, 'cuda') is cache.get(keys, gpu.device)
    assert gpu.events.count('made') == 1
