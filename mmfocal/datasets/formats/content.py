"""What data sets of all formats are read into: images with objects."""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from mmfocal.utils.errors import UserError
from mmfocal.utils.files import IMAGE_SUFFIXES, why_no_file

from ..checks import Report, read_image
from ..checks.report import short

SPLITS = ('train', 'val', 'test')
# What folders and files are called that hold one of them.
SPLIT_WORDS = {
    'train': ('train', 'training'),
    'val': ('val', 'valid', 'validation', 'eval'),
    'test': ('test', 'testing'),
}
REPORT = 'conversion.txt'  # in the folder of what was converted
WHOLE = 'all'  # the name of what is not divided
MISSING = 'names the image {name}, which is not below {root}, or several times; it is left out.'
MAX_TEXT = 64 * 2**20  # bytes of a file that describes one image, or lists names


@dataclass(frozen=True)
class Object:
    """An object in an image.

    Attributes:
        label: name of its class.
        box: x, y, width and height in pixels, from the upper left corner of the image.
        polygons: outlines of its mask, each x1, y1, x2, y2, ... in pixels; none for a box without
            a mask.
        rle: the mask as COCO's run-length code (``size`` and ``counts``) instead.
        is_crowd: whether it stands for a group that is neither learned nor counted as missed.
        area: of the mask in pixels, where the source gives it.
    """

    label: str
    box: tuple[float, float, float, float]
    polygons: tuple[tuple[float, ...], ...] = ()
    rle: dict | None = None
    is_crowd: bool = False
    area: float | None = None

    @property
    def has_mask(self) -> bool:
        """Whether more than its box is known."""
        return bool(self.polygons) or self.rle is not None

    @classmethod
    def of_corners(cls, label: str, corners: Iterable[float]) -> Object:
        """A box between two opposite corners x1, y1, x2, y2 in pixels, in any order."""
        x1, y1, x2, y2 = corners
        return cls(label, (min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)))

    @classmethod
    def of_polygons(cls, label: str, polygons: Iterable[Sequence[float]]) -> Object:
        """An object with the box around its polygons.

        Raises:
            ValueError: a polygon has no three points; as part of a sentence.
        """
        polygons = tuple(map(tuple, polygons))
        for polygon in polygons or [()]:
            if len(polygon) < 6 or len(polygon) % 2:
                raise ValueError(
                    f'a polygon needs x and y of at least three points, got {len(polygon)} numbers'
                )
        x = [value for polygon in polygons for value in polygon[::2]]
        y = [value for polygon in polygons for value in polygon[1::2]]
        return cls(label, (min(x), min(y), max(x) - min(x), max(y) - min(y)), polygons)


@dataclass(frozen=True)
class Sample:
    """An image with its objects.

    Attributes:
        image: the file.
        objects: in the order of the source; none is a picture of nothing that is learned.
        where: what says so: a file, with a line or an item in it.
        size: width and height in pixels that the source gives; None if it does not.
    """

    image: Path
    objects: tuple[Object, ...]
    where: str
    size: tuple[float, float] | None = None


@dataclass(frozen=True)
class Annotated:
    """A data set of any format.

    Attributes:
        classes: names in the order of labels.
        splits: images by ``'train'``, ``'val'``, ``'test'``, or ``'all'`` if it is not divided.
    """

    classes: tuple[str, ...]
    splits: dict[str, list[Sample]] = field(repr=False)


class Folder:
    """Files below a folder, listed once; the source of a data set, which is never written to.

    Args:
        root: the folder.
        only: names of folders in it; what lies beside them is left out. None for everything.

    Raises:
        UserError: it is none.
    """

    def __init__(self, root: Path, only: Collection[str] | None = None) -> None:
        if root.is_file():
            raise UserError(
                f'{root} is a file; expected a folder with images and annotations. Unpack it, '
                'if it is an archive, or give the folder that it lies in.'
            )
        if not root.is_dir():
            raise UserError(f'There is no folder {root} (looked for {root.absolute()}).')
        self.root, self.only = root, only

    @cached_property
    def files(self) -> list[Path]:
        """All files, in the order of their names; links are followed, hidden ones left out."""
        found, seen = [], set()
        for folder, folders, files in os.walk(self.root, followlinks=True):
            if (real := os.path.realpath(folder)) in seen:  # a link to where it lies itself
                folders.clear()
                continue
            seen.add(real)
            if REPORT in files:  # of an earlier conversion
                folders.clear()
                continue
            if self.only is not None and folder == str(self.root):
                folders[:] = [name for name in folders if name in self.only]
                files = []
            folders[:] = sorted(name for name in folders if not _is_hidden(name))
            found += [Path(folder, name) for name in sorted(files) if not _is_hidden(name)]
        return found

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Files of these kinds, such as ``'.xml'``, in any case."""
        return [path for path in self.files if path.suffix.lower() in suffixes]

    @cached_property
    def images(self) -> list[Path]:
        """Files with a suffix of images."""
        return self.with_suffix(*IMAGE_SUFFIXES)

    @cached_property
    def _images(self) -> set[Path]:
        return set(self.images)

    @cached_property
    def _by_name(self) -> dict[tuple[str, str | None], list[tuple[tuple[str, ...], Path]]]:
        """Images, sorted by their folders from the last to the first.

        They are found by their name or stem in lower case, and by the split of their folders.
        """
        by_name = defaultdict(list)
        for path in self.images:
            split = split_of(self.relative(path.parent))
            for name in {path.name, path.stem}:
                by_name[name.lower(), split].append((path.parent.parts[::-1], path))
        for entries in by_name.values():
            entries.sort()
        return by_name

    def find_image(
        self, name: str, near: Path | None = None, split: str | None = None
    ) -> Path | None:
        """The image that an annotation names, wherever it lies below the folder.

        Paths in annotations are often those of another machine or system, so that only their
        last parts fit; the image with the most parts in common is taken. What lies elsewhere is
        never found, whatever a name says.

        Args:
            name: a path with ``/`` or ``\\``, or a URL, with or without a suffix.
            near: the folder of the annotations; of several images the nearest is taken.
            split: what the annotations are for; folders called as another one are left out.

        Returns:
            None if there is no such image, or several that fit equally well.
        """
        if '?d=' in name:  # a local file that Label Studio serves
            name = name.partition('?d=')[2]
        elif '://' in name or '?' in name:
            name = name.partition('?')[0]
        wanted = PurePosixPath(unquote(name).replace('\\', '/'))
        for spelt in dict.fromkeys((wanted, PurePosixPath(name.replace('\\', '/')))):
            if near and (exact := Path(os.path.normpath(near / spelt))) in self._images:
                return exact
            if fitting := self._fitting(spelt, split):
                ranks = [self._rank(path, spelt, near) for path in fitting]
                best = max(ranks)
                return fitting[ranks.index(best)] if ranks.count(best) == 1 else None
        return None

    def _fitting(self, wanted: PurePosixPath, split: str | None) -> list[Path]:
        """Images of a name that have the most folders in common with a path, from its end on."""
        folders = wanted.parent.parts[::-1]
        most, fitting = 0, []
        for own in (None, *SPLITS) if split in (None, WHOLE) else (None, split):
            entries = self._by_name.get((wanted.name.lower(), own), [])
            start, end, common = 0, len(entries), 0
            while common < len(folders):
                first, last = _with_start(entries, folders[: common + 1], start, end)
                if first == last:
                    break
                start, end, common = first, last, common + 1
            if entries and common >= most:
                kept = fitting if common == most else []
                most, fitting = common, kept + [path for _, path in entries[start:end]]
        return fitting

    @staticmethod
    def _rank(path: Path, wanted: PurePosixPath, near: Path | None) -> tuple[bool, int]:
        """Which of images in equal folders is meant: one of the very name, then the nearest."""
        shared = len(os.path.commonpath([path.absolute(), near.absolute()])) if near else 0
        return path.name == wanted.name, shared

    def relative(self, path: Path) -> str:
        """A path below the folder, with ``/``."""
        return os.path.relpath(path, self.root).replace(os.sep, '/')


def _with_start(
    entries: list[tuple[tuple[str, ...], Path]], parts: tuple[str, ...], start: int, end: int
) -> tuple[int, int]:
    """The range of sorted entries between two indices whose tuples begin with some parts."""
    after = (*parts[:-1], parts[-1] + '\0')  # the least tuple behind all of them
    first = bisect_left(entries, parts, start, end, key=itemgetter(0))
    return first, bisect_left(entries, after, first, end, key=itemgetter(0))


def _is_hidden(name: str) -> bool:
    # Of archives that were made on a Mac, and of runs that were started in the folder itself.
    is_foreign = name in ('__MACOSX', 'work_dirs')
    # A line feed in a name could forge a line of what is printed.
    return name.startswith('.') or is_foreign or not name.isprintable()


def split_of(name: str) -> str | None:
    """Which split the parts of a path name: ``'train'``, ``'val'`` or ``'test'``.

    Args:
        name: relative, with ``/``; the last part that says anything decides, such as
            ``valid/labels/1.txt`` or ``annotations/instances_train2017.json``.
    """
    for part in reversed(PurePosixPath(name.lower()).parts):
        words = ''.join(c if c.isalpha() else ' ' for c in part).split()
        for split, known in SPLIT_WORDS.items():
            if any(word in known for word in words):
                return split
    return None


def read_text(path: Path, most: int = MAX_TEXT) -> str:
    """The text of a file that a person or a tool wrote: UTF-8, or UTF-16 with its mark.

    Args:
        path: of the file.
        most: bytes that such files have.

    Raises:
        UserError: it cannot be read, is no text, or is far larger than such files are.
    """
    if problem := why_no_file(path):
        raise UserError(f'{path} {problem}')
    try:
        if path.stat().st_size > most:
            raise UserError(
                f'{path} has {path.stat().st_size / 1e6:,.0f} MB; expected at most '
                f'{most / 1e6:,.0f}. Is it the right file?'
            )
        content = path.read_bytes()
        is_utf16 = content.startswith((b'\xff\xfe', b'\xfe\xff'))
        return content.decode('utf-16' if is_utf16 else 'utf-8-sig')
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror or error}.') from error
    except UnicodeError as error:
        raise UserError(f'{path} is no text of UTF-8 ({error}). Save it as UTF-8.') from error


def read_json(path: Path, most: int = MAX_TEXT) -> Any:
    """The content of a JSON file; takes and raises what :func:`read_text` does."""
    try:
        return json.loads(read_text(path, most))
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is cut off or damaged, no JSON ({error}).') from error


def read_xml(path: Path, most: int = MAX_TEXT) -> ElementTree.Element:
    """The root of an XML file; takes what :func:`read_text` does.

    Raises:
        UserError: it cannot be read, is no XML, or defines entities, which can grow without end.
    """
    text = read_text(path, most)
    if '<!DOCTYPE' in text or '<!ENTITY' in text:
        raise UserError(f'{path} holds a DOCTYPE, which annotations do not need. Take it out.')
    try:
        return ElementTree.fromstring(text)  # as text: what encoding it declares does not matter
    except ElementTree.ParseError as error:
        raise UserError(f'{path} is cut off or damaged, no XML ({error}).') from error


def number(value: Any) -> float:
    """A finite number from what a file gives, text included.

    Raises:
        ValueError: it is none; as part of a sentence.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f'expected a number, got {short(value)}') from None
    if not math.isfinite(result):
        raise ValueError(f'expected a finite number, got {short(value)}')
    return result


def note_missing(report: Report, where: str, name: str, folder: Folder) -> None:
    """Notes an image that annotations name and that is not there, and is left out."""
    report.note(where, MISSING, name=repr(name), root=folder.root)


def upright_size(image: Path, report: Report) -> tuple[int, int] | None:
    """Width and height in pixels of an image as it is loaded, turned by its EXIF orientation.

    Returns:
        None if it cannot be read, which is noted.
    """
    try:
        return read_image(str(image), deep=False).loaded_size(turns=True)
    except ValueError as error:
        report.note(str(image), '{error} It is left out.', error=error)
        return None


def by_folders(files: Iterable[Path], folder: Folder, report: Report) -> dict[str, list[Path]]:
    """Files by the split that their folders name; all of them as ``'all'`` if none does.

    Those of other folders are noted and left out where some name a split.
    """
    found: dict[str | None, list[Path]] = defaultdict(list)
    for path in files:
        found[split_of(folder.relative(path.parent))].append(path)
    outside = found.pop(None, [])
    if not found:
        return {WHOLE: outside}
    for path in outside:
        report.note(
            str(path), 'lies in no folder of train, val or test, as others do; it is left out.'
        )
    return {split: found[split] for split in SPLITS if split in found}


def each_once(splits: dict[str, list[Sample]], report: Report) -> dict[str, list[Sample]]:
    """Samples by split, without an image that is listed again, in that split or a later one.

    Validation on images that were trained on would not show how good a model is.
    """
    result: dict[str, dict[Path, Sample]] = {}
    home: dict[Path, str] = {}
    for split in (*SPLITS, WHOLE):
        for sample in splits.get(split, ()):
            before = home.setdefault(sample.image, split)
            if before != split or sample.image in result.setdefault(split, {}):
                report.note(
                    sample.where,
                    'the image {image} of {split} is in {before} too, where it stays.',
                    image=sample.image.name,
                    split=split,
                    before=before,
                )
            else:
                result[split][sample.image] = sample
    return {split: list(samples.values()) for split, samples in result.items() if samples}
