"""The forward kernel: one program takes one tile of queries of one window and one head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmfocal.geometry import FocalKeys

from .launching import check_count, kernel, launch
from .layout import FORWARD_LAUNCH, LOG2_E, TILE, Layout, launch_of, layout_of, tiled_bias


@triton.jit
def load_rows(ptr, rows, step, channels, DIM: tl.constexpr, MASKED: tl.constexpr):
    """Rows ``(TILE, BLOCK_DIM)`` of a token-major tensor; zero where a row is negative.

    Without ``MASKED`` no row is negative.
    """
    ptr += rows[:, None] * step + channels[None, :]
    if MASKED:
        return tl.load(ptr, mask=(rows >= 0)[:, None] & (channels < DIM)[None, :], other=0.0)
    if channels.shape[0] > DIM:
        return tl.load(ptr, mask=(channels < DIM)[None, :], other=0.0)
    return tl.load(ptr)


@triton.jit
def store_rows(ptr, values, rows, step, channels, DIM: tl.constexpr):
    """Writes what :func:`load_rows` reads."""
    ptr += rows[:, None] * step + channels[None, :]
    mask = (rows >= 0)[:, None] & (channels < DIM)[None, :]
    tl.store(ptr, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def may_see(key_rows, query_regions, key_regions, HAS_REGIONS: tl.constexpr):
    """Which query of a tile may see which key, ``(queries or 1, keys)``."""
    if HAS_REGIONS:
        allowed = (query_regions[:, None] & key_regions[None, :]) != 0
    else:
        allowed = (key_rows >= 0)[None, :]
    return allowed


@triton.jit
def load_bias(bias_ptr, columns_ptr, slots, QUERIES: tl.constexpr, HAS_COLUMNS: tl.constexpr):
    """Bias of a tile of queries, at which ``bias_ptr`` points, and of ``slots``."""
    if HAS_COLUMNS:
        return tl.load(bias_ptr + (tl.load(columns_ptr + slots) * QUERIES)[None, :]).to(tl.float32)
    return tl.load(bias_ptr + slots[None, :], cache_modifier='.ca').to(tl.float32)


@triton.jit
def attend_to_slots(
    query,
    query_regions,
    total,
    largest,
    out,
    qkv_ptr,
    bias_ptr,
    slots_ptr,
    regions_ptr,
    columns_ptr,
    scale_log2,
    STEP: tl.constexpr,
    CHANNELS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    TILE: tl.constexpr,
    QUERIES: tl.constexpr,
    MASKED: tl.constexpr,
    HAS_REGIONS: tl.constexpr,
    HAS_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Online softmax over the slots from ``FIRST`` to ``LAST``, with scores to base 2.

    Of each query, ``total`` and ``largest`` are the sum of weights and the largest score so far,
    and ``out`` is the weighted sum of values.
    """
    channels = tl.arange(0, BLOCK_DIM)
    for start in range(FIRST, LAST, TILE):
        slots = start + tl.arange(0, TILE)
        rows = tl.load(slots_ptr + slots)
        key = load_rows(qkv_ptr + CHANNELS, rows, STEP, channels, DIM, MASKED)
        bias = load_bias(bias_ptr, columns_ptr, slots, QUERIES, HAS_COLUMNS)
        scores = tl.dot(query, tl.trans(key), bias, input_precision=PRECISION)
        if MASKED:
            regions = rows
            if HAS_REGIONS:
                regions = tl.load(regions_ptr + slots)
            allowed = may_see(rows, query_regions, regions, HAS_REGIONS)
            scores = tl.where(allowed, scores, float('-inf'))
        new_largest = tl.maximum(largest, tl.max(scores, 1) * scale_log2)
        # A query that has seen no key yet must not subtract infinity from infinity.
        base = tl.where(new_largest == float('-inf'), 0.0, new_largest)
        weights = tl.exp2(tl.fma(scores, tl.zeros_like(scores) + scale_log2, (-base)[:, None]))
        shrink = tl.exp2(largest - base)
        value = load_rows(qkv_ptr + 2 * CHANNELS, rows, STEP, channels, DIM, MASKED)
        total = total * shrink + tl.sum(weights, 1)
        out = tl.dot(
            weights.to(value.dtype), value, out * shrink[:, None], input_precision=PRECISION
        )
        largest = new_largest
    return total, largest, out


@kernel
def forward_kernel(
    qkv_ptr,
    bias_ptr,
    queries_ptr,
    outputs_ptr,
    slots_ptr,
    regions_ptr,
    columns_ptr,
    out_ptr,
    lse_ptr,
    scale_log2,
    num_tokens,
    num_outputs,
    num_windows,
    num_columns,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    SLOTS: tl.constexpr,
    OPEN_SLOTS: tl.constexpr,
    TILE: tl.constexpr,
    HAS_REGIONS: tl.constexpr,
    HAS_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: windows times tiles of queries, heads, images.

    Log-sum-exps are in the order of windows, ``(B, nH, nW, MQ)``, so that the backward pass reads
    those of a window side by side.
    """
    tiles: tl.constexpr = QUERIES // TILE
    step: tl.constexpr = 3 * HEADS * DIM
    window, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    head, image = tl.program_id(1), tl.cast(tl.program_id(2), tl.int64)
    qkv_ptr += image * num_tokens * step + head * DIM
    slots_ptr += window * SLOTS

    places = tile * TILE + tl.arange(0, TILE)
    channels = tl.arange(0, BLOCK_DIM)
    rows = tl.load(queries_ptr + window * QUERIES + places)
    query = load_rows(qkv_ptr, rows, step, channels, DIM, True)
    if HAS_COLUMNS:
        bias_ptr += (head * num_columns * QUERIES + places)[:, None]
        columns_ptr += window * SLOTS
    else:
        bias_ptr += ((head * QUERIES + places) * SLOTS)[:, None]
    regions = rows
    if HAS_REGIONS:
        # The first slots of a window are its queries.
        regions_ptr += window * SLOTS
        regions = tl.load(regions_ptr + places, mask=rows >= 0, other=0)

    total = tl.zeros([TILE], tl.float32)
    largest = tl.full([TILE], float('-inf'), tl.float32)
    out = tl.zeros([TILE, BLOCK_DIM], tl.float32)
    if OPEN_SLOTS > 0:
        total, largest, out = attend_to_slots(
            query, regions, total, largest, out,
            qkv_ptr, bias_ptr, slots_ptr, regions_ptr, columns_ptr, scale_log2,
            step, HEADS * DIM, DIM, BLOCK_DIM, 0, OPEN_SLOTS, TILE, QUERIES,
            False, False, HAS_COLUMNS, PRECISION,
        )  # fmt: skip
    total, largest, out = attend_to_slots(
        query, regions, total, largest, out,
        qkv_ptr, bias_ptr, slots_ptr, regions_ptr, columns_ptr, scale_log2,
        step, HEADS * DIM, DIM, BLOCK_DIM, OPEN_SLOTS, SLOTS, TILE, QUERIES,
        True, HAS_REGIONS, HAS_COLUMNS, PRECISION,
    )  # fmt: skip

    # Without any key the output is 0, and infinite log-sum-exps make all weights 0 in backward.
    keyless = total == 0
    total = tl.where(keyless, 1.0, total)
    out = out / total[:, None]
    lse = tl.where(keyless, float('inf'), largest + tl.log2(total))
    out_ptr += image * num_outputs * (HEADS * DIM) + head * DIM
    rows = tl.load(outputs_ptr + window * QUERIES + places)
    store_rows(out_ptr, out, rows, HEADS * DIM, channels, DIM)
    lse_ptr += ((image * HEADS + head) * num_windows + window) * QUERIES
    tl.store(lse_ptr + places, lse)


def run_forward(
    qkv: Tensor, keys: FocalKeys, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Output of :func:`mmfocal.ops.focal_attention`, and what ``empty_kept`` is for."""
    batch, num_tokens, _, heads, dim = qkv.shape
    check_count(num_tokens * 3 * heads * dim)
    qkv = qkv.contiguous()
    layout = layout_of(keys, qkv.device)
    windows, outputs = layout.num_windows, layout.num_outputs
    out = qkv.new_empty(batch, outputs, heads, dim)
    filled_queries = layout.query_tiles * TILE
    lse = qkv.new_empty(batch, heads, windows, filled_queries, dtype=torch.float32)
    constants = constants_of(layout, heads, dim)
    how = launch_of(FORWARD_LAUNCH, qkv, constants['BLOCK_DIM'])
    with torch.cuda.device_of(qkv):
        tiled = tiled_bias(qkv, bias, scale, layout)
        launch(
            forward_kernel,
            (windows * layout.query_tiles, heads, batch),
            (qkv, tiled, *tables_of(layout), out, lse),
            (scale * LOG2_E, num_tokens, outputs, windows, bias.shape[2]),
            dict(constants, OPEN_SLOTS=layout.open_slots, PRECISION=how.precision),
            how.options(),
        )
    return out, lse, tiled


def tables_of(layout: Layout) -> tuple[Tensor | None, ...]:
    """Tables that all kernels of attention read."""
    return layout.queries, layout.outputs, layout.slots, layout.regions, layout.columns


def constants_of(layout: Layout, heads: int, dim: int) -> dict[str, int]:
    """Constants that kernels are compiled for: the same for all sizes of a stage's map."""
    return dict(
        HEADS=heads,
        DIM=dim,
        BLOCK_DIM=max(16, 1 << (dim - 1).bit_length()),  # the least that tl.dot takes
        QUERIES=layout.query_tiles * TILE,
        SLOTS=layout.slot_tiles * TILE,
        TILE=TILE,
        HAS_REGIONS=layout.regions is not None,
        HAS_COLUMNS=layout.columns is not None,
    )
