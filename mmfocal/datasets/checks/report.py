"""What a check finds, and how it is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mmfocal.utils.text import printable

if TYPE_CHECKING:
    from .class_counts import ClassCounts

MAX_LINES = 10  # of each kind of error
# Share of the annotations up to which those that mmdet leaves out are notes. COCO 2017 has a few.
MAX_SHARE = 0.01


class Report:
    """Errors and notes, by kind, in the order in which the kinds came up.

    An *error* is what would end a training run or silently teach it wrong things; a *note* is what
    a run copes with. Some things are harmless in a few annotations and a sign of a wrong file in
    many; these are *rare* until :meth:`judge_rare` knows how many annotations there are.

    Each takes the file, with the image or annotation in it, and the problem as a sentence with
    ``{names}`` of values. Problems of the same sentence are of a kind; only the first are kept,
    each in one line without control characters, whatever the data holds.
    """

    def __init__(self) -> None:
        # Number of all lines, and the first ones, by level and sentence.
        self._found: dict[tuple[str, str], tuple[int, list[str]]] = {}

    def error(self, where: str, problem: str, /, **values: Any) -> None:
        """Adds what training would break on, or learn wrongly from."""
        self._add('error', where, problem, values)

    def note(self, where: str, problem: str, /, **values: Any) -> None:
        """Adds what a run copes with."""
        self._add('note', where, problem, values)

    def rare(self, where: str, problem: str, /, **values: Any) -> None:
        """Adds what a run copes with if it is rare."""
        self._add('rare', where, problem, values)

    def _add(self, level: str, where: str, problem: str, values: dict[str, Any]) -> None:
        count, lines = self._found.get((level, problem), (0, []))
        if count < MAX_LINES:  # names and values are those of a file
            lines = [*lines, printable(f'{where}: {problem.format(**values)}')]
        self._found[level, problem] = count + 1, lines

    def take(self, other: Report) -> None:
        """Adds all that another report has."""
        for (level, problem), (count, lines) in other._found.items():
            self._take(level, problem, count, lines)

    def _take(self, level: str, problem: str, count: int, lines: list[str]) -> None:
        before, first = self._found.get((level, problem), (0, []))
        self._found[level, problem] = before + count, [*first, *lines][:MAX_LINES]

    def judge_rare(self, total: int) -> None:
        """Makes notes of what is rare among ``total`` annotations, and errors of the rest."""
        for level, problem in [key for key in self._found if key[0] == 'rare']:
            count, lines = self._found.pop((level, problem))
            self._take('note' if count <= MAX_SHARE * total else 'error', problem, count, lines)

    def count(self, level: str) -> int:
        """How many there are of ``'error'`` or ``'note'``."""
        return sum(count for (found, _), (count, _) in self._found.items() if found == level)

    def count_of(self, problem: str) -> int:
        """How often a sentence was added, whatever its level."""
        return sum(count for (_, found), (count, _) in self._found.items() if found == problem)

    def lines(self, level: str) -> list[str]:
        """For a user to read: up to :data:`MAX_LINES` errors of each kind, or one note."""
        most, told = MAX_LINES if level == 'error' else 1, []
        for (found, _), (count, lines) in self._found.items():
            if found == level:
                told += [f'{level}: {line}' for line in lines[:most]]
                if count > most:
                    told.append(f'{level}: {count - most:,} more of this kind')
        return told


class Counts(NamedTuple):
    """What was looked at.

    Attributes:
        images: listed.
        opened: of those, whose headers were read, or that were decoded.
        boxes: annotations of them.
        label_maps: that are there.
        classes: how often each class occurs, None if that is not known.
        names: of the images, below their folder.
    """

    images: int = 0
    opened: int = 0
    boxes: int = 0
    label_maps: int = 0
    classes: ClassCounts | None = None
    names: Sequence[str] = ()


def short(value: Any) -> str:
    """A value of any size in a few words."""
    try:
        text = repr(value)
    except RecursionError:  # of lists in lists
        text = f'a deep {type(value).__name__}'
    return text if len(text) <= 60 else f'{text[:57]}...'


def some(values: Iterable) -> str:
    """The first of many values."""
    texts = list(map(str, values))
    more = f' and {len(texts) - 5} more' if len(texts) > 5 else ''
    return ', '.join(texts[:5]) + more
