"""Lays out data sets from what a user downloaded, and checks them.

:func:`prepare` unpacks archives, or links folders that are unpacked already, into the layout that
the configs read; what is there is left alone, so that it can be run again after an interruption.
:func:`check` compares the result with what was published.
"""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mmfocal.utils.errors import UserError
from mmfocal.utils.progress import progress_bar

from .checks import CocoData, Entry, Report, SegmentationData, check_coco, check_segmentation
from .published import DATASETS, Archive, Dataset, Split
from .shapes import NUM_IMAGES, prepare_shapes

__all__ = ['check', 'prepare']


def prepare(key: str, source: str | Path | None = None, root: str | Path | None = None) -> Path:
    """Lays out a data set. What is there already stays; call :func:`check` afterwards.

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
            holds paths that lead elsewhere, or the folder cannot be written.
    """
    dataset = DATASETS[key]
    root = Path(root or dataset.root)
    try:
        if dataset.archives:
            _lay_out(dataset, source, root)
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
    found = [_check_split(root, split, samples, subset, report) for split in dataset.splits]
    if report.count('error'):
        lines = [f'{dataset.title} in {root.absolute()} is not as it should be:']
        lines += [f'  {line}' for line in report.lines('error')]
        if dataset.archives:
            lines.append(
                'Delete the files that are named, if any, and run this again with the folder of '
                'the archives, which are unpacked where something is missing.'
                + ('' if subset else ' If it is a subset on purpose, add --subset.')
            )
        else:
            lines.append('Delete the folder and run this again.')
        raise UserError('\n'.join(lines))
    return found


def _check_split(
    root: Path, split: Split, samples: int | None, subset: bool, report: Report
) -> str:
    """Checks a split, and says in a line what it holds."""
    images, label_maps = root / split.images, None
    if split.label_maps and (not split.label_maps_optional or (root / split.label_maps).is_dir()):
        label_maps = root / split.label_maps
    settings = dict(images=str(images), num_labels=split.num_labels)
    if split.annotations:
        annotations = str(root / split.annotations)
        folder = label_maps and str(label_maps)
        data = CocoData(annotations=annotations, label_maps=folder, **settings)
        counts = check_coco(data, report, deep=True, most=samples)
    else:
        names = sorted(path.name for path in images.glob('*.jpg'))
        entries = tuple(
            Entry(name, str((label_maps / name).with_suffix('.png'))) for name in names
        )
        data = SegmentationData(entries=entries, **settings)
        counts = check_segmentation(data, report, deep=True, most=samples)
    line = f'{split.images}: {counts.images} images'
    _compare(images, counts.images, split.num_images, 'images', subset, report)
    if split.annotations:
        line += f', {counts.boxes} objects'
    if split.num_objects:
        _compare(annotations, counts.boxes, split.num_objects, 'objects', subset, report)
    if label_maps:
        line += f', {counts.label_maps} label maps'
    return f'{line}, {counts.opened} opened'


def _compare(
    where: str | Path, count: int, published: int, what: str, subset: bool, report: Report
) -> None:
    if count > published or (count < published and not subset):
        problem = 'holds {count} {what}, not {published}.'
        report.error(str(where), problem, count=count, what=what, published=published)


# --- Laying out -----------------------------------------------------------------------------


def _lay_out(dataset: Dataset, source: str | Path | None, root: Path) -> None:
    missing = []
    for archive in dataset.archives:
        if source is not None and (file := _find_archive(Path(source), archive)):
            _unpack(file, archive, root)
            continue
        absent = [part for part in archive.parts if not (root / part).exists()]
        if source is not None:
            absent = [part for part in absent if not _link(Path(source), archive, part, root)]
        if absent and not archive.optional:
            missing.append((absent, archive))
    if missing:
        where = [root.absolute()] if source is None else [Path(source).absolute(), root.absolute()]
        lines = [f'{dataset.title} is not complete in {" and ".join(map(str, where))}. Missing:']
        for parts, archive in missing:
            lines.append(f'  {", ".join(f"{part}/" for part in parts)}: in {archive.url}')
        lines.append(
            'Download what is missing into one FOLDER and run: '
            f'python tools/prepare_dataset.py {dataset.key} FOLDER'
        )
        raise UserError('\n'.join(lines))


def _find_archive(source: Path, archive: Archive) -> Path | None:
    if not source.is_dir():
        raise UserError(f'There is no folder {source.absolute()} to take the downloads from.')
    return next((path for path in sorted(source.rglob(archive.name)) if path.is_file()), None)


def _link(source: Path, archive: Archive, part: str, root: Path) -> bool:
    """Links a folder that was unpacked by the user, if there is one; returns whether."""
    for folder in (source / part, source / archive.prefix / part):
        if folder.is_dir():
            root.mkdir(parents=True, exist_ok=True)
            (root / part).symlink_to(folder.resolve(), target_is_directory=True)
            print(f'{root / part}: linked to {folder.resolve()}')
            return True
    return False


def _unpack(file: Path, archive: Archive, root: Path) -> None:
    """Unpacks the members of an archive that are not there yet, each in one step."""
    try:
        with zipfile.ZipFile(file) as zipped:
            members = []
            for member, target in _targets(zipped, archive, root):
                if not target.is_file() or target.stat().st_size != member.file_size:
                    members.append((member, target))
            if not members:
                print(f'{file.name}: unpacked already')
                return
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
        if archive.prefix:
            if path.parts[0] != archive.prefix:
                continue
            path = path.relative_to(archive.prefix)
        path = archive.into / path
        if path.parts[0] in archive.parts and len(path.parts) > 1:
            yield member, root / path
