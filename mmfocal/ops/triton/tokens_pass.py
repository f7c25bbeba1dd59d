"""The kernels of :func:`mmfocal.ops.focal_tokens`, which do nothing but move memory.

A program takes whole windows of some channels, so that a window's cell is summed from the tokens
that are there to be copied anyway.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launching import ceil_div, check_count, kernel, launch
from .layout import SUM_LAUNCH

# Numbers of a window's tile of places and channels that a program holds at most, and a thread.
MAX_NUMBERS, OF_THREAD = 8192, 16
MIN_CHANNELS, MAX_CHANNELS = 16, 128  # of a tile; rows of 64 to 512 bytes in float32
MAX_WARPS = 8
# Most programs of the backward kernel, each with partial sums of the parameters' gradients: some
# times as many as a GPU holds at once, so that those that start last are soon done.
BACKWARD_PROGRAMS = 4096
SUM_BLOCK = 1024


@triton.jit
def tile_mask(rows, channels, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Places of a tile in ``rows``, without what the last block has beyond the channels."""
    mask = rows[:, None]
    if CHANNELS % BLOCK != 0:
        mask = mask & (channels < CHANNELS)[None, :]
    return mask


@kernel
def tokens_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    tokens_ptr,
    height,
    width,
    WINDOW: tl.constexpr,
    CHANNELS: tl.constexpr,
    PLACES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copies a window and pools it. Grid: columns of windows times blocks, rows, images."""
    blocks: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    area: tl.constexpr = WINDOW * WINDOW
    rows, cols = tl.num_programs(1), tl.num_programs(0) // blocks
    row, col = tl.program_id(1), tl.program_id(0) // blocks
    image = tl.cast(tl.program_id(2), tl.int64)
    x_ptr += image * height * width * CHANNELS
    tokens_ptr += image * (rows * cols * (area + 1)) * CHANNELS

    places = tl.arange(0, PLACES)
    channels = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    down, right = row * WINDOW + places // WINDOW, col * WINDOW + places % WINDOW
    inside = places < area
    real = inside & (down < height) & (right < width)
    at = ((down * width + right) * CHANNELS)[:, None] + channels[None, :]
    x = tl.load(x_ptr + at, mask=tile_mask(real, channels, CHANNELS, BLOCK), other=0.0)
    at = ((down * (cols * WINDOW) + right) * CHANNELS)[:, None] + channels[None, :]
    values = x.to(tokens_ptr.dtype.element_ty)
    tl.store(tokens_ptr + at, values, mask=tile_mask(inside, channels, CHANNELS, BLOCK))

    weight = tl.load(weight_ptr + places, mask=inside, other=0.0).to(tl.float32)
    cell = tl.sum(x.to(tl.float32) * weight[:, None], 0) + tl.load(bias_ptr).to(tl.float32)
    at = (rows * cols * area + row * cols + col) * CHANNELS + channels
    tl.store(tokens_ptr + at, cell.to(tokens_ptr.dtype.element_ty), mask=channels < CHANNELS)


@kernel
def tokens_grad_kernel(
    grad_tokens_ptr,
    tokens_ptr,
    weight_ptr,
    grad_x_ptr,
    partial_ptr,
    height,
    width,
    rows,
    cols,
    windows_per_run,
    last_window,
    WINDOW: tl.constexpr,
    CHANNELS: tl.constexpr,
    PLACES: tl.constexpr,
    BLOCK: tl.constexpr,
    X_GRAD: tl.constexpr,
    POOL_GRAD: tl.constexpr,
):
    """Gradient of the map, and partial sums ``(WINDOW ** 2 + 1, programs)`` of the parameters'.

    Grid: runs of windows, counted through all images, times blocks of channels.
    """
    blocks: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    area: tl.constexpr = WINDOW * WINDOW
    places = tl.arange(0, PLACES)
    channels = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    down_of_window, right_of_window = places // WINDOW, places % WINDOW
    inside = places < area
    whole = tile_mask(inside, channels, CHANNELS, BLOCK)
    weight = tl.load(weight_ptr + places, mask=inside, other=0.0).to(tl.float32)
    grad_weight = tl.zeros([PLACES, BLOCK], tl.float32)
    grad_bias = tl.zeros([BLOCK], tl.float32)

    num_windows = rows * cols
    start = (tl.program_id(0) // blocks) * windows_per_run
    for number in range(start, tl.minimum(start + windows_per_run, last_window)):
        image, window = tl.cast(number // num_windows, tl.int64), number % num_windows
        row, col = window // cols, window % cols
        down, right = row * WINDOW + down_of_window, col * WINDOW + right_of_window
        first = image * (num_windows * (area + 1)) * CHANNELS
        at = (num_windows * area + window) * CHANNELS + channels
        grad_cell = tl.load(grad_tokens_ptr + first + at, mask=channels < CHANNELS, other=0.0)
        grad_cell = grad_cell.to(tl.float32)
        at = ((down * (cols * WINDOW) + right) * CHANNELS)[:, None] + channels[None, :]
        if POOL_GRAD:
            tokens = tl.load(tokens_ptr + first + at, mask=whole, other=0.0)
            grad_weight += tokens.to(tl.float32) * grad_cell[None, :]
            grad_bias += grad_cell
        if X_GRAD:
            grad = tl.load(grad_tokens_ptr + first + at, mask=whole, other=0.0).to(tl.float32)
            grad += weight[:, None] * grad_cell[None, :]
            real = inside & (down < height) & (right < width)
            first = image * height * width * CHANNELS
            at = ((down * width + right) * CHANNELS)[:, None] + channels[None, :]
            grad = grad.to(grad_x_ptr.dtype.element_ty)
            mask = tile_mask(real, channels, CHANNELS, BLOCK)
            tl.store(grad_x_ptr + first + at, grad, mask=mask)

    if POOL_GRAD:
        partial_ptr += tl.program_id(0)
        programs = tl.num_programs(0)
        tl.store(partial_ptr + places * programs, tl.sum(grad_weight, 1), mask=inside)
        tl.store(partial_ptr + area * programs, tl.sum(grad_bias, 0))


@kernel
def sum_partials_kernel(
    partial_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    programs,
    WINDOW: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
):
    """Sums of all programs. Grid: places of a window, and one more for the bias."""
    place = tl.program_id(0)
    partial_ptr += place * programs
    total = tl.zeros([SUM_BLOCK], tl.float32)
    for start in range(0, programs, SUM_BLOCK):
        numbers = start + tl.arange(0, SUM_BLOCK)
        total += tl.load(partial_ptr + numbers, mask=numbers < programs, other=0.0)
    grad = tl.sum(total, 0)
    if place < WINDOW * WINDOW:
        tl.store(grad_weight_ptr + place, grad.to(grad_weight_ptr.dtype.element_ty))
    else:
        tl.store(grad_bias_ptr, grad.to(grad_bias_ptr.dtype.element_ty))


class Plan(NamedTuple):
    """What follows from the shape of a map and the side of a window."""

    rows: int  # of windows
    cols: int  # of windows
    constants: dict[str, Any]  # of both kernels
    options: dict[str, int]  # of the compiler
    blocks: int  # of channels
    windows: int  # of all images
    windows_per_run: int  # that a program of the backward kernel takes
    runs: int


@lru_cache(maxsize=256)
def plan_of(batch: int, height: int, width: int, channels: int, window: int) -> Plan:
    """How the kernels are launched for a map ``(B, H, W, C)``."""
    places = max(16, triton.next_power_of_2(window * window))
    block = channels & -channels  # the largest power of two that divides it: without a rest
    block = max(MIN_CHANNELS, min(block, MAX_CHANNELS, MAX_NUMBERS // places))
    warps = min(MAX_WARPS, max(1, places * block // OF_THREAD // 32))
    rows, cols = ceil_div(height, window), ceil_div(width, window)
    blocks, windows = ceil_div(channels, block), batch * rows * cols
    per_run = max(1, ceil_div(windows * blocks, BACKWARD_PROGRAMS))
    return Plan(
        rows=rows,
        cols=cols,
        constants=dict(WINDOW=window, CHANNELS=channels, PLACES=places, BLOCK=block),
        options=dict(num_warps=warps),
        blocks=blocks,
        windows=windows,
        windows_per_run=per_run,
        runs=ceil_div(windows, per_run),
    )


def run_forward(x: Tensor, weight: Tensor, bias: Tensor, window_size: int, out: Tensor) -> None:
    """Writes the tokens of :func:`mmfocal.ops.focal_tokens` to ``out``."""
    batch, height, width, channels = x.shape
    plan = plan_of(batch, height, width, channels, window_size)
    check_count(plan.rows * plan.cols * (window_size**2 + 1) * channels)
    with torch.cuda.device_of(x):
        launch(
            tokens_kernel,
            (plan.cols * plan.blocks, plan.rows, batch),
            (x.contiguous(), weight.contiguous(), bias, out),
            (height, width),
            plan.constants,
            plan.options,
        )


def run_backward(
    grad_tokens: Tensor,
    tokens: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    window_size: int,
    grad_x: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> None:
    """Writes gradients of map, weight and bias; None where they are not needed.

    Weight and bias have both or none.
    """
    batch, _, channels = tokens.shape
    plan = plan_of(batch, height, width, channels, window_size)
    programs, area, partial = plan.runs * plan.blocks, window_size**2, None
    if grad_weight is not None:
        partial = weight.new_empty((area + 1, programs), dtype=torch.float32)
    with torch.cuda.device_of(tokens):
        launch(
            tokens_grad_kernel,
            (programs, 1, 1),
            (grad_tokens.contiguous(), tokens, weight.contiguous(), grad_x, partial),
            (height, width, plan.rows, plan.cols, plan.windows_per_run, plan.windows),
            dict(plan.constants, X_GRAD=grad_x is not None, POOL_GRAD=partial is not None),
            plan.options,
        )
        if partial is not None:
            launch(
                sum_partials_kernel,
                (area + 1, 1, 1),
                (partial, grad_weight, grad_bias),
                (programs,),
                dict(WINDOW=window_size, SUM_BLOCK=SUM_BLOCK),
                SUM_LAUNCH.options(),
            )
