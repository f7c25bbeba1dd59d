"""Error analysis of label maps: IoU of each class, confusions, images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from mmfocal.datasets.checks import decoded
from mmfocal.utils.errors import UserError
from mmfocal.visualization.predictions import draw_label_map, enlarged, palette_of

from .report import Confusion, Example, Report, Table, percent, read_image


def count_pixels(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """``(classes, classes)``: pixels by their true and their predicted class.

    Args:
        truth: ``(H, W)`` class indices; what is not below ``classes`` has no label.
        found: ``(H, W)`` class indices.
        classes: how many there are.
    """
    valid = truth < classes
    pairs = truth[valid].astype(np.int64) * classes + found[valid]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def intersection_over_union(counts: np.ndarray) -> np.ndarray:
    """``(classes,)`` from :func:`count_pixels`; NaN for classes that are nowhere."""
    common = np.diag(counts)
    return _ratio(common, counts.sum(0) + counts.sum(1) - common)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where there is nothing."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def analyze_segmentations(
    samples: Iterable[tuple[Path, Callable[[], np.ndarray]]],
    folder: str | Path,
    classes: Sequence[str],
    palette: Sequence | None = None,
    *,
    first_label: int = 0,
    images: int = 12,
) -> Report:
    """All about the predicted label maps of a data set.

    Args:
        samples: path of each image, and a function that loads its true label map.
        folder: of predicted label maps, ``.png`` files under the names of the images.
        classes: names of all classes.
        palette: RGB of each class.
        first_label: value of the first class in predicted files: 1 for data sets with
            ``reduce_zero_label``.
        images: how many of the worst images to show; a third as many of the best.

    Raises:
        UserError: a predicted label map is missing, of another size, or of other classes.
    """
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    per_image = []
    for path, load in samples:
        truth, found = load(), _predicted(path, folder, first_label)
        if truth.shape != found.shape:
            raise UserError(
                f'{path.name}: expected a predicted label map of {truth.shape}, height and width '
                f'of the true one, got {found.shape}. Are these predictions of this test set?'
            )
        if found.max(initial=0) >= len(classes):
            raise UserError(
                f'{path.name}: expected a predicted label map of {len(classes)} classes, got '
                f'{int(found.max()) + first_label} in it. Are these predictions of this test set?'
            )
        own = count_pixels(truth, found, len(classes))
        counts += own
        if own.any():
            present = own.sum(1) > 0
            per_image.append((float(np.mean(intersection_over_union(own)[present])), path, load))
    if not per_image:
        raise UserError('The test set has no label map with a labelled pixel.')
    iou = intersection_over_union(counts)
    pixels = counts.sum(1)
    accuracy = _ratio(np.diag(counts), pixels)
    precision = _ratio(np.diag(counts), counts.sum(0))
    rows = [
        [name, share, *(None if np.isnan(value) else float(value) for value in values)]
        for name, share, *values in zip(
            classes, (pixels / pixels.sum()).tolist(), iou, accuracy, precision, strict=True
        )
    ]
    colours = palette_of(len(classes), palette)

    def example(score: float, path: Path, load: Callable[[], np.ndarray]) -> Example:
        image = enlarged(read_image(path))
        maps = load().astype(np.uint8), _predicted(path, folder, first_label)
        sides = (draw_label_map(image, enlarged(each), classes, colours) for each in maps)
        return Example(path.name, score, f'mIoU {percent(score)}', *sides)

    ranked = sorted(per_image, key=lambda each: (each[0], str(each[1])))
    worst = ranked[:images]
    best = ranked[: len(worst) - 1 : -1][: images // 3]
    return Report(
        summary=[
            ('mIoU', percent(np.nanmean(iou))),
            ('pixel accuracy', percent(np.diag(counts).sum() / counts.sum())),
            ('mean accuracy', percent(np.nanmean(accuracy))),
            ('images', f'{len(per_image):,}'),
        ],
        tables=[
            Table(
                'Classes', ['class', 'pixels', 'IoU', 'accuracy', 'precision'], rows, bars=['IoU']
            )
        ],
        confusion=Confusion(list(classes), counts.tolist(), 'Pixels that have a label.'),
        measure='mean IoU of the classes that are in the image',
        worst=[example(*each) for each in worst],
        best=[example(*each) for each in best],
    )


def _predicted(path: Path, folder: str | Path, first_label: int) -> np.ndarray:
    file = Path(folder) / f'{path.stem}.png'
    try:
        found = decoded(str(file))
    except ValueError as error:
        raise UserError(
            f'{file}, the label map for {path.name}, {error} Expected predictions of the test set '
            'of this config, as tools/test.py --out writes them.'
        ) from error
    return found - np.uint8(first_label)
