"""Data for segmenters: label maps as they are where mmseg can read them, else converted once."""

from __future__ import annotations

from mmfocal.utils.errors import UserError

from ..checks import Report
from . import drawing, label_maps
from .content import Annotated
from .conversion import fitted
from .detection import Source
from .label_maps import LabelMaps
from .recognition import recognise
from .splits import divided


def prepare_segmentation(source: Source, report: Report) -> LabelMaps:
    """Finds images and label maps of a folder, or outlines to draw label maps from.

    Args:
        source: the folder, and what is known of it. If it names a format, its outlines are drawn.
        report: takes what is left out, and why.

    Raises:
        UserError: neither is recognised, or what is wrong with the data.
    """
    if source.format is None and label_maps.recognise(source.folder):
        return label_maps.prepare(
            source.folder,
            source.out,
            report,
            classes=source.classes,
            ignored=source.ignored,
            colours=source.colours,
            val_share=source.val_share,
            seed=source.seed,
        )
    try:
        found = recognise(source.folder, source.format)
    except UserError as error:
        if source.format is not None:
            raise
        raise UserError(
            f'{source.folder.root} holds no label maps beside its images, from which to learn '
            f'segmentation, and to draw them from outlines: {error}'
        ) from error
    if source.classes or source.colours:
        raise UserError(
            f'{found.phrase}: outlines bring the names of their classes. Leave out --classes and '
            '--colours.'
        )
    annotated = fitted(found.reader.read(source.folder, report), report)
    splits, _ = divided(source.folder, annotated.splits, source.val_share, source.seed)
    annotated = Annotated(annotated.classes, splits)
    return drawing.draw(annotated, source.folder, source.out, report)
