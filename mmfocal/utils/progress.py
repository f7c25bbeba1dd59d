"""How far something is: a line of a terminal that is rewritten, a line now and then elsewhere.

No thread redraws it, since data loaders fork the process, and no other output is redirected.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import deque
from types import TracebackType
from typing import TextIO

SECONDS_BETWEEN_LINES = 60.0  # where there is no terminal
SECONDS_BETWEEN_DRAWINGS = 0.2
BAR = 12  # characters
ERASE = '\r\x1b[2K'


class Line:
    """The last line of a terminal. Other output goes above it between :meth:`clear` and the next.

    Args:
        file: of the terminal; None for standard error.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stderr
        self._text = ''
        self._drawn = -SECONDS_BETWEEN_DRAWINGS

    @property
    def is_live(self) -> bool:
        """Whether the file is a terminal that rewrites lines, with somebody before it."""
        is_dumb = os.environ.get('TERM') == 'dumb' or bool(os.environ.get('CI'))
        return self._file.isatty() and not is_dumb

    @property
    def is_due(self) -> bool:
        """Whether a new text is worth the time."""
        return time.monotonic() - self._drawn >= SECONDS_BETWEEN_DRAWINGS

    def show(self, text: str) -> None:
        """Puts a text in the place of the last one, cut off where the terminal ends."""
        self._text, self._drawn = text, time.monotonic()
        self.redraw()

    def redraw(self) -> None:
        """Puts the text back after :meth:`clear`."""
        if self._text:
            width = _columns(self._file) - 1  # in the last column, some terminals break the line
            self._file.write(ERASE + self._text[:width])
            self._file.flush()

    def clear(self) -> None:
        """Makes room for other output."""
        if self._text:
            self._file.write(ERASE)
            self._file.flush()

    def end(self) -> None:
        """Leaves an empty line."""
        self.clear()
        self._text, self._drawn = '', -SECONDS_BETWEEN_DRAWINGS


class Pace:
    """Steps in a second, of the last ones."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=50)
        self._last: float | None = None

    def begin(self) -> None:
        """Says that the next step begins now; what was before is no part of it."""
        self._last = time.monotonic()

    def step(self) -> None:
        """Says that a step has ended, and the next begins."""
        now = time.monotonic()
        if self._last is not None:
            self._seconds.append(now - self._last)
        self._last = now

    @property
    def rate(self) -> float | None:
        """None before the first step has ended."""
        return len(self._seconds) / max(sum(self._seconds), 1e-6) if self._seconds else None


def told(title: str, done: int, total: int | None, rate: float | None, bar: bool = False) -> str:
    """Words on how far it is.

    Args:
        title: what is done, such as ``'Training'``.
        done: steps, from 0.
        total: steps, None if that is not known.
        rate: steps in a second, None if that is not known.
        bar: whether the share is drawn, too.
    """
    text = f'{title} [{"#" * (BAR * done // total):{BAR}}]' if bar and total else f'{title}:'
    text += f' {done:,} of {total:,}' if total else f' {done:,}'
    if rate:
        text += f', {rate:.1f} per s'
        if total and done < total:
            text += f', {clock((total - done) / rate)} left'
    return text


def clock(seconds: float) -> str:
    """Minutes and seconds, such as ``2:05``, with hours where there are any, ``1:02:05``."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{left:02}' if hours else f'{minutes}:{left:02}'


class Progress:
    """Counts images, on standard error.

    Args:
        total: how many there are, as far as is known.
        file: where it is shown; a bar if that is a terminal, else a line for each tenth and each
            minute.
        title: what is done with them.
    """

    def __init__(
        self, total: int | None, file: TextIO | None = None, title: str = 'Predicting'
    ) -> None:
        self.title = title
        self.total = total
        self.done = 0
        self._file = file or sys.stderr
        self._line = Line(self._file)
        self._pace = Pace()

    def __enter__(self) -> Progress:
        self._began = self._told = time.monotonic()
        self._pace.begin()
        self._tenths = 0
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.monotonic() - self._began
        self._line.end()

    def advance(self) -> None:
        """Counts one more."""
        self.done += 1
        self._pace.step()
        if self._line.is_live:
            if self._line.is_due or self.done == self.total:
                self._line.show(self._text(self._pace.rate, bar=True))
            return
        now = time.monotonic()
        tenths = 10 * self.done // self.total if self.total else 0
        if tenths > self._tenths or now - self._told >= SECONDS_BETWEEN_LINES:
            self._tenths, self._told = tenths, now
            rate = self.done / max(now - self._began, 1e-3)
            print(self._text(rate), file=self._file, flush=True)

    def _text(self, rate: float | None, bar: bool = False) -> str:
        return told(self.title, self.done, self.total, rate, bar)


def _columns(file: TextIO) -> int:
    try:
        return os.get_terminal_size(file.fileno()).columns or 80
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns
