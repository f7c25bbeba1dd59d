"""Pascal VOC: an XML file for each image, after the VOC development kit, LabelImg and Roboflow.

Splits come from the lists in ``ImageSets/Main``, else from the names of folders. Corners are
pixels that count from 1 and belong to the box, as the development kit defines them and detectron2
reads them: a box reaches from ``xmin - 1`` to ``xmax``. Many tools count from 0 and write edges
instead; a 0 in a data set shows that, and then a box reaches from ``xmin`` to ``xmax``. Objects
that are marked difficult are ordinary ones here, with a note: mmdet's reader of COCO has no such
mark. An image without an XML file was not annotated, and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element

from mmfocal.utils.errors import UserError

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
    read_xml,
)

_BOTH = 'trainval'
# Folders of annotations; what lies below them mirrors the folders of images.
_ANNOTATION_FOLDERS = ('annotations', 'annotation', 'labels', 'xml', 'xmls')
# Files that give classes in an order: CVAT's, and others with one name a line.
_NAMES_FILES = ('labelmap.txt', 'labels.txt', 'classes.txt')
_START = 4096  # characters within which the outermost element of an XML file begins


def recognise(folder: Folder) -> str | None:
    """What shows that a folder holds a Pascal VOC data set; None if nothing does."""
    files = folder.with_suffix('.xml')
    if not any(map(_looks_like_voc, files[:20])):
        return None
    folders = sorted({folder.relative(path.parent) for path in files})
    described = f'{len(files)} XML file(s) of Pascal VOC in {some(folders)}'
    lists = sorted({folder.relative(path.parent) for path, _ in _lists(folder)})
    return f'{described}, divided by lists in {some(lists)}' if lists else described


def read(folder: Folder, report: Report) -> Annotated:
    """All images of a Pascal VOC data set with their boxes, and polygons where there are any.

    Raises:
        UserError: an XML file is damaged, or an object in it cannot be understood.
    """
    files = folder.with_suffix('.xml')
    divided = _by_lists(files, folder, report) or by_folders(files, folder, report)
    splits = {
        split: [sample for path in paths if (sample := _sample(path, folder, report))]
        for split, paths in divided.items()
    }
    if not any(splits.values()):
        raise UserError(
            f'{folder.root}: expected XML files with <annotation> as their outermost element, '
            f'each with its image below that folder; got {len(files)} XML file(s), none like that.'
        )
    objects = [each for samples in splits.values() for one in samples for each in one.objects]
    if all(min(each.box[:2]) >= 1 for each in objects):
        splits = {split: list(map(_from_zero, samples)) for split, samples in splits.items()}
    classes = _classes(folder, {each.label for each in objects})
    splits = each_once(splits, report)
    _note_unannotated(splits, folder, report)
    return Annotated(classes, splits)


def _looks_like_voc(path: Path) -> bool:
    """Whether a file begins as VOC does, damaged or not; CVAT's and LabelMe's XML do not."""
    try:
        text = read_text(path)
    except UserError:
        return False
    is_annotation = re.search(r'<annotation[\s>]', text[:_START])
    return bool(is_annotation) and ('<bndbox' in text or '<object' not in text)


# --- Which images belong to which split -------------------------------------------------------


def _lists(folder: Folder) -> Iterator[tuple[Path, str]]:
    """Lists of images with their split or ``'trainval'``; not those of a class (cat_train.txt)."""
    for path in folder.with_suffix('.txt'):
        stem = path.stem.lower().removesuffix('_list')
        is_known = path.parent.name in ('Main', 'ImageSets') or path.parent == folder.root
        for split, words in {**SPLIT_WORDS, _BOTH: (_BOTH,)}.items():
            if is_known and stem in words:
                yield path, split


def _by_lists(files: list[Path], folder: Folder, report: Report) -> dict[str, list[Path]]:
    """XML files by split as ImageSets/Main says; empty without such lists."""
    splits: dict[str, dict[Path, None]] = {}
    for path, split in _lists(folder):
        base = next(
            (each.parent for each in path.parents if each.name == 'ImageSets'), path.parent
        )
        known = {each.stem: each for each in files if base in each.parents}
        for index, line in enumerate(_lines(path), 1):
            if not line.strip():
                continue
            if found := _named(line, known):
                splits.setdefault(split, {})[found] = None
            else:
                report.note(
                    f'{path}, line {index}',
                    'names {name}, which has no XML file and is left out; an image without '
                    'objects needs one without <object>.',
                    name=short(line.strip()),
                )
    both = splits.pop(_BOTH, {})
    if both and 'train' not in splits:
        splits['train'] = {each: None for each in both if each not in splits.get('val', ())}
    if splits:
        listed = set().union(*splits.values())
        for each in files:
            if each not in listed:
                report.note(str(each), 'is in no list of train, val or test; it is left out.')
    return {split: list(paths) for split, paths in splits.items()}


def _lines(path: Path) -> list[str]:
    return read_text(path).splitlines() if path.stat().st_size else []


def _named(line: str, known: dict[str, Path]) -> Path | None:
    """The XML file that a line names: by a name, a path, and with other columns after it."""
    line = line.strip().replace('\\', '/')
    for text in (line, line.split()[0]):
        name = PurePosixPath(text).name
        for stem in (name, PurePosixPath(name).stem):
            if stem in known:
                return known[stem]
    return None


# --- An XML file ------------------------------------------------------------------------------


def _sample(path: Path, folder: Folder, report: Report) -> Sample | None:
    """The image of an XML file; None, with a note, if it is not there or it is no annotation."""
    root = read_xml(path)
    if root.tag != 'annotation':
        report.note(
            str(path),
            'is no file of Pascal VOC: expected <annotation> outermost, got {tag}; it is left '
            'out.',
            tag=short(root.tag),
        )
        return None
    image = _image(path, _text(root, 'filename'), folder, report)
    if image is None:
        note_missing(report, str(path), _text(root, 'filename') or path.stem, folder)
        return None
    objects = []
    for index, element in enumerate(root.findall('object'), 1):
        where = f'{path}, object {index}'
        try:
            objects.append(_object(element, where, report))
        except ValueError as error:
            raise UserError(f'{where}: {error}.') from None
    return Sample(image, tuple(objects), str(path), _size(root))


def _image(path: Path, filename: str, folder: Folder, report: Report) -> Path | None:
    """The image of the XML file's own name, as the development kit and mmdet find it.

    What the file says comes second: it is often left over from before images were renamed.
    """
    name = PurePosixPath(filename.replace('\\', '/')).name
    mirrored = [
        part
        for part in folder.relative(path.parent).split('/')
        if part.lower() not in (*_ANNOTATION_FOLDERS, '.')
    ]

    def find(each: str) -> Path | None:
        return folder.find_image('/'.join([*mirrored, each]), path.parent)

    said = find(name) if name else None
    if said and said.stem == path.stem:
        return said
    own = find(path.stem)
    if own and said:
        report.note(
            str(path),
            'names the image {said}, and has the name of {own}, which is used.',
            said=said.name,
            own=own.name,
        )
    return own or said


def _text(element: Element, name: str) -> str:
    return (element.findtext(name) or '').strip()


def _size(root: Element) -> tuple[float, float] | None:
    """Width and height in pixels; None where they are missing or 0, as some tools write them."""
    try:
        width, height = (number(root.findtext(f'size/{side}')) for side in ('width', 'height'))
    except ValueError:
        return None
    return (width, height) if min(width, height) > 0 else None


def _object(element: Element, where: str, report: Report) -> Object:
    """An object as its file says, counted from 1 or 0.

    Raises:
        ValueError: what was expected and what came, as a sentence without its end.
    """
    label = _text(element, 'name')
    if not label:
        raise ValueError('expected the name of a class in <name>, got none')
    boxes = element.findall('bndbox')  # those of its parts lie deeper
    polygon = _polygon(element.find('polygon'))
    if not boxes and polygon:
        return Object.of_polygons(label, [polygon])
    if len(boxes) != 1:
        raise ValueError(
            f'{label} has {len(boxes)} <bndbox>, expected one'
            + ('; oriented boxes (<robndbox>) are not supported' if _has_oriented(element) else '')
        )
    corners = [_corner(boxes[0], name) for name in ('xmin', 'ymin', 'xmax', 'ymax')]
    if corners[0] > corners[2] or corners[1] > corners[3]:
        report.note(
            where, 'has its corners in the wrong order, {box}; they are put right.', box=corners
        )
    if _text(element, 'difficult') == '1':
        report.note(where, 'is marked difficult; it is learned and counted as any other object.')
    result = Object.of_corners(label, corners)
    return replace(result, polygons=(polygon,)) if polygon else result


def _has_oriented(element: Element) -> bool:
    return element.find('robndbox') is not None


def _corner(box: Element, name: str) -> float:
    try:
        return number(_text(box, name))
    except ValueError as error:
        raise ValueError(f'{name}: {error}') from None


def _polygon(element: Element | None) -> tuple[float, ...]:
    """Points as Roboflow (x1, y1, x2, ...) or LabelMe and CVAT (pt with x and y) write them.

    Raises:
        ValueError: they are something else.
    """
    if element is None or not len(element):
        return ()
    points = element.findall('pt')
    texts = [point.findtext(name) for point in points for name in 'xy']
    if not points:
        names = [f'{axis}{index}' for index in range(1, len(element) // 2 + 1) for axis in 'xy']
        texts = [element.findtext(name) for name in names]
    try:
        polygon = tuple(map(number, texts))
    except ValueError as error:
        raise ValueError(f'its <polygon>: {error}') from None
    return polygon if len(polygon) >= 6 else ()


def _from_zero(sample: Sample) -> Sample:
    """A sample whose corners were pixels from 1, with edges from 0."""
    objects = tuple(
        replace(
            each,
            box=(each.box[0] - 1, each.box[1] - 1, each.box[2] + 1, each.box[3] + 1),
            polygons=tuple(tuple(value - 1 for value in polygon) for polygon in each.polygons),
        )
        for each in sample.objects
    )
    return replace(sample, objects=objects)


# --- The data set as a whole ------------------------------------------------------------------


def _classes(folder: Folder, used: set[str]) -> tuple[str, ...]:
    """In the order of a file that has all names that are used, else of the alphabet."""
    for path in folder.with_suffix('.txt'):
        if path.name in _NAMES_FILES:
            lines = [line.strip() for line in _lines(path) if line.strip()[:1] not in ('', '#')]
            if path.name == 'labelmap.txt':  # name:colour:parts:actions
                lines = [line.rsplit(':', 3)[0] for line in lines]
            names = [name for name in dict.fromkeys(lines) if name != 'background' or name in used]
            if used <= set(names):
                return tuple(names)
    return tuple(sorted(used))


def _note_unannotated(splits: dict[str, list[Sample]], folder: Folder, report: Report) -> None:
    """Notes images beside others, that have no XML file."""
    used = {sample.image for samples in splits.values() for sample in samples}
    folders = {image.parent for image in used}
    xml = {path.stem for path in folder.with_suffix('.xml')}
    for path in folder.images:
        if path.parent in folders and path not in used and path.stem not in xml:
            report.note(str(path), 'has no XML file; it is left out.')
