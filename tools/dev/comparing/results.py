"""The file of results of a comparison, from which it resumes."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Lock
from typing import Any

from mmfocal.utils.files import written_atomically

from .plan import Comparison, Run


class Results:
    """What was measured, kept in a JSON file that is written after every run.

    A result counts as long as the config of its run is what it was. Others stay in the file, for
    the day when that is so again.

    Args:
        path: of the file; it need not exist.
        comparison: which runs there are to be.
    """

    def __init__(self, path: Path, comparison: Comparison) -> None:
        self.path = path
        self.comparison = comparison
        self._lock = Lock()
        stored = json.loads(path.read_text()) if path.is_file() else {}
        wanted = {(run.variant, run.seed): run.digest for run in comparison.runs()}
        self.runs: list[dict[str, Any]] = []
        self._others: list[dict[str, Any]] = []
        for each in stored.get('runs', []):
            counts = wanted.get((each['variant'], each['seed'])) == each['digest']
            (self.runs if counts else self._others).append(each)
        digests = {run.variant: run.digest for run in comparison.runs()}
        steps = stored.get('steps', {})
        self.steps: dict[str, Any] = steps if steps.get('digests') == digests else {}

    def has(self, run: Run) -> bool:
        """Whether a run is complete."""
        return any(
            (each['variant'], each['seed']) == (run.variant, run.seed) for each in self.runs
        )

    def add(self, run: Run, **measured: Any) -> None:
        """Keeps what a run came to: ``curves``, ``test``, ``cpu_seconds`` and where it ran."""
        with self._lock:
            entry = dict(variant=run.variant, seed=run.seed, digest=run.digest)
            self.runs.append({**entry, **measured})
            order = list(self.comparison.variants)
            self.runs.sort(key=lambda each: (each['seed'], order.index(each['variant'])))
            self._write()

    def set_steps(
        self,
        seconds: dict[str, list[float]],
        parameters: dict[str, int],
        machine: dict[str, Any],
    ) -> None:
        """Keeps the seconds of training steps of each variant, taken in turn, and its size."""
        with self._lock:
            digests = {run.variant: run.digest for run in self.comparison.runs()}
            measured = dict(seconds=seconds, parameters=parameters)
            self.steps = dict(**measured, digests=digests, machine=machine)
            self._write()

    def _write(self) -> None:
        title, steps = json.dumps(self.comparison.title), json.dumps(self.steps)
        runs = ',\n'.join(map(json.dumps, [*self.runs, *self._others]))  # a line each, for git
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written_atomically(self.path) as file:
            text = f'{{"title": {title},\n"steps": {steps},\n"runs": [\n{runs}\n]}}\n'
            file.write(text.encode())
