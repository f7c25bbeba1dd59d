"""Figures of one window of queries and the keys that it attends to."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.patches import Patch, Rectangle

from mmfocal.geometry import FocalGeometry, FocalKeys
from mmfocal.utils.colours import BLUE, GREEN, ORANGE, PURPLE, VERMILION, YELLOW

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WINDOW_COLOUR, RING_COLOUR = BLUE, ORANGE
LEVEL_COLOURS = (GREEN, PURPLE, YELLOW)
QUERY_COLOUR = VERMILION
FADED = 0.3  # of an image, where there is no key


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
        _squares(axes, corners, side, 'white', filled=True)  # else the cells below shine through
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


# --- Over an image ------------------------------------------------------------------------------


def draw_keys_on_image(
    geometry: FocalGeometry, image: np.ndarray, point: tuple[float, float], stride: int
) -> Figure:
    """Draws what a query sees of an image: its window, then the ring too, then pooled cells too.

    Tokens show the pixels that they stand for, a pooled cell shows the mean of its pixels, and the
    rest of the image is faded. A learned model keeps a vector for each of them instead.

    Args:
        geometry: settings of the attention.
        image: uint8 ``(H, W, 3)``, RGB.
        point: x and y of the query, in pixels from the upper left corner.
        stride: pixels of the image along the side of a token.

    Returns:
        The figure; the caller saves and closes it.

    Raises:
        ValueError: the point lies outside the image.
    """
    height, width = image.shape[:2]
    if not (0 <= point[0] < width and 0 <= point[1] < height):
        raise ValueError(f'the image has {width}x{height} pixels, the point {point} lies outside')
    keys = geometry.keys(-(-height // stride), -(-width // stride))
    col, row = (int(place // stride) for place in point)
    own = keys.tables().index[:, geometry.sources()['window']]
    window = int((own == row * keys.padded_size[1] + col).any(1).nonzero()[0, 0])
    sources = list(geometry.sources())
    panels = [['window'], *(sources[:number] for number in range(2, len(sources) + 1))]
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(3.55 * len(panels), 3.55 * height / width + 0.95),
        squeeze=False,
        layout='constrained',
    )
    for panel, shown in zip(axes[0], panels, strict=True):
        _draw_seen(panel, keys, window, shown, image, stride)
        place = col * stride, row * stride
        panel.add_patch(
            Rectangle(place, stride, stride, fill=False, edgecolor=QUERY_COLOUR, lw=2, zorder=4)
        )
    entries = [Patch(facecolor='none', edgecolor=QUERY_COLOUR, lw=2, label='query')]
    entries.append(Patch(facecolor='none', edgecolor=WINDOW_COLOUR, lw=2, label='its window'))
    if 'ring' in sources:
        entries.append(Patch(facecolor='none', edgecolor=RING_COLOUR, lw=2, label='ring'))
    entries += [
        Patch(facecolor='none', edgecolor=_level_colour(level), lw=2, label=_cells(level, keys))
        for level in range(1, geometry.focal_level)
    ]
    figure.legend(
        handles=entries,
        loc='outside lower center',
        ncols=len(entries),
        fontsize=10,
        frameon=False,
    )
    return figure


def _draw_seen(
    axes: Axes,
    keys: FocalKeys,
    window: int,
    sources: list[str],
    image: np.ndarray,
    stride: int,
) -> None:
    """One panel: what of the image the keys of some sources hold, and where these keys are."""
    height, width = image.shape[:2]
    seen = np.rint(255 - FADED * (255.0 - image)).astype(np.uint8)
    outlines, total = [], 0
    # Each lies above coarser ones: level 2 above level 1, tokens above cells.
    levels = [source for source in sources if source.startswith('level')]
    tokens = [source for source in sources if source not in levels]
    for source in [*levels, *reversed(tokens)]:
        corners = _corners(keys, window, source)
        level = levels.index(source) + 1 if source in levels else 0
        side = stride * (keys.geometry.sub_window_size(level) if level else 1)
        for top, left in corners:
            place = np.s_[
                max(top * stride, 0) : top * stride + side,
                max(left * stride, 0) : left * stride + side,
            ]
            part = image[place]
            seen[place] = part.reshape(-1, 3).mean(0) if level and part.size else part
        colour = {'window': WINDOW_COLOUR, 'ring': RING_COLOUR}.get(source) or _level_colour(level)
        squares = [Rectangle((left * stride, top * stride), side, side) for top, left in corners]
        outlines.append((squares, colour, 1.0 if level else 0.5))
        valid = keys.tables().valid[window, keys.geometry.sources()[source]]
        total += int(valid.sum())
    axes.imshow(seen, interpolation='none', extent=(0, width, height, 0))
    for squares, colour, linewidth in outlines:
        collection = PatchCollection(
            squares, facecolor='none', edgecolor=colour, linewidth=linewidth
        )
        axes.add_collection(collection)
        collection.set_clip_path(Rectangle((0, 0), width, height, transform=axes.transData))
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    names = ['window', *('ring' if each == 'ring' else 'pooled cells' for each in sources[1:])]
    title = ' + '.join(dict.fromkeys(names))
    axes.set_title(f'{title}\n{total} keys', fontsize=10)


def _level_colour(level: int) -> str:
    return LEVEL_COLOURS[(level - 1) % len(LEVEL_COLOURS)]


def _cells(level: int, keys: FocalKeys) -> str:
    side = keys.geometry.sub_window_size(level)
    return f'cells, each {side}x{side} tokens pooled'
