"""Writes images with objects in COCO's form, for mmdet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from mmfocal.utils.errors import UserError
from mmfocal.utils.progress import progress_bar

from ..checks import Report, read_image
from ..checks.coco import MAX_COORDINATE
from .content import MISSING, Annotated, Folder, Object, Sample

# Of the images, or the objects, that may be left out before a data set is refused.
MAX_DROPPED = 0.5
DIGITS = 3  # of coordinates, after the point
ROUNDING = 0.01  # pixels


def coco_json(samples: Iterable[Sample], classes: Sequence[str], folder: Folder) -> bytes:
    """The text of a file in COCO's form; names of images are relative to the folder.

    Categories are numbered from 1 in the order of ``classes``, images and annotations from 1 in
    the order of ``samples``.

    Args:
        samples: as :func:`fitted` gives them.
        classes: in the order of labels.
        folder: that the images lie below.
    """
    numbers = {name: number for number, name in enumerate(classes, 1)}
    images, annotations = [], []
    for sample in samples:
        width, height = sample.size
        image_id = len(images) + 1
        name = folder.relative(sample.image)
        images.append(dict(id=image_id, file_name=name, width=width, height=height))
        for each in sample.objects:
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=numbers[each.label],
                    bbox=_rounded(each.box),
                    area=round(_area(each), DIGITS),
                    iscrowd=int(each.is_crowd),
                    **_segmentation(each),
                )
            )
    categories = [dict(id=number, name=name) for name, number in numbers.items()]
    content = dict(info={}, images=images, annotations=annotations, categories=categories)
    return json.dumps(content, ensure_ascii=False).encode()


def fitted(annotated: Annotated, report: Report) -> Annotated:
    """A data set as it can be trained on: sizes from the images, boxes within them.

    What cannot be is left out, with a note and the reason: images that cannot be read or have
    another size than their annotations say, objects outside of their image or of less than a
    pixel.

    Raises:
        UserError: more than half of the images, or of the objects, would be left out.
    """
    splits = {}
    total = sum(map(len, annotated.splits.values()))
    with progress_bar('Reading', total, 'image') as bar:
        for split, samples in annotated.splits.items():
            splits[split] = []
            for sample in samples:
                if (size := _size(sample, report)) is not None:
                    objects = (_inside(each, size, sample, report) for each in sample.objects)
                    objects = tuple(each for each in objects if each is not None)
                    splits[split].append(replace(sample, objects=objects, size=size))
                bar.update()
            if samples and not splits[split]:
                refuse_ruins(f'images for "{split}"', len(samples), 0, report)
    result = replace(annotated, splits=splits)
    _refuse_ruins(annotated, result, report)
    return result


def _size(sample: Sample, report: Report) -> tuple[int, int] | None:
    """Width and height in pixels of the image as it is loaded; None if it is not usable."""
    try:
        image = read_image(str(sample.image), deep=False)
    except ValueError as error:
        report.note(str(sample.image), '{error} It is left out.', error=error)
        return None
    size = image.loaded_size(turns=True)
    if sample.size is not None and tuple(sample.size) != size:
        report.note(
            str(sample.image),
            'has {size} pixels (width x height) as it is loaded, {where} says {said}; it is left '
            'out, since its objects would be misplaced.',
            size='{}x{}'.format(*size),
            said='{:g}x{:g}'.format(*sample.size),
            where=sample.where,
        )
        return None
    return size


def _inside(each: Object, size: tuple[int, int], sample: Sample, report: Report) -> Object | None:
    """An object with its box cut to its image; None if nothing is left of it."""
    (x, y, width, height), (image_width, image_height) = each.box, size
    if min(width, height) > 1 - ROUNDING:  # of fractions with few digits
        width, height = max(width, 1.0), max(height, 1.0)
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, image_width), min(y + height, image_height)
    values = dict(label=repr(each.label), box=_rounded(each.box), size='{}x{}'.format(*size))
    of_image = '(x, y, width, height) of {label} belongs to an image of {size} pixels'
    # What mmdet leaves out of training, too.
    if min(width, height) < 1:
        report.note(
            sample.where, f'{{box}} {of_image} and is less than a pixel; left out.', **values
        )
        return None
    if min(right - left, bottom - top) < 1:
        problem = f'{{box}} {of_image} and lies outside; left out.'
        report.note(sample.where, problem, **values)
        return None
    if max(-x, -y, x + width - image_width, y + height - image_height) > 1:  # else it is rounding
        report.note(sample.where, f'{{box}} {of_image} and sticks out; cut to it.', **values)
    polygons = tuple(
        tuple(np.clip(polygon, -MAX_COORDINATE, MAX_COORDINATE).tolist())
        for polygon in each.polygons
    )
    return replace(each, box=(left, top, right - left, bottom - top), polygons=polygons)


def _refuse_ruins(before: Annotated, after: Annotated, report: Report) -> None:
    missing = report.count_of(MISSING)
    refuse_ruins('images', _num_images(before) + missing, _num_images(after), report)
    refuse_ruins('objects', _num_objects(before), _num_objects(after), report)


def refuse_ruins(what: str, total: int, left: int, report: Report) -> None:
    """Raises UserError, with the notes of the report, if too few of ``total`` are left."""
    if left < (1 - MAX_DROPPED) * total:
        problem = (
            f'Of {total:,} {what} only {left:,} can be used, too few for the right annotations '
            'of these images:'
        )
        raise UserError('\n'.join([problem, *report.lines('note')]))


def _num_images(data: Annotated) -> int:
    return sum(map(len, data.splits.values()))


def _num_objects(data: Annotated) -> int:
    return sum(len(sample.objects) for samples in data.splits.values() for sample in samples)


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), DIGITS) for value in values]


def _area(each: Object) -> float:
    if each.area is not None:
        return each.area
    if each.rle is not None:
        return float(mask_api.area(_compressed(each.rle)))
    if each.polygons:
        return sum(map(_polygon_area, each.polygons))
    return each.box[2] * each.box[3]


def _polygon_area(polygon: Sequence[float]) -> float:
    """Of one without crossings, by Gauss's formula."""
    x, y = np.array(polygon[::2]), np.array(polygon[1::2])
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def _compressed(rle: dict) -> dict:
    if isinstance(rle['counts'], list):
        return mask_api.frPyObjects(rle, *rle['size'])
    return dict(size=rle['size'], counts=rle['counts'].encode())


def _segmentation(each: Object) -> dict[str, Any]:
    if each.rle is not None:
        return dict(segmentation=each.rle)
    if each.polygons:
        return dict(segmentation=[_rounded(polygon) for polygon in each.polygons])
    return {}
