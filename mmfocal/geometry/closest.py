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
from math import ceil, isqrt
from typing import ClassVar

import torch
from torch import Tensor

from mmfocal.utils.checks import require

from .focal import FocalKeys, KeyTables, WindowGeometry, grid_positions, inverse_order

# Pairs of a window and a token up to which keys are chosen as the authors do: 50 ms on two cores.
# That covers images of 224x224 pixels (0.2 million) to 512x512 (5.9 million).
MAX_PAIRS = 2**23


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
            return super().tables(device).offsets
        # Their number follows from the choice of keys, which is no part of a compiled graph.
        levels = range(self.geometry.focal_level)
        call = (*self.map_size, list(self.geometry.values()), torch.device(device))
        return tuple(torch.ops.mmfocal.key_offsets(*call, level) for level in levels)

    @torch.compiler.disable  # only the reference backend asks for it there
    def tables(self, device: torch.device | str = 'cpu') -> KeyTables:
        """The tables on ``device``, from a bounded cache."""
        return super().tables(device)

    def make_tables(self, device: torch.device | str) -> KeyTables:
        """The tables on ``device``, computed anew, on the CPU: other devices choose otherwise."""
        geometry, start = self.geometry, self.num_map_tokens
        window, shift = geometry.window_size, geometry.shift_size
        padded = torch.tensor(self.padded_size)

        def token(position: Tensor) -> Tensor:
            """Where positions on the moved grid of windows are on the token axis."""
            place = (position + shift) % padded
            return place[..., 0] * padded[1] + place[..., 1]

        queries = token(grid_positions(*self.grid)[:, None] * window + grid_positions(window))
        count, pooled_count = self.keys_per_level[0], self.keys_per_level[-1]
        # Rows and columns of the moved grid that hold tokens of the map.
        real = [
            torch.tensor([at for at in range(whole) if (at + shift) % whole < side])
            for side, whole in zip(self.map_size, self.padded_size, strict=True)
        ]
        centres = [torch.arange(along) * window + window // 2 for along in self.grid]
        position, offset = _closest(centres, real, count)
        number = _separately_numbered if self.separate else _numbered
        index, numbers, offsets = [token(position)], *([part] for part in number(offset))
        if self.pooled_sizes:
            cells = [torch.arange(along) for along in self.grid]
            position, offset = _closest(cells, cells, pooled_count)
            pooled_numbers, offset = number(offset)
        for height, width in self.pooled_sizes:
            # On the finer maps of level 2, 3, ... the authors look up what they chose on the map
            # of level 1, whose cells have other numbers there. Trained weights depend on it.
            index.append(start + position[..., 0] * self.grid[1] + position[..., 1])
            numbers.append(sum(map(len, offsets)) + pooled_numbers)
            offsets.append(offset * window)
            start += height * width

        index = torch.cat(index, dim=1)
        return KeyTables(
            queries=queries.to(device),
            index=index.to(device),
            valid=torch.ones_like(index, dtype=torch.bool, device=device),
            region=None,
            inverse=inverse_order(queries).to(device),
            num_tokens=self.num_tokens,
            columns=torch.cat(numbers, dim=1).to(device),
            offsets=tuple(offset.to(device, torch.float32) for offset in offsets),
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


def _closest(centres: list[Tensor], places: list[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` places of a grid that are closest to each of a grid of centres.

    Args:
        centres: rows, and columns, of the centres.
        places: rows, and columns, of the places, both ascending; at least ``count`` in all.

    Returns:
        Positions of the places, and from there to the centre, int64 ``(centres, count, 2)``, in
        row-major order of the places.
    """
    pairs = 1
    for along in (*centres, *places):
        pairs *= len(along)
    near = [along[None].expand(len(c), -1) for c, along in zip(centres, places, strict=True)]
    if pairs > MAX_PAIRS:
        reach = _reach(centres, places, count)
        near = [_within(*side, reach) for side in zip(centres, places, strict=True)]
    rows, cols = near
    row_offset, col_offset = (c[:, None] - n for c, n in zip(centres, near, strict=True))
    squares = row_offset.square()[:, None, :, None] + col_offset.square()[:, None]
    squares = squares.flatten(2).flatten(0, 1)  # (centres, rows * cols)
    if pairs > MAX_PAIRS:
        first = torch.arange(squares.shape[1])
        chosen = (squares * len(first) + first).topk(count, largest=False).indices
    else:
        chosen = (-squares.float().sqrt()).topk(count).indices
    chosen = chosen.sort().values.unflatten(0, (len(centres[0]), -1))
    row, col = chosen // cols.shape[1], chosen % cols.shape[1]
    at_row, at_col = torch.arange(len(rows))[:, None, None], torch.arange(len(cols))[:, None]
    position = torch.stack([rows[at_row, row], cols[at_col, col]], dim=-1)
    offset = torch.stack([row_offset[at_row, row], col_offset[at_col, col]], dim=-1)
    return position.flatten(0, 1), offset.flatten(0, 1)


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


def _within(centres: Tensor, places: Tensor, reach: int) -> Tensor:
    """Runs of ``places`` with all that are within ``reach``, int64 ``(centres, longest run)``."""
    first = torch.searchsorted(places, centres - reach)
    last = torch.searchsorted(places, centres + reach, right=True)
    longest = int((last - first).max())
    first = first.clamp(max=len(places) - longest)
    return places[first[:, None] + torch.arange(longest)]


def _numbered(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of all offsets ``(nW, K, 2)`` that occur: of each ``(nW, K)``, and what they are.

    Returns:
        int64 ``(nW, K)`` and int64 ``(numbers, 2)``.
    """
    least = offsets.flatten(0, 1).min(dim=0).values
    height, width = (offsets.flatten(0, 1).max(dim=0).values - least + 1).tolist()
    rows, cols = (offsets - least).unbind(-1)
    codes = rows * width + cols
    occurs = torch.zeros(height * width, dtype=torch.bool)
    occurs[codes] = True
    found = occurs.nonzero().flatten()
    numbers = occurs.cumsum(0) - 1
    return numbers[codes], torch.stack([found // width, found % width], dim=-1) + least


def _separately_numbered(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The same with a number for each entry of ``offsets``, window by window."""
    flat = offsets.flatten(0, 1)
    return torch.arange(len(flat)).view(offsets.shape[:2]), flat


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
