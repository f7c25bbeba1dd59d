"""Compares what ``new_config`` makes of exports in every format with what they were made of.

    python tools/dev/compare_exports.py OUT

``OUT`` is a folder that ``tools/dev/exports`` wrote: ``truth`` and a folder for each form. Prints
a row for each: objects, those without a partner of their class (within two pixels) and the largest
difference of a coordinate; for label maps the share of equal pixels, as mmseg loads them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmfocal.datasets.checks import Report
from mmfocal.datasets.formats import (
    Folder,
    LabelMaps,
    Source,
    prepare_detection,
    prepare_segmentation,
)
from mmfocal.utils.errors import UserError

MOST = 2.0  # pixels between partners
IGNORED, OTHER = 255, 254

Boxes = dict[str, list[tuple[str, list[float]]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('out', type=Path, help='folder with truth and a folder for each form')
    root = parser.parse_args().out
    are_maps = (root / 'truth/labels').is_dir()
    print('| form | images | result |\n|---|---|---|')
    for form in sorted(path for path in root.iterdir() if path.is_dir() and path.name != 'truth'):
        with tempfile.TemporaryDirectory() as folder:
            source = Source(Folder(form), Path(folder, 'converted'))
            try:
                row = compare_maps(root, source) if are_maps else compare_boxes(root, source)
            except UserError as error:
                row = f'| refused: {str(error).splitlines()[0]}'
        print(f'| {form.name} {row} |')


def compare_boxes(root: Path, source: Source) -> str:
    data = prepare_detection(source, Report())
    truth = boxes_of(sorted((root / 'truth/annotations').glob('*.json')))
    mine = boxes_of(part.annotations for part in data.splits.values())
    differences, without = [], 0
    for stem, objects in mine.items():
        left = list(truth.get(stem, ()))
        for label, box in objects:
            near = [
                (np.abs(np.subtract(box, other)).max(), i)
                for i, (name, other) in enumerate(left)
                if name == label
            ]
            difference, i = min(near, default=(np.inf, None))
            if difference > MOST:
                without += 1
            else:
                differences.append(difference)
                left.pop(i)
        without += len(left)
    count = sum(map(len, mine.values()))
    largest = max(differences, default=0)
    return f'| {len(mine)} | {count:,} objects, {without} without a partner, {largest:.3f} px'


def boxes_of(files: Sequence[Path] | Iterator[Path]) -> Boxes:
    found: Boxes = {}
    for path in files:
        content = json.loads(Path(path).read_text())
        names = {each['id']: each['name'] for each in content['categories']}
        stems = {each['id']: stem_of(each['file_name']) for each in content['images']}
        found |= {stem: [] for stem in stems.values()}
        for each in content['annotations']:
            found[stems[each['image_id']]].append((names[each['category_id']], each['bbox']))
    return found


def stem_of(name: str) -> str:
    """Without what Roboflow and Label Studio add."""
    stem = Path(name).stem.partition('_jpg.rf.')[0]
    return stem.partition('-')[2] or stem


def compare_maps(root: Path, source: Source) -> str:
    data = prepare_segmentation(source, Report())
    names = (root / 'truth/classes.txt').read_text().split('\n')
    truth = {path.stem: path for path in (root / 'truth/labels').rglob('*.png')}
    numbers = np.full(256, IGNORED)
    for label, name in enumerate(data.classes):
        numbers[label] = names.index(name) if name in names else OTHER
    equal = total = images = 0
    for stem, labels in loaded(data):
        wanted = np.array(Image.open(truth[stem]))
        counted = wanted != IGNORED
        if set(names) - set(data.classes) - {''}:  # a single class, and the rest
            wanted = np.where(np.isin(wanted, numbers), wanted, OTHER)
        equal += int((numbers[labels] == wanted)[counted].sum())
        total, images = total + int(counted.sum()), images + 1
    return f'| {images} | {equal / total:.3%} of the pixels are equal'


def loaded(data: LabelMaps) -> Iterator[tuple[str, np.ndarray]]:
    """Label maps by the stems of their images, as mmseg loads them."""
    from mmseg.datasets import BaseSegDataset
    from mmseg.datasets.transforms import LoadAnnotations

    for part in data.splits.values():
        dataset = BaseSegDataset(
            ann_file='' if part.ann_file is None else str(part.ann_file),
            data_prefix=dict(img_path=str(part.img_path), seg_map_path=str(part.seg_map_path)),
            img_suffix=part.img_suffix,
            seg_map_suffix=part.seg_map_suffix,
            reduce_zero_label=data.reduce_zero_label,
            metainfo=dict(classes=data.classes, palette=data.palette),
            pipeline=[LoadAnnotations()],
        )
        for sample in dataset:
            yield stem_of(sample['img_path']), sample['gt_seg_map']


if __name__ == '__main__':
    main()
