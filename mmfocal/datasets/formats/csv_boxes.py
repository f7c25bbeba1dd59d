"""CSV of boxes, a row each: TensorFlow's and Roboflow's, keras-retinanet's, AutoML's and others.

A header may name its columns in many ways and any order. ``width`` and ``height`` are those of the
image beside two corners of a box (``xmin`` to ``ymax``), and those of the box beside one (``x``,
``y``). Without a header, rows are keras-retinanet's (path, x1, y1, x2, y2, class), AutoML's
(split, path, class, x1, y1, ...) or makesense.ai's (class, x, y, width, height, path, ...).
Coordinates that are all at most 1 are fractions of the image. A row without a box says that its
image shows nothing that is learned.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from mmfocal.utils.errors import UserError
from mmfocal.utils.files import IMAGE_SUFFIXES

from ..checks import Report
from ..checks.report import short, some
from .content import (
    SPLITS,
    WHOLE,
    Annotated,
    Folder,
    Object,
    Sample,
    each_once,
    note_missing,
    number,
    read_text,
    split_of,
    upright_size,
)

MAX_CSV = 2**30  # bytes; a hundred for each of some ten million boxes
_START = 65_536  # bytes that are looked at to recognise a file
# Names of columns, in lower case without anything but letters and digits, the likeliest first.
_COLUMNS = {
    'image': 'filename image imagepath imagename imagefilename file filepath path img imgpath '
    'imgname imageid imageuri imageurl imgid frame',
    'label': 'class label classname labelname name category categoryname objectclass objectname',
    'x1': 'xmin x1 left bboxxmin xminimum bboxx1 bboxleft xtl xstart',
    'y1': 'ymin y1 top bboxymin yminimum bboxy1 bboxtop ytl ystart',
    'x2': 'xmax x2 right bboxxmax xmaximum bboxx2 bboxright xbr xend',
    'y2': 'ymax y2 bottom bboxymax ymaximum bboxy2 bboxbottom ybr yend',
    'x': 'x bboxx boxx',
    'y': 'y bboxy boxy',
    'cx': 'xcenter xcentre centerx centrex cx',
    'cy': 'ycenter ycentre centery centrey cy',
    'box_width': 'bboxwidth boxwidth bboxw boxw w',
    'box_height': 'bboxheight boxheight bboxh boxh h',
    'any_width': 'width',
    'any_height': 'height',
    'image_width': 'imagewidth imgwidth imgw',
    'image_height': 'imageheight imgheight imgh',
    'split': 'split set subset partition usage mlusage datasplit',
    'crowd': 'isgroupof iscrowd',
}
_CORNERS = ('x1', 'y1', 'x2', 'y2')
_UNASSIGNED = ('', 'unassigned')
_EMPTY = ('', 'nan', 'null', 'none', 'na')  # as pandas and databases write what is not there


# Columns of files without a header: keras-retinanet's, AutoML's and makesense.ai's.
_BARE = {
    6: 'image x1 y1 x2 y2 label',
    11: 'split image label x1 y1 - - x2 y2 - -',
    8: 'label x y box_width box_height image image_width image_height',
}


@dataclass(frozen=True)
class _Form:
    """Which column holds what.

    Attributes:
        delimiter: between columns.
        names: of the columns as they are written; empty without a header.
        columns: number of a column by its meaning, see :data:`_COLUMNS`.
    """

    delimiter: str
    names: tuple[str, ...]
    columns: dict[str, int]

    @cached_property
    def box(self) -> tuple[str, ...]:
        """Meanings of the four columns of a box; empty if they are not there."""
        width, height = (
            next((name for name in (f'box_{side}', f'any_{side}') if name in self.columns), '')
            for side in ('width', 'height')
        )
        for box in (
            _CORNERS,
            ('x', 'y', width, height),
            ('x1', 'y1', width, height),
            ('cx', 'cy', width, height),
        ):
            if all(name in self.columns for name in box):
                return box
        return ()

    @cached_property
    def size(self) -> tuple[str, ...]:
        """Meanings of the two columns of the image's size; empty if they are not there."""
        for size in (('image_width', 'image_height'), ('any_width', 'any_height')):
            if all(name in self.columns and name not in self.box for name in size):
                return size
        return ()


@dataclass
class _Image:
    """An image while rows are gathered; boxes are those of rows, in any form."""

    where: str
    split: str
    size: tuple[float, float] | None
    boxes: dict[tuple[str, bool, tuple[float, ...]], None] = field(default_factory=dict)


def recognise(folder: Folder) -> str | None:
    """What shows that a folder holds CSV files of boxes; None if nothing does."""
    found = [path for path in folder.with_suffix('.csv')[:50] if _form_of(path)]
    if not found:
        return None
    return f'{len(found)} CSV file(s) of boxes, {some(folder.relative(path) for path in found)}'


def read(folder: Folder, report: Report) -> Annotated:
    """All images that CSV files name, with their boxes.

    Splits follow from a column that names them, else from names of files and folders. Rows that
    are there twice are left out with a note.

    Raises:
        UserError: a row cannot be understood.
    """
    files = {path: form for path in folder.with_suffix('.csv') if (form := _form_of(path))}
    if not files:
        raise UserError(
            f'{folder.root} holds no CSV file of boxes. Expected a header such as '
            'filename,class,xmin,ymin,xmax,ymax.'
        )
    splits: dict[str, list[Sample]] = {}
    for path, form in _dividing(files, folder, report).items():
        _check_columns(path, form)
        for split, sample in _Table(path, form, folder, report).samples():
            splits.setdefault(split, []).append(sample)
    if not splits:
        raise UserError(
            f'{some(files)}: none of the images that are named can be read below {folder.root}. '
            'Give the folder that holds both.'
        )
    if len(splits) > 1:
        for sample in splits.pop(WHOLE, ()):
            report.note(
                sample.where,
                'the image {image} is in none of train, val and test; it is left out.',
                image=sample.image.name,
            )
    used = {each.label for samples in splits.values() for one in samples for each in one.objects}
    return Annotated(_classes(folder, used), each_once(splits, report))


# --- Which column holds what ------------------------------------------------------------------


def _form_of(path: Path) -> _Form | None:
    """The form of a file by its first rows; None if it is no table of boxes."""
    try:
        with open(path, 'rb') as file:
            start = file.read(_START) if path.is_file() else b''
        is_utf16 = start.startswith((b'\xff\xfe', b'\xfe\xff'))
        text = start.decode('utf-16' if is_utf16 else 'utf-8-sig', errors='replace')
        tables = [(each, _first_rows(text, each)) for each in (',', ';', '\t')]
    except (OSError, csv.Error):
        return None
    delimiter, rows = max(tables, key=lambda table: len(table[1][0]) if table[1] else 0)
    if not rows:
        return None
    return _form_of_header(delimiter, rows[0]) or _bare_form(delimiter, rows)


def _first_rows(text: str, delimiter: str) -> list[list[str]]:
    rows = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter)
    return list(itertools.islice((row for row in rows if any(row)), 4))[:3]


def _form_of_header(delimiter: str, names: list[str]) -> _Form | None:
    plain = [''.join(c for c in name.lower() if c.isalnum()) for name in names]
    columns = {
        meaning: plain.index(known)
        for meaning, words in _COLUMNS.items()
        if (known := next((word for word in words.split() if word in plain), None))
    }
    form = _Form(delimiter, tuple(names), columns)
    is_near = sum(name in columns for name in _CORNERS) > 1  # with a column missing
    return form if 'image' in columns and (form.box or is_near) else None


def _bare_form(delimiter: str, rows: list[list[str]]) -> _Form | None:
    meanings = _BARE.get(len(rows[0]), '').split()
    form = _Form(delimiter, (), {name: index for index, name in enumerate(meanings)})
    for row in rows:
        if len(row) != len(meanings) or not form.box:
            return None
        image = row[form.columns['image']].strip().lower()
        values = [row[form.columns[name]].strip() for name in form.box]
        is_box = all(each in _EMPTY or re.fullmatch(r'[-+0-9.,e]+', each) for each in values)
        if not image.endswith(tuple(IMAGE_SUFFIXES)) or not is_box:
            return None
    return form


def _check_columns(path: Path, form: _Form) -> None:
    """Raises UserError if the columns that are needed are not all there."""
    got = f'got {some(form.names)}'
    if not form.box:
        raise UserError(
            f'{path}: expected the columns xmin, ymin, xmax and ymax, or x, y, width and height, '
            f'{got}.'
        )
    if 'label' not in form.columns:
        raise UserError(f'{path}: expected a column class, label, name or category, {got}.')


def _dividing(files: dict[Path, _Form], folder: Folder, report: Report) -> dict[Path, _Form]:
    """Files that belong to a split, where some do: others often repeat all of them."""
    divided = {
        path: form
        for path, form in files.items()
        if 'split' in form.columns or split_of(folder.relative(path))
    }
    for path in files:
        if divided and path not in divided:
            report.note(
                str(path),
                'names none of train, val and test, as other CSV files do; it is left out.',
            )
    return divided or files


# --- Rows -------------------------------------------------------------------------------------


class _Table:
    """The rows of a CSV file."""

    def __init__(self, path: Path, form: _Form, folder: Folder, report: Report) -> None:
        self._path, self._form, self._folder, self._report = path, form, folder, report
        self._split = split_of(folder.relative(path))
        self._found: dict[str, Path | None] = {}
        self._images: dict[Path, _Image] = {}
        self._most = 0.0
        self._values = self._parts = 0  # numbers of boxes, and those between 0 and 1

    def samples(self) -> Iterator[tuple[str, Sample]]:
        """Images with their splits."""
        for line, row in self._rows():
            try:
                self._add(line, row)
            except ValueError as error:
                raise UserError(f'{self._path}, line {line}: {error}.') from None
        is_fractions = self._are_fractions()
        if not is_fractions:
            self._check_sizes()
        for path, image in self._images.items():
            size = (1, 1)
            if is_fractions and image.boxes:
                size = upright_size(path, self._report)
            if size is not None:
                objects = tuple(self._object(*each, size) for each in image.boxes)
                yield image.split, Sample(path, objects, image.where, image.size)

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Rows with the number of their last line; without the header and empty ones."""
        text = io.StringIO(read_text(self._path, MAX_CSV), newline=None)
        reader = csv.reader(text, delimiter=self._form.delimiter)
        has_header = bool(self._form.names)
        try:
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                if not has_header:
                    yield reader.line_num, row
                has_header = False
        except csv.Error as error:
            raise UserError(
                f'{self._path}, line {reader.line_num}: is damaged, no CSV ({error}).'
            ) from error

    def _cell(self, row: list[str], meaning: str) -> str:
        return row[self._form.columns[meaning]].strip()

    def _add(self, line: int, row: list[str]) -> None:
        """Adds the image and the box of a row.

        Raises:
            ValueError: what was expected and what came, as a sentence without its end.
        """
        expected = len(self._form.names) or 1 + max(self._form.columns.values())
        if len(row) < expected:
            raise ValueError(f'expected {expected} columns, got {len(row)}')
        image = self._image(line, row)
        texts = [self._cell(row, name) for name in self._form.box]
        if image is None or all(text.lower() in _EMPTY for text in texts):
            return
        label = self._cell(row, 'label')
        if not label:
            raise ValueError('expected the name of a class, got none')
        values = tuple(
            self._number(text, name) for text, name in zip(texts, self._form.box, strict=True)
        )
        if self._form.box != _CORNERS and min(values[2:]) < 0:
            raise ValueError(
                f'expected the width and height of a box, got {values[2]} and {values[3]}'
            )
        is_crowd = 'crowd' in self._form.columns and self._cell(row, 'crowd') in ('1', 'True')
        if (label, is_crowd, values) in image.boxes:
            self._report.note(f'{self._path}, line {line}', 'repeats a box, and is left out.')
        image.boxes[label, is_crowd, values] = None
        self._values += 4
        self._parts += sum(0 < value < 1 for value in values)
        self._most = max(self._most, *values)

    def _number(self, text: str, meaning: str) -> float:
        if self._form.delimiter != ',':
            text = text.replace(',', '.')
        names = self._form.names
        try:
            return number(text)
        except ValueError as error:
            name = names[self._form.columns[meaning]] if names else meaning
            raise ValueError(f'{name}: {error}') from None

    def _image(self, line: int, row: list[str]) -> _Image | None:
        """The image of a row; None, with a note, if it is not there."""
        name = self._cell(row, 'image')
        if not name:
            raise ValueError('expected the name of an image, got none')
        where = f'{self._path}, line {line}'
        if name not in self._found:
            self._found[name] = self._folder.find_image(name, self._path.parent)
            if self._found[name] is None:
                note_missing(self._report, where, name, self._folder)
        path = self._found[name]
        if path is None:
            return None
        image = self._images.get(path)
        if image is None:
            split = self._split_of(row) or split_of(self._folder.relative(path.parent)) or WHOLE
            image = self._images[path] = _Image(where, split, self._size(row))
        elif (split := self._split_of(row)) not in (None, image.split):
            raise ValueError(
                f'the image {name} is in {split} here, and in {image.split} before ({image.where})'
            )
        return image

    def _split_of(self, row: list[str]) -> str | None:
        """The split that the row, or the file's name, says."""
        if 'split' not in self._form.columns:
            return self._split
        text = self._cell(row, 'split')
        if text.lower() in _UNASSIGNED:
            return WHOLE
        if split := split_of(text.replace('/', ' ')):
            return split
        raise ValueError(f'expected one of {", ".join(SPLITS)}, got {short(text)}')

    def _size(self, row: list[str]) -> tuple[float, float] | None:
        """Width and height of the image in pixels, if the row says so."""
        try:
            width, height = (number(self._cell(row, name)) for name in self._form.size)
        except ValueError:  # none, or no two
            return None
        return (width, height) if min(width, height) > 0 else None

    def _are_fractions(self) -> bool:
        """Whether coordinates are fractions of the image instead of pixels.

        Raises:
            UserError: most seem to be, and some cannot be.
        """
        if self._most <= 1.01:
            return True
        if self._parts > self._values / 2:
            raise UserError(
                f'{self._path}: expected coordinates in pixels, or all as fractions from 0 to 1; '
                f'got {self._parts} of {self._values} between 0 and 1, and values up to '
                f'{self._most:g}. Correct those that are too large.'
            )
        return False

    def _check_sizes(self) -> None:
        """Raises UserError if width and height, which may be either, are those of the images."""
        if 'any_width' not in self._form.box:
            return
        seen = [(path, image) for path, image in self._images.items() if image.boxes][:20]
        sizes = [upright_size(path, Report()) for path, _ in seen]
        if seen and all(
            box[2:] == size and max(box[:2]) > 0
            for (_, image), size in zip(seen, sizes, strict=True)
            for _, _, box in image.boxes
        ):
            raise UserError(
                f'{self._path}: width and height are those of the images. Expected those of '
                'boxes: call them bbox_width and bbox_height, or give xmax and ymax.'
            )

    def _object(
        self, label: str, is_crowd: bool, box: tuple[float, ...], size: tuple[float, float]
    ) -> Object:
        """A box in pixels of numbers that are multiples of a size."""
        a, b, c, d = (value * size[index % 2] for index, value in enumerate(box))
        if self._form.box == _CORNERS:
            corners = (a, b, c, d)
        elif self._form.box[0] == 'cx':
            corners = (a - c / 2, b - d / 2, a + c / 2, b + d / 2)
        else:
            corners = (a, b, a + c, b + d)
        return replace(Object.of_corners(label, corners), is_crowd=is_crowd)


# --- Classes ----------------------------------------------------------------------------------


def _classes(folder: Folder, used: set[str]) -> tuple[str, ...]:
    """In the order of a file with rows of name and number that has all, else of the alphabet."""
    for path in folder.with_suffix('.csv'):
        if 'class' not in path.stem.lower():
            continue
        try:
            rows = [row for row in csv.reader(io.StringIO(read_text(path))) if row]
            numbers = {row[0].strip(): int(row[1]) for row in rows if len(row) == 2}
        except (UserError, ValueError, csv.Error):
            continue
        if used <= set(numbers):
            return tuple(sorted(numbers, key=numbers.__getitem__))
    return tuple(sorted(used))
