"""Curves of a training run: losses, metrics and learning rate."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmfocal.utils.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


class _Curves(Figure):
    """A figure that notebooks show, whether or not pyplot has been told that it runs in one."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format='png')
        return buffer.getvalue()


def read_scalars(work_dir: str | Path) -> list[dict[str, float]]:
    """Everything that a run logged, over all its starts.

    Every start of a run writes ``TIME/vis_data/scalars.json`` of its own. Where a later start
    repeats steps, because it resumed from an earlier checkpoint, its values count. Metrics are
    logged under the number of the epoch, which an iteration-based run does not have; they get the
    iteration that training had reached, also where a later start began with a validation that the
    earlier one had not got to.

    Args:
        work_dir: the run's work folder.

    Returns:
        Rows of the log in the order of their ``step``, an iteration in all of them.

    Raises:
        FileNotFoundError: the folder holds no log.
    """
    found = Path(work_dir).glob('*/vis_data/scalars.json')
    logs = sorted(path for path in found if path.is_file())
    if not logs:
        raise FileNotFoundError(f'{work_dir} holds no log of a run (*/vis_data/scalars.json)')
    rows: list[dict[str, float]] = []
    for log in logs:
        later, step = [], rows[-1]['step'] if rows else None
        for row in _rows(log):
            step = row['step'] if 'loss' in row else step
            if step is not None:
                later.append({**row, 'step': step})
        begun = next((row['step'] for row in later if 'loss' in row), math.inf)
        rows = [row for row in rows if row['step'] < begun] + later
    return rows


def _rows(log: Path) -> Iterator[dict[str, float]]:
    """Rows of the log of one start, but for one that a kill or a full disk cut off."""
    for line in log.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        yield row


def draw_curves(work_dir: str | Path) -> Figure:
    """Draws losses on the left, metrics on the right, and the learning rate below the losses.

    Losses on the held-out split, where they were logged, are dashed.

    Args:
        work_dir: the run's work folder.

    Returns:
        The figure, of which pyplot knows nothing: it needs no screen, changes no notebook's
        backend, and is not to be closed.
    """
    rows = read_scalars(work_dir)
    training = [row for row in rows if 'loss' in row]
    figure = _Curves(figsize=(10, 4.5), layout='constrained')
    FigureCanvasAgg(figure)
    panels = figure.subplot_mosaic(
        [['loss', 'metric'], ['lr', 'metric']], height_ratios=[3, 1], sharex=True
    )
    losses = sorted({name for row in training for name in row if name.startswith('loss')})
    for name, colour in zip(losses, COLOURS, strict=False):
        label = name.replace('_', ' ')
        draw_curve(panels['loss'], training, name, label, colour)
        # Beside its curve in training; only the sum has a place in the legend.
        held_out = 'held-out loss' if name == 'loss' else '_'
        draw_curve(panels['loss'], rows, f'val/{name}', held_out, colour, marker='o', ls='--')
    panels['loss'].set(ylabel='loss', yscale='log')
    # Room for the legend above the curves.
    low, high = panels['loss'].get_ylim()
    panels['loss'].set_ylim(low, high * (high / low) ** 0.4)
    if losses:
        panels['loss'].legend(fontsize=8, frameon=False, ncols=2, loc='upper right')

    draw_curve(panels['lr'], training, 'lr', 'learning rate', COLOURS[0])
    panels['lr'].set(ylabel='learning\nrate', xlabel='iteration')

    shown = [name for name in METRICS if any(name in row for row in rows)]
    for name, colour in zip(shown, COLOURS[1:], strict=False):
        draw_curve(panels['metric'], rows, name, METRICS[name], colour, marker='o')
    panels['metric'].set(ylabel='metric on the held-out split', xlabel='iteration')
    panels['metric'].set_ylim(bottom=0)
    if shown:
        panels['metric'].legend(fontsize=8, frameon=False)
    for axes in panels.values():
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
    return figure


def draw_curve(
    axes: Axes,
    rows: list[dict[str, float]],
    name: str,
    label: str,
    colour: str,
    marker: str | None = None,
    ls: str = '-',
) -> None:
    """Draws a value of the log over iterations, in the rows that have it."""
    points = [(row['step'], row[name]) for row in rows if name in row]
    if points:
        axes.plot(
            *zip(*points, strict=True), label=label, color=colour, marker=marker, ls=ls, lw=1.3
        )
