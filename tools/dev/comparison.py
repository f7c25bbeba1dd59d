"""Figure of the curves of several models, with Focal and with Swin."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

from mmfocal.engine.curves import METRICS, draw_curve
from mmfocal.utils.colours import BLUE, ORANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_comparison(runs: dict[str, dict[str, list[list[dict[str, float]]]]]) -> Figure:
    """Draws the loss and the main metric of several models, each with several backbones.

    Args:
        runs: by model and backbone, ``'focal'`` or ``'swin'``, one list of rows of
            :func:`mmfocal.engine.curves.read_scalars` for each seed.

    Returns:
        The figure, with a column for each model; the caller saves and closes it.
    """
    half = -(-len(runs) // 2) if len(runs) > 4 else len(runs)
    num_bands = -(-len(runs) // half)
    figure, panels = plt.subplots(
        2 * num_bands,
        half,
        figsize=(2.7 * half, 3.6 * num_bands),
        height_ratios=[2, 3] * num_bands,
        squeeze=False,
        layout='constrained',
    )
    for axes in panels.flat:
        axes.set_visible(False)
    for number, (model, by_backbone) in enumerate(runs.items()):
        band, column = divmod(number, half)
        loss, metric = panels[2 * band, column], panels[2 * band + 1, column]
        loss.sharex(metric)
        every = [row for seeds in by_backbone.values() for rows in seeds for row in rows]
        name = main_metric({name for row in every for name in row})
        for backbone, colour in (('focal', BLUE), ('swin', ORANGE)):
            for seed, rows in enumerate(by_backbone.get(backbone, [])):
                label = backbone.title() if seed == 0 else '_'  # once in the legend
                draw_curve(loss, rows, 'loss', label, colour)
                draw_curve(metric, rows, name, label, colour, marker='o')
        loss.set(title=model, yscale='log')
        loss.tick_params(labelbottom=False)
        loss.tick_params(axis='y', which='both', labelsize=7)
        metric.set(xlabel='iteration', ylabel=METRICS[name])
        metric.set_ylim(0, 100 if name == 'mIoU' else 0.75)
        if column == 0:
            loss.set(ylabel='loss')
            metric.legend(fontsize=8, frameon=False)
        for axes in (loss, metric):
            axes.set_visible(True)
            axes.grid(alpha=0.3)
            axes.spines[['top', 'right']].set_visible(False)
    return figure


def main_metric(logged: Collection[str]) -> str:
    """The first of :data:`METRICS` that is among logged names; box mAP where none is."""
    return next((name for name in METRICS if name in logged), 'coco/bbox_mAP')
