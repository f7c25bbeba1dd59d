"""Predictions and ground truth drawn on images, by the visualizers of mmdet, mmseg and mmpretrain.

Here is what these lack: masks that are drawn fast and always in one colour, names of classes on
label maps, text that grows with the image, and figures of many images.
"""

from __future__ import annotations

import colorsys
import importlib
import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmengine.visualization import Visualizer
from mmengine.visualization.vis_backend import BaseVisBackend
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from mmfocal.datasets.checks import why_unreadable
from mmfocal.utils.fonts import install_fonts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Colour = tuple[int, int, int]  # RGB, 0 to 255

ALPHA = 0.5  # opacity of masks and label maps
NAMED_SHARE = 0.004  # of an image, that an area of one class needs to be named
LABEL_MAP_SIDE = 512  # pixels, at which places for names are looked for
SHOWN = 12  # images in a figure
SIDE = 480  # pixels that small images are enlarged to, where texts on them have to be small


def palette_of(classes: int, given: Any = None) -> list[Colour]:
    """One colour for each class: what a data set gives, or hues far apart.

    Args:
        classes: how many.
        given: RGB of each class; ignored unless there is one for each.
    """
    if isinstance(given, (list, tuple)) and len(given) >= classes:
        return [tuple(int(value) for value in colour) for colour in given[:classes]]
    # By the golden ratio, each hue is between the others.
    hsv = [
        (i * 0.618034 % 1, 0.65 + 0.35 * (i % 2), 1 - 0.25 * (i // 2 % 2)) for i in range(classes)
    ]
    return [tuple(round(255 * value) for value in colorsys.hsv_to_rgb(*each)) for each in hsv]


def enlarged(array: np.ndarray) -> np.ndarray:
    """A small image or map with its pixels repeated, so that texts on it are small.

    Args:
        array: ``(H, W)`` or ``(H, W, C)``.
    """
    factor = max(1, SIDE // max(array.shape[:2]))
    return array.repeat(factor, axis=0).repeat(factor, axis=1)


def as_shown(image: np.ndarray) -> np.ndarray:
    """Whatever a loader gives, as ``(H, W, 3)`` of uint8, BGR, to draw on."""
    if image.dtype == np.uint16:
        image = image // 256
    image = np.clip(image, 0, 255).astype(np.uint8)
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(image[..., :3])


# Names of classes are written as they are: for matplotlib, '$' begins a formula.
_plain_text = mpl.rc_context({'text.parse_math': False})

# --- One image --------------------------------------------------------------------------------


@_plain_text
def draw_instances(
    image: np.ndarray,
    instances: InstanceData,
    names: Sequence[str],
    palette: Sequence[Colour],
    labels: bool = True,
) -> np.ndarray:
    """Boxes, masks, class names and scores on a copy of an image, the highest score on top.

    Masks are not left to mmdet's ``DetLocalVisualizer``: it takes 70 ms for each at 1333x800
    pixels, and changes colours at random, so that they flicker in videos.

    Args:
        image: ``(H, W, 3)`` of uint8, BGR.
        instances: ``bboxes``, left, top, right and bottom in pixels, ``labels``, and if there are
            any ``scores``, ``masks`` of ``(N, H, W)`` and ``label_names``.
        names: of classes; others are called by their number.
        palette: colours of classes; others are grey.
        labels: whether names and scores are written.

    Returns:
        ``(H, W, 3)`` of uint8, BGR.
    """
    if 'scores' in instances:
        instances = instances[instances.scores.argsort()]
    classes = instances.labels.tolist()
    beyond = max([len(palette), *(label + 1 for label in classes)]) - len(palette)
    palette = [*palette, *[(128, 128, 128)] * beyond]
    image = image.copy()
    if 'masks' in instances:
        _blend_masks(image, np.asarray(instances.masks), [palette[label] for label in classes])
    corners = torch.as_tensor(instances.bboxes).reshape(-1, 2, 2)
    # In annotations that nobody has checked, sizes may be negative.
    bboxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    shown = InstanceData(bboxes=bboxes, labels=instances.labels)
    if not labels:
        shown.label_names = [''] * len(classes)
    else:
        shown.label_names = instances.get('label_names') or [class_name(names, i) for i in classes]
        if 'scores' in instances:
            shown.scores = instances.scores
    sample = BaseDataElement(gt_instances=shown)  # as predictions they need scores
    return _draw('mmdet', image, sample, dict(palette=palette))


def _blend_masks(image: np.ndarray, masks: np.ndarray, colours: Sequence[Colour]) -> None:
    """Colours an image under masks, and then their outlines, which no mask shall cover."""
    for mask, colour in zip(masks, colours, strict=True):
        left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
        part = image[top : top + height, left : left + width]
        inside = mask[top : top + height, left : left + width].astype(bool)
        part[inside] = (1 - ALPHA) * part[inside] + ALPHA * np.array(colour[::-1])
    thickness = max(1, min(image.shape[:2]) // 400)
    for mask in masks:
        outlines, _ = cv2.findContours(
            mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
        )
        cv2.drawContours(image, outlines, -1, (255, 255, 255), thickness, cv2.LINE_AA)


@_plain_text
def draw_label_map(
    image: np.ndarray,
    label_map: np.ndarray,
    names: Sequence[str],
    palette: Sequence[Colour],
    labels: bool = True,
) -> np.ndarray:
    """Classes as half transparent colours on a copy of an image.

    Names are not left to mmseg's ``SegLocalVisualizer``: it takes 2 s for them at 1333x800 pixels,
    and writes ASCII only.

    Args:
        image: ``(H, W, 3)`` of uint8, BGR.
        label_map: ``(H, W)`` class indices; pixels of others stay as they are.
        names: of all classes.
        palette: colour of each class.
        labels: whether each name is written into the largest area of its class.

    Returns:
        ``(H, W, 3)`` of uint8, BGR.
    """
    sample = BaseDataElement(gt_sem_seg=PixelData(data=label_map[None]))
    coloured = _draw(
        'mmseg', image, sample, dict(classes=names, palette=palette), with_labels=False
    )
    coloured = np.where((label_map < len(names))[..., None], coloured, image)
    if not labels:
        return coloured
    visualizer, _ = _visualizer('mmseg')
    visualizer.set_image(coloured[..., ::-1])
    write_names(visualizer, label_map, names)
    return np.ascontiguousarray(visualizer.get_image()[..., ::-1])


def write_names(visualizer: Visualizer, label_map: np.ndarray, names: Sequence[str]) -> None:
    """Writes the name of each class of a label map into the largest area of the class.

    Args:
        visualizer: has the image.
        label_map: ``(H, W)`` class indices.
        names: of all classes; others are not written.
    """
    places = [each for each in _places(label_map) if each[0] < len(names)]
    if not places:
        return
    visualizer.draw_texts(
        [names[label] for label, _ in places],
        np.array([centre for _, centre in places]),
        font_sizes=float(np.clip(min(label_map.shape) / 60, 8, 12)),  # points
        colors='w',
        vertical_alignments='center',
        horizontal_alignments='center',
        bboxes=dict(facecolor='black', alpha=0.6, pad=0.7, edgecolor='none'),
    )


def _places(label_map: np.ndarray) -> list[tuple[int, tuple[float, float]]]:
    """For each class with a large enough area, its label and the point furthest inside."""
    scale = min(1.0, LABEL_MAP_SIDE / max(label_map.shape))
    small = cv2.resize(
        label_map.astype(np.uint8), None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST
    )
    places = []
    for label in np.unique(small).tolist():
        mask = (small == label).astype(np.uint8)
        _, areas, stats, _ = cv2.connectedComponentsWithStats(mask)
        stats[0] = 0  # of all other classes
        largest = int(stats[:, cv2.CC_STAT_AREA].argmax())
        if stats[largest, cv2.CC_STAT_AREA] >= NAMED_SHARE * small.size:
            # The border of the image is one of the area too.
            inside = np.pad((areas == largest).astype(np.uint8), 1)
            depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
            row, column = np.unravel_index(depth.argmax(), depth.shape)
            places.append((label, (column / scale, row / scale)))
    return places


@_plain_text
def draw_classes(
    image: np.ndarray, labels: Sequence[int], scores: Sequence[float], names: Sequence[str]
) -> np.ndarray:
    """Classes of an image and their scores in its upper left corner, by mmpretrain.

    Args:
        image: ``(H, W, 3)`` of uint8, BGR.
        labels: class indices in the order in which they are written.
        scores: of these.
        names: of classes; others are called by their number.

    Returns:
        ``(H, W, 3)`` of uint8, BGR.
    """
    from mmpretrain.structures import DataSample

    all_scores = torch.zeros(max(labels) + 1)
    all_scores[list(labels)] = torch.tensor(scores)
    sample = DataSample().set_pred_label(list(labels)).set_pred_score(all_scores)
    visualizer, _ = _visualizer('mmpretrain')
    classes = [class_name(names, label) for label in range(len(all_scores))]
    return visualizer.visualize_cls(image[..., ::-1], sample, classes)[..., ::-1].copy()


def class_name(names: Sequence[str], label: int) -> str:
    """Of a class; its number where there are too few names."""
    return names[label] if label < len(names) else f'class {label}'


class _LastImage(BaseVisBackend):
    """Keeps what a visualizer has drawn, which its ``get_image`` would render once more."""

    experiment = None

    def __init__(self) -> None:
        super().__init__(save_dir='')

    def _init_env(self) -> None:
        """Has none."""

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        self.image = image


@cache
def _visualizer(family: str) -> tuple[Visualizer, _LastImage]:
    install_fonts()
    module = importlib.import_module(f'{family}.visualization')
    last = _LastImage()
    if family == 'mmdet':
        return module.DetLocalVisualizer(vis_backends=[last], alpha=1.0, line_width=1.5), last
    if family == 'mmseg':
        return module.SegLocalVisualizer(vis_backends=[last], alpha=ALPHA), last
    return module.UniversalVisualizer(), last


def _draw(
    family: str, image: np.ndarray, sample: BaseDataElement, meta: dict[str, Any], **options: Any
) -> np.ndarray:
    """A sample with ground truth on an image, BGR, with lines and texts that fit its size.

    Texts of mmdet have at most 13 points, however large an image is.
    """
    visualizer, last = _visualizer(family)
    visualizer.dataset_meta = meta
    visualizer.dpi = float(np.clip(min(image.shape[:2]) / 6, 100, 250))
    visualizer.fig_save.set_dpi(visualizer.dpi)
    with warnings.catch_warnings():
        # Of boxes that touch the border of the image, and of texts there.
        warnings.filterwarnings('ignore', '.*out of bounds', UserWarning)
        visualizer.add_datasample('', image[..., ::-1], sample, draw_pred=False, **options)
    return np.ascontiguousarray(last.image[..., ::-1])


# --- Files in COCO's form ---------------------------------------------------------------------


def draw_coco(
    image: np.ndarray, objects: Sequence[dict], truth: COCO, palette: Sequence[Colour]
) -> np.ndarray:
    """Annotations or detections in COCO's form on an :func:`enlarged` copy of an image.

    Args:
        image: ``(H, W, 3)`` of uint8, BGR.
        objects: of this image, with ``bbox``, ``segmentation`` or both.
        truth: the annotations' file, which has the classes and the size of the image.
        palette: colour of each class.

    Returns:
        ``(H', W', 3)`` of uint8, BGR.
    """
    larger = enlarged(image)
    indices = {class_id: i for i, class_id in enumerate(truth.cats)}
    encoded = [truth.annToRLE(each) if each.get('segmentation') else None for each in objects]
    boxes = [
        each['bbox'] if 'bbox' in each else mask_api.toBbox(mask)
        for each, mask in zip(objects, encoded, strict=True)
    ]
    boxes = torch.tensor(np.array(boxes, np.float32).reshape(-1, 4))
    boxes[:, 2:] += boxes[:, :2]
    instances = InstanceData(
        bboxes=boxes * (larger.shape[0] / image.shape[0]),
        labels=torch.tensor([indices[each['category_id']] for each in objects], dtype=torch.long),
        label_names=[
            truth.cats[each['category_id']]['name'] + (' (crowd)' if each.get('iscrowd') else '')
            for each in objects
        ],
    )
    if objects and None not in encoded:
        instances.masks = np.stack([enlarged(mask_api.decode(mask)) for mask in encoded])
    if objects and 'score' in objects[0]:
        instances.scores = torch.tensor([each['score'] for each in objects])
    return draw_instances(larger, instances, (), palette)


# --- Figures ----------------------------------------------------------------------------------


def draw_detections(
    ann_file: str | Path,
    image_folder: str | Path,
    detections_file: str | Path,
    score_threshold: float = 0.5,
) -> Figure:
    """Draws the first images with their ground truth, and beside it what was detected.

    Args:
        ann_file: ground truth in COCO's form.
        image_folder: folder of its images.
        detections_file: detections in COCO's form of results, with masks or without.
        score_threshold: least score of a detection that is drawn.

    Returns:
        The figure; the caller saves and closes it.

    Raises:
        FileNotFoundError: an image is not there.
    """
    with redirect_stdout(None):  # pycocotools tells how long it took
        truth = COCO(str(ann_file))
    palette = palette_of(len(truth.cats))
    found = json.loads(Path(detections_file).read_text())
    found = [each for each in found if each['score'] >= score_threshold]

    def pair(info: dict) -> list[np.ndarray]:
        image = _read(Path(image_folder) / info['file_name'], cv2.IMREAD_COLOR)
        detected = [each for each in found if each['image_id'] == info['id']]
        sides = truth.loadAnns(truth.getAnnIds(info['id'])), detected
        return [draw_coco(image, side, truth, palette) for side in sides]

    return _tiled(truth.loadImgs(truth.getImgIds()[:SHOWN]), pair)


def draw_segmentations(
    image_folder: str | Path,
    truth_folder: str | Path,
    predicted_folder: str | Path,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> Figure:
    """Draws the first images under their true, and beside that under their predicted label maps.

    Args:
        image_folder: folder of images.
        truth_folder: folder of label maps, ``.png`` files with one class index for each pixel.
        predicted_folder: folder of predicted label maps in the same form.
        classes: names of all classes.
        palette: RGB, 0 to 255, of each class.

    Returns:
        The figure; the caller saves and closes it.

    Raises:
        FileNotFoundError: an image or a label map is not there.
    """
    images = {path.stem: path for path in Path(image_folder).iterdir()}
    colours = palette_of(len(classes), palette)

    def pair(predicted: Path) -> list[np.ndarray]:
        path = images.get(predicted.stem, Path(image_folder) / predicted.stem)
        image = enlarged(_read(path, cv2.IMREAD_COLOR))
        files = Path(truth_folder) / predicted.name, predicted
        maps = (enlarged(_read(file, cv2.IMREAD_GRAYSCALE)) for file in files)
        return [draw_label_map(image, each, classes, colours) for each in maps]

    return _tiled(sorted(Path(predicted_folder).glob('*.png'))[:SHOWN], pair)


def _read(path: Path, mode: int) -> np.ndarray:
    if problem := why_unreadable(str(path)):
        raise FileNotFoundError(f'The image {path} {problem}')
    return cv2.imread(str(path), mode)


def _tiled(sources: Sequence[Any], pair: Callable[[Any], list[np.ndarray]]) -> Figure:
    """A figure with three pairs of images in a row; ``pair`` gives those of a source, BGR."""
    rows = -(-len(sources) // 3)
    figure, panels = plt.subplots(
        rows, 6, figsize=(12.6, 2.25 * rows), squeeze=False, layout='constrained'
    )
    for axes in panels.flat:
        axes.axis('off')
    images = (image for source in sources for image in pair(source))
    for number, (axes, image) in enumerate(zip(panels.flat, images, strict=False)):
        axes.imshow(image[..., ::-1])
        axes.set_title(('ground truth', 'predicted')[number % 2], fontsize=8, pad=2)
    return figure
