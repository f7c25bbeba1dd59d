"""Annotations in COCO's form, checked as mmdet's ``CocoDataset`` and ``CocoMetric`` read them.

Both read more than they look at, and take much for what it is not: mmdet drops what it cannot
use without a word, and pycocotools takes an annotation with id 0 for one that nothing matched.
Coordinates are never handed to pycocotools, whose C code ends the process for such as are not
finite.
"""

from __future__ import annotations

import os
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from .class_counts import ClassCounts
from .coco_file import POLYGON, read_lists
from .images import Entry, ImageData, check_files
from .report import Counts, Report, short, some

# Beyond any image; outlines are cut to it. pycocotools takes memory for the whole range that a
# polygon covers, and from about 1e8 on it ends the process.
MAX_COORDINATE = 1e5
LIMIT = f'{MAX_COORDINATE:,.0f}'
MAX_CODES = 10_000  # compressed masks that are measured; all if deep
# What people write for 0, and Python takes for true.
MEANS_NO = ('0', '0.0', 'false', 'f', 'no', 'n', 'none', 'null')
MISSING = object()


class Evaluation(NamedTuple):
    """How mmdet's ``CocoMetric`` reads annotations.

    Attributes:
        masks: whether it compares masks.
        classwise: whether it tells the precision of each class.
    """

    masks: bool = False
    classwise: bool = False


@dataclass(frozen=True, kw_only=True)
class CocoData(ImageData):
    """A data set as mmdet's ``CocoDataset`` reads it.

    Attributes:
        annotations: the JSON file.
        label_maps: folder with a label map for each image, None if they are not read.
        label_map_suffix: end of a label map's name, in place of the image's.
        has_masks: whether the pipeline loads masks.
        trains: whether it is trained on.
        filter_empty: whether images without annotations of the classes are left out.
        evaluation: how the file is evaluated with, None if it is not.
    """

    annotations: str
    label_maps: str | None = None
    label_map_suffix: str = '.png'
    has_masks: bool = False
    trains: bool = True
    filter_empty: bool = False
    evaluation: Evaluation | None = None


# --- Keys -------------------------------------------------------------------------------------


def _is_id(value: Any) -> bool:
    return isinstance(value, Hashable)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value != '' and '\0' not in value


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (
        isinstance(value, int) and abs(value) <= sys.float_info.max
    )


def _is_finite(value: Any) -> bool:
    return _is_number(value) and abs(value) <= sys.float_info.max  # false for NaN


def _is_coordinate(value: Any) -> bool:
    return _is_number(value) and abs(value) <= MAX_COORDINATE


def _is_length(value: Any) -> bool:
    return _is_finite(value) and not isinstance(value, bool) and value > 0


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_coordinate, value))


# Keys that are read, whether a value can be, and what it should be.
Keys = Sequence[tuple[str, Callable[[Any], bool], str]]
CATEGORY: Keys = (('id', _is_id, 'a number'), ('name', lambda value: True, 'a name'))
IMAGE: Keys = (
    ('id', _is_id, 'a number'),
    ('file_name', _is_path, 'a path'),
    ('width', _is_length, 'a number of pixels'),
    ('height', _is_length, 'a number of pixels'),
)
INDEX: Keys = (
    ('id', _is_id, 'a number'),
    ('image_id', _is_id, 'the id of an image'),
    ('category_id', _is_id, 'the id of a category'),
)
BOX = 'bbox', _is_box, f'four finite numbers (x, y, width, height) within {LIMIT} pixels'
LEARNED: Keys = (*INDEX, ('area', _is_number, 'a number of pixels'), BOX)
EVALUATED: Keys = (*INDEX, ('area', _is_finite, 'a finite number of pixels'), BOX)


def _misfit(value: Any, keys: Keys) -> tuple[str, str] | None:
    """Why a value is not an object with such keys: a sentence with ``{came}``, and what came."""
    if not isinstance(value, dict):
        return 'expected a JSON object, got {came}.', short(value)
    for key, is_right, expected in keys:
        if key not in value or not is_right(value[key]):
            came = short(value[key]) if key in value else 'no such key'
            return f'expected {expected} under {key!r}, got {{came}}.', came
    return None


def _identity(value: Any, number: int) -> Any:
    """The id of an image or annotation, or else its place in the list."""
    if isinstance(value, dict) and _is_id(value.get('id', [])):
        return value['id']
    return f'number {number}'


# --- Checking ---------------------------------------------------------------------------------


def check_coco(
    data: CocoData, report: Report, deep: bool = False, most: int | None = None
) -> Counts:
    """Looks through annotations in COCO's form, and the images and label maps that belong to them.

    Args:
        data: what is read, and how.
        report: takes what is found.
        deep: whether all compressed masks and all files are decoded, see
            :func:`~.images.check_files`.
        most: images, and label maps, that are opened, see there.
    """
    where = data.annotations
    parts = dict(
        categories=_Categories(data), images=_Images(data), annotations=_Annotations(data, deep)
    )
    try:
        # pycocotools does without annotations, such as files of images to be submitted have none.
        for name, items in read_lists(where, ('images', 'categories'), compact=True):
            if items is None and parts[name].count:
                problem = f'lists {name!r} several times, of which the last is read.'
                report.note(where, problem)
            if items is None:
                parts[name].clear()
            else:
                parts[name].add(items)
    except ValueError as error:
        report.error(where, '{error}', error=error)
        return Counts()
    categories, images, annotations = parts.values()
    labels = categories.check(bool(annotations.count))
    images.check()
    learned = annotations.check(images.entries, categories.names, labels)
    if data.evaluation:
        _check_ids(data, categories, images, annotations)
    for part in parts.values():
        report.take(part.report)
    files = {entry.name: entry for entry in images.entries.values()}
    opened, num_maps = check_files(files.values(), where, data, report, deep, most)
    counts = None
    if not report.count('error'):
        names = data.classes or tuple(str(name) for _, name in categories.pairs)
        counts = ClassCounts(names, 'boxes')
        counts.add_boxes(*learned)
        counts.looked_at = counts.of = images.count
        counts.note_absent(where, report)
    return Counts(images.count, opened, annotations.count, num_maps, counts, list(files))


class _Part:
    """A list of the file. Takes its items piece by piece; what is found waits in a report."""

    def __init__(self, data: CocoData) -> None:
        self.data, self.where = data, data.annotations
        self.clear()

    def clear(self) -> None:
        """Begins anew."""
        self.report, self.count = Report(), 0

    def add(self, items: list) -> None:
        """Takes items."""
        self.count += len(items)


class _Categories(_Part):
    """Categories.

    Attributes:
        names: by id.
        pairs: id and name of each, as listed.
    """

    def clear(self) -> None:
        super().clear()
        self.names: dict[Any, Any] = {}
        self.pairs: list[tuple[Any, Any]] = []

    def add(self, items: list) -> None:
        for number, category in enumerate(items, self.count):
            if misfit := _misfit(category, CATEGORY):
                problem, came = misfit
                self.report.error(f'{self.where}: category number {number}', problem, came=came)
            else:
                self.pairs.append((category['id'], category['name']))
        super().add(items)
        self.names = dict(self.pairs)

    def check(self, has_objects: bool) -> dict[Any, int]:
        """Compares them with the classes of the config; gives mmdet's label of each id."""
        for what, values in zip(('id', 'name'), zip(*self.pairs, strict=True), strict=False):
            for value in _repeated(values):
                problem = f'is the {what} of several categories.'
                self.report.note(f'{self.where}: category {short(value)}', problem)
        classes = self.data.classes
        pairs = [pair for pair in self.pairs if classes is None or pair[1] in classes]
        if classes is not None and (self.pairs or has_objects):
            self._compare(pairs, classes)
        return {identity: label for label, (identity, _) in enumerate(pairs)}

    def _compare(self, pairs: list[tuple[Any, str]], classes: tuple[str, ...]) -> None:
        listed = [name for _, name in pairs]
        values = dict(
            absent=some(repr(name) for name in classes if name not in listed),
            wanted=some(map(repr, classes)),
            listed=some(map(repr, listed)),
            names=some(repr(name) for _, name in self.pairs),
        )
        numbers = (
            'mmdet numbers labels by the order of the file, so that classes would be mixed up.'
        )
        begins = bool(listed) and listed == list(classes[: len(listed)])
        if len(dict(pairs)) < len(pairs) or len(set(listed)) < len(listed):
            problem = f'lists classes of the config several times: {{listed}}. {numbers}'
            self.report.error(self.where, f'{problem} Join these categories.', **values)
        elif values['absent'] and begins and self.data.evaluation:
            self.report.error(
                self.where,
                'has no categories named {absent}, which the config lists as classes; evaluation '
                'ends when the model finds one of them. Add them to the categories of the file.',
                **values,
            )
        elif values['absent'] and not begins:
            self.report.error(
                self.where,
                'has no categories named {absent}, which the config lists as classes; it has '
                f'{{names}}. {numbers} Correct metainfo=dict(classes=...) in every data set of '
                'the config, and num_classes of the heads.',
                **values,
            )
        elif not begins:
            self.report.error(
                self.where,
                'its categories are in another order than the classes of the config: {listed}, '
                f'not {{wanted}}. {numbers} Set metainfo=dict(classes=...) of every data set of '
                "the config to the names in the file's order.",
                **values,
            )
        for _, name in self.pairs:
            if name not in classes:
                problem = 'category {name!r} is no class of the config and is left out.'
                self.report.note(self.where, problem, name=name)


def _repeated(values: Iterable) -> list:
    """Those that come more than once; what cannot be counted is left out."""
    counts = Counter(value for value in values if isinstance(value, Hashable))
    return [value for value, count in counts.items() if count > 1]


class _Images(_Part):
    """Images.

    Attributes:
        entries: by id.
    """

    def clear(self) -> None:
        super().clear()
        self.entries: dict[Any, Entry] = {}
        self._files: set[str] = set()

    def add(self, items: list) -> None:
        where, report = self.where, self.report
        for number, image in enumerate(items, self.count):
            if misfit := _misfit(image, IMAGE):
                problem, came = misfit
                report.error(f'{where}: image {_identity(image, number)}', problem, came=came)
                continue
            identity, name = image['id'], image['file_name']
            entry = Entry(name, self._label_map(name), (image['width'], image['height']))
            me = f'{where}: image id {identity} ({name})'
            if self.entries.get(identity, entry) != entry:
                report.error(me, 'is listed twice; one of both would be lost.')
            elif identity in self.entries:
                report.note(me, 'is listed twice, with the same content.')
            elif name in self._files:
                report.note(f'{where}: {name}', 'is listed twice, under different image ids.')
            self._files.add(name)
            self.entries[identity] = entry
        super().add(items)

    def _label_map(self, name: str) -> str | None:
        if not self.data.label_maps:
            return None
        stem = name.rsplit('.', 1)[0]
        return os.path.join(self.data.label_maps, stem + self.data.label_map_suffix)

    def check(self) -> None:
        """Says whether there are any."""
        if not self.count:
            self.report.error(self.where, 'lists no images at all.')


class _Annotations(_Part):
    """Annotations, of which only what is needed later is kept, as columns.

    Args:
        data: what they belong to.
        deep: whether all compressed masks are decoded.

    Attributes:
        ids: of the annotations that have all keys.
    """

    def __init__(self, data: CocoData, deep: bool) -> None:
        self._deep = deep
        self._keys = EVALUATED if data.evaluation else LEARNED
        super().__init__(data)

    def clear(self) -> None:
        super().clear()
        self.ids, self._images, self._categories = [], [], []
        self._boxes, self._areas = array('d'), array('d')
        self._ignored, self._crowds = bytearray(), bytearray()
        # By the place in the columns: what is wrong, in training and in evaluation; size and
        # number of pixels of run-length codes.
        self._masks: dict[int, _Mask] = {}
        self._codes: dict[int, tuple[Any, int | None]] = {}
        self._num_decoded = 0

    def add(self, items: list) -> None:
        if not self._append(items):
            whole = [each for i, each in enumerate(items, self.count) if self._fits(each, i)]
            self._append(whole)
        super().add(items)

    def _fits(self, annotation: Any, number: int) -> bool:
        is_read = not isinstance(annotation, dict) or not annotation.get('ignore')
        misfit = _misfit(annotation, self._keys if is_read or self.data.evaluation else INDEX)
        if misfit:
            image = annotation.get('image_id') if isinstance(annotation, dict) else None
            me = self._name(_identity(annotation, number), image)
            self.report.error(me, misfit[0], came=misfit[1])
        return not misfit and is_read

    def _name(self, identity: Any, image: Any) -> str:
        of_image = f' of image {image}' if image is not None and _is_id(image) else ''
        return f'{self.where}: annotation {identity}{of_image}'

    def _append(self, annotations: list[dict]) -> bool:
        """Adds annotations to the columns if all of them have all keys."""
        try:
            ids, images, categories = (
                [each[key] for each in annotations] for key in ('id', 'image_id', 'category_id')
            )
            # array, not numpy, which would take text for numbers.
            areas = array('d', [each['area'] for each in annotations])
            boxes = [each['bbox'] for each in annotations]
            flat = array('d', chain.from_iterable(boxes))
            set().union(ids, images, categories)  # TypeError if one is not hashable
        except (TypeError, KeyError, OverflowError):
            return False
        finite = np.isfinite(areas).all() or not self.data.evaluation
        near = not flat or np.abs(np.frombuffer(flat)).max() <= MAX_COORDINATE
        if not (finite and near and set(map(len, boxes)) <= {4}):
            return False
        first = len(self.ids)
        self.ids += ids
        self._images += images
        self._categories += categories
        self._areas += areas
        self._boxes += flat
        self._ignored += bytes(bool(each.get('ignore')) for each in annotations)
        self._add_crowds(annotations)
        self._add_masks(annotations, first)
        return True

    def _add_crowds(self, annotations: list[dict]) -> None:
        values = [each.get('iscrowd', MISSING) for each in annotations]
        for each, value in zip(annotations, values, strict=True):
            if value not in (0, 1) and not self._is_flag(value):
                came = 'no such key' if value is MISSING else short(value)
                me = self._name(each['id'], each['image_id'])
                self.report.error(me, "expected 0 or 1 under 'iscrowd', got {came}.", came=came)
        self._crowds += bytes(value is not MISSING and bool(value) for value in values)

    def _is_flag(self, value: Any) -> bool:
        """Whether a value that is neither 0 nor 1 is read as it is meant."""
        if self.data.evaluation:  # which takes int(value) and bool(value)
            try:
                return bool(int(value)) == bool(value)
            except (TypeError, ValueError, OverflowError):
                return False
        if isinstance(value, str):
            return value.strip().lower() not in MEANS_NO
        return value is MISSING or not value or isinstance(value, int | float)

    # --- Masks --------------------------------------------------------------------------------

    def _add_masks(self, annotations: list[dict], first: int) -> None:
        evaluation = self.data.evaluation
        needed = self.data.has_masks or (evaluation is not None and evaluation.masks)
        polygons = []
        for number, each in enumerate(annotations, first):
            mask = each.get('segmentation', MISSING)
            if isinstance(mask, dict) and POLYGON in mask:
                if needed:
                    self._add_lengths(number, [mask[POLYGON]])
            elif isinstance(mask, list) and mask:
                polygons.append((number, mask))
            elif needed:
                self._add_other_mask(number, mask)
        if not _are_coordinates(mask for _, mask in polygons):
            polygons = [item for item in polygons if self._has_coordinates(*item)]
        if needed:
            for number, mask in polygons:
                self._add_lengths(number, list(map(len, mask)))

    def _add_lengths(self, number: int, lengths: list[int]) -> None:
        """Remembers polygons by their numbers of numbers if any of them cannot be used."""
        usable = [length for length in lengths if length >= 6 and length % 2 == 0]
        if usable and lengths[0] > 4:
            return
        evaluation, result = self.data.evaluation, 'the object would be ignored.'
        if (
            evaluation and evaluation.masks and lengths[0] <= 4
        ):  # which pycocotools takes for a box
            result = 'evaluation would end on it.'
        self._masks[number] = _Mask(
            f'a polygon needs x and y of at least three points, got {{came}} numbers; {result}',
            str(lengths[0]),
            learned=None if usable else 'rare',
            evaluated='error' if lengths[0] <= 4 else None,
        )

    def _has_coordinates(self, number: int, mask: list) -> bool:
        """Whether the polygons of an annotation are lists of reasonable numbers."""
        if _are_coordinates([mask]) or _are_coordinates([_as_numbers(mask)]):
            return True
        numbers = chain.from_iterable(each if isinstance(each, list) else [each] for each in mask)
        worst = next((each for each in numbers if not _is_coordinate(each)), mask[0])
        self.report.error(
            self._name(self.ids[number], self._images[number]),
            f'expected polygons [[x1, y1, x2, y2, ...], ...] of finite numbers within {LIMIT} '
            "pixels under 'segmentation', got {worst} in {mask}; others can end the process "
            'inside pycocotools.',
            worst=short(worst),
            mask=short(mask),
        )
        return False

    def _add_other_mask(self, number: int, mask: Any) -> None:
        """Remembers a mask that is no list of polygons."""
        counts = mask.get('counts') if isinstance(mask, dict) else None
        if isinstance(counts, list | str) and mask.get('size') is not None:
            pixels = MISSING
            if isinstance(counts, list) or self._deep or self._num_decoded < MAX_CODES:
                pixels = rle_pixels(counts)
                self._num_decoded += isinstance(counts, str)
            self._codes[number] = mask['size'], pixels
            return
        self._masks[number] = _Mask(
            "the config needs masks; expected polygons or RLE (a dict of 'size' and 'counts') "
            "under 'segmentation', got {came}.",
            'no such key' if mask is MISSING else short(mask),
            # mmdet ignores objects with such a dict.
            learned='rare' if isinstance(mask, dict) and mask else 'error',
            evaluated='error',
        )

    # --- With images and categories -----------------------------------------------------------

    def check(
        self, entries: Mapping[Any, Entry], names: Mapping[Any, Any], labels: Mapping[Any, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compares all with the images and categories.

        Args:
            entries: images by id.
            names: of categories by id.
            labels: of the categories that are classes, by id.

        Returns:
            Labels and numbers of images, int ``(N,)``, of the boxes that are learned.
        """
        numbers = {identity: number for number, identity in enumerate(entries)}
        images = np.array([numbers.get(each, -1) for each in self._images], int)
        label = np.array([labels.get(each, -1) for each in self._categories], int)
        sizes = [*(entry.size for entry in entries.values()), (np.nan, np.nan)]
        sizes = np.array(sizes, float)[images]
        ignored, crowds = (np.array(each, bool) for each in (self._ignored, self._crowds))
        if self.data.evaluation:  # which reads them nevertheless
            ignored[:] = False
        for identity in _repeated(self.ids):
            me = f'{self.where}: annotation id {short(identity)}'
            self.report.error(me, 'is listed twice; ids have to be unique.')
        drops = self._check_boxes(sizes, names, ignored)
        is_class = (label >= 0) & (images >= 0)
        kept = is_class & ~drops & ~np.array(self._ignored, bool)
        self._check_masks(sizes, kept, is_class)
        self.report.judge_rare(self.count)
        learned = kept & ~crowds
        if self.data.trains:
            self._check_filters(entries, images[is_class], learned.any())
        elif not self.count:
            self.report.note(self.where, 'lists no annotations at all.')
        elif self.data.evaluation and not (is_class & ~crowds).any():
            problem = 'has no objects that are evaluated; crowds are not. AP will be -1.'
            self.report.note(self.where, problem)
        return label[learned], images[learned]

    def _check_boxes(
        self, sizes: np.ndarray, names: Mapping[Any, Any], ignored: np.ndarray
    ) -> np.ndarray:
        """Tells what is wrong with boxes; gives whether mmdet drops each, bool ``(N,)``."""
        x, y, width, height = np.asarray(self._boxes).reshape(-1, 4).T
        area = np.asarray(self._areas)
        image_width, image_height = sizes.T
        unknown = np.array([each not in names for each in self._categories], bool)
        inner_width = np.minimum(x + width, image_width) - np.maximum(x, 0)
        inner_height = np.minimum(y + height, image_height) - np.maximum(y, 0)
        over = np.maximum(x + width - image_width, y + height - image_height)
        small = (np.minimum(width, height) < 1) | (area <= 0)
        outside = np.maximum(inner_width, 0) * np.maximum(inner_height, 0) == 0
        box = 'bbox {box} (x, y, width, height)'
        of_size = 'its image of {size} pixels (width x height)'
        # Of each annotation, the first that is true.
        problems = (
            (unknown, 'category_id {category} is none of the categories of the file.'),
            (np.minimum(width, height) < 0, f'{box} has a negative size.'),
            (np.isnan(image_width), 'there is no image {image} in the file.'),
            (small, f'{box} of area {{area}} is less than a pixel.'),
            (outside, f'{box} is outside {of_size}.'),
            (  # a pixel is rounding
                (np.minimum(x, y) < -1) | (over > 1),
                f'{box} sticks out of {of_size}. Are these two corners instead?',
            ),
        )
        told = ignored.copy()
        for is_wrong, problem in problems:
            for i in np.flatnonzero(is_wrong & ~told):
                self.report.rare(
                    self._name(self.ids[i], self._images[i]),
                    problem,
                    box=f'[{", ".join(map(_plain, self._boxes[4 * i : 4 * i + 4]))}]',
                    area=_plain(self._areas[i]),
                    category=short(self._categories[i]),
                    image=short(self._images[i]),
                    size='x'.join(map(_plain, sizes[i])),
                )
            told |= is_wrong
        return small | outside

    def _check_masks(self, sizes: np.ndarray, kept: np.ndarray, is_class: np.ndarray) -> None:
        """Tells what is wrong with the masks that are read."""
        evaluates = self.data.evaluation is not None and self.data.evaluation.masks
        is_loaded = kept & self.data.has_masks
        is_compared = is_class & evaluates
        for i, mask in self._masks.items():
            levels = {mask.learned} if is_loaded[i] else set()
            levels |= {mask.evaluated} if is_compared[i] else set()
            for level in ('error', 'rare'):
                if level in levels:
                    add = getattr(self.report, level)
                    add(self._name(self.ids[i], self._images[i]), mask.problem, came=mask.came)
                    break
        for i, (was, pixels) in self._codes.items():
            if not (is_loaded[i] or is_compared[i]):
                continue
            me, size = self._name(self.ids[i], self._images[i]), sizes[i, ::-1].tolist()
            area = size[0] * size[1]
            if was != size:
                problem = 'RLE of size {was}, its image has [height, width] {size}.'
                size = f'[{", ".join(map(_plain, size))}]'
                self.report.error(me, problem, was=short(was), size=size)
            elif pixels is not MISSING and pixels != area:
                was = 'something else' if pixels is None else pixels
                problem = 'counts of RLE must be whole numbers of sum {area}, got {was}.'
                self.report.error(me, problem, area=_plain(area), was=was)

    def _check_filters(
        self, entries: Mapping[Any, Entry], images: np.ndarray, learns: bool
    ) -> None:
        """Counts what mmdet's ``filter_data`` leaves to learn from.

        Args:
            entries: images by id.
            images: numbers of those with annotations of the classes.
            learns: whether there is a box to be learned.
        """
        data, num_images = self.data, len(entries)
        with_objects = np.zeros(num_images, bool)
        with_objects[images] = True
        empty = ~with_objects & data.filter_empty
        small = np.array([min(entry.size) < data.min_size for entry in entries.values()], bool)
        if num_images and (empty | small).all():
            reasons = {
                'have no annotations of the classes (filter_empty_gt=True)': empty,
                f'have a side below {data.min_size} pixels (min_size)': small,
            }
            self.report.error(
                self.where,
                'no image is left to train on: of {images}, {reasons}. Correct the data, or '
                'filter_cfg of the data set.',
                images=f'{num_images:,}',
                reasons=' and '.join(
                    f'{which.sum():,} {why}' for why, which in reasons.items() if which.any()
                ),
            )
        elif not self.count:
            problem = 'lists no annotations at all; a model learns from it to find nothing.'
            self.report.note(self.where, problem)
        elif not learns:
            problem = 'has no objects that are learned; a model learns from it to find nothing.'
            self.report.note(self.where, problem)


class _Mask(NamedTuple):
    """What is wrong with a mask, and of which level that is: 'error', 'rare', or None."""

    problem: str
    came: str
    learned: str | None
    evaluated: str | None


def _check_ids(
    data: CocoData, categories: _Categories, images: _Images, annotations: _Annotations
) -> None:
    """Tells ids that evaluation misreads."""
    for part, what, ids in (
        (images, 'images', list(images.entries)),
        (categories, 'categories', list(categories.names)),
    ):
        if not _can_be_sorted(ids):
            part.report.error(
                part.where,
                'evaluation sorts the ids of {what} with numpy, which does not give these back: '
                '{ids}. Number them from 1.',
                what=what,
                ids=some(map(short, ids)),
            )
    for identity in categories.names if data.evaluation.classwise else ():
        # pycocotools' loadCats, which takes a text for a list of ids.
        if type(identity) is not int and not (isinstance(identity, str) and len(identity) == 1):
            problem = 'category id {id}: expected an integer for evaluation with classwise=True.'
            categories.report.error(categories.where, problem, id=short(identity))
    for identity in annotations.ids:
        if isinstance(identity, int) and 0 < abs(identity) < sys.float_info.max:
            continue
        me = f'{annotations.where}: annotation id {short(identity)}'
        try:
            is_zero = identity is not None and float(identity) == 0
        except (TypeError, ValueError, OverflowError):
            annotations.report.error(me, 'evaluation needs a number. Number them from 1.')
            continue
        if is_zero:
            annotations.report.error(
                me,
                'evaluation takes 0 for an object that nothing matched, so that a prediction that '
                'is right counts as wrong. Number annotations from 1.',
            )


def _can_be_sorted(ids: list) -> bool:
    """Whether ids come back from pycocotools, which sorts them and calls ``numpy.unique``."""
    try:
        return set(np.unique(sorted(ids)).tolist()) == set(ids)
    except TypeError:
        return False


def _plain(number: float) -> str:
    """A number, without a fraction where it has none."""
    return f'{number:.0f}' if float(number).is_integer() and abs(number) < 1e15 else repr(number)


def _as_numbers(mask: list) -> list:
    """Polygons of numbers that may be written as text, which numpy and pycocotools take."""
    try:
        return [list(map(float, polygon)) for polygon in mask]
    except (TypeError, ValueError):
        return mask


def _are_coordinates(masks: Iterable[list]) -> bool:
    """Whether all polygons of all masks hold numbers within reason, and nothing else."""
    try:
        # array, not numpy, which would take text for numbers.
        flat = array('d', chain.from_iterable(chain.from_iterable(masks)))
    except (TypeError, OverflowError):
        return False
    return not flat or bool(np.abs(np.frombuffer(flat)).max() <= MAX_COORDINATE)


def rle_pixels(counts: list | str) -> int | None:
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
    try:
        lengths = np.array(counts, float)  # as pycocotools takes them, numbers in text too
    except (TypeError, ValueError, OverflowError):
        return None
    if lengths.ndim != 1 or not (np.isfinite(lengths) & (lengths >= 0)).all():
        return None
    return int(lengths.sum()) if (lengths == np.floor(lengths)).all() else None
