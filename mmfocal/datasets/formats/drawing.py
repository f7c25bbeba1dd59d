"""Draws the outlines of objects into label maps, for semantic segmentation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_api

from mmfocal.utils.errors import UserError
from mmfocal.utils.progress import progress_bar

from ..checks import Report
from ..checks.coco import MAX_COORDINATE, rle_pixels
from ..checks.heads import IGNORED_LABEL
from ..checks.report import short
from .content import SPLITS, Annotated, Folder, Object, Sample
from .label_maps import LabelMaps, write_split, written
from .label_meaning import BACKGROUND, check_number, distinct_colours


def draw(
    annotated: Annotated,
    folder: Folder,
    out: Path,
    report: Report,
    *,
    background: str | None = BACKGROUND,
) -> LabelMaps:
    """Writes a label map for each image.

    Pixels are those that pycocotools takes for inside of an outline, as mmdet's masks. Where
    objects overlap, the smaller one is on top, so that none is hidden, and of equal ones the later
    one. Crowds are below all others: for pixels it does not matter how many objects they are of,
    and some tools call each run-length code a crowd.

    Args:
        annotated: images with their sizes and objects, divided into training and validation.
        folder: the data's.
        out: folder to write to.
        report: takes what is left out.
        background: name of the class of pixels without an object; the first one, unless the data
            has a class of that name. With None they are ignored.

    Raises:
        UserError: nothing has an outline, or a mask cannot be drawn.
    """
    classes = annotated.classes
    if background is not None and background not in classes:
        classes = (background, *classes)
    check_number(classes, str(folder.root))
    total = sum(map(len, annotated.splits.values()))
    painter = _Painter(classes, background, report)
    palette, ready = distinct_colours(classes), {}
    phrase = f'outlines of {len(annotated.classes)} classes in {total:,} images, drawn'
    with (
        written(out, phrase, report) as temporary,
        progress_bar('Drawing', total, 'label map') as bar,
    ):

        def drawn(samples: list[Sample]) -> Iterator[tuple[Path, np.ndarray]]:
            for sample in samples:
                yield sample.image, painter.label_map(sample)
                bar.update()

        for split in filter(annotated.splits.get, SPLITS):
            samples = annotated.splits[split]
            images = [sample.image for sample in samples]
            ready[split] = write_split(temporary, out, split, images, drawn(samples), palette)
        if not painter.has_drawn:
            raise UserError(
                f'{folder.root} has no outlines to draw label maps from, only boxes. Take a '
                'detector as --base, such as focal_retinanet_3x.'
            )
    return LabelMaps(phrase, classes, palette, False, ready, is_converted=True)


class _Painter:
    """Draws objects of images.

    Args:
        classes: names in the order of labels.
        background: name of the class of what no object covers; None if that is ignored.
        report: takes what is left out.

    Attributes:
        has_drawn: whether any object had an outline.
    """

    def __init__(self, classes: tuple[str, ...], background: str | None, report: Report) -> None:
        self.labels = {name: label for label, name in enumerate(classes)}
        self.ground = IGNORED_LABEL if background is None else self.labels[background]
        self.report = report
        self.has_drawn = False

    def label_map(self, sample: Sample) -> np.ndarray:
        """Labels of an image, uint8 ``(H, W)``."""
        width, height = map(int, sample.size)
        labels = np.full((height, width), self.ground, np.uint8)
        masks = []
        for each in sample.objects:
            code = self._encoded(each, sample)
            if code is not None:
                masks.append((each, code, int(mask_api.area(code))))
        # Stable: of equal ones the later stays later.
        for each, code, _ in sorted(masks, key=lambda mask: (not mask[0].is_crowd, -mask[2])):
            labels[mask_api.decode(code).astype(bool)] = self.labels[each.label]
        self.has_drawn |= bool(masks)
        return labels

    def _encoded(self, each: Object, sample: Sample) -> dict | None:
        """The mask as pycocotools' run-length code; None of a box without one."""
        width, height = map(int, sample.size)
        if each.rle is not None:
            return _checked(each.rle, (height, width), sample.where)
        if each.polygons:
            polygons = [
                np.clip(polygon, -MAX_COORDINATE, MAX_COORDINATE).tolist()
                for polygon in each.polygons
            ]
            return mask_api.merge(mask_api.frPyObjects(polygons, height, width))
        self.report.note(
            sample.where,
            'the box of {label} has no outline; it is left out of the label map.',
            label=repr(each.label),
        )
        return None


def _checked(rle: dict, size: tuple[int, int], where: str) -> dict:
    """A run-length code as pycocotools takes it, which has to cover just the image."""
    counts, height, width = rle.get('counts'), *size
    is_code = isinstance(counts, list | str) and rle.get('size') in ([height, width], size)
    if not is_code or rle_pixels(counts) != height * width:
        raise UserError(
            f'{where}: expected run-length code of a mask of its image, {width}x{height} pixels '
            f'(width x height), got {short(rle)}. Correct it, or take it out.'
        )
    if isinstance(counts, list):
        return mask_api.frPyObjects(dict(size=[height, width], counts=counts), height, width)
    return dict(size=[height, width], counts=counts.encode())
