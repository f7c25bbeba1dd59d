"""Annotations in COCO's form, read as pycocotools reads them, but piece by piece.

A file of half a gigabyte would otherwise be several gigabytes of lists and numbers at once.
"""

from __future__ import annotations

import gc
import json
import os
import re
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from mmfocal.utils.files import why_no_file

from .report import short

# Bytes in memory for a byte of JSON, at least, when mmdet reads it: COCO's training set takes 5.
JSON_GROWTH = 4
PIECE = 1 << 24  # characters that are read at once
CHUNK = 10_000  # items of a list that are given at once
# Of an error in what is left of a piece; further back, it is no matter of what follows.
NEAR_END = 64
WHITE_SPACE = re.compile(r'[ \t\n\r]*')
SCAN = json.JSONDecoder().scan_once
# What `compact` gives for a polygon: an object whose key no file has.
POLYGON = uuid.uuid4().hex
POLYGONS = re.compile(r'("segmentation": ?)\[\[([-\d., ]+)\]\]', re.ASCII)
MAX_DIGITS = 5  # of numbers that are looked through quickly: below MAX_COORDINATE


class CocoContent(NamedTuple):
    """The three lists of COCO's form, whose items may be anything."""

    images: list
    annotations: list
    categories: list


def read_coco(path: str | os.PathLike) -> CocoContent:
    """Reads annotations in COCO's form.

    Raises:
        ValueError: the file cannot be read, or is of another form; as part of a sentence.
    """
    lists: dict[str, list] = {}
    for name, items in read_lists(path):
        if items is None:
            lists[name] = []
        else:
            lists[name] += items
    return CocoContent(**lists)


def read_lists(
    path: str | os.PathLike,
    needed: Sequence[str] = CocoContent._fields,
    compact: bool = False,
) -> Iterator[tuple[str, list | None]]:
    """Reads the lists of COCO's form.

    Args:
        path: of the file.
        needed: lists that have to be there.
        compact: whether a mask of one polygon, of numbers below 100,000, becomes a dict with their
            number under :data:`POLYGON`, which halves the time.

    Yields:
        The name of a list, and None where it begins, then up to :data:`CHUNK` items of it. As for
        pycocotools, the last list of a name is the one that counts.

    Raises:
        ValueError: the file cannot be read, or is of another form; as part of a sentence.
    """
    if problem := why_no_file(path) or _exceeds_memory(os.path.getsize(path)):
        raise ValueError(problem)
    try:
        _check_encoding(path)
        with open(path) as file, _no_garbage_collection():  # in the encoding that pycocotools has
            yield from _lists(_Text(file, compact), needed)
    except OSError as error:
        raise ValueError(f'cannot be read: {error.strerror or error}.') from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f'is no text in {error.encoding} ({error.reason} at byte {error.start:,}), as which '
            'pycocotools reads it. Save it as UTF-8, without a byte order mark.'
        ) from error
    except (json.JSONDecodeError, RecursionError) as error:
        if compact:  # again, for the place of the error in the file
            deque(read_lists(path, needed), maxlen=0)
        raise ValueError(
            f'is cut off or damaged, no JSON ({error}). Copy or download it again.'
        ) from error


def _check_encoding(path: str | os.PathLike) -> None:
    """Raises ValueError if a file begins as only the ``json`` module, given bytes, can read."""
    with open(path, 'rb') as file:
        encoding = json.detect_encoding(file.read(4))
    if encoding != 'utf-8':
        raise ValueError(
            f'is in {encoding.upper()}, which pycocotools does not read; expected UTF-8 without a '
            f"byte order mark. Convert it: path.write_text(path.read_text('{encoding}'), 'utf-8')."
        )


def _lists(text: _Text, needed: Sequence[str]) -> Iterator[tuple[str, list | None]]:
    if text.next() != '{':
        raise _other_form('a JSON object', text.value())
    missing = set(needed)
    for _ in text.items('}'):
        name = text.key()
        if name not in CocoContent._fields:
            text.value()
            continue
        if text.next() != '[':
            raise _other_form(f"a list under '{name}'", text.value())
        missing.discard(name)
        yield name, None
        for items in text.chunks():
            yield name, items
    if text.next():
        raise text.error('Extra data', text.at)
    for name in needed:
        if name in missing:
            raise _other_form(f"a list under '{name}'")


def _other_form(expected: str, *came: Any) -> ValueError:
    got = short(came[0]) if came else 'no such key'
    return ValueError(f'expected {expected}, got {got}. Is it in the form of COCO?')


class _Text:
    """JSON in a file, of which a piece is held.

    Attributes:
        piece: what is held.
        at: index in it of what comes next.
    """

    def __init__(self, file: TextIO, compact: bool) -> None:
        self._file, self._compact, self._line, self._before = file, compact, 1, 0
        self.piece, self.at = '', 0

    def _more(self) -> bool:
        """Drops what was read, and reads at least as much as is left; False at the end."""
        self._line += self.piece.count('\n', 0, self.at)
        self._before += self.at
        left = self.piece[self.at :]
        piece = self._file.read(max(PIECE, len(left)))
        self.piece, self.at = left + piece, 0
        if self._compact:
            self.piece = _without_polygons(self.piece)
        return bool(piece)

    def error(self, problem: str, index: int) -> json.JSONDecodeError:
        """For a place in what is held, told by the line and character of the file."""
        error = json.JSONDecodeError(problem, self.piece, index)
        line = self._line + self.piece.count('\n', 0, index)
        error.args = (f'{problem}: line {line:,}, character {self._before + index:,}',)
        return error

    def next(self) -> str:
        """The next character that is no white space, '' at the end."""
        following = self.piece[self.at : self.at + 1]
        if following > ' ':
            return following
        while True:
            self.at = WHITE_SPACE.match(self.piece, self.at).end()
            if self.at < len(self.piece):
                return self.piece[self.at]
            if not self._more():
                return ''

    def value(self) -> Any:
        """Reads a value."""
        self.next()
        while True:
            start, problem = self.at, None
            try:
                value, end = SCAN(self.piece, start)
            except StopIteration as stop:
                problem, end = 'Expecting value', stop.value
            except ValueError as error:  # of JSON, or of a number that Python does not take
                problem, end = getattr(error, 'msg', str(error)), getattr(error, 'pos', start)
            # What follows may belong to it, as further digits of a number do. The place of a text
            # without an end is where it begins.
            goes_on = end == len(self.piece)
            if problem is not None:
                is_near = len(self.piece) - end < NEAR_END
                goes_on = is_near or problem.startswith('Unterminated')
            if goes_on and self._more():
                continue
            if goes_on:
                end -= start  # the piece begins here now
            if problem is not None:
                raise self.error(problem, end)
            self.at = end
            return value

    def key(self) -> str:
        """Reads a key of an object, with its colon."""
        if self.next() != '"':
            raise self.error('Expecting property name enclosed in double quotes', self.at)
        key = self.value()
        if self.next() != ':':
            raise self.error("Expecting ':' delimiter", self.at)
        self.at += 1
        return key

    def items(self, end: str) -> Iterator[None]:
        """Stops at each item of the list or object that begins here and ends with ``end``."""
        self.at += 1
        if self.next() == end:
            self.at += 1
            return
        while True:
            yield
            sign = self.next()
            if sign not in (',', end) or not sign:
                raise self.error("Expecting ',' delimiter", self.at)
            self.at += 1
            if sign == end:
                return

    def chunks(self) -> Iterator[list]:
        """Reads the list that begins here."""
        chunk = []
        for _ in self.items(']'):
            chunk.append(self.value())
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
        if chunk:
            yield chunk


def _without_polygons(text: str) -> str:
    """Puts the number of its numbers in the place of each polygon, if all are plain numbers."""
    parts = POLYGONS.split(text)
    polygons = parts[2::3]
    joined = f'[{"[".join(polygons)}{"[" * 2 * MAX_DIGITS}'
    if not polygons or not _are_plain(np.frombuffer(joined.encode(), np.uint8)):
        return text
    parts[2::3] = [f'{{"{POLYGON}": {each.count(",") + 1}}}' for each in polygons]
    return ''.join(parts)


# Of pairs of characters, those that are in lists of numbers of JSON; 0 is any digit.
_KINDS = np.zeros(256, np.uint8)
_KINDS[[ord(each) for each in '.,-[ ']] = range(1, 6)
_PAIRS = np.zeros(64, bool)
for _pair in ('00', '0.', '.0', '0,', ', ', ',0', ',-', ' 0', ' -', '-0', '[0', '[-', '0[', '[['):
    _first, _second = (_KINDS[ord(each)] for each in _pair)
    _PAIRS[_first * 8 + _second] = True


def _are_plain(text: np.ndarray) -> bool:
    """Whether lists, each between two ``[``, hold numbers of few digits and nothing else.

    Args:
        text: uint8 ``(N,)``, of digits and ``.,-[`` and space, with many ``[`` at its end.
    """
    kinds = _KINDS[text]
    if not _PAIRS[(kinds[:-1] << 3) | kinds[1:]].all():
        return False
    is_digit, is_point = kinds == 0, kinds == 1
    begins = ~(is_digit | is_point)
    if (begins[:-2] & (text[1:-1] == ord('0')) & is_digit[2:]).any():  # 01
        return False
    follows = np.ones(len(text), bool)  # whether as many digits follow each character
    for number in range(1, MAX_DIGITS + 1):
        follows = follows[: len(text) - number] & is_digit[number:]
        if (is_point[: -number - 1] & follows[:-1] & is_point[number + 1 :]).any():  # 1.2.3
            return False
    return not (follows[:-1] & is_digit[MAX_DIGITS + 1 :]).any()


def _exceeds_memory(size: int) -> str | None:
    """Why JSON of ``size`` bytes cannot be read on this machine, as part of a sentence."""
    memory = _memory()
    if memory is None or size * JSON_GROWTH <= memory:
        return None
    return (
        f'holds {size / 1e9:,.1f} GB of JSON, which becomes about {JSON_GROWTH} times as much in '
        f'memory, and this machine has {memory / 1e9:,.1f} GB. Divide it into several data sets, '
        'or read it on a machine with more memory.'
    )


def _memory() -> int | None:
    """Bytes of memory that this machine, or the container, has; None where that is not known."""
    try:
        memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None
    with suppress(OSError, ValueError):  # there is no container, or it says "max"
        memory = min(memory, int(Path('/sys/fs/cgroup/memory.max').read_text()))
    return memory


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """It would look through all the new objects again and again: half of the time for COCO."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
