"""Annotations in COCO's form: reading them, and checking them as mmdet's ``CocoDataset`` does.

Coordinates are never handed to pycocotools, whose C code ends the process for such as are not
finite.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmfocal.utils.files import why_no_file

from .class_counts import ClassCounts
from .images import Entry, ImageData, check_files
from .report import Counts, Report, short, some

# Beyond any image. pycocotools takes memory for the whole range that a polygon covers, and from
# about 1e8 on it ends the process.
MAX_COORDINATE = 1e5
LIMIT = f'{MAX_COORDINATE:,.0f}'
# Bytes in memory for a byte of JSON, at least: COCO's training set takes 5.
JSON_GROWTH = 4
CHUNK = 10_000  # annotations that are looked at together


@dataclass(frozen=True, kw_only=True)
class CocoData(ImageData):
    """A data set as mmdet's ``CocoDataset`` reads it.

    Attributes:
        annotations: the JSON file.
        label_maps: folder with a label map for each image, None if they are not read.
        label_map_suffix: end of a label map's name, in place of the image's.
        has_masks: whether masks are read or evaluated.
        trains: whether it is trained on.
    """

    annotations: str
    label_maps: str | None = None
    label_map_suffix: str = '.png'
    has_masks: bool = False
    trains: bool = True


# --- Reading ----------------------------------------------------------------------------------


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
    if problem := why_no_file(path) or _exceeds_memory(os.path.getsize(path)):
        raise ValueError(problem)
    try:
        with _no_garbage_collection():
            content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f'cannot be read: {error.strerror or error}.') from error
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f'is cut off or damaged, no JSON ({error}). Copy or download it again.'
        ) from error
    if misfit := _misfit(content, LISTS):
        problem, came = misfit
        raise ValueError(f'{problem.format(came=came)} Is it in the form of COCO?')
    return CocoContent(*(content[name] for name in CocoContent._fields))


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


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value != '' and '\0' not in value


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max  # false for NaN


def _is_coordinate(value: Any) -> bool:
    return _is_number(value) and abs(value) <= MAX_COORDINATE


def _is_length(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_coordinate, value))


# Keys that are read, whether a value can be, and what it should be.
Keys = Sequence[tuple[str, Callable[[Any], bool], str]]
LISTS: Keys = [
    (name, lambda value: isinstance(value, list), 'a list') for name in CocoContent._fields
]
CATEGORY: Keys = (
    ('id', _is_id, 'a number'),
    ('name', lambda value: isinstance(value, str), 'a name'),
)
IMAGE: Keys = (
    ('id', _is_id, 'a number'),
    ('file_name', _is_path, 'a path'),
    ('width', _is_length, 'a number of pixels'),
    ('height', _is_length, 'a number of pixels'),
)
ANNOTATION: Keys = (
    ('id', _is_id, 'a number'),
    ('image_id', _is_id, 'the id of an image'),
    ('category_id', _is_id, 'the id of a category'),
    ('area', _is_number, 'a finite number of pixels'),
    ('bbox', _is_box, f'four finite numbers (x, y, width, height) within {LIMIT} pixels'),
)


def _misfit(value: Any, keys: Keys) -> tuple[str, str] | None:
    """Why a value is not an object with such keys: a sentence with ``{came}``, and what came."""
    if not isinstance(value, dict):
        return 'expected a JSON object, got {came}.', short(value)
    for key, is_right, expected in keys:
        if not is_right(value.get(key)):
            came = short(value[key]) if key in value else 'no such key'
            return f'expected {expected} under {key!r}, got {{came}}.', came
    return None


# --- Checking ---------------------------------------------------------------------------------


def check_coco(
    data: CocoData, report: Report, deep: bool = False, most: int | None = None
) -> Counts:
    """Looks through annotations in COCO's form, and the images and label maps that belong to them.

    Args:
        data: what is read, and how.
        report: takes what is found.
        deep: whether compressed masks and all files are decoded, see
            :func:`~.images.check_files`.
        most: images, and label maps, that are opened, see there.
    """
    where = data.annotations
    try:
        content = read_coco(where)
    except ValueError as error:
        report.error(where, '{error}', error=error)
        return Counts()
    names = _check_categories(data, content.categories, report)
    entries = _check_images(data, content.images, report)
    sizes = {identity: entry.size for identity, entry in entries.items()}
    _Annotations(data, sizes, names, report, deep).check(content.annotations)
    files = {entry.name: entry for entry in entries.values()}
    opened, num_maps = check_files(files.values(), where, data, report, deep, most)
    counts = None
    if not report.count('error'):
        counts = ClassCounts(data.classes or tuple(names.values()), 'boxes')
        # Crowds are not learned, and not counted.
        boxes = (each for each in content.annotations if not each.get('iscrowd'))
        counts.add_boxes((names[each['category_id']], each['image_id']) for each in boxes)
        counts.looked_at = counts.of = len(content.images)
        counts.note_absent(where, report)
    return Counts(len(content.images), opened, len(content.annotations), num_maps, counts)


def _check_categories(data: CocoData, categories: list, report: Report) -> dict[Any, str]:
    """Names by category id; compares them with the classes of the config."""
    where = data.annotations
    names: dict[Any, str] = {}
    for number, category in enumerate(categories):
        if misfit := _misfit(category, CATEGORY):
            problem, came = misfit
            report.error(f'{where}: category number {number}', problem, came=came)
        elif category['id'] in names or category['name'] in names.values():
            problem = 'is listed twice, or shares its name with another.'
            report.error(f'{where}: category {category["id"]} ({category["name"]!r})', problem)
        else:
            names[category['id']] = category['name']
    if data.classes is None or len(names) < len(categories):
        return names
    listed = [name for name in names.values() if name in data.classes]
    values = dict(
        absent=some(repr(name) for name in data.classes if name not in listed),
        wanted=some(map(repr, data.classes)),
        listed=some(map(repr, listed)),
        names=some(map(repr, names.values())),
    )
    numbers = 'mmdet numbers labels by the order of the file, so that classes would be mixed up.'
    if values['absent']:
        report.error(
            where,
            'has no categories named {absent}, which the config lists as classes; it has {names}. '
            f'{numbers} Correct metainfo=dict(classes=...) in every data set of the config, and '
            'num_classes of the heads.',
            **values,
        )
        return names
    if listed != list(data.classes):
        report.error(
            where,
            'its categories are in another order than the classes of the config: {listed}, not '
            f'{{wanted}}. {numbers} Set metainfo=dict(classes=...) of every data set of the '
            "config to the names in the file's order.",
            **values,
        )
    for name in names.values():
        if name not in data.classes:
            report.note(
                where, 'category {name!r} is no class of the config and is left out.', name=name
            )
    return names


def _check_images(data: CocoData, images: list, report: Report) -> dict[Any, Entry]:
    """Images by id."""
    where = data.annotations
    if not images:
        report.error(where, 'lists no images at all.')
    entries: dict[Any, Entry] = {}
    files: set[str] = set()
    for number, image in enumerate(images):
        if misfit := _misfit(image, IMAGE):
            problem, came = misfit
            report.error(f'{where}: image {_identity(image, number)}', problem, came=came)
            continue
        identity, name = image['id'], image['file_name']
        if identity in entries:
            report.error(
                f'{where}: image id {identity} ({name})',
                'is listed twice; one of both would be lost.',
            )
        if name in files:
            problem = 'is listed twice, under different image ids.'
            report.note(f'{where}: {name}', problem)
        files.add(name)
        label_map = None
        if data.label_maps:
            stem = name.rsplit('.', 1)[0]
            label_map = os.path.join(data.label_maps, stem + data.label_map_suffix)
        entries[identity] = Entry(name, label_map, (image['width'], image['height']))
    return entries


def _identity(value: Any, number: int) -> Any:
    """The id of an image or annotation, or else its place in the list."""
    identity = value.get('id') if isinstance(value, dict) else None
    return identity if _is_id(identity) else f'number {number}'


class _Annotations:
    """Checks of annotations.

    Args:
        data: what they belong to.
        sizes: width and height in pixels by image id.
        names: category names by id.
        report: takes what is found.
        deep: whether compressed masks are decoded.
    """

    def __init__(
        self,
        data: CocoData,
        sizes: dict[Any, tuple[float, float]],
        names: dict[Any, str],
        report: Report,
        deep: bool,
    ) -> None:
        self.data, self.sizes, self.names = data, sizes, names
        self.report, self.deep = report, deep

    def check(self, annotations: list) -> None:
        """Looks through all of them."""
        where, report = self.data.annotations, self.report
        if not annotations:
            add = report.error if self.data.trains else report.note
            add(where, 'lists no annotations at all.')
        ids = set()
        for start in range(0, len(annotations), CHUNK):
            whole = []
            for number, each in enumerate(annotations[start : start + CHUNK], start):
                if misfit := _misfit(each, ANNOTATION):
                    problem, came = misfit
                    report.error(self._name(each, number), problem, came=came)
                    continue
                whole.append(each)
                if each['id'] in ids:
                    me = f'{where}: annotation id {each["id"]}'
                    report.error(me, 'is listed twice; ids have to be unique.')
                ids.add(each['id'])
            if whole:
                self._check_boxes(whole)
                self._check_masks(whole)
        report.judge_rare(len(annotations))

    def _name(self, annotation: Any, number: int = 0) -> str:
        image = annotation.get('image_id') if isinstance(annotation, dict) else None
        of_image = f' of image {image}' if _is_id(image) else ''
        return f'{self.data.annotations}: annotation {_identity(annotation, number)}{of_image}'

    def _check_boxes(self, annotations: list[dict]) -> None:
        """Compares boxes and categories with the images and what is listed."""
        x, y, width, height = np.array([each['bbox'] for each in annotations], float).T
        area = np.array([each['area'] for each in annotations], float)
        sizes = [self.sizes.get(each['image_id'], (math.nan,) * 2) for each in annotations]
        image_width, image_height = np.array(sizes, float).T
        unknown = np.array([each['category_id'] not in self.names for each in annotations])
        outside = (x >= image_width) | (y >= image_height) | (x + width <= 0) | (y + height <= 0)
        over = np.maximum(x + width - image_width, y + height - image_height)
        error, rare = self.report.error, self.report.rare
        box = 'bbox {box} (x, y, width, height)'
        of_size = 'its image of {size} pixels (width x height)'
        # Of each annotation, the first that is true.
        problems = (
            (unknown, error, 'category_id {category} is none of the categories of the file.'),
            (np.minimum(width, height) < 0, error, f'{box} has a negative size.'),
            (np.isnan(image_width), rare, 'there is no image {image} in the file.'),
            (
                (np.minimum(width, height) < 1) | (area <= 0),
                rare,
                f'{box} of area {{area}} is less than a pixel.',
            ),
            (outside, rare, f'{box} is outside {of_size}.'),
            (  # a pixel is rounding
                (np.minimum(x, y) < -1) | (over > 1),
                rare,
                f'{box} sticks out of {of_size}. Are these two corners instead?',
            ),
        )
        told = np.zeros(len(annotations), bool)
        for is_wrong, add, problem in problems:
            for i in np.flatnonzero(is_wrong & ~told):
                each = annotations[i]
                add(
                    self._name(each),
                    problem,
                    box=each['bbox'],
                    area=each['area'],
                    category=each['category_id'],
                    image=each['image_id'],
                    size='{}x{}'.format(*sizes[i]),
                )
            told |= is_wrong

    def _check_masks(self, annotations: list[dict]) -> None:
        polygons, others = [], []
        for each in annotations:
            mask = each.get('segmentation')
            (polygons if isinstance(mask, list) and mask else others).append(each)
        if not _are_coordinates(each['segmentation'] for each in polygons):
            polygons = [each for each in polygons if self._has_coordinates(each)]
        if not self.data.has_masks:
            return
        for each in polygons:
            lengths = list(map(len, each['segmentation']))
            needs = 'a polygon needs x and y of at least three points, got {length} numbers'
            if min(lengths) < 4:
                self.report.error(self._name(each), f'{needs}.', length=min(lengths))
            elif all(length < 6 or length % 2 for length in lengths):
                problem = f'{needs}; the object would be ignored.'
                self.report.rare(self._name(each), problem, length=lengths[0])
        for each in others:
            self._check_other_mask(each)

    def _has_coordinates(self, annotation: dict) -> bool:
        """Whether the polygons of an annotation are lists of reasonable numbers."""
        mask = annotation['segmentation']
        if _are_coordinates([mask]):
            return True
        numbers = chain.from_iterable(each if isinstance(each, list) else [each] for each in mask)
        worst = next((each for each in numbers if not _is_coordinate(each)), mask[0])
        self.report.error(
            self._name(annotation),
            f'expected polygons [[x1, y1, x2, y2, ...], ...] of finite numbers within {LIMIT} '
            "pixels under 'segmentation', got {worst} in {mask}; others can end the process "
            'inside pycocotools.',
            worst=short(worst),
            mask=short(mask),
        )
        return False

    def _check_other_mask(self, annotation: dict) -> None:
        """Checks a mask that is no list of polygons."""
        mask, me, error = annotation.get('segmentation'), self._name(annotation), self.report.error
        counts = mask.get('counts') if isinstance(mask, dict) else None
        if not isinstance(counts, list | str) or not isinstance(mask.get('size'), list):
            error(
                me,
                "the config needs masks; expected polygons or RLE (a dict of 'size' and "
                "'counts') under 'segmentation', got {came}.",
                came=short(mask) if 'segmentation' in annotation else 'no such key',
            )
            return
        width, height = self.sizes.get(annotation['image_id'], (None, None))
        if width is None:
            return
        values = dict(size=[height, width], was=short(mask['size']), area=height * width)
        if mask['size'] != [height, width]:
            error(me, 'RLE of size {was}, its image has [height, width] {size}.', **values)
        elif isinstance(counts, list) or self.deep:
            pixels = _rle_pixels(counts)
            if pixels != height * width:
                values['was'] = 'something else' if pixels is None else pixels
                problem = 'counts of RLE must be whole numbers of sum {area}, got {was}.'
                error(me, problem, **values)


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

    Compressed counts have 6 bits a character: 5 of the number, with the sign in the last, and one
    that says whether more follow. From the fourth on they are differences to the last but one
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
