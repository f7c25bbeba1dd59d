"""The dense position bias from learned tables, as one op.

PyTorch gathers from a table with one operator for each and sums its gradients with a sort, or in
no order at all once compiled; here it is one kernel each way and the same bits in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmfocal.geometry import FocalGeometry

from .registration import Operator, as_numbers, from_numbers, register


def table_bias(tables: Sequence[Tensor], geometry: FocalGeometry) -> Tensor:
    """The bias of each pair of a query and a key, where :func:`mmfocal.ops.triton.serves`.

    A key that is listed twice, with weights ``exp(s + b1)`` and ``exp(s + b2)``, adds up to one
    with the bias ``log(exp(b1) + exp(b2))``. Differentiable once.

    Args:
        tables: of the window ``((2 * Wh - 1) * (2 * Ww - 1), nH)``, of the ring
            ``(1, nH, Wh * Ww, R)`` if there is one, and of each pooled level ``(nH, S * S)``, as
            :class:`mmfocal.models.position_bias.FocalPositionBias` has them; float32, float16 or
            bfloat16.
        geometry: settings of the attention.

    Returns:
        ``(nH, Wh * Ww, N)`` in the dtype of the tables.
    """
    num_heads = tables[0].shape[1]
    flat = torch.cat([table.flatten() for table in tables])
    return _bias(flat, *as_numbers(geometry), num_heads)


class Listings(NamedTuple):
    """Which numbers of the tables, one after the other, make each place of the bias."""

    first: Tensor  # int32 (nH, Wh * Ww, N): a number
    second: Tensor | None  # int32, as `first`: a further one, or -1; None where there are none
    entries: Tensor  # int32 (listings,): places of all numbers, in the order of the numbers
    offsets: Tensor  # int32 (numbers + 1,): where the places of each begin in `entries`


@cache  # few, and CUDA graphs read them where they are
def listings_of(geometry: FocalGeometry, num_heads: int, device: torch.device) -> Listings:
    """The listings on a device, made once."""
    with torch.inference_mode(False), torch.no_grad():
        first, second, count = _numbers(geometry, num_heads)
        twice = second != first
        places = torch.arange(first.numel()).view_as(first)
        numbers = torch.cat([first.flatten(), second[twice]])
        places = torch.cat([places.flatten(), places[twice]])
        numbers, order = numbers.sort(stable=True)
        made = Listings(
            first=first,
            second=second.masked_fill(~twice, -1) if twice.any() else None,
            entries=places[order],
            offsets=torch.searchsorted(numbers, torch.arange(count + 1)),
        )
        return Listings(*(None if t is None else t.int().to(device) for t in made))


def _numbers(geometry: FocalGeometry, num_heads: int) -> tuple[Tensor, Tensor, int]:
    """For each place the first and the last number that it lists, and how many there are.

    Found by gathering from tables that hold their own numbers.
    """
    window, count = geometry.window_size, 0

    def table(*shape: int) -> Tensor:
        nonlocal count
        numbers = count + torch.arange(torch.Size(shape).numel()).view(shape)
        count += numbers.numel()
        return numbers

    of_window = table((2 * window - 1) ** 2, num_heads)[relative_position_index(window, window)]
    first, second = [of_window.permute(2, 0, 1)], [of_window.permute(2, 0, 1)]
    if geometry.expand_size > 0:
        once, one, other = geometry.ring_listings()
        ring = table(num_heads, window**2, len(once) + len(one) + len(other))
        first.append(ring[..., once + one])
        second.append(ring[..., once + other])
    for level in range(1, geometry.focal_level):
        region = geometry.region_size(level)
        of_level = table(num_heads, (window + region - 1) ** 2)
        cells = of_level[:, relative_position_index(window, region)]
        first.append(cells)
        second.append(cells)
    return torch.cat(first, dim=-1), torch.cat(second, dim=-1), count


def relative_position_index(query_side: int, key_side: int) -> Tensor:
    """Index of each pair's relative position in a table of all relative positions.

    Args:
        query_side: side of the square of queries.
        key_side: side of the square of keys. A table has ``query_side + key_side - 1`` rows and
            as many columns, from the key that is furthest before the query to the one
            that is furthest after it.

    Returns:
        int64 ``(query_side ** 2, key_side ** 2)``.
    """
    query, key = torch.arange(query_side), torch.arange(key_side)
    relative = query[:, None] - key[None, :] + key_side - 1  # (query_side, key_side)
    rows = relative[:, None, :, None] * (query_side + key_side - 1)
    return (rows + relative[None, :, None, :]).reshape(query_side**2, key_side**2)


def _forward(table: Tensor, numbers: Sequence[int], border: str, num_heads: int) -> Tensor:
    from .triton.bias_pass import run_gather

    listings = listings_of(from_numbers(numbers, border), num_heads, table.device)
    return run_gather(table, listings.first, listings.second)


def _backward(
    grad: Tensor,
    bias: Tensor,
    table: Tensor,
    numbers: Sequence[int],
    border: str,
    num_heads: int,
) -> Tensor:
    from .triton.bias_pass import run_sum

    listings = listings_of(from_numbers(numbers, border), num_heads, table.device)
    has_second = listings.second is not None
    return run_sum(grad, bias, table, listings.entries, listings.offsets, has_second)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    table, *ctx.call = inputs
    ctx.save_for_backward(output, table)


def _fake_forward(table: Tensor, numbers: Sequence[int], border: str, num_heads: int) -> Tensor:
    geometry = from_numbers(numbers, border)
    return table.new_empty(num_heads, geometry.window_size**2, geometry.num_keys)


def _fake_backward(grad: Tensor, bias: Tensor, table: Tensor, *call: object) -> Tensor:
    return torch.empty_like(table)


_CALL = 'int[] geometry, str border, int num_heads'
_bias = register(
    'table_bias',
    Operator(f'(Tensor table, {_CALL}) -> Tensor', _forward, _fake_forward),
    Operator(
        f'(Tensor grad, Tensor bias, Tensor table, {_CALL}) -> Tensor', _backward, _fake_backward
    ),
    _save,
    lambda ctx, grad: (grad, *ctx.saved_tensors, *ctx.call),
)
