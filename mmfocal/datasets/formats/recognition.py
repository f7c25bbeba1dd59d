"""Which format a folder is of."""

from __future__ import annotations

from collections import Counter
from types import ModuleType
from typing import NamedTuple

from mmfocal.utils.errors import UserError
from mmfocal.utils.text import printable

from . import coco, csv_boxes, cvat, label_studio, labelme, voc, yolo
from .content import Folder

# Images with objects, by the names that a user gives them.
READERS: dict[str, ModuleType] = {
    'COCO': coco,
    'YOLO': yolo,
    'VOC': voc,
    'LabelMe': labelme,
    'CVAT': cvat,
    'LabelStudio': label_studio,
    'CSV': csv_boxes,
}


class Found(NamedTuple):
    """What was recognised.

    Attributes:
        name: of the format, a key of :data:`READERS`.
        reader: its module.
        phrase: what was found, for the user.
    """

    name: str
    reader: ModuleType
    phrase: str


def recognise(folder: Folder, name: str | None = None) -> Found:
    """Looks which format images with objects below a folder are of.

    Args:
        folder: the data's.
        name: the format, if its user says so.

    Raises:
        UserError: it is of no known format, or of several, or not of the one that was named.
    """
    found = []
    for key, reader in READERS.items():
        if name in (None, key) and (phrase := reader.recognise(folder)):
            found.append(Found(key, reader, printable(f'{key}: {phrase}')))
    if len(found) == 1:
        return found[0]
    if found:
        lines = '\n'.join(f'  {each.phrase}' for each in found)
        raise UserError(
            f'{folder.root} holds annotations of several formats; say which with --format:\n'
            f'{lines}'
        )
    wanted = name or f'any known format ({", ".join(READERS)})'
    raise UserError(
        f'{folder.root} holds no annotations of {wanted}; it has {contents(folder)}. '
        'docs/training.md shows what each format looks like.'
    )


def contents(folder: Folder) -> str:
    """What kinds of files a folder holds, in a few words."""
    kinds = Counter(printable(path.suffix.lower() or 'without a suffix') for path in folder.files)
    known = [f'{count:,} {kind}' for kind, count in kinds.most_common(5)]
    return f'{", ".join(known)} files' if known else 'no files'
