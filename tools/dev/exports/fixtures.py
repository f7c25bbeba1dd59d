"""Small fixtures for the readers' tests, made of a few images of the embedded data set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .base import KINDS, NO_CLASS, decode, new_coco, write_json

# Not square, and odd to each other, so that swapped sides are seen.
SIZE = np.array([112, 80])  # width, height in pixels
# Left out: no format that mmfocal reads, or the same again at length.
LEFT_OUT = {
    'boxes/createml_supervision',
    'boxes/datumaro_json_datumaro',
    'boxes/labelme_xml_datumaro',
    'maps/coco_stuff_datumaro',
    'polygons/coco_supervision',
    'polygons/labelme_supervision',
    'polygons/voc_datumaro',
    'polygons/voc_supervision',
}
IMAGE_SUFFIXES = {'.jpg', '.jpeg'}


def draw_truth(shapes: Path, work: Path) -> None:
    """``work/KIND/truth`` of each kind, from a folder drawn by ``prepare_shapes``."""
    for split in ('train', 'val'):
        coco = json.loads((shapes / f'annotations/instances_{split}.json').read_text())
        for image in coco['images']:
            source = shapes / split / image['file_name']
            name = f'{split}_{source.stem[-1]}'
            picture = Image.open(source).resize(SIZE)
            labels = shapes / 'labels' / split / f'{source.stem}.png'
            for kind in KINDS:
                save(picture, work / kind / 'truth/images' / split / f'{name}.jpg')
            save(smaller_map(labels), work / 'maps/truth/labels' / split / f'{name}.png')
            image |= dict(zip(('width', 'height'), SIZE.tolist(), strict=True))
            image['file_name'] = f'{name}.jpg'
        for kind, make in {'boxes': with_boxes, 'polygons': with_polygons}.items():
            write_json(work / kind / f'truth/annotations/instances_{split}.json', make(coco))
    names = [category['name'] for category in coco['categories']]
    (work / 'maps/truth/classes.txt').write_text('\n'.join(names) + '\n')


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=80)


def smaller_map(path: Path) -> Image.Image:
    """Classes from 0; what was background is ignored."""
    labels = np.array(Image.open(path).resize(SIZE, Image.Resampling.NEAREST))
    return Image.fromarray(np.where(labels == 0, NO_CLASS, labels - 1).astype(np.uint8))


def copy_of(coco: dict) -> dict:
    return new_coco([category['name'] for category in coco['categories']]) | {
        'images': coco['images']
    }


def with_boxes(coco: dict) -> dict:
    """Boxes in whole pixels, which every format can hold; no crowds."""
    new = copy_of(coco)
    for ann in coco['annotations']:
        if not ann['iscrowd']:
            x1, y1, x2, y2 = np.round(corners(ann) * np.tile(SIZE / 128, 2)).tolist()
            box = {'bbox': [x1, y1, x2 - x1, y2 - y1], 'area': (x2 - x1) * (y2 - y1)}
            new['annotations'].append(ann | box | {'segmentation': []})
    return new


def corners(ann: dict) -> np.ndarray:
    x, y, w, h = ann['bbox']
    return np.array([x, y, x + w, y + h])


def with_polygons(coco: dict) -> dict:
    """Polygons with fewer vertices, at two decimals; crowds as RLE."""
    new = copy_of(coco)
    for ann in coco['annotations']:
        make = smaller_crowd if ann['iscrowd'] else smaller_polygons
        new['annotations'].append(ann | make(ann['segmentation']))
    return new


def smaller_polygons(parts: list[list[float]]) -> dict:
    rings = [np.array(part, np.float32).reshape(-1, 1, 2) for part in parts]
    rings = [cv2.approxPolyDP(ring, 2.5, True)[:, 0] * SIZE / 128 for ring in rings]
    rings = [ring.round(2) for ring in rings if len(ring) > 2]
    points = np.concatenate(rings)
    low, high = points.min(0), points.max(0)
    area = sum(cv2.contourArea(ring.astype(np.float32)) for ring in rings)
    box = [*low.tolist(), *(high - low).round(2).tolist()]
    return {'segmentation': [ring.ravel().tolist() for ring in rings], 'bbox': box, 'area': area}


def smaller_crowd(rle: dict) -> dict:
    """COCO's uncompressed RLE: runs down the columns, zeros first."""
    mask = cv2.resize(decode(rle), SIZE.tolist(), interpolation=cv2.INTER_NEAREST)
    flat = np.concatenate([[0], mask.T.ravel(), [2]])
    starts = np.flatnonzero(np.diff(flat))
    counts = np.diff([0, *starts]).tolist()
    ys, xs = np.nonzero(mask)
    box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
    whole = {'counts': counts, 'size': SIZE[::-1].tolist()}
    return {'segmentation': whole, 'bbox': [float(x) for x in box], 'area': float(mask.sum())}


def keep(work: Path, out: Path) -> None:
    """Everything but the images, which all forms share: images.json says which lies where."""
    placed: dict[str, dict[str, str]] = kept_places(out / 'images.json')
    for kind in KINDS:
        shutil.rmtree(out / kind, ignore_errors=True)
        for form in sorted(path for path in (work / kind).iterdir() if path.is_dir()):
            if f'{kind}/{form.name}' in LEFT_OUT:
                continue
            entry = placed[f'{kind}/{form.name}'] = {}
            for path in sorted(path for path in form.rglob('*') if path.is_file()):
                if path.suffix in IMAGE_SUFFIXES:
                    entry[str(path.relative_to(form))] = shared_name(path)
                else:
                    target = out / kind / path.relative_to(work / kind)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
        shutil.copyfile(work / kind / 'INDEX.md', out / kind / 'INDEX.md')
    shutil.rmtree(out / 'images', ignore_errors=True)
    for path in sorted((work / 'boxes/truth/images').glob('*/*')):
        (out / 'images').mkdir(exist_ok=True)
        shutil.copyfile(path, out / 'images' / path.name)
    (out / 'images.json').write_text(json.dumps(placed, indent=0) + '\n')


def shared_name(path: Path) -> str:
    """train_0_jpg.rf.0123.jpg and train_0.jpg are the same image."""
    return path.name.split('_jpg.rf.')[0].removesuffix('.jpg') + '.jpg'


def kept_places(file: Path) -> dict[str, dict[str, str]]:
    """What label_studio_server entered, for its forms stay."""
    old = json.loads(file.read_text()) if file.exists() else {}
    return {form: places for form, places in old.items() if form.startswith('server/')}
