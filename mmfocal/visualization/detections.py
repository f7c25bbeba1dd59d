"""Detections beside the ground truth."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from pycocotools.coco import COCO

from mmfocal.utils.colours import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW)  # by class


def draw_detections(
    ann_file: str | Path,
    image_folder: str | Path,
    detections_file: str | Path,
    image_ids: Sequence[int] | None = None,
    score_threshold: float = 0.5,
    columns: int = 3,
) -> Figure:
    """Draws images twice, with their ground truth and with what was detected.

    Args:
        ann_file: ground truth in COCO format.
        image_folder: folder of its images.
        detections_file: detections in COCO's result format, with masks or without.
        image_ids: images to draw, the first twelve by default.
        score_threshold: least score of a detection that is drawn.
        columns: pairs in a row.

    Returns:
        The figure; the caller saves and closes it.
    """
    with redirect_stdout(None):  # pycocotools tells how long it took
        truth = COCO(str(ann_file))
    names = {category['id']: category['name'] for category in truth.dataset['categories']}
    detections = defaultdict(list)
    for detection in json.loads(Path(detections_file).read_text()):
        if detection['score'] >= score_threshold:
            detections[detection['image_id']].append(detection)

    image_ids = truth.getImgIds()[:12] if image_ids is None else list(image_ids)
    rows = -(-len(image_ids) // columns)
    figure, panels = plt.subplots(
        rows,
        2 * columns,
        figsize=(4.2 * columns, 2.25 * rows),
        squeeze=False,
        layout='constrained',
    )
    for axes in panels.flat:
        axes.axis('off')
    for i, image_id in enumerate(image_ids):
        info = truth.loadImgs(image_id)[0]
        image = cv2.imread(str(Path(image_folder) / info['file_name']))[..., ::-1]
        left, right = panels[i // columns, 2 * (i % columns) : 2 * (i % columns) + 2]
        expected = truth.loadAnns(truth.getAnnIds(image_id))
        _draw(left, truth, image, expected, names, 'ground truth')
        found = sorted(detections[image_id], key=lambda detection: detection['score'])
        _draw(right, truth, image, found, names, 'detected')
    return figure


def _draw(
    axes: Axes, truth: COCO, image: np.ndarray, objects: list[dict], names: dict, title: str
) -> None:
    """Masks, boxes, class names and, where there are any, scores."""
    image = image.astype(np.float32) / 255
    for entry in objects:
        if 'segmentation' in entry:
            mask = truth.annToMask(entry).astype(bool)
            colour = np.array(plt.matplotlib.colors.to_rgb(_colour(entry)))
            image[mask] = 0.5 * image[mask] + 0.5 * colour
    axes.imshow(image)
    axes.set_title(title, fontsize=8, pad=2)
    for entry in objects:
        x, y, width, height = entry['bbox']
        axes.add_patch(Rectangle((x, y), width, height, fill=False, ec=_colour(entry), lw=1.2))
        label = names[entry['category_id']]
        if entry.get('iscrowd'):
            label += ' (crowd)'
        if 'score' in entry:
            label += f' {entry["score"]:.2f}'
        axes.text(
            x + 1,
            y + 1,
            label,
            fontsize=5.5,
            color='white',
            va='top',
            bbox=dict(facecolor=_colour(entry), edgecolor='none', pad=0.6),
            clip_on=True,
        )


def _colour(entry: dict) -> str:
    return COLOURS[entry['category_id'] % len(COLOURS)]
