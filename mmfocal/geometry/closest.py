"""Keys of the authors' second version ("Focal-fast"): what is closest to the centre of a window.

Instead of its own tokens, a ring and a region of pooled cells, each window attends to the
``top_k`` tokens of the map, and on each pooled map to the ``top_k`` cells, that are closest to its
centre.
Near a border these stand elsewhere around the window than inside the map, so that keys have
columns of the position bias, one for each offset from the centre that occurs
(:attr:`~mmfocal.geometry.KeyTables.columns`).

Source: ``get_topk_closest_indice`` and ``WindowAttention`` of the authors'
``classification/focal_transformer_v2.py`` (microsoft/Focal-Transformer at 57bb303).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import product
from math import ceil, isqrt
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocal.utils.checks import require

from .caching import TableCache, bytes_of
from .focal import FocalKeys, WindowGeometry
from .tables import Array, Arrays, KeyTables, WindowLists

# Pairs of a window and a token up to which keys are chosen as the authors do: 50 ms on two cores.
# That covers images of 224x224 pixels (0.2 million) to 512x512 (5.9 million).
MAX_PAIRS = 2**23
# Offsets on all devices: 10 KB for an image of 800x1344 pixels, read by the position bias.
OFFSET_BYTES = 2**24


@dataclass(frozen=True)
class ClosestKeys(FocalKeys):
    """The closest keys of every window of one map.

    Tokens that pad the map to whole windows are never keys: the closest are those of the map
    itself. The authors' code takes only maps of whole windows.
    """

    geometry: ClosestGeometry

    @property
    def keys_per_level(self) -> tuple[int, ...]:
        """Keys of a window at each level: ``top_k``, or as many as there are."""
        top_k = self.geometry.top_k
        height, width = self.map_size
        pooled = min(top_k, self.num_windows)
        return min(top_k, height * width), *[pooled] * (self.geometry.focal_level - 1)

    @property
    def num_keys(self) -> int:
        """Keys per window."""
        return sum(self.keys_per_level)

    def num_bias_columns(self, device: torch.device | str) -> int:
        """Columns of the position bias: different offsets of keys, over all levels."""
        return sum(map(len, self.offsets(device)))

    @property
    def separate(self) -> bool:
        """Whether every key of every window has a column of its own."""
        return self.map_size == (self.geometry.separate_height, self.geometry.separate_width)

    @property
    def num_open_keys(self) -> int:
        """All of them: every key is a token or a cell that holds one."""
        return self.num_keys

    def squares(self, window: int) -> Tensor:
        """Squares that the keys of a window stand for, where they are: there is no ring."""
        return self.squares_of(self.tables().index[window])

    def offsets(self, device: torch.device | str) -> tuple[Tensor, ...]:
        """What each column of the position bias stands for, level by level.

        Returns:
            float32 ``(columns of the level, 2)``: rows and columns in tokens from key to centre.
        """
        if not torch.compiler.is_compiling():
            return cached_offsets.get(self, device)
        # Their number follows from the choice of keys, which is no part of a compiled graph.
        levels = range(self.geometry.focal_level)
        call = (*self.map_size, list(self.geometry.values()), torch.device(device))
        return tuple(torch.ops.mmfocal.key_offsets(*call, level) for level in levels)

    @torch.compiler.disable  # only the reference backend asks for it there
    def tables(self, device: torch.device | str = 'cpu') -> KeyTables:
        """The tables on ``device``, from a bounded cache."""
        return super().tables(device)

    def make_tables(self, device: torch.device | str) -> KeyTables:
        """The tables on ``device``: those of the CPU, as other devices choose otherwise."""
        if torch.device(device).type == 'cpu':
            return self._choose()
        tables = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in vars(self.tables()).items()
            if name in KeyTables.__dataclass_fields__
        }
        return KeyTables(**tables | dict(offsets=self.offsets(device)))

    def make_lists(self, device: torch.device, multiple: int) -> WindowLists:
        """The lists on ``device``, filled up to multiples of a number."""
        tables = self.tables()
        missing = -self.num_keys % multiple
        keys = F.pad(tables.index.int(), (0, missing), value=-1)
        columns = F.pad(tables.columns.int(), (0, missing))
        keys, columns = torch.stack([keys, columns]).to(device)
        terms = self._terms(device, np.int32, multiple)
        return WindowLists(*self._query_lists(terms), keys, regions=None, columns=columns)

    def _terms_along(self, axis: int, arrays: Arrays) -> dict[str, Array]:
        """Terms of queries alone: which keys are closest is no sum of rows and columns."""
        inside = range(self.geometry.window_size)
        own = [place[axis] for place in product(inside, inside)]
        _, place, on_map = self._places(axis, own, arrays)
        return self._query_terms(axis, place, on_map, arrays)

    def _choose(self) -> KeyTables:
        """The tables on the CPU, computed anew."""
        geometry, start = self.geometry, self.num_map_tokens
        window, shift = geometry.window_size, geometry.shift_size
        count, pooled_count = self.keys_per_level[0], self.keys_per_level[-1]
        # Rows and columns of the moved grid that hold tokens of the map, and those of the map.
        real = [
            torch.tensor([at for at in range(whole) if (at + shift) % whole < side])
            for side, whole in zip(self.map_size, self.padded_size, strict=True)
        ]
        row, col = (
            (places + shift) % whole for places, whole in zip(real, self.padded_size, strict=True)
        )
        centres = [torch.arange(along) * window + window // 2 for along in self.grid]
        number = _separately_numbered if self.separate else _numbered
        closest = _closest(centres, real, count)
        index = [(row * self.padded_size[1])[closest.rows] + col[closest.cols]]
        numbers, offsets = ([part] for part in number(closest))
        if self.pooled_sizes:
            cells = [torch.arange(along) for along in self.grid]
            closest = _closest(cells, cells, pooled_count)
            pooled_numbers, offset = number(closest)
        for height, width in self.pooled_sizes:
            # On the finer maps of level 2, 3, ... the authors look up what they chose on the map
            # of level 1, whose cells have other numbers there. Trained weights depend on it.
            index.append(start + closest.rows * self.grid[1] + closest.cols)
            numbers.append(sum(map(len, offsets)) + pooled_numbers)
            offsets.append(offset * window)
            start += height * width

        index = torch.cat(index, dim=1)
        return KeyTables(
            queries=self._terms('cpu', np.int64)['queries'].table(),
            index=index,
            valid=torch.ones_like(index, dtype=torch.bool),
            region=None,
            inverse=self._inverse('cpu'),
            num_tokens=self.num_tokens,
            columns=torch.cat(numbers, dim=1),
            offsets=tuple(offset.float() for offset in offsets),
        )


@dataclass(frozen=True)
class ClosestGeometry(WindowGeometry):
    """Settings that decide which keys are closest.

    The distance is Euclidean, between token ``window_size // 2`` along both sides of a window and
    another token, or between a window's cell and another. Often only a part of the keys at the
    largest distance still belongs to the ``top_k``. The authors leave the choice to
    ``torch.topk``, whose implementation decides it; the same call on a CPU makes the same choice
    here, on maps with up to ``MAX_PAIRS`` pairs of a window and a token. Its cost grows with the
    square of the map, so that on larger ones, on which the authors published no model, the first
    in row-major order are chosen, among candidates near the window.

    Where windows are shifted, positions are those on the moved map and tokens that met by wrapping
    see each other: the authors compute Swin Transformer's mask and do not apply it.

    Args:
        window_size: side of a window in tokens.
        shift_size: tokens by which the grid of windows is moved down and right over the map.
        focal_level: levels of granularity with the fine one: 1 has no pooled keys.
        top_k: keys of a window at each level; all, where there are fewer.
        separate_height: height and width in tokens of a map on which every key of every window has
            a column of the position bias of its own, in this order; 0 for none.
        separate_width: see ``separate_height``.

    Raises:
        TypeError, ValueError: a setting out of range; the message names it.
    """

    KEYS: ClassVar[type[FocalKeys]] = ClosestKeys

    window_size: int = 7
    shift_size: int = 0
    focal_level: int = 2
    top_k: int = 128
    separate_height: int = 0
    separate_width: int = 0

    def __post_init__(self) -> None:
        self.check_windows(*(field.name for field in fields(self)))
        require(self.top_k >= 1, 'top_k', 'at least 1 key', self.top_k)


class _Closest(NamedTuple):
    """The places of a grid that are closest to each of a grid of centres, row by row.

    Centres away from the borders have their closest places at the same offsets: they are of a
    kind, whose places are chosen once.
    """

    rows: Tensor  # int64 (centres, count), numbers of rows of the grid of places
    cols: Tensor  # int64 (centres, count), numbers of columns
    offsets: Tensor  # int64 (kinds, count, 2), from places to the centre
    kinds: Tensor  # int64 (centres,)


def _closest(centres: list[Tensor], places: list[Tensor], count: int) -> _Closest:
    """The ``count`` places of a grid that are closest to each of a grid of centres.

    Args:
        centres: rows, and columns, of the centres.
        places: rows, and columns, of the places, both ascending; at least ``count`` in all.
    """
    (row_centres, col_centres), (row_places, col_places) = centres, places
    pairs = len(row_centres) * len(col_centres) * len(row_places) * len(col_places)
    if pairs <= MAX_PAIRS:
        choose = _choose_as_authors
        rows, cols = map(_everything, centres, places)
    else:
        choose, reach = _choose_first, _reach(centres, places, count)
        rows, cols = (_within(*side, reach) for side in zip(centres, places, strict=True))
    squares = cols.offsets.square()
    chosen = torch.cat([choose(of_row.square(), squares, count) for of_row in rows.offsets])
    chosen = chosen.sort().values
    row, col = chosen // squares.shape[1], chosen % squares.shape[1]

    row_offsets = rows.offsets.repeat_interleave(len(cols.offsets), dim=0).gather(1, row)
    col_offsets = cols.offsets.repeat(len(rows.offsets), 1).gather(1, col)
    kinds = rows.kinds[:, None] * len(cols.offsets) + cols.kinds
    return _Closest(
        (row[kinds] + rows.first[:, None, None]).flatten(0, 1),
        (col[kinds] + cols.first[:, None]).flatten(0, 1),
        torch.stack([row_offsets, col_offsets], dim=-1),
        kinds.flatten(),
    )


class _Near(NamedTuple):
    """Along an axis, a run of places for each centre with all that may be among the closest."""

    first: Tensor  # int64 (centres,), number of its first place
    offsets: Tensor  # int64 (kinds, places of a run), from these to the centre
    kinds: Tensor  # int64 (centres,)


def _everything(centres: Tensor, places: Tensor) -> _Near:
    """All places for every centre, which is a kind of its own then."""
    offsets = centres[:, None] - places
    return _Near(torch.zeros_like(centres), offsets, torch.arange(len(centres)))


def _within(centres: Tensor, places: Tensor, reach: int) -> _Near:
    """Runs with all places that are within ``reach``, as long as the longest."""
    first = torch.searchsorted(places, centres - reach)
    last = torch.searchsorted(places, centres + reach, right=True)
    longest = int((last - first).max())
    first = first.clamp(max=len(places) - longest)
    offsets = centres[:, None] - places[first[:, None] + torch.arange(longest)]
    return _Near(first, *offsets.unique(dim=0, return_inverse=True))


def _choose_as_authors(row: Tensor, cols: Tensor, count: int) -> Tensor:
    """The closest places of a row of centres, in no particular order.

    Args:
        row: squares of the distances of rows of places, ``(rows,)``.
        cols: squares of the distances of columns of places from each centre, ``(centres, cols)``.
        count: of places.

    Returns:
        int64 ``(centres, count)``, numbers of places in row-major order.
    """
    squares = (row.int()[:, None] + cols.int()[:, None]).flatten(1)
    return squares.float().sqrt_().neg_().topk(count).indices


def _choose_first(row: Tensor, cols: Tensor, count: int) -> Tensor:
    """As :func:`_choose_as_authors`; of places that are equally close, those that come first."""
    squares = (row[:, None] + cols[:, None]).flatten(1)
    number = torch.arange(squares.shape[1])
    return (squares * len(number) + number).topk(count, largest=False).indices


def _reach(centres: list[Tensor], places: list[Tensor], count: int) -> int:
    """Rows or columns that the closest places of any centre can be away from it."""
    height, width = map(len, places)
    near_rows = min(height, isqrt(count - 1) + 1)
    near_cols = min(width, ceil(count / near_rows))
    near_rows = ceil(count / near_cols)
    # A rectangle with that many rows and columns has enough places; none need be further away
    # than its corners.
    square = 0
    for centre, along, near in zip(centres, places, (near_rows, near_cols), strict=True):
        distance = (centre[:, None] - along).abs().sort(dim=1).values
        square += int(distance[:, near - 1].max()) ** 2
    return isqrt(square)


def _numbered(closest: _Closest) -> tuple[Tensor, Tensor]:
    """Numbers of all offsets that occur: of each place of each centre, and what they are.

    Returns:
        int64 ``(centres, count)`` and int64 ``(numbers, 2)``.
    """
    offsets = closest.offsets
    least = offsets.flatten(0, 1).min(dim=0).values
    height, width = (offsets.flatten(0, 1).max(dim=0).values - least + 1).tolist()
    rows, cols = (offsets - least).unbind(-1)
    codes = rows * width + cols
    occurs = torch.zeros(height * width, dtype=torch.bool)
    occurs[codes] = True
    found = occurs.nonzero().flatten()
    numbers = (occurs.cumsum(0) - 1)[codes]
    offsets = torch.stack([found // width, found % width], dim=-1) + least
    return numbers[closest.kinds], offsets


def _separately_numbered(closest: _Closest) -> tuple[Tensor, Tensor]:
    """The same with a number for each place of each centre, one after another."""
    flat = closest.offsets[closest.kinds].flatten(0, 1)
    return torch.arange(len(flat)).view_as(closest.rows), flat


def _move_offsets(keys: ClosestKeys, device: torch.device) -> tuple[Tensor, ...]:
    return tuple(of_level.to(device) for of_level in keys.tables().offsets)


cached_offsets = TableCache(_move_offsets, bytes_of, OFFSET_BYTES)


@torch.library.custom_op('mmfocal::key_offsets', mutates_args=())
def _key_offsets(
    height: int, width: int, geometry: list[int], device: torch.device, level: int
) -> Tensor:
    """:meth:`ClosestKeys.offsets` of one level, for compiled graphs."""
    keys = ClosestGeometry(*geometry).keys(height, width)
    # What a graph gets it may write over.
    return keys.offsets(device)[level].clone()


@_key_offsets.register_fake
def _fake_key_offsets(
    height: int, width: int, geometry: list[int], device: torch.device, level: int
) -> Tensor:
    return torch.empty(torch.library.get_ctx().new_dynamic_size(), 2, device=device)
