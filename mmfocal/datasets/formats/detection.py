"""Data for detectors: used as it is where mmdet can read it, else converted once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mmfocal.utils.errors import UserError
from mmfocal.utils.files import folder_written_atomically, written_atomically
from mmfocal.utils.text import printable

from ..checks import CocoContent, CocoData, Evaluation, Report, check_coco, read_coco
from . import coco, label_maps
from .content import REPORT, SPLITS, Annotated, Folder
from .conversion import coco_json, fitted
from .recognition import Found, recognise
from .splits import divided, refuse_share


@dataclass(frozen=True)
class Source:
    """A folder with data, and what its user says of it.

    Attributes:
        folder: which is only read.
        out: folder for what has to be converted.
        format: one of :data:`~.recognition.READERS`; None to look which it is.
        files: annotation files of COCO's form by split, where names do not tell.
        val_share: of the images that are for validation, where the data is not divided; None for
            a fifth.
        seed: of that choice.
        classes: names of labels in label maps; None for those that the data names.
        ignored: label in label maps that is not learned.
        colours: file with a colour for each name; None for the one of the data.
        needs_masks: whether objects without one cannot be learned.
    """

    folder: Folder
    out: Path
    format: str | None = None
    files: dict[str, Path] | None = None
    val_share: float | None = None
    seed: int = 0
    classes: tuple[str, ...] | None = None
    ignored: int = 255
    colours: Path | None = None
    needs_masks: bool = False


@dataclass(frozen=True)
class CocoSplit:
    """Images to train on, to validate with, or to test on.

    Attributes:
        annotations: of COCO's form.
        images: folder that the names of images are relative to.
        num_images: how many the annotations name.
    """

    annotations: Path
    images: Path
    num_images: int


@dataclass(frozen=True)
class DetectionData:
    """What mmdet's ``CocoDataset`` reads.

    Attributes:
        found: format and parts of the source, for its user.
        classes: names in the order of mmdet's labels, which is that of the categories.
        has_masks: whether all objects have one.
        splits: ``'train'``, ``'val'``, and ``'test'`` if there is one.
        is_converted: whether annotations were written.
    """

    found: str
    classes: tuple[str, ...]
    has_masks: bool
    splits: dict[str, CocoSplit]
    is_converted: bool


def prepare_detection(source: Source, report: Report) -> DetectionData:
    """Finds the images and annotations of a folder, and converts them if mmdet cannot read them.

    Args:
        source: the folder, and what is known of it.
        report: takes what is left out, and why.

    Raises:
        UserError: nothing is recognised, several formats are, or what is wrong with the data.
    """
    found = _recognised(source)
    if found.name == 'COCO':
        files = coco.find_splits(source.folder, source.files)
        if (data := _in_place(source.folder, files, found.phrase)) is not None:
            refuse_share(source.val_share, data.splits)
            _check_masks(source, data.has_masks)
            return data
        annotated = coco.read_files(source.folder, files, report)
    else:
        annotated = found.reader.read(source.folder, report)
    return _converted(source, annotated, found.phrase, report)


def _recognised(source: Source) -> Found:
    if source.files:
        names = printable(', '.join(map(str, source.files.values())))
        return Found('COCO', coco, f'COCO: annotations in {names}')
    try:
        return recognise(source.folder, source.format)
    except UserError as error:
        if not _has_label_maps(source):
            raise
        raise UserError(
            f'{error} Label maps, which it has, take --base focal_upernet_160k.'
        ) from error


def _has_label_maps(source: Source) -> bool:
    with suppress(UserError):
        return source.format is None and label_maps.recognise(source.folder) is not None
    return False


def _in_place(folder: Folder, files: dict[str, Path], phrase: str) -> DetectionData | None:
    """COCO's form as mmdet reads it; None if it has to be converted or divided."""
    splits, contents = {}, {}
    for split in coco.order_of(files):
        try:
            contents[split] = content = read_coco(files[split])
        except ValueError:
            return None
        prefix = _image_folder(folder, split, files[split], content)
        if prefix is None:
            return None
        splits[split] = CocoSplit(files[split], prefix, len(content.images))
    if 'val' not in splits and 'test' in splits:
        splits['val'] = splits.pop('test')
    if not {'train', 'val'} <= set(splits):
        return None
    classes = _classes(contents)
    has_masks = all(map(_has_masks, contents.values()))
    if not classes or not all(
        _is_sound(split, data, classes, has_masks) for split, data in splits.items()
    ):
        return None
    ordered = {split: splits[split] for split in coco.order_of(splits)}
    return DetectionData(phrase, classes, has_masks, ordered, is_converted=False)


def _image_folder(folder: Folder, split: str, path: Path, content: CocoContent) -> Path | None:
    """The folder that all names of images are relative to, if there is one."""
    names = [image.get('file_name') for image in content.images if isinstance(image, dict)]
    if not names or not all(isinstance(name, str) and name for name in names):
        return None
    there = {folder.relative(each) for each in folder.images}
    first = folder.find_image(names[0], path.parent, split if split in SPLITS else None)
    if first is None or not first.as_posix().endswith(names[0]):
        return None
    prefix = Path(first.as_posix().removesuffix(names[0]) or '.')
    below = '' if prefix == folder.root else f'{folder.relative(prefix)}/'
    return prefix if all(f'{below}{name}' in there for name in names) else None


def _is_sound(split: str, data: CocoSplit, classes: tuple[str, ...], has_masks: bool) -> bool:
    """Whether the checker finds nothing wrong with the annotations."""
    report = Report()
    check_coco(
        CocoData(
            annotations=str(data.annotations),
            images=str(data.images),
            classes=classes,
            has_masks=has_masks,
            trains=split == 'train',
            evaluation=None if split == 'train' else Evaluation(has_masks),
        ),
        report,
        most=0,
    )
    return not report.count('error')


def _has_masks(content: CocoContent) -> bool:
    with suppress(AttributeError):
        return all(each.get('segmentation') for each in content.annotations)
    return False


def _classes(contents: dict[str, CocoContent]) -> tuple[str, ...] | None:
    """Names with objects in any split, in the order of the files, where these agree."""
    used = set()
    with suppress(KeyError, TypeError):  # which are told when it is read again
        for content in contents.values():
            names = {each['id']: each['name'] for each in content.categories}
            counts = Counter(each['category_id'] for each in content.annotations)
            used |= {names[key] for key in counts if key in names}
        orders = {
            tuple(each['name'] for each in content.categories if each['name'] in used)
            for content in contents.values()
        }
        return orders.pop() if len(orders) == 1 else None
    return None


def _converted(source: Source, data: Annotated, phrase: str, report: Report) -> DetectionData:
    folder = source.folder
    data = fitted(data, report)
    splits, division = divided(folder, data.splits, source.val_share, source.seed)
    phrase += division
    if not data.classes:
        raise UserError(f'{folder.root} has no objects in its images.')
    objects = [
        each for samples in splits.values() for sample in samples for each in sample.objects
    ]
    has_masks = all(each.has_mask for each in objects)
    _check_masks(source, has_masks)
    with folder_written_atomically(source.out, REPORT) as out:
        for split, samples in splits.items():
            ordered = sorted(samples, key=lambda sample: folder.relative(sample.image))
            with written_atomically(out / f'{split}.json') as file:
                file.write(coco_json(ordered, data.classes, folder))
        _check(out, splits, folder)
        text = '\n'.join([phrase, *report.lines('note'), ''])
        (out / REPORT).write_text(text, encoding='utf-8')
    return DetectionData(
        phrase,
        data.classes,
        has_masks,
        {
            split: CocoSplit(source.out / f'{split}.json', folder.root, len(splits[split]))
            for split in coco.order_of(splits)
        },
        is_converted=True,
    )


def _check_masks(source: Source, has_masks: bool) -> None:
    if source.needs_masks and not has_masks:
        raise UserError(
            f'{source.folder.root} has objects without masks, which the --base learns. Take one '
            'without masks: focal_retinanet_3x, focal_atss_3x, focal_sparsercnn_3x.'
        )


def _check(out: Path, splits: Iterable[str], folder: Folder) -> None:
    """Raises UserError if what was written would not train."""
    report = Report()
    for split in splits:
        data = CocoData(
            annotations=str(out / f'{split}.json'),
            images=str(folder.root),
            trains=split == 'train',
            evaluation=None if split == 'train' else Evaluation(),
        )
        check_coco(data, report, most=0)
    if report.count('error'):
        raise UserError('\n'.join(report.lines('error')))
