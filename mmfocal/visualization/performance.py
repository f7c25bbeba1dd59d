"""Times of backbones against the size of the image."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt

from .colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (BLACK, BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY)


def draw_times(results: list[dict[str, Any]]) -> Figure:
    """Draws the median time of each model against pixels, one panel for each mode.

    Args:
        results: with ``mode``, ``size`` (height and width in pixels), ``model`` and ``seconds``
            of all runs, as ``tools/benchmark.py --json`` writes them under ``models``.

    Returns:
        The figure; the caller saves and closes it.
    """
    modes = list(dict.fromkeys(result['mode'] for result in results))
    models = list(dict.fromkeys(result['model'] for result in results))
    sizes = sorted({tuple(r['size']) for r in results}, key=lambda size: size[0] * size[1])
    figure, panels = plt.subplots(
        1, len(modes), figsize=(4.8 * len(modes), 4), squeeze=False, layout='constrained'
    )
    for axes, mode in zip(panels[0], modes, strict=True):
        for i, model in enumerate(models):
            found = [r for r in results if r['mode'] == mode and r['model'] == model]
            points = sorted(
                (r['size'][0] * r['size'][1], 1e3 * median(r['seconds'])) for r in found
            )
            colour = COLOURS[i % len(COLOURS)]
            axes.plot(*zip(*points, strict=True), marker='o', label=model, color=colour, lw=1.3)
        axes.set(xscale='log', yscale='log', xlabel='image in pixels', ylabel='milliseconds')
        axes.set_title(mode, fontsize=10)
        axes.set_xticks([h * w for h, w in sizes], ['x'.join(map(str, size)) for size in sizes])
        axes.tick_params(axis='x', which='minor', bottom=False, labelbottom=False)
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
    panels[0, 0].legend(fontsize=8, frameon=False)
    return figure
