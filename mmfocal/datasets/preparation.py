"""Lays out data sets from what a user downloaded, and checks them.

:func:`prepare` unpacks archives, or links folders that are unpacked already, into the layout that
the configs read; what is there is left alone, so that it can be run again after an interruption.
Annotations that mmdet or mmseg cannot read are converted once. :func:`check` compares the result
with what was published.
"""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from mmfocal.utils.errors import UserError
from mmfocal.utils.files import IMAGE_SUFFIXES, folder_written_atomically, written_atomically
from mmfocal.utils.progress import progress_bar

from .checks import CocoData, Entry, Report, SegmentationData, check_coco, check_segmentation
from .checks.heads import IGNORED_LABEL
from .checks.report import some
from .formats import Folder, Source, prepare_detection
from .formats.content import REPORT
from .formats.label_maps import write_label_maps
from .formats.label_values import read_label_map
from .formats.pairing import Pair
from .published import DATASETS, Archive, Dataset, Split
from .shapes import NUM_IMAGES, prepare_shapes

__all__ = ['check', 'prepare']


def prepare(key: str, source: str | Path | None = None, root: str | Path | None = None) -> Path:
    """Lays out a data set, and converts it if its configs cannot read it as it is published.

    What is there already stays; call :func:`check` afterwards.

    Args:
        key: of :data:`DATASETS`.
        source: folder with the downloaded archives, or with what came out of them, which is
            linked, not copied. Without it nothing is added, except that the embedded data set is
            drawn.
        root: folder to make; default: where the configs look for it, below the current folder.

    Returns:
        The folder.

    Raises:
        UserError: something is neither in ``source`` nor in ``root``, an archive is damaged or
            holds paths that lead elsewhere, annotations cannot be converted, or the folder cannot
            be written.
    """
    dataset = DATASETS[key]
    root = Path(root or dataset.root)
    try:
        if dataset.archives:
            is_changed = _lay_out(dataset, source, root)
            if is_changed or not _is_converted(dataset, root):
                _convert(dataset, root)
        else:
            with progress_bar('Drawing', sum(NUM_IMAGES.values()), 'image') as drawn:
                prepare_shapes(root, progress=lambda done, total: drawn.update())
    except OSError as error:
        raise UserError(f'{root.absolute()} cannot be made: {error}') from error
    return root


def check(
    key: str, root: str | Path | None = None, samples: int | None = 50, subset: bool = False
) -> list[str]:
    """Compares a data set with what it should be.

    Args:
        key: of :data:`DATASETS`.
        root: its folder; default: where the configs look for it.
        samples: images of each split that are opened, with their label maps; None opens all.
        subset: fewer images than published are fine.

    Returns:
        What was found, a line for each split.

    Raises:
        UserError: with everything that is wrong.
    """
    dataset = DATASETS[key]
    root = Path(root or dataset.root)
    report = Report()
    found = [
        _check_split(root, split, dataset.classes, samples, subset, report)
        for split in dataset.splits
    ]
    if report.count('error'):
        lines = [f'{dataset.title} in {root.absolute()} is not as it should be:']
        lines += [f'  {line}' for line in report.lines('error')]
        if dataset.archives:
            lines.append(
                'Delete the files that are named, if any, and run this again with the folder of '
                'the archives, which are unpacked where something is missing'
                + (', and converted again.' if dataset.published_as else '.')
                + ('' if subset else ' If it is a subset on purpose, add --subset.')
            )
        else:
            lines.append('Delete the folder and run this again.')
        raise UserError('\n'.join(lines))
    return found


def _check_split(
    root: Path,
    split: Split,
    classes: tuple[str, ...],
    samples: int | None,
    subset: bool,
    report: Report,
) -> str:
    """Checks a split, and says in a line what it holds."""
    images, label_maps = root / split.images, None
    if split.label_maps and (not split.label_maps_optional or (root / split.label_maps).is_dir()):
        label_maps = root / split.label_maps
    settings = dict(images=str(images), num_labels=split.num_labels)
    if split.annotations:
        annotations = str(root / split.annotations)
        folder = label_maps and str(label_maps)
        data = CocoData(
            annotations=annotations, label_maps=folder, classes=classes or None, **settings
        )
        counts = check_coco(data, report, deep=True, most=samples)
        listed = annotations
    else:
        listed = str(root / split.names if split.names else images)
        entries = tuple(Entry(image, str(path)) for image, path in _label_maps(root, split))
        data = SegmentationData(entries=entries, **settings)
        counts = check_segmentation(data, report, deep=True, most=samples)
    line = f'{split.images or split.annotations}: {counts.images} images'
    _compare(listed, counts.images, split.num_images, 'images', subset, report)
    if split.annotations:
        line += f', {counts.boxes} objects'
    if split.num_objects:
        _compare(annotations, counts.boxes, split.num_objects, 'objects', subset, report)
    if label_maps:
        line += f', {counts.label_maps} label maps'
    return f'{line}, {counts.opened} opened'


def _label_maps(root: Path, split: Split) -> list[tuple[str, Path]]:
    """Names of images, and where the label map of each should be."""
    label_maps = root / split.label_maps
    if split.names:
        file = root / split.names
        names = file.read_text('utf-8', 'replace').splitlines() if file.is_file() else []
        return [(name, label_maps / f'{name}.png') for name in names]
    names = sorted(path.name for path in (root / split.images).glob('*.jpg'))
    return [(name, (label_maps / name).with_suffix('.png')) for name in names]


def _compare(
    where: str, count: int, published: int, what: str, subset: bool, report: Report
) -> None:
    if count > published or (count < published and not subset):
        problem = 'holds {count} {what}, not {published}.'
        report.error(where, problem, count=count, what=what, published=published)


# --- Laying out -----------------------------------------------------------------------------


def _lay_out(dataset: Dataset, source: str | Path | None, root: Path) -> bool:
    """Unpacks and links what is not there yet; returns whether there was anything."""
    missing, is_changed = [], False
    for archive in dataset.archives:
        file, is_it = (None, False) if source is None else _find_archive(Path(source), archive)
        if is_it:
            is_changed |= _unpack(file, archive, root)
            continue
        absent = {
            inner: folder
            for inner, folder in archive.folders.items()
            if not (root / folder).exists()
        }
        found = {} if source is None else _find_folders(Path(source), absent)
        if len(found) == len(absent):
            for folder, there in found.items():
                _link(root / folder, there)
                is_changed = True
        elif file is not None:
            _unpack(file, archive, root)  # which tells that it is damaged
        elif not archive.optional:
            missing.append(([each for each in absent.values() if each not in found], archive))
    if missing:
        where = [root.absolute()] if source is None else [Path(source).absolute(), root.absolute()]
        lines = [f'{dataset.title} is not complete in {" and ".join(map(str, where))}. Missing:']
        for folders, archive in missing:
            lines.append(f'  {", ".join(f"{folder}/" for folder in folders)}: in {archive.url}')
        lines.append(
            'Download what is missing into one FOLDER and run: '
            f'python tools/prepare_dataset.py {dataset.key} FOLDER'
        )
        raise UserError('\n'.join(lines))
    return is_changed


def _find_archive(source: Path, archive: Archive) -> tuple[Path | None, bool]:
    """The file of an archive, if there is one, and whether it can be no other.

    GitHub calls the archives of all projects alike, so that those files count that hold the
    folders that are wanted, and a damaged one only if nothing else is found.
    """
    if not source.is_dir():
        raise UserError(f'There is no folder {source.absolute()} to take the downloads from.')
    names = {archive.name, archive.saved_as}
    files = sorted(each for each in source.rglob('*.zip') if each.name in names and each.is_file())
    fitting = {file: _fits(file, archive) for file in files}
    if sure := [file for file, fits in fitting.items() if fits]:
        return sure[0], True
    damaged = [file for file, fits in fitting.items() if fits is None]
    return (damaged[0], archive.saved_as is None) if damaged else (None, False)


def _fits(file: Path, archive: Archive) -> bool | None:
    """Whether a zip file holds anything of the folders of an archive; None if it is damaged."""
    try:
        with zipfile.ZipFile(file) as zipped:
            return any(_target(name, archive) for name in zipped.namelist())
    except zipfile.BadZipFile:
        return None


def _find_folders(source: Path, wanted: Mapping[str, str]) -> dict[str, Path]:
    """Folders that the user unpacked or cloned, by their names in the data set.

    All are taken from one place, so that folders of other data sets do not get between them.

    Args:
        source: holds them, a folder of the archive that they are in, or the whole archive.
        wanted: folders of the archive, and of the data set.
    """
    ways = zip(*(_places(*each) for each in wanted.items()), strict=True)
    found = [
        {
            folder: (source / place).resolve()
            for folder, place in zip(wanted.values(), places, strict=True)
            if place and (source / place).is_dir()
        }
        for places in ways
    ]
    return max(found, key=len, default={})


def _places(inner: str, folder: str) -> list[str]:
    """Where a folder may lie: as in the data set, in a clone of GitHub's, or as in the archive."""
    parts = PurePosixPath(inner).parts
    ends = ['/'.join(parts[start:]) for start in range(len(parts))]
    return [folder, inner.replace('-master/', '/', 1), *ends]


def _link(target: Path, folder: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(folder, target_is_directory=True)
    print(f'{target}: linked to {folder}')


def _unpack(file: Path, archive: Archive, root: Path) -> bool:
    """Unpacks the members of an archive that are not there yet, each in one step.

    Returns:
        Whether there were any.
    """
    try:
        with zipfile.ZipFile(file) as zipped:
            members = []
            for member, target in _targets(zipped, archive, root):
                if not target.is_file() or target.stat().st_size != member.file_size:
                    members.append((member, target))
            if not members:
                print(f'{file.name}: unpacked already')
                return False
            size = sum(member.file_size for member, _ in members)
            root.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(root).free
            if size > free:
                raise UserError(
                    f'{file.name} needs {size / 1e9:.1f} GB in {root.absolute()}, and '
                    f'{free / 1e9:.1f} GB are free. Make room, or choose another folder by --out '
                    'and link it to where the configs look.'
                )
            with progress_bar(file.name, size, 'B', unit_scale=True) as progress:
                for member, target in members:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    part = target.with_name(f'.{target.name}.part')
                    with zipped.open(member) as packed, part.open('wb') as unpacked:
                        shutil.copyfileobj(packed, unpacked, 1 << 20)
                    os.replace(part, target)
                    progress.update(member.file_size)
        return True
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(
            f'{file.absolute()} is damaged or incomplete ({error}). Download it again; what has '
            'been unpacked from it is kept.'
        ) from error


def _targets(
    zipped: zipfile.ZipFile, archive: Archive, root: Path
) -> Iterator[tuple[zipfile.ZipInfo, Path]]:
    """Files of an archive that belong to the data set, and where they go."""
    for member in zipped.infolist():
        path = PurePosixPath(member.filename)
        if member.is_dir():
            continue
        if path.is_absolute() or '..' in path.parts:
            raise UserError(
                f'{zipped.filename} holds {member.filename}, a path that leads out of its folder. '
                'It is not what the publishers offer; nothing of it was unpacked.'
            )
        if target := _target(member.filename, archive):
            yield member, root / target


def _target(member: str, archive: Archive) -> PurePosixPath | None:
    """Where a file of an archive goes in the data set; None if it does not belong to it."""
    path = PurePosixPath(member)
    for inner, folder in archive.folders.items():
        if path.is_relative_to(inner) and path != PurePosixPath(inner):
            return folder / path.relative_to(inner)
    return None


# --- Converting -----------------------------------------------------------------------------


def _is_converted(dataset: Dataset, root: Path) -> bool:
    """Whether everything is there that a conversion writes, for the images that there are."""
    for split in dataset.splits if dataset.published_as else ():
        if split.annotations and not (root / split.annotations).is_file():
            return False
        if split.names:
            listed = _label_maps(root, split)
            names = [image.name for image in _images(root / split.images)]
            if [name for name, _ in listed] != names or not all(
                label_map.is_file() for _, label_map in listed
            ):
                return False
    return True


def _convert(dataset: Dataset, root: Path) -> None:
    if dataset.published_as == 'VOC':
        _write_coco(dataset, root)
    elif dataset.published_as == 'label maps':
        _write_label_maps(dataset, root)


def _write_coco(dataset: Dataset, root: Path) -> None:
    """Pascal VOC to COCO's form, in the folder of the annotations."""
    report = Report()
    out = (root / dataset.splits[0].annotations).parent
    folders = {folder for archive in dataset.archives for folder in archive.folders.values()}
    source = Source(folder=Folder(root, folders), out=out, format=dataset.published_as)
    print(f'{out}: {prepare_detection(source, report).found}; converted')
    for line in report.lines('note'):
        print(line)


def _write_label_maps(dataset: Dataset, root: Path) -> None:
    """Published label maps with what belongs to no class as 255, and lists of their images.

    The lists come last: while one is missing, all is converted again.
    """
    (out,) = {(root / split.label_maps).parent for split in dataset.splits}
    images = {split: _images(root / split.images) for split in dataset.splits}
    with (
        folder_written_atomically(out, REPORT) as temporary,
        progress_bar('Converting', sum(map(len, images.values())), 'label map') as bar,
    ):

        def labels(image: Path, split: Split) -> np.ndarray:
            bar.update()
            return _labels(image, root / split.published_maps, split.num_labels)

        for split, paths in images.items():
            target = temporary / Path(split.label_maps).name
            maps = ((path, labels(path, split)) for path in paths)
            write_label_maps(target, root / split.images, maps, dataset.palette)
        text = f'Label maps of {dataset.title}, with {IGNORED_LABEL} for what is of no class.\n'
        (temporary / REPORT).write_text(text, encoding='utf-8')
    for split, paths in images.items():
        with written_atomically(root / split.names) as file:
            file.write(''.join(f'{path.name}\n' for path in paths).encode())
    print(f'{out}: converted')


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.glob('*')
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.')
    )


def _labels(image: Path, folder: Path, num_labels: int) -> np.ndarray:
    """Labels uint8 ``(H, W)`` of an image; what is of no class, ``num_labels`` or 255, is 255.

    Raises:
        UserError: the label map is missing, cannot be read, or has other labels.
    """
    path = folder / f'{image.stem}.png'
    again = (
        f'If {folder} is not as it was published, delete it (if it is a link, only that) and run '
        'this again with the folder of the archive.'
    )
    try:
        values = read_label_map(Pair(image, path)).indices()
    except UserError as error:
        raise UserError(f'{error} {again}') from error
    is_void = (values == num_labels) | (values == IGNORED_LABEL)
    unknown = np.unique(values[~is_void & ((values < 0) | (values > num_labels))])
    if len(unknown):
        raise UserError(
            f'{path}: expected labels from 0 to {num_labels - 1}, and {num_labels} or '
            f'{IGNORED_LABEL} for what is of no class, got {some(unknown)}. {again}'
        )
    return np.where(is_void, IGNORED_LABEL, values).astype(np.uint8)
