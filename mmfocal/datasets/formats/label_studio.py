"""Label Studio's JSON and JSON-MIN.

Format: https://labelstud.io/guide/export, https://labelstud.io/tags/rectanglelabels and its
siblings. Brushes hold the code of https://github.com/thi-ng/umbrella, ``packages/rle-pack``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from mmfocal.utils.files import IMAGE_SUFFIXES

from ..checks import Report
from ..checks.report import short, some
from .content import (
    Annotated,
    Folder,
    Object,
    Sample,
    note_missing,
    read_json,
    split_of,
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
from .outlines import canvas, ellipse, of_bitmap, turned_box

MAX_BYTES = 2**30  # of a file, which describes all images of a project
FIRST = 50  # files that are looked at to recognise the format
FLAT = ('keypoint', 'vector')
# Of ``<Labels>``, which name the class of a shape that another tag drew.
LABELS = 'labels'
ALPHA, CHANNELS = 3, 4  # of a brush's pixels


def recognise(folder: Folder) -> str | None:
    """Looks for lists of tasks, or of images with labels, in JSON files."""
    files = folder.with_suffix('.json')[:FIRST]
    found = [folder.relative(path) for path in filter(_looks_right, files)]
    return f"Label Studio's tasks in {some(found)}" if found else None


def read(folder: Folder, report: Report) -> Annotated:
    """Reads all of Label Studio's files below a folder; splits are told by names and folders.

    Of several annotations of a task the ground truth is taken, else the newest that was not
    cancelled. Tasks without any are left out: nobody has looked at them. Of several labels of a
    shape the first is taken, as Label Studio's own converters do. Ellipses and turned boxes
    become polygons, brushes run-length codes.

    Raises:
        UserError: a file is damaged, or a shape is none; or see :func:`~.gathering.gathered`.
    """
    found: list[tuple[str | None, Sample]] = []
    for path in filter(_looks_right, folder.with_suffix('.json')):
        with located(path):
            for where, task in _tasks(path, read_json(path, MAX_BYTES)):
                found += _sample(folder, path, where, task, report)
    return gathered(found, (), folder, report)


def _looks_right(path: Path) -> bool:
    text = glance(path)
    if not text.lstrip('\ufeff\ufffd \r\n\t').startswith('['):
        return False
    is_full = re.search(r'"(annotations|completions|predictions)"\s*:\s*\[', text)
    is_full = is_full and ('"data"' in text or '"result"' in text)
    return bool(is_full or ('"original_width"' in text and re.search(r'"[a-z]*labels"', text)))


def _tasks(path: Path, content: Any) -> Iterator[tuple[str, dict]]:
    """Tasks with their places; those of JSON-MIN in the form of the others."""
    if not isinstance(content, list):
        raise ValueError(f'expected a list of tasks, got {short(content)}')
    short_form: dict[str, dict] = {}
    for position, task in enumerate(content):
        if not isinstance(task, dict):
            raise ValueError(f'expected a task at position {position}, got {short(task)}')
        where = f'{path}: task {short(task.get("id", position))}'
        if isinstance(task.get('data'), dict):
            yield where, task
            continue
        data = {key: value for key, value in task.items() if isinstance(value, str)}
        whole = short_form.setdefault(where, {'data': data, 'annotations': []})
        whole['annotations'].append({**task, 'result': list(_regions(task))})
    yield from short_form.items()


def _regions(task: dict) -> Iterator[dict]:
    """Shapes of a task of JSON-MIN, as in the full form."""
    for values in task.values():
        for value in values if isinstance(values, list) else ():
            kinds = (
                [key for key in value if key.endswith(LABELS)] if isinstance(value, dict) else ()
            )
            for kind in kinds:
                yield {**value, 'type': kind, 'value': value}


def _sample(
    folder: Folder, path: Path, where: str, task: dict, report: Report
) -> Iterator[tuple[str | None, Sample]]:
    with located(where):
        name = _image_name(task['data'])
        annotation = _annotation(task, where, report)
        results = entry(annotation, 'result', list, 'a list') if annotation else []
    if annotation is None:
        report.note(where, 'has no annotation that a person has submitted; it is left out.')
        return
    split = split_of(folder.relative(path))
    image = _find(folder, path, task, name, split)
    if image is None:
        note_missing(report, where, name if len(name) <= 200 else f'{name[:200]}...', folder)
        return
    shapes = [each for each in results if isinstance(each, dict) and 'original_width' in each]
    if any(each.get('image_rotation') for each in shapes):
        problem = 'was turned in Label Studio, which its file is not; the image is left out.'
        report.note(where, problem)
        return
    objects = tuple(_objects(results, where, report))
    with located(where):
        size = _size(shapes)
    yield split or folder_split(folder, image), Sample(image, objects, where, size)


def _image_name(data: dict) -> str:
    """The image among the values of a task: of the key ``image``, or the only one."""
    names = {key: value for key, value in data.items() if isinstance(value, str)}
    if 'image' in names:
        return names['image']
    found = [value for value in names.values() if _path(value).suffix.lower() in IMAGE_SUFFIXES]
    if len(found) != 1:
        raise ValueError(f"expected an image under 'image' in data, got {short(data)}")
    return found[0]


def _path(name: str) -> PurePosixPath:
    """The path of a name: of a URL, or of ``/data/local-files/?d=folder/1.jpg``."""
    try:
        parts = urlsplit(name)
        given = parse_qs(parts.query).get('d') if 'local-files' in parts.path else None
        path = parts.path if parts.scheme and '://' in name else name.partition('?')[0]
    except ValueError:  # brackets that are no address
        return PurePosixPath(name)
    return PurePosixPath((given[0] if given else path).replace('\\', '/'))


def _find(folder: Folder, path: Path, task: dict, name: str, split: str | None) -> Path | None:
    """The image of a task, with or without the letters that uploads are given before names."""
    given = [name, upload] if isinstance(upload := task.get('file_upload'), str) else [name]
    for wanted in map(_path, given):
        plain = re.sub(r'^[0-9a-f]{8}-(?=.)', '', wanted.name)
        for each in (str(wanted), str(wanted.parent / plain)):
            if found := folder.find_image(each, path.parent, split):
                return found
    return None


def _annotation(task: dict, where: str, report: Report) -> dict | None:
    """The one annotation that counts; raises ValueError if they are none."""
    key = 'annotations' if 'annotations' in task else 'completions'
    given = task.get(key) or []
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise ValueError(f'expected a list of annotations under {key!r}, got {short(given)}')
    valid = [each for each in given if not each.get('was_cancelled')]
    if len(valid) > 1:
        problem = 'has {count} annotations; the ground truth is taken, else the newest.'
        report.note(where, problem, count=len(valid))
    return max(valid, key=_rank, default=None)


def _rank(annotation: dict) -> tuple[bool, str]:
    times = annotation.get('updated_at') or annotation.get('created_at') or ''
    return bool(annotation.get('ground_truth')), str(times)


def _size(shapes: Iterable[dict]) -> tuple[float, float] | None:
    """Width and height in pixels of the image, as all shapes of it say; None without one."""
    sizes = list(dict.fromkeys(map(_size_of, shapes)))
    if len(sizes) > 1:
        raise ValueError(f'expected one size of the image, got {some(sizes)}')
    return sizes[0] if sizes else None


def _size_of(shape: dict) -> tuple[float, float]:
    width, height = (number_of(shape, f'original_{side}') for side in ('width', 'height'))
    if min(width, height) <= 0:
        raise ValueError(f'expected a size of the image above 0, got {width:g}x{height:g}')
    return width, height


def _objects(results: list, where: str, report: Report) -> Iterator[Object]:
    named = {
        each.get('id'): each.get('value')
        for each in results
        if isinstance(each, dict) and each.get('type') == LABELS and 'id' in each
    }
    for position, each in enumerate(results):
        place = f'{where}, shape {position}'
        with located(place):
            kind = entry(each, 'type', str, 'text')
        if kind == LABELS and 'id' in each:
            continue
        labels = named.get(each.get('id'))
        made = converted(_object, each, kind, labels, where=place, report=report)
        if made is None:
            continue
        if kind.startswith('rectangle') and made.polygons:
            report.note(place, 'is turned; it is kept as polygon.')
        yield made


def _object(each: dict, kind: str, named: Any) -> Object:
    """An object of a shape.

    Args:
        each: the shape.
        kind: its type.
        named: a value with its labels that stands elsewhere.

    Raises:
        LeftOutError: it is not learned.
        ValueError: it is none; as part of a sentence.
    """
    shape = kind.removesuffix(LABELS) or _drawn_by(each.get('value'))
    if shape in FLAT:
        raise NoAreaError(f'a {shape}')
    if shape not in MAKERS:
        problem = 'is of the type {kind}, expected {shapes}; it is left out.'
        raise LeftOutError(problem, kind=short(kind), shapes=', '.join(MAKERS))
    value = entry(each, 'value', dict, 'a shape')
    labels = value.get(kind) or value.get(LABELS)
    if not labels and isinstance(named, dict):
        labels = named.get(LABELS)
    if not labels:
        raise LeftOutError('has no label; it is left out.')
    label = label_of(labels[0] if isinstance(labels, list) else labels)
    return MAKERS[shape](label, value, _size_of(each))


def _drawn_by(value: Any) -> str:
    """The type of a shape in JSON-MIN, where ``<Labels>`` hides it."""
    marks = dict(rle='brush', points='polygon', radiusX='ellipse', width='rectangle')
    return next((shape for key, shape in marks.items() if key in (value or ())), LABELS)


def _pixels(value: dict, size: tuple[float, float], *keys: str) -> list[float]:
    """Values in pixels, alternately along x and y, of percents of the image."""
    return [number_of(value, key) / 100 * size[at % 2] for at, key in enumerate(keys)]


def _rectangle(label: str, value: dict, size: tuple[float, float]) -> Object:
    """Turned clockwise around its upper left corner."""
    x, y, width, height = _pixels(value, size, 'x', 'y', 'width', 'height')
    degrees = number_of(value, 'rotation', 0)
    return turned_box(label, (x, y, x + width, y + height), degrees, (x, y))


def _ellipse(label: str, value: dict, size: tuple[float, float]) -> Object:
    """Turned clockwise around its centre."""
    x, y, rx, ry = _pixels(value, size, 'x', 'y', 'radiusX', 'radiusY')
    degrees = number_of(value, 'rotation', 0)
    return Object.of_polygons(label, [ellipse((x, y), (rx, ry), degrees)])


def _polygon(label: str, value: dict, size: tuple[float, float]) -> Object:
    points = points_of(value.get('points'))
    return polygon(label, [(x / 100 * size[0], y / 100 * size[1]) for x, y in points])


def _brush(label: str, value: dict, size: tuple[float, float]) -> Object:
    """Of pixels of four channels, row by row; those that are not transparent belong to it."""
    width, height = canvas(*size)
    code = entry(value, 'rle', list, 'a list of bytes')
    try:
        code = bytes(code)
    except (TypeError, ValueError):
        raise ValueError(f'expected bytes from 0 to 255 under rle, got {short(code)}') from None
    painted = unpacked(code, width * height * CHANNELS).reshape(height, width, CHANNELS)
    return of_bitmap(label, painted[..., ALPHA], 0, 0, size)


MAKERS = {
    'rectangle': _rectangle,
    'polygon': _polygon,
    'ellipse': _ellipse,
    'brush': _brush,
}


class _Bits:
    """Numbers from bytes, the highest bit first."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def _skip(self, count: int) -> tuple[int, int]:
        """Goes on by bits; gives the first one and the one after the last."""
        start, end = self.position, self.position + count
        if end > 8 * len(self.data):
            raise ValueError(f'the rle is cut off after {len(self.data)} bytes')
        self.position = end
        return start, end

    def read(self, count: int) -> int:
        """An unsigned number of that many bits."""
        start, end = self._skip(count)
        whole = int.from_bytes(self.data[start // 8 : -(-end // 8)], 'big')
        return whole >> -end % 8 & ((1 << count) - 1)

    def read_any(self, words: int, size: int) -> np.ndarray:
        """Which of several numbers of ``size`` bits are above 0: ``(words,)`` booleans."""
        start, end = self._skip(words * size)
        part = np.frombuffer(self.data[start // 8 : -(-end // 8)], np.uint8)
        bits = np.unpackbits(part)[start % 8 :][: end - start]
        return bits.reshape(words, size).any(axis=1)


def unpacked(data: bytes, expected: int) -> np.ndarray:
    """Decodes what rle-pack has packed.

    A header has the number of words (32 bits), the bits of a word less 1 (5 bits), and four sizes
    of counters less 1 (4 bits each). Then come blocks: a bit that says whether one word is
    repeated, which of the four sizes its counter has (2 bits), the number of words less 1, and
    the words, or the one.

    Args:
        data: the code.
        expected: number of words.

    Returns:
        Which words are above 0: ``(expected,)`` booleans.

    Raises:
        ValueError: it holds another number of words, or is cut off; as part of a sentence.
    """
    bits = _Bits(data)
    if (total := bits.read(32)) != expected:
        raise ValueError(
            f'expected an rle of {expected} values, 4 of each pixel of the image, got {total}'
        )
    word, sizes = bits.read(5) + 1, [bits.read(4) + 1 for _ in range(4)]
    result = np.zeros(total, bool)
    start = 0
    while start < total:
        is_repeated, size = bits.read(1), sizes[bits.read(2)]
        end = min(start + bits.read(size) + 1, total)
        result[start:end] = bits.read(word) if is_repeated else bits.read_any(end - start, word)
        start = end
    return result
