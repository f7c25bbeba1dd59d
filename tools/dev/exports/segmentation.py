"""Label maps, written by the tools of each format."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .base import NO_CLASS, ROBOFLOW_SPLITS, copy_all, form, read_map, splits
from .detection import datumaro_form, labelme_shape, roboflow_images, roboflow_name, save_labelme

datumaro_form('coco_polygons_datumaro', 'coco_instances', 'maps', segmentation_mode='polygons')
datumaro_form('coco_rle_datumaro', 'coco_instances', 'maps', segmentation_mode='mask')
datumaro_form('coco_panoptic_datumaro', 'coco_panoptic', 'maps')
datumaro_form('coco_stuff_datumaro', 'coco_stuff', 'maps')
datumaro_form('voc_masks_datumaro', 'voc_segmentation', 'maps')
datumaro_form('voc_indices_datumaro', 'voc_segmentation', 'maps', apply_colormap=False)
datumaro_form('camvid_datumaro', 'camvid', 'maps')
datumaro_form('cvat_datumaro', 'cvat', 'maps')


@form('labelme_polygons', 'labelme', 'maps')
def labelme_maps(truth: Path, out: Path) -> None:
    """Outlines of each class's regions, the widest first: later shapes hide earlier ones."""
    names = (truth / 'classes.txt').read_text().split()
    for split in splits(truth):
        for path in sorted((truth / 'images' / split).iterdir()):
            labels = read_map(truth, split, path.stem)
            shapes = [labelme_shape(names[i], ring, 'polygon') for i, ring in outlines(labels)]
            save_labelme(path, out / split, shapes, labels.shape[::-1])


def outlines(labels: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(class, ring of at least three points) of each region, the largest area first."""
    found = []
    for index in np.unique(labels[labels != NO_CLASS]):
        mask = (labels == index).astype(np.uint8)
        rings, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        found += [(cv2.contourArea(ring), int(index), ring[:, 0]) for ring in rings]
    found.sort(key=lambda entry: -entry[0])
    return [(index, ring) for _, index, ring in found if len(ring) > 2]


@form('roboflow_masks', 'imitated: Roboflow', 'maps')
def roboflow_masks(truth: Path, out: Path) -> None:
    """Label maps beside the images, class 0 is the background, _classes.csv with the names."""
    names = ['background', *(truth / 'classes.txt').read_text().split()]
    for split in splits(truth):
        folder = out / ROBOFLOW_SPLITS[split]
        roboflow_images(truth, split, folder)
        for path in sorted((truth / 'images' / split).iterdir()):
            labels = read_map(truth, split, path.stem)
            shifted = np.where(labels == NO_CLASS, 0, labels + 1).astype(np.uint8)
            stem = roboflow_name(path.name).removesuffix('.jpg')
            Image.fromarray(shifted).save(folder / f'{stem}_mask.png')
        lines = ['Pixel Value, Class', *(f'{i}, {name}' for i, name in enumerate(names))]
        (folder / '_classes.csv').write_text('\n'.join(lines) + '\n')


# Plain label maps


@form('indices', 'pillow', 'maps')
def indices(truth: Path, out: Path) -> None:
    """The maps as they are, 255 ignored."""
    for split in splits(truth):
        copy_all(truth / 'images' / split, out / 'images' / split)
        copy_all(truth / 'labels' / split, out / 'labels' / split)
    shutil.copy(truth / 'classes.txt', out / 'classes.txt')


@form('palette', 'pillow', 'maps')
def palette(truth: Path, out: Path) -> None:
    """Indices with a palette, as Pascal VOC's own files have it: 0 background, 255 void."""
    for split in splits(truth):
        copy_all(truth / 'images' / split, out / 'images' / split)
        folder = out / 'annotations' / split
        folder.mkdir(parents=True)
        for path in sorted((truth / 'labels' / split).iterdir()):
            labels = read_map(truth, split, path.stem)
            image = Image.fromarray(
                np.where(labels == NO_CLASS, NO_CLASS, labels + 1).astype('u1')
            )
            image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
            image.save(folder / path.name)
    shutil.copy(truth / 'classes.txt', out / 'classes.txt')


@form('binary', 'pillow', 'maps')
def binary(truth: Path, out: Path) -> None:
    """0 and 255: the last class but two (car in CamVid) against everything else."""
    names = (truth / 'classes.txt').read_text().split()
    index = max(len(names) - 3, 0)
    for split in splits(truth):
        copy_all(truth / 'images' / split, out / 'images' / split)
        folder = out / 'masks' / split
        folder.mkdir(parents=True)
        for path in sorted((truth / 'labels' / split).iterdir()):
            mask = (read_map(truth, split, path.stem) == index) * np.uint8(255)
            Image.fromarray(mask).save(folder / path.name)
    (out / 'CLASS.txt').write_text(f'{names[index]}\n')
