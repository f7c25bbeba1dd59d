"""Times of backbones as multiples of another's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt

from mmfocal.utils.colours import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from tools.dev.timing.measure import ratios

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY)


def draw_ratios(results: list[dict[str, Any]], yardstick: str) -> Figure:
    """Draws the time of each model over the yardstick's, one panel for each mode.

    Bars are medians of the ratios of runs that followed each other, lines their spread.

    Args:
        results: with ``mode``, ``size`` (height and width in pixels), ``model`` and ``seconds``
            of all runs, as ``tools/dev/benchmark.py --json`` writes them under ``models``.
        yardstick: name of the model that others are compared with.

    Returns:
        The figure; the caller saves and closes it.
    """
    modes = list(dict.fromkeys(result['mode'] for result in results))
    models = list(dict.fromkeys(r['model'] for r in results if r['model'] != yardstick))
    sizes = list(dict.fromkeys(tuple(result['size']) for result in results))
    figure, panels = plt.subplots(
        1, len(modes), figsize=(4.8 * len(modes), 3.6), squeeze=False, layout='constrained'
    )
    width = 0.8 / max(1, len(models))
    for axes, mode in zip(panels[0], modes, strict=True):
        for place, size in enumerate(sizes):
            seconds = {
                r['model']: r['seconds']
                for r in results
                if r['mode'] == mode and tuple(r['size']) == size
            }
            # What was interrupted may lack runs, of which the yardstick's came first.
            against = ratios(seconds, yardstick) if seconds else {}
            for i, model in enumerate(models):
                if model not in against:
                    continue
                spread = against[model]
                axes.bar(
                    place + (i - (len(models) - 1) / 2) * width,
                    spread.median,
                    0.9 * width,
                    yerr=[[spread.median - spread.least], [spread.most - spread.median]],
                    color=COLOURS[i % len(COLOURS)],
                    label=model if place == 0 else None,
                    error_kw=dict(lw=0.8, capsize=2),
                )
        axes.axhline(1, color='black', lw=0.8)
        axes.set_xticks(range(len(sizes)), ['x'.join(map(str, size)) for size in sizes])
        axes.set(xlabel='image in pixels', ylabel=f'time over {yardstick}')
        axes.set_title(mode, fontsize=10)
        axes.spines[['top', 'right']].set_visible(False)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=3, fontsize=9, frameon=False)
    return figure
