"""Shapes that labelling tools know and COCO does not, as polygons or run-length codes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from pycocotools import mask as mask_api

from ..checks import check_size
from ..checks.coco import MAX_COORDINATE
from .content import Object
from .gathering import NoAreaError

Points = Sequence[tuple[float, float]]

# Pixels between an arc and the straight line that stands for it.
TOLERANCE = 0.25
MIN_CORNERS, MAX_CORNERS = 12, 720  # of a polygon that stands for an ellipse


def turned(points: Points, degrees: float, pivot: tuple[float, float]) -> tuple[float, ...]:
    """A polygon x1, y1, x2, y2, ... of points that are turned clockwise around a pivot."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    px, py = pivot
    flat = []
    for x, y in points:
        flat += [px + (x - px) * cos - (y - py) * sin, py + (x - px) * sin + (y - py) * cos]
    return tuple(flat)


def corners(x1: float, y1: float, x2: float, y2: float) -> Points:
    """The four corners between two opposite ones."""
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def turned_box(
    label: str, box: Sequence[float], degrees: float, pivot: tuple[float, float]
) -> Object:
    """A box x1, y1, x2, y2 that is turned clockwise; a polygon unless its sides stay upright."""
    polygon = turned(corners(*box), degrees, pivot)
    return (
        Object.of_polygons(label, [polygon])
        if degrees % 90
        else Object.of_corners(label, (*polygon[:2], *polygon[4:6]))
    )


def ellipse(
    centre: tuple[float, float], radii: tuple[float, float], degrees: float = 0.0
) -> tuple[float, ...]:
    """A polygon within an ellipse, nowhere further than :data:`TOLERANCE` pixels from it.

    Args:
        centre: x and y in pixels.
        radii: along x and y before it is turned.
        degrees: that it is turned clockwise.

    Raises:
        NoAreaError: a radius is 0.
        ValueError: a radius is below 0; as part of a sentence.
    """
    (cx, cy), (rx, ry) = centre, radii
    if min(radii) < 0:
        raise ValueError(f'expected radii of at least 0, got {rx:g} and {ry:g}')
    if not all(radii):
        raise NoAreaError('an ellipse of radius 0')
    step = math.acos(max(1 - TOLERANCE / max(radii), 0))
    count = min(max(math.ceil(math.pi / step) if step else MAX_CORNERS, MIN_CORNERS), MAX_CORNERS)
    count += -count % 4  # with corners at the utmost points
    angles = [2 * math.pi * i / count for i in range(count)]
    return turned(
        [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles], degrees, centre
    )


def of_bitmap(
    label: str, bitmap: np.ndarray, left: int, top: int, size: tuple[float, float]
) -> Object:
    """An object whose mask is a bitmap within an image.

    Args:
        label: name of its class.
        bitmap: ``(H, W)``, true or above 0 where the object is.
        left, top: where the bitmap lies in the image, in pixels; what leaves it is cut off.
        size: width and height of the image, see :func:`canvas`.

    Raises:
        NoAreaError: no pixel is left.
        ValueError: the size is none; as part of a sentence.
    """
    width, height = canvas(*size)
    inside = bitmap[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
    if not inside.any():
        raise NoAreaError('a mask without a pixel in the image')
    mask = np.zeros((height, width), np.uint8, order='F')
    top, left = max(top, 0), max(left, 0)
    mask[top : top + inside.shape[0], left : left + inside.shape[1]] = inside > 0
    return _of_rle(label, mask_api.encode(mask))


def canvas(width: float, height: float) -> tuple[int, int]:
    """A size in pixels that masks can be drawn at.

    Raises:
        ValueError: it is none, or far too large; as part of a sentence.
    """
    if min(width, height) < 1 or width != int(width) or height != int(height):
        raise ValueError(f'expected whole pixels of an image, got {width:g}x{height:g}')
    try:
        check_size(width, height)
    except ValueError as error:
        raise ValueError(f'the image {str(error).rstrip(".")}') from error
    return int(width), int(height)


def joined(parts: Sequence[Object], size: tuple[float, float] | None) -> Object:
    """One object of several parts with the same label.

    Of boxes it is the box around them, of polygons the polygons, with the corners of boxes; where
    one is a bitmap, all are drawn.

    Args:
        parts: one at least.
        size: width and height of the image; needed for bitmaps.

    Raises:
        ValueError: no mask can be drawn at this size; as part of a sentence.
    """
    label = parts[0].label
    if len(parts) == 1:
        return parts[0]
    if any(part.rle for part in parts):
        width, height = canvas(*(size or (0, 0)))
        codes = [code for part in parts for code in _drawn(part, width, height)]
        return _of_rle(label, mask_api.merge(codes))
    whole = Object.of_polygons(label, [one for part in parts for one in _polygons(part)])
    if any(part.polygons for part in parts):
        return whole
    return Object(label, whole.box)


def _polygons(part: Object) -> Iterable[tuple[float, ...]]:
    x, y, width, height = part.box
    return part.polygons or [turned(corners(x, y, x + width, y + height), 0, (x, y))]


def _drawn(part: Object, width: int, height: int) -> list[dict]:
    if part.rle:
        return [{**part.rle, 'counts': part.rle['counts'].encode()}]
    within = [np.clip(one, -MAX_COORDINATE, MAX_COORDINATE).tolist() for one in _polygons(part)]
    return mask_api.frPyObjects(within, height, width)


def _of_rle(label: str, code: dict) -> Object:
    size, counts = list(code['size']), code['counts'].decode()
    box = tuple(map(float, mask_api.toBbox(code)))
    return Object(label, box, rle=dict(size=size, counts=counts))
