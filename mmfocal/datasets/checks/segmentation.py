"""Checks of data sets as mmseg's ``BaseSegDataset`` reads them."""

from __future__ import annotations

from dataclasses import dataclass

from .class_counts import ClassCounts
from .images import Entry, ImageData, check_files
from .report import Counts, Report


@dataclass(frozen=True, kw_only=True)
class SegmentationData(ImageData):
    """Images with label maps.

    Attributes:
        entries: the images.
        list_file: what lists them, None for their folder.
    """

    entries: tuple[Entry, ...]
    list_file: str | None = None


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
    return Counts(len(data.entries), opened, label_maps=num_maps, classes=counts)
