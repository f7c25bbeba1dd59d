"""The embedded data set ``shapes``: drawn from a seed, in COCO form and as label maps.

Images of 128 x 128 pixels show two to six shapes of six classes over clutter. The classes differ
in form only: colour (lighter than the ground), texture, size (about 6 to 88 pixels), rotation and
stretch are random, shapes hide one another, and some images hold a crowd, a cluster of small
shapes that is annotated as one region. With it training, evaluation and every tool can be tried
and tested within minutes and without a download.

Layout of the folder that :func:`prepare_shapes` makes::

    train/000000.jpg ...                  images
    val/000000.jpg ...
    labels/train/000000.png ...           one class index per pixel; 0 is the background
    labels/val/000000.png ...
    annotations/instances_train.json      COCO: boxes, polygons, crowds as RLE
    annotations/instances_val.json
    manifest.json                         the settings that it was drawn with; written last

This module needs only numpy, OpenCV and pycocotools: mmdet and mmseg reach it through their own
data set classes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

# Raised whenever the same settings would draw other images, so that no stale cache is used.
VERSION = 1

CLASSES = ('circle', 'square', 'triangle', 'star', 'cross', 'ring')
# Okabe and Ito's colours, which stay apart for colour-blind readers. RGB.
PALETTE = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (213, 94, 0),
    (204, 121, 167),
    (86, 180, 233),
)

IMAGE_SIZE = 128  # pixels, both sides
SPLITS = ('train', 'val')
NUM_IMAGES = {'train': 2400, 'val': 200}
MANIFEST = 'manifest.json'

# Outlines are rasterised on a grid this much finer, which gives anti-aliased images and
# polygons that are exact to a fraction of a pixel.
_OVERSAMPLING = 4
# Fractional bits of the vertex coordinates handed to OpenCV.
_SHIFT = 4

_MIN_VISIBLE = 0.55  # part of a shape that has to stay in sight
_MIN_CONTRAST = 70.0  # distance in RGB between a shape and what lies around it
_STALE_SECONDS = 3600.0  # after this, a temporary folder belongs to a run that was killed


@dataclass(frozen=True)
class Instance:
    """One annotated shape, or one crowd of shapes.

    Attributes:
        label: index into :data:`CLASSES`.
        mask: visible part, ``(S, S)`` bool on the fine grid, with ``S`` four times
            ``IMAGE_SIZE``.
        crowd: whether it is a cluster of small shapes that is annotated as one region.
    """

    label: int
    mask: np.ndarray
    crowd: bool = False


@dataclass(frozen=True)
class Scene:
    """A drawn image and what is in it.

    Attributes:
        image: ``(IMAGE_SIZE, IMAGE_SIZE, 3)`` uint8, RGB.
        instances: In drawing order, the rearmost first.
    """

    image: np.ndarray
    instances: tuple[Instance, ...]

    def label_map(self) -> np.ndarray:
        """Return the class of each pixel's centre, ``(IMAGE_SIZE, IMAGE_SIZE)`` uint8.

        0 is the background, ``1 + label`` a shape. Crowds are labelled like single shapes.
        """
        fine = np.zeros((IMAGE_SIZE * _OVERSAMPLING,) * 2, np.uint8)
        for instance in self.instances:
            fine[instance.mask] = 1 + instance.label
        centre = _OVERSAMPLING // 2
        return np.ascontiguousarray(fine[centre::_OVERSAMPLING, centre::_OVERSAMPLING])


def _regular(corners: int, phase: float = 0.0, radius: float = 1.0) -> np.ndarray:
    angles = phase + np.arange(corners) * (2 * math.pi / corners)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _outline(label: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Rings ``(n, 2)`` of a shape around the origin, radius about 1.

    They are filled by the even-odd rule, so that a second ring inside the first is a hole.
    """
    match CLASSES[label]:
        case 'circle':
            return [_regular(48)]
        case 'square':
            return [_regular(4)]
        case 'triangle':
            return [_regular(3)]
        case 'star':
            rays = np.empty((10, 2))
            rays[0::2] = _regular(5)
            rays[1::2] = _regular(5, phase=math.pi / 5, radius=rng.uniform(0.36, 0.46))
            return [rays]
        case 'cross':
            w = rng.uniform(0.26, 0.36)  # half the width of a bar
            quarter = np.array([[1, -w], [1, w], [w, w]])
            turn = np.array([[0.0, -1.0], [1.0, 0.0]])
            turns = [np.linalg.matrix_power(turn, i) for i in range(4)]
            return [np.concatenate([quarter @ turn.T for turn in turns])]
        case 'ring':
            return [_regular(48), _regular(48, radius=rng.uniform(0.45, 0.6))]


def _placed(
    rings: list[np.ndarray], centre: np.ndarray, size: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Stretch and rotate an outline, and move it to ``centre (x, y)``, all in pixels."""
    stretch = math.exp(rng.uniform(-0.16, 0.16))
    along, turn = rng.uniform(0, 2 * math.pi, size=2)

    def rotation(angle: float) -> np.ndarray:
        cos, sin = math.cos(angle), math.sin(angle)
        return np.array([[cos, -sin], [sin, cos]])

    matrix = rotation(along) @ np.diag([stretch, 1 / stretch]) @ rotation(turn)
    return [centre + ring @ matrix.T * (size / 2) for ring in rings]


def _fixed_point(points: np.ndarray) -> np.ndarray:
    return np.round(points * (1 << _SHIFT)).astype(np.int32)


def _rasterised(rings: list[np.ndarray]) -> np.ndarray:
    """Fill rings given in pixels; return the mask on the fine grid, uint8 of 0 and 1."""
    side = IMAGE_SIZE * _OVERSAMPLING
    mask = np.zeros((side, side), np.uint8)
    # OpenCV puts integer coordinates on pixel centres; ours are on pixel corners.
    scaled = [_fixed_point(ring * _OVERSAMPLING - 0.5) for ring in rings]
    cv2.fillPoly(mask, scaled, 1, lineType=cv2.LINE_8, shift=_SHIFT)
    return mask


def _coverage(mask: np.ndarray) -> np.ndarray:
    """Return how much of each pixel a fine mask covers, float32 with one channel."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    coarse = cv2.resize(mask * np.uint8(255), size, interpolation=cv2.INTER_AREA)
    return coarse[..., None].astype(np.float32) / 255


_Y, _X = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32)


def _ramp(rng: np.random.Generator) -> np.ndarray:
    """Return a linear ramp in a random direction, ``(IMAGE_SIZE, IMAGE_SIZE, 1)``, about -1..1."""
    angle = rng.uniform(0, 2 * math.pi)
    ramp = (_X * math.cos(angle) + _Y * math.sin(angle)) / (IMAGE_SIZE / 2)
    return (ramp - ramp.mean())[..., None].astype(np.float32)


def _waves(rng: np.random.Generator, period: float) -> np.ndarray:
    """Return stripes of random direction, ``(IMAGE_SIZE, IMAGE_SIZE, 1)`` of -1 and 1."""
    angle, phase = rng.uniform(0, 2 * math.pi, size=2)
    distance = _X * math.cos(angle) + _Y * math.sin(angle)
    wave = np.sin(distance * (2 * math.pi / period) + phase)
    return np.clip(wave * 3, -1, 1)[..., None].astype(np.float32)


def _noise(rng: np.random.Generator, cell: int) -> np.ndarray:
    """Return noise with grains of about ``cell`` pixels, ``(IMAGE_SIZE, IMAGE_SIZE, 1)``."""
    cells = -(-IMAGE_SIZE // cell) + 1
    grains = rng.standard_normal((cells, cells), dtype=np.float32)
    grown = cv2.resize(grains, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_LINEAR)
    return grown[..., None]


def _texture(rng: np.random.Generator, size: float) -> np.ndarray | float:
    """Return what to add to a shape's colour, in grey levels."""
    kind = rng.integers(5)
    strength = rng.uniform(5, 18)
    if kind == 0:
        return 0.0
    if kind == 1:
        return strength * _ramp(rng) * (IMAGE_SIZE / max(size, 16.0)) * 0.5
    if kind == 2:
        return strength * _waves(rng, period=rng.uniform(4, 10))
    if kind == 3:
        return strength * _waves(rng, rng.uniform(5, 10)) * _waves(rng, rng.uniform(5, 10))
    return strength * _noise(rng, cell=int(rng.integers(2, 5)))


def _background(rng: np.random.Generator) -> np.ndarray:
    """Return a cluttered ground without shapes, ``(IMAGE_SIZE, IMAGE_SIZE, 3)`` float32, RGB."""
    image = np.tile(rng.uniform(15, 105, size=3).astype(np.float32), (IMAGE_SIZE, IMAGE_SIZE, 1))
    image += _ramp(rng) * rng.uniform(-25, 25, size=3).astype(np.float32)
    image += _noise(rng, cell=int(rng.integers(12, 40))) * rng.uniform(-18, 18, size=3)
    if rng.random() < 0.35:
        image += rng.uniform(2, 8) * _waves(rng, period=rng.uniform(6, 30))
    image = np.ascontiguousarray(image, dtype=np.float32)
    for _ in range(rng.integers(2, 8)):
        _stroke(image, rng)
    return image


def _stroke(image: np.ndarray, rng: np.random.Generator) -> None:
    """Draw a line, an arc or a scribble on ``image``: an outline that encloses nothing."""
    colour = tuple(float(c) for c in rng.uniform(0, 255, size=3))
    width = int(rng.integers(1, 4))
    start = rng.uniform(-10, IMAGE_SIZE + 10, size=2)
    kind = rng.integers(3)
    if kind == 0:
        points = np.stack([start, rng.uniform(-10, IMAGE_SIZE + 10, size=2)])
    elif kind == 1:
        first = rng.uniform(0, 2 * math.pi)
        angles = first + np.linspace(0, rng.uniform(0.8, 3.4), 20)
        points = start + rng.uniform(8, 50) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    else:
        points = start + np.cumsum(rng.normal(0, 12, size=(rng.integers(3, 7), 2)), axis=0)
    fixed = _fixed_point(points)
    cv2.polylines(image, [fixed], False, colour, width, lineType=cv2.LINE_AA, shift=_SHIFT)


def _contrasting(around: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random light colour, ``(3,)``, that keeps its distance from ``around``."""
    while True:
        colour = rng.uniform(70, 255, size=3)
        if colour.mean() >= 140 and np.linalg.norm(colour - around) >= _MIN_CONTRAST:
            return colour.astype(np.float32)


def _paint(image: np.ndarray, mask: np.ndarray, size: float, rng: np.random.Generator) -> None:
    """Blend a shape of random paint into ``image`` where the fine ``mask`` is set."""
    alpha = _coverage(mask)
    around = cv2.dilate(alpha, np.ones((7, 7), np.uint8)) > 0
    colour = _contrasting(image[around].mean(axis=0), rng)
    paint = np.clip(colour + _texture(rng, size), 0, 255)
    image += alpha * (paint - image)
    if size >= 14 and rng.random() < 0.3:
        inner = cv2.erode(mask, np.ones((2 * _OVERSAMPLING + 1,) * 2, np.uint8))
        edge = alpha - _coverage(inner)
        image += edge * (0.5 * colour - image)


def _size(rng: np.random.Generator) -> float:
    """Return a diameter in pixels: mostly 20 to 88, evenly in the logarithm, and a few tiny."""
    if rng.random() < 0.04:
        return rng.uniform(6, 12)
    return math.exp(rng.uniform(math.log(20), math.log(88)))


def _crowd(rng: np.random.Generator) -> tuple[int, list[list[np.ndarray]], float]:
    """Return the class of a crowd, the rings of its members and their diameter in pixels."""
    label = int(rng.integers(len(CLASSES)))
    size = rng.uniform(7, 10)
    spread = rng.uniform(9, 14)
    centre = rng.uniform(0.2 * IMAGE_SIZE, 0.8 * IMAGE_SIZE, size=2)
    members = [
        _placed(_outline(label, rng), centre + rng.normal(0, spread, size=2), size, rng)
        for _ in range(rng.integers(10, 20))
    ]
    return label, members, size


def draw_scene(seed: int, split: str, index: int) -> Scene:
    """Draw one image. Equal arguments give equal scenes, whatever was drawn before.

    Args:
        seed: of the data set, at least 0.
        split: ``'train'`` or ``'val'``; the two never share an image.
        index: of the image within its split, at least 0.
    """
    if split not in SPLITS:
        raise ValueError(f'split must be one of {SPLITS}, got {split!r}')
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    image = _background(rng)
    side = IMAGE_SIZE * _OVERSAMPLING
    owner = np.full((side, side), -1, np.int16)  # instance seen at each fine pixel
    labels: list[int] = []
    full_areas: list[float] = []  # fine pixels, hidden and cut-off parts included

    if rng.random() < 0.06:
        label, members, size = _crowd(rng)
        for member in members:
            mask = _rasterised(member)
            if mask.any():
                _paint(image, mask, size, rng)
                owner[mask > 0] = 0
        if (owner == 0).any():
            labels.append(label)
            full_areas.append(float((owner == 0).sum()))

    crowds = len(labels)
    wanted = crowds + int(rng.integers(2, 7))
    for _ in range(4 * wanted):  # a crowded image may not have room for all
        if len(labels) == wanted:
            break
        label, size = int(rng.integers(len(CLASSES))), _size(rng)
        centre = rng.uniform(0.08 * IMAGE_SIZE, 0.92 * IMAGE_SIZE, size=2)
        rings = _placed(_outline(label, rng), centre, size, rng)
        mask = _rasterised(rings)
        candidate = np.where(mask > 0, np.int16(len(labels)), owner)
        areas = [*full_areas, _enclosed(rings) * _OVERSAMPLING**2]
        seen = np.bincount(candidate[candidate >= 0], minlength=len(areas))
        if (seen < _MIN_VISIBLE * np.array(areas)).any():
            continue
        _paint(image, mask, size, rng)
        owner = candidate
        labels.append(label)
        full_areas = areas

    if rng.random() < 0.4:  # scratches on the lens: they cross shapes but hide next to nothing
        _stroke(image, rng)
    image += rng.normal(0, rng.uniform(1, 8), size=image.shape)
    instances = tuple(
        Instance(label, owner == i, crowd=i < crowds) for i, label in enumerate(labels)
    )
    return Scene(np.clip(np.round(image), 0, 255).astype(np.uint8), instances)


def _enclosed(rings: list[np.ndarray]) -> float:
    """Return the area between nested rings, in their unit squared (shoelace formula)."""
    outer, *holes = (
        abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        for x, y in (ring.T for ring in rings)
    )
    return float(outer - sum(holes))


def _polygons(mask: np.ndarray) -> list[list[float]]:
    """Outline a mask on the fine grid as COCO polygons, one of pixels for each connected part.

    COCO's polygons have no holes, so a hole is joined to the outline around it by a cut of no
    width.
    """
    top, left, cut = _cropped(mask)
    # Contours run through the centres of boundary pixels; smaller pixels keep them close to the
    # true edge.
    zoom = 2
    zoomed = cut.repeat(zoom, axis=0).repeat(zoom, axis=1)
    contours, hierarchy = cv2.findContours(zoomed, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [cv2.approxPolyDP(contour, 1.0, True)[:, 0].astype(float) for contour in contours]
    polygons = []
    for i, ring in enumerate(rings):
        _, _, hole, parent = hierarchy[0][i]
        if parent >= 0 or len(ring) < 3:
            continue
        while hole >= 0:
            ring = _joined(ring, rings[hole])
            hole = hierarchy[0][hole][0]
        pixels = ((ring + 0.5) / zoom + (left, top)) / _OVERSAMPLING
        polygons.append([round(float(value), 3) for value in pixels.ravel()])
    return polygons


def _joined(outer: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """One ring of an outline and its hole, joined where they are closest."""
    distances = ((outer[:, None] - hole[None]) ** 2).sum(axis=-1)
    i, j = np.unravel_index(distances.argmin(), distances.shape)
    return np.concatenate([outer[: i + 1], hole[j:], hole[: j + 1], outer[i:]])


def _cropped(mask: np.ndarray) -> tuple[int, int, np.ndarray]:
    """First row and column of a mask, and the mask cropped to what is set, uint8."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return top, left, mask[top : top + height, left : left + width].astype(np.uint8)


def _annotation(instance: Instance) -> dict:
    """COCO annotation of an instance, without ids."""
    top, left, cut = _cropped(instance.mask)
    height, width = cut.shape
    if instance.crowd:
        coarse = _coverage(instance.mask.astype(np.uint8))[..., 0] >= 0.5
        run_lengths = coco_mask.encode(np.asfortranarray(coarse.astype(np.uint8)))
        segmentation = {**run_lengths, 'counts': run_lengths['counts'].decode('ascii')}
    else:
        segmentation = _polygons(instance.mask)
    return {
        'category_id': instance.label + 1,
        'bbox': [value / _OVERSAMPLING for value in (left, top, width, height)],
        'area': float(cut.sum()) / _OVERSAMPLING**2,
        'iscrowd': int(instance.crowd),
        'segmentation': segmentation,
    }


def shapes_root() -> str:
    """Folder of the data set for this user and version.

    ``$MMFOCAL_CACHE``, else ``$XDG_CACHE_HOME/mmfocal``, else ``~/.cache/mmfocal``.
    """
    cache = os.environ.get('MMFOCAL_CACHE')
    if not cache:
        home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
        cache = os.path.join(home, 'mmfocal')
    return os.path.join(os.path.abspath(cache), f'shapes-v{VERSION}')


def prepare_shapes(
    root: str | Path | None = None,
    seed: int = 0,
    num_images: dict[str, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw the data set unless it is there already.

    Everything is written into a temporary folder next to ``root``, which is renamed at the end: a
    killed run leaves nothing half made, and of several that draw at once the first wins.

    Args:
        root: Folder of the data set, :func:`shapes_root` by default.
        seed: Seed of all images.
        num_images: Images of each split, ``dict(train=2400, val=200)`` by default.
        progress: Called with the number of images drawn and the number of all.

    Returns:
        The folder.

    Raises:
        FileExistsError: ``root`` is there, but was not drawn with these settings.
        OSError: The folder cannot be written.
    """
    root = Path(shapes_root() if root is None else root)
    num_images = dict(NUM_IMAGES if num_images is None else num_images)
    manifest = {'version': VERSION, 'seed': seed, 'num_images': num_images}
    if _is_drawn(root, manifest):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(root)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', dir=root.parent))
    try:
        done, total = 0, sum(num_images.values())
        for split, count in num_images.items():
            for _ in _write_split(temporary, split, count, seed):
                done += 1
                if progress is not None:
                    progress(done, total)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        temporary.chmod(0o755)  # mkdtemp makes it private
        try:
            temporary.rename(root)
        except OSError:
            # Another process was faster, or something else took the name meanwhile.
            if not _is_drawn(root, manifest):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def _is_drawn(root: Path, manifest: dict) -> bool:
    if not root.exists():
        return False
    path = root / MANIFEST
    found = json.loads(path.read_text()) if path.is_file() else None
    if found != manifest:
        raise FileExistsError(
            f'{root} is there, but it does not hold the shapes data set with {manifest}: its '
            f'{MANIFEST} says {found}. Remove the folder, or choose another one.'
        )
    return True


def _remove_stale(root: Path) -> None:
    for folder in root.parent.glob(f'.{root.name}-*'):
        if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _write_split(folder: Path, split: str, count: int, seed: int) -> Iterator[int]:
    """Write the images and annotations of a split; yields after each image."""
    for sub in (split, f'labels/{split}', 'annotations'):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        scene = draw_scene(seed, split, index)
        name = f'{index:06d}'
        quality, compression = (cv2.IMWRITE_JPEG_QUALITY, 92), (cv2.IMWRITE_PNG_COMPRESSION, 6)
        _write(folder / split / f'{name}.jpg', scene.image[..., ::-1], quality)
        _write(folder / 'labels' / split / f'{name}.png', scene.label_map(), compression)
        size = dict(width=IMAGE_SIZE, height=IMAGE_SIZE)
        images.append({'id': index + 1, 'file_name': f'{name}.jpg', **size})
        for instance in scene.instances:
            ids = dict(id=len(annotations) + 1, image_id=index + 1)
            annotations.append({**ids, **_annotation(instance)})
        yield index
    coco = {
        'info': {'description': 'mmfocal shapes', 'version': str(VERSION), 'seed': seed},
        'images': images,
        'annotations': annotations,
        'categories': [{'id': i, 'name': name} for i, name in enumerate(CLASSES, start=1)],
    }
    (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(coco))


def _write(path: Path, image: np.ndarray, options: tuple[int, int]) -> None:
    if not cv2.imwrite(str(path), image, options):
        raise OSError(f'{path} could not be written; is the disk full?')
