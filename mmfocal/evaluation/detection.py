"""Error analysis of detections: AP of each class, kinds of errors, confusions, images.

Kinds of errors have the names of TIDE (Bolya et al., arXiv 2008.08115).
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmfocal.datasets.checks import BadDataError, CocoData, check_coco
from mmfocal.datasets.checks import Report as Faults
from mmfocal.utils.errors import UserError
from mmfocal.utils.files import check_file
from mmfocal.visualization.predictions import draw_coco, palette_of

from .report import Confusion, Example, Report, Table, percent, read_image

# Of a detection, in the order in which they are asked for; the last is of an annotation.
OUTCOMES = (
    'correct',
    'duplicate',
    'classification',
    'localization',
    'both',
    'background',
    'missed',
)
COLUMNS = ('AP', 'AP50', 'AP75', 'small', 'medium', 'large')
KINDS = dict(bbox='box', segm='mask')  # of detections, by their names in files
MAX_COORDINATE = 1e6  # of a detection, which may leave its image; pycocotools fails from 1e8 on
# Compressed RLE; after a last character that says that more follow, pycocotools would read on.
COUNTS = re.compile('[0-o]*[0-O]')
NEAR = 0.1  # IoU from which a detection belongs to an object at all


@dataclass
class ImageOutcome:
    """What became of the annotations and detections of an image.

    Attributes:
        counts: by :data:`OUTCOMES`.
        by_class: ``(class id, outcome)`` to counts; the class is the detection's, or the
            annotation's if that was missed.
        pairs: ``(class id of an annotation, class id of a detection)`` to counts, None for
            neither; see :func:`confusions`.
    """

    counts: Counter = field(default_factory=Counter)
    by_class: Counter = field(default_factory=Counter)
    pairs: Counter = field(default_factory=Counter)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; None where there is nothing to find or found."""
        correct = self.counts['correct']
        wrong = sum(self.counts.values()) - correct
        return 2 * correct / (2 * correct + wrong) if correct or wrong else None


def judge(truths: Sequence[dict], found: Sequence[dict], iou_threshold: float) -> ImageOutcome:
    """Kinds of errors in an image.

    From the highest score down, a detection is *correct* if its IoU with an annotation of its
    class that no other detection has is at least the threshold, and a *duplicate* if another has
    it. Otherwise it is an error of *classification* if its IoU with one of another class is at
    least the threshold, of *localization* if that with one of its class is at least 0.1, of *both*
    if that with one of another class is, and *background* if none is. What mostly lies in a crowd
    is left out. Annotations without a correct detection are *missed*; unlike in TIDE, also those
    that have an error of classification or localization.

    Args:
        truths: annotations in COCO's form.
        found: detections in COCO's form, above the least score.
        iou_threshold: least intersection over union of boxes.
    """
    outcome = ImageOutcome()
    objects = [truth for truth in truths if not truth.get('iscrowd')]
    crowds = [truth for truth in truths if truth.get('iscrowd')]
    found = sorted(found, key=lambda each: -each['score'])
    overlaps = _overlaps(found, objects, crowd=False)
    in_crowd = _overlaps(found, crowds, crowd=True)
    classes = np.array([truth['category_id'] for truth in objects], dtype=int)
    taken = np.zeros(len(objects), dtype=bool)
    for i, detection in enumerate(found):
        same = classes == detection['category_id']
        near = overlaps[i] >= iou_threshold
        free = np.flatnonzero(same & near & ~taken)
        if len(free):
            taken[free[overlaps[i][free].argmax()]] = True
            kind = 'correct'
        elif (same & near).any():
            kind = 'duplicate'
        elif (in_crowd[i] >= iou_threshold).any():
            continue
        elif near.any():
            kind = 'classification'
        elif (same & (overlaps[i] >= NEAR)).any():
            kind = 'localization'
        else:
            kind = 'both' if (overlaps[i] >= NEAR).any() else 'background'
        outcome.counts[kind] += 1
        outcome.by_class[detection['category_id'], kind] += 1
    for truth, is_taken in zip(objects, taken, strict=True):
        if not is_taken:
            outcome.counts['missed'] += 1
            outcome.by_class[truth['category_id'], 'missed'] += 1
    ignored = (in_crowd >= iou_threshold).any(axis=1)
    outcome.pairs = confusions(objects, found, overlaps, iou_threshold, ignored)
    return outcome


def confusions(
    objects: Sequence[dict],
    found: Sequence[dict],
    overlaps: np.ndarray,
    iou_threshold: float,
    ignored: np.ndarray,
) -> Counter:
    """Which class was taken for which.

    From the highest score down, a detection takes the annotation, of any class, that overlaps it
    most and by the threshold at least, if no other has it. Pairs count as ``(true, predicted)``,
    annotations that are left as ``(true, None)`` and detections that are left as ``(None,
    predicted)``, unless they are ``ignored`` for lying in a crowd.
    """
    pairs, taken = Counter(), np.zeros(len(objects), dtype=bool)
    for i, detection in enumerate(found):
        free = np.flatnonzero((overlaps[i] >= iou_threshold) & ~taken)
        if len(free):
            best = free[overlaps[i][free].argmax()]
            taken[best] = True
            pairs[objects[best]['category_id'], detection['category_id']] += 1
        elif not ignored[i]:
            pairs[None, detection['category_id']] += 1
    for truth, is_taken in zip(objects, taken, strict=True):
        if not is_taken:
            pairs[truth['category_id'], None] += 1
    return pairs


def _overlaps(found: Sequence[dict], truths: Sequence[dict], crowd: bool) -> np.ndarray:
    """``(detections, annotations)``: IoU, or for crowds the share of a detection inside."""
    if not found or not truths:
        return np.zeros((len(found), len(truths)))
    boxes = [np.array([each['bbox'] for each in side], dtype=float) for side in (found, truths)]
    return masks.iou(*boxes, [int(crowd)] * len(truths))


def average_precisions(truth: COCO, detections: list[dict], kind: str) -> dict[int, list[float]]:
    """AP, AP50, AP75, and of small, medium and large objects, by class, as COCO defines them.

    Args:
        truth: annotations.
        detections: in COCO's form, of all scores.
        kind: ``'bbox'`` or ``'segm'``.

    Returns:
        Lists of six by class id; NaN where a class has no such objects.
    """
    if not detections:
        return {class_id: [0.0] * 6 for class_id in truth.getCatIds()}
    with redirect_stdout(None):
        evaluation = COCOeval(truth, truth.loadRes([dict(each) for each in detections]), kind)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval['precision'][..., -1]  # (IoU, recall, class, area)

    def mean(values: np.ndarray) -> float:
        values = values[values > -1]
        return float(values.mean()) if values.size else float('nan')

    return {
        class_id: [
            *(mean(precision[index, :, k, 0]) for index in (slice(None), 0, 5)),
            *(mean(precision[:, :, k, area]) for area in (1, 2, 3)),
        ]
        for k, class_id in enumerate(evaluation.params.catIds)
    }


def analyze_detections(
    ann_file: str | Path,
    image_folder: str | Path,
    predictions: Mapping[str, str | Path],
    *,
    score_threshold: float = 0.3,
    iou_threshold: float = 0.5,
    images: int = 12,
) -> Report:
    """All about the detections of a data set.

    Args:
        ann_file: annotations in COCO's form.
        image_folder: folder of the images.
        predictions: files in COCO's result form, by ``'bbox'`` and, where there are masks,
            ``'segm'``, with detections of all scores.
        score_threshold: least score in all but AP.
        iou_threshold: least IoU of boxes that belong together, in all but AP.
        images: how many of the worst images to show; a third as many of the best.

    Raises:
        UserError: annotations that are bad or without any object, predictions of another form,
            or for other images or classes than the annotations have.
    """
    _check_annotations(ann_file, image_folder, 'segm' in predictions)
    with redirect_stdout(None):
        truth = COCO(str(ann_file))
    if not truth.anns:
        raise UserError(
            f'{ann_file} has no annotations, so there is nothing to compare with. Take a test set '
            'that has them: --cfg-options test_dataloader.dataset.ann_file=...'
        )
    found = {kind: _read(path, kind, truth, ann_file) for kind, path in predictions.items()}
    names = {each['id']: each['name'] for each in truth.loadCats(truth.getCatIds())}

    by_image = defaultdict(list)
    for kind in ('segm', 'bbox') if 'segm' in found else ('bbox',):
        for detection in found[kind]:
            if detection['score'] >= score_threshold:
                by_image[kind, detection['image_id']].append(detection)
    outcomes = {
        image_id: judge(
            truth.loadAnns(truth.getAnnIds(image_id)), by_image['bbox', image_id], iou_threshold
        )
        for image_id in truth.getImgIds()
    }
    precisions = {kind: average_precisions(truth, each, kind) for kind, each in found.items()}

    total = sum((each.counts for each in outcomes.values()), Counter())
    by_class = sum((each.by_class for each in outcomes.values()), Counter())
    pairs = sum((each.pairs for each in outcomes.values()), Counter())
    report = Report(
        summary=[
            *(
                (f'{KINDS[kind]} {name}', percent(np.nanmean([row[i] for row in rows.values()])))
                for kind, rows in precisions.items()
                for i, name in enumerate(('AP', 'AP50', 'AP75'))
            ),
            ('images', f'{len(outcomes):,}'),
            ('annotations', f'{len(truth.anns):,}'),
        ],
        tables=[
            _class_table(truth, names, precisions, by_class),
            _errors_table(total, score_threshold, iou_threshold),
        ],
        confusion=_confusion(names, pairs, score_threshold, iou_threshold),
        measure=f'F1 of detections of at least {score_threshold:g}, at an IoU of '
        f'{iou_threshold:g}',
    )
    drawn = 'segm' if 'segm' in found else 'bbox'

    def example(image_id: int) -> Example:
        name, outcome = truth.imgs[image_id]['file_name'], outcomes[image_id]
        image = read_image(Path(image_folder) / name)
        sides = truth.loadAnns(truth.getAnnIds(image_id)), by_image[drawn, image_id]
        text = ', '.join(
            f'{outcome.counts[kind]} {kind}' for kind in OUTCOMES if outcome.counts[kind]
        )
        palette = palette_of(len(names))
        try:
            drawn_sides = [draw_coco(image, _as(drawn, side), truth, palette) for side in sides]
        except ValueError as error:  # of counts whose sum is not the size of the image
            raise UserError(f'{predictions[drawn]}: a mask of {name!r}: {error}.') from error
        return Example(name, outcome.f1 or 0.0, text, *drawn_sides)

    ranked = sorted(
        (each.f1, -sum(each.counts.values()), image_id)
        for image_id, each in outcomes.items()
        if each.f1 is not None
    )
    worst = ranked[:images]
    best = [each for each in ranked[::-1] if each not in worst][: images // 3]
    report.worst = [example(image_id) for *_, image_id in worst]
    report.best = [example(image_id) for *_, image_id in best]
    return report


def _as(kind: str, objects: Sequence[dict]) -> list[dict]:
    """Objects with what is compared: of boxes, masks are not drawn, nor looked at before."""
    if kind == 'segm':
        return list(objects)
    return [{**each, 'segmentation': None} for each in objects]


def _check_annotations(ann_file: str | Path, image_folder: str | Path, masks: bool) -> None:
    """Raises BadDataError for annotations that pycocotools, or who reads the report, must not see.

    Images are opened when they are shown.
    """
    data = CocoData(
        annotations=str(ann_file), images=str(image_folder), has_masks=masks, trains=False
    )
    report = Faults()
    check_coco(data, report, most=0)
    if report.count('error'):
        raise BadDataError('\n'.join(report.lines('error')))


def _read(path: str | Path, kind: str, truth: COCO, ann_file: str | Path) -> list[dict]:
    """Detections in COCO's result form, which fit the annotations."""
    check_file(path)
    expected = 'Expected predictions of the test set of this config, as tools/test.py --out writes'
    try:
        found = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is no JSON ({error}). {expected} them.') from error
    if not isinstance(found, list):
        raise UserError(f'{path} holds no list of detections. {expected} them.')
    for number, each in enumerate(found):
        if problem := _misfit(each, kind, truth, ann_file):
            raise UserError(f'{path}: detection number {number} {problem}. {expected} them.')
    return found


def _misfit(detection: Any, kind: str, truth: COCO, ann_file: str | Path) -> str | None:
    """Why a detection cannot be compared with the annotations, as part of a sentence."""
    if not isinstance(detection, dict):
        return 'is no JSON object'
    for key, known in (('image_id', truth.imgs), ('category_id', truth.cats)):
        identity = detection.get(key)
        if not isinstance(identity, int | str) or identity not in known:
            return f'has {key} {identity!r}, which {ann_file} does not have'
    if not _are_coordinates([detection.get('score')]):
        return f'has score {detection.get("score")!r}, which is no number'
    if 'bbox' in detection or kind == 'bbox':
        box = detection.get('bbox')
        if not isinstance(box, list) or len(box) != 4 or not _are_coordinates(box):
            return f'has bbox {box!r}, which is not x, y, width and height'
    if kind == 'segm':
        image, mask = truth.imgs[detection['image_id']], detection.get('segmentation')
        size = [image['height'], image['width']]
        counts = mask.get('counts') if isinstance(mask, dict) else None
        is_rle = isinstance(counts, str) and COUNTS.fullmatch(counts)
        if not is_rle or mask.get('size') != size:
            return f'has no mask of [height, width] {size} as compressed RLE'
    return None


def _are_coordinates(values: Sequence[Any]) -> bool:
    """Whether all are numbers that pycocotools can take; false for NaN."""
    return all(isinstance(each, int | float) and abs(each) <= MAX_COORDINATE for each in values)


def _class_table(truth: COCO, names: dict, precisions: dict, by_class: Counter) -> Table:
    columns = [f'{KINDS[kind]} {name}' for kind in precisions for name in COLUMNS]
    rows = []
    for class_id, name in names.items():
        row: list[Any] = [name, len(truth.getAnnIds(catIds=[class_id], iscrowd=False))]
        for values in precisions.values():
            row += [None if np.isnan(value) else value for value in values[class_id]]
        row += [by_class[class_id, kind] for kind in OUTCOMES]
        rows.append(row)
    return Table('Classes', ['class', 'objects', *columns, *OUTCOMES], rows, bars=columns[:1])


def _errors_table(total: Counter, score_threshold: float, iou_threshold: float) -> Table:
    count = sum(total.values())
    rows = [[kind, total[kind], total[kind] / count if count else 0.0] for kind in OUTCOMES]
    title = f'Errors, at a score of {score_threshold:g} and an IoU of {iou_threshold:g}'
    return Table(title, ['kind', 'number', 'share'], rows, bars=['share'])


def _confusion(
    names: dict, pairs: Counter, score_threshold: float, iou_threshold: float
) -> Confusion:
    ids = [*names, None]
    counts = [[pairs[true, predicted] for predicted in ids] for true in ids]
    labels = [*names.values(), 'background']
    note = f'Boxes of at least {score_threshold:g}, at an IoU of {iou_threshold:g}.'
    return Confusion(labels, counts, note)
