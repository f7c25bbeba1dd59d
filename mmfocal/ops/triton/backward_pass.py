"""The backward kernels: gradients of queries, of keys and values with the bias, and their sums.

With weights ``P``, their gradients ``dP = dO V^T`` and ``delta = rowsum(dO * O)``, scores have
the gradient ``dS = P * (dP - delta)``, and ``dQ = scale dS K``, ``dK = scale dS^T Q``,
``dV = P^T dO``; the bias has the sum of ``dS`` over windows and images. ``P`` is computed anew
from the log-sum-exps that the forward pass kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mmfocal.geometry import FocalKeys, KeyTables

from .forward_pass import constants, load_bias, load_rows, may_see, store_rows
from .layout import (
    KEY_LAUNCH,
    LOG2_E,
    QUERY_LAUNCH,
    SUM_WARPS,
    TILE,
    Layout,
    layout_of,
    tiled_bias,
)

# Gradients of keys and values in window order, before they are summed by token.
WORKSPACE_BYTES = 2**28
# Programs of the key kernel, each with partial sums of the bias gradient: some waves of a GPU.
KEY_PROGRAMS = 1024
# Channels, and places of a token, that a program of the sum kernel takes at once. A token of the
# map is listed up to four times, a pooled one by up to as many windows as its region has cells.
SUM_CHANNELS, MAP_PLACES, POOLED_PLACES = 256, 4, 16


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
        products = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        scores = tl.fma(products, tl.zeros_like(products) + scale_log2, bias)
        weights = tl.exp2(scores - lse[:, None])
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


@triton.jit(do_not_specialize=['num_tokens', 'num_map_tokens', 'num_columns'])
def query_grad_kernel(
    grad_out_ptr,
    qkv_ptr,
    bias_ptr,
    out_ptr,
    lse_ptr,
    queries_ptr,
    slots_ptr,
    regions_ptr,
    columns_ptr,
    grad_qkv_ptr,
    delta_ptr,
    scale,
    scale_log2,
    num_tokens,
    num_map_tokens,
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
    """Gradients of queries, and ``delta`` ``(B, nH, Hp * Wp)``. Grid as in the forward kernel."""
    tiles: tl.constexpr = QUERIES // TILE
    step: tl.constexpr = 3 * HEADS * DIM
    window, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    head, image = tl.program_id(1), tl.cast(tl.program_id(2), tl.int64)
    qkv_ptr += image * num_tokens * step + head * DIM
    grad_qkv_ptr += image * num_tokens * step + head * DIM
    grad_out_ptr += image * num_map_tokens * (HEADS * DIM) + head * DIM
    out_ptr += image * num_map_tokens * (HEADS * DIM) + head * DIM
    slots_ptr += window * SLOTS

    places = tile * TILE + tl.arange(0, TILE)
    channels = tl.arange(0, BLOCK_DIM)
    rows = tl.load(queries_ptr + window * QUERIES + places)
    query = load_rows(qkv_ptr, rows, step, channels, DIM, True)
    grad_out = load_rows(grad_out_ptr, rows, HEADS * DIM, channels, DIM, True)
    out = load_rows(out_ptr, rows, HEADS * DIM, channels, DIM, True)
    of_head = (image * HEADS + head) * num_map_tokens
    lse = tl.load(lse_ptr + of_head + rows, mask=rows >= 0, other=0.0)
    delta = tl.sum(grad_out.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta_ptr + of_head + rows, delta, mask=rows >= 0)

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


@triton.jit(
    do_not_specialize=[
        'num_tokens',
        'num_map_tokens',
        'num_columns',
        'num_windows',
        'first_image',
        'first_head',
        'num_heads',
        'windows_per_program',
        'last_window',
    ]
)
def key_grad_kernel(
    grad_out_ptr,
    qkv_ptr,
    bias_ptr,
    lse_ptr,
    delta_ptr,
    queries_ptr,
    slots_ptr,
    regions_ptr,
    columns_ptr,
    workspace_ptr,
    grad_bias_ptr,
    scale,
    scale_log2,
    num_tokens,
    num_map_tokens,
    num_columns,
    num_windows,
    first_image,
    first_head,
    windows_per_program,
    last_window,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    SLOTS: tl.constexpr,
    LISTED: tl.constexpr,
    TILE: tl.constexpr,
    HAS_REGIONS: tl.constexpr,
    HAS_COLUMNS: tl.constexpr,
    BIAS_NEEDS_GRAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of keys and values of a run of windows, and their part of the bias gradient.

    Grid: tiles of slots times tiles of queries, heads of the group, runs of windows counted
    through all images of the group. Scores are transposed, slots by queries, so that they are
    multiplied on as they are. The bias gradient is a sum over the run, or where keys have columns
    one of each key.
    """
    tiles: tl.constexpr = QUERIES // TILE
    step: tl.constexpr = 3 * HEADS * DIM
    slot_tile, query_tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    group_head, num_heads = tl.program_id(1), tl.num_programs(1)
    head = first_head + group_head
    places = query_tile * TILE + tl.arange(0, TILE)
    slots = slot_tile * TILE + tl.arange(0, TILE)
    channels = tl.arange(0, BLOCK_DIM)
    if HAS_COLUMNS:
        bias_ptr += (head * num_columns * QUERIES + places)[None, :]
    else:
        bias_at = (head * QUERIES + places)[None, :] * SLOTS + slots[:, None]
        bias = tl.load(bias_ptr + bias_at).to(tl.float32)
        grad_bias = tl.zeros([TILE, TILE], tl.float32)

    start = tl.program_id(2) * windows_per_program
    for group_window in range(start, tl.minimum(start + windows_per_program, last_window)):
        image = tl.cast(first_image + group_window // num_windows, tl.int64)
        window = group_window % num_windows
        query_rows = tl.load(queries_ptr + window * QUERIES + places)
        key_rows = tl.load(slots_ptr + window * SLOTS + slots)
        from_ptr = qkv_ptr + image * num_tokens * step + head * DIM
        query = load_rows(from_ptr, query_rows, step, channels, DIM, True)
        key = load_rows(from_ptr + HEADS * DIM, key_rows, step, channels, DIM, True)
        value = load_rows(from_ptr + 2 * HEADS * DIM, key_rows, step, channels, DIM, True)
        from_ptr = grad_out_ptr + image * num_map_tokens * (HEADS * DIM) + head * DIM
        grad_out = load_rows(from_ptr, query_rows, HEADS * DIM, channels, DIM, True)
        of_query = (image * HEADS + head) * num_map_tokens + query_rows
        lse = tl.load(lse_ptr + of_query, mask=query_rows >= 0, other=0.0)
        delta = tl.load(delta_ptr + of_query, mask=query_rows >= 0, other=0.0)
        query_regions, key_regions = query_rows, key_rows
        if HAS_REGIONS:
            from_ptr = regions_ptr + window * SLOTS
            query_regions = tl.load(from_ptr + places, mask=query_rows >= 0, other=0)
            key_regions = tl.load(from_ptr + slots)

        if HAS_COLUMNS:
            columns = tl.load(columns_ptr + window * SLOTS + slots)
            bias = tl.load(bias_ptr + (columns * QUERIES)[:, None]).to(tl.float32)
        products = tl.dot(key, tl.trans(query), input_precision=PRECISION)
        scores = tl.fma(products, tl.zeros_like(products) + scale_log2, bias)
        weights = tl.exp2(scores - lse[None, :])
        allowed = may_see(key_rows, query_regions, key_regions, HAS_REGIONS)
        weights = tl.where(tl.trans(allowed), weights, 0.0)
        grad_weights = tl.dot(value, tl.trans(grad_out), input_precision=PRECISION)
        grad_scores = weights * (grad_weights - delta[None, :])
        if BIAS_NEEDS_GRAD and not HAS_COLUMNS:
            grad_bias += grad_scores
        grad_value = tl.dot(weights.to(value.dtype), grad_out, input_precision=PRECISION)
        grad_key = tl.dot(grad_scores.to(key.dtype), query, input_precision=PRECISION) * scale

        # Workspace: (windows of the group, tiles of queries, slots, 2, heads of the group, D).
        to_ptr = workspace_ptr + group_head * DIM
        row = (tl.cast(group_window, tl.int64) * tiles + query_tile) * LISTED
        to_ptr += row * (2 * DIM) * num_heads
        rows = tl.where(slots < LISTED, slots, -1)
        if BIAS_NEEDS_GRAD and HAS_COLUMNS:
            # (windows of the group, heads of the group, slots, MQ)
            window_head = tl.cast(group_window, tl.int64) * num_heads + group_head
            at = grad_bias_ptr + window_head * (LISTED * QUERIES) + places[None, :]
            tl.store(at + (slots * QUERIES)[:, None], grad_scores, mask=(rows >= 0)[:, None])
        store_rows(to_ptr, grad_key, rows, 2 * DIM * num_heads, channels, DIM)
        store_rows(to_ptr + DIM * num_heads, grad_value, rows, 2 * DIM * num_heads, channels, DIM)

    if BIAS_NEEDS_GRAD and not HAS_COLUMNS:
        of_run = tl.cast(tl.program_id(2) * num_heads + group_head, tl.int64) * (QUERIES * SLOTS)
        at = places[None, :] * SLOTS + slots[:, None]
        tl.store(grad_bias_ptr + of_run + at, grad_bias)


@triton.jit(
    do_not_specialize=[
        'num_tokens',
        'num_windows',
        'first_token',
        'last_token',
        'first_image',
        'first_head',
        'channels_of_group',
    ]
)
def sum_by_token_kernel(
    workspace_ptr,
    entries_ptr,
    offsets_ptr,
    grad_qkv_ptr,
    num_tokens,
    num_windows,
    first_token,
    first_image,
    first_head,
    channels_of_group,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    LISTED: tl.constexpr,
    QUERY_TILES: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_ENTRIES: tl.constexpr,
    CLEAR_QUERIES: tl.constexpr,
):
    """Sums the gradients of keys and values over all places at which windows list a token.

    Grid: tokens, blocks of channels of both, images of the group. ``CLEAR_QUERIES`` is for pooled
    tokens, which are no queries.
    """
    token, image = first_token + tl.program_id(0), tl.cast(tl.program_id(2), tl.int64)
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    wanted = channels < 2 * channels_of_group
    first, last = tl.load(offsets_ptr + token), tl.load(offsets_ptr + token + 1)
    total = tl.zeros([BLOCK_CHANNELS], tl.float32)
    workspace_ptr += image * num_windows * QUERY_TILES * LISTED * (2 * channels_of_group)
    for start in range(first, last, BLOCK_ENTRIES):
        places = start + tl.arange(0, BLOCK_ENTRIES)
        entries = tl.load(entries_ptr + places, mask=places < last, other=0)
        window, slot = entries // LISTED, entries % LISTED
        for tile in range(QUERY_TILES):
            rows = tl.cast((window * QUERY_TILES + tile) * LISTED + slot, tl.int64)
            from_ptr = workspace_ptr + rows[:, None] * (2 * channels_of_group) + channels[None, :]
            mask = (places < last)[:, None] & wanted[None, :]
            total += tl.sum(tl.load(from_ptr, mask=mask, other=0.0).to(tl.float32), 0)

    part, channel = channels // channels_of_group, channels % channels_of_group
    grad_qkv_ptr += ((first_image + image) * num_tokens + token) * (3 * HEADS * DIM)
    grad_qkv_ptr += first_head * DIM + channel
    to_ptr = grad_qkv_ptr + (1 + part) * (HEADS * DIM)
    tl.store(to_ptr, total.to(to_ptr.dtype.element_ty), mask=wanted)
    if CLEAR_QUERIES:
        zero = tl.zeros([BLOCK_CHANNELS], to_ptr.dtype.element_ty)
        tl.store(grad_qkv_ptr, zero, mask=wanted & (part == 0))


def run_backward(
    grad_out: Tensor,
    qkv: Tensor,
    keys: FocalKeys,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    bias_needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Launches the kernels; arguments and result as in :func:`mmfocal.ops.triton.backward`."""
    qkv, grad_out = qkv.contiguous(), grad_out.contiguous()
    layout, tables = layout_of(keys, qkv.device), keys.tables(qkv.device)
    batch, num_tokens, _, heads, dim = qkv.shape
    grad_qkv, delta = torch.empty_like(qkv), torch.empty_like(lse)
    grad_bias = torch.zeros(bias.shape, dtype=torch.float32, device=bias.device)
    tiled = tiled_bias(bias, qkv.dtype, layout)
    shared = constants(layout, heads, dim)
    with torch.cuda.device_of(qkv):
        query_grad_kernel[keys.num_windows * layout.query_tiles, heads, batch](
            grad_out,
            qkv,
            tiled,
            out,
            lse,
            layout.queries,
            layout.slots,
            layout.regions,
            layout.columns,
            grad_qkv,
            delta,
            scale,
            scale * LOG2_E,
            num_tokens,
            keys.num_map_tokens,
            bias.shape[2],
            **shared,
            OPEN_SLOTS=layout.open_slots,
            **QUERY_LAUNCH[qkv.element_size()].options(),
        )
        for images, some_heads in _groups(qkv, keys, layout, bias_needs_grad):
            num_images, num_heads = len(images), len(some_heads)
            workspace = qkv.new_empty(
                num_images * keys.num_windows * layout.query_tiles * layout.num_slots,
                2 * num_heads * dim,
            )
            windows = num_images * keys.num_windows
            tiles = layout.slot_tiles * layout.query_tiles
            per_program = triton.cdiv(windows * tiles * num_heads, KEY_PROGRAMS)
            runs = triton.cdiv(windows, per_program)
            if not bias_needs_grad:
                partial = lse.new_empty(0)
            elif shared['HAS_COLUMNS']:
                partial = lse.new_empty(windows, num_heads, layout.num_slots, shared['QUERIES'])
            else:
                partial = lse.new_empty(runs, num_heads, shared['QUERIES'], shared['SLOTS'])
            key_grad_kernel[tiles, num_heads, runs](
                grad_out,
                qkv,
                tiled,
                lse,
                delta,
                layout.queries,
                layout.slots,
                layout.regions,
                layout.columns,
                workspace,
                partial,
                scale,
                scale * LOG2_E,
                num_tokens,
                keys.num_map_tokens,
                bias.shape[2],
                keys.num_windows,
                images.start,
                some_heads.start,
                per_program,
                windows,
                **shared,
                LISTED=layout.num_slots,
                BIAS_NEEDS_GRAD=bias_needs_grad,
                **KEY_LAUNCH[qkv.element_size()].options(),
            )
            if bias_needs_grad:
                if shared['HAS_COLUMNS']:
                    summed = _sum_by_column(partial, tables, num_images)
                else:
                    summed = partial.sum(0)[..., : layout.num_slots]
                summed = summed[:, : layout.num_queries]
                grad_bias[some_heads.start : some_heads.stop] += summed
            channels = num_heads * dim
            pooled = num_tokens - keys.num_map_tokens
            for first, count, block_entries in (
                (0, keys.num_map_tokens, MAP_PLACES),
                (keys.num_map_tokens, pooled, POOLED_PLACES),
            ):
                if count == 0:
                    continue
                blocks = triton.cdiv(2 * channels, SUM_CHANNELS)
                sum_by_token_kernel[count, blocks, num_images](
                    workspace,
                    *tables.readers,
                    grad_qkv,
                    num_tokens,
                    keys.num_windows,
                    first,
                    images.start,
                    some_heads.start,
                    channels,
                    HEADS=heads,
                    DIM=dim,
                    LISTED=layout.num_slots,
                    QUERY_TILES=layout.query_tiles,
                    BLOCK_CHANNELS=SUM_CHANNELS,
                    BLOCK_ENTRIES=block_entries,
                    CLEAR_QUERIES=first > 0,
                    num_warps=SUM_WARPS,
                )
    return grad_qkv, grad_bias.to(bias.dtype)


def _sum_by_column(grads: Tensor, tables: KeyTables, num_images: int) -> Tensor:
    """Sums gradients of the bias of each key over images and windows, in a fixed order.

    Args:
        grads: float32 ``(windows of all images, heads, N, MQ)``.

    Returns:
        float32 ``(heads, MQ, columns)``.
    """
    heads, listed, queries = grads.shape[1:]
    entries, offsets = tables.column_readers
    entries = entries[: tables.num_valid]
    window, slot = entries // listed, entries % listed
    head = torch.arange(heads, device=grads.device)[:, None]
    rows = ((window * heads + head) * listed + slot).int()  # (heads, places of all columns)
    bags = offsets[:-1] + head.int() * len(entries)
    total = grads.new_zeros(bags.numel(), queries)
    for image in grads.view(num_images, -1, queries):
        total += F.embedding_bag(rows.flatten(), image, bags.flatten(), mode='sum')
    return total.view(heads, -1, queries).mT


def _groups(
    qkv: Tensor, keys: FocalKeys, layout: Layout, bias_needs_grad: bool
) -> list[tuple[range, range]]:
    """Images and heads whose workspaces are filled together."""
    batch, _, _, heads, dim = qkv.shape
    rows = keys.num_windows * layout.query_tiles * layout.num_slots
    row_bytes = 2 * dim * qkv.element_size()
    if bias_needs_grad and layout.columns is not None:
        row_bytes += 4 * TILE  # a float32 for each query of the tile
    fit = max(1, WORKSPACE_BYTES // (rows * row_bytes))  # heads of one image
    num_images, num_heads = max(1, fit // heads), min(fit, heads)
    return [
        (range(batch)[image : image + num_images], range(heads)[head : head + num_heads])
        for image in range(0, batch, num_images)
        for head in range(0, heads, num_heads)
    ]
