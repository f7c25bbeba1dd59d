"""How far predictions are: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

SECONDS_BETWEEN_LINES = 60.0


class _Rate(ProgressColumn):
    """Pictures in a second, of late."""

    def render(self, task: Task) -> Text:
        return Text(f'{task.speed:.1f} per s' if task.speed else '')


class Progress:
    """Counts pictures, on standard error.

    Args:
        total: how many there are, as far as is known.
        file: where it is shown; a bar if that is a terminal, else a line for each tenth and each
            minute.
    """

    def __init__(self, total: int | None, file: TextIO | None = None) -> None:
        self.total = total
        self.done = 0
        self._file = file or sys.stderr
        console = Console(file=self._file)
        self._bars = None
        if console.is_terminal:
            columns = [
                TextColumn('Predicting'),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(),
                TimeElapsedColumn(),
                TextColumn('left:'),
                TimeRemainingColumn(),
            ]
            self._bars = Bars(*columns, console=console)
            self._bar = self._bars.add_task('', total=total)

    def __enter__(self) -> Progress:
        self._began = self._told = time.monotonic()
        self._tenths = 0
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.monotonic() - self._began
        if self._bars:
            self._bars.stop()

    def advance(self) -> None:
        """Counts one more."""
        self.done += 1
        if self._bars:
            self._bars.start()  # with the first, behind what models log when they run first
            self._bars.update(self._bar, completed=self.done)
            return
        now = time.monotonic()
        tenths = 10 * self.done // self.total if self.total else 0
        if tenths > self._tenths or now - self._told >= SECONDS_BETWEEN_LINES:
            self._tenths, self._told = tenths, now
            print(self._line(now - self._began), file=self._file, flush=True)

    def _line(self, seconds: float) -> str:
        rate = self.done / max(seconds, 1e-3)
        text = f'Predicting: {self.done}'
        if self.total:
            text += f' of {self.total}'
        text += f', {rate:.1f} per s'
        if self.total and self.done < self.total:
            minutes, left = divmod(round((self.total - self.done) / rate), 60)
            text += f', {minutes}:{left:02} left'
        return text
