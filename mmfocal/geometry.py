"""Which keys each window of queries attends to, as plain integer data.

A map of tokens is padded at its bottom and right to whole windows and cut into windows of
``window_size x window_size`` tokens. The queries of one window share one list of keys
(paper section 3.2, Figure 3):

* ``window``: the tokens of the window itself,
* ``ring``: fine tokens up to ``expand_size`` tokens around the window,
* ``level1``, ``level2``, ...: cells of maps that pool one window into ``1, 4, 16, ...`` cells.

:class:`FocalGeometry` holds the settings, :class:`FocalKeys` the tables that they give for one map
size. Nothing here has parameters or knows about channels, heads or attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

BORDERS = ('wrap', 'mask')

# Tables kept at once, over all settings, map sizes and devices. The four stages of one image of
# 800x1344 pixels take 8 MB, so this bounds the cache at about 130 MB in multi-scale training.
MAX_CACHED_TABLES = 64


@dataclass(frozen=True)
class FocalKeys:
    """Keys of every window of one map size.

    The token axis that ``index`` points into is the padded map in row-major order, followed by
    the pooled maps of level 1, 2, ... in row-major order.

    Attributes:
        map_size: height and width of the map in tokens, without padding.
        padded_size: height and width of the padded map in tokens.
        pooled_sizes: height and width of each pooled map in cells, one pair per pooled level.
        queries: int64 ``(nW, Wh * Ww)``, position of each query on the token axis. Every token of
            the padded map is a query of exactly one window.
        index: int64 ``(nW, N)``, position of each key on the token axis; 0 where not valid. The
            first ``Wh * Ww`` keys of a window are its own tokens.
        valid: bool ``(nW, N)``, False for a key that no query of the window may see.
        region: int64 ``(nW, N)`` or None. A key of region 0 is seen by all queries of its
            window; a key of another region only by queries of the same region (the queries'
            regions are those of the first ``Wh * Ww`` keys). None where all keys are of region 0.
        inverse: int64 ``(nW * Wh * Ww,)``, where each token of the padded map stands among the
            flattened ``queries``: ``queries.flatten()[inverse]`` counts up from 0.
        sources: slice of the key axis that each source takes, in the order of the keys:
            ``window``, ``ring`` if there is one, ``level1``, ``level2``, ...
    """

    map_size: tuple[int, int]
    padded_size: tuple[int, int]
    pooled_sizes: tuple[tuple[int, int], ...]
    queries: Tensor
    index: Tensor
    valid: Tensor
    region: Tensor | None
    inverse: Tensor
    sources: dict[str, slice]

    @property
    def num_windows(self) -> int:
        return self.index.shape[0]

    @property
    def num_keys(self) -> int:
        return self.index.shape[1]

    @property
    def num_queries(self) -> int:
        """Queries per window."""
        return self.queries.shape[1]

    @property
    def num_tokens(self) -> int:
        """Length of the token axis: padded map and pooled maps together."""
        sizes = (self.padded_size, *self.pooled_sizes)
        return sum(height * width for height, width in sizes)

    def allowed(self, windows: Tensor | slice = slice(None)) -> Tensor:
        """Which query may see which key, in all windows or those at ``windows``.

        Returns:
            bool ``(nW, Wh * Ww, N)``, or ``(nW, 1, N)`` where all queries of a window see the
            same keys.
        """
        allowed = self.valid[windows, None, :]
        if self.region is None:
            return allowed
        region = self.region[windows]
        key_region, query_region = region[:, None, :], region[:, : self.num_queries, None]
        return allowed & ((key_region == 0) | (key_region == query_region))


@dataclass(frozen=True)
class FocalGeometry:
    """Settings that decide which keys a window attends to.

    The defaults are those of the authors' code (microsoft/Focal-Transformer at 57bb303,
    ``classification/focal_transformer.py``), whose fine ring has three peculiarities that trained
    weights depend on, and that are therefore kept with ``border='wrap'``:

    * It is made of four copies of the window, moved by ``expand_size`` tokens along the four
      diagonals, without the tokens of the window itself. Where two copies overlap, positions are
      listed twice: 12 of the 120 positions for a window of 7 and a ring of 3, hence 132 ring keys.
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
            Positions stay listed twice, so weights fit both.

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
        for name in ('window_size', 'expand_size', 'shift_size', 'focal_level', 'focal_window'):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(
                    f'{name} must be an int, got {value!r} of type {type(value).__name__}'
                )
        window = self.window_size
        if window < 1:
            raise ValueError(f'window_size must be at least 1 token, got {window}')
        if not 0 <= self.expand_size <= window:
            raise ValueError(
                f'expand_size must be between 0 and window_size = {window} tokens, '
                f'got {self.expand_size}'
            )
        if not 0 <= self.shift_size < window:
            raise ValueError(
                f'shift_size must be at least 0 and less than window_size = {window} tokens, '
                f'got {self.shift_size}'
            )
        if self.focal_level < 1:
            raise ValueError(
                f'focal_level must be at least 1 (the fine level alone), got {self.focal_level}'
            )
        if window // 2 ** max(self.focal_level - 2, 0) < 1:
            raise ValueError(
                'focal_level must leave sub-windows of at least one token: '
                f'window_size = {window} allows at most {window.bit_length() + 1} levels, '
                f'got {self.focal_level}'
            )
        if self.focal_window < 1 or self.focal_window % 2 == 0:
            raise ValueError(
                f'focal_window must be an odd number of cells, got {self.focal_window}'
            )
        if self.border not in BORDERS:
            raise ValueError(f'border must be one of {BORDERS}, got {self.border!r}')

    @property
    def num_pooled_levels(self) -> int:
        return self.focal_level - 1

    def cells_per_window(self, level: int) -> int:
        """Pooled cells along a side of a window at pooled level ``level`` (1, 2, ...)."""
        return 2 ** (level - 1)

    def sub_window_size(self, level: int) -> int:
        """Side in tokens of the sub-window that one cell of ``level`` pools."""
        return self.window_size // self.cells_per_window(level)

    def region_size(self, level: int) -> int:
        """Side in cells of the pooled region that a window sees at ``level``."""
        return self.focal_window - 1 + self.cells_per_window(level)

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Size in tokens of a ``height x width`` map padded to whole windows."""
        window = self.window_size
        return -(-height // window) * window, -(-width // window) * window

    def pooled_size(self, level: int, height: int, width: int) -> tuple[int, int]:
        """Size in cells of the map pooled at ``level`` from a ``height x width`` map."""
        cells, (height, width) = self.cells_per_window(level), self.padded_size(height, width)
        return height // self.window_size * cells, width // self.window_size * cells

    def trim(self, level: int, padded_side: int) -> int:
        """Tokens cut off the start of a padded side before pooling at ``level``.

        Sub-windows of a window that ``2 ** (level - 1)`` does not divide leave tokens over; the
        authors' code pools the centre of the map.
        """
        pooled = padded_side // self.window_size * self.cells_per_window(level)
        return (padded_side - pooled * self.sub_window_size(level)) // 2

    def ring_offsets(self) -> Tensor:
        """Positions of the ring's tokens relative to the window's first token.

        Returns:
            int64 ``(R, 2)``: rows and columns, from ``-expand_size`` to
            ``window_size + expand_size - 1``, copy by copy in the order of the authors' position
            bias: moved towards bottom right, bottom left, top right, top left.
        """
        copies = [torch.empty(0, 2, dtype=torch.int64)]
        if self.expand_size > 0:
            window = _grid(self.window_size)
            for row in (self.expand_size, -self.expand_size):
                for col in (self.expand_size, -self.expand_size):
                    moved = window + torch.tensor([row, col])
                    inside = ((moved >= 0) & (moved < self.window_size)).all(dim=1)
                    copies.append(moved[~inside])
        return torch.cat(copies)

    def sources(self) -> dict[str, slice]:
        """Slice of the key axis for each source of keys, in order."""
        ring = self.ring_offsets().shape[0]
        counts = {'window': self.window_size**2}
        if ring:
            counts['ring'] = ring
        for level in range(1, self.focal_level):
            counts[f'level{level}'] = self.region_size(level) ** 2
        slices, start = {}, 0
        for name, count in counts.items():
            slices[name] = slice(start, start + count)
            start += count
        return slices

    def keys(self, height: int, width: int, device: torch.device | str = 'cpu') -> FocalKeys:
        """Tables for a map of ``height x width`` tokens on ``device``, from a bounded cache.

        Under ``torch.compile`` and ``torch.export`` the tables are computed in the graph, so that
        they follow symbolic sizes.

        Raises:
            ValueError: the map has no token.
        """
        if torch.compiler.is_compiling():
            return _make_keys(self, height, width, device)
        if height < 1 or width < 1:
            raise ValueError(f'a map needs at least 1x1 tokens, got {height}x{width}')
        return _cached_keys(self, height, width, str(device))


def _grid(height: int, width: int | None = None, device: torch.device | str = 'cpu') -> Tensor:
    """Rows and columns of a grid in row-major order, int64 ``(height * width, 2)``."""
    rows = torch.arange(height, device=device)
    cols = torch.arange(height if width is None else width, device=device)
    return torch.cartesian_prod(rows, cols)


@lru_cache(maxsize=MAX_CACHED_TABLES)
def _cached_keys(geometry: FocalGeometry, height: int, width: int, device: str) -> FocalKeys:
    # A table made under inference_mode could never be saved for a later backward pass.
    with torch.inference_mode(False), torch.no_grad():
        return _make_keys(geometry, height, width, device)


def _make_keys(
    geometry: FocalGeometry, height: int, width: int, device: torch.device | str
) -> FocalKeys:
    window, shift = geometry.window_size, geometry.shift_size
    padded_height, padded_width = geometry.padded_size(height, width)
    padded = torch.tensor([padded_height, padded_width], device=device)
    size = torch.tensor([height, width], device=device)
    masking = geometry.border == 'mask'

    # Positions are (row, col) on the moved grid of windows; `place` is where that is on the map.
    windows = _grid(padded_height // window, padded_width // window, device)
    own = _grid(window, device=device)
    offsets = torch.cat([own, geometry.ring_offsets().to(device)])
    position = windows[:, None] * window + offsets
    place = (position + shift) % padded
    index = [place[..., 0] * padded_width + place[..., 1]]
    queries = index[0][:, : window**2]
    valid = [torch.ones_like(index[0], dtype=torch.bool)]
    if masking:
        inside = (position >= 0) & (position < padded) & (place < size)
        valid = [inside.all(dim=-1)]

    region = None
    if shift > 0:
        # Rows (columns) behind the seam came round from the other side of the map.
        behind = (position % padded >= padded - shift).long()
        region = 1 + 2 * behind[..., 0] + behind[..., 1]
        if not masking:
            region[:, window**2 :] = 0

    pooled_sizes = []
    start = padded_height * padded_width
    for level in range(1, geometry.focal_level):
        pooled_height, pooled_width = geometry.pooled_size(level, height, width)
        pooled = torch.tensor([pooled_height, pooled_width], device=device)
        reach = geometry.focal_window // 2
        cells = _grid(geometry.region_size(level), device=device) - reach
        position = windows[:, None] * geometry.cells_per_window(level) + cells
        inside = (position >= 0) & (position < pooled)
        position = position.clamp(min=torch.zeros_like(pooled), max=pooled - 1)
        index.append(start + position[..., 0] * pooled_width + position[..., 1])
        if masking:
            rows = _holds_token(geometry, level, height, padded_height, device)
            cols = _holds_token(geometry, level, width, padded_width, device)
            inside = torch.stack(
                [inside[..., 0] & rows[position[..., 0]], inside[..., 1] & cols[position[..., 1]]],
                dim=-1,
            )
        valid.append(inside.all(dim=-1))
        pooled_sizes.append((pooled_height, pooled_width))
        start = start + pooled_height * pooled_width

    valid = torch.cat(valid, dim=1)
    index = torch.cat(index, dim=1).masked_fill(~valid, 0)
    if region is not None:
        region = torch.nn.functional.pad(region, (0, index.shape[1] - region.shape[1]))

    order = queries.flatten()
    inverse = torch.empty_like(order).scatter_(
        0, order, torch.arange(order.shape[0], device=device)
    )
    return FocalKeys(
        map_size=(height, width),
        padded_size=(padded_height, padded_width),
        pooled_sizes=tuple(pooled_sizes),
        queries=queries,
        index=index,
        valid=valid,
        region=region,
        inverse=inverse,
        sources=geometry.sources(),
    )


def _holds_token(
    geometry: FocalGeometry, level: int, side: int, padded_side: int, device: torch.device | str
) -> Tensor:
    """Whether each row (or column) of cells at ``level`` pools any token that is no padding.

    Returns:
        bool, one entry per row of cells along a side of ``side`` tokens, ``padded_side`` padded.
    """
    sub_window, trim = geometry.sub_window_size(level), geometry.trim(level, padded_side)
    cells = padded_side // geometry.window_size * geometry.cells_per_window(level)
    tokens = torch.arange(cells * sub_window, device=device) + trim
    real = (tokens + geometry.shift_size) % padded_side < side
    return real.view(cells, sub_window).any(dim=1)
