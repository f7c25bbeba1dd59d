"""Checks of data sets as mmseg's ``BaseSegDataset`` reads them."""

from __future__ import annotations

from dataclasses import dataclass

from .class_counts import ClassCounts
from .images import Entry, ImageData, check_files
from .report import Counts, Report, some


@dataclass(frozen=True, kw_only=True)
class SegmentationData(ImageData):
    """Images with label maps.

    Attributes:
        entries: the images.
        list_file: what lists them, None for their folder.
        trains: whether it is trained on.
    """

    entries: tuple[Entry, ...]
    list_file: str | None = None
    trains: bool = True


def check_segmentation(
    data: SegmentationData, report: Report, deep: bool = False, most: int | None = None
) -> Counts:
    """Looks through images and their label maps.

    Args:
        data: what is read, and how.
        report: takes what is found.
        deep: whether all files are decoded, see :func:`~.images.check_files`.
        most: images, and label maps, that are opened, see there.
    """
    where = data.list_file or data.images
    if not data.entries:
        problem = 'lists no images. Correct data_prefix, ann_file or img_suffix in the config.'
        report.error(where, problem)
    counts = ClassCounts(data.classes, 'pixels') if data.classes else None
    opened, num_maps = check_files(data.entries, where, data, report, deep, most, counts)
    if counts is not None:
        counts.note_absent(where, report)
        _check_classes(where, data, counts, report)
    names = [entry.name for entry in data.entries]
    return Counts(len(names), opened, label_maps=num_maps, classes=counts, names=names)


def _check_classes(
    where: str, data: SegmentationData, counts: ClassCounts, report: Report
) -> None:
    """Tells of label maps of which a model would learn one answer for all pixels, or none."""
    present = len(counts.names) - len(counts.absent)
    if not counts.looked_at or present > 1 or len(counts.names) < 2 or data.label_loader:
        return
    values = sorted(counts.values)
    if values == [0, 255] and 255 in data.ignored:
        report.error(
            where,
            'its label maps hold {values}, and 255 is ignored: no pixel is ever {other!r}. Masks '
            'of 0 and 255 have to become labels 0 and 1: mmfocal new_config converts them.',
            values=some(values),
            other=counts.names[1],
        )
    elif data.first_label and 0 in values:
        report.error(
            where,
            'its label maps hold {values}, and reduce_zero_label=True ignores 0 and takes 1 for '
            '{first!r}. Leave reduce_zero_label out if 0 is a class.',
            values=some(values),
            first=counts.names[0],
        )
    elif data.trains and counts.looked_at == counts.of:
        report.error(
            where,
            'its label maps hold {values} alone, which is one class or none of {classes}: there '
            'is nothing to learn. Correct the label maps, or the classes of the config.',
            values=some(values),
            classes=len(counts.names),
        )
