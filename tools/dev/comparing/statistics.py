"""Means over few seeds with intervals, and differences of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000
ROUNDING = 1e-9  # differences of metrics that are printed with few digits differ by this or none


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its confidence interval; without bounds of less than two values."""

    mean: float
    low: float | None = None
    high: float | None = None

    def text(self, digits: int, sign: str = '') -> str:
        """``'0.54 (0.52 to 0.55)'``, or ``'-'`` for what was not measured."""
        if isnan(self.mean):
            return '-'
        form = f'{sign}.{digits}f'
        if self.low is None or self.high is None:
            return f'{self.mean:{form}}'
        return f'{self.mean:{form}} ({self.low:{form}} to {self.high:{form}})'


def bootstrap(values: Sequence[float]) -> Interval:
    """Mean of values of several seeds, and percentiles of means of seeds that are drawn anew."""
    if len(values) < 2:
        return Interval(float(np.mean(values)))
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn.mean(axis=1), [tail, 100 - tail])
    return Interval(float(np.mean(values)), float(low), float(high))


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> tuple[Interval, float]:
    """Mean difference of results of the same seeds, with Student's interval and p.

    The bootstrap's interval is too narrow for five seeds, Student's is right for normal values.

    Returns:
        The difference, and the probability of one as large where there is none; 1 for less than
        two seeds.
    """
    seeds = sorted(values.keys() & others.keys())
    if not seeds:
        return Interval(float('nan')), 1.0
    differences = np.array([values[seed] - others[seed] for seed in seeds])
    mean, spread = float(differences.mean()), stats.sem(differences) if len(seeds) > 1 else 0.0
    if not spread > ROUNDING:
        return Interval(mean), 1.0
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1) * spread
    p = 2 * stats.t.sf(abs(mean) / spread, len(seeds) - 1)
    return Interval(mean, float(mean - reach), float(mean + reach)), float(p)


def holm(probabilities: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction of several tests that are looked at together."""
    corrected, least = {}, 0.0
    ordered = sorted(probabilities, key=probabilities.__getitem__)
    for rank, name in enumerate(ordered):
        least = max(least, min(1.0, (len(ordered) - rank) * probabilities[name]))
        corrected[name] = least
    return corrected
