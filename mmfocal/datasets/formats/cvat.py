"""CVAT for images 1.1.

Format: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/, XML of a task, a job or
a project.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element

import numpy as np

from mmfocal.utils.errors import UserError

from ..checks import Report
from ..checks.report import short, some
from .content import (
    Annotated,
    Folder,
    Object,
    Sample,
    note_missing,
    read_xml,
    split_of,
)
from .gathering import (
    LeftOutError,
    NoAreaError,
    converted,
    folder_split,
    gathered,
    glance,
    label_of,
    located,
    number_of,
    points_of,
    polygon,
)
from .outlines import canvas, ellipse, joined, of_bitmap, turned_box

MAX_BYTES = 2**30  # of a file, which describes all images of a project
FIRST = 5  # files that are looked at to recognise the format, besides those of its usual name
FLAT = ('polyline', 'points')
SHAPES = ('box', 'polygon', 'mask', 'ellipse')


def recognise(folder: Folder) -> str | None:
    """Looks at annotations.xml and the first XML files."""
    files = folder.with_suffix('.xml')
    likely = [path for path in files if path.stem.lower().startswith('annotations')]
    found = dict.fromkeys(filter(_looks_right, [*likely[: 10 * FIRST], *files[:FIRST]]))
    return f"CVAT's annotations in {some(map(folder.relative, found))}" if found else None


def read(folder: Folder, report: Report) -> Annotated:
    """Reads all of CVAT's files below a folder.

    Subsets are the splits, else folders. Classes come in the order of the project's labels.
    Polygons and masks of one label and group are one object, as in CVAT's own export to COCO.
    Ellipses and turned boxes become polygons, bitmaps run-length codes. Images without a shape
    are kept: they belong to the task.

    Raises:
        UserError: a file is damaged or of videos, or a shape is none; or see
            :func:`~.gathering.gathered`.
    """
    found: list[tuple[str | None, Sample]] = []
    declared: list[str] = []
    for path in filter(_looks_right, folder.with_suffix('.xml')):
        root = read_xml(path, MAX_BYTES)
        if root.find('track') is not None:
            raise UserError(
                f'{path} holds tracks of a video; expected images. Export the task as '
                '"CVAT for images 1.1".'
            )
        declared += _labels(root)
        for image in root.iterfind('image'):
            found += _sample(folder, path, image, report)
    return gathered(found, declared, folder, report)


def _looks_right(path: Path) -> bool:
    text = glance(path)
    return bool(
        re.search(r'<annotations[\s>]', text) and re.search(r'<(meta|image|track)\b', text)
    )


def _labels(root: Element) -> list[str]:
    """Classes of a project or task, without the parts of skeletons."""
    labels = root.iterfind('meta//labels/label')
    names = [label.findtext('name', '') for label in labels if label.find('parent') is None]
    return [name.strip() for name in names]


def _sample(
    folder: Folder, path: Path, image: Element, report: Report
) -> Iterator[tuple[str | None, Sample]]:
    name, subset = image.get('name'), image.get('subset') or ''
    if not name:
        raise UserError(f'{path}: image {short(image.get("id"))} needs a name, got none.')
    where = f'{path}: image {name!r}'
    with located(where):
        size = number_of(image, 'width'), number_of(image, 'height')
        objects = tuple(_objects(image, size, where, report))
    split = split_of(subset) or split_of(str(PurePosixPath(name.replace('\\', '/')).parent))
    split = split or split_of(folder.relative(path))
    found = folder.find_image(f'{subset}/{name}' if subset else name, path.parent, split)
    if found is None:
        note_missing(report, where, name, folder)
        return
    yield split or folder_split(folder, found), Sample(found, objects, where, size)


def _objects(
    image: Element, size: tuple[float, float], where: str, report: Report
) -> Iterator[Object]:
    groups: dict[Hashable, list[Object]] = {}
    for position, shape in enumerate(image):
        place = f'{where}, {shape.tag} {position}'
        each = converted(_object, shape, size, where=place, report=report)
        if each is None:
            continue
        if shape.tag == 'box' and each.polygons:
            report.note(place, 'is turned; it is kept as polygon.')
        group = shape.get('group_id', '0')
        groups.setdefault(position if group == '0' else (each.label, group), []).append(each)
    for parts in groups.values():
        yield from _joined(parts, size)


def _joined(parts: list[Object], size: tuple[float, float]) -> Iterator[Object]:
    """The objects of a group: its masks are one, and a single box beside them is theirs."""
    masks = [part for part in parts if part.has_mask]
    boxes = [part for part in parts if not part.has_mask]
    if not masks:
        yield from boxes
    elif len(boxes) == 1:
        yield replace(joined(masks, size), box=boxes[0].box)
    else:
        yield from (joined(masks, size), *boxes)


def _object(shape: Element, size: tuple[float, float]) -> Object:
    """An object of a shape.

    Raises:
        LeftOutError: it is not learned.
        ValueError: it is none; as part of a sentence.
    """
    if shape.tag in FLAT:
        raise NoAreaError(f'a {shape.tag}')
    if shape.tag not in SHAPES:
        problem = 'is a {tag}, expected {shapes}; it is left out.'
        raise LeftOutError(problem, tag=short(shape.tag), shapes=', '.join(SHAPES))
    label = label_of(shape.get('label'))
    if shape.tag == 'mask':
        return _mask(shape, label, size)
    if shape.tag == 'polygon':
        return polygon(label, _points(shape.get('points', '')))
    degrees = number_of(shape, 'rotation', 0)
    if shape.tag == 'ellipse':
        cx, cy, rx, ry = (number_of(shape, key) for key in ('cx', 'cy', 'rx', 'ry'))
        return Object.of_polygons(label, [ellipse((cx, cy), (rx, ry), degrees)])
    x1, y1, x2, y2 = box = [number_of(shape, key) for key in ('xtl', 'ytl', 'xbr', 'ybr')]
    return turned_box(label, box, degrees, ((x1 + x2) / 2, (y1 + y2) / 2))


def _points(text: str) -> list[tuple[float, float]]:
    """Points of ``x,y;x,y``."""
    return points_of([pair.split(',') for pair in text.split(';') if pair.strip()])


def _mask(shape: Element, label: str, size: tuple[float, float]) -> Object:
    """Of lengths of runs along the rows of a box; the first run is outside of the object."""
    keys = ('left', 'top', 'width', 'height')
    left, top, width, height = (int(number_of(shape, key)) for key in keys)
    whole = canvas(*size)
    if not (0 < width <= whole[0] + 1 and 0 < height <= whole[1] + 1):
        raise ValueError(
            'expected a mask within its image of {}x{} pixels, got {}x{}'.format(
                *whole, width, height
            )
        )
    text = shape.get('rle', '')
    try:
        runs = [int(run) for run in text.split(',')]
    except ValueError:
        raise ValueError(f'expected lengths of runs as rle, got {short(text)}') from None
    if min(runs) < 0 or sum(runs) != width * height:
        raise ValueError(
            f'expected an rle of {width * height} pixels, the width times the height, got '
            f'{short(sum(runs))}'
        )
    bitmap = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    return of_bitmap(label, bitmap, left, top, size)
