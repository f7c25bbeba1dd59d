"""InstaBoost: objects of an image, moved a little over their inpainted background."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image, ImageEnhance
from pycocotools import mask as coco_mask
from scipy import ndimage

# Pixels from the border of an image within which an object counts as cut off by it.
CUT_OFF = 10
# Pixels around a patch in which the spline through its values is not zero yet.
RINGING = 12


class Motion(NamedTuple):
    """Where a patch goes: turned and scaled around its centre, which then lies at ``x, y``."""

    flip: str | None
    scale: float
    x: float
    y: float
    angle: float  # radians


class InstaBoost(BaseTransform):
    """Moves, scales and turns objects a little, and changes colours, before annotations are read.

    Objects whose boxes overlap move together. What they leave is inpainted. Objects that the
    border of the image cuts off neither turn nor shrink nor come away from it. Crowds and objects
    without a mask stay as they are, and so does a label map of the image (``with_seg``), as in the
    original.

    It draws the same random numbers as the authors' package ``instaboostfast``, which mmdet's
    transform of this name calls, and makes the same images of them. From NumPy 1.24 on, the
    package fails at objects in several parts; it also needs scikit-image, and takes no compressed
    run lengths. Here masks become such run lengths: the package traces polygons around them, which
    fill holes and round corners. So ``LoadAnnotations`` has to keep ``poly2mask=True``.

    Required keys: ``img`` ``(H, W, 3)``, ``instances``. Changed keys: the same.

    Args:
        action_candidate: ``'normal'``, ``'horizontal'`` (mirrored and moved), ``'vertical'``,
            ``'skip'``.
        action_prob: the probability of each.
        scale: least and greatest factor.
        dx: objects move sideways by at most their width divided by this.
        dy: and up or down by their height divided by this.
        theta: least and greatest angle in whole degrees.
        color_prob: the probability that colours of a changed image are changed, too.
        hflag: for positions that resemble the old ones (a heat map), which are not supported.
        aug_ratio: the probability that an image is changed.

    Raises:
        ValueError: actions and probabilities do not fit each other, or ``hflag``.

    Source: arXiv 1908.07801; the package instaboostfast 0.1.2.
    """

    def __init__(
        self,
        action_candidate: Sequence[str] = ('normal', 'horizontal', 'skip'),
        action_prob: Sequence[float] = (1, 0, 0),
        scale: tuple[float, float] = (0.8, 1.2),
        dx: float = 15,
        dy: float = 15,
        theta: tuple[int, int] = (-1, 1),
        color_prob: float = 0.5,
        hflag: bool = False,
        aug_ratio: float = 0.5,
    ) -> None:
        unknown = set(action_candidate) - {'normal', 'horizontal', 'vertical', 'skip'}
        fits = len(action_candidate) == len(action_prob) and np.isclose(sum(action_prob), 1)
        if unknown or not fits:
            raise ValueError(
                'InstaBoost: expected action_candidate of normal, horizontal, vertical and skip, '
                f'with probabilities that add up to 1, got {action_candidate} and {action_prob}.'
            )
        if hflag:
            raise ValueError('InstaBoost: no positions by heat map here; expected hflag=False.')
        self.action_candidate, self.action_prob = tuple(action_candidate), tuple(action_prob)
        self.scale, self.dx, self.dy, self.theta = scale, dx, dy, theta
        self.color_prob, self.aug_ratio = color_prob, aug_ratio

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Changes the image of a sample and the boxes and masks of its objects."""
        instances = results.get('instances')
        if not instances or not _happens(self.aug_ratio):
            return results
        image = results['img'].astype(np.uint8)
        movable, masks, others = [], [], []
        for instance in instances:
            mask = None if instance['ignore_flag'] else decoded(instance.get('mask'), image.shape)
            if mask is None:
                others.append(instance)
            else:
                movable.append(instance)
                masks.append(mask)
        if movable:
            boosted, moved = self._boost(image, [each['bbox'] for each in movable], masks)
            if moved:  # else there would be nothing left to learn
                image = boosted
                instances = [dict(movable[index], **changes) for index, changes in moved] + others
        if _happens(self.color_prob):
            image = with_other_colours(image)
        return dict(results, img=image.astype(results['img'].dtype), instances=instances)

    def _boost(
        self, image: np.ndarray, boxes: list[list[float]], masks: list[np.ndarray]
    ) -> tuple[np.ndarray, list[tuple[int, dict[str, Any]]]]:
        """The new image, and the new box and mask of each object that is still in it."""
        height, width = image.shape[:2]
        # Of each pixel the object to which it belongs, the last one in front.
        owner = np.zeros((height, width), np.int32)
        for index, mask in enumerate(masks):
            owner[mask > 0] = index + 1
        canvas = cv2.inpaint(image, (owner > 0).astype(np.uint8), 5, cv2.INPAINT_NS)
        moved = []
        for group in groups_of_overlapping(boxes):
            corners = np.array([boxes[index] for index in group])
            limits = np.array([width, height, width, height])
            bounds = [*corners[:, :2].min(0), *corners[:, 2:].max(0)]
            left, top, right, bottom = np.clip([round(x) for x in bounds], 0, limits).tolist()
            motion = self._draw(left, top, right, bottom, width, height)
            place = np.s_[top:bottom, left:right]
            alpha = np.isin(owner[place], [index + 1 for index in group]).astype(np.uint8) * 255
            paste(canvas, np.dstack([image[place], alpha]), motion)
            for index in group:
                mask = np.zeros((height, width), np.uint8)
                for window, values in warped(masks[index][place], motion, mask.shape, order=0):
                    mask[window] = values
                if mask.any():
                    moved.append((index, encoded(mask)))
        return canvas, moved

    def _draw(
        self, left: int, top: int, right: int, bottom: int, width: int, height: int
    ) -> Motion:
        """A random motion of what lies in a rectangle of an image."""
        near_x = (left < CUT_OFF, right > width - CUT_OFF)
        near_y = (top < CUT_OFF, bottom > height - CUT_OFF)
        cut_off = any(near_x + near_y)
        actions = [
            (action, share)
            for action, share in zip(self.action_candidate, self.action_prob, strict=True)
            if not (cut_off and action in ('horizontal', 'vertical'))
        ]
        total = sum(share for _, share in actions)
        names, shares = zip(*actions, strict=True) if total else (['skip'], [1])
        action = np.random.choice(names, p=np.array(shares) / sum(shares))
        x, y = (left + right) / 2, (top + bottom) / 2
        if action == 'skip':
            return Motion(None, 1.0, x, y, 0.0)
        scale = random.uniform(*self.scale)
        shifts = []
        for extent, part, near in (
            (right - left, self.dx, near_x),
            (bottom - top, self.dy, near_y),
        ):
            most = int(extent // part)
            shift = random.randint(-most, most)
            shift = min(shift, 0) if near[0] else shift
            shifts.append(max(shift, 0) if near[1] else shift)
        angle = math.radians(random.randint(*self.theta))
        if cut_off:
            scale, angle = max(scale, 1.0), 0.0
        flip = None if action == 'normal' else str(action)
        return Motion(flip, scale, x + shifts[0], y + shifts[1], angle)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(aug_ratio={self.aug_ratio})'


def _happens(probability: float) -> bool:
    return bool(np.random.choice([0, 1], p=[1 - probability, probability]))


def decoded(segmentation: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """A mask ``(H, W)`` of zeros and ones, uint8; None if there is none that can be read.

    Args:
        segmentation: COCO's: polygons, or run lengths, compressed or not.
        shape: ``(H, W, ...)`` of the image.
    """
    height, width = shape[:2]
    if isinstance(segmentation, list):
        polygons = [each for each in segmentation if len(each) >= 6 and len(each) % 2 == 0]
        if not polygons:
            return None
        segmentation = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    elif not isinstance(segmentation, dict):
        return None
    else:
        counts, size = segmentation.get('counts'), segmentation.get('size', ())
        if not isinstance(counts, list | str | bytes) or [*size] != [height, width]:
            return None
        if isinstance(counts, list):
            segmentation = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(segmentation)


def encoded(mask: np.ndarray) -> dict[str, Any]:
    """Box ``[x1, y1, x2, y2]`` and mask of an object, as mmdet's ``instances`` have them.

    Args:
        mask: ``(H, W)`` of zeros and ones, uint8.
    """
    segmentation = coco_mask.encode(np.asfortranarray(mask))
    x, y, width, height = coco_mask.toBbox(segmentation).tolist()
    counts = segmentation['counts'].decode()
    return dict(bbox=[x, y, x + width, y + height], mask=dict(segmentation, counts=counts))


def groups_of_overlapping(boxes: Sequence[Sequence[float]]) -> list[list[int]]:
    """Indices of boxes ``(x1, y1, x2, y2)`` that overlap, directly or by way of others."""
    corners = np.array(boxes)
    touch = (corners[:, None, :2] < corners[None, :, 2:]).all(2)
    touch &= touch.T
    groups, seen = [], set()
    for first in range(len(boxes)):
        if first in seen:
            continue
        group = [first]
        seen.add(first)
        for index in group:  # grows
            found = [each for each in np.flatnonzero(touch[index]).tolist() if each not in seen]
            group += found
            seen.update(found)
        groups.append(group)
    return groups


def paste(canvas: np.ndarray, patch: np.ndarray, motion: Motion) -> None:
    """Draws a patch ``(h, w, 4)``, opacity last, after a motion onto an image, in place."""
    for window, values in warped(patch, motion, canvas.shape[:2], order=3):
        opacity = values[..., 3:] / 255
        mixed = canvas[window] * (1 - opacity) + values[..., :3] * opacity
        canvas[window] = mixed.astype(np.uint8)


def warped(
    patch: np.ndarray, motion: Motion, shape: tuple[int, int], order: int
) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """A patch after a motion: the part of the canvas that it falls on, and what it is there.

    Args:
        patch: ``(h, w)`` or ``(h, w, C)``, uint8.
        motion: of the patch.
        shape: ``(H, W)`` of the canvas.
        order: of the spline between pixels; 0 for the nearest one.

    Yields:
        Once, or not at all if it lies outside: rows and columns, and values of ``patch``'s kind.
    """
    if not patch.size:
        return
    if motion.flip:
        patch = patch[:, ::-1] if motion.flip == 'horizontal' else patch[::-1]
    size = np.array(patch.shape[:2])
    # From the canvas back to the patch, rows first.
    cos, sin = math.cos(motion.angle), math.sin(motion.angle)
    back = np.array([[cos, -sin], [sin, cos]]) / motion.scale
    offset = size / 2 - back @ (motion.y, motion.x)
    # The authors' package warps the whole canvas, with zeros where the patch does not reach.
    reach = np.minimum(size + RINGING, shape)
    corners = np.array([(0, 0), (reach[0], 0), (0, reach[1]), reach])
    found = (corners - offset) @ np.linalg.inv(back).T
    first = np.clip(np.floor(found.min(0)), 0, shape).astype(int)
    last = np.clip(np.ceil(found.max(0)) + 1, 0, shape).astype(int)
    if (first >= last).any():
        return
    margin = np.minimum(size + 2 * RINGING, shape) - size
    channels = patch.reshape(*size, -1)
    padded = np.pad(channels, ((0, margin[0]), (0, margin[1]), (0, 0)))
    values = [
        ndimage.affine_transform(
            padded[..., channel], back, back @ first + offset, tuple(last - first), order=order
        )
        for channel in range(channels.shape[2])
    ]
    window = (slice(first[0], last[0]), slice(first[1], last[1]))
    yield window, np.stack(values, 2).reshape(*(last - first), *patch.shape[2:])


def with_other_colours(image: np.ndarray) -> np.ndarray:
    """An image ``(H, W, 3)``, BGR and uint8, of other saturation, brightness, contrast, sharpness.

    Saturation and sharpness are multiplied by 0 to 3, brightness and contrast by 1 to 2.
    """
    changed = Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    for enhance, least, most in (
        (ImageEnhance.Color, 0, 30),
        (ImageEnhance.Brightness, 10, 20),
        (ImageEnhance.Contrast, 10, 20),
        (ImageEnhance.Sharpness, 0, 30),
    ):
        changed = enhance(changed).enhance(np.random.randint(least, most + 1) / 10)
    return cv2.cvtColor(np.asarray(changed), cv2.COLOR_RGB2BGR)
