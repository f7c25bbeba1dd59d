"""Lays out data sets from what a user downloaded, and checks them.

:data:`DATASETS` says what a complete data set holds. :func:`prepare` unpacks archives, or links
folders that are unpacked already, into the layout that the configs read; what is there is left
alone, so that it can be run again after an interruption. :func:`check` counts files and
annotations, compares them with one another, and opens samples.

This module needs numpy, Pillow and tqdm alone.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmfocal.utils.errors import UserError
from mmfocal.utils.progress import Progress

from .checking import IGNORED_LABEL, Header, leaves_folder, read_picture
from .shapes import CLASSES, NUM_IMAGES, prepare_shapes, shapes_root

__all__ = ['DATASETS', 'Archive', 'Dataset', 'Split', 'check', 'prepare']

MAX_NAMES = 3  # files named in a message of many


@dataclass(frozen=True)
class Archive:
    """A zip file as its publisher offers it.

    Attributes:
        url: where it is offered; its last part is the name of the file.
        parts: top folders of the data set that it holds.
        prefix: leading folder of its members that the data set does not have.
        into: folder of the data set that its members go to; ``''`` is the data set's own.
        optional: some configs need it, most do not.
    """

    url: str
    parts: tuple[str, ...]
    prefix: str = ''
    into: str = ''
    optional: bool = False

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.url.rpartition('/')[2]


@dataclass(frozen=True)
class Split:
    """Images and what is known about them.

    Attributes:
        images: folder.
        num_images: how many there are in the published data set.
        annotations: COCO's JSON file.
        num_objects: annotations in it.
        label_maps: folder with a PNG file for each image, of the same name.
        num_labels: values in label maps are below this, or 255, which is ignored.
        label_maps_optional: the folder may be absent.
    """

    images: str
    num_images: int
    annotations: str | None = None
    num_objects: int | None = None
    label_maps: str | None = None
    num_labels: int = 0
    label_maps_optional: bool = False


@dataclass(frozen=True)
class Dataset:
    """A data set as its configs expect it.

    Attributes:
        key: its name on the command line.
        title: its name.
        root: folder that the configs read, from where a tool is started.
        splits: what has to be there.
        config: one that trains on it.
        archives: what a user downloads; none for the embedded data set.
    """

    key: str
    title: str
    root: str
    splits: tuple[Split, ...]
    config: str
    archives: tuple[Archive, ...] = ()

    def how_to_get(self, optional: bool = False) -> str:
        """What to download and run, for messages; ``optional``: that of what few configs need."""
        wanted = [archive.url for archive in self.archives if archive.optional == optional]
        return (
            f'Download {" and ".join(wanted)} into one FOLDER and run: '
            f'python tools/prepare_dataset.py {self.key} FOLDER'
        )


_COCO = 'http://images.cocodataset.org'

_DATASETS = (
    Dataset(
        key='coco',
        title='COCO 2017',
        root='data/coco',
        splits=tuple(
            Split(
                images=name,
                num_images=num_images,
                annotations=f'annotations/instances_{name}.json',
                num_objects=num_objects,
                label_maps=f'stuffthingmaps/{name}',
                num_labels=182,
                label_maps_optional=True,
            )
            for name, num_images, num_objects in (
                ('train2017', 118287, 860001),
                ('val2017', 5000, 36781),
            )
        ),
        config='configs/mmdet/focal_maskrcnn_ms-1x.py',
        archives=(
            Archive(f'{_COCO}/zips/train2017.zip', ('train2017',)),
            Archive(f'{_COCO}/zips/val2017.zip', ('val2017',)),
            Archive(f'{_COCO}/annotations/annotations_trainval2017.zip', ('annotations',)),
            Archive(
                'http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/'
                'stuffthingmaps_trainval2017.zip',
                ('stuffthingmaps',),
                into='stuffthingmaps',
                optional=True,
            ),
        ),
    ),
    Dataset(
        key='ade20k',
        title='ADE20K',
        root='data/ade/ADEChallengeData2016',
        splits=tuple(
            Split(
                images=f'images/{name}',
                num_images=num_images,
                label_maps=f'annotations/{name}',
                num_labels=151,  # 0 is what belongs to none of the 150 classes
            )
            for name, num_images in (('training', 20210), ('validation', 2000))
        ),
        config='configs/mmseg/focal_upernet_160k.py',
        archives=(
            Archive(
                'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
                ('images', 'annotations'),
                prefix='ADEChallengeData2016',
            ),
        ),
    ),
    Dataset(
        key='shapes',
        title='The embedded data set',
        root=shapes_root(),
        splits=tuple(
            Split(
                images=name,
                num_images=num_images,
                annotations=f'annotations/instances_{name}.json',
                label_maps=f'labels/{name}',
                num_labels=len(CLASSES) + 1,
            )
            for name, num_images in NUM_IMAGES.items()
        ),
        config='configs/mmdet/focal_maskrcnn_shapes.py',
    ),
)
DATASETS = {dataset.key: dataset for dataset in _DATASETS}


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
            with Progress(sum(NUM_IMAGES.values()), title='Drawing') as counted:
                prepare_shapes(root, progress=lambda done, total: counted.advance())
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
    found, problems = [], []
    for split in dataset.splits:
        line, wrong = _check_split(root, split, samples, subset)
        found.append(line)
        problems += wrong
    if problems:
        lines = [f'{dataset.title} in {root.absolute()} is not as it should be:']
        lines += [f'  {problem}' for problem in problems]
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
            with tqdm(
                total=size, unit='B', unit_scale=True, desc=file.name, disable=None
            ) as progress:
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


# --- Checking -------------------------------------------------------------------------------


def _check_split(
    root: Path, split: Split, samples: int | None, subset: bool
) -> tuple[str, list[str]]:
    """A line on what was found, and what is wrong with it."""
    images = _files(root / split.images, ('.jpg', '.jpeg', '.png'))
    problems = []
    if not images:
        return f'{split.images}: nothing', [f'{root / split.images} holds no images.']
    line = f'{split.images}: {len(images)} images'
    if len(images) > split.num_images or (len(images) < split.num_images and not subset):
        problems.append(
            f'{root / split.images} holds {len(images)} images, not {split.num_images}.'
        )
    sizes: dict[str, tuple[int, int]] = {}
    if split.annotations:
        described, wrong = _check_annotations(root, split, images, subset, sizes)
        line += f', {described}'
        problems += wrong
    label_maps: dict[str, Path] = {}
    if split.label_maps and not (split.label_maps_optional and not _exists(root, split)):
        label_maps = _files(root / split.label_maps, ('.png',))
        stems = {Path(name).stem for name in label_maps}
        without = sorted(name for name in images if Path(name).stem not in stems)
        line += f', {len(label_maps)} label maps'
        if without:
            problems.append(f'{root / split.label_maps} lacks the label maps of {_some(without)}.')
    names = sorted(images)
    if samples is not None and samples < len(names):
        chosen = np.linspace(0, len(names) - 1, samples).round().astype(int)
        names = [names[i] for i in chosen]
    for name in tqdm(names, desc=f'opening images of {split.images}', leave=False, disable=None):
        label_map = label_maps.get(f'{Path(name).stem}.png')
        problems += _check_image(images[name], sizes.get(name), label_map, split.num_labels)
    return f'{line}, {len(names)} opened', problems


def _check_annotations(
    root: Path,
    split: Split,
    images: dict[str, Path],
    subset: bool,
    sizes: dict[str, tuple[int, int]],
) -> tuple[str, list[str]]:
    """Compares COCO's JSON with the images; enters their (width, height) into ``sizes``."""
    path = root / split.annotations
    try:
        content = json.loads(path.read_text())
        listed, objects = content['images'], content['annotations']
        sizes.update({image['file_name']: (image['width'], image['height']) for image in listed})
        known = {image['id'] for image in listed}
        strangers = sum(thing['image_id'] not in known for thing in objects)
    except FileNotFoundError:
        return 'no annotations', [f'{path} is missing.']
    except (ValueError, KeyError, TypeError) as error:
        return 'no annotations', [
            f'{path} is damaged: not the JSON of COCO ({type(error).__name__}: {error}).'
        ]
    problems = []
    outside = sorted(filter(leaves_folder, sizes))
    if outside:
        problems.append(f'{path} names files out of {split.images}: {_some(outside)}.')
    absent = sorted(set(sizes) - set(images) - set(outside))
    if absent:
        problems.append(f'{root / split.images} lacks images of {path.name}: {_some(absent)}.')
    if strangers:
        problems.append(f'{path} has {strangers} objects of images that it does not list.')
    if split.num_objects and not subset and len(objects) != split.num_objects:
        problems.append(f'{path} holds {len(objects)} objects, not {split.num_objects}.')
    return f'{len(objects)} objects', problems


def _check_image(
    path: Path, size: tuple[int, int] | None, label_map: Path | None, num_labels: int
) -> list[str]:
    header, _, problem = _open(path)
    if problem:
        return [problem]
    problems = []
    if size and header.size != size:
        problems.append(f'{path} has (width, height) {header.size}, its annotations say {size}.')
    if label_map:
        labels, values, problem = _open(label_map)
        if problem:
            return [*problems, problem]
        if values.ndim != 2:
            problems.append(f'{label_map} has {values.shape[2]} channels, not one of labels.')
        elif labels.size != header.size:
            problems.append(f'{label_map} has (width, height) {labels.size}, not {header.size}.')
        elif ((values >= num_labels) & (values != IGNORED_LABEL)).any():
            problems.append(
                f'{label_map} holds label {values[values != IGNORED_LABEL].max()}; labels are '
                f'below {num_labels}, or {IGNORED_LABEL}.'
            )
    return problems


def _open(path: Path) -> tuple[Header | None, np.ndarray | None, str | None]:
    """An image's header and pixels, or why there are none."""
    try:
        return *read_picture(str(path), deep=True), None
    except (ValueError, Image.DecompressionBombError) as error:
        return None, None, f'{path} cannot be read: {error}'


def _exists(root: Path, split: Split) -> bool:
    return (root / split.label_maps).is_dir()


def _files(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files of a folder by name."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {
            entry.name: folder / entry.name
            for entry in entries
            if entry.name.lower().endswith(tuple(suffixes)) and not entry.name.startswith('.')
        }


def _some(names: Sequence[str]) -> str:
    """The first names of many."""
    text = ', '.join(names[:MAX_NAMES])
    return text if len(names) <= MAX_NAMES else f'{text} and {len(names) - MAX_NAMES} more'
