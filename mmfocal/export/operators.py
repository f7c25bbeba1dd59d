"""Operators of detectors that ONNX has and PyTorch lacks, each as one node of a graph.

In PyTorch they are mmcv's; :func:`translations` says what they are in ONNX. A program of
:mod:`torch.export` that contains them needs ``import mmfocal.export`` where it is run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Bound of counts that follow from data, for the exporter, which calculates with bounds.
MOST_PLACES = 2**31


@torch.library.custom_op('mmfocal::nms', mutates_args=())
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
    """Non-maximum suppression, image by image.

    Args:
        boxes: float32 ``(B, n, 4)``, left, top, right, bottom.
        scores: float32 ``(B, n)``; boxes with a score of 0 are left out.
        iou_threshold: a box is suppressed by a better one with a larger intersection over union.
        most: boxes of an image that are kept at most.

    Returns:
        int64 ``(N, 2)``, image and number of each box that is kept, by image and descending score.
    """
    from mmcv.ops import nms as mmcv_nms

    kept = []
    for image in range(len(boxes)):
        numbers = scores[image].gt(0).nonzero().squeeze(1)
        if len(numbers):
            _, best = mmcv_nms(boxes[image, numbers], scores[image, numbers], iou_threshold)
            numbers = numbers[best[:most]]
        kept.append(torch.stack([torch.full_like(numbers, image), numbers], dim=1))
    return torch.cat(kept)


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
    count = torch.library.get_ctx().new_dynamic_size(max=MOST_PLACES)
    return boxes.new_empty((count, 2), dtype=torch.int64)


@torch.library.custom_op('mmfocal::roi_align', mutates_args=())
def roi_align(
    features: Tensor,
    boxes: Tensor,
    images: Tensor,
    height: int,
    width: int,
    scale: float,
    samples: int,
) -> Tensor:
    """Mean of samples of a map in the cells of a grid in each box; edges are not rounded.

    Args:
        features: float32 ``(B, C, H, W)``.
        boxes: float32 ``(n, 4)``, left, top, right, bottom in pixels of the image.
        images: int64 ``(n,)``, whose map belongs to each box.
        height: rows of the grid.
        width: columns of the grid.
        scale: of the map, 1 over its stride.
        samples: along a side of a cell, 0 for as many as it has places of the map.

    Returns:
        float32 ``(n, C, height, width)``.
    """
    from mmcv.ops import roi_align as mmcv_roi_align

    rois = torch.cat([images[:, None].to(boxes), boxes], dim=1)
    return mmcv_roi_align(features, rois, (height, width), scale, samples, 'avg', True)


@roi_align.register_fake
def _(features: Tensor, boxes: Tensor, images: Tensor, height: int, width: int, *_: Any) -> Tensor:
    return features.new_empty((boxes.shape[0], features.shape[1], height, width))


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What the operators are in ONNX, for ``custom_translation_table`` of torch.onnx.export."""
    from onnxscript import opset18 as op

    def onnx_nms(boxes, scores, iou_threshold, most):
        chosen = op.NonMaxSuppression(
            boxes,
            op.Unsqueeze(scores, op.Constant(value_ints=[1])),
            op.Constant(value_ints=[most]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[0.0]),
        )
        # Image, class and box: there is one class.
        return op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)

    def onnx_roi_align(features, boxes, images, height, width, scale, samples):
        return op.RoiAlign(
            features,
            boxes,
            images,
            coordinate_transformation_mode='half_pixel',
            mode='avg',
            output_height=height,
            output_width=width,
            sampling_ratio=samples,
            spatial_scale=scale,
        )

    return {
        torch.ops.mmfocal.nms.default: onnx_nms,
        torch.ops.mmfocal.roi_align.default: onnx_roi_align,
    }
