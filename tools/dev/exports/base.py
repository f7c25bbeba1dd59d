"""What all exports are made from, and the table of forms."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

Write = Callable[[Path, Path], None]
KINDS = ('boxes', 'polygons', 'maps')
FORMS: dict[str, dict[str, tuple[str, Write]]] = {kind: {} for kind in KINDS}
ROBOFLOW_SPLITS = {'train': 'train', 'val': 'valid', 'test': 'test'}
NO_CLASS = 255


def form(name: str, tool: str, *kinds: str) -> Callable[[Write], Write]:
    """Enter a writer ``(truth, out)`` in :data:`FORMS`, once for each kind of data."""

    def enter(write: Write) -> Write:
        for kind in kinds:
            FORMS[kind][name] = (tool, write)
        return write

    return enter


def read_voc(xml: Path) -> tuple[dict, list[tuple[str, list[float]]]]:
    """Image entry and (class, COCO box) of a VOC file, whose pixels count from 1, both ends in."""
    root = ET.parse(xml).getroot()
    image = {
        'file_name': root.findtext('filename'),
        'width': int(root.findtext('size/width')),
        'height': int(root.findtext('size/height')),
    }
    objects = []
    for entry in root.iter('object'):
        x1, y1, x2, y2 = (
            float(entry.findtext(f'bndbox/{key}')) for key in ('xmin', 'ymin', 'xmax', 'ymax')
        )
        box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
        objects.append((entry.findtext('name'), box))
    return image, objects


def rectangle(box: list[float]) -> list[float]:
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def truth_of_voc(folder: Path, truth: Path) -> None:
    """COCO JSON and copied images of the splits in ``ImageSets/Main``."""
    read = {xml.stem: read_voc(xml) for xml in sorted(folder.glob('Annotations/*.xml'))}
    names = sorted({name for _, objects in read.values() for name, _ in objects})
    for split in ('train', 'val', 'test'):
        listed = (folder / f'ImageSets/Main/{split}.txt').read_text().split()
        coco = new_coco(names)
        for stem in listed:
            image, objects = read[stem]
            copy(folder / 'JPEGImages' / image['file_name'], truth / 'images' / split)
            image = {'id': len(coco['images']) + 1} | image
            coco['images'].append(image)
            for name, box in objects:
                add_box(coco, image['id'], 1 + names.index(name), box)
        write_json(truth / f'annotations/instances_{split}.json', coco)


def new_coco(names: list[str]) -> dict:
    categories = [{'id': i, 'name': name} for i, name in enumerate(names, 1)]
    return {'images': [], 'annotations': [], 'categories': categories}


def add_box(coco: dict, image_id: int, category_id: int, box: list[float]) -> None:
    coco['annotations'].append(
        {
            'id': len(coco['annotations']) + 1,
            'image_id': image_id,
            'category_id': category_id,
            'bbox': box,
            'area': box[2] * box[3],
            'iscrowd': 0,
            'segmentation': [],
        }
    )


def truth_of_coco(folder: Path, truth: Path) -> None:
    """The same JSON, with images copied to where datumaro expects them."""
    for ann in sorted(folder.glob('annotations/instances_*.json')):
        source = ann.stem.removeprefix('instances_')
        split = source.rstrip('0123456789')
        coco = json.loads(ann.read_text())
        for image in coco['images']:
            copy(folder / source / image['file_name'], truth / 'images' / split)
        write_json(truth / f'annotations/instances_{split}.json', coco)


def truth_of_maps(folder: Path, truth: Path, images: int | None, names: list[str]) -> None:
    """The first images of each split and their label maps."""
    for split in sorted(path.name for path in (folder / 'ann_dir').iterdir()):
        for path in sorted((folder / 'ann_dir' / split).iterdir())[:images]:
            copy(path, truth / 'labels' / split)
            image = next((folder / 'img_dir' / split).glob(path.stem + '.*'))
            copy(image, truth / 'images' / split)
    (truth / 'classes.txt').write_text('\n'.join(names) + '\n')


def copy(path: Path, folder: Path, name: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / (name or path.name))


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def splits(truth: Path) -> list[str]:
    return [path.name for path in sorted((truth / 'images').iterdir())]


def read_coco(truth: Path, split: str) -> dict:
    return json.loads((truth / f'annotations/instances_{split}.json').read_text())


def by_image(coco: dict) -> Iterator[tuple[dict, list[dict]]]:
    """Each image with its annotations, which get the name of their class."""
    names = {category['id']: category['name'] for category in coco['categories']}
    found: dict[int, list[dict]] = {image['id']: [] for image in coco['images']}
    for ann in coco['annotations']:
        found[ann['image_id']].append(ann | {'name': names[ann['category_id']]})
    for image in coco['images']:
        yield image, found[image['id']]


def copy_all(source: Path, folder: Path) -> None:
    for path in sorted(source.iterdir()):
        copy(path, folder)


def read_map(truth: Path, split: str, stem: str) -> np.ndarray:
    return np.array(Image.open(truth / 'labels' / split / f'{stem}.png'))


def decode(rle: dict) -> np.ndarray:
    from pycocotools import mask as coco_mask

    if isinstance(rle['counts'], list):
        rle = coco_mask.frPyObjects(rle, *rle['size'])
    return coco_mask.decode(rle)


def datumaro_set(truth: Path):
    import datumaro

    if (truth / 'labels').exists():
        return datumaro_maps(truth)
    return datumaro.Dataset.import_from(str(truth), 'coco_instances')


def datumaro_maps(truth: Path):
    """Label maps as one mask for each class; class 0 of datumaro is the background."""
    import datumaro
    from datumaro.components.annotation import (
        AnnotationType,
        LabelCategories,
        Mask,
        MaskCategories,
    )
    from datumaro.components.media import Image as Media

    names = ['background', *(truth / 'classes.txt').read_text().split()]
    items = []
    for split in splits(truth):
        for path in sorted((truth / 'images' / split).iterdir()):
            labels = read_map(truth, split, path.stem)
            masks = [
                Mask(labels == i, label=1 + int(i)) for i in np.unique(labels) if i != NO_CLASS
            ]
            media = Media.from_file(path=str(path))
            item = datumaro.DatasetItem(path.stem, subset=split, media=media, annotations=masks)
            items.append(item)
    categories = {
        AnnotationType.label: LabelCategories.from_iterable(names),
        AnnotationType.mask: MaskCategories.generate(len(names)),  # VOC's colours
    }
    return datumaro.Dataset.from_iterable(items, categories=categories)
