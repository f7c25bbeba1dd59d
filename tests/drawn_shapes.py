"""The drawn shapes, for tests that write them in the formats of labelling tools."""

import json
import random
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools import mask as mask_api

from mmfocal.datasets import prepare_shapes
from mmfocal.datasets.checks import Report
from mmfocal.datasets.formats.content import Folder
from mmfocal.utils.errors import UserError

# Images of both splits have the same names.
NUM_IMAGES = dict(train=3, val=2)


class Shape(NamedTuple):
    label: str
    box: tuple
    polygons: tuple


class Picture(NamedTuple):
    split: str
    path: Path
    width: int
    height: int
    shapes: list

    def copy(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.path, folder)


def shape_of(label, polygons):
    """A shape with the box around its polygons, as readers give it."""
    x, y = np.concatenate(polygons).reshape(-1, 2).T.tolist()
    box = min(x), min(y), max(x) - min(x), max(y) - min(y)
    return Shape(label, rounded(box), tuple(map(tuple, polygons)))


def draw(root):
    """Pictures with their shapes, without the crowds."""
    root = prepare_shapes(root / 'shapes', num_images=NUM_IMAGES)
    pictures = []
    for split in NUM_IMAGES:
        content = json.loads((root / f'annotations/instances_{split}.json').read_text())
        names = {each['id']: each['name'] for each in content['categories']}
        for image in content['images']:
            shapes = [
                shape_of(names[each['category_id']], each['segmentation'])
                for each in content['annotations']
                if each['image_id'] == image['id'] and not each['iscrowd']
            ]
            path = root / split / image['file_name']
            pictures.append(Picture(split, path, image['width'], image['height'], shapes))
    return pictures


def known(pictures, whole=None):
    """What a reader should find, as :func:`found` gives it."""
    result = {}
    for each in pictures:
        shapes = [(shape.label, shape.box, shape.polygons) for shape in each.shapes]
        result.setdefault(whole or each.split, {})[each.path.name] = (
            (each.width, each.height),
            shapes,
        )
    return result


def rounded(values):
    return tuple(round(value, 3) for value in values)


def found(annotated):
    """Sizes and objects by split and name of the image."""
    return {
        split: {
            sample.image.name: (
                sample.size,
                [
                    (each.label, rounded(each.box), tuple(map(rounded, each.polygons)))
                    for each in sample.objects
                ],
            )
            for sample in samples
        }
        for split, samples in annotated.splits.items()
    }


def read(reader, root):
    """A data set, and the notes about it as one text."""
    report = Report()
    annotated = reader.read(Folder(root), report)
    return annotated, '\n'.join(report.lines('note'))


def refusal(reader, root):
    """Why a data set is refused."""
    try:
        reader.read(Folder(root), Report())
    except UserError as error:
        return str(error)
    return 'It is read.'


def single(reader, root):
    """The only object of the only image, and the notes."""
    annotated, notes = read(reader, root)
    ((sample,),) = annotated.splits.values()
    (each,) = sample.objects
    return each, notes


def bitmap(each):
    """The mask of an object with a run-length code, ``(H, W)`` booleans."""
    code = {**each.rle, 'counts': each.rle['counts'].encode()}
    return mask_api.decode(code).astype(bool)


def blob(height=128, width=128):
    """A bitmap without symmetry."""
    mask = np.zeros((height, width), bool)
    mask[10:30, 20:60] = True
    mask[25:70, 20:33] = True
    mask[15:20, 40:44] = False
    return mask


def damaged(content, seed):
    """Bytes that are cut off, flipped, left out or doubled at a place that follows from a seed."""
    rng = random.Random(seed)
    data, place = bytearray(content), rng.randrange(len(content))
    match seed % 4:
        case 0:
            return bytes(data[:place])
        case 1:
            for _ in range(3):
                data[rng.randrange(len(data))] = rng.randrange(256)
            return bytes(data)
        case 2:
            return bytes(data[:place] + data[place + rng.randrange(1, 9) :])
        case _:
            return bytes(data[:place] + data[place : place + 9] + data[place:])


def count_refused(reader, root, path, tries):
    """How often a data set with a damaged file is refused; anything else than that is raised."""
    content, count = path.read_bytes(), 0
    for seed in range(tries):
        path.write_bytes(damaged(content, seed))
        count += refusal(reader, root) != 'It is read.'
    path.write_bytes(content)
    return count
