"""Weights for other windows: every table on the grid of positions that it is a function of.

Grids are resized as PyTorch resizes images (``align_corners=False``, without smoothing). The same
size leaves a table as it is, bit for bit.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from mmengine.model.weight_init import trunc_normal_
from torch import Tensor

from mmfocal.geometry import FocalGeometry

INTERPOLATIONS = ('bilinear', 'bicubic')
RINGS = ('normal', 'nearest')  # or a number


def resize_grid(grids: Tensor, side: int, interpolation: str) -> Tensor:
    """Square grids in row-major order, float ``(..., s * s)`` to ``(..., side * side)``."""
    old = _side(grids)
    if old == side:
        return grids
    square = grids.reshape(1, -1, old, old).double()
    resized = F.interpolate(square, (side, side), mode=interpolation, align_corners=False)
    return resized.reshape(*grids.shape[:-1], side * side).to(grids.dtype)


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


def missing_ring(
    ring: str | float, window_table: Tensor, like: Tensor, geometry: FocalGeometry
) -> Tensor:
    """Bias for a ring that the pretrained model does not have.

    Args:
        ring: ``'normal'``, a normal distribution of standard deviation 0.02, as the authors' code
            initialises it (cut off at -2 and 2, a hundred deviations away); ``'nearest'``, the
            bias of the window's own key at the same relative position, or the one nearest to it;
            or the bias of all its keys: 0, or a negative number, by which the ring begins to be
            seen the more slowly, the lower it is.
        window_table: of the same block, float ``((2 * w - 1) ** 2, nH)``.
        like: the new table, float ``(1, nH, w ** 2, R)``.
        geometry: of the block.

    Returns:
        As ``like``.
    """
    if ring == 'normal':
        return trunc_normal_(torch.empty_like(like), std=0.02)
    if ring != 'nearest':
        return torch.full_like(like, ring)
    window = geometry.window_size
    query = torch.cartesian_prod(*(torch.arange(window),) * 2)
    key = torch.tensor([position for _, position in geometry.authors_ring])
    relative = query[:, None] - key[None] + window - 1
    relative = relative.clamp(0, 2 * window - 2)
    index = relative[..., 0] * (2 * window - 1) + relative[..., 1]  # (w ** 2, R)
    return window_table[index].permute(2, 0, 1)[None].to(like)


def _side(grids: Tensor) -> int:
    return round(grids.shape[-1] ** 0.5)


@lru_cache
def _ring_keys(old: FocalGeometry, new: FocalGeometry) -> Tensor:
    """Share of each old place in each new one, float64 ``(R, R')``."""
    share = torch.zeros(len(old.authors_ring), len(new.authors_ring), dtype=torch.float64)
    copies = torch.tensor([copy for copy, _ in old.authors_ring])
    places = torch.tensor([place for _, place in old.authors_ring]).double()
    scale = old.window_size / new.window_size
    for column, (copy, place) in enumerate(new.authors_ring):
        at = (torch.tensor(place, dtype=torch.float64) + 0.5) * scale - 0.5
        distance = (places - at).abs()
        weights = (1 - distance).clamp(min=0).prod(dim=1).where(copies == copy, 0)
        if not weights.any():
            squares = distance.square().sum(dim=1).where(copies == copy, torch.inf)
            weights[squares.argmin()] = 1
        share[:, column] = weights / weights.sum()
    return share
