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
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mmfocal.utils.checks import is_int, require

from .caching import TableCache
from .tables import MISSING, NUMPY, Array, Arrays, KeyTables, Terms, WindowLists, joined_terms

BORDERS = ('wrap', 'mask')

# Tables kept at once, over all settings, map sizes and devices. The four stages of one image of
# 800x1344 pixels take 12 MB with the lists of readers, so that some ten sizes of multi-scale
# training are kept, and hundreds of small ones. More would gain little where these are read: on a
# CPU they are made in a hundredth of the time that a training step takes. Triton's kernels have a
# cache of their own.
TABLE_BYTES = 2**27


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
    def num_outputs(self) -> int:
        """Tokens of the map itself, each of which attention has an output for."""
        height, width = self.map_size
        return height * width

    @property
    def num_tokens(self) -> int:
        """Length of the token axis: padded map and pooled maps together."""
        cells = (
            self.geometry.cells_per_window(i) ** 2 for i in range(1, self.geometry.focal_level)
        )
        return self.num_map_tokens + self.num_windows * sum(cells)

    def with_plain_sizes(self) -> FocalKeys:
        """Itself, with integers for sizes that torch.jit.trace has made tensors."""
        if all([type(side) is int for side in self.map_size]):
            return self
        return replace(self, map_size=tuple(map(int, self.map_size)))

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
        offsets = torch.tensor([self.geometry.fine_offsets(axis) for axis in range(2)]).T
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
        return cached_tables.get(self, device)

    def make_tables(self, device: torch.device | str) -> KeyTables:
        """The tables on ``device``, computed anew."""
        terms = self._terms(device, np.int64)
        keys = terms['keys'].table()
        return KeyTables(
            queries=terms['queries'].table(),
            index=keys.clamp(min=0),
            valid=keys >= 0,
            region=terms['regions'].table() if 'regions' in terms else None,
            inverse=self._inverse(device),
            num_tokens=self.num_tokens,
        )

    def make_lists(self, device: torch.device, multiple: int) -> WindowLists:
        """The lists on ``device``, filled up to multiples of a number, computed anew."""
        terms = self._terms(device, np.int32, multiple)
        return WindowLists(
            *self._query_lists(terms),
            keys=terms['keys'].table().clamp_(min=-1),
            regions=terms['regions'].table().to(torch.int8) if 'regions' in terms else None,
        )

    def _query_lists(self, terms: dict[str, Terms]) -> tuple[Tensor, Tensor]:
        queries = outputs = terms['queries'].table().clamp_(min=-1)
        if self.padded_size != self.map_size:
            outputs = terms['outputs'].table().clamp_(min=-1)
        return queries, outputs

    def _terms(
        self, device: torch.device | str, dtype: type[np.integer], multiple: int = 1
    ) -> dict[str, Terms]:
        """Terms of all tables that have some, filled up to multiples of a number.

        They are ten thousand numbers, of which a million of the tables are sums. NumPy makes them
        in less time than it takes to launch so many operators on a GPU, and in one copy they are
        there.
        """
        if torch.compiler.is_compiling():  # into a graph, which stays on its device
            rows, cols = (self._terms_along(axis, Arrays.of_torch(device)) for axis in range(2))
            return {name: Terms(rows[name], cols[name]) for name in rows}
        along = [self._terms_along(axis, NUMPY) for axis in range(2)]
        return joined_terms(*along, dtype, multiple, device)

    def _terms_along(self, axis: int, arrays: Arrays) -> dict[str, Array]:
        """Terms of rows of windows (axis 0) or columns (axis 1), int64 ``(along the axis, n)``."""
        geometry, shift = self.geometry, self.geometry.shift_size
        own, masking = geometry.window_size**2, geometry.border == 'mask'
        padded = self.padded_size[axis]
        position, place, on_map = self._places(axis, geometry.fine_offsets(axis), arrays)
        token = place if axis else place * self.padded_size[1]
        terms = self._query_terms(axis, place[:, :own], on_map[:, :own], arrays)
        if masking:
            inside = (position >= 0) & (position < padded) & on_map
            token = arrays.where(inside, token, MISSING)
        keys, regions = [token], []
        if shift > 0:
            # Rows (columns) after the seam came round from the other side of the map.
            after = (place < shift) * 1
            region = after if axis else 1 + 2 * after
            regions = [region] if masking else [region[:, :own], 0 * region[:, own:]]

        start = 0 if axis else self.num_map_tokens
        for level, (height, width) in enumerate(self.pooled_sizes, start=1):
            cell, seen = self._pooled_places(axis, level, arrays)
            term = cell if axis else cell * width + start
            keys.append(arrays.where(seen, term, MISSING))
            start = start + (0 if axis else height * width)
            regions += [0 * cell] if regions else []
        terms['keys'] = arrays.concatenate(keys, 1)
        return terms | ({'regions': arrays.concatenate(regions, 1)} if regions else {})

    def _query_terms(
        self, axis: int, place: Array, on_map: Array, arrays: Arrays
    ) -> dict[str, Array]:
        """Terms of what the windows' own tokens are as queries, and as rows of the output."""
        if axis:
            return dict(queries=place, outputs=arrays.where(on_map, place, MISSING))
        outputs = arrays.where(on_map, place * self.map_size[1], MISSING)
        return dict(queries=place * self.padded_size[1], outputs=outputs)

    def _places(
        self, axis: int, offsets: Sequence[int], arrays: Arrays
    ) -> tuple[Array, Array, Array]:
        """Where tokens are that have ``offsets`` from each window's first one, along an axis.

        Returns:
            int64 ``(windows along the axis, n)``, positions on the moved grid of windows, and
            those on the map, to whose other side comes back what lies beyond its border; and
            whether they are on the map without its padding.
        """
        first = arrays.arange(self.grid[axis])[:, None] * self.geometry.window_size
        position = first + arrays.array(offsets)
        # An array: exporters to ONNX know no symbol as a divisor.
        place = (position + self.geometry.shift_size) % arrays.array(self.padded_size[axis])
        return position, place, place < self.map_size[axis]

    def _pooled_places(self, axis: int, level: int, arrays: Arrays) -> tuple[Array, Array]:
        """Rows or columns of the cells around each window at a level, and whether it sees them."""
        geometry, along = self.geometry, self.pooled_sizes[level - 1][axis]
        region, padded = geometry.region_size(level), self.padded_size[axis]
        cells = arrays.arange(region**2)  # in row-major order
        cells = cells % region if axis else cells // region
        first = arrays.arange(self.grid[axis])[:, None] * geometry.cells_per_window(level)
        cell = first + (cells - geometry.focal_window // 2)
        seen = (cell >= 0) & (cell < along)
        if geometry.border == 'mask':  # cells that pool any token which is no padding
            side = geometry.sub_window_size(level)
            moved = cell * side + geometry.trim(level, self.grid[axis]) + geometry.shift_size
            place = moved % arrays.array(padded)
            seen = seen & ((place < self.map_size[axis]) | (place + side > padded))
        return cell, seen

    def _inverse(self, device: torch.device | str) -> Tensor:
        """:attr:`KeyTables.inverse`."""
        window, (_, cols) = self.geometry.window_size, self.grid
        terms = []
        for axis in range(2):
            place = torch.arange(self.map_size[axis], device=device)
            # A tensor: exporters to ONNX know no symbol as a divisor.
            padded = torch.tensor(self.padded_size[axis], device=device)
            position = (place - self.geometry.shift_size) % padded
            steps = (window**2, 1) if axis else (cols * window**2, window)
            terms.append(position // window * steps[0] + position % window * steps[1])
        return (terms[0][:, None] + terms[1]).flatten()


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

    def fine_offsets(self, axis: int) -> tuple[int, ...]:
        """Rows (axis 0) or columns (axis 1) of all fine keys relative to the window's first token.

        Returns:
            ``Wh * Ww + R`` of them: the window's own tokens, then :meth:`ring_offsets`.
        """
        inside = range(self.window_size)
        own = [(row, col)[axis] for row in inside for col in inside]
        return (*own, *[place[axis] for place in self._ring])

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


def _make_tables(keys: FocalKeys, device: torch.device) -> KeyTables:
    tables = keys.make_tables(device)
    # On the stream that is waited for, and before a graph is captured.
    return tables.complete() if device.type == 'cuda' else tables


cached_tables = TableCache(_make_tables, KeyTables.bytes, TABLE_BYTES)
