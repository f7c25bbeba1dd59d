"""Finds what is wrong with a data set before a run does: annotations, pictures, label maps.

:func:`check_coco` walks an annotation file in COCO's form, :func:`check_segmentation` the pictures
and label maps of mmseg. Both collect :class:`Findings`. An *error* is what would end a training
run or teach it wrong things without a word; a *note* is what a run copes with. Some things are
harmless in a few annotations, which mmdet leaves out, and a sign of a wrong file in many: they are
notes up to ``MAX_SHARE`` of all and errors beyond.

The quick version reads every annotation, looks whether every picture is there, and reads the
headers of a sample. The deep version decodes every picture.

This module needs numpy and Pillow alone. It never hands coordinates to pycocotools, whose C code
ends the process for such as are not finite.
"""

from __future__ import annotations

import gc
import json
import math
import os
import struct
import time
import warnings
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .class_counts import ClassCounts

__all__ = [
    'CocoData',
    'Counts',
    'Findings',
    'Header',
    'Pictures',
    'SegmentationData',
    'check_coco',
    'check_segmentation',
    'leaves_folder',
    'read_picture',
    'unfit_pixels',
    'why_unreadable',
]

MAX_LINES = 10  # of each kind of error
# Share of the annotations up to which those that mmdet leaves out are notes. COCO 2017 has a few.
MAX_SHARE = 0.01
# Beyond any picture. pycocotools takes memory for the whole range that a polygon covers, and from
# about 1e8 on it ends the process.
MAX_COORDINATE = 1e5
# Sampled per data set: headers of pictures, and label maps, which have to be decoded.
MAX_HEADERS, MAX_LABEL_MAPS = 10_000, 200
MAX_SECONDS = 10.0  # for the sampled files of a data set, on a slow disk
CHUNK = 10_000  # annotations whose polygons are looked at together
ORIENTATION = 0x0112  # EXIF tag; 1 is upright, from 5 on sides are swapped
IGNORED_LABEL = 255
# What PNG, JPEG, GIF, WebP and TIFF files begin with.
SIGNATURES = (b'\x89PNG', b'\xff\xd8', b'GIF8', b'RIFF', b'II*\0', b'MM\0*')
# Ways of storing pixels that loaders convert to three channels of 8 bits.
CONVERTED = {
    'CMYK': 'CMYK',
    'YCbCr': 'YCbCr',
    'LAB': 'CIELAB',
    'L': 'gray',
    'LA': 'gray with alpha',
    '1': 'of 1 bit',
    'P': 'with a palette',
    'PA': 'with a palette',
    'RGBA': 'with alpha',
    'I': '16-bit gray',
}


class Findings:
    """Errors and notes, by kind, in the order in which the kinds came up."""

    def __init__(self) -> None:
        self._found: dict[tuple[bool, str], tuple[list[str], list[int]]] = {}

    def error(self, kind: str, line: str) -> None:
        """Adds what training would break on, or learn wrongly from.

        Args:
            kind: what such lines have in common; the first of each kind are kept.
            line: the file, the annotation or image, and the reason.
        """
        self._add(True, kind, line)

    def note(self, kind: str, line: str) -> None:
        """Adds what a run copes with."""
        self._add(False, kind, line)

    def _add(self, is_error: bool, kind: str, line: str) -> None:
        lines, count = self._found.setdefault((is_error, kind), ([], [0]))
        count[0] += 1
        if len(lines) < (MAX_LINES if is_error else 1):
            lines.append(line)

    @property
    def num_errors(self) -> int:
        return sum(count[0] for (is_error, _), (_, count) in self._found.items() if is_error)

    @property
    def num_notes(self) -> int:
        return sum(count[0] for (is_error, _), (_, count) in self._found.items() if not is_error)

    def lines(self, errors: bool) -> list[str]:
        """Errors, or notes, for a user to read."""
        lines = []
        for (is_error, kind), (examples, count) in self._found.items():
            if is_error != errors:
                continue
            word = 'error' if is_error else 'note'
            lines += [f'{word}: {line}' for line in examples]
            if count[0] > len(examples):
                lines.append(f'{word}: {kind}: {count[0] - len(examples):,} more')
        return lines


class Header(NamedTuple):
    """What is known of a picture without its pixels.

    Attributes:
        size: width and height in pixels, as stored.
        mode: of its pixels, as Pillow names it.
        orientation: of EXIF, 1 to 8; 1 is upright.
        is_animated: whether it has several frames.
    """

    size: tuple[int, int]
    mode: str
    orientation: int
    is_animated: bool


class Counts(NamedTuple):
    """What was looked at.

    Attributes:
        pictures: listed.
        opened: of those, whose headers were read, or that were decoded.
        annotations: boxes, or label maps.
        classes: how often each class occurs, None if that is not known.
    """

    pictures: int
    opened: int
    annotations: int
    classes: ClassCounts | None = None


@dataclass(frozen=True)
class Pictures:
    """How a config reads pictures.

    Attributes:
        turns: whether EXIF orientation is applied.
        backend: of mmcv's decoder, such as ``'cv2'``.
        longest: the smallest of all bounds of the longer side in pixels that pictures are resized
            to with their aspect ratio kept; None for no such resizing.
        min_size: pictures with a side below that are left out of training.
    """

    turns: bool = True
    backend: str = 'cv2'
    longest: int | None = None
    min_size: int = 0


@dataclass(frozen=True)
class CocoData:
    """A data set as mmdet's ``CocoDataset`` reads it.

    Attributes:
        annotations: the JSON file.
        images: folder that the names of files are relative to.
        classes: names in the order of labels.
        has_masks: whether masks are read or evaluated.
        trains: whether it is trained on.
        label_maps: folder with a semantic label map for each picture, None if they are not read.
        label_map_suffix: end of a label map's name, in place of the picture's extension.
        pictures: how pictures are read.
    """

    annotations: str
    images: str
    classes: tuple[str, ...] | None = None
    has_masks: bool = False
    trains: bool = True
    label_maps: str | None = None
    label_map_suffix: str = '.png'
    pictures: Pictures = field(default_factory=Pictures)


@dataclass(frozen=True)
class SegmentationData:
    """A data set as mmseg's ``BaseSegDataset`` reads it.

    Attributes:
        images: folder of the pictures.
        label_maps: folder of the label maps, None if there are none.
        classes: names in the order of labels; None if they are not known.
        list_file: text file with a picture's name without suffix on each line; None for all
            pictures of the folder.
        image_suffix: end of a picture's name.
        label_map_suffix: end of its label map's name.
        reduce_zero_label: whether label 0 is ignored and the others count from 1.
        pictures: how pictures are read.
    """

    images: str
    label_maps: str | None
    classes: tuple[str, ...] | None = None
    list_file: str | None = None
    image_suffix: str = '.jpg'
    label_map_suffix: str = '.png'
    reduce_zero_label: bool = False
    pictures: Pictures = field(default_factory=Pictures)


def check_coco(data: CocoData, findings: Findings, deep: bool = False) -> Counts:
    """Looks through annotations in COCO's form and the pictures that they are about.

    Args:
        data: what is read, and how.
        findings: takes what is found.
        deep: whether every picture is decoded, and every compressed mask, instead of a sample of
            headers being read.
    """
    content = _read_json(data.annotations, findings)
    if content is None:
        return Counts(0, 0, 0)
    images, objects = content['images'], content['annotations']
    names = _check_categories(data, content['categories'], findings)
    sizes, files = _check_images(data, images, findings)
    _Annotations(data, sizes, names, findings, deep).check(objects)
    paths = [(os.path.join(data.images, name), size) for name, size in files]
    paths = _present(paths, data.annotations, findings)
    if data.label_maps:
        _check_semantic_maps(data, files, findings)
    opened = 0
    for path, size in _sample(paths, deep, MAX_HEADERS):
        _check_picture(path, size, data.pictures, deep, findings)
        opened += 1
    counts = None if findings.num_errors else _count_boxes(data, images, objects, names, findings)
    return Counts(len(images), opened, len(objects), counts)


def check_segmentation(data: SegmentationData, findings: Findings, deep: bool = False) -> Counts:
    """Looks through pictures and their label maps.

    Args:
        data: what is read, and how.
        findings: takes what is found.
        deep: whether every file is decoded, instead of a sample.
    """
    names = _listed_names(data, findings)
    paths = [(os.path.join(data.images, name), None) for name in names]
    where = data.list_file or data.images
    if not names:
        findings.error(
            'no pictures',
            f'{where}: lists no picture that ends in {data.image_suffix!r}. Correct data_prefix, '
            'ann_file or img_suffix in the config.',
        )
    paths = _present(paths, where, findings)
    maps: dict[str, str] = {}
    if data.label_maps is not None:
        for name in names:
            stem = name[: len(name) - len(data.image_suffix)]
            label_map = os.path.join(data.label_maps, stem + data.label_map_suffix)
            maps[os.path.join(data.images, name)] = label_map
        there = _present([(path, None) for path in maps.values()], where, findings, 'label map')
        present = {path for path, _ in there}
        maps = {path: label_map for path, label_map in maps.items() if label_map in present}
    opened = 0
    for path, _ in _sample(paths, deep, MAX_HEADERS):
        _check_picture(path, None, data.pictures, deep, findings)
        opened += 1
    counts = ClassCounts(data.classes, 'pixels') if data.classes else None
    for path, label_map in _sample(sorted(maps.items()), deep, MAX_LABEL_MAPS):
        _check_label_map(path, label_map, data, findings, counts)
    if counts is not None:
        counts.of = len(maps)
        _note_absent_classes(data.label_maps, counts, findings)
    return Counts(len(names), opened, len(maps), counts)


# --- Annotations ----------------------------------------------------------------------------


def _read_json(path: str, findings: Findings) -> dict[str, list] | None:
    """The three lists of COCO's form, None if they are not there."""
    kind = 'annotation files that cannot be read'
    try:
        with _no_garbage_collection():
            content = json.loads(Path(path).read_bytes())
    except OSError as error:
        findings.error(kind, f'{path}: cannot be read: {error.strerror or error}.')
        return None
    except (ValueError, RecursionError) as error:
        findings.error(
            kind,
            f'{path}: is cut off or damaged, no JSON ({error}). Copy or download it again.',
        )
        return None
    if not isinstance(content, dict):
        findings.error(kind, f'{path}: expected a JSON object as COCO has, got {_short(content)}.')
        return None
    lists = {name: content.get(name) for name in ('images', 'annotations', 'categories')}
    for name, value in lists.items():
        if not isinstance(value, list):
            came = _short(value) if name in content else 'no such key'
            findings.error(kind, f'{path}: expected a list under {name!r}, got {came}.')
    return lists if all(isinstance(value, list) for value in lists.values()) else None


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


def _check_categories(
    data: CocoData, categories: list, findings: Findings
) -> dict[Any, str | None]:
    """Names by category id; compares them with the classes of the config."""
    names: dict[Any, str | None] = {}
    for number, category in enumerate(categories):
        identity = category.get('id') if isinstance(category, dict) else None
        name = category.get('name') if isinstance(category, dict) else None
        if not _is_id(identity) or not isinstance(name, str):
            findings.error(
                'categories without id or name',
                f'{data.annotations}: category number {number}: expected an id and a name, got '
                f'{_short(category)}.',
            )
        elif identity in names or name in names.values():
            findings.error(
                'categories that are listed twice',
                f'{data.annotations}: category {identity} ({name!r}) is listed twice, or shares '
                'its name with another.',
            )
        if _is_id(identity):
            names.setdefault(identity, name)
    if data.classes is None or not all(isinstance(name, str) for name in names.values()):
        return names
    listed = [name for name in names.values() if name in data.classes]
    absent = [name for name in data.classes if name not in listed]
    numbers = 'mmdet numbers labels by the order of the file, so that classes would be mixed up.'
    if absent:
        findings.error(
            'class names',
            f'{data.annotations}: has no categories named {_some(map(repr, absent))}, which the '
            f'config lists as classes; it has {_some(map(repr, names.values()))}. {numbers} '
            'Correct metainfo=dict(classes=...) in every data set of the config, and num_classes '
            'of the heads.',
        )
    elif listed != list(data.classes):
        findings.error(
            'class names',
            f'{data.annotations}: its categories stand in another order than the classes of the '
            f'config: {_some(map(repr, listed))}, not {_some(map(repr, data.classes))}. {numbers} '
            'Set metainfo=dict(classes=...) of every data set of the config to the names in the '
            "file's order.",
        )
    for name in names.values():
        if name not in data.classes and not absent:
            findings.note(
                'categories that are no classes of the config',
                f'{data.annotations}: category {name!r} is no class of the config and is '
                'left out.',
            )
    return names


def _check_images(
    data: CocoData, images: list, findings: Findings
) -> tuple[dict[Any, tuple[float, float]], list[tuple[str, tuple[float, float]]]]:
    """Widths and heights by image id, and the files that they are declared for."""
    where = data.annotations
    if not images:
        findings.error('no images', f'{where}: lists no images at all.')
    sizes: dict[Any, tuple[float, float]] = {}
    files: dict[str, tuple[float, float]] = {}
    for number, image in enumerate(images):
        if not isinstance(image, dict):
            findings.error(
                'images without what mmdet needs',
                f'{where}: image number {number}: expected an object, got {_short(image)}.',
            )
            continue
        identity, name = image.get('id'), image.get('file_name')
        width, height = image.get('width'), image.get('height')
        wrong = {
            'id': not _is_id(identity),
            'file_name': not isinstance(name, str) or not name or '\0' in name,
            'width': not _is_number(width) or not 0 < width < math.inf,
            'height': not _is_number(height) or not 0 < height < math.inf,
        }
        if any(wrong.values()):
            key = next(key for key, is_wrong in wrong.items() if is_wrong)
            came = _short(image[key]) if key in image else 'no such key'
            expected = dict(id='a number', file_name='a path').get(key, 'a number of pixels')
            findings.error(
                'images without what mmdet needs',
                f'{where}: image {identity if _is_id(identity) else f"number {number}"}: expected '
                f'{expected} under {key!r}, got {came}.',
            )
            continue
        if identity in sizes:
            findings.error(
                'image ids that are listed twice',
                f'{where}: image id {identity} ({name}) is listed twice; one of both would be '
                'lost.',
            )
        sizes[identity] = (width, height)
        if leaves_folder(name):
            findings.error(
                'paths that leave the data root',
                f'{where}: image {identity}: file_name {name!r} leads out of {data.images}. Name '
                'files by paths below that folder.',
            )
            continue
        if name in files:
            findings.note(
                'pictures that are listed twice',
                f'{where}: {name} is listed twice, under different image ids.',
            )
        files[name] = (width, height)
    return sizes, list(files.items())


def _count_boxes(
    data: CocoData, images: list, objects: list, names: dict[Any, str | None], findings: Findings
) -> ClassCounts:
    """Boxes by class, of annotations without errors; crowds are not learned, and not counted."""
    counts = ClassCounts(data.classes or tuple(names.values()), 'boxes')
    counts.add_boxes(
        (names[thing['category_id']], thing['image_id'])
        for thing in objects
        if not thing.get('iscrowd')
    )
    counts.looked_at = counts.of = len(images)
    _note_absent_classes(data.annotations, counts, findings)
    return counts


def _note_absent_classes(where: str, counts: ClassCounts, findings: Findings) -> None:
    """Says which classes a data set has nothing of, if it has any."""
    if not counts.absent or len(counts.absent) == len(counts.names):
        return
    is_sample = counts.looked_at < counts.of
    sample = f' in the {counts.looked_at:,} label maps looked at' if is_sample else ''
    hint = 'Such a class is neither learned nor evaluated.'
    if is_sample:
        hint = f'--deep looks at all {counts.of:,}.'
    findings.note(
        f'classes that never occur in {where}',  # a line for each file
        f'{where}: has no {counts.unit} of {_some(map(repr, counts.absent))}{sample}. {hint}',
    )


def leaves_folder(name: str) -> bool:
    """Whether a path from an annotation file leads out of the folder that it is relative to."""
    parts = name.replace('\\', '/').split('/')
    return name.startswith(('/', '\\')) or '..' in parts or '://' in name or parts[0][1:] == ':'


class _Annotations:
    """Checks of annotations one by one.

    Args:
        data: what they belong to.
        sizes: width and height by image id.
        names: category names by id.
        findings: takes what is found.
        deep: whether compressed masks are decoded.
    """

    def __init__(
        self,
        data: CocoData,
        sizes: dict[Any, tuple[float, float]],
        names: dict[Any, str | None],
        findings: Findings,
        deep: bool,
    ) -> None:
        self.data, self.sizes, self.names = data, sizes, names
        self.findings, self.deep = findings, deep
        # What mmdet leaves out, by kind.
        self.left_out: dict[str, list[str]] = {}

    def check(self, objects: list) -> None:
        """Looks through all of them."""
        where, findings = self.data.annotations, self.findings
        if not objects:
            add = findings.error if self.data.trains else findings.note
            add('no annotations', f'{where}: lists no annotations at all.')
        ids = set()
        for start in range(0, len(objects), CHUNK):
            chunk = objects[start : start + CHUNK]
            for number, thing in enumerate(chunk, start):
                if not self._is_plain(thing):
                    self._examine(thing, number)
                identity = thing.get('id') if isinstance(thing, dict) else None
                if _is_id(identity) and identity in ids:
                    findings.error(
                        'annotation ids that are listed twice',
                        f'{where}: annotation id {identity} is listed twice; ids have to be '
                        'unique.',
                    )
                if _is_id(identity):
                    ids.add(identity)
            things = [thing for thing in chunk if isinstance(thing, dict)]
            self._check_masks(things)
        for kind, lines in self.left_out.items():
            for line in lines:
                add = findings.note if len(lines) <= MAX_SHARE * len(objects) else findings.error
                add(kind, line)

    def _is_plain(self, thing: Any) -> bool:
        """Whether nothing is wrong apart from the mask: quick, for nearly all."""
        try:
            x, y, width, height = thing['bbox']
            image_width, image_height = self.sizes[thing['image_id']]
            # False for NaN; a type that does not compare raises.
            return (
                _is_id(thing['id'])
                and thing['category_id'] in self.names
                and x >= -1
                and y >= -1
                and width >= 1
                and height >= 1
                and x + width <= image_width + 1
                and y + height <= image_height + 1
                and 0 < thing['area'] < math.inf
            )
        except (TypeError, KeyError, ValueError):
            return False

    def _examine(self, thing: Any, number: int) -> None:
        """Says what is wrong with an annotation."""
        where, error = self.data.annotations, self.findings.error
        if not isinstance(thing, dict):
            error(
                'annotations without what mmdet needs',
                f'{where}: annotation number {number}: expected an object, got {_short(thing)}.',
            )
            return
        me = self._name(thing, number)
        for key, is_right, expected in (
            ('id', _is_id, 'a number'),
            ('image_id', _is_id, 'the id of an image'),
            ('category_id', _is_id, 'the id of a category'),
            ('area', _is_number, 'a number of pixels'),
            ('bbox', _is_box, 'four numbers (x, y, width, height)'),
        ):
            if not is_right(thing.get(key)):
                came = _short(thing[key]) if key in thing else 'no such key'
                error(
                    'annotations without what mmdet needs',
                    f'{me}: expected {expected} under {key!r}, got {came}.',
                )
                return
        box, area = thing['bbox'], thing['area']
        text = f'bbox {_short(box)} (x, y, width, height)'
        if thing['category_id'] not in self.names:
            error(
                'unknown categories',
                f'{me}: category_id {thing["category_id"]} is none of the categories of the file.',
            )
        if not all(math.isfinite(value) for value in (*box, area)):
            error('boxes that are not finite', f'{me}: {text} and area {area} must be finite.')
            return
        if max(map(abs, box)) > MAX_COORDINATE:
            error('huge boxes', f'{me}: {text} goes beyond {MAX_COORDINATE:,.0f} pixels.')
            return
        if min(box[2:]) < 0:
            error('boxes of negative size', f'{me}: {text} has a negative size.')
            return
        if thing['image_id'] not in self.sizes:
            self._leave_out(
                'annotations of missing images',
                f'{me}: there is no image {thing["image_id"]} in the file.',
            )
            return
        image_width, image_height = self.sizes[thing['image_id']]
        picture = f'its picture of {image_width}x{image_height} pixels (width x height)'
        x, y, width, height = box
        if width < 1 or height < 1 or area <= 0:
            self._leave_out(
                'boxes without area', f'{me}: {text} of area {area} is less than a pixel.'
            )
        elif x >= image_width or y >= image_height or x + width <= 0 or y + height <= 0:
            self._leave_out('boxes outside their pictures', f'{me}: {text} is outside {picture}.')
        elif (
            x < -1 or y < -1 or x + width > image_width + 1 or y + height > image_height + 1
        ):  # a pixel is rounding
            self._leave_out(
                'boxes that stick out of their pictures',
                f'{me}: {text} sticks out of {picture}. Are these two corners instead?',
            )

    def _leave_out(self, kind: str, line: str) -> None:
        self.left_out.setdefault(kind, []).append(line)

    def _name(self, thing: dict, number: int | None = None) -> str:
        identity, image = thing.get('id'), thing.get('image_id')
        which = identity if _is_id(identity) else f'number {number}'
        of_image = f' of image {image}' if _is_id(image) else ''
        return f'{self.data.annotations}: annotation {which}{of_image}'

    def _check_masks(self, things: list[dict]) -> None:
        polygons, others = [], []
        for thing in things:
            mask = thing.get('segmentation')
            (polygons if isinstance(mask, list) and mask else others).append(thing)
        if not _are_coordinates(thing['segmentation'] for thing in polygons):
            good = []
            for thing in polygons:
                if self._check_coordinates(thing):
                    good.append(thing)
            polygons = good
        if not self.data.has_masks:
            return
        for thing in polygons:
            lengths = list(map(len, thing['segmentation']))
            if min(lengths) < 4:
                self.findings.error(
                    'polygons without points',
                    f'{self._name(thing)}: a polygon needs x and y of at least three points, got '
                    f'{min(lengths)} numbers.',
                )
            elif all(length < 6 or length % 2 for length in lengths):
                self._leave_out(
                    'polygons of two points or an odd number of coordinates',
                    f'{self._name(thing)}: a polygon needs x and y of at least three points, got '
                    f'{lengths[0]} numbers; the object would be ignored.',
                )
        for thing in others:
            self._check_other_mask(thing)

    def _check_coordinates(self, thing: dict) -> bool:
        """Whether the polygons of an annotation are lists of reasonable numbers."""
        mask = thing['segmentation']
        if _are_coordinates([mask]):
            return True
        me = self._name(thing)
        try:
            flat = array('d', chain.from_iterable(mask))
        except (TypeError, OverflowError):
            flat = None
        if flat is None or any(not isinstance(polygon, list) for polygon in mask):
            self.findings.error(
                'polygons that are not lists of numbers',
                f'{me}: expected polygons [[x1, y1, x2, y2, ...], ...] under '
                f"'segmentation', got {_short(mask)}.",
            )
        else:
            worst = next(value for value in flat if not abs(value) <= MAX_COORDINATE)
            self.findings.error(
                'polygons that are not finite, or huge',
                f'{me}: polygon coordinate {worst} must be finite and within '
                f'{MAX_COORDINATE:,.0f} pixels; it would end the process inside pycocotools.',
            )
        return False

    def _check_other_mask(self, thing: dict) -> None:
        mask, me = thing.get('segmentation'), self._name(thing)
        if not mask:
            came = _short(mask) if 'segmentation' in thing else 'no such key'
            self.findings.error(
                'annotations without a mask',
                f"{me}: the config needs masks; expected polygons or RLE under 'segmentation', "
                f'got {came}.',
            )
            return
        counts = mask.get('counts') if isinstance(mask, dict) else None
        if not isinstance(counts, list | str) or not isinstance(mask.get('size'), list):
            self.findings.error(
                'masks of an unknown form',
                f"{me}: expected polygons or RLE (a dict of 'size' and 'counts') under "
                f"'segmentation', got {_short(mask)}.",
            )
            return
        size = self.sizes.get(thing.get('image_id'))
        if size is None:
            return
        width, height = size
        if mask['size'] != [height, width]:
            self.findings.error(
                'RLE masks of another size than their pictures',
                f'{me}: RLE of size {_short(mask["size"])}, its picture has [height, width] '
                f'[{height}, {width}].',
            )
        elif isinstance(counts, list) or self.deep:
            pixels = _rle_pixels(counts)
            if pixels != height * width:
                self.findings.error(
                    'RLE masks with wrong counts',
                    f'{me}: RLE counts must be whole numbers that add up to {height * width} '
                    f'pixels, got {"something else" if pixels is None else pixels}.',
                )


def _are_coordinates(masks: Iterable[list]) -> bool:
    """Whether all polygons of all masks hold numbers within reason, and nothing else."""
    try:
        # array, not numpy, which would take text for numbers.
        flat = array('d', chain.from_iterable(chain.from_iterable(masks)))
    except (TypeError, OverflowError):
        return False
    return not flat or bool(np.abs(np.frombuffer(flat)).max() <= MAX_COORDINATE)


def _rle_pixels(counts: list | str) -> int | None:
    """Pixels that a run-length code covers, None if it is no such code.

    Compressed counts have 6 bits a character, 5 of the number and one for "goes on", with the sign
    in the last; from the fourth on they are differences to the last but one
    (``rleFrString`` of pycocotools' ``maskApi.c`` defines the format).
    """
    if isinstance(counts, str):
        decoded, value, shift = [], 0, 0
        for character in counts:
            bits = ord(character) - 48
            if not 0 <= bits < 64:
                return None
            value |= (bits & 31) << shift
            shift += 5
            if not bits & 32:
                value -= (bits & 16) << (shift - 4)
                decoded.append(value + (decoded[-2] if len(decoded) > 2 else 0))
                value, shift = 0, 0
        if shift:
            return None
        counts = decoded
    if any(not isinstance(count, int) or count < 0 for count in counts):
        return None
    return sum(counts)


# --- Files ----------------------------------------------------------------------------------


def _present(
    paths: list[tuple[str, Any]], where: str, findings: Findings, what: str = 'picture'
) -> list[tuple[str, Any]]:
    """Those of the files that are there; reads each folder once instead of asking for each."""
    listings: dict[str, Collection[str]] = {}
    present = []
    for path, about in paths:
        folder, name = os.path.split(path)
        if folder not in listings:
            try:
                listings[folder] = set(os.listdir(folder))
            except OSError:
                listings[folder] = ()
        # Some file systems take names in another case.
        if name in listings[folder] or os.path.isfile(path):
            present.append((path, about))
        else:
            findings.error(f'{what}s that are missing', f'{path}: is missing; {where} needs it.')
    return present


def _sample(items: Sequence, deep: bool, most: int) -> Iterator[Any]:
    """All items, or some of them, evenly spaced, until the time is over."""
    if deep or not items:
        yield from items
        return
    chosen = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    # In an order that covers the whole range early.
    end = time.monotonic() + MAX_SECONDS
    for index in np.concatenate([chosen[start::8] for start in range(8)]):
        yield items[index]
        if time.monotonic() > end:
            return


def _check_picture(
    path: str,
    declared: tuple[float, float] | None,
    pictures: Pictures,
    deep: bool,
    findings: Findings,
) -> None:
    """Reads a picture's header, or all of it, and compares its size with the annotations."""
    try:
        header = read_picture(path, deep)[0]
    except ValueError as error:
        findings.error('pictures that cannot be read', f'{path}: {error}')
        return
    except Image.DecompressionBombError:
        findings.note('huge pictures', f'{path}: is too large to be looked at.')
        return
    width, height = header.size
    orientation = header.orientation if pictures.turns else 1
    if orientation >= 5:
        width, height = height, width
    if declared is not None and (width, height) != declared:
        said = f'{declared[0]}x{declared[1]}'
        if orientation >= 5 and declared == (height, width):
            findings.error(
                'EXIF-rotated pictures whose boxes are not',
                f'{path}: its EXIF orientation ({orientation}) turns it to {width}x{height} '
                f'pixels (width x height), and its annotations are for {said}, so that boxes '
                "would be misplaced. Set color_type='color_ignore_orientation' of "
                'LoadImageFromFile, or store the picture upright.',
            )
        else:
            findings.error(
                'pictures of another size than declared',
                f'{path}: has {width}x{height} pixels (width x height), its annotations say '
                f'{said}.',
            )
    elif orientation != 1:
        findings.note(
            'EXIF-rotated pictures',
            f'{path}: is turned by its EXIF orientation ({orientation}) when it is loaded; '
            'annotations have to be those of the turned picture.',
        )
    short, long = sorted((width, height))
    if pictures.longest is not None and short * pictures.longest / long < 0.5:
        findings.error(
            'pictures too narrow to be resized',
            f'{path}: {width}x{height} pixels (width x height), resized to a longer side of '
            f'{pictures.longest}, would have a side of 0 pixels.',
        )
    elif short < max(pictures.min_size, 8):
        findings.note('tiny pictures', f'{path}: has {width}x{height} pixels (width x height).')
    _note_mode(path, header, pictures, findings)


def _note_mode(path: str, header: Header, pictures: Pictures, findings: Findings) -> None:
    """Says how a picture's pixels are stored, if not as everyone's are."""
    if header.is_animated:
        findings.note('animated pictures', f'{path}: is animated; its first frame is used.')
    is_deep = header.mode.startswith('I')
    if problem := unfit_pixels(header, pictures.backend):
        kind, reason = problem
        findings.error(kind, f'{path}: {reason}')
    elif is_deep or header.mode in CONVERTED:
        how = '16-bit gray' if is_deep else CONVERTED[header.mode]
        findings.note(
            f'pictures {how}',
            f'{path}: is {how}; it is converted to three channels of 8 bits.',
        )


def unfit_pixels(header: Header, backend: str) -> tuple[str, str] | None:
    """What keeps a loader from giving a picture as it looks, as a kind and part of a sentence."""
    if header.mode == 'F':
        return (
            'pictures of floating point numbers',
            'its pixels are floating point numbers; expected 8 or 16 bits a channel.',
        )
    if header.mode.startswith('I') and backend == 'pillow':
        return (
            '16-bit gray pictures',
            "has 16 bits a pixel, which imdecode_backend='pillow' clips to white. Leave it out, "
            "or set it to 'cv2'.",
        )
    return None


def why_unreadable(path: str) -> str | None:
    """Why a picture cannot be decoded, as part of a sentence; None if it can."""
    try:
        read_picture(path, deep=True)
    except ValueError as error:
        return str(error)
    except Image.DecompressionBombError:
        return 'is too large.'
    return None


def read_picture(path: str, deep: bool) -> tuple[Header, np.ndarray | None]:
    """A picture's header, and its pixels if it was decoded.

    Args:
        path: of the file.
        deep: whether it is decoded; without, that is done only where its end is missing.

    Raises:
        ValueError: what is wrong with it.
        DecompressionBombError: it is too large to be decoded.
    """
    try:
        if os.path.getsize(path) == 0:
            raise ValueError('is empty (0 bytes).')
        with open(path, 'rb') as file:
            start = file.read(16)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # large pictures, and odd tags, are no news here
            with Image.open(path) as image:
                pixels = None
                animated = getattr(image, 'is_animated', False)
                header = Header(image.size, image.mode, _orientation(image), animated)
                if deep or not _has_end(path, image.format):
                    pixels = np.asarray(image)
                return header, pixels
    except FileNotFoundError:
        raise ValueError('is missing.') from None
    except PermissionError:
        raise ValueError('may not be read: its permissions forbid it.') from None
    except Image.UnidentifiedImageError:
        if start.startswith(SIGNATURES):
            raise ValueError('is damaged: it begins as a picture, but has no header.') from None
        raise ValueError(f'is no picture; it begins with {start!r}.') from None
    except (OSError, SyntaxError, EOFError, struct.error) as error:
        raise ValueError(f'is cut off or damaged ({error}).') from None


def _has_end(path: str, form: str | None) -> bool:
    """Whether a JPEG or PNG file ends as it should; other forms are taken to."""
    end = {'JPEG': b'\xff\xd9', 'PNG': b'IEND'}.get(form or '')
    if end is None:
        return True
    with open(path, 'rb') as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(file.tell() - 64, 0))
        return end in file.read()


def _orientation(image: Image.Image) -> int:
    # For a PNG without it, Pillow would decode the picture to look behind its pixels.
    if image.format == 'PNG' and 'exif' not in image.info:
        return 1
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError):
        return 1
    return orientation if orientation in range(1, 9) else 1


# --- Label maps -----------------------------------------------------------------------------


def _listed_names(data: SegmentationData, findings: Findings) -> list[str]:
    """Paths of pictures below their folder."""
    if data.list_file is None:
        names = []
        for folder, _, files in os.walk(data.images, followlinks=True):
            below = os.path.relpath(folder, data.images)
            names += [
                os.path.normpath(os.path.join(below, name))
                for name in files
                if name.endswith(data.image_suffix)
            ]
        return sorted(names)
    try:
        lines = Path(data.list_file).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        findings.error('lists that cannot be read', f'{data.list_file}: cannot be read: {error}.')
        return []
    names = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name or leaves_folder(name):
            findings.error(
                'paths that leave the data root',
                f'{data.list_file}: line {number}: expected the name of a picture below '
                f'{data.images}, got {name!r}.',
            )
        else:
            names.append(name + data.image_suffix)
    return names


def _check_semantic_maps(
    data: CocoData, files: Iterable[tuple[str, Any]], findings: Findings
) -> None:
    """Whether every picture has its label map."""
    maps = [
        (os.path.join(data.label_maps, name.rsplit('.', 1)[0] + data.label_map_suffix), None)
        for name, _ in files
    ]
    _present(maps, data.annotations, findings, 'label map')


def _check_label_map(
    path: str,
    label_map: str,
    data: SegmentationData,
    findings: Findings,
    counts: ClassCounts | None,
) -> None:
    """Decodes a label map, compares it with its picture and the classes, and counts pixels."""
    try:
        header, values = read_picture(label_map, deep=True)
    except (ValueError, Image.DecompressionBombError) as error:
        findings.error('label maps that cannot be read', f'{label_map}: {error}')
        return
    if values.ndim != 2:
        findings.error(
            'label maps of several channels',
            f'{label_map}: expected one channel of labels, got {values.shape[2]} '
            f'(mode {header.mode}).',
        )
        return
    try:
        about, _ = read_picture(path, deep=False)
    except (ValueError, Image.DecompressionBombError):
        about = header  # reported with the pictures
    turns = data.pictures.turns and about.orientation >= 5
    size = about.size[::-1] if turns else about.size
    if header.size != size:
        findings.error(
            'label maps of another size than their pictures',
            f'{label_map}: has {header.size[0]}x{header.size[1]} pixels (width x height), its '
            f'picture {size[0]}x{size[1]}.',
        )
    if counts is None:
        return
    found, pixels = _labels(values)
    begin = 1 if data.reduce_zero_label else 0
    last = begin + len(data.classes) - 1
    outside = found[(found != IGNORED_LABEL) & ((found > last) | (found < 0))]
    if len(outside):
        findings.error(
            'labels outside the classes',
            f'{label_map}: holds {_some(map(str, outside))}; labels are at most {last} '
            f'({len(data.classes)} classes'
            f'{", counted from 1" if data.reduce_zero_label else ""}), or {IGNORED_LABEL}.',
        )
    is_counted = found != IGNORED_LABEL
    counts.add_picture(np.where(is_counted, found - begin, -1), pixels)


def _labels(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a label map, int64 ``(L,)``, and their numbers of pixels, int64 ``(L,)``."""
    if values.dtype == np.uint8:  # np.unique would sort all pixels
        pixels = np.bincount(values.ravel(), minlength=256)
        return np.flatnonzero(pixels), pixels[pixels > 0]
    found, pixels = np.unique(values, return_counts=True)
    return found.astype(np.int64), pixels


# --- Values ---------------------------------------------------------------------------------


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _short(value: Any) -> str:
    """A value of any size in a few words."""
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _some(texts: Iterable[str]) -> str:
    """The first of many."""
    texts = list(texts)
    more = f' and {len(texts) - 5} more' if len(texts) > 5 else ''
    return ', '.join(texts[:5]) + more
