"""Names of classes, and tables of their colours or labels, as text files have them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmfocal.utils.errors import UserError

from .content import Folder, read_text

# What files of tables and of names are called.
TABLE = re.compile(r'(label_colou?rs|labelmap|colormap)\.txt|(class_dict|_classes)\.csv')
NAMES = re.compile(r'(class|classes|class_names|labels|label_names|names)\.txt')
# Classes that are in tables for what is not to be learned.
VOID = frozenset(['void', 'ignore', 'ignored', 'unlabeled', 'unlabelled'])
FORMS = '"name,red,green,blue", "red green blue name" or "value,name"'

_COLOUR = r'(\d{1,4})[\s,;]+(\d{1,4})[\s,;]+(\d{1,4})'
_NAME_FIRST = re.compile(rf'(.*?[^\d\s,;:].*?)\s*[\s,;:]\s*{_COLOUR}\s*(?::.*)?')
_COLOUR_FIRST = re.compile(rf'{_COLOUR}[\s,;:]+(.*[^\d\s,;].*)')
_VALUE_FIRST = re.compile(r'(\d{1,5})\s*[\s,;:]\s*(.*[^\d\s,;].*)')
_NAME_VALUE = re.compile(r'(.*?[^\d\s,;:].*?)\s*[,;:\t]\s*(\d{1,5})')

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Table:
    """Classes of a text file.

    Attributes:
        path: of the file.
        names: in its order.
        colours: red, green and blue of each; None if it has values.
        values: label of each; None if it has colours.
    """

    path: Path
    names: tuple[str, ...]
    colours: tuple[Colour, ...] | None
    values: tuple[int, ...] | None


def read_names(text: str) -> tuple[str, ...]:
    """Names of classes, from a text file with one in each line, or with commas between them.

    Raises:
        UserError: there is no such file, no name, or one twice.
    """
    if os.path.isfile(text):
        where, parts = text, read_text(Path(text)).splitlines()
    elif text.lower().endswith('.txt') or '/' in text:
        raise UserError(f'There is no file of class names {text} (looked in {os.getcwd()}).')
    else:
        where, parts = f'Classes {text!r}', text.split(',')
    return check_names([part.strip() for part in parts if part.strip()], where)


def check_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Raises UserError if there is no name, or one twice."""
    if not names:
        raise UserError(f'{where}: expected names of classes, got none.')
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f'{where}: expected different names, got {name!r} {count} times.')
    return tuple(names)


def find_table(folder: Folder) -> Table | None:
    """The table of colours or labels of a data set; several files have to be equal."""
    tables = [read_table(path) for path in folder.files if TABLE.fullmatch(path.name.lower())]
    for other in tables[1:]:
        if (other.names, other.colours, other.values) != (
            tables[0].names,
            tables[0].colours,
            tables[0].values,
        ):
            raise UserError(
                f'{tables[0].path} and {other.path} differ; expected one table of classes for all '
                'splits. Correct one of them, or give one with --colours.'
            )
    return tables[0] if tables else None


def find_names(folder: Folder) -> tuple[str, ...] | None:
    """Names of classes in a data set's own text file; several files have to be equal."""
    paths = [path for path in folder.files if NAMES.fullmatch(path.name.lower())]
    found = [read_names(str(path)) for path in paths]
    for path, names in zip(paths[1:], found[1:], strict=True):
        if names != found[0]:
            raise UserError(
                f'{paths[0]} and {path} differ; expected one list of classes. Give it with '
                '--classes.'
            )
    return found[0] if found else None


def read_table(path: Path) -> Table:
    """Reads a table of colours or labels.

    Raises:
        UserError: a line has none of the known forms, or a name, a colour or a label is there
            twice.
    """
    entries: list[tuple[str, tuple[int, ...]]] = []
    lines = [line.strip() for line in read_text(path).splitlines()]
    for number, line in enumerate(lines, 1):
        if not line or line.startswith('#'):
            continue
        entry = _parsed(line)
        if entry is None:
            if not entries and not any(map(str.isdigit, line)):
                continue  # names of columns
            raise UserError(f'{path}: line {number}: expected {FORMS}, got {line[:60]!r}.')
        if entries and len(entry[1]) != len(entries[0][1]):
            raise UserError(
                f'{path}: line {number}: expected a colour in each line, or a value in each, got '
                f'{line[:60]!r}.'
            )
        if len(entry[1]) == 3 and max(entry[1]) > 255:
            raise UserError(
                f'{path}: line {number}: expected red, green and blue of 0 to 255, got '
                f'{line[:60]!r}.'
            )
        entries.append(entry)
    if not entries:
        raise UserError(f'{path} holds no class; expected lines such as {FORMS}.')
    names = check_names([name for name, _ in entries], str(path))
    values = [value for _, value in entries]
    value, count = Counter(values).most_common(1)[0]
    if count > 1:
        twice = ' and '.join(repr(name) for name, other in entries if other == value)
        raise UserError(f'{path}: expected different classes, got {value} for {twice}.')
    if len(values[0]) == 3:
        return Table(path, names, tuple(values), None)
    return Table(path, names, None, tuple(value for (value,) in values))


def _parsed(line: str) -> tuple[str, tuple[int, ...]] | None:
    """Name, and colour or label, of a line."""
    if match := _COLOUR_FIRST.fullmatch(line):
        *numbers, name = match.groups()
    elif (match := _NAME_FIRST.fullmatch(line)) or (match := _NAME_VALUE.fullmatch(line)):
        name, *numbers = match.groups()
    elif match := _VALUE_FIRST.fullmatch(line):
        *numbers, name = match.groups()
    else:
        return None
    return name.strip().strip('"\''), tuple(map(int, numbers))
