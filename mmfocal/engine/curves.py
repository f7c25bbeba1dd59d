"""Curves of a training run: losses, metrics and learning rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

from mmfocal.utils.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION

if TYPE_CHECKING:
    from collections.abc import Collection

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLACK, BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY)
# Metrics worth a curve, of mmdet's and mmseg's evaluators, with their names in the legend.
METRICS = {
    'coco/bbox_mAP': 'box mAP',
    'coco/bbox_mAP_50': 'box mAP at IoU 0.5',
    'coco/segm_mAP': 'mask mAP',
    'coco/segm_mAP_50': 'mask mAP at IoU 0.5',
    'mIoU': 'mIoU, %',
    'mAcc': 'mean accuracy, %',
}


def read_scalars(work_dir: str | Path) -> list[dict[str, float]]:
    """Everything that a run logged, over all its starts.

    Every start of a run writes ``TIME/vis_data/scalars.json`` of its own. Where a later start
    repeats steps, because it resumed from an earlier checkpoint, its values count. Metrics are
    logged under the number of the epoch, which an iteration-based run does not have; they get the
    iteration that training had reached.

    Args:
        work_dir: the run's work folder.

    Returns:
        Rows of the log in the order of their ``step``, an iteration in all of them.

    Raises:
        FileNotFoundError: the folder holds no log.
    """
    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(f'{work_dir} holds no log of a run (*/vis_data/scalars.json)')
    rows: list[dict[str, float]] = []
    for log in logs:
        later, step = [], None
        for row in map(json.loads, log.read_text().splitlines()):
            step = row['step'] if 'loss' in row else step
            if step is not None:
                later.append({**row, 'step': step})
        if later:
            rows = [row for row in rows if row['step'] < later[0]['step']] + later
    return rows


def draw_curves(work_dir: str | Path) -> Figure:
    """Draws losses on the left, metrics on the right, and the learning rate below the losses.

    Losses on the held-out split, where they were logged, are dashed.

    Args:
        work_dir: the run's work folder.

    Returns:
        The figure; the caller saves and closes it.
    """
    rows = read_scalars(work_dir)
    training = [row for row in rows if 'loss' in row]
    figure, panels = plt.subplot_mosaic(
        [['loss', 'metric'], ['lr', 'metric']],
        figsize=(10, 4.5),
        height_ratios=[3, 1],
        sharex=True,
        layout='constrained',
    )
    losses = sorted({name for row in training for name in row if name.startswith('loss')})
    for name, colour in zip(losses, COLOURS, strict=False):
        label = name.replace('_', ' ')
        _curve(panels['loss'], training, name, label, colour)
        # Beside its curve in training; the sum alone has a place in the legend.
        held_out = 'held-out loss' if name == 'loss' else '_'
        _curve(panels['loss'], rows, f'val/{name}', held_out, colour, marker='o', ls='--')
    panels['loss'].set(ylabel='loss', yscale='log')
    # Room for the legend above the curves.
    low, high = panels['loss'].get_ylim()
    panels['loss'].set_ylim(low, high * (high / low) ** 0.4)
    panels['loss'].legend(fontsize=8, frameon=False, ncols=2, loc='upper right')

    _curve(panels['lr'], training, 'lr', 'learning rate', COLOURS[0])
    panels['lr'].set(ylabel='learning\nrate', xlabel='iteration')

    shown = [name for name in METRICS if any(name in row for row in rows)]
    for name, colour in zip(shown, COLOURS[1:], strict=False):
        _curve(panels['metric'], rows, name, METRICS[name], colour, marker='o')
    panels['metric'].set(ylabel='metric on the held-out split', xlabel='iteration')
    panels['metric'].set_ylim(bottom=0)
    if shown:
        panels['metric'].legend(fontsize=8, frameon=False)
    for axes in panels.values():
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
    return figure


def draw_comparison(runs: dict[str, dict[str, list[list[dict[str, float]]]]]) -> Figure:
    """Draws the loss and the main metric of several models, each with several backbones.

    Args:
        runs: by model and backbone, ``'focal'`` or ``'swin'``, one list of rows of
            :func:`read_scalars` for each seed.

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
                _curve(loss, rows, 'loss', label, colour)
                _curve(metric, rows, name, label, colour, marker='o')
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


def _curve(
    axes: Axes,
    rows: list[dict[str, float]],
    name: str,
    label: str,
    colour: str,
    marker: str | None = None,
    ls: str = '-',
) -> None:
    points = [(row['step'], row[name]) for row in rows if name in row]
    if points:
        axes.plot(
            *zip(*points, strict=True), label=label, color=colour, marker=marker, ls=ls, lw=1.3
        )
