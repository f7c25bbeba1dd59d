"""Which keys each window of queries attends to, as plain integer data.

A map of tokens is padded at its bottom and right to whole windows and cut into windows of
``window_size x window_size`` tokens. The queries of one window share one list of keys
(paper section 3.2, Figure 3):

* ``window``: the tokens of the window itself,
* ``ring``: fine tokens up to ``expand_size`` tokens around the window,
* ``level1``, ``level2``, ...: cells of maps that pool one window into ``1, 4, 16, ...`` cells.

:class:`FocalGeometry` holds the settings, :class:`FocalKeys` what they come to for one map size,
and :class:`KeyTables` writes that out. Nothing here has parameters or knows about channels, heads
or attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from types import EllipsisType
from typing import ClassVar

import torch
from torch import Tensor

from mmfocal.utils.checks import is_int, require

BORDERS = ('wrap', 'mask')

# Tables kept at once, over all settings, map sizes and devices. The four stages of one image of
# 800x1344 pixels take 11 MB with the lists of readers, so this bounds the cache at about 180 MB in
# multi-scale training. Triton's kernels have a cache of their own.
MAX_CACHED_TABLES = 64


@dataclass(frozen=True)
class KeyTables:
    """The keys of :class:`FocalKeys`, written out on one device.

    Attributes:
        queries: int64 ``(nW, Wh * Ww)``, position of each query on the token axis. Every token of
            the padded map is a query of exactly one window.
        index: int64 ``(nW, N)``, position of each key on the token axis; 0 where not valid. Where
            there are regions, the first ``Wh * Ww`` keys of a window are its own tokens.
        valid: bool ``(nW, N)``, False for a key that no query of the window may see.
        region: int64 ``(nW, N)`` or None. A key of region 0 is seen by all queries of its
            window; a key of another region only by queries of the same region (the queries'
            regions are those of the first ``Wh * Ww`` keys). None where all keys are of region 0.
        inverse: int64 ``(nW * Wh * Ww,)``, where each token of the padded map stands among the
            flattened ``queries``: ``queries.flatten()[inverse]`` counts up from 0.
        num_tokens: length of the token axis.
        columns: int64 ``(nW, N)``, column of the position bias that belongs to each key, so that
            windows whose keys stand elsewhere have another bias; None where key ``j`` of every
            window has column ``j``.
        offsets: float32 ``(columns of a level, 2)`` for each level where there are ``columns``:
            rows and columns in tokens from the key of a column to its window's centre.
    """

    queries: Tensor
    index: Tensor
    valid: Tensor
    region: Tensor | None
    inverse: Tensor
    num_tokens: int
    columns: Tensor | None = None
    offsets: tuple[Tensor, ...] = ()

    def allowed(self, windows: Tensor | slice | EllipsisType = ...) -> Tensor:
        """Which query may see which key, in all windows or those at ``windows``.

        Returns:
            bool ``(nW, Wh * Ww, N)``, or ``(nW, 1, N)`` where all queries of a window see the
            same keys.
        """
        allowed = self.valid[windows, None, :]
        if self.region is None:
            return allowed
        region = self.region[windows]
        num_queries = self.queries.shape[1]
        key_region, query_region = region[:, None, :], region[:, :num_queries, None]
        return allowed & ((key_region == 0) | (key_region == query_region))

    @cached_property
    def all_allowed(self) -> list[bool]:
        """For each window, whether all its queries may see all its keys."""
        return self.allowed().flatten(1).all(dim=1).tolist()

    @cached_property
    def any_keyless(self) -> bool:
        """Whether there is a query that may see no key."""
        return not self.allowed().any(dim=-1).all().item()

    @cached_property
    def num_valid(self) -> int:
        """Positions of ``index`` that are valid."""
        return int(self.valid.sum())

    @cached_property
    def readers(self) -> tuple[Tensor, Tensor]:
        """Which windows list each token: ``index`` the other way round.

        Gradients of keys and values are summed along it, in this order, without atomics.

        Returns:
            ``entries`` int32 ``(nW * N,)`` and ``offsets`` int32 ``(num_tokens + 1,)``: token
            ``t`` stands at the flat positions ``entries[offsets[t]:offsets[t + 1]]`` of
            ``index``, in ascending order. Positions that are not valid are at the end of
            ``entries``, after ``offsets[-1]``.
        """
        return self._readers(self.index, self.num_tokens)

    @cached_property
    def column_readers(self) -> tuple[Tensor, Tensor]:
        """Which windows use each column of the bias: ``columns`` the other way round.

        Returns:
            As :attr:`readers`, with columns in place of tokens.
        """
        return self._readers(self.columns, sum(map(len, self.offsets)))

    def _readers(self, table: Tensor, count: int) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.no_grad():
            numbers = table.masked_fill(~self.valid, count).flatten()
            numbers, entries = numbers.sort(stable=True)
            counted = torch.arange(count + 1, device=numbers.device)
            return entries.int(), torch.searchsorted(numbers, counted, out_int32=True)


@dataclass(frozen=True)
class FocalKeys:
    """Keys of every window of one map: sizes at once, tables when asked for.

    The token axis is the padded map in row-major order, followed by the pooled maps of level 1, 2,
    ... in row-major order. Cheap to make, hashable, and without tensors, so that it can be made
    inside a compiled graph.

    Attributes:
        geometry: settings of the attention.
        map_size: height and width of the map in tokens, without padding.
    """

    geometry: WindowGeometry
    map_size: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        height, width = self.map_size
        return self.geometry.num_windows(height), self.geometry.num_windows(width)

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width of the padded map in tokens."""
        rows, cols = self.grid
        return rows * self.geometry.window_size, cols * self.geometry.window_size

    @property
    def pooled_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each pooled map in cells, one pair per pooled level."""
        rows, cols = self.grid
        levels = range(1, self.geometry.focal_level)
        cells = [self.geometry.cells_per_window(level) for level in levels]
        return tuple((rows * along, cols * along) for along in cells)

    @property
    def num_windows(self) -> int:
        rows, cols = self.grid
        return rows * cols

    @property
    def num_queries(self) -> int:
        """Queries per window."""
        return self.geometry.window_size**2

    @property
    def num_keys(self) -> int:
        """Keys per window."""
        return self.geometry.num_keys

    def num_bias_columns(self, device: torch.device | str) -> int:
        """Columns of the position bias; ``device`` is where the tables are that tell it."""
        return self.num_keys

    @property
    def num_open_keys(self) -> int:
        """Leading keys of a window that are valid and seen by all its queries, in every window."""
        if self.geometry.border != 'wrap' or self.geometry.shift_size > 0:
            return 0
        sources = self.geometry.sources()
        return sources.get('ring', sources['window']).stop

    @property
    def num_map_tokens(self) -> int:
        """Tokens of the padded map."""
        return self.num_windows * self.num_queries

    @property
    def num_tokens(self) -> int:
        """Length of the token axis: padded map and pooled maps together."""
        cells = (
            self.geometry.cells_per_window(i) ** 2 for i in range(1, self.geometry.focal_level)
        )
        return self.num_map_tokens + self.num_windows * sum(cells)

    def squares_of(self, tokens: Tensor) -> Tensor:
        """Squares of the map that entries of the token axis stand for.

        Args:
            tokens: int64 ``(n,)``, positions on the token axis.

        Returns:
            int64 ``(n, 4)``: level, 0 for a token and 1, 2, ... for a pooled cell; row and column
            of the upper left token; and the side in tokens. Rows run from ``shift_size`` to
            ``padded_size + shift_size``, and columns too: what the shift takes round the border
            stands after it.
        """
        geometry, shift = self.geometry, self.geometry.shift_size
        width = self.padded_size[1]
        place = torch.stack([tokens // width, tokens % width], dim=1)
        place = (place - shift) % torch.tensor(self.padded_size)
        level, side = torch.zeros_like(tokens), torch.ones_like(tokens)
        start = self.num_map_tokens
        for number, (height, width) in enumerate(self.pooled_sizes, start=1):
            of_level = (tokens >= start) & (tokens < start + height * width)
            cell = tokens[of_level] - start
            level[of_level], side[of_level] = number, geometry.sub_window_size(number)
            trim = torch.tensor([geometry.trim(number, along) for along in self.grid])
            place[of_level] = torch.stack([cell // width, cell % width], dim=1)
            place[of_level] = place[of_level] * geometry.sub_window_size(number) + trim
            start += height * width
        return torch.cat([level[:, None], place + shift, side[:, None]], dim=1)

    def squares(self, window: int) -> Tensor:
        """Squares that the keys of a window stand for, where the window sees them.

        Those of :meth:`squares_of`, except that a ring lies around its window: where it wraps
        round the border, its tokens stand outside of the padded map, which repeats there.

        Args:
            window: its number.

        Returns:
            int64 ``(N, 4)`` as of :meth:`squares_of`; without meaning for keys that are not valid.
        """
        squares = self.squares_of(self.tables().index[window])
        offsets = self.geometry.fine_offsets()
        corner = torch.tensor(divmod(window, self.grid[1])) * self.geometry.window_size
        squares[: len(offsets), 1:3] = corner + offsets + self.geometry.shift_size
        return squares

    def tables(self, device: torch.device | str = 'cpu') -> KeyTables:
        """The tables on ``device``, from a bounded cache.

        Under ``torch.compile`` and ``torch.export`` they are computed in the graph, so that they
        follow symbolic sizes.
        """
        if torch.compiler.is_compiling():
            return self.make_tables(device)
        tables = _cached_tables(self, str(device))
        if tables.queries.is_cuda and torch.cuda.is_current_stream_capturing():
            _captured[self, str(device)] = tables  # the graph reads them where they are
        return tables

    def make_tables(self, device: torch.device | str) -> KeyTables:
        """The tables on ``device``, computed anew."""
        geometry = self.geometry
        window, shift = geometry.window_size, geometry.shift_size
        padded_width = self.padded_size[1]
        padded = torch.tensor(self.padded_size, device=device)
        size = torch.tensor(self.map_size, device=device)
        masking = geometry.border == 'mask'

        # Positions are (row, col) on the moved grid of windows; `place` is that on the map.
        windows = grid_positions(*self.grid, device)
        position = windows[:, None] * window + geometry.fine_offsets().to(device)
        place = (position + shift) % padded
        index = [place[..., 0] * padded_width + place[..., 1]]
        queries = index[0][:, : window**2]
        valid = [torch.ones_like(index[0], dtype=torch.bool)]
        if masking:
            inside = (position >= 0) & (position < padded) & (place < size)
            valid = [inside.all(dim=-1)]

        region = None
        if shift > 0:
            # Rows (columns) after the seam came round from the other side of the map.
            after = (position % padded >= padded - shift).long()
            region = 1 + 2 * after[..., 0] + after[..., 1]
            if not masking:
                region[:, window**2 :] = 0

        start = self.num_map_tokens
        for level, (height, width) in enumerate(self.pooled_sizes, start=1):
            position, inside = self._pooled_region(level, windows)
            index.append(start + position[..., 0] * width + position[..., 1])
            valid.append(inside.all(dim=-1))
            start = start + height * width

        valid = torch.cat(valid, dim=1)
        index = torch.cat(index, dim=1).masked_fill(~valid, 0)
        if region is not None:
            region = torch.nn.functional.pad(region, (0, index.shape[1] - region.shape[1]))

        return KeyTables(queries, index, valid, region, inverse_order(queries), self.num_tokens)

    def _pooled_region(self, level: int, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Cells ``(nW, n, 2)`` that windows see at a level, and which rows and columns count."""
        geometry, device = self.geometry, windows.device
        pooled = torch.tensor(self.pooled_sizes[level - 1], device=device)
        cells = grid_positions(geometry.region_size(level), device=device)
        position = windows[:, None] * geometry.cells_per_window(level) + cells
        position = position - geometry.focal_window // 2
        inside = (position >= 0) & (position < pooled)
        position = position.clamp(min=torch.zeros_like(pooled), max=pooled - 1)
        if geometry.border == 'mask':
            rows, cols = (_holds_token(geometry, level, side, device) for side in self.map_size)
            inside = inside & torch.stack([rows[position[..., 0]], cols[position[..., 1]]], dim=-1)
        return position, inside


class WindowGeometry:
    """What every choice of keys shares: windows of queries, and pooled maps that they make.

    Attributes:
        window_size: side of a window in tokens.
        shift_size: tokens by which the grid of windows is moved down and right over the map.
        focal_level: levels of granularity with the fine one.
    """

    KEYS: ClassVar[type[FocalKeys]] = FocalKeys

    window_size: int
    shift_size: int
    focal_level: int

    def values(self) -> tuple[int | str, ...]:
        """All settings in their order, from which the class makes the same again.

        As :func:`dataclasses.astuple`, whose copies torch.compile cannot make of symbols.
        """
        return tuple(getattr(self, name) for name in self.__match_args__)

    def check_windows(self, *integers: str) -> None:
        """Raises for values that no window can have.

        Args:
            integers: names of settings that are integers.

        Raises:
            TypeError: one of ``integers`` is not.
            ValueError: a shared setting is out of range.
        """
        for name in integers:
            require(is_int(getattr(self, name)), name, 'an int', getattr(self, name), TypeError)
        window, levels = self.window_size, self.focal_level
        require(window >= 1, 'window_size', 'at least 1 token', window)
        expected = f'at least 0 and less than window_size = {window} tokens'
        require(0 <= self.shift_size < window, 'shift_size', expected, self.shift_size)
        require(levels >= 1, 'focal_level', 'at least 1 (only the fine level)', levels)
        most = window.bit_length() + 1  # so that sub-windows have at least one token
        expected = f'less: window_size = {window} allows at most {most} levels'
        require(levels <= most, 'focal_level', expected, levels)

    def cells_per_window(self, level: int) -> int:
        """Pooled cells along a side of a window at pooled level ``level`` (1, 2, ...)."""
        return 2 ** (level - 1)

    def sub_window_size(self, level: int) -> int:
        """Side in tokens of the sub-window that one cell of ``level`` pools."""
        return self.window_size // self.cells_per_window(level)

    def num_windows(self, side: int) -> int:
        """Windows along a side of a map of ``side`` tokens, with the last one filled up."""
        # Rounded up without negative numbers, which torch.compile does not divide as symbols.
        return (side + self.window_size - 1) // self.window_size

    def trim(self, level: int, num_windows: int) -> int:
        """Tokens cut off the start of a side of ``num_windows`` before pooling at ``level``.

        Sub-windows of a window that ``2 ** (level - 1)`` does not divide leave tokens over; the
        authors' code pools the centre of the map.
        """
        left_over = self.window_size - self.cells_per_window(level) * self.sub_window_size(level)
        return num_windows * left_over // 2

    def keys(self, height: int, width: int) -> FocalKeys:
        """Keys of every window of a map of ``height x width`` tokens.

        Raises:
            ValueError: the map has no token.
        """
        if height < 1 or width < 1:
            raise ValueError(f'a map needs at least 1x1 tokens, got {height}x{width}')
        return self.KEYS(self, (height, width))


@dataclass(frozen=True)
class FocalGeometry(WindowGeometry):
    """Settings that decide which keys a window attends to.

    The defaults are those of the authors' code (microsoft/Focal-Transformer at 57bb303,
    ``classification/focal_transformer.py``), whose fine ring has three peculiarities that trained
    weights depend on, and that are therefore kept with ``border='wrap'``:

    * It is made of four copies of the window, moved by ``expand_size`` tokens along the four
      diagonals, without the tokens of the window itself. Where two copies overlap, positions are
      listed twice: 12 of the 120 positions for a window of 7 and a ring of 3. Two keys that are
      the same token weigh like one whose bias is the log-sum-exp of theirs, so that a position is
      one key here, and :meth:`ring_listings` says where the authors list it.
    * It wraps round the border of the padded map to the opposite side.
    * Tokens that pad the map to whole windows are keys like any other.

    Args:
        window_size: side of a window in tokens.
        expand_size: width of the ring in tokens, 0 for none, ``window_size`` at most.
        shift_size: tokens by which the grid of windows is moved down and right over the map, which
            wraps round; as in Swin Transformer, tokens that met only by wrapping do not see each
            other inside a window.
        focal_level: levels of granularity with the fine one: 1 has no pooled keys.
        focal_window: side of the pooled region in cells at level 1, odd; level ``k`` sees
            ``focal_window // 2`` cells around the ``2 ** (k - 1)`` cells a side of the window.
        border: ``'wrap'`` as above, or ``'mask'``: only real tokens are keys, so that ring
            positions outside the map, padding, and pooled cells of nothing but padding are not
            seen, and the ring, like the window, does not look across the seam of a shifted map.
            Weights fit both.

    Raises:
        ValueError: a setting out of range; the message names it.
    """

    window_size: int = 7
    expand_size: int = 3
    shift_size: int = 0
    focal_level: int = 2
    focal_window: int = 7
    border: str = 'wrap'

    def __post_init__(self) -> None:
        self.check_windows(
            'window_size', 'expand_size', 'shift_size', 'focal_level', 'focal_window'
        )
        window, ring, focal = self.window_size, self.expand_size, self.focal_window
        expected = f'between 0 and window_size = {window} tokens'
        require(0 <= ring <= window, 'expand_size', expected, ring)
        require(focal >= 1 and focal % 2, 'focal_window', 'an odd number of cells', focal)
        require(self.border in BORDERS, 'border', f'one of {BORDERS}', self.border)

    def region_size(self, level: int) -> int:
        """Side in cells of the pooled region that a window sees at ``level``."""
        return self.focal_window - 1 + self.cells_per_window(level)

    def ring_offsets(self) -> Tensor:
        """Positions of the ring's tokens relative to the window's first token.

        Returns:
            int64 ``(R, 2)``: rows and columns, from ``-expand_size`` to
            ``window_size + expand_size - 1``. First those that the authors list once, then those
            that they list twice.
        """
        return torch.tensor([*self._ring], dtype=torch.int64).view(-1, 2)

    def fine_offsets(self) -> Tensor:
        """Positions of all fine keys relative to the window's first token, in their order.

        Returns:
            int64 ``(Wh * Ww + R, 2)``: the window's own tokens, then :meth:`ring_offsets`.
        """
        return torch.cat([grid_positions(self.window_size), self.ring_offsets()])

    def ring_listings(self) -> tuple[list[int], list[int], list[int]]:
        """Where the authors' position bias of the ring has the positions of :meth:`ring_offsets`.

        Returns:
            Columns of the positions that are listed once, then the first and the second columns of
            those that are listed twice.
        """
        twice = [columns for columns in self._ring.values() if len(columns) == 2]
        once = [columns[0] for columns in self._ring.values() if len(columns) == 1]
        return once, [first for first, _ in twice], [second for _, second in twice]

    @cached_property
    def authors_ring(self) -> tuple[tuple[int, tuple[int, int]], ...]:
        """The ring in the authors' order, with the positions that they list twice.

        Returns:
            For each column of their position bias: which of the four moved copies of the window
            it is from, and the position's row and column relative to the window's first token.
        """
        inside = range(self.window_size)
        # Moved towards bottom right, bottom left, top right, top left.
        sides = (self.expand_size, -self.expand_size)
        return tuple(
            (copy, (row + down, col + right))
            for copy, (down, right) in enumerate(product(sides, sides))
            for row, col in product(inside, inside)
            if row + down not in inside or col + right not in inside
        )

    @cached_property
    def _ring(self) -> dict[tuple[int, int], list[int]]:
        """One or two columns in the authors' order for each position, those with one first."""
        columns: dict[tuple[int, int], list[int]] = {}
        for column, (_, position) in enumerate(self.authors_ring):
            columns.setdefault(position, []).append(column)
        return dict(sorted(columns.items(), key=lambda item: len(item[1])))

    @property
    def num_keys(self) -> int:
        """Keys per window."""
        return max(source.stop for source in self.sources().values())

    def sources(self) -> dict[str, slice]:
        """Slice of the key axis for each source of keys, in order."""
        counts = {'window': self.window_size**2}
        if self.expand_size > 0:
            counts['ring'] = len(self._ring)
        for level in range(1, self.focal_level):
            counts[f'level{level}'] = self.region_size(level) ** 2
        slices, start = {}, 0
        for name, count in counts.items():
            slices[name] = slice(start, start + count)
            start += count
        return slices


def fit_to_map(window_size: int, map_size: Sequence[int]) -> tuple[int, bool]:
    """How the authors' classifiers fit a window to a map of known size.

    After the constructor of ``FocalTransformerBlock`` (their
    ``classification/focal_transformer.py``): where a map is no larger than a window along its
    shorter side, it has windows as large as that side, and neither shift nor ring.

    Args:
        window_size: side of a window in tokens.
        map_size: height and width of the map in tokens.

    Returns:
        The side of a window in tokens, and whether windows may have a shift and a ring.
    """
    shorter = min(map_size)
    return min(window_size, shorter), shorter > window_size


def grid_positions(
    height: int, width: int | None = None, device: torch.device | str = 'cpu'
) -> Tensor:
    """Rows and columns of a grid in row-major order, int64 ``(height * width, 2)``."""
    rows = torch.arange(height, device=device)
    cols = torch.arange(height if width is None else width, device=device)
    return torch.cartesian_prod(rows, cols)


_captured: dict[tuple[FocalKeys, str], KeyTables] = {}


@lru_cache(maxsize=MAX_CACHED_TABLES)
def _cached_tables(keys: FocalKeys, device: str) -> KeyTables:
    # A table made under inference_mode could never be saved for a later backward pass.
    with torch.inference_mode(False), torch.no_grad():
        return keys.make_tables(device)


def inverse_order(queries: Tensor) -> Tensor:
    """Where each token stands among the flattened ``queries``."""
    order = queries.flatten()
    return torch.empty_like(order).scatter_(
        0, order, torch.arange(order.shape[0], device=order.device)
    )


def _holds_token(
    geometry: FocalGeometry, level: int, side: int, device: torch.device | str
) -> Tensor:
    """Whether each row (or column) of cells at ``level`` pools any token that is no padding.

    Returns:
        bool, one entry per row of cells along a side of ``side`` tokens.
    """
    num_windows = geometry.num_windows(side)
    cells, sub_window = geometry.cells_per_window(level), geometry.sub_window_size(level)
    tokens = torch.arange(num_windows * cells * sub_window, device=device)
    place = tokens + geometry.trim(level, num_windows) + geometry.shift_size
    # A tensor: exporters to ONNX know no symbol as a divisor.
    padded = torch.tensor(num_windows * geometry.window_size, device=device)
    real = place % padded < side
    return real.view(-1, sub_window).any(dim=1)
