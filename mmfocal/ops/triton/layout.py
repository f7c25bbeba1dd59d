"""What the kernels read besides queries, keys and values: tables of keys, and the bias."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor

from mmfocal.geometry import FocalKeys
from mmfocal.geometry.caching import TableCache, bytes_of
from mmfocal.geometry.tables import readers_of

from .launching import ceil_div, kernel, launch

# Queries and keys of a window are worked on in tiles of this many, the least that the matrix
# units of a Hopper GPU take at once. A window of 7x7 is one tile.
TILE = 64
LOG2_E = 1.4426950408889634  # the kernels take powers of 2
# Tables of different map sizes that are kept, over all devices: those of an image of 800x1344
# pixels take 7 MB.
LAYOUT_BYTES = 2**29
HOPPER = 9, 0  # its compute capability


class Launch(NamedTuple):
    """How a kernel is compiled.

    With 16-bit inputs, 128 registers let four programs share a multiprocessor of a Hopper GPU, and
    168 three; of what was tried on an H200 with heads of 32 channels, these were the fastest
    (``docs/tables/benchmark_gpu.md``). Heads of other widths have as many as they need. Other
    GPUs keep the operands of products in registers, so that a kernel may need more there.
    Products of float32 are made of three of TensorFloat-32, which comes to its accuracy, except
    where that would take more registers than there are, or more shared memory. ``python -m
    tools.dev.count_kernels`` prints what the kernels need.
    """

    num_warps: int
    num_stages: int
    maxnreg: int | None = None
    maxnreg_elsewhere: int | None = None  # on other GPUs, if another
    precision: str = 'tf32x3'

    def options(self) -> dict[str, int | None]:
        """Of the compiler."""
        return dict(num_warps=self.num_warps, num_stages=self.num_stages, maxnreg=self.maxnreg)


IN_FULL = Launch(8, 1, precision='ieee')  # products of float32 as they are
# By the bytes of a number of the inputs.
FORWARD_LAUNCH = {2: Launch(4, 2, maxnreg=128), 4: Launch(4, 3)}
QUERY_LAUNCH = {2: Launch(4, 2, maxnreg=128, maxnreg_elsewhere=168), 4: Launch(4, 3)}
KEY_LAUNCH = {2: Launch(4, 2, maxnreg=168), 4: IN_FULL}
SUM_LAUNCH = Launch(4, 3)  # what sums, or moves, without products
# Where the bias over the scale has the range and precision that it needs in float16: these are the
# scales of heads of 1 to 4096 channels.
FLOAT16_SCALES = 2**-6, 1.0
# Windows with the same columns of the bias that a program of the key kernel takes: so many leave
# little to sum, and enough programs.
RUN_WINDOWS = 16
BIAS_BLOCK = 1024  # numbers of the bias that a program of its kernels takes


class ColumnRuns(NamedTuple):
    """Windows whose keys have the same columns of the bias, in runs of some.

    Inside the map all windows have; a program of the key kernel takes a run, and loads a tile of
    the bias, or writes one of its gradient, once.
    """

    windows: Tensor  # int32 (nW,), run by run
    starts: Tensor  # int32 (runs + 1,): where each begins among `windows`
    entries: Tensor  # int32 (runs * N,): run * N + slot, column by column
    offsets: Tensor  # int32 (columns + 1,): where those of each column begin in `entries`


class Layout(NamedTuple):
    """Tables of one map. A slot is a place in a window's list of keys."""

    queries: Tensor  # int32 (nW, MQ): token of each query, -1 after the last
    outputs: Tensor  # int32 (nW, MQ): row of each query in the output, -1 for padding and after
    slots: Tensor  # int32 (nW, NS): token of each key, -1 after the last and where not valid
    regions: Tensor | None  # int32 (nW, NS): a bit for each region whose queries see the key
    columns: Tensor | None  # int32 (nW, NS), as in KeyTables
    entries: Tensor  # int32 (nW * N,), of readers_of the slots without filling
    offsets: Tensor  # int32 (num_tokens + 1,)
    runs: ColumnRuns | None  # where there are columns
    open_slots: int  # leading slots, in whole tiles, that every query of every window sees
    num_queries: int  # of a window, without filling
    num_slots: int  # of a window, without filling
    num_windows: int
    num_map_tokens: int
    num_outputs: int
    query_tiles: int  # of a window
    slot_tiles: int  # of a window


def make_layout(keys: FocalKeys, device: torch.device) -> Layout:
    """The layout of keys on a device, computed anew."""
    lists = keys.make_lists(device, TILE)
    entries, offsets = readers_of(lists.keys[:, : keys.num_keys], keys.num_tokens)
    regions, runs = lists.regions, None
    if regions is not None:
        bits = torch.tensor([15, 1, 2, 4, 8], dtype=torch.int32, device=device)
        regions = bits[regions.int()].masked_fill_(lists.keys < 0, 0)
    if lists.columns is not None:
        columns = lists.columns[:, : keys.num_keys]
        runs = column_runs(columns, keys.num_bias_columns(device))
    return Layout(
        queries=lists.queries,
        outputs=lists.outputs,
        slots=lists.keys,
        regions=regions,
        columns=lists.columns,
        entries=entries,
        offsets=offsets,
        runs=runs,
        open_slots=keys.num_open_keys // TILE * TILE,
        num_queries=keys.num_queries,
        num_slots=keys.num_keys,
        num_windows=keys.num_windows,
        num_map_tokens=keys.num_map_tokens,
        num_outputs=keys.num_outputs,
        query_tiles=ceil_div(keys.num_queries, TILE),
        slot_tiles=ceil_div(keys.num_keys, TILE),
    )


@lru_cache
def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU; Hopper's where kernels are interpreted."""
    return torch.cuda.get_device_capability(device) if device.type == 'cuda' else HOPPER


def launch_of(launches: Mapping[int, Launch], qkv: Tensor, block_dim: int) -> Launch:
    """How a kernel of attention is compiled for such inputs, and for their GPU.

    Args:
        launches: of the kernel, by the bytes of a number.
        qkv: as for :func:`mmfocal.ops.focal_attention`.
        block_dim: channels that a head fills.
    """
    on_hopper = capability_of(qkv.device) == HOPPER
    if qkv.dtype == torch.float32 and block_dim > 32 and not on_hopper:
        # Three products would need 113 KiB of shared memory, of which GeForce cards give a program
        # 99, and on an A100 would spill thousands of bytes.
        return IN_FULL
    chosen = launches[qkv.element_size()]
    if block_dim != 32:
        return chosen._replace(maxnreg=None)
    if not on_hopper and chosen.maxnreg_elsewhere:
        return chosen._replace(maxnreg=chosen.maxnreg_elsewhere)
    return chosen


def column_runs(columns: Tensor, count: int) -> ColumnRuns:
    """The runs of windows with the same columns.

    Args:
        columns: int32 ``(nW, N)``, of :class:`~mmfocal.geometry.tables.WindowLists`.
        count: columns in all.
    """
    _, kinds = torch.unique(columns, dim=0, return_inverse=True)
    kinds, windows = kinds.sort(stable=True)
    place = torch.arange(len(kinds), device=kinds.device)
    in_kind = place - torch.searchsorted(kinds, kinds)
    starts = (in_kind % RUN_WINDOWS == 0).nonzero().flatten()
    entries, offsets = readers_of(columns[windows[starts]], count)
    starts = F.pad(starts, (0, 1), value=len(kinds))
    return ColumnRuns(windows.int(), starts.int(), entries, offsets)


layouts = TableCache(make_layout, bytes_of, LAYOUT_BYTES)
layout_of = layouts.get


def filled(count: int) -> int:
    """The least number of whole tiles that hold ``count``, times their size."""
    return (count + TILE - 1) // TILE * TILE  # without negative numbers, for symbolic ones


def empty_tiled_bias(qkv: Tensor, bias: Tensor, scale: float, with_columns: bool) -> Tensor:
    """For :func:`tiled_bias`: float32 or float16 ``(nH, MQ, NS)`` or ``(nH, columns, MQ)``."""
    heads, queries, keys = bias.shape
    shape = (keys, filled(queries)) if with_columns else (filled(queries), filled(keys))
    least, most = FLOAT16_SCALES
    in_float16 = qkv.dtype != torch.float32 and least <= scale <= most
    dtype = torch.float16 if in_float16 else torch.float32
    return qkv.new_empty(heads, *shape, dtype=dtype)


def tiled_bias(qkv: Tensor, bias: Tensor, scale: float, layout: Layout) -> Tensor:
    """The bias over the scale, ``(nH, MQ, NS)``, or ``(nH, columns, MQ)`` where there are columns.

    So the matrix units add it to the products that they sum, and it takes no instruction.
    For 16-bit inputs it is kept in float16, whose rounding is finer than bfloat16's and whose
    traffic is half of float32's. A bias outside its range decides a softmax either way, unless
    those of all keys of a query are outside: 11,580 at the scale of heads with 32 channels.
    """
    tiled = empty_tiled_bias(qkv, bias, scale, layout.columns is not None)
    heads, rows, row_length = tiled.shape
    _, queries, keys = bias.shape
    of_head, of_query, of_key = bias.stride()
    wide = (keys, queries) if layout.columns is not None else (queries, keys)
    strides = (of_key, of_query) if layout.columns is not None else (of_query, of_key)
    launch(
        tile_bias_kernel,
        (ceil_div(rows * row_length, BIAS_BLOCK), heads, 1),
        (bias, tiled),
        (1 / scale, of_head, *strides, *wide, rows, row_length),
        dict(BLOCK=BIAS_BLOCK, LIMIT=torch.finfo(tiled.dtype).max),
        SUM_LAUNCH.options(),
    )
    return tiled


@kernel
def tile_bias_kernel(
    bias_ptr,
    tiled_ptr,
    factor,
    head_stride,
    row_stride,
    place_stride,
    filled_rows,
    filled_length,
    num_rows,
    row_length,
    BLOCK: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """Rows of the bias times ``factor``, with zeros after and below them.

    Grid: blocks of a head, heads.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1)
    row, place = at // row_length, at % row_length
    from_ptr = bias_ptr + head * head_stride + row * row_stride + place * place_stride
    there = (row < filled_rows) & (place < filled_length)
    bias = tl.load(from_ptr, mask=there, other=0.0).to(tl.float32) * factor
    bias = tl.clamp(bias, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    tiled_ptr += head * num_rows * row_length + at
    tl.store(tiled_ptr, bias.to(tiled_ptr.dtype.element_ty), mask=row < num_rows)
