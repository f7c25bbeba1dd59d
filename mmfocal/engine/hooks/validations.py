"""What validations of a run find, for those who call it from Python."""

from __future__ import annotations

import sys
from typing import TextIO

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner


class ValidationsHook(Hook):
    """Remembers the metrics of each validation, and tells them where the log is not shown.

    Args:
        shown: whether each validation gets a line on the standard output of now, which may be
            another one while the runner works.

    Attributes:
        found: iterations that were done, and metrics by name, of each validation.
    """

    priority = 'LOWEST'

    def __init__(self, shown: bool) -> None:
        self.found: list[tuple[int, dict[str, float]]] = []
        self.output: TextIO | None = sys.stdout if shown else None

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        numbers = self._told(f'Iteration {runner.iter}', metrics)
        self.found.append((runner.iter, numbers))

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._told('Test', metrics)

    def _told(self, what: str, metrics: dict[str, float] | None) -> dict[str, float]:
        """Prints metrics if that is wanted; returns those that are numbers."""
        numbers = {
            name: float(value)
            for name, value in (metrics or {}).items()
            if isinstance(value, int | float) or getattr(value, 'ndim', None) == 0
        }
        if self.output is not None and is_main_process():
            # Sizes of objects and single IoUs would make lines too long to read.
            told = {
                name: value
                for name, value in numbers.items()
                if not name.endswith(('_75', '_s', '_m', '_l'))
            }
            values = ', '.join(f'{name} {value:.4g}' for name, value in told.items())
            print(f'{what}: {values}', file=self.output, flush=True)
        return numbers
