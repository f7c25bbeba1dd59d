"""A config for a folder of data, as ``mmfocal new_config`` writes it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mmfocal.datasets.checks import Report
from mmfocal.datasets.checks.heads import IGNORED_LABEL
from mmfocal.datasets.checks.report import some
from mmfocal.datasets.formats import (
    DetectionData,
    Folder,
    LabelMaps,
    Source,
    prepare_detection,
    prepare_segmentation,
    read_names,
)
from mmfocal.engine.own_data import (
    check_base,
    config_text,
    learns_labels_of_pixels,
    learns_masks,
)
from mmfocal.utils.errors import UserError
from mmfocal.utils.files import check_target, written_atomically
from mmfocal.utils.text import printable


@dataclass(frozen=True)
class NewConfig:
    """A config that was written.

    Attributes:
        path: of the config.
        data: what was found, by split, and the names of the classes.
        lines: for users: what was recognised, how many images and classes there are, and what was
            left out.
    """

    path: Path
    data: DetectionData | LabelMaps
    lines: tuple[str, ...]


def new_config(
    data: str | os.PathLike,
    base: str = 'focal_maskrcnn_3x',
    out: str | os.PathLike = 'mine.py',
    *,
    format: str | None = None,
    train_json: str | os.PathLike | None = None,
    val_json: str | os.PathLike | None = None,
    val_share: float | None = None,
    seed: int = 0,
    classes: str | None = None,
    ignored_label: int | None = None,
    colours: str | os.PathLike | None = None,
    force: bool = False,
) -> NewConfig:
    """Writes a config that trains ``base`` on images with boxes, masks or label maps.

    Args:
        data: folder with images and annotations, in any of the formats of docs/training.md. It is
            only read.
        base: config to begin with, path or name; one of mmseg for label maps.
        out: config to write; what has to be converted goes to a folder beside it, ``mine_data``.
        format: of the annotations, if there are several.
        train_json: COCO's annotations of training, if names do not tell.
        val_json: those of validation.
        val_share: of the images that are for validation, if the data is not divided; None for a
            fifth.
        seed: of that choice.
        classes: names of the classes in the order of labels, for label maps: a text file, or names
            with commas between them.
        ignored_label: that is not learned, for label maps; None for 255.
        colours: text file of colours, a line ``name,red,green,blue`` for each, for label maps.
        force: whether a config that is there is overwritten.

    Raises:
        UserError: the data is none of the formats or bad, an option does not fit it, the base
            cannot be used, or there is such a config already.
    """
    out = Path(out)
    if out.exists() and not force:
        raise UserError(f'{out} is there already; --force overwrites it.')
    check_target(out)
    check_base(base)
    is_segmentation = learns_labels_of_pixels(base)
    _refuse_unused(
        base,
        is_segmentation,
        dict(train_json=train_json, val_json=val_json)
        if is_segmentation
        else dict(classes=classes, ignored_label=ignored_label, colours=colours),
    )
    ignored = IGNORED_LABEL if ignored_label is None else ignored_label
    if not 0 <= ignored < 2**16:
        raise UserError(f'--ignored-label: expected a label from 0 to 65535, got {ignored}.')
    converted = out.with_name(f'{out.stem}_data')
    files = dict(train=train_json, val=val_json)
    report = Report()
    source = Source(
        folder=Folder(Path(data)),
        out=converted,
        format=format,
        files={split: Path(path) for split, path in files.items() if path},
        val_share=val_share,
        seed=seed,
        classes=read_names(classes) if classes else None,
        ignored=ignored,
        colours=None if colours is None else Path(colours),
        needs_masks=not is_segmentation and learns_masks(base),
    )
    found = (prepare_segmentation if is_segmentation else prepare_detection)(source, report)
    with written_atomically(out) as file:
        file.write(config_text(Path(data), found, base).encode())
    lines = [
        printable(f'Recognised {found.found}'),
        *(f'{split}: {part.num_images:,} images' for split, part in found.splits.items()),
        printable(f'{len(found.classes)} classes: {some(found.classes)}'),
        *report.lines('note'),
    ]
    if found.is_converted:
        lines.append(f'Wrote what had to be converted to {converted}')
    return NewConfig(out, found, tuple(lines))


def _refuse_unused(base: str, is_segmentation: bool, unused: dict[str, object]) -> None:
    given = [f'--{name}'.replace('_', '-') for name, value in unused.items() if value is not None]
    if given:
        task = 'a segmenter' if is_segmentation else 'a detector'
        other = 'focal_maskrcnn_3x' if is_segmentation else 'focal_upernet_160k'
        raise UserError(
            f'{base} is {task}, for which {", ".join(given)} has no meaning. Leave it out, '
            f'or take another --base, such as {other}.'
        )
