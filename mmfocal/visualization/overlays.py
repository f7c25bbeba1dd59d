"""Predictions drawn on pictures, fast enough for videos: OpenCV for areas, Pillow for text."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]  # RGB, 0 to 255

MASK_OPACITY, AREA_OPACITY = 0.45, 0.6
MIN_TEXT, MAX_TEXT = 10, 40  # pixels
LABELLED_SHARE = 0.004  # of a picture, that an area of one class needs to be named
LABEL_MAP_SIDE = 512  # pixels, at which places for names are looked for


def palette_of(classes: int, given: Sequence | None = None) -> list[Colour]:
    """One colour for each class: what a data set gives, or hues far apart.

    Args:
        classes: how many.
        given: RGB of each class; left aside unless there is one for each.
    """
    if isinstance(given, (list, tuple)) and len(given) >= classes:
        return [tuple(int(value) for value in colour) for colour in given[:classes]]
    colours = []
    for number in range(classes):
        hue = number * 0.618034 % 1  # the golden ratio puts each between the others
        rgb = colorsys.hsv_to_rgb(hue, 0.65 + 0.35 * (number % 2), 1 - 0.25 * (number // 2 % 2))
        colours.append(tuple(round(255 * value) for value in rgb))
    return colours


def draw_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    colours: Sequence[Colour],
    texts: Sequence[str] | None = None,
    masks: np.ndarray | None = None,
) -> np.ndarray:
    """Boxes, masks and texts on a copy of a picture; what comes later covers what came before.

    Args:
        image: ``(H, W, 3)`` of uint8, BGR.
        boxes: ``(N, 4)``, left, top, right and bottom in pixels.
        colours: N.
        texts: N, beside the boxes; None for none.
        masks: ``(N, H, W)`` of bool.

    Returns:
        Likewise ``(H, W, 3)`` of uint8, BGR.
    """
    drawn = image.copy()
    thickness = _thickness(image)
    # Areas first: a mask shall not cover the outline of another.
    for mask, colour in zip(masks if masks is not None else (), colours, strict=False):
        _blend(drawn, mask, colour, MASK_OPACITY)
    for mask, colour in zip(masks if masks is not None else (), colours, strict=False):
        outlines, _ = cv2.findContours(
            mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
        )
        cv2.drawContours(drawn, outlines, -1, _light(colour)[::-1], thickness, cv2.LINE_AA)
    for box, colour in zip(boxes, colours, strict=True):
        left, top, right, bottom = (round(float(value)) for value in box)
        cv2.rectangle(drawn, (left, top), (right, bottom), colour[::-1], thickness)
    if texts is None or not len(boxes):
        return drawn
    # Of what is most certain, drawn last, the text finds its place first.
    with _Texts(drawn) as written:
        for box, colour, text in reversed(list(zip(boxes, colours, texts, strict=True))):
            written.beside(box, text, colour)
    return written.image


def draw_label_map(
    image: np.ndarray,
    labels: np.ndarray,
    palette: Sequence[Colour],
    classes: Sequence[str] | None = None,
) -> np.ndarray:
    """Classes as half transparent colours on a copy of a picture.

    Args:
        image: ``(H, W, 3)`` of uint8, BGR.
        labels: ``(H, W)`` of uint8, class indices; what has no colour is left as it is.
        palette: colour of each class.
        classes: names, each written into the largest area of its class; None for no names.

    Returns:
        Likewise ``(H, W, 3)`` of uint8, BGR.
    """
    table = np.zeros((256, 3), np.float32)
    table[: len(palette)] = np.array(palette, np.float32)[:, ::-1]
    opacity = np.zeros((256, 1), np.float32)
    opacity[: len(palette)] = AREA_OPACITY
    share = opacity[labels]
    drawn = (image * (1 - share) + table[labels] * share).astype(np.uint8)
    if classes is None:
        return drawn
    with _Texts(drawn) as written:
        for label, centre in _places(labels):
            if label < min(len(classes), len(palette)):
                written.around(centre, classes[label], palette[label])
    return written.image


def draw_title(image: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Lines of text in the upper left corner of a copy of a picture, uint8 and BGR."""
    with _Texts(image.copy()) as written:
        bottom = 0
        for line in lines:
            bottom = written.at(0, bottom, line, (0, 0, 0))
    return written.image


def _thickness(image: np.ndarray) -> int:
    return max(1, round(min(image.shape[:2]) / 250))


def _light(colour: Colour) -> Colour:
    return tuple((value + 255) // 2 for value in colour)


def _blend(image: np.ndarray, mask: np.ndarray, colour: Colour, opacity: float) -> None:
    """Colours the part under a mask, within the rectangle that holds it."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    part = image[top : top + height, left : left + width]
    inside = mask[top : top + height, left : left + width]
    under = part[inside].astype(np.float32)
    part[inside] = (1 - opacity) * under + opacity * np.array(colour[::-1], np.float32)


def _places(labels: np.ndarray) -> list[tuple[int, tuple[float, float]]]:
    """For each class with a large enough area, its label and the point furthest inside."""
    scale = min(1.0, LABEL_MAP_SIDE / max(labels.shape))
    small = cv2.resize(labels, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    places = []
    for label in np.unique(small).tolist():
        count, areas, stats, _ = cv2.connectedComponentsWithStats(
            (small == label).astype(np.uint8)
        )
        if count < 2:
            continue
        largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
        if stats[largest, cv2.CC_STAT_AREA] < LABELLED_SHARE * small.size:
            continue
        # The border of the picture is one of the area too.
        inside = np.pad((areas == largest).astype(np.uint8), 1)
        depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        places.append((label, (column / scale, row / scale)))
    return places


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Matplotlib brings it along; it has Latin, Greek and Cyrillic letters.
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / 'fonts/ttf/DejaVuSans.ttf'), size
    )


class _Texts:
    """Texts on a picture, each on a ground of its colour and, if there is room, beside others."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image

    def __enter__(self) -> _Texts:
        height, width = self.image.shape[:2]
        self.size = int(min(max(min(height, width) / 36, MIN_TEXT), MAX_TEXT))
        self.picture = Image.fromarray(np.ascontiguousarray(self.image[..., ::-1]))
        self.draw = ImageDraw.Draw(self.picture)
        self.taken: list[tuple[float, float, float, float]] = []
        return self

    def __exit__(self, *error: object) -> None:
        self.image = np.ascontiguousarray(np.asarray(self.picture)[..., ::-1])

    def beside(self, box: np.ndarray, text: str, colour: Colour) -> None:
        """Above a box, or inside or below it, wherever there is no text yet."""
        left, top, right, bottom = (float(value) for value in box)
        width, height = self._extent(text)
        places = [
            (left, top - height),
            (left, top),
            (left, bottom),
            (right - width, top - height),
            (right - width, bottom - height),
        ]
        places = [self._within(x, y, width, height) for x, y in places]
        free = (place for place in places if not self._covers(*place, width, height))
        self.at(*next(free, places[0]), text, colour)

    def around(self, centre: tuple[float, float], text: str, colour: Colour) -> None:
        """Centred on a point as far as the picture has room."""
        width, height = self._extent(text)
        x, y = centre
        self.at(*self._within(x - width / 2, y - height / 2, width, height), text, colour)

    def at(self, x: float, y: float, text: str, colour: Colour) -> float:
        """With this upper left corner, in pixels; returns the lower edge."""
        width, height = self._extent(text)
        self.taken.append((x, y, x + width, y + height))
        self.draw.rectangle(self.taken[-1], fill=colour)
        red, green, blue = colour
        is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 140
        self.draw.text(
            (x + self.size / 5, y + height / 2),
            text,
            fill='black' if is_light else 'white',
            font=_font(self.size),
            anchor='lm',
        )
        return y + height

    def _extent(self, text: str) -> tuple[float, float]:
        return _font(self.size).getlength(text) + 0.4 * self.size, 1.25 * self.size

    def _within(self, x: float, y: float, width: float, height: float) -> tuple[float, float]:
        limit_x, limit_y = self.picture.width - width, self.picture.height - height
        return max(0, min(x, limit_x)), max(0, min(y, limit_y))

    def _covers(self, x: float, y: float, width: float, height: float) -> bool:
        return any(
            x < right and left < x + width and y < bottom and top < y + height
            for left, top, right, bottom in self.taken
        )
