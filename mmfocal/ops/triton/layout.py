"""What the kernels read besides queries, keys and values: tables of keys, and the bias."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from threading import Lock
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor

from mmfocal.geometry import FocalKeys

from .launching import ceil_div, kernel, launch

# Queries and keys of a window are worked on in tiles of this many, the least that the matrix
# units of a Hopper GPU take at once. A window of 7x7 is one tile.
TILE = 64
LOG2_E = 1.4426950408889634  # the kernels take powers of 2
# Tables of different map sizes that are kept, over all devices. Those of an image of 800x1344
# pixels take 7 MB, and making them takes longer than a training step of Focal-T.
LAYOUT_BYTES = 2**29


class Launch(NamedTuple):
    """How a kernel is compiled, by the bytes of a number of its inputs.

    With 16-bit inputs, 128 registers let four programs share a multiprocessor of a Hopper GPU, and
    168 three; of what was tried on an H200 with heads of 32 channels, these were the fastest
    (``docs/performance.md``). Wider heads would not fit, and have as many as they need.
    Products of float32 are made of three of TensorFloat-32, which comes to its accuracy, except
    where that would take more registers than there are. ``tests/test_triton.py`` prints what the
    kernels need.
    """

    num_warps: int
    num_stages: int
    maxnreg: int | None = None
    precision: str = 'tf32x3'

    def options(self, block_dim: int = 0) -> dict[str, int | None]:
        """Of the compiler, for heads of up to ``block_dim`` channels."""
        most = self.maxnreg if block_dim <= 32 else None
        return dict(num_warps=self.num_warps, num_stages=self.num_stages, maxnreg=most)


QUERY_LAUNCH = {2: Launch(4, 2, maxnreg=128), 4: Launch(4, 3)}  # forward, and query gradients
KEY_LAUNCH = {2: Launch(4, 2, maxnreg=168), 4: Launch(8, 1, precision='ieee')}
SUM_LAUNCH = Launch(4, 3)  # what sums, or moves, without products
BIAS_BLOCK = 1024  # numbers of the bias that a program of its kernels takes


class Layout(NamedTuple):
    """Tables of one map. A slot is a place in a window's list of keys."""

    queries: Tensor  # int32 (nW, MQ): token of each query, -1 after the last
    slots: Tensor  # int32 (nW, NS): token of each key, -1 after the last and where not valid
    regions: Tensor | None  # int8 (nW, NS), as in KeyTables
    columns: Tensor | None  # int32 (nW, NS), as in KeyTables
    entries: Tensor  # int32 (nW * N,), of KeyTables.readers
    offsets: Tensor  # int32 (num_tokens + 1,), of KeyTables.readers
    column_entries: Tensor | None  # int32 (valid keys of all windows,), of column_readers
    column_offsets: Tensor | None  # int32 (columns + 1,)
    open_slots: int  # leading slots, in whole tiles, that every query of every window sees
    num_queries: int  # of a window, without filling
    num_slots: int  # of a window, without filling
    num_windows: int
    num_map_tokens: int
    query_tiles: int  # of a window
    slot_tiles: int  # of a window

    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(each.nbytes for each in self if isinstance(each, Tensor))


class Layouts:
    """Layouts that were made, the latest used last, and no more than :data:`LAYOUT_BYTES`.

    A CUDA graph reads tables where they were when it was captured, so those that one has used are
    never freed. Layouts are complete before they are returned, and the GPU has finished its work
    before one is freed, so that streams need not wait for each other.
    """

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[FocalKeys, torch.device], Layout] = OrderedDict()
        self._captured: dict[tuple[FocalKeys, torch.device], Layout] = {}
        self._bytes = 0
        self._lock = Lock()  # the backward passes of several GPUs run in threads

    def __iter__(self) -> Iterator[Layout]:
        return iter((*self._captured.values(), *self._made.values()))

    def get(self, keys: FocalKeys, device: torch.device) -> Layout:
        """The layout of ``keys`` on ``device``, made once.

        Raises:
            RuntimeError: a CUDA graph is captured, and there is none yet.
        """
        with self._lock:
            return self._get(keys, device)

    def _get(self, keys: FocalKeys, device: torch.device) -> Layout:
        wanted = (keys, device)
        capturing = device.type == 'cuda' and torch.cuda.is_current_stream_capturing()
        layout = self._captured.get(wanted)
        if layout is not None:
            return layout
        layout = self._made.get(wanted)
        if layout is not None:
            self._made.move_to_end(wanted)
            if capturing:
                self._captured[wanted] = self._made.pop(wanted)
                self._bytes -= layout.bytes()
            return layout
        if capturing:
            raise RuntimeError(
                f'a CUDA graph is being captured, and focal attention has no tables yet for maps '
                f'of {keys.map_size} tokens; run the model once for images of this size before'
            )
        layout = self._made[wanted] = _make(keys, device)
        self._bytes += layout.bytes()
        _finish(device)
        while self._bytes > LAYOUT_BYTES and len(self._made) > 1:
            (_, its_device), oldest = self._made.popitem(last=False)
            self._bytes -= oldest.bytes()
            _finish(its_device)
        return layout


def _finish(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


layout_of = Layouts().get


def _make(keys: FocalKeys, device: torch.device) -> Layout:
    with torch.inference_mode(False), torch.no_grad():
        tables = keys.make_tables(device)
        slots = tables.index.masked_fill(~tables.valid, -1)
        entries, offsets = tables.readers
        column_entries = column_offsets = None
        if tables.columns is not None:
            column_entries, column_offsets = tables.column_readers
            column_entries = column_entries[: tables.num_valid].clone()
        return Layout(
            queries=_filled(tables.queries, -1).int(),
            slots=_filled(slots, -1).int(),
            regions=None if tables.region is None else _filled(tables.region, 0).to(torch.int8),
            columns=None if tables.columns is None else _filled(tables.columns, 0).int(),
            entries=entries,
            offsets=offsets,
            column_entries=column_entries,
            column_offsets=column_offsets,
            open_slots=keys.num_open_keys // TILE * TILE,
            num_queries=keys.num_queries,
            num_slots=keys.num_keys,
            num_windows=keys.num_windows,
            num_map_tokens=keys.num_map_tokens,
            query_tiles=ceil_div(keys.num_queries, TILE),
            slot_tiles=ceil_div(keys.num_keys, TILE),
        )


def _filled(table: Tensor, value: int) -> Tensor:
    """The last axis filled up to whole tiles."""
    return F.pad(table, (0, -table.shape[-1] % TILE), value=value)


def filled(count: int) -> int:
    """The least number of whole tiles that hold ``count``, times their size."""
    return (count + TILE - 1) // TILE * TILE  # without negative numbers, for symbolic ones


def empty_tiled_bias(qkv: Tensor, bias: Tensor, with_columns: bool) -> Tensor:
    """For :func:`tiled_bias`: float32 or float16 ``(nH, MQ, NS)`` or ``(nH, columns, MQ)``."""
    heads, queries, keys = bias.shape
    shape = (keys, filled(queries)) if with_columns else (filled(queries), filled(keys))
    dtype = torch.float32 if qkv.dtype == torch.float32 else torch.float16
    return qkv.new_empty(heads, *shape, dtype=dtype)


def tiled_bias(qkv: Tensor, bias: Tensor, layout: Layout) -> Tensor:
    """The bias times log2(e), ``(nH, MQ, NS)``, or ``(nH, columns, MQ)`` where there are columns.

    For 16-bit inputs it is kept in float16, whose rounding is finer than bfloat16's and whose
    traffic is half of float32's. A bias outside its range, 45,000 before the product, decides a
    softmax either way, unless those of all keys of a query are outside.
    """
    tiled = empty_tiled_bias(qkv, bias, layout.columns is not None)
    heads, rows, row_length = tiled.shape
    _, queries, keys = bias.shape
    of_head, of_query, of_key = bias.stride()
    wide = (keys, queries) if layout.columns is not None else (queries, keys)
    strides = (of_key, of_query) if layout.columns is not None else (of_query, of_key)
    launch(
        tile_bias_kernel,
        (ceil_div(rows * row_length, BIAS_BLOCK), heads, 1),
        (bias, tiled),
        (of_head, *strides, *wide, rows, row_length),
        dict(BLOCK=BIAS_BLOCK, LOG2_E=LOG2_E, LIMIT=torch.finfo(tiled.dtype).max),
        SUM_LAUNCH.options(),
    )
    return tiled


@kernel
def tile_bias_kernel(
    bias_ptr,
    tiled_ptr,
    head_stride,
    row_stride,
    place_stride,
    filled_rows,
    filled_length,
    num_rows,
    row_length,
    BLOCK: tl.constexpr,
    LOG2_E: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """Rows of the bias with zeros after and below them. Grid: blocks of a head, heads."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1)
    row, place = at // row_length, at % row_length
    from_ptr = bias_ptr + head * head_stride + row * row_stride + place * place_stride
    there = (row < filled_rows) & (place < filled_length)
    bias = tl.load(from_ptr, mask=there, other=0.0).to(tl.float32) * LOG2_E
    bias = tl.clamp(bias, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    tiled_ptr += head * num_rows * row_length + at
    tl.store(tiled_ptr, bias.to(tiled_ptr.dtype.element_ty), mask=row < num_rows)
