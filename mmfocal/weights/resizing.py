"""Weights for other windows: every table on the grid of positions that it is a function of.

All resizing is a pair of small matrices, one for each axis of a grid, of the interpolations that
PyTorch has for images (``align_corners=False``, without smoothing). The same size leaves a table
as it is, bit for bit.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocal.geometry import FocalGeometry

INTERPOLATIONS = ('bilinear', 'bicubic')
RINGS = ('normal', 'nearest')  # or a number


def resize_window_table(table: Tensor, window: int, interpolation: str) -> Tensor:
    """Bias of the window's own keys, a function of the relative position in tokens.

    Args:
        table: float ``((2 * w - 1) ** 2, nH)``.
        window: side of the new window in tokens.
        interpolation: one of :data:`INTERPOLATIONS`.

    Returns:
        float ``((2 * window - 1) ** 2, nH)``.
    """
    return resize_grid(table.T, 2 * window - 1, interpolation).T


def resize_grid(grids: Tensor, side: int, interpolation: str) -> Tensor:
    """Square grids in row-major order, float ``(..., s * s)`` to ``(..., side * side)``."""
    old = _side(grids)
    if old == side:
        return grids
    along = _matrix(old, side, interpolation).to(grids.dtype)
    square = grids.unflatten(-1, (old, old))
    return torch.einsum('...ij,ki,lj->...kl', square, along, along).flatten(-2)


def resize_pool(weight: Tensor, side: int) -> Tensor:
    """Weights of a sub-window's tokens, ``(..., s * s)``; their sum stays what it is."""
    old = _side(weight)
    if old == side:
        return weight
    resized = resize_grid(weight, side, 'bilinear')
    return resized * (old / side) ** 2


def resize_ring_table(
    table: Tensor, old: FocalGeometry, new: FocalGeometry, interpolation: str
) -> Tensor:
    """Bias of the ring, a number for each pair of a query and a place in the authors' list.

    Queries are resized like an image. Keys are looked up at their place in the old window's
    scale, between the four positions around it that the same of the authors' four copies of the
    window lists; where it lists none of them, at the nearest one that it lists.

    Args:
        table: float ``(1, nH, w ** 2, R)``.
        old: geometry that the table is for.
        new: geometry that it shall be for.
        interpolation: of the queries.

    Returns:
        float ``(1, nH, w' ** 2, R')``.
    """
    if (old.window_size, old.expand_size) == (new.window_size, new.expand_size):
        return table
    keys = _ring_keys(old, new).to(table)
    by_key = (table @ keys).transpose(-1, -2)
    return resize_grid(by_key, new.window_size, interpolation).transpose(-1, -2).contiguous()


def check_ring(ring: str | float) -> None:
    """Raises a ValueError for what :func:`missing_ring` does not know."""
    if ring not in RINGS and (isinstance(ring, bool) or not isinstance(ring, int | float)):
        raise ValueError(f'ring must be one of {RINGS} or a number, got {ring!r}')


def missing_ring(
    ring: str | float, window_table: Tensor, like: Tensor, geometry: FocalGeometry
) -> Tensor:
    """Bias for a ring that the pretrained model does not have.

    Args:
        ring: ``'normal'``, a truncated normal distribution of standard deviation 0.02, as the
            authors' code initialises it; ``'nearest'``, the bias of the window's own key at the
            same relative position, or the one nearest to it; or the bias of all its keys: 0, or
            a negative number, by which the ring begins to be seen the more slowly, the lower it
            is.
        window_table: of the same block, float ``((2 * w - 1) ** 2, nH)``.
        like: the new table, float ``(1, nH, w ** 2, R)``.
        geometry: of the block.

    Returns:
        As ``like``.
    """
    if ring == 'normal':
        return torch.nn.init.trunc_normal_(torch.empty_like(like), std=0.02, a=-0.04, b=0.04)
    if ring != 'nearest':
        return torch.full_like(like, ring)
    window = geometry.window_size
    query = torch.cartesian_prod(*(torch.arange(window),) * 2)
    key = torch.tensor([position for _, position in geometry.authors_ring])
    relative = query[:, None] - key[None] + window - 1
    relative = relative.clamp(0, 2 * window - 2)
    index = relative[..., 0] * (2 * window - 1) + relative[..., 1]  # (w ** 2, R)
    return window_table[index].permute(2, 0, 1)[None].to(like)


@lru_cache
def _matrix(old: int, new: int, interpolation: str) -> Tensor:
    """Linear map of one axis, float64 ``(new, old)``: what PyTorch does to each unit vector."""
    unit = torch.eye(old, dtype=torch.float64)[None, :, :, None].expand(-1, -1, -1, old)
    resized = F.interpolate(unit, size=(new, old), mode=interpolation, align_corners=False)
    return resized[0, :, :, 0].T.contiguous()


def _side(grids: Tensor) -> int:
    return round(grids.shape[-1] ** 0.5)


@lru_cache
def _ring_keys(old: FocalGeometry, new: FocalGeometry) -> Tensor:
    """Share of each old place in each new one, float64 ``(R, R')``."""
    share = torch.zeros(len(old.authors_ring), len(new.authors_ring), dtype=torch.float64)
    scale = old.window_size / new.window_size
    places = {listed: column for column, listed in enumerate(old.authors_ring)}
    for column, (copy, position) in enumerate(new.authors_ring):
        row, col = ((along + 0.5) * scale - 0.5 for along in position)
        around = {}
        for near_row in (int(row // 1), int(row // 1) + 1):
            for near_col in (int(col // 1), int(col // 1) + 1):
                weight = (1 - abs(row - near_row)) * (1 - abs(col - near_col))
                place = places.get((copy, (near_row, near_col)))
                if place is not None and weight > 0:
                    around[place] = weight
        if not around:
            _, nearest = min(
                ((listed[0] - row) ** 2 + (listed[1] - col) ** 2, place)
                for (other, listed), place in places.items()
                if other == copy
            )
            around = {nearest: 1.0}
        for place, weight in around.items():
            share[place, column] = weight / sum(around.values())
    return share
