"""YOLO: a text file of boxes or polygons for each image, as Ultralytics and darknet read them.

Names of classes and splits come from a YAML file (Ultralytics, Roboflow), from ``obj.data`` and
``obj.names`` (darknet), or from ``classes.txt`` (labelImg) and the names of folders. An image
without a label file shows nothing that is learned. Polygons that Ultralytics joins from several
parts by going there and back stay one polygon. Where boxes and polygons are mixed, both are kept.
"""

from __future__ import annotations

import math
import os
import posixpath
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from mmfocal.utils.errors import UserError
from mmfocal.utils.files import IMAGE_SUFFIXES

from ..checks import Report
from ..checks.report import short, some
from .content import (
    SPLIT_WORDS,
    Annotated,
    Folder,
    Object,
    Sample,
    by_folders,
    each_once,
    note_missing,
    number,
    read_text,
    upright_size,
)

# Folders of images, and those of their labels beside them.
_IMAGE_FOLDERS = ('images', 'jpegimages', 'image', 'imgs', 'img')
_LABEL_FOLDERS = ('labels', 'Labels', 'label')
_NAMES_FILES = ('classes.txt', 'labels.txt', 'names.txt', 'class_names.txt')
_MAX_YAML = 2**20  # bytes; PyYAML reads a megabyte in seconds
# Fractions may leave the image a little, which is clipped; pixels leave it by far.
_LEAST, _MOST = -1.0, 2.0


@dataclass(frozen=True)
class _Settings:
    """What a data set says about itself.

    Attributes:
        path: of the file that says it.
        names: of classes, by their number.
        places: folders of images or lists of them, by split.
        root: of relative places, if the file says one.
        keypoints: how many numbers follow each box.
        task: ``'obb'``, ``'segment'`` or unknown.
    """

    path: Path
    names: dict[int, str]
    places: dict[str, list[str]] = field(default_factory=dict)
    root: str = ''
    keypoints: int = 0
    task: str = ''


def recognise(folder: Folder) -> str | None:
    """What shows that a folder holds a YOLO data set; None if nothing does."""
    tree = _Tree(folder)
    labels = [label for name in tree.images if (label := tree.label_of(name))]
    if not labels:
        return None
    described = f'{len(labels)} label file(s) of YOLO beside images'
    try:
        settings = _settings(folder, tree)
    except UserError:
        settings = None
    if settings is not None and settings.path.suffix != '.txt':
        return f'{described}, {settings.path.name} with {len(settings.names)} class(es)'
    with_content = [label for label in labels[:100] if _size(label)][:5]
    return described if all(map(_looks_like_labels, with_content)) else None


def read(folder: Folder, report: Report) -> Annotated:
    """All images of a YOLO data set with their boxes and polygons.

    Predictions (boxes with a confidence) and oriented boxes are refused, keypoints are left out
    with a note, as are lines that are there twice.

    Raises:
        UserError: what cannot be read, or would be learned wrongly.
    """
    tree = _Tree(folder)
    settings = _settings(folder, tree)
    if settings is None:
        raise UserError(
            f'{folder.root}: the names of the classes are missing. Expected data.yaml with names, '
            'or classes.txt with one name a line.'
        )
    reader = _Reader(tree, settings, report)
    splits = {
        split: [sample for name in names if (sample := reader.sample(name))]
        for split, names in _division(folder, tree, settings, report).items()
    }
    reader.finish()
    classes = tuple(name for _, name in sorted(settings.names.items()))
    return Annotated(classes, each_once(splits, report))


class _Tree:
    """Images and text files by their paths below the folder."""

    def __init__(self, folder: Folder) -> None:
        self.root = folder.root
        self.images = {folder.relative(path): path for path in folder.images}
        self.texts = {
            os.path.splitext(folder.relative(path))[0]: path for path in folder.with_suffix('.txt')
        }
        self._sorted = sorted(self.images)

    def below(self, name: str) -> Sequence[str]:
        """Names of the images below a folder."""
        if name == '.':
            return self._sorted
        start = bisect_left(self._sorted, f'{name}/')
        return self._sorted[start : bisect_left(self._sorted, f'{name}0')]  # 0 follows /

    def label_of(self, name: str) -> Path | None:
        """The label file of an image: in a parallel folder, or beside it."""
        stem = os.path.splitext(name)[0]
        parts = stem.split('/')
        for index in range(len(parts) - 2, -1, -1):
            if parts[index].lower() in _IMAGE_FOLDERS:
                for labels in _LABEL_FOLDERS:
                    other = '/'.join([*parts[:index], labels, *parts[index + 1 :]])
                    if other in self.texts:
                        return self.texts[other]
                break
        inside = '/'.join([*parts[:-1], 'labels', parts[-1]])
        return self.texts.get(stem) or self.texts.get(inside)


# --- What the data set says about itself ------------------------------------------------------


def _settings(folder: Folder, tree: _Tree) -> _Settings | None:
    return _of_yaml(folder) or _of_darknet(folder, tree) or _of_names(folder)


def _of_yaml(folder: Folder) -> _Settings | None:
    """The uppermost YAML file that describes a data set, data.yaml or dataset.yaml before others.

    Raises:
        UserError: it is damaged, or says what cannot be.
    """

    def rank(path: Path) -> tuple[int, bool]:
        return len(path.parts), path.stem.lower() not in ('data', 'dataset')

    found: list[tuple[Path, dict]] = []
    for path in sorted(folder.with_suffix('.yaml', '.yml'), key=rank):
        if found and rank(found[0][0]) < rank(path):
            break
        content = _yaml(path, must=not rank(path)[1])
        if 'names' in content or ('nc' in content and _places(path, content)):
            found.append((path, content))
    if not found:
        return None
    path, content = found[0]
    names = _names(path, content)
    for other, other_content in found[1:]:
        if _names(other, other_content) != names:
            raise UserError(
                f'{path} and {other} name other classes. Keep the one that describes this data '
                'set, or call it data.yaml.'
            )
    task = _string(content.get('task'))
    return _Settings(
        path,
        names,
        _places(path, content),
        _string(content.get('path')),
        _keypoints(path, content.get('kpt_shape')),
        task or ('obb' if _says_oriented(folder, content) else ''),
    )


def _says_oriented(folder: Folder, content: dict) -> bool:
    """Whether paths, or the description that Roboflow adds, speak of oriented boxes."""
    texts = [_string(content.get(key)) for key in ('path', 'train')]
    readme = [path for path in folder.with_suffix('.txt') if path.name.startswith('README')]
    texts += [_text(path, must=False) for path in readme[:3]]
    return any(re.search(r'(?<![a-z])obb(?![a-z])|oriented', text, re.I) for text in texts)


def _yaml(path: Path, must: bool) -> dict:
    """A mapping of texts, lists and mappings; empty for other content.

    YAML's own types are left aside: ``names: [yes, no]`` are names.
    """
    try:
        # BaseLoader makes nothing but texts, lists and mappings.
        content = yaml.load(read_text(path, _MAX_YAML), Loader=yaml.BaseLoader)
    except UserError:
        if must:
            raise
        return {}
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if not must:
            return {}
        problem = ' '.join(str(error).split())
        raise UserError(f'{path} is damaged, no YAML ({short(problem)}).') from error
    return content if isinstance(content, dict) else {}


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ''


def _whole(value: Any) -> int | None:
    """A whole number from a text; None for anything else, or an absurd one."""
    is_number = isinstance(value, str) and value.isdecimal() and len(value) < 7
    return int(value) if is_number else None


def _names(path: Path, content: dict) -> dict[int, str]:
    given, count = content.get('names'), _whole(content.get('nc'))
    if count is None and 'nc' in content:
        raise UserError(f'{path}: expected a number of classes as nc, got {_kind(content["nc"])}.')
    if 'names' not in content:  # as Ultralytics names them
        given = [f'class_{index}' for index in range(count)]
    items = given
    if isinstance(given, list):
        items = {str(index): name for index, name in enumerate(given)}
    if not isinstance(items, dict) or not items:
        raise UserError(
            f'{path}: expected names as a list, or as numbers with names, got {_kind(given)}.'
        )
    names: dict[int, str] = {}
    for key, name in items.items():
        index = _whole(key)
        if index is None or not _string(name).strip():
            raise UserError(
                f'{path}: names: expected a number and a name, got {_kind(key)}: {_kind(name)}.'
            )
        names[index] = name.strip()
    _check_names(path, list(names.values()))
    if count is not None and count != len(names):
        raise UserError(f'{path}: nc is {count}, and there are {len(names)} names. Correct one.')
    return names


def _check_names(path: Path, names: list[str]) -> None:
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f'{path} names several classes {some(map(repr, repeated))}. Give each its own name.'
        )


def _kind(value: Any) -> str:
    """A value from a file; in a word unless it is a text, since aliases can make it huge."""
    kinds = {dict: 'a mapping', list: 'a list'}
    return kinds.get(type(value)) or ('nothing' if value in ('', None) else short(value))


def _places(path: Path, content: dict) -> dict[str, list[str]]:
    places: dict[str, list[str]] = {}
    for key, value in content.items():
        for split, words in SPLIT_WORDS.items():
            if str(key).lower() not in words or not value:
                continue
            values = value if isinstance(value, list) else [value]
            if not all(isinstance(each, str) for each in values):
                raise UserError(
                    f'{path}: {key}: expected a folder, a list of folders, or a text file of '
                    f'images, got {_kind(value)}.'
                )
            places.setdefault(split, []).extend(values)
    return places


def _keypoints(path: Path, shape: Any) -> int:
    """How many numbers keypoints add to a box; 0 without ``kpt_shape``."""
    if shape is None:
        return 0
    numbers = [_whole(each) for each in shape] if isinstance(shape, list) else []
    if len(numbers) != 2 or None in numbers:
        raise UserError(
            f'{path}: kpt_shape: expected two numbers such as [17, 3], got {_kind(shape)}.'
        )
    return numbers[0] * numbers[1]


def _of_darknet(folder: Folder, tree: _Tree) -> _Settings | None:
    """A ``.data`` file: lines such as ``train = data/train.txt``."""
    for path in folder.with_suffix('.data'):
        pairs = [line.partition('=') for line in _text(path, must=False).splitlines()]
        content = {key.strip(): value.strip() for key, sign, value in pairs if sign}
        if 'train' in content or 'names' in content:
            # Its paths begin where darknet was started, which nobody knows.
            names = _of_names(folder)
            if names is None:
                raise UserError(
                    f'{path}: the file with the names of the classes, '
                    f'{content.get("names", "obj.names")}, is not below {folder.root}. Add it, '
                    'with one name a line.'
                )
            places = {
                split: [f'/{place}' for place in places]
                for split, places in _places(path, content).items()
            }
            return _Settings(path, names.names, places)
    return None


def _of_names(folder: Folder) -> _Settings | None:
    """A file with one name a line; several have to be equal."""
    found: dict[tuple[str, ...], Path] = {}
    for path in folder.with_suffix('.txt', '.names', '.labels'):
        if _is_names_file(path) and not (path.suffix == '.txt' and _looks_like_labels(path)):
            lines = [line.strip() for line in _text(path).rstrip().splitlines()]
            found.setdefault(tuple(lines), path)
    if not found:
        return None
    (names, path), *others = found.items()
    if others:
        raise UserError(
            f'{path} and {others[0][1]} name other classes. Keep one of them, or make them equal.'
        )
    if '' in names:
        raise UserError(
            f'{path}, line {names.index("") + 1}: expected the name of a class, got an empty line.'
        )
    _check_names(path, list(names))
    return _Settings(path, dict(enumerate(names)))


def _is_names_file(path: Path) -> bool:
    return path.suffix in ('.names', '.labels') or path.name.lower() in _NAMES_FILES


# --- Which images belong to which split -------------------------------------------------------


def _division(
    folder: Folder, tree: _Tree, settings: _Settings, report: Report
) -> dict[str, Sequence[str]]:
    """Names of images by split."""
    if settings.places:
        splits = {
            split: [
                name
                for place in places
                for name in _images_of(place, split, tree, settings, folder, report)
            ]
            for split, places in settings.places.items()
        }
        if settings.places.get('train') and not splits['train']:
            raise UserError(
                f'{settings.path}: train: {some(settings.places["train"])} is no folder with '
                f'images, and no list of images, below {folder.root}. Give the folder that '
                'holds the whole data set, or correct the path.'
            )
        return splits
    if lists := _lists(folder, tree):
        return {
            split: [name for path in paths for name in _listed(path, tree, folder, report)]
            for split, paths in lists.items()
        }
    divided = by_folders(folder.images, folder, report)
    return {split: [folder.relative(path) for path in paths] for split, paths in divided.items()}


def _lists(folder: Folder, tree: _Tree) -> dict[str, list[Path]]:
    """Files such as train.txt that list images, by split."""
    lists: dict[str, list[Path]] = {}
    for split, words in SPLIT_WORDS.items():
        for word in words:
            for path in (tree.texts.get(word), tree.texts.get(f'ImageSets/{word}')):
                lines = _text(path, must=False).split('\n', 1) if path else ['']
                if PurePosixPath(lines[0].strip()).suffix.lower() in IMAGE_SUFFIXES:
                    lists.setdefault(split, []).append(path)
    return lists


def _images_of(
    place: str, split: str, tree: _Tree, settings: _Settings, folder: Folder, report: Report
) -> Sequence[str]:
    """Names of the images of a folder, or of a list, wherever on another machine it was."""
    near = folder.relative(settings.path.parent)
    for candidate in _candidates(place.replace('\\', '/'), settings.root.replace('\\', '/'), near):
        if names := tree.below(candidate):
            return names
        text = tree.texts.get(os.path.splitext(candidate)[0])
        if text and candidate.lower().endswith('.txt'):
            return _listed(text, tree, folder, report)
    report.note(
        str(settings.path),
        '{split}: {place} is no folder with images, and no list of images, below {root}; it is '
        'left out.',
        split=split,
        place=place,
        root=folder.root,
    )
    return []


def _candidates(place: str, root: str, near: str) -> Iterator[str]:
    """Where below the folder a place may be, the most likely first.

    Args:
        place: from a file in ``near``; absolute ones are those of any machine.
        root: what the file says that places are relative to.
        near: the file's folder.
    """
    own = _plain_parts(place)
    is_absolute = place.startswith('/') or place[1:2] == ':'
    parts = own if is_absolute else [*_plain_parts(root), *own]
    least = 1 if is_absolute else max(len(own), 1)
    for start in range(len(parts) - least + 1):
        if parts[start:] != ['images'] or not start:  # any folder may be called so
            for base in dict.fromkeys((near, '.')):
                yield posixpath.normpath(posixpath.join(base, *parts[start:]))


def _plain_parts(path: str) -> list[str]:
    return [part for part in path.split('/') if part not in ('', '.', '..')]


def _listed(path: Path, tree: _Tree, folder: Folder, report: Report) -> list[str]:
    """Names of the images that a list names, one a line."""
    names = []
    near = folder.relative(path.parent)
    for index, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        listed = line.strip().replace('\\', '/')
        candidates = _candidates(listed, '', near)
        name = next((each for each in candidates if each in tree.images), None)
        if name is None and (image := folder.find_image(listed, path.parent)):
            name = folder.relative(image)
        if name is None:
            note_missing(report, f'{path}, line {index}', listed, folder)
        else:
            names.append(name)
    return names


# --- Labels -----------------------------------------------------------------------------------


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _text(path: Path, must: bool = True) -> str:
    """The text of a file, which may be empty; of one that cannot be read '' unless it ``must``."""
    try:
        return read_text(path)
    except UserError:
        if must and (_size(path) or not path.is_file()):
            raise
        return ''


def _looks_like_labels(path: Path) -> bool:
    """Whether the first line of a file is that of an object, with any mistake in its numbers."""
    first = _text(path, must=False).lstrip().split('\n', 1)[0].split()
    return len(first) > 4 and all(re.fullmatch(r'[-+0-9.,e]+|nan|inf', each) for each in first)


class _Reader:
    """Reads label files, and counts what is known only when all of them are read."""

    def __init__(self, tree: _Tree, settings: _Settings, report: Report) -> None:
        self._tree, self._settings, self._report = tree, settings, report
        self._used: set[Path] = set()
        self._boxes = self._polygons = self._with_keypoints = 0
        self._rectangles = self._tilted = self._corners = 0  # of polygons with four points

    def sample(self, name: str) -> Sample | None:
        """An image with its objects; None for one that cannot be read."""
        image, label = self._tree.images[name], self._tree.label_of(name)
        if label is None:
            self._report.note(
                str(image), 'has no label file; it counts as an image without objects.'
            )
            return Sample(image, (), str(image))
        self._used.add(label)
        rows = self._rows(label)
        if not rows:
            return Sample(image, (), str(label))
        size = upright_size(image, self._report)
        if size is None:
            return None
        objects = tuple(self._object(row, size) for row in rows)
        return Sample(image, objects, str(label))

    def _rows(self, path: Path) -> list[tuple[float, ...]]:
        """Lines of a label file as numbers, each once."""
        rows: dict[tuple[float, ...], None] = {}
        total = 0
        for index, line in enumerate(_text(path).splitlines(), 1):
            if not line.strip():
                continue
            total += 1
            try:
                rows[self._row(line.split())] = None
            except ValueError as error:
                raise UserError(f'{path}, line {index}: {error}.') from None
        if total > len(rows):
            self._report.note(
                str(path),
                'repeats {count} line(s), which are left out.',
                count=total - len(rows),
            )
        return list(rows)

    def _row(self, texts: list[str]) -> tuple[float, ...]:
        """A class number and fractions.

        Raises:
            ValueError: what was expected and what came, as a sentence without its end.
        """
        if any(',' in text for text in texts):
            raise ValueError(
                'expected numbers with decimal points, separated by spaces, got '
                f'{short(" ".join(texts))}'
            )
        label, *values = map(number, texts)
        if label not in self._settings.names:
            known = self._settings.names
            raise ValueError(
                f'expected a class number that {self._settings.path.name} names (from '
                f'{min(known)} to {max(known)}), got {texts[0]}'
            )
        if self._settings.keypoints and len(values) == 4 + self._settings.keypoints:
            self._with_keypoints += 1
            values = values[:4]
        self._check_count(values)
        if outside := [value for value in values if not _LEAST <= value <= _MOST]:
            raise ValueError(
                "expected fractions of the image's width and height, from 0 to 1, got "
                f'{some(outside)}; are these pixels? Divide x by the width and y by the height'
            )
        if len(values) == 4 and min(values[2:]) < 0:
            raise ValueError(
                f'expected the width and height of a box, got {values[2]} and {values[3]}'
            )
        return label, *values

    def _check_count(self, values: list[float]) -> None:
        count = len(values)
        if count == 4 or (count >= 6 and count % 2 == 0 and not self._settings.keypoints):
            return
        if self._settings.keypoints:
            raise ValueError(
                f'expected a class, 4 numbers of a box and {self._settings.keypoints} of '
                f'keypoints (kpt_shape of {self._settings.path.name}), got {count} after the class'
            )
        if count == 5:
            raise ValueError(
                'expected a class and 4 numbers of a box, got 5; the last may be the confidence '
                'of a prediction. Remove it if these boxes are to be learned'
            )
        raise ValueError(
            f'expected a class and 4 numbers of a box, or x and y of at least three points, got '
            f'{count} after the class; if some are keypoints, give kpt_shape in data.yaml'
        )

    def _object(self, row: tuple[float, ...], size: tuple[int, int]) -> Object:
        """Fractions of an image of that width and height, as an object in pixels."""
        label = self._settings.names[int(row[0])]
        values = [value * size[index % 2] for index, value in enumerate(row[1:])]
        if len(values) == 4:
            self._boxes += 1
            x, y, width, height = values
            return Object(label, (x - width / 2, y - height / 2, width, height))
        self._polygons += 1
        if len(values) == 8:
            self._corners += 1
            is_rectangle, is_tilted = _rectangle(values)
            self._rectangles += is_rectangle
            self._tilted += is_rectangle and is_tilted
        return Object.of_polygons(label, [values])

    def finish(self) -> None:
        """Judges what was read as a whole.

        Raises:
            UserError: there are no labels, or oriented boxes.
        """
        settings, report = self._settings, self._report
        if not self._used:
            raise UserError(
                f'None of the images in {self._tree.root} has a label file. Expected one of the '
                "image's name with .txt, in a folder labels parallel to images, or beside the "
                'image.'
            )
        self._refuse_oriented()
        if self._with_keypoints:
            report.note(
                str(settings.path),
                '{count} objects have keypoints, which are left out; their boxes are kept.',
                count=self._with_keypoints,
            )
        if self._boxes and self._polygons:
            report.note(
                str(self._tree.root),
                '{boxes} objects are boxes and {polygons} are polygons; all are kept, and the '
                'boxes have no masks.',
                boxes=self._boxes,
                polygons=self._polygons,
            )
        folders = {path.parent for path in self._used}
        for path in self._tree.texts.values():
            unused = path.parent in folders and path not in self._used
            if unused and not _is_names_file(path) and _looks_like_labels(path):
                report.note(str(path), 'has no image of its name; it is left out.')

    def _refuse_oriented(self) -> None:
        """Oriented boxes look like polygons of four points; they are told by words, or by form."""
        if self._settings.task == 'segment' or not self._polygons or self._boxes:
            return
        by_form = self._rectangles >= 0.9 * self._polygons and self._tilted
        if self._corners == self._polygons and (by_form or self._settings.task == 'obb'):
            raise UserError(
                f'{self._settings.path}: the labels are oriented boxes (all {self._corners} have '
                'four corners), which the detectors here do not learn. Write them as upright '
                'boxes (class, centre, width, height); if they are outlines of objects, add the '
                'line "task: segment" to data.yaml.'
            )


def _rectangle(corners: Sequence[float]) -> tuple[bool, bool]:
    """Whether four points are a rectangle, up to 2 % of its diagonal, and whether it is tilted."""
    x1, y1, x2, y2, x3, y3, x4, y4 = corners
    diagonal = math.hypot(x3 - x1, y3 - y1)
    other = math.hypot(x4 - x2, y4 - y2)
    # Diagonals of a rectangle are equal, and cross in the middle of both.
    apart = math.hypot(x1 + x3 - x2 - x4, y1 + y3 - y2 - y4) / 2
    near = 0.02 * diagonal + 1  # pixels: corners are rounded
    is_tilted = min(abs(x2 - x1), abs(y2 - y1)) > near
    return abs(diagonal - other) <= near and apart <= near, is_tilted
