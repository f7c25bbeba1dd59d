"""What the values of label maps mean, as looking at them shows.

With ``n`` names of classes, and but for the ignored label (255 unless its user says another), it
is for indices:

================================  ===============================================================
values                            meaning
================================  ===============================================================
0 and others below ``n``          label ``k`` is the name number ``k``, counted from 0
up to ``n``                       counted from 1; 0, if there, is not learned, with a note (mmseg's
                                  ``reduce_zero_label``)
below ``n``, without 0            counted from 0, with a note
two others, with two names        the smaller one is the first name; so are 0 and 255, although
                                  255 is ignored elsewhere
0 and another, with one name      ``background``, and the name; so are 0 and 255
above ``n``, or only one          an error that lists the values
================================  ===============================================================

A table with a colour or a label for each name decides instead where there is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmfocal.utils.errors import UserError

from ..checks import Report
from ..checks.heads import IGNORED_LABEL
from ..checks.report import some
from .label_tables import VOID, Table
from .label_values import NO_COLOUR, Looked, Runs, code_of, colour_of, read_label_map
from .pairing import Pair

_GREY = 7  # among the colours of Pascal VOC
BACKGROUND = 'background'
MAX_CLASSES = 255  # of 8 bits, with the ignored one
MAX_LISTED = 12  # values in a message


@dataclass(frozen=True)
class Meaning:
    """What values of label maps mean.

    Attributes:
        classes: names in the order of labels.
        labels: of each value that may occur: from 0 on, or 255.
        palette: red, green and blue of the classes.
        phrase: for the user.
        ignored: index that is not learned.
        is_colour: whether values are colours.
        fits: whether mmseg gives these labels itself,
        reduces: with its ``reduce_zero_label``.
        table: what it is from.
    """

    classes: tuple[str, ...]
    labels: dict[int, int]
    palette: list[list[int]]
    phrase: str
    ignored: int
    is_colour: bool = False
    fits: bool = False
    reduces: bool = False
    table: Table | None = None

    def read(self, each: Pair) -> np.ndarray:
        """Labels of a label map, uint8 ``(H, W)``.

        Raises:
            UserError: it cannot be read, or has a value without a meaning.
        """
        found = read_label_map(each)
        values = found.colours(self.ignored, self.labels) if self.is_colour else found.indices()
        runs = Runs.of(values)
        labels = [self.labels.get(value) for value in runs.values.tolist()]
        if None in labels:
            raise self._unknown(each.label_map, int(runs.values[labels.index(None)]))
        flat = np.repeat(np.array(labels, np.uint8)[runs.numbers], runs.lengths)
        return flat.reshape(values.shape)

    def _unknown(self, path: Path, value: int) -> UserError:
        if not self.is_colour:
            return UserError(
                f'{path} holds the value {value}, other label maps {self.phrase}. Correct it, or '
                'say with --ignored-label that it is not learned.'
            )
        colour = np.array(colour_of(value))
        names = dict(zip(map(tuple, self.palette), self.classes, strict=True))
        if self.table is not None:
            names = dict(zip(self.table.colours, self.table.names, strict=True))
        near = min(names, key=lambda other: int(((colour - other) ** 2).sum()))
        where = self.table.path if self.table else 'the others'
        return UserError(
            f'{path} holds the colour {colour_of(value)}, which is not in {where}; the nearest '
            f'there is {near}, {names[near]!r}. Correct it, or add it to the table, as "void,'
            f'{",".join(map(str, colour))}" if it is not learned (--colours FILE gives a table).'
        )


def understood(
    where: str,
    looked: Looked,
    names: tuple[str, ...] | None,
    table: Table | None,
    ignored: int,
    report: Report,
) -> Meaning:
    """The meaning of values.

    Args:
        where: the data's folder.
        looked: what label maps hold.
        names: of the classes; None if neither user nor data names them.
        table: with a colour or a label for each name, if there is one.
        ignored: index that is not learned.
        report: takes what was taken for granted.

    Raises:
        UserError: it is not known.
    """
    if table is not None and table.colours and _has_colours(looked, table, ignored):
        return _by_colours(looked, names, table, ignored, report)
    if looked.contradiction:
        raise UserError(
            f'{looked.contradiction}: the same index means several things. Give the colours of '
            'the classes with --colours FILE, or export the label maps with one palette.'
        )
    if not looked.is_gray:
        return _of_two_colours(where, looked, names, ignored)
    counts = looked.all_indices()
    if table is not None and _has_values(counts, names, table, ignored):
        return _by_values(looked, counts, names, table, ignored, report)
    if table is not None:
        names = names or table.names
    if names is None:
        raise UserError(
            f'{where} does not name the classes of its label maps, which have {_told(counts)}. '
            'Give the names in the order of labels with --classes FILE (one in a line), or in a '
            'file classes.txt beside the data.'
        )
    return _by_order(where, looked, counts, names, ignored, report)


def check_number(names: Sequence[str], where: str) -> None:
    """Raises UserError for too few classes, or too many for 8 bits."""
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UserError(
            f'{where}: expected from 2 to {MAX_CLASSES} classes in label maps, got {len(names)}: '
            f'{some(map(repr, names))}.'
        )


def distinct_colours(classes: Sequence[str]) -> list[list[int]]:
    """The colours of Pascal VOC's label maps.

    Black is left to a background, and grey to what is ignored.
    """
    first = 0 if classes[0].lower() == BACKGROUND else 1
    numbers = np.array([number for number in range(first, 300) if number != _GREY])
    colours = np.zeros((len(classes), 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            is_set = numbers[: len(classes)] >> (3 * bit + channel) & 1
            colours[:, channel] |= is_set << (7 - bit)
    return colours.tolist()


def _told(counts: Counter[int], is_colour: bool = False) -> str:
    """Values and their shares of the pixels, as a part of a sentence."""
    total = sum(counts.values())
    shown = [
        f'{colour_of(value) if is_colour else value} ({counts[value] / total:.1%})'
        for value in sorted(counts, key=lambda value: -counts[value] if is_colour else value)
    ]
    more = f' and {len(shown) - MAX_LISTED} more' if len(shown) > MAX_LISTED else ''
    kind = 'colour' if is_colour else 'value'
    return f'{len(shown)} {kind}{"s" * (len(shown) > 1)}: {", ".join(shown[:MAX_LISTED])}{more}'


# --- Tables -----------------------------------------------------------------------------------


def _has_colours(looked: Looked, table: Table, ignored: int) -> bool:
    """Whether values are the colours of a table, and no indices into it."""
    known = set(map(code_of, table.colours))
    return not looked.is_gray or known.issuperset(looked.all_colours(ignored))


def _has_values(
    counts: Counter[int], names: tuple[str, ...] | None, table: Table, ignored: int
) -> bool:
    """Whether values are the labels of a table, or the positions in it."""
    if table.values is not None:
        return True
    is_within = max(counts.keys() - {ignored, IGNORED_LABEL}, default=0) < len(table.names)
    return is_within and set(names or ()) <= set(table.names)


def _by_colours(
    looked: Looked, names: tuple[str, ...] | None, table: Table, ignored: int, report: Report
) -> Meaning:
    classes = _chosen(table, names, report)
    colours = dict(zip(table.names, table.colours, strict=True))
    labels = {code_of(colour): IGNORED_LABEL for colour in table.colours}
    labels |= {code_of(colours[name]): label for label, name in enumerate(classes)}
    kind = 'colours of palettes' if looked.palette else 'colours'
    return Meaning(
        classes,
        labels | {NO_COLOUR: IGNORED_LABEL},
        [list(colours[name]) for name in classes],
        f'{kind} of {len(classes)} classes in {table.path.name}',
        ignored,
        is_colour=True,
        table=table,
    )


def _by_values(
    looked: Looked,
    counts: Counter[int],
    names: tuple[str, ...] | None,
    table: Table,
    ignored: int,
    report: Report,
) -> Meaning:
    classes = _chosen(table, names, report)
    values = dict(zip(table.names, table.values or range(len(table.names)), strict=True))
    labels = dict.fromkeys(values.values(), IGNORED_LABEL)
    labels |= {values[name]: label for label, name in enumerate(classes)}
    labels |= {ignored: IGNORED_LABEL, IGNORED_LABEL: IGNORED_LABEL}
    for value in sorted(counts):
        if value not in labels:
            path = looked.first.get((False, value)) or table.path
            raise UserError(
                f'{path} holds the value {value}, which {table.path} has no name for; all label '
                f'maps have {_told(counts)}. Name it there, or say with --ignored-label that it '
                'is not learned.'
            )
    phrase = f'indices of {len(classes)} classes in {table.path.name}'
    return _of_indices(looked, counts, classes, labels, phrase, ignored)


def _chosen(table: Table, names: tuple[str, ...] | None, report: Report) -> tuple[str, ...]:
    """Names of a table that are learned, in the order of labels."""
    hint = 'it is not in --classes.'
    if names is None:
        names = tuple(name for name in table.names if name.lower() not in VOID)
        hint = 'name all classes with --classes to learn it.'
    if unknown := [name for name in names if name not in table.names]:
        raise UserError(
            f'--classes: expected names of {table.path} ({some(map(repr, table.names))}), got '
            f'{some(map(repr, unknown))}.'
        )
    for name in table.names:
        if name not in names:
            problem = '{name} is not learned: {hint}'
            report.note(str(table.path), problem, name=repr(name), hint=hint)
    check_number(names, str(table.path))
    return names


# --- Order of names ---------------------------------------------------------------------------


def _by_order(
    where: str,
    looked: Looked,
    counts: Counter[int],
    names: tuple[str, ...],
    ignored: int,
    report: Report,
) -> Meaning:
    """By the order of names; see the table of this module."""
    values = sorted(counts.keys() - {ignored, IGNORED_LABEL})
    not_learned = {ignored: IGNORED_LABEL, IGNORED_LABEL: IGNORED_LABEL}
    if (two := _two_values(names, values, counts)) is not None:
        names = (BACKGROUND, *names) if len(names) == 1 else names
        labels = not_learned | {two[0]: 0, two[1]: 1}
        phrase = f'{two[0]} for {names[0]!r}, {two[1]} for {names[1]!r}'
        return _of_indices(looked, counts, names, labels, phrase, ignored)
    if len(values) < 2 or len(names) < 2:
        raise UserError(
            f'{where}: label maps have {_told(counts)}, the classes are '
            f'{some(map(repr, names))}; expected labels of two classes at least. Give all names '
            'in the order of labels with --classes.'
        )
    check_number(names, where)
    if values[-1] > len(names) or values[0] < 0:
        raise UserError(
            f'{where}: {len(names)} classes are named, and label maps have {_told(counts)}; '
            f'expected labels from 0 to {len(names) - 1}, or from 1 to {len(names)}. Give all '
            'names in the order of labels with --classes, a table of lines "name,value" with '
            '--colours, or a label that is not learned with --ignored-label.'
        )
    first = int(values[-1] == len(names))
    _note_doubts(where, counts, values, names, report)
    labels = {label + first: label for label in range(len(names))}
    labels = ({0: IGNORED_LABEL} if first else {}) | labels | not_learned
    told = f', {ignored} ignored' if ignored in counts else ''
    phrase = f'indices {first} to {len(names) - 1 + first} of {len(names)} classes{told}'
    return _of_indices(looked, counts, names, labels, phrase, ignored)


def _two_values(
    names: Sequence[str], values: list[int], counts: Counter[int]
) -> tuple[int, int] | None:
    """Two values that are no indices in the order of names; None if there are others."""
    if sorted(counts) == [0, IGNORED_LABEL]:
        values = [0, IGNORED_LABEL]
    if (
        len(values) != 2
        or len(names) > 2
        or (len(names) == 2 and values[-1] == values[0] + 1 <= 2)
    ):
        return None
    return None if values[0] < 0 or (len(names) == 1 and values[0]) else tuple(values)


def _note_doubts(
    where: str,
    counts: Counter[int],
    values: Sequence[int],
    names: Sequence[str],
    report: Report,
) -> None:
    first, last = values[0], values[-1]
    if last == len(names) and first == 0:
        report.note(
            where,
            'label 0 ({share} of the pixels) is not learned, since labels go up to {last}, and '
            '{count} classes are named; name one more, first of all, to learn it.',
            share=f'{counts[0] / sum(counts.values()):.1%}',
            count=len(names),
            last=last,
        )
    elif first > 0 and last < len(names):
        report.note(
            where,
            'labels go from {first} to {last}, and {count} classes are named; they are taken to '
            'count from 0, which is {name}. If they count from 1, leave out the last names.',
            first=first,
            last=last,
            count=len(names),
            name=repr(names[0]),
        )
    elif last < len(names) - 1:
        report.note(
            where,
            'labels go up to {last}, so that there is nothing of {names}. Is it the right list '
            'of names?',
            last=last,
            names=some(map(repr, names[last + 1 :])),
        )


def _of_indices(
    looked: Looked,
    counts: Counter[int],
    classes: tuple[str, ...],
    labels: dict[int, int],
    phrase: str,
    ignored: int,
) -> Meaning:
    """Whether mmseg reads these labels itself, and the colours to show them in."""
    learned = {label: value for value, label in labels.items() if label != IGNORED_LABEL}
    unlearned = {value for value in counts if labels[value] == IGNORED_LABEL}
    firsts = {value - label for label, value in learned.items()}
    reduces = firsts == {1} and unlearned <= {0, IGNORED_LABEL}
    keeps = firsts == {0} and unlearned <= {IGNORED_LABEL}
    colours = [looked.palette.get(learned.get(label)) for label in range(len(classes))]
    has_palette = None not in colours and len(set(colours)) == len(classes)
    return Meaning(
        classes,
        labels,
        [list(colour_of(code)) for code in colours] if has_palette else distinct_colours(classes),
        phrase,
        ignored,
        fits=(reduces or keeps) and len(learned) == len(classes),
        reduces=reduces,
    )


def _of_two_colours(
    where: str, looked: Looked, names: tuple[str, ...] | None, ignored: int
) -> Meaning:
    """Black and another colour; raises UserError for others, which have no names."""
    counts = looked.all_colours(ignored)
    if len(counts) != 2 or 0 not in counts or len(names or ()) not in (1, 2):
        raise UserError(
            f'{where} has label maps of {_told(counts, True)}, and no table says what they mean. '
            'Give one with --colours FILE, a line "name,red,green,blue" for each class.'
        )
    names = (BACKGROUND, *names) if len(names) == 1 else names
    other = max(counts)
    return Meaning(
        names,
        {0: 0, other: 1, NO_COLOUR: IGNORED_LABEL},
        [[0, 0, 0], list(colour_of(other))],
        f'black for {names[0]!r}, {colour_of(other)} for {names[1]!r}',
        ignored,
        is_colour=True,
    )
