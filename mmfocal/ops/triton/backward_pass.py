"""The backward kernels: gradients of queries, of keys and values with the bias, and their sums.

With weights ``P``, their gradients ``dP = dO V^T`` and ``delta = rowsum(dO * O)``, scores have
the gradient ``dS = P * (dP - delta)``, and ``dQ = scale dS K``, ``dK = scale dS^T Q``,
``dV = P^T dO``; the bias has the sum of ``dS`` over windows and images. ``P`` is computed anew
from the log-sum-exps that the forward pass kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmfocal.geometry import FocalKeys

from .forward_pass import constants_of, load_bias, load_rows, may_see, store_rows, tables_of
from .launching import ceil_div, kernel, launch
from .layout import (
    KEY_LAUNCH,
    LOG2_E,
    QUERY_LAUNCH,
    SUM_LAUNCH,
    TILE,
    Launch,
    Layout,
    launch_of,
    layout_of,
)

# Gradients of keys and values in window order, before they are summed by token.
WORKSPACE_BYTES = 2**28
# Programs of the key kernel, each with partial sums of the bias gradient: four for each of the 132
# multiprocessors of an H100 or H200, where twice or four times as many were slower.
KEY_PROGRAMS = 528
# Tokens of the map that a program of the sum kernel takes; each is listed up to four times or so.
# A pooled cell has a program of its own, which takes this many at once of the windows that list
# it: as many as its region has cells.
MAP_TOKENS, POOLED_PLACES = 32, 32
MAX_SUM_CHANNELS = 64  # that a program of the sum kernel takes
# Keys whose bias gradients a program sums, and partial sums that it takes at once.
BIAS_KEYS, BIAS_RUNS = 128, 8
# Places of a column of the bias that a program sums at once.
COLUMN_PLACES = 32


@triton.jit
def query_grad_of_slots(
    grad,
    query,
    grad_out,
    query_regions,
    lse,
    delta,
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
    """Adds ``dS K`` of the slots from ``FIRST`` to ``LAST`` to ``grad``."""
    channels = tl.arange(0, BLOCK_DIM)
    for start in range(FIRST, LAST, TILE):
        slots = start + tl.arange(0, TILE)
        rows = tl.load(slots_ptr + slots)
        key = load_rows(qkv_ptr + CHANNELS, rows, STEP, channels, DIM, MASKED)
        value = load_rows(qkv_ptr + 2 * CHANNELS, rows, STEP, channels, DIM, MASKED)
        bias = load_bias(bias_ptr, columns_ptr, slots, QUERIES, HAS_COLUMNS)
        scores = tl.dot(query, tl.trans(key), bias, input_precision=PRECISION)
        weights = tl.exp2(tl.fma(scores, tl.zeros_like(scores) + scale_log2, -lse[:, None]))
        if MASKED:
            regions = rows
            if HAS_REGIONS:
                regions = tl.load(regions_ptr + slots)
            allowed = may_see(rows, query_regions, regions, HAS_REGIONS)
            weights = tl.where(allowed, weights, 0.0)
        grad_weights = tl.dot(grad_out, tl.trans(value), input_precision=PRECISION)
        grad_scores = weights * (grad_weights - delta[:, None])
        grad = tl.dot(grad_scores.to(key.dtype), key, grad, input_precision=PRECISION)
    return grad


@kernel
def query_grad_kernel(
    grad_out_ptr,
    qkv_ptr,
    bias_ptr,
    out_ptr,
    lse_ptr,
    queries_ptr,
    outputs_ptr,
    slots_ptr,
    regions_ptr,
    columns_ptr,
    grad_qkv_ptr,
    delta_ptr,
    scale,
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
    """Gradients of queries, and ``delta`` as log-sum-exps. Grid as in the forward kernel."""
    tiles: tl.constexpr = QUERIES // TILE
    step: tl.constexpr = 3 * HEADS * DIM
    window, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    head, image = tl.program_id(1), tl.cast(tl.program_id(2), tl.int64)
    qkv_ptr += image * num_tokens * step + head * DIM
    grad_qkv_ptr += image * num_tokens * step + head * DIM
    grad_out_ptr += image * num_outputs * (HEADS * DIM) + head * DIM
    out_ptr += image * num_outputs * (HEADS * DIM) + head * DIM
    slots_ptr += window * SLOTS

    places = tile * TILE + tl.arange(0, TILE)
    channels = tl.arange(0, BLOCK_DIM)
    rows = tl.load(queries_ptr + window * QUERIES + places)
    query = load_rows(qkv_ptr, rows, step, channels, DIM, True)
    out_rows = tl.load(outputs_ptr + window * QUERIES + places)
    grad_out = load_rows(grad_out_ptr, out_rows, HEADS * DIM, channels, DIM, True)
    out = load_rows(out_ptr, out_rows, HEADS * DIM, channels, DIM, True)
    of_window = ((image * HEADS + head) * num_windows + window) * QUERIES
    lse = tl.load(lse_ptr + of_window + places)
    delta = tl.sum(grad_out.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta_ptr + of_window + places, delta)

    if HAS_COLUMNS:
        bias_ptr += (head * num_columns * QUERIES + places)[:, None]
        columns_ptr += window * SLOTS
    else:
        bias_ptr += ((head * QUERIES + places) * SLOTS)[:, None]
    regions = rows
    if HAS_REGIONS:
        regions_ptr += window * SLOTS
        regions = tl.load(regions_ptr + places, mask=rows >= 0, other=0)
    grad = tl.zeros([TILE, BLOCK_DIM], tl.float32)
    if OPEN_SLOTS > 0:
        grad = query_grad_of_slots(
            grad, query, grad_out, regions, lse, delta,
            qkv_ptr, bias_ptr, slots_ptr, regions_ptr, columns_ptr, scale_log2,
            step, HEADS * DIM, DIM, BLOCK_DIM, 0, OPEN_SLOTS, TILE, QUERIES,
            False, False, HAS_COLUMNS, PRECISION,
        )  # fmt: skip
    grad = query_grad_of_slots(
        grad, query, grad_out, regions, lse, delta,
        qkv_ptr, bias_ptr, slots_ptr, regions_ptr, columns_ptr, scale_log2,
        step, HEADS * DIM, DIM, BLOCK_DIM, OPEN_SLOTS, SLOTS, TILE, QUERIES,
        True, HAS_REGIONS, HAS_COLUMNS, PRECISION,
    )  # fmt: skip
    store_rows(grad_qkv_ptr, grad * scale, rows, step, channels, DIM)


@kernel
def key_grad_kernel(
    grad_out_ptr,
    qkv_ptr,
    bias_ptr,
    lse_ptr,
    delta_ptr,
    queries_ptr,
    outputs_ptr,
    slots_ptr,
    regions_ptr,
    columns_ptr,
    run_windows_ptr,
    run_starts_ptr,
    workspace_ptr,
    grad_bias_ptr,
    scale,
    scale_log2,
    num_tokens,
    num_outputs,
    num_columns,
    num_windows,
    first_image,
    num_images,
    first_head,
    per_program,
    num_parts,
    HEADS: tl.constexpr,
    GROUP_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    SLOTS: tl.constexpr,
    LISTED: tl.constexpr,
    TILE: tl.constexpr,
    HAS_REGIONS: tl.constexpr,
    HAS_COLUMNS: tl.constexpr,
    BIAS_NEEDS_GRAD: tl.constexpr,
    ADDS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of keys and values of a run of windows, and their part of the bias gradient.

    Grid: tiles of slots times tiles of queries, heads of the group, runs. A run is of
    ``per_program`` windows, counted through all images of the group; or where keys have columns a
    run of ``ColumnRuns`` in ``per_program`` images, one of ``num_parts``. Scores are transposed,
    slots by queries, so that they are multiplied on as they are. The bias gradient is a sum over
    the run; it ``ADDS`` to what was left there for other images.
    """
    tiles: tl.constexpr = QUERIES // TILE
    step: tl.constexpr = 3 * HEADS * DIM
    slot_tile, query_tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    group_head = tl.program_id(1)
    head = first_head + group_head
    places = query_tile * TILE + tl.arange(0, TILE)
    slots = slot_tile * TILE + tl.arange(0, TILE)
    channels = tl.arange(0, BLOCK_DIM)
    run = tl.program_id(2)
    if HAS_COLUMNS:
        starts_ptr = run_starts_ptr + run // num_parts
        start = tl.load(starts_ptr)
        count = tl.load(starts_ptr + 1) - start
        columns = tl.load(columns_ptr + tl.load(run_windows_ptr + start) * SLOTS + slots)
        bias_at = (head * num_columns + columns)[:, None] * QUERIES + places[None, :]
        group_image, place = run % num_parts * per_program, 0
        first, last = 0, tl.minimum(per_program, num_images - group_image) * count
    else:
        bias_at = (head * QUERIES + places)[None, :] * SLOTS + slots[:, None]
        first = run * per_program
        last = tl.minimum(first + per_program, num_windows * num_images)
        count = num_windows
        group_image, place = first // count, first % count
    bias = tl.load(bias_ptr + bias_at).to(tl.float32) * scale_log2
    grad_bias = tl.zeros([TILE, TILE], tl.float32)

    for _ in range(first, last):
        window = place
        if HAS_COLUMNS:
            window = tl.load(run_windows_ptr + start + place)
        image = tl.cast(first_image + group_image, tl.int64)
        group_window = tl.cast(group_image, tl.int64) * num_windows + window
        row = (group_window * tiles + query_tile) * LISTED
        is_last = place == count - 1
        group_image = tl.where(is_last, group_image + 1, group_image)
        place = tl.where(is_last, 0, place + 1)
        query_rows = tl.load(queries_ptr + window * QUERIES + places)
        key_rows = tl.load(slots_ptr + window * SLOTS + slots)
        from_ptr = qkv_ptr + image * num_tokens * step + head * DIM
        query = load_rows(from_ptr, query_rows, step, channels, DIM, True)
        key = load_rows(from_ptr + HEADS * DIM, key_rows, step, channels, DIM, True)
        value = load_rows(from_ptr + 2 * HEADS * DIM, key_rows, step, channels, DIM, True)
        from_ptr = grad_out_ptr + image * num_outputs * (HEADS * DIM) + head * DIM
        out_rows = tl.load(outputs_ptr + window * QUERIES + places)
        grad_out = load_rows(from_ptr, out_rows, HEADS * DIM, channels, DIM, True)
        of_query = ((image * HEADS + head) * num_windows + window) * QUERIES + places
        lse = tl.load(lse_ptr + of_query)
        delta = tl.load(delta_ptr + of_query)
        query_regions, key_regions = query_rows, key_rows
        if HAS_REGIONS:
            from_ptr = regions_ptr + window * SLOTS
            query_regions = tl.load(from_ptr + places, mask=query_rows >= 0, other=0)
            key_regions = tl.load(from_ptr + slots)

        products = tl.dot(key, tl.trans(query), input_precision=PRECISION)
        scores = tl.fma(products, tl.zeros_like(products) + scale_log2, bias)
        weights = tl.exp2(scores - lse[None, :])
        if HAS_REGIONS:
            allowed = (key_regions[:, None] & query_regions[None, :]) != 0
        else:
            allowed = (key_rows >= 0)[:, None]
        weights = tl.where(allowed, weights, 0.0)
        grad_weights = tl.dot(value, tl.trans(grad_out), input_precision=PRECISION)
        grad_scores = weights * (grad_weights - delta[None, :])
        if BIAS_NEEDS_GRAD:
            grad_bias += grad_scores
        grad_value = tl.dot(weights.to(value.dtype), grad_out, input_precision=PRECISION)
        grad_key = tl.dot(grad_scores.to(key.dtype), query, input_precision=PRECISION)

        # Workspace: (windows of the group, tiles of queries, slots, 2, heads of the group, D).
        to_ptr = workspace_ptr + group_head * DIM
        to_ptr += row * (2 * DIM * GROUP_HEADS)
        rows = tl.where(slots < LISTED, slots, -1)
        step_to: tl.constexpr = 2 * DIM * GROUP_HEADS
        store_rows(to_ptr, grad_key * scale, rows, step_to, channels, DIM)
        store_rows(to_ptr + DIM * GROUP_HEADS, grad_value, rows, step_to, channels, DIM)

    if BIAS_NEEDS_GRAD:
        to_ptr = grad_bias_ptr + tl.cast(run * HEADS + head, tl.int64) * (QUERIES * SLOTS)
        if HAS_COLUMNS:
            to_ptr += slots[:, None] * QUERIES + places[None, :]
        else:
            to_ptr += places[None, :] * SLOTS + slots[:, None]
        if ADDS:
            grad_bias += tl.load(to_ptr)
        tl.store(to_ptr, grad_bias)


@triton.jit
def load_listed(
    workspace_ptr,
    entries_ptr,
    places,
    end,
    STEP: tl.constexpr,
    channels,
    LISTED: tl.constexpr,
    QUERY_TILES: tl.constexpr,
):
    """What the workspace has of the ``entries`` at ``places``; 0 from ``end`` on."""
    there = places < end
    entries = tl.load(entries_ptr + places, mask=there, other=0)
    window, slot = entries // LISTED, entries % LISTED
    total = tl.zeros([places.shape[0], channels.shape[0]], tl.float32)
    for tile in tl.static_range(QUERY_TILES):
        rows = tl.cast((window * QUERY_TILES + tile) * LISTED + slot, tl.int64)
        from_ptr = workspace_ptr + rows[:, None] * STEP + channels[None, :]
        total += tl.load(from_ptr, mask=there[:, None], other=0.0).to(tl.float32)
    return total


@kernel
def sum_by_token_kernel(
    workspace_ptr,
    entries_ptr,
    offsets_ptr,
    grad_qkv_ptr,
    num_tokens,
    num_map_tokens,
    num_windows,
    first_image,
    first_head,
    HEADS: tl.constexpr,
    GROUP_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    LISTED: tl.constexpr,
    QUERY_TILES: tl.constexpr,
    CHANNELS: tl.constexpr,
    MAP_TOKENS: tl.constexpr,
    POOLED_PLACES: tl.constexpr,
):
    """Sums the gradients of keys and values over all places at which windows list a token.

    Grid: blocks of ``MAP_TOKENS`` tokens of the map and after them single pooled cells; blocks of
    ``CHANNELS``, which divide the channels of keys and those of values; images of the group. The
    gradients of queries that pooled cells would have are set to 0.
    """
    step: tl.constexpr = 2 * DIM * GROUP_HEADS
    blocks: tl.constexpr = DIM * GROUP_HEADS // CHANNELS
    block, image = tl.program_id(1), tl.cast(tl.program_id(2), tl.int64)
    channels = tl.arange(0, CHANNELS)
    workspace_ptr += image * num_windows * (QUERY_TILES * LISTED * step) + block * CHANNELS
    grad_qkv_ptr += (first_image + image) * num_tokens * (3 * HEADS * DIM)
    grad_qkv_ptr += first_head * DIM + (block % blocks) * CHANNELS
    to_ptr = grad_qkv_ptr + (1 + block // blocks) * (HEADS * DIM)
    map_blocks = (num_map_tokens + MAP_TOKENS - 1) // MAP_TOKENS
    if tl.program_id(0) < map_blocks:
        tokens = tl.program_id(0) * MAP_TOKENS + tl.arange(0, MAP_TOKENS)
        real = tokens < num_map_tokens
        first = tl.load(offsets_ptr + tokens, mask=real, other=0)
        last = tl.load(offsets_ptr + tokens + 1, mask=real, other=0)
        sums = tl.zeros([MAP_TOKENS, CHANNELS], tl.float32)
        for nth in range(tl.max(last - first, 0)):
            sums += load_listed(
                workspace_ptr, entries_ptr, first + nth, last, step, channels, LISTED, QUERY_TILES
            )
        rows_ptr = to_ptr + tokens[:, None] * (3 * HEADS * DIM) + channels[None, :]
        tl.store(rows_ptr, sums.to(to_ptr.dtype.element_ty), mask=real[:, None])
    else:
        token = num_map_tokens + tl.program_id(0) - map_blocks
        begin, end = tl.load(offsets_ptr + token), tl.load(offsets_ptr + token + 1)
        parts = tl.zeros([POOLED_PLACES, CHANNELS], tl.float32)
        for start in range(begin, end, POOLED_PLACES):
            places = start + tl.arange(0, POOLED_PLACES)
            parts += load_listed(
                workspace_ptr, entries_ptr, places, end, step, channels, LISTED, QUERY_TILES
            )
        at = token * (3 * HEADS * DIM) + channels
        tl.store(to_ptr + at, tl.sum(parts, 0).to(to_ptr.dtype.element_ty))
        if block < blocks:
            tl.store(grad_qkv_ptr + at, tl.zeros([CHANNELS], to_ptr.dtype.element_ty))


@kernel
def sum_bias_kernel(
    partial_ptr,
    grad_bias_ptr,
    num_runs,
    num_queries,
    num_keys,
    HEADS: tl.constexpr,
    QUERIES: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
    RUNS: tl.constexpr,
):
    """Sums partial gradients ``(runs, nH, MQ, NS)`` of the bias over runs of windows.

    Grid: blocks of keys, queries, heads.
    """
    keys = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    query, head = tl.program_id(1), tl.program_id(2)
    partial_ptr += (head * QUERIES + query) * SLOTS + keys[None, :]
    total = tl.zeros([RUNS, BLOCK], tl.float32)
    for start in range(0, num_runs, RUNS):
        runs = start + tl.arange(0, RUNS)
        from_ptr = partial_ptr + tl.cast(runs, tl.int64)[:, None] * (HEADS * QUERIES * SLOTS)
        there = (runs < num_runs)[:, None] & (keys < num_keys)[None, :]
        total += tl.load(from_ptr, mask=there, other=0.0)
    at = (head * num_queries + query) * num_keys + keys
    to_ptr = grad_bias_ptr + at
    tl.store(to_ptr, tl.sum(total, 0).to(to_ptr.dtype.element_ty), mask=keys < num_keys)


@kernel
def sum_by_column_kernel(
    partial_ptr,
    entries_ptr,
    offsets_ptr,
    grad_bias_ptr,
    num_columns,
    num_queries,
    num_parts,
    HEADS: tl.constexpr,
    QUERIES: tl.constexpr,
    SLOTS: tl.constexpr,
    LISTED: tl.constexpr,
    TILE: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Sums partial gradients ``(runs, parts, nH, NS, MQ)`` over all slots that have a column.

    Grid: columns, heads, tiles of queries.
    """
    column, head = tl.program_id(0), tl.program_id(1)
    queries = tl.program_id(2) * TILE + tl.arange(0, TILE)
    first, last = tl.load(offsets_ptr + column), tl.load(offsets_ptr + column + 1)
    sums = tl.zeros([PLACES, TILE], tl.float32)
    for start in range(first, last, PLACES):
        places = start + tl.arange(0, PLACES)
        there = places < last
        entries = tl.load(entries_ptr + places, mask=there, other=0)
        run, slot = entries // LISTED, entries % LISTED
        for part in range(num_parts):
            rows = tl.cast((run * num_parts + part) * HEADS + head, tl.int64) * SLOTS + slot
            from_ptr = partial_ptr + rows[:, None] * QUERIES + queries[None, :]
            sums += tl.load(from_ptr, mask=there[:, None], other=0.0)
    to_ptr = grad_bias_ptr + (head * num_queries + queries) * num_columns + column
    total = tl.sum(sums, 0).to(to_ptr.dtype.element_ty)
    tl.store(to_ptr, total, mask=queries < num_queries)


class _Group(NamedTuple):
    """Images and heads whose gradients of keys and values fill the workspace together."""

    images: range
    heads: range


class _Plan(NamedTuple):
    """How the key kernel is launched."""

    groups: list[_Group]
    per_program: int  # windows of a run, or where keys have columns images
    runs: int  # of a group, or more than its images have, whose sums are 0
    parts: int  # of the images of a group, where keys have columns


class _Pass(NamedTuple):
    """What the kernels of a backward pass share."""

    grad_out: Tensor  # contiguous
    qkv: Tensor  # contiguous
    out: Tensor  # of the forward pass
    lse: Tensor  # its log-sum-exps
    tiled: Tensor  # its bias
    delta: Tensor  # made by the query kernel and read by the key kernel
    grad_qkv: Tensor
    layout: Layout
    scale: float
    constants: dict[str, int]  # of all kernels

    @property
    def columns(self) -> int:
        """Columns of the bias, where it has some."""
        return self.tiled.shape[1]

    def launch_of(self, launches: Mapping[int, Launch]) -> Launch:
        """How one of its kernels is compiled."""
        return launch_of(launches, self.qkv, self.constants['BLOCK_DIM'])


def run_backward(
    grad_out: Tensor,
    qkv: Tensor,
    keys: FocalKeys,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    tiled: Tensor,
    scale: float,
    bias_needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of ``qkv`` and ``bias``; the latter is zero where it is not needed.

    Deterministic: gradients of keys and values go to a workspace in window order, of 256 MB unless
    one head of one image needs more, and are summed from there in a fixed order.
    """
    qkv, layout = qkv.contiguous(), layout_of(keys, qkv.device)
    if not len(qkv):
        return torch.empty_like(qkv), bias.new_zeros(bias.shape)
    call = _Pass(
        grad_out.contiguous(),
        qkv,
        out,
        lse,
        tiled,
        delta=torch.empty_like(lse),
        grad_qkv=torch.empty_like(qkv),
        layout=layout,
        scale=scale,
        constants=constants_of(layout, *qkv.shape[3:]),
    )
    plan = _plan(qkv, layout)
    partial = None
    if bias_needs_grad:
        tiles = layout.slot_tiles * layout.query_tiles
        shape = (plan.runs, qkv.shape[3], tiles * TILE * TILE)
        partial = bias.new_empty(shape, dtype=torch.float32)
    with torch.cuda.device_of(qkv):
        _query_gradients(call)
        for group in plan.groups:
            rows = len(group.images) * layout.num_windows * layout.query_tiles * layout.num_slots
            workspace = qkv.new_empty(rows, 2 * len(group.heads) * qkv.shape[4])
            _key_gradients(call, plan, group, workspace, partial)
            _sum_by_token(call, group, workspace)
        if partial is None:
            return call.grad_qkv, bias.new_zeros(bias.shape)
        return call.grad_qkv, _sum_bias(call, plan, partial, bias)


def _query_gradients(call: _Pass) -> None:
    layout, how = call.layout, call.launch_of(QUERY_LAUNCH)
    batch, num_tokens, _, heads, _ = call.qkv.shape
    launch(
        query_grad_kernel,
        (layout.num_windows * layout.query_tiles, heads, batch),
        (
            *(call.grad_out, call.qkv, call.tiled, call.out, call.lse),
            *tables_of(layout),
            *(call.grad_qkv, call.delta),
        ),
        (
            call.scale,
            call.scale * LOG2_E,
            num_tokens,
            layout.num_outputs,
            layout.num_windows,
            call.columns,
        ),
        dict(call.constants, OPEN_SLOTS=layout.open_slots, PRECISION=how.precision),
        how.options(),
    )


def _key_gradients(
    call: _Pass, plan: _Plan, group: _Group, workspace: Tensor, partial: Tensor | None
) -> None:
    """Fills the workspace, and the partial sums of the bias gradient if they are wanted."""
    layout, how = call.layout, call.launch_of(KEY_LAUNCH)
    launch(
        key_grad_kernel,
        (layout.slot_tiles * layout.query_tiles, len(group.heads), plan.runs),
        (
            *(call.grad_out, call.qkv, call.tiled, call.lse, call.delta),
            *tables_of(layout),
            *((None, None) if layout.runs is None else layout.runs[:2]),
            *(workspace, partial),
        ),
        (
            call.scale,
            call.scale * LOG2_E,
            call.qkv.shape[1],
            layout.num_outputs,
            call.columns,
            layout.num_windows,
            group.images.start,
            len(group.images),
            group.heads.start,
            plan.per_program,
            plan.parts,
        ),
        dict(
            call.constants,
            GROUP_HEADS=len(group.heads),
            LISTED=layout.num_slots,
            BIAS_NEEDS_GRAD=partial is not None,
            ADDS=group.images.start > 0,
            PRECISION=how.precision,
        ),
        how.options(),
    )


def _sum_by_token(call: _Pass, group: _Group, workspace: Tensor) -> None:
    """Gradients of keys and values from the workspace."""
    layout, num_tokens = call.layout, call.qkv.shape[1]
    num_channels = len(group.heads) * call.qkv.shape[4]
    channels = math.gcd(num_channels, MAX_SUM_CHANNELS)
    cells = num_tokens - layout.num_map_tokens
    launch(
        sum_by_token_kernel,
        (
            ceil_div(layout.num_map_tokens, MAP_TOKENS) + cells,
            2 * num_channels // channels,
            len(group.images),
        ),
        (workspace, layout.entries, layout.offsets, call.grad_qkv),
        (
            num_tokens,
            layout.num_map_tokens,
            layout.num_windows,
            group.images.start,
            group.heads.start,
        ),
        dict(
            call.constants,
            GROUP_HEADS=len(group.heads),
            LISTED=layout.num_slots,
            QUERY_TILES=layout.query_tiles,
            CHANNELS=channels,
            MAP_TOKENS=MAP_TOKENS,
            POOLED_PLACES=POOLED_PLACES,
        ),
        SUM_LAUNCH.options(),
    )


def _sum_bias(call: _Pass, plan: _Plan, partial: Tensor, bias: Tensor) -> Tensor:
    """The gradient of the bias ``(nH, Wh * Ww, N or columns)``, from the sums of runs."""
    grad_bias = torch.empty_like(bias, memory_format=torch.contiguous_format)
    layout, (heads, queries, keys) = call.layout, bias.shape
    if layout.runs is None:
        launch(
            sum_bias_kernel,
            (ceil_div(keys, BIAS_KEYS), queries, heads),
            (partial, grad_bias),
            (plan.runs, queries, keys),
            dict(call.constants, BLOCK=BIAS_KEYS, RUNS=BIAS_RUNS),
            SUM_LAUNCH.options(),
        )
    else:
        launch(
            sum_by_column_kernel,
            (keys, heads, layout.query_tiles),
            (partial, layout.runs.entries, layout.runs.offsets, grad_bias),
            (keys, queries, plan.parts),
            dict(call.constants, LISTED=layout.num_slots, PLACES=COLUMN_PLACES),
            SUM_LAUNCH.options(),
        )
    return grad_bias


def _plan(qkv: Tensor, layout: Layout) -> _Plan:
    batch, _, _, heads, dim = qkv.shape
    rows = layout.num_windows * layout.query_tiles * layout.num_slots
    bytes_of_head = rows * 2 * dim * qkv.element_size()
    fit = max(1, WORKSPACE_BYTES // bytes_of_head)  # heads of one image
    num_images, num_heads = min(max(1, fit // heads), batch), min(fit, heads)
    tiles = layout.slot_tiles * layout.query_tiles * num_heads
    if layout.runs is None:
        per_program = ceil_div(num_images * layout.num_windows * tiles, KEY_PROGRAMS)
        runs, parts = ceil_div(num_images * layout.num_windows, per_program), 1
    else:
        window_runs = len(layout.runs.starts) - 1
        per_program = ceil_div(num_images * window_runs * tiles, KEY_PROGRAMS)
        parts = ceil_div(num_images, min(per_program, num_images))
        per_program = ceil_div(num_images, parts)
        runs = window_runs * parts
    groups = [
        _Group(range(batch)[image : image + num_images], range(heads)[head : head + num_heads])
        for image in range(0, batch, num_images)
        for head in range(0, heads, num_heads)
    ]
    return _Plan(groups, per_program, runs, parts)
