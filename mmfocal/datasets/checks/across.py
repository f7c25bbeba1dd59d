"""What no single data set shows: classes that differ between them, and images in several."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import combinations
from typing import NamedTuple

from .coco import CocoData
from .report import Report, some
from .segmentation import SegmentationData

MAX_COMPARED = 1000  # files that are read to find copies, of each pair of data sets
MAX_CANDIDATES = 10  # of the same size
HEAD = 1 << 16  # bytes


class Described(NamedTuple):
    """A data set of a run.

    Attributes:
        split: ``'train'``, ``'val'``, ``'test'``.
        key: in the config.
        data: what it reads.
        names: of its images, below the folder of ``data``.
    """

    split: str
    key: str
    data: CocoData | SegmentationData
    names: Sequence[str] = ()


def check_across(described: Sequence[Described], report: Report) -> None:
    """Compares the data sets of a run: all have the same classes, and no image is in two splits.

    Args:
        described: the data sets.
        report: takes what is found.
    """
    _check_classes(described, report)
    _check_overlap(described, report)


def _check_classes(described: Sequence[Described], report: Report) -> None:
    firsts: dict[type, Described] = {}
    for each in described:
        classes = each.data.classes
        if classes is None:
            continue
        first = firsts.setdefault(type(each.data), each)
        if classes != first.data.classes:
            report.error(
                each.key,
                'its classes are {classes}, those of {other} {others}, so that one label would '
                'mean two things. Give all data sets of the config the same '
                'metainfo=dict(classes=...).',
                classes=some(map(repr, classes)),
                other=first.key,
                others=some(map(repr, first.data.classes)),
            )


def _check_overlap(described: Sequence[Described], report: Report) -> None:
    files = [(_files(each), each) for each in described]
    for (first, one), (second, other) in combinations(files, 2):
        # That validation and test have the same images is usual.
        if (one.split == 'train') == (other.split == 'train'):
            continue
        shared = len(first.keys() & second.keys())
        looked_at = len(second)
        if not shared:
            shared, looked_at = _count_copies(first.values(), second.values())
        if shared:
            report.note(
                other.key,
                'of {looked_at} of its images that were compared, {shared} are images of {other} '
                'too, so that results on them say nothing of new images.',
                shared=f'{shared:,}',
                looked_at=f'{looked_at:,}',
                other=one.key,
            )


class _File(NamedTuple):
    path: str
    size: int


def _files(described: Described) -> dict[tuple[int, int], _File]:
    """The files of images, by what is the same for all paths and links to a file."""
    files = {}
    for name in described.names:
        path = os.path.join(described.data.images, name)
        with suppress(OSError, ValueError):  # told with the images
            found = os.stat(path)
            if stat.S_ISREG(found.st_mode) and found.st_size:
                files[found.st_dev, found.st_ino] = _File(path, found.st_size)
    return files


def _count_copies(first: Collection[_File], second: Collection[_File]) -> tuple[int, int]:
    """How many files of the second have the bytes of one of the first, and of how many.

    Only up to :data:`MAX_COMPARED` files are read.
    """
    by_size: dict[int, list[str]] = {}
    for path, size in first:
        by_size.setdefault(size, []).append(path)
    step = -(-len(second) // MAX_COMPARED) or 1
    chosen = list(second)[::step]
    num_read = num_copies = 0
    for number, (path, size) in enumerate(chosen, 1):
        candidates = by_size.get(size, [])[:MAX_CANDIDATES]
        if candidates:
            num_read += 1 + len(candidates)
            digest = _digest(path)
            num_copies += any(_digest(each) == digest for each in candidates)
        if num_read > MAX_COMPARED:
            return num_copies, number
    return num_copies, len(chosen)


def _digest(path: str) -> bytes | None:
    """Of the first bytes of a file, which no two photographs share."""
    try:
        with open(path, 'rb') as file:
            return hashlib.blake2b(file.read(HEAD)).digest()
    except OSError:
        return None
