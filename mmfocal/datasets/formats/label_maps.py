"""Folders of images and label maps, as mmseg's ``BaseSegDataset`` reads them, or made so.

:mod:`.pairing` finds out which label map belongs to which image, :mod:`.label_meaning` what its
values mean. Where mmseg cannot read them so, they are converted once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from mmfocal.utils.errors import UserError
from mmfocal.utils.files import folder_written_atomically
from mmfocal.utils.progress import progress_bar

from ..checks import Report
from ..checks.heads import IGNORED_LABEL
from .content import REPORT, Folder
from .label_meaning import Meaning, understood
from .label_tables import check_names, find_names, find_table, read_names, read_table
from .label_values import Looked, look
from .pairing import Pair, Pairing, by_split, pair
from .splits import divided

__all__ = ['LabelMapSplit', 'LabelMaps', 'prepare', 'read_names', 'recognise']


@dataclass(frozen=True)
class LabelMapSplit:
    """Images to train on, to validate with, or to test on.

    Attributes:
        ann_file: text file with the names of images, None for all in their folder.
        img_path: folder of the images.
        seg_map_path: folder of the label maps.
        img_suffix: what follows a name in the file of its image.
        seg_map_suffix: in that of its label map.
        num_images: how many there are.
    """

    ann_file: Path | None
    img_path: Path
    seg_map_path: Path
    img_suffix: str
    seg_map_suffix: str
    num_images: int


@dataclass(frozen=True)
class LabelMaps:
    """What mmseg's ``BaseSegDataset`` reads.

    Attributes:
        found: what was recognised, and how values are understood, for the user.
        classes: names in the order of labels.
        palette: red, green and blue of each.
        reduce_zero_label: whether label 0 is not learned, and the first class has label 1.
        splits: ``'train'``, ``'val'``, and ``'test'`` if there is one.
        is_converted: whether label maps, or lists of images, were written.
    """

    found: str
    classes: tuple[str, ...]
    palette: list[list[int]]
    reduce_zero_label: bool
    splits: dict[str, LabelMapSplit]
    is_converted: bool


def recognise(folder: Folder) -> str | None:
    """Whether there are images with label maps, by the names of files and folders.

    Returns:
        What there is, for the user; None if there are none.
    """
    found = pair(folder)
    if found is None:
        return None
    first = found.pairs[0]
    return (
        f'{len(found.pairs):,} images with label maps, such as {folder.relative(first.image)} '
        f'and {folder.relative(first.label_map)}'
    )


def prepare(
    folder: Folder,
    out: Path,
    report: Report,
    *,
    classes: Sequence[str] | None = None,
    ignored: int = IGNORED_LABEL,
    colours: Path | None = None,
    val_share: float | None = None,
    seed: int = 0,
) -> LabelMaps:
    """Finds images and label maps, understands their values, and converts them if it has to.

    Up to :data:`~.label_values.MAX_LOOKED_AT` label maps, spread evenly, are looked at for that;
    each one that is converted is compared with what they have.

    Args:
        folder: the data's, which is only read.
        out: folder for label maps that are converted, and for lists of images.
        report: takes what is left out, and what was taken for granted.
        classes: names in the order of labels; None for those that the data names.
        ignored: label in the source that is not learned.
        colours: file with a colour for each name; None for the one of the data.
        val_share, seed: how what is not divided is divided, see :func:`~.splits.divide`.

    Raises:
        UserError: there are no label maps, or what is wrong with them.
    """
    pairing = pair(folder)
    if pairing is None:
        raise UserError(
            f'{folder.root} holds no images with label maps. Expected folders such as '
            'images/train and masks/train with files of the same names.'
        )
    _note_unpaired(pairing, report)
    table = read_table(colours) if colours else find_table(folder)
    names = check_names(classes, '--classes') if classes else None
    if table is None:
        names = names or find_names(folder)
    looked = look(pairing.pairs, ignored)
    meaning = understood(str(folder.root), looked, names, table, ignored, report)
    splits = by_split(folder, pairing.pairs, report)
    splits, divides = divided(folder, splits, val_share, seed)
    phrase = f'{len(pairing.pairs):,} images with label maps: {meaning.phrase}{divides}'
    places = _in_place(folder, splits, pairing, looked, meaning)
    if places is None:
        return _converted(folder, out, splits, meaning, phrase, report)
    if looked.count < len(pairing.pairs):
        report.note(
            str(folder.root),
            '{some} of {all} label maps were looked at; mmfocal check_data --deep looks at all.',
            some=f'{looked.count:,}',
            all=f'{len(pairing.pairs):,}',
        )
    return _listed(folder, out, splits, places, meaning, phrase, report)


def _note_unpaired(pairing: Pairing, report: Report) -> None:
    for path in pairing.images:
        report.note(str(path), 'has no label map; it is left out.')
    for path in pairing.label_maps:
        report.note(
            str(path), 'is the label map of no image, or there is another one; it is left out.'
        )


# --- Output -----------------------------------------------------------------------------------


def _in_place(
    folder: Folder,
    splits: dict[str, list[Pair]],
    pairing: Pairing,
    looked: Looked,
    meaning: Meaning,
) -> dict[str, tuple[LabelMapSplit, list[str]]] | None:
    """Where mmseg finds what it can read as it is, with the names; None if it cannot."""
    if not (meaning.fits and looked.is_plain) or looked.colours:
        return None
    places = {split: _place(pairs, pairing) for split, pairs in splits.items()}
    return None if None in places.values() else places


def _place(pairs: Sequence[Pair], pairing: Pairing) -> tuple[LabelMapSplit, list[str]] | None:
    rule = pairing.rule
    suffixes = {(each.image.suffix, each.label_map.suffix) for each in pairs}
    if len(suffixes) > 1 or rule.before_image or rule.before_map:
        return None
    ((of_image, of_map),) = suffixes
    of_image, of_map = rule.after_image + of_image, rule.after_map + of_map
    images = _common_folder(each.image for each in pairs)
    label_maps = _common_folder(each.label_map for each in pairs)
    names = [_name(each.image, images).removesuffix(of_image) for each in pairs]
    others = [_name(each.label_map, label_maps).removesuffix(of_map) for each in pairs]
    if names != others:
        return None
    return LabelMapSplit(None, images, label_maps, of_image, of_map, len(pairs)), names


def _common_folder(paths: Iterable[Path]) -> Path:
    return Path(os.path.commonpath([os.path.abspath(path.parent) for path in paths]))


def _name(path: Path, folder: Path) -> str:
    return os.path.relpath(path, folder).replace(os.sep, '/')


def _listed(
    folder: Folder,
    out: Path,
    splits: dict[str, list[Pair]],
    places: dict[str, tuple[LabelMapSplit, list[str]]],
    meaning: Meaning,
    phrase: str,
    report: Report,
) -> LabelMaps:
    """Label maps as they are, with lists of names where not all of a folder are meant."""
    lists = {split: names for split, (_, names) in places.items()}
    ready = {split: place for split, (place, _) in places.items()}
    for split, pairs in splits.items():
        if _is_whole_folder(folder, ready[split], pairs):
            del lists[split]
    phrase += '; used in place'
    if lists:
        with written(out, phrase, report) as temporary:
            for split, names in lists.items():
                _write_list(temporary / f'{split}.txt', names)
                list_file = out.absolute() / f'{split}.txt'
                ready[split] = replace(ready[split], ann_file=list_file)
    return LabelMaps(phrase, meaning.classes, meaning.palette, meaning.reduces, ready, bool(lists))


def _is_whole_folder(folder: Folder, place: LabelMapSplit, pairs: Sequence[Pair]) -> bool:
    """Whether mmseg would list just these images."""
    prefix = f'{place.img_path}{os.sep}'
    there = sum(
        os.path.abspath(path).startswith(prefix) and path.name.endswith(place.img_suffix)
        for path in folder.files
    )
    return there == len(pairs)


def _write_list(path: Path, names: Sequence[str]) -> None:
    for name in names:
        if name != name.strip() or not name.isprintable():
            raise UserError(
                f'{name!r}: names of images must not begin or end with blanks or hold line '
                'breaks, since mmseg reads them from a list. Rename it.'
            )
    path.write_text(''.join(f'{name}\n' for name in names), encoding='utf-8')


@contextmanager
def written(out: Path, phrase: str, report: Report) -> Iterator[Path]:
    """A folder to write into, see :func:`folder_written_atomically`, with what was noted."""
    with folder_written_atomically(out, REPORT) as temporary:
        yield temporary
        text = '\n'.join([phrase, *report.lines('note'), ''])
        (temporary / REPORT).write_text(text, encoding='utf-8')


def _converted(
    folder: Folder,
    out: Path,
    splits: dict[str, list[Pair]],
    meaning: Meaning,
    phrase: str,
    report: Report,
) -> LabelMaps:
    """Writes label maps of all images, which stay where they are."""
    phrase += '; converted'
    with (
        written(out, phrase, report) as temporary,
        progress_bar('Converting', sum(map(len, splits.values())), 'label map') as bar,
    ):

        def labels(each: Pair) -> np.ndarray:
            bar.update()
            return meaning.read(each)

        ready = {}
        for split, pairs in splits.items():
            maps = ((each.image, labels(each)) for each in pairs)
            images = [each.image for each in pairs]
            ready[split] = write_split(temporary, out, split, images, maps, meaning.palette)
    return LabelMaps(phrase, meaning.classes, meaning.palette, False, ready, True)


def write_split(
    temporary: Path,
    out: Path,
    split: str,
    images: Sequence[Path],
    maps: Iterable[tuple[Path, np.ndarray]],
    palette: Sequence[Sequence[int]],
) -> LabelMapSplit:
    """Writes the label maps of a split as PNG files with a palette, and the list of its images.

    Args:
        temporary: folder to write into,
        out: which gets this name in the end.
        split: its name.
        images: of the split.
        maps: images with their labels, uint8 ``(H, W)``.
        palette: red, green and blue of each label.
    """
    root = _common_folder(images)
    write_label_maps(temporary / 'label_maps' / split, root, maps, palette)
    _write_list(temporary / f'{split}.txt', [_name(path, root) for path in images])
    absolute = out.absolute()
    return LabelMapSplit(
        absolute / f'{split}.txt', root, absolute / 'label_maps' / split, '', '.png', len(images)
    )


def write_label_maps(
    target: Path,
    root: Path,
    maps: Iterable[tuple[Path, np.ndarray]],
    palette: Sequence[Sequence[int]],
) -> None:
    """Writes PNG files with a palette, named as their images with ``.png`` after it.

    Args:
        target: folder for them.
        root: folder that images lie below, and whose folders are repeated in ``target``.
        maps: images with their labels, uint8 ``(H, W)``.
        palette: red, green and blue of each label; of others it is white.
    """
    flat = np.full((256, 3), 255, np.uint8)
    flat[: len(palette)] = palette
    for path, labels in maps:
        file = target / f'{_name(path, root)}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(labels)
        image.putpalette(flat.tobytes())  # makes it one of mode P
        image.save(file, compress_level=3)
