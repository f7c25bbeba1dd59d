"""Tables and the figure of a comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmfocal.engine.curves import COLOURS

from .plan import Comparison
from .results import Results
from .statistics import CONFIDENCE, Interval, bootstrap, holm, paired

SIGNIFICANT = 1 - CONFIDENCE
Values = dict[str, dict[int, float]]  # by variant and seed


class Outcome:
    """What the results of a comparison say, of those seeds that all variants have.

    Args:
        comparison: what was compared.
        results: of its runs, all or some.

    Attributes:
        runs: the results that count.
    """

    def __init__(self, comparison: Comparison, results: Results) -> None:
        self.comparison = comparison
        self.results = results
        counts = Counter(run['seed'] for run in results.runs)
        self.runs = [
            run for run in results.runs if counts[run['seed']] == len(comparison.variants)
        ]

    def step_times(self) -> dict[str, float]:
        """Time of a training step of each variant, in those of the first compared with."""
        seconds = self.results.steps.get('seconds', {})
        base = seconds.get(self.comparison.against[0], [])
        return {
            name: median(a / b for a, b in zip(seconds[name], base, strict=True))
            for name in self.comparison.variants
            if name in seconds
        }

    def curves(self, variant: str, metric: str) -> dict[int, list[tuple[int, float]]]:
        """Iterations and values by seed."""
        return {
            run['seed']: run['curves'][metric] for run in self.runs if run['variant'] == variant
        }

    def last(self, metric: str) -> Values:
        """The last validation of each run."""
        return {
            variant: {seed: curve[-1][1] for seed, curve in self.curves(variant, metric).items()}
            for variant in self.comparison.variants
        }

    def at_equal_time(self, metric: str) -> Values:
        """What each run had come to when the fastest variant was complete, interpolated.

        NaN where that was before the first validation.
        """
        times = self.step_times()
        values: Values = {}
        for variant in self.comparison.variants:
            share = min(times.values()) / times[variant]
            values[variant] = {}
            for seed, curve in self.curves(variant, metric).items():
                steps, heights = zip(*curve, strict=True)
                there = np.interp(share * steps[-1], steps, heights, left=np.nan)
                values[variant][seed] = float(there)
        return values

    def on_test_split(self, metric: str) -> Values:
        """What the last checkpoint of each run comes to."""
        values: Values = {variant: {} for variant in self.comparison.variants}
        for run in self.runs:
            values[run['variant']][run['seed']] = run['test'][metric]
        return values

    # --- Tables ---------------------------------------------------------------------------

    def tables(self) -> str:
        """All tables as Markdown, with what was measured where."""
        parts = []
        kinds = [('the last validation', self.last)]
        if self.comparison.equal_time and self.step_times():
            kinds.append(('equal time', self.at_equal_time))
        if self.comparison.tests:
            kinds = [('the test split', self.on_test_split)]
        for metric, name in self.comparison.metrics.items():
            for kind, values in kinds:
                parts.append(self._table(f'{name}, {kind}', values(metric)))
        return '\n'.join([*parts, self._note()])

    def _table(self, title: str, values: Values) -> str:
        digits = 1 if any(v > 1 for of in values.values() for v in of.values()) else 3
        against = self.comparison.against
        differences = [
            self._differences(values, other, against[:place], digits)
            for place, other in enumerate(against)
        ]
        times, sizes = self.step_times(), self.results.steps.get('parameters', {})
        titles = [title, 'mean', *(f'minus {other}' for other in self.comparison.against)]
        titles += ['backbone, M', 'time of a step']
        lines = [f'| {" | ".join(titles)} |', '|---' * len(titles) + '|']
        for name in self.comparison.variants:
            cells = [name, bootstrap(list(values[name].values())).text(digits)]
            cells += [of.get(name, '') for of in differences]
            cells.append(f'{sizes[name] / 1e6:.2f}' if name in sizes else '')
            cells.append(f'{times[name]:.2f}' if name in times else '')
            lines.append(f'| {" | ".join(cells)} |')
        return '\n'.join([*lines, ''])

    def _differences(
        self, values: Values, other: str, done: Sequence[str], digits: int
    ) -> dict[str, str]:
        """How each variant differs from one of them, and whether that may be chance.

        Left out are those that are ``done``: in their own column is the same with the other sign.
        """
        pairs = {
            name: paired(values[name], values[other])
            for name in self.comparison.variants
            if name != other and name not in done
        }
        corrected = holm({name: p for name, (_, p) in pairs.items()})
        return {
            name: '-'
            if isnan(interval.mean)
            else f'{interval.text(digits, "+")}, p = {corrected[name]:.2g}'
            + ('' if corrected[name] < SIGNIFICANT else ', not significant')
            for name, (interval, _) in pairs.items()
        }

    def _note(self) -> str:
        """Numbers of runs, machine, versions and cost."""
        runs, against = self.runs, self.comparison.against[0]
        count = len({run['seed'] for run in runs})
        seeds = '1 seed' if count == 1 else f'{count} seeds'
        iterations = max(curve[-1][0] for run in runs for curve in run['curves'].values())
        batch = self.comparison.config.train_dataloader.batch_size
        hours = sum(run['cpu_seconds'] for run in runs) / 3600
        resumed = sum(run.get('resumed', False) for run in runs)
        uncounted = f', without what {resumed} had computed when they were killed'
        lines = [
            f'{seeds} each, {iterations:,} iterations of {batch} images. CPU time of all '
            f'{len(runs)} trainings with their evaluations: {hours:.1f} hours'
            f'{uncounted if resumed else ""}. Machine and versions: '
            f'{_machines(run["machine"] for run in runs)}'
        ]
        if self.step_times():
            rounds = len(self.results.steps['seconds'][against])
            timed = self.results.steps.get('machine', {})
            elsewhere = timed and not any(_same(timed, run['machine']) for run in runs)
            lines.append(
                'Backbones in millions of parameters. Times of steps: medians of '
                f'{rounds} taken in turn, over those of {against}'
                + (f', on another machine: {_machines([timed])}' if elsewhere else '.')
            )
        commits = sorted({run['commit'][:7] for run in runs if run.get('commit')})
        if len(commits) > 1:
            lines.append(f'Trained with the code of several commits: {", ".join(commits)}.')
        return '\n'.join([*lines, ''])

    @property
    def _metric(self) -> str:
        return next(iter(self.comparison.metrics))

    # --- Figure ---------------------------------------------------------------------------

    def draw(self) -> Figure:
        """Curves of the first metric with bands, over iterations and, where it can be, time."""
        times = self.step_times() if self.comparison.equal_time else {}
        figure = Figure(figsize=(5 + 4.2 * bool(times), 4), layout='constrained')
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 1 + bool(times), squeeze=False, sharey=True)[0]
        for variant, colour in zip(self.comparison.variants, COLOURS, strict=False):
            self._draw(panels[0], variant, 1.0, colour)
            if times:
                self._draw(panels[1], variant, times[variant], colour)
        panels[0].set(xlabel='iteration', ylabel=self.comparison.metrics[self._metric])
        panels[0].legend(fontsize=8, frameon=False, loc='lower right')
        if times:
            panels[1].set_xlabel(f'time, in steps of {self.comparison.against[0]}')
        for axes in panels:
            axes.grid(alpha=0.3)
            axes.spines[['top', 'right']].set_visible(False)
        figure.suptitle(self.comparison.title, fontsize=11)
        return figure

    def _draw(self, axes: Axes, variant: str, step_time: float, colour: str) -> None:
        curves = self.curves(variant, self._metric).values()
        steps = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
        means = [bootstrap([dict(curve)[step] for curve in curves]) for step in steps]
        x = [step * step_time for step in steps]
        axes.plot(x, [each.mean for each in means], '.-', color=colour, label=variant, lw=1.4)
        if all(each.low is not None for each in means):
            low, high = [each.low for each in means], [each.high for each in means]
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)


def _same(machine: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(machine.get(name) == other.get(name) for name in ('GPU', 'processor'))


def _machines(described: Iterable[Mapping[str, Any]]) -> str:
    """Where and with what was measured, each once: ``'AMD EPYC; torch 2.13.0; 2026-11-29'``."""
    described = list(described)
    names = ('GPU', 'processor', 'Python', 'torch', 'mmdet', 'mmsegmentation')
    parts = [sorted({str(each[name]) for each in described if name in each}) for name in names]
    words = [
        f'{name} {" and ".join(found)}' for name, found in zip(names, parts, strict=True) if found
    ]
    dates = sorted({each['date'] for each in described})
    words.append(' to '.join(dict.fromkeys((dates[0], dates[-1]))))
    return f'{", ".join(words)}.'


__all__ = ['Interval', 'Outcome']
