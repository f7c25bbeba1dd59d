"""What predictions of a family are: what is kept of them, drawn, and written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from pycocotools import mask as rle
from torch.nn import functional

from mmfocal.utils.errors import UserError
from mmfocal.visualization.predictions import (
    Colour,
    class_name,
    draw_classes,
    draw_instances,
    draw_label_map,
    palette_of,
)

from .inputs import LoadedImage
from .layout import Layout
from .writers import CocoFile, LabelMaps, Records

MAX_LISTED_CLASSES = 5  # most probable ones, of a classifier


class Task(ABC):
    """What the families differ in.

    Args:
        classes: names by class index.
        palette: colours by class index, if the data set has any.
        score_thr: least score of what is kept; 0 to 1.
    """

    noun: ClassVar[str]  # of what is counted
    tag: ClassVar[str]  # of the task on Hugging Face's hub

    def __init__(self, classes: tuple[str, ...], palette: Any, score_thr: float) -> None:
        self.classes = classes
        self.palette: list[Colour] = palette_of(len(classes), palette)
        self.score_thr = score_thr

    @abstractmethod
    def kept(self, sample: BaseDataElement) -> BaseDataElement:
        """What is kept of a prediction, on the CPU.

        Raises:
            UserError: the model predicts something else.
        """

    @abstractmethod
    def drawn(self, image: np.ndarray, sample: BaseDataElement, labels: bool) -> np.ndarray:
        """The image, uint8 and BGR, with what is kept, and names if ``labels``."""

    def annotations(self, image: LoadedImage, sample: BaseDataElement) -> list[dict[str, Any]]:
        """In COCO's form but for ids; boxes as left, top, width and height in pixels."""
        raise NotImplementedError

    def records(self, layout: Layout, info: dict[str, Any]) -> Records:
        """What writes predictions into a folder: by default, :meth:`annotations` into a file."""
        return CocoFile(layout.predictions, info, self.name, len(self.classes), self.annotations)

    def name(self, label: int) -> str:
        """Of a class; its number where the checkpoint has too few names."""
        return class_name(self.classes, label)


class Detection(Task):
    """Boxes, and masks if the model has any, of mmdet."""

    noun = 'objects'
    tag = 'object-detection'

    def kept(self, sample: BaseDataElement) -> BaseDataElement:
        if 'pred_instances' not in sample:
            raise UserError(f'Expected a model that predicts instances, {_predicted(sample)}')
        instances = sample.pred_instances
        instances = instances[instances.scores >= self.score_thr]
        if 'masks' in instances:
            instances.masks = _filled_up(instances.masks, sample.ori_shape)
        sample.pred_instances = instances
        return sample.cpu()

    def drawn(self, image: np.ndarray, sample: BaseDataElement, labels: bool) -> np.ndarray:
        instances = sample.pred_instances.clone()
        instances.bboxes = torch.from_numpy(_boxes(instances))
        return draw_instances(image, instances, self.classes, self.palette, labels)

    def annotations(self, image: LoadedImage, sample: BaseDataElement) -> list[dict[str, Any]]:
        instances = sample.pred_instances
        annotations = []
        boxes = _boxes(instances)
        for i, (label, score) in enumerate(
            zip(instances.labels.tolist(), instances.scores.tolist(), strict=True)
        ):
            left, top, right, bottom = boxes[i].tolist()
            bbox = [round(value, 2) for value in (left, top, right - left, bottom - top)]
            annotation = dict(
                category_id=label + 1,
                bbox=bbox,
                score=round(score, 5),
                area=round((right - left) * (bottom - top), 2),
                iscrowd=0,
            )
            if 'masks' in instances:
                encoded = _encoded(instances.masks[i].numpy())
                annotation['area'] = int(rle.area(encoded))
                annotation['segmentation'] = dict(encoded, counts=encoded['counts'].decode())
            annotations.append(annotation)
        return annotations


class Segmentation(Task):
    """Label maps of mmseg."""

    noun = 'label maps'
    tag = 'image-segmentation'

    def __init__(self, classes: tuple[str, ...], palette: Any, score_thr: float) -> None:
        super().__init__(classes, palette, score_thr)
        if len(classes) > LabelMaps.UNLABELLED:
            raise UserError(
                f'The model has {len(classes)} classes; label maps of one byte a pixel hold up to '
                f'{LabelMaps.UNLABELLED}.'
            )

    def kept(self, sample: BaseDataElement) -> BaseDataElement:
        if 'pred_sem_seg' not in sample:
            raise UserError(f'Expected a model that predicts label maps, {_predicted(sample)}')
        # One number for each class and pixel: gigabytes for a photo and 150 classes.
        if 'seg_logits' in sample:
            del sample.seg_logits
        return sample.cpu()

    def drawn(self, image: np.ndarray, sample: BaseDataElement, labels: bool) -> np.ndarray:
        return draw_label_map(image, self.label_map(sample), self.classes, self.palette, labels)

    def records(self, layout: Layout, info: dict[str, Any]) -> LabelMaps:
        return LabelMaps(layout, info, self.classes, self.palette, self.label_map)

    @staticmethod
    def label_map(sample: BaseDataElement) -> np.ndarray:
        """``(H, W)`` of uint8."""
        return sample.pred_sem_seg.data[0].numpy().astype(np.uint8)


class Classification(Task):
    """The most probable classes, of mmpretrain; the least score is not asked for."""

    noun = 'classes'
    tag = 'image-classification'

    def kept(self, sample: BaseDataElement) -> BaseDataElement:
        if 'pred_score' not in sample:
            raise UserError(f'Expected a model that predicts scores, {_predicted(sample)}')
        return sample.cpu()

    def drawn(self, image: np.ndarray, sample: BaseDataElement, labels: bool) -> np.ndarray:
        if not labels:
            return image
        return draw_classes(image, *zip(*self.most_probable(sample), strict=True), self.classes)

    def annotations(self, image: LoadedImage, sample: BaseDataElement) -> list[dict[str, Any]]:
        """Without boxes, the most probable class first."""
        return [
            dict(category_id=label + 1, score=round(score, 5))
            for label, score in self.most_probable(sample)
        ]

    @staticmethod
    def most_probable(sample: BaseDataElement) -> list[tuple[int, float]]:
        """Labels and scores."""
        scores, labels = sample.pred_score.sort(descending=True)
        pairs = zip(labels.tolist(), scores.tolist(), strict=True)
        return list(pairs)[:MAX_LISTED_CLASSES]


TASKS: dict[str, type[Task]] = dict(mmdet=Detection, mmseg=Segmentation, mmpretrain=Classification)


def _predicted(sample: BaseDataElement) -> str:
    return f'got one that predicts {", ".join(sorted(sample.keys())) or "nothing"}.'


def _filled_up(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Masks ``(N, H, W)`` of the size of the image, in pixels.

    RTMDet-Ins of mmdet 3.3.0 confuses the scales of both sides, which rounding makes different,
    and may lack the last rows or columns.
    """
    height, width = (full - side for full, side in zip(size, masks.shape[1:], strict=True))
    return functional.pad(masks, (0, width, 0, height)) if height or width else masks


def _encoded(mask: np.ndarray) -> dict[str, Any]:
    return rle.encode(np.asfortranarray(mask.astype(np.uint8)))


def _boxes(instances: BaseDataElement) -> np.ndarray:
    """``(N, 4)``, left, top, right and bottom; of models without boxes those of the masks."""
    boxes = instances.bboxes if 'bboxes' in instances else None
    if boxes is not None and not ('masks' in instances and not boxes.any()):
        return boxes.numpy()
    around = [rle.toBbox(_encoded(mask)) for mask in instances.masks.numpy()]
    boxes = np.array(around, np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes
