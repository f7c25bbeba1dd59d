"""COCO's form, and files that come close to it.

Format: https://cocodataset.org/#format-data. Exports of many tools leave out ``iscrowd`` or
``area``, number annotations from 0 or write numbers as text; that is mended here.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmfocal.utils.errors import UserError
from mmfocal.utils.text import printable

from ..checks import CocoContent, Report, read_coco
from ..checks.report import short
from .content import (
    SPLITS,
    WHOLE,
    Annotated,
    Folder,
    Object,
    Sample,
    note_missing,
    number,
    read_text,
    split_of,
)
from .conversion import refuse_ruins

LISTS = ('images', 'annotations', 'categories')
GLANCE = 2**16  # bytes at the beginning and the end of a file that are looked at first
MAX_BYTES = 2**31  # of a file that is mended


def recognise(folder: Folder) -> str | None:
    """Names the JSON files of COCO's form that are below a folder."""
    found = [folder.relative(path) for path in annotation_files(folder)]
    return f'annotations in {", ".join(found)}' if found else None


def read(folder: Folder, report: Report) -> Annotated:
    """Reads all files of COCO's form, see :func:`read_files`."""
    return read_files(folder, find_splits(folder), report)


def annotation_files(folder: Folder) -> list[Path]:
    """JSON files below a folder that look like COCO's form with boxes."""
    return [path for path in folder.with_suffix('.json') if _looks_right(path)]


def _looks_right(path: Path) -> bool:
    """Whether the keys of COCO's lists are near the beginning or the end of a file."""
    try:
        with path.open('rb') as file:
            text = file.read(GLANCE)
            file.seek(max(GLANCE, path.stat().st_size - GLANCE))
            text += file.read()
    except OSError:
        return False
    if b'\0' in text[:4]:  # UTF-16
        text = text.replace(b'\0', b'')
    found = [name for name in LISTS if f'"{name}"'.encode() in text]
    others = (b'"caption"', b'"segments_info"')  # COCO's own other forms
    return len(found) >= 2 and not any(word in text for word in others)


def find_splits(folder: Folder, given: dict[str, Path] | None = None) -> dict[str, Path]:
    """Annotation files by ``'train'``, ``'val'``, ``'test'``, or one for ``'all'``.

    Args:
        folder: the data's.
        given: files by split, where names do not tell.

    Raises:
        UserError: names do not tell which file is which, or a file is given twice.
    """
    if given:
        if len(set(map(os.path.realpath, given.values()))) < len(given):
            raise UserError(
                f'{given["train"]} is given both to train on and to validate with; expected two '
                'files. Leave out --val-json to validate with a part of it.'
            )
        return dict(given)
    files = annotation_files(folder)
    by_split: dict[str, list[Path]] = {}
    for path in files:
        by_split.setdefault(split_of(folder.relative(path)) or WHOLE, []).append(path)
    for split, paths in by_split.items():
        if len(paths) > 1:  # COCO itself has keypoints beside instances
            instances = [path for path in paths if 'instances' in path.name]
            by_split[split] = instances if len(instances) == 1 else paths
    if len(files) > 1:
        by_split.pop(WHOLE, None) if len(by_split) > 1 else None
    for split, paths in by_split.items():
        if len(paths) > 1:
            names = printable(', '.join(map(folder.relative, paths)))
            what = 'one part' if split == WHOLE else f'"{split}"'
            raise UserError(
                f'{folder.root} holds several annotation files for {what}: {names}. Say which '
                'belong to which: --train-json FILE --val-json FILE'
            )
    return {split: paths[0] for split, paths in by_split.items()}


def read_files(folder: Folder, files: dict[str, Path], report: Report) -> Annotated:
    """Reads files of COCO's form, and mends what can be.

    Missing ids are numbered, a missing ``area`` or ``bbox`` follows from the outlines,
    ``iscrowd`` is 0 unless it says otherwise, and text that is a number is one.

    Raises:
        UserError: a file is of another form, or has categories that cannot be told apart.
    """
    contents = {split: _content(path) for split, path in files.items()}
    names: list[str] = []
    splits = {}
    for split, path in files.items():
        categories = dict(_categories(path, contents[split].categories))
        names += [name for name in categories.values() if name not in names]
        splits[split] = list(_samples(folder, path, split, contents[split], categories, report))
    _refuse_ruins(contents, splits, report)
    used = Counter(
        each.label for samples in splits.values() for sample in samples for each in sample.objects
    )
    return Annotated(tuple(name for name in names if used[name]), splits)


def _refuse_ruins(
    contents: dict[str, CocoContent], splits: dict[str, list[Sample]], report: Report
) -> None:
    images = sum(len(content.images) for content in contents.values())
    refuse_ruins('images', images, sum(map(len, splits.values())), report)
    for split, samples in splits.items():
        if not samples:
            refuse_ruins(f'images for "{split}"', len(contents[split].images), 0, report)
    annotations = sum(len(content.annotations) for content in contents.values())
    left = sum(len(sample.objects) for samples in splits.values() for sample in samples)
    refuse_ruins('annotations', annotations, left, report)


def _content(path: Path) -> CocoContent:
    with suppress(ValueError):
        return read_coco(path)
    try:
        content = json.loads(read_text(path, MAX_BYTES))  # with its byte order mark
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is cut off or damaged, no JSON ({error}).') from error
    lists = [content.get(name) if isinstance(content, dict) else None for name in LISTS]
    for name, value in zip(LISTS, lists, strict=True):
        if not isinstance(value, list):
            raise UserError(
                f"{path}: expected a list under {name!r}, as in COCO's form, got {short(value)}."
            )
    return CocoContent(*lists)


def _categories(path: Path, categories: Iterable[Any]) -> Iterator[tuple[str, str]]:
    seen: dict[str, str] = {}
    for position, each in enumerate(categories):
        key, name = _get(each, 'id'), _get(each, 'name')
        if key is None or not isinstance(name, str) or not name.strip():
            raise UserError(
                f"{path}: category number {position} needs 'id' and 'name', got {short(each)}."
            )
        if _key(key) in seen:
            raise UserError(f'{path}: category id {short(key)} is listed twice.')
        seen[_key(key)] = name
        yield _key(key), name.strip()


def _get(item: Any, key: str) -> Any:
    return item.get(key) if isinstance(item, dict) else None


def _key(value: Any) -> str:
    """An id as text; 1, 1.0 and "1" are the same."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _samples(
    folder: Folder,
    path: Path,
    split: str,
    content: CocoContent,
    categories: dict[str, str],
    report: Report,
) -> Iterator[Sample]:
    """Images with their objects, in the order of the file."""
    objects: dict[str, list[Object]] = {}
    images: dict[str, dict] = {}
    for position, image in enumerate(content.images):
        name, key = _get(image, 'file_name'), _get(image, 'id')
        where = f'{path}: image number {position}'
        if not isinstance(name, str) or not name or key is None:
            problem = "needs 'id' and 'file_name', got {came}; it is left out."
            report.note(where, problem, came=short(image))
        elif _key(key) in images:
            report.note(where, 'has the id {key} of another; it is left out.', key=short(key))
        else:
            images[_key(key)] = image
    for position, each in enumerate(content.annotations):
        where = f'{path}: annotation {_get(each, "id") or f"number {position}"}'
        key = _key(_get(each, 'image_id'))
        if key not in images:
            report.note(where, 'is of an image that is not listed, {key}; left out.', key=key)
            continue
        category = _key(_get(each, 'category_id'))
        if category not in categories:
            raise UserError(
                f'{where}: category_id {short(_get(each, "category_id"))} is none of the '
                f'categories of the file, {printable(", ".join(categories))}.'
            )
        try:
            objects.setdefault(key, []).append(_object(each, categories[category]))
        except ValueError as error:
            report.note(where, '{error}; it is left out.', error=error)
    for key, image in images.items():
        found = folder.find_image(
            image['file_name'], path.parent, split if split in SPLITS else None
        )
        where = f'{path}: image {key}'
        if found is None:
            note_missing(report, where, image['file_name'], folder)
            continue
        size = None
        with suppress(ValueError):
            size = (number(image.get('width')), number(image.get('height')))
        yield Sample(found, tuple(objects.get(key, ())), where, size)


def _object(each: dict, label: str) -> Object:
    """An object of an annotation; raises ValueError if it has neither box nor outlines."""
    mask = each.get('segmentation')
    polygons: tuple = ()
    rle = None
    if isinstance(mask, dict):
        rle = mask
    elif isinstance(mask, list) and mask:
        parts = mask if isinstance(mask[0], list) else [mask]
        polygons = tuple(tuple(map(number, part)) for part in parts)
        polygons = tuple(part for part in polygons if len(part) >= 6 and len(part) % 2 == 0)
    box = each.get('bbox')
    if isinstance(box, list) and len(box) == 4:
        x, y, width, height = map(number, box)
        if min(width, height) < 0:
            raise ValueError(f'bbox {short(box)} (x, y, width, height) has a negative size')
        box = (x, y, width, height)
    elif polygons:
        box = Object.of_polygons(label, polygons).box
    else:
        raise ValueError(f'expected a bbox of four numbers, got {short(box)}')
    is_crowd = each.get('iscrowd') not in (None, 0, '0', False, '', 'false')
    area = each.get('area')
    if area is not None and (polygons or rle):
        area = number(area)
    else:  # of a run-length code, the box's: a damaged one would end the process
        area = box[2] * box[3] if rle else None
    return Object(label, box, polygons, rle, is_crowd, area)


def order_of(splits: Iterable[str]) -> list[str]:
    """Names of splits in their usual order."""
    return sorted(splits, key=lambda split: [*SPLITS, WHOLE].index(split))
