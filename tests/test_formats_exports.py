"""One data set as real tools export it in every format becomes the same annotations for mmdet."""

import json
from pathlib import Path

import numpy as np
import pytest
from exported import EXPORTS, PLACES, place
from pycocotools import mask as mask_api

from mmfocal.datasets.checks import Report
from mmfocal.datasets.formats import Folder, Source, prepare_detection

# Of the largest difference of a coordinate, in pixels, where a tool itself rounds.
ROUNDED = {
    'voc_label_studio': 1.0,  # cuts decimals off
    'yolo_supervision': 0.01,
}
# Tools that write other objects: parts of one on their own, outlines traced anew, crowds left out.
ALTERED = {
    *('label_studio', 'label_studio_min'),
    *('yolo_supervision', 'yolo_ultralytics', 'roboflow_yolo'),
}


def forms(kind):
    names = [name.partition('/')[2] for name in PLACES if name.startswith(f'{kind}/')]
    return [name for name in names if name != 'truth']


def objects(splits):
    """Of each image, names with boxes, crowds and masks, in an order of their own."""
    found = {}
    for annotations in splits:
        content = json.loads(Path(annotations).read_text())
        names = {each['id']: each['name'] for each in content['categories']}
        images = {each['id']: each for each in content['images']}
        stems = {key: stem_of(each['file_name']) for key, each in images.items()}
        found |= {stem: [] for stem in stems.values()}
        for each in content['annotations']:
            image = images[each['image_id']]
            found[stems[each['image_id']]].append(
                (names[each['category_id']], each['bbox'], each['iscrowd'], pixels(each, image))
            )
    return found


def stem_of(name):
    """Without what Roboflow and Label Studio add."""
    stem = Path(name).stem.partition('_jpg.rf.')[0]
    return stem.partition('-')[2] or stem


def pixels(annotation, image):
    mask = annotation.get('segmentation')
    if not mask:
        return None
    size = image['height'], image['width']
    if isinstance(mask, list):
        return mask_api.decode(mask_api.merge(mask_api.frPyObjects(mask, *size))).astype(bool)
    if isinstance(mask['counts'], list):
        return mask_api.decode(mask_api.frPyObjects(mask, *size)).astype(bool)
    return mask_api.decode(mask).astype(bool)


def prepared(kind, form, tmp_path):
    root = place(f'{kind}/{form}', tmp_path)
    report = Report()
    data = prepare_detection(Source(Folder(root), tmp_path / 'converted'), report)
    return data, report


@pytest.mark.parametrize('form', forms('boxes'))
def test_boxes_of_every_format_are_the_same(form, tmp_path):
    data, report = prepared('boxes', form, tmp_path)
    assert [data.splits[split].num_images for split in ('train', 'val')] == [4, 2]
    assert report.lines('note') == []
    truth = objects(sorted((EXPORTS / 'boxes/truth').rglob('*.json')))
    mine = objects(part.annotations for part in data.splits.values())
    assert mine.keys() == truth.keys()
    for stem, items in truth.items():
        assert_boxes(mine[stem], items, ROUNDED.get(form, 0.005))


def assert_boxes(mine, truth, tolerance):
    """Each object has its own with the same name, crowd and box."""
    left = list(mine)
    for label, box, crowd, _ in truth:
        fits = [
            each
            for each in left
            if each[0] == label
            and each[2] == crowd
            and np.abs(np.subtract(each[1], box)).max() <= tolerance
        ]
        assert fits, f'no {label} at {box} in {mine}'
        left.remove(fits[0])
    assert left == []


@pytest.mark.parametrize('form', [form for form in forms('polygons') if form not in ALTERED])
def test_masks_of_every_format_are_the_same(form, tmp_path):
    data, _ = prepared('polygons', form, tmp_path)
    assert data.has_masks
    says_crowds = 'coco' in form  # no other format has them
    truth = objects(sorted((EXPORTS / 'polygons/truth').rglob('*.json')))
    mine = objects(part.annotations for part in data.splits.values())
    for stem, items in truth.items():
        assert len(mine[stem]) == len(items)
        for label, _, crowd, mask in items:
            same = [
                (each[3] & mask).sum() / (each[3] | mask).sum()
                for each in mine[stem]
                if each[0] == label and each[2] == (crowd and says_crowds)
            ]
            assert max(same, default=0) > 0.97, f'no {label} of this outline in {stem}'


def union(items):
    return np.any([mask for _, _, _, mask in items if mask is not None], axis=0)


@pytest.mark.parametrize('form', [form for form in forms('polygons') if form in ALTERED])
def test_all_pixels_are_kept_where_tools_alter_objects(form, tmp_path):
    """Together, the objects of a class cover what they covered, but for crowds."""
    data, _ = prepared('polygons', form, tmp_path)
    truth = objects(sorted((EXPORTS / 'polygons/truth').rglob('*.json')))
    mine = objects(part.annotations for part in data.splits.values())
    for stem, items in truth.items():
        for label in {each[0] for each in items if not each[2]}:
            wanted = union(each for each in items if each[0] == label and not each[2])
            found = union(each for each in mine[stem] if each[0] == label)
            least = 0.3 if form == 'roboflow_yolo' else 0.9  # keeps one part of each
            assert (wanted & found).sum() / wanted.sum() > least
