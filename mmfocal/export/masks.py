"""Masks of pixels from those of an exported detector. Needs only NumPy, so it can be copied."""

from __future__ import annotations

import numpy as np


def paste_masks(
    masks: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float = 0.5
) -> np.ndarray:
    """Masks of an image from probabilities on a grid over each box, as mmdet pastes them.

    Args:
        masks: float ``(N, h, w)``, output ``masks`` of one image.
        boxes: float ``(N, 4)``, output ``boxes`` of it: left, top, right, bottom in pixels. For
            masks in the image before it was resized, boxes in pixels of that.
        height: of the image in pixels.
        width: of the image in pixels.
        threshold: least probability of a pixel that belongs to the object.

    Returns:
        bool ``(N, height, width)``.
    """
    pasted = np.zeros((len(masks), height, width), bool)
    for mask, (left, top, right, bottom), out in zip(masks, boxes, pasted, strict=True):
        rows, y = _sampling(mask.shape[0], top, bottom, height)
        cols, x = _sampling(mask.shape[1], left, right, width)
        out[rows, cols] = y @ mask @ x.T >= threshold
    return pasted


def _sampling(cells: int, first: float, last: float, side: int) -> tuple[slice, np.ndarray]:
    """Pixels about ``first`` to ``last``, and the matrix that interpolates cells linearly there.

    Beyond the outermost cells there are zeros.
    """
    pixels = slice(max(int(np.floor(first)) - 1, 0), min(int(np.ceil(last)) + 1, side))
    centres = np.arange(pixels.start, max(pixels.stop, pixels.start)) + 0.5
    place = (centres - first) / max(last - first, 1e-6) * cells - 0.5
    return pixels, np.clip(1 - np.abs(place[:, None] - np.arange(cells)), 0, None)
