"""LabelMe's JSON, a file for each image; AnyLabeling's and X-AnyLabeling's too.

Format: https://github.com/wkentaro/labelme, ``labelme/_label_file.py`` and the converters below
``examples``. As in these, shapes of one label and ``group_id`` are one object, ``labels.txt``
orders the classes, and what is labelled ``__ignore__`` or ``_background_`` is none.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import struct
import zlib
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmfocal.utils.errors import UserError

from ..checks import Report
from ..checks.report import short
from .content import (
    Annotated,
    Folder,
    Object,
    Sample,
    note_missing,
    read_json,
    read_text,
)
from .gathering import (
    LeftOutError,
    NoAreaError,
    converted,
    entry,
    folder_split,
    gathered,
    glance,
    label_of,
    located,
    number_of,
    points_of,
    polygon,
)
from .outlines import Points, canvas, ellipse, joined, of_bitmap

# Of four corners; a rotation is X-AnyLabeling's turned rectangle.
TURNED = ('quadrilateral', 'rotation', 'oriented_rectangle')
FLAT = ('line', 'linestrip', 'point', 'points')
SOLID = ('cuboid',)  # of X-AnyLabeling, in three dimensions
NO_CLASSES = ('__ignore__', '_background_')
# What Pillow raises for damaged ones.
BAD_PNG = (
    OSError,
    SyntaxError,
    EOFError,
    binascii.Error,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
FIRST = 5  # files, and last ones, that are looked at to recognise the format


def recognise(folder: Folder) -> str | None:
    """Looks for ``shapes`` and ``imagePath`` in the first and the last JSON files."""
    files = folder.with_suffix('.json')
    if any(map(_looks_right, [*files[:FIRST], *files[-FIRST:]])):
        return f"{len(files):,} JSON files, each with an image's shapes"
    return None


def read(folder: Folder, report: Report) -> Annotated:
    """Reads all of LabelMe's files below a folder; splits are told by folders.

    Images without a file are left out: nobody has looked for objects in them. Circles become
    polygons, turned rectangles too, and bitmaps run-length codes.

    Raises:
        UserError: a file is damaged, or a shape is none; or see :func:`~.gathering.gathered`.
    """
    samples = list(_samples(folder, report))
    seen = {sample.image for _, sample in samples}
    for path in folder.images if seen else ():
        if path not in seen:
            report.note(str(path), 'has no JSON file that describes it; it is left out.')
    return gathered(samples, _declared(folder), folder, report)


def _looks_right(path: Path) -> bool:
    text = glance(path)
    is_cut = '"imageData"' in text and ('"shapes"' in text or '"shape_type"' in text)
    return '"imagePath"' in text or is_cut


def _declared(folder: Folder) -> list[str]:
    """Classes in the order of labels.txt, of the one that is nearest the root."""
    files = [path for path in folder.with_suffix('.txt') if path.name == 'labels.txt']
    if not files:
        return []
    nearest = min(files, key=lambda path: len(path.parts))
    return list(map(str.strip, read_text(nearest).splitlines()))


def _samples(folder: Folder, report: Report) -> Iterator[tuple[str | None, Sample]]:
    for path in folder.with_suffix('.json'):
        content = read_json(path)
        if not isinstance(content, dict) or not {'shapes', 'imagePath'} & set(content):
            report.note(str(path), "is not in LabelMe's form; it is left out.")
            continue
        with located(path):
            name = entry(content, 'imagePath', str, 'the path of an image')
            shapes = entry(content, 'shapes', list, 'a list')
            size = _size(content)
        split = folder_split(folder, path)
        image = _find(folder, path, name, split)
        if image is None and content.get('imageData'):
            problem = 'holds the image {name} itself, as imageData; save it beside this file.'
            report.note(str(path), f'{problem} It is left out.', name=repr(name))
        elif image is None:
            note_missing(report, str(path), name, folder)
        else:
            objects = tuple(_objects(shapes, size, path, report))
            yield split or folder_split(folder, image), Sample(image, objects, str(path), size)


def _size(content: dict) -> tuple[float, float] | None:
    keys = ('imageWidth', 'imageHeight')
    if any(content.get(key) is None for key in keys):
        return None
    width, height = (number_of(content, key) for key in keys)
    return width, height


def _find(folder: Folder, path: Path, name: str, split: str | None) -> Path | None:
    """The image that a file names, else the one that is called like it."""
    name = name.replace('\\', '/')
    beside = f'{path.parent.name}/{name.rpartition("/")[2]}'  # labels/1, images/1
    for wanted in (name, beside, f'{path.parent.name}/{path.stem}'):
        if found := folder.find_image(wanted, path.parent, split):
            return found
    return None


def _objects(
    shapes: list, size: tuple[float, float] | None, path: Path, report: Report
) -> Iterator[Object]:
    groups: dict[Hashable, list[Object]] = {}
    for position, shape in enumerate(shapes):
        where = f'{path}: shape {position}'
        each = converted(_object, shape, size, where=where, report=report)
        if each is None:
            continue
        if (kind := _kind(shape)) in TURNED:
            report.note(where, 'is a {kind}; it is kept as polygon.', kind=kind)
        group = shape.get('group_id')
        if not isinstance(group, int | str | None):
            raise UserError(f'{where}: expected a number as group_id, got {short(group)}.')
        groups.setdefault((position,) if group is None else (each.label, group), []).append(each)
    for parts in groups.values():
        with located(path):
            yield joined(parts, size)


def _kind(shape: dict) -> Any:
    return shape.get('shape_type') or 'polygon'  # versions before 3.6 know no others


def _object(shape: Any, size: tuple[float, float] | None) -> Object:
    """An object of a shape.

    Raises:
        LeftOutError: it is not learned.
        ValueError: it is none; as part of a sentence.
    """
    label = label_of(entry(shape, 'label', object, 'a name'))
    kind = _kind(shape)
    points = points_of(shape.get('points'))
    if label in NO_CLASSES:
        problem = 'is labelled {label}, which is no class of LabelMe; it is left out.'
        raise LeftOutError(problem, label=label)
    if kind in FLAT:
        raise NoAreaError(f'a {kind}')
    if kind in SOLID:
        raise LeftOutError('is a {kind}, expected a flat shape; it is left out.', kind=kind)
    if kind in ('polygon', *TURNED):
        return polygon(label, points)
    if not isinstance(kind, str) or kind not in MAKERS:
        known = ', '.join(('polygon', *MAKERS, *TURNED, *FLAT, *SOLID))
        raise ValueError(f'expected a shape_type of {known}, got {short(kind)}')
    if len(points) != 2 and (kind != 'rectangle' or len(points) != 4):
        raise ValueError(f'expected two points of a {kind}, got {len(points)}')
    return MAKERS[kind](label, points, shape, size)


def _rectangle(label: str, points: Points, *_: Any) -> Object:
    return Object.of_corners(label, _bounds(points))


def _bounds(points: Points) -> tuple[float, float, float, float]:
    x, y = zip(*points, strict=True)
    return min(x), min(y), max(x), max(y)


def _circle(label: str, points: Points, *_: Any) -> Object:
    """Of the centre and a point on the edge."""
    radius = math.dist(*points)
    return Object.of_polygons(label, [ellipse(points[0], (radius, radius))])


def _mask(label: str, points: Points, shape: dict, size: tuple[float, float] | None) -> Object:
    """Of a bitmap that lies between two pixels, both included."""
    if size is None:
        raise ValueError('expected imageWidth and imageHeight beside a mask, got none')
    whole = canvas(*size)
    left, top, right, bottom = _bounds(points)
    text = entry(shape, 'mask', str, 'a PNG image as base64')
    try:
        with Image.open(
            io.BytesIO(base64.b64decode(text.encode('ascii', 'replace'))), formats=['PNG']
        ) as image:
            _check_extent(image.size, (right - left + 1, bottom - top + 1), whole)
            bitmap = np.asarray(image if image.mode in ('1', 'L', 'P') else image.convert('L'))
    except BAD_PNG as error:
        raise ValueError(
            f'expected a PNG image as base64 under mask, got {short(text)}'
        ) from error
    return of_bitmap(label, bitmap, round(left), round(top), size)


def _check_extent(
    size: tuple[int, int], expected: tuple[float, float], whole: tuple[int, int]
) -> None:
    """Refuses, before it is decoded, a bitmap that does not fit its points or its image."""
    differs = any(abs(mine - other) > 2 for mine, other in zip(size, expected, strict=True))
    if differs or any(mine > other + 2 for mine, other in zip(size, whole, strict=True)):
        raise ValueError(
            'expected a mask of {:g}x{:g} pixels, as its points say, in an image of {}x{}, got '
            '{}x{}'.format(*expected, *whole, *size)
        )


MAKERS = {'rectangle': _rectangle, 'circle': _circle, 'mask': _mask}
