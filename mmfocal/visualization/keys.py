"""Figure of one window of queries and the keys that it attends to."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.collections import PatchCollection
from matplotlib.patches import Patch, Rectangle

from mmfocal.geometry import FocalGeometry, FocalKeys
from mmfocal.utils.colours import BLUE, GREEN, ORANGE, PURPLE, YELLOW

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WINDOW_COLOUR, RING_COLOUR = BLUE, ORANGE
LEVEL_COLOURS = (GREEN, PURPLE, YELLOW)


def draw_keys(
    geometry: FocalGeometry, map_size: tuple[int, int], windows: list[tuple[int, int]]
) -> Figure:
    """Draws the keys of some windows, one panel each.

    Args:
        geometry: settings of the attention.
        map_size: height and width of the map in tokens.
        windows: row and column of each window to draw, counted in windows.

    Returns:
        The figure; the caller saves and closes it.

    Raises:
        ValueError: a window that the map does not have.
    """
    keys = geometry.keys(*map_size)
    rows, cols = keys.grid
    for row, col in windows:
        if not (0 <= row < rows and 0 <= col < cols):
            raise ValueError(
                f'a map of {map_size[0]}x{map_size[1]} tokens has {rows}x{cols} windows, counted '
                f'from 0; there is no window {row} {col}'
            )
    entries = _legend(keys)
    lines = -(-len(entries) // len(windows))
    aspect = keys.padded_size[0] / keys.padded_size[1]
    figure, panels = plt.subplots(
        1,
        len(windows),
        figsize=(4.6 * len(windows), 4.6 * aspect + 0.5 + 0.2 * lines),
        squeeze=False,
        layout='constrained',
    )
    for axes, (row, col) in zip(panels[0], windows, strict=True):
        _draw_window(axes, geometry, keys, row * cols + col)
        axes.set_title(f'window {row}, {col} of {rows}x{cols}', fontsize=10)
    figure.legend(
        handles=entries,
        loc='outside lower center',
        ncols=len(windows),
        fontsize=9,
        frameon=False,
    )
    return figure


def _draw_window(axes: Axes, geometry: FocalGeometry, keys: FocalKeys, window: int) -> None:
    height, width = keys.padded_size
    axes.set(xlim=(-0.5, width + 0.5), ylim=(height + 0.5, -0.5), aspect='equal')
    axes.axis('off')
    padded = Rectangle((0, 0), width, height, facecolor='#F4F4F4', edgecolor='none')
    axes.add_patch(padded)
    _squares(axes, [(row, col) for row in range(height) for col in range(width)], 1, '#E2E2E2')

    # Coarse cells lie below fine tokens, which they contain.
    for level in range(1, geometry.focal_level):
        colour = LEVEL_COLOURS[(level - 1) % len(LEVEL_COLOURS)]
        corners = _corners(keys, window, f'level{level}')
        side = geometry.sub_window_size(level)
        _squares(axes, corners, side, colour, filled=True, alpha=0.45, linewidth=1.2)
    if 'ring' in geometry.sources():
        _squares(axes, _corners(keys, window, 'ring'), 1, RING_COLOUR, filled=True)
    _squares(axes, _corners(keys, window, 'window'), 1, WINDOW_COLOUR, filled=True)
    for collection in axes.collections:
        collection.set_clip_path(padded)
    axes.add_patch(
        Rectangle(
            (0, 0), keys.map_size[1], keys.map_size[0], fill=False, edgecolor='black', lw=1.2
        )
    )


def _corners(keys: FocalKeys, window: int, source: str) -> list[tuple[int, int]]:
    """Rows and columns of squares; of one that goes over the border, also on the other side."""
    tables, part = keys.tables(), keys.geometry.sources()[source]
    squares = keys.squares_of(tables.index[window, part][tables.valid[window, part]])
    height, width = keys.padded_size
    return [
        (row - down, col - right)
        for _, row, col, side in squares.tolist()
        for down, right in product((0, height), (0, width))
        if -side < row - down < height and -side < col - right < width
    ]


def _squares(
    axes: Axes,
    corners: list[tuple[int, int]],
    side: int,
    colour: str,
    filled: bool = False,
    alpha: float = 1.0,
    linewidth: float = 0.4,
) -> None:
    axes.add_collection(
        PatchCollection(
            [Rectangle((col, row), side, side) for row, col in corners],
            facecolor=colour if filled else 'none',
            edgecolor='white' if filled else colour,
            alpha=alpha,
            linewidth=linewidth,
        )
    )


def _legend(keys: FocalKeys) -> list[Patch]:
    entries = [Patch(color=WINDOW_COLOUR, label='queries and keys: the window')]
    if 'ring' in keys.geometry.sources():
        entries.append(Patch(color=RING_COLOUR, label='keys: ring'))
    for level in range(1, len(keys.pooled_sizes) + 1):
        colour = LEVEL_COLOURS[(level - 1) % len(LEVEL_COLOURS)]
        entries.append(Patch(color=colour, alpha=0.45, label=f'keys: pooled cells, level {level}'))
    return entries
