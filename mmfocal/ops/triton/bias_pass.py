"""The dense position bias from learned tables, and the gradients of the tables."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from .launching import ceil_div, kernel, launch
from .layout import SUM_LAUNCH

PLACES, NUMBERS = 1024, 128  # of the bias, and of the tables, that a program takes


@kernel
def gather_bias_kernel(
    table_ptr,
    first_ptr,
    second_ptr,
    bias_ptr,
    count,
    BLOCK: tl.constexpr,
    HAS_SECOND: tl.constexpr,
):
    """``log(sum(exp(.)))`` of the one or two numbers that a place of the bias lists."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = places < count
    first = tl.load(first_ptr + places, mask=there, other=0)
    bias = tl.load(table_ptr + first, mask=there, other=0.0).to(tl.float32)
    if HAS_SECOND:
        second = tl.load(second_ptr + places, mask=there, other=-1)
        other = tl.load(table_ptr + second, mask=second >= 0, other=0.0).to(tl.float32)
        larger = tl.maximum(bias, other, propagate_nan=tl.PropagateNan.ALL)
        shift = tl.where(tl.abs(larger) == float('inf'), 0.0, larger)
        both = shift + tl.log(tl.exp(bias - shift) + tl.exp(other - shift))
        bias = tl.where(second >= 0, both, bias)
    tl.store(bias_ptr + places, bias.to(bias_ptr.dtype.element_ty), mask=there)


@kernel
def sum_by_number_kernel(
    grad_ptr,
    bias_ptr,
    table_ptr,
    entries_ptr,
    offsets_ptr,
    grad_table_ptr,
    count,
    BLOCK: tl.constexpr,
    HAS_SECOND: tl.constexpr,
):
    """Sums the gradients of the places that list a number, in their order."""
    numbers = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = numbers < count
    first = tl.load(offsets_ptr + numbers, mask=there, other=0)
    last = tl.load(offsets_ptr + numbers + 1, mask=there, other=0)
    total = tl.zeros([BLOCK], tl.float32)
    if HAS_SECOND:
        own = tl.load(table_ptr + numbers, mask=there, other=0.0).to(tl.float32)
    for nth in range(tl.max(last - first, 0)):
        listed = first + nth < last
        places = tl.load(entries_ptr + first + nth, mask=listed, other=0)
        grad = tl.load(grad_ptr + places, mask=listed, other=0.0).to(tl.float32)
        if HAS_SECOND:  # the share of a number in its place; all of it where it is the only one
            bias = tl.load(bias_ptr + places, mask=listed, other=0.0).to(tl.float32)
            grad *= tl.exp(tl.where(listed, own - bias, 0.0))
        total += grad
    tl.store(grad_table_ptr + numbers, total.to(grad_table_ptr.dtype.element_ty), mask=there)


def run_gather(table: Tensor, first: Tensor, second: Tensor | None) -> Tensor:
    """The bias ``(nH, Wh * Ww, N)``, as :func:`mmfocal.ops.table_bias` says."""
    bias = table.new_empty(first.shape)
    with torch.cuda.device_of(table):
        launch(
            gather_bias_kernel,
            (ceil_div(first.numel(), PLACES), 1, 1),
            (table, first, second, bias),
            (first.numel(),),
            dict(BLOCK=PLACES, HAS_SECOND=second is not None),
            SUM_LAUNCH.options(),
        )
    return bias


def run_sum(
    grad: Tensor, bias: Tensor, table: Tensor, entries: Tensor, offsets: Tensor, has_second: bool
) -> Tensor:
    """The gradient of the table."""
    grad, grad_table = grad.contiguous(), torch.empty_like(table)
    with torch.cuda.device_of(table):
        launch(
            sum_by_number_kernel,
            (ceil_div(table.numel(), NUMBERS), 1, 1),
            (grad, bias, table, entries, offsets, grad_table),
            (table.numel(),),
            dict(BLOCK=NUMBERS, HAS_SECOND=has_second),
            SUM_LAUNCH.options(),
        )
    return grad_table
