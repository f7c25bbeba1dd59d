"""InstaBoost against the authors' package, and on annotations that the package cannot take."""

import copy
import json
import pickle
import random
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from mmengine.config import Config

from mmfocal.detection import InstaBoost
from mmfocal.detection.instaboost import decoded, groups_of_overlapping

CASES = np.load(Path(__file__).parent / 'golden/instaboost/cases.npz')
ACTIONS = ('normal', 'horizontal', 'vertical', 'skip')


def seed(number):
    random.seed(number)
    np.random.seed(number)


def instances():
    """The annotations of the golden cases as mmdet's data sets give them."""
    found = []
    for each in json.loads(str(CASES['annotations'])):
        x, y, width, height = each['bbox']
        box = [x, y, x + width, y + height]
        label, mask = each['category_id'], each['segmentation']
        found.append(dict(bbox=box, bbox_label=label, mask=mask, ignore_flag=0))
    return found


def boosted(found=None, number=0, **settings):
    settings = dict(dict(aug_ratio=1.0, color_prob=0.0), **settings)
    seed(number)
    found = instances() if found is None else found
    return InstaBoost(**settings)(dict(img=CASES['image'].copy(), instances=found))


@pytest.mark.parametrize('number, shares', json.loads(str(CASES['cases'])))
def test_same_draws_give_what_the_authors_package_gives(number, shares):
    settings = dict(action_candidate=ACTIONS, action_prob=shares, color_prob=0.5)
    result = boosted(number=number, **settings)
    difference = np.abs(result['img'].astype(int) - CASES[f'image.{number}'])
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    shape = (5, *CASES['image'].shape[:2])
    masks = np.unpackbits(CASES[f'masks.{number}'])[: np.prod(shape)].reshape(shape).astype(bool)
    boxes = CASES[f'boxes.{number}'] + np.pad(CASES[f'boxes.{number}'][:, :2], ((0, 0), (2, 0)))
    assert sorted(each['bbox_label'] for each in result['instances']) == [0, 1, 2, 3, 4]
    for each in result['instances']:
        label, mask = each['bbox_label'], coco_mask.decode(each['mask']).astype(bool)
        # The package traces polygons, which cut corners.
        assert (mask & masks[label]).sum() / (mask | masks[label]).sum() > 0.93
        np.testing.assert_allclose(each['bbox'], boxes[label], atol=1)
        rows, columns = np.nonzero(mask)
        exact = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert each['bbox'] == exact


def test_golden_cases_cover_other_colours_and_those_that_stay():
    background = [CASES[f'image.{number}'][0, 60].tolist() for number, _ in cases()]
    assert 0 < background.count(CASES['image'][0, 60].tolist()) < len(background)


def cases():
    return json.loads(str(CASES['cases']))


def test_nothing_changes_without_boost_or_objects():
    found = instances()
    result = boosted(found, aug_ratio=0.0, color_prob=1.0)
    assert result['instances'] is found and (result['img'] == CASES['image']).all()
    for empty in ([], None):
        result = InstaBoost(aug_ratio=1.0)(dict(img=CASES['image'], instances=empty))
        assert result['instances'] == empty and (result['img'] == CASES['image']).all()
    assert 'instances' not in InstaBoost(aug_ratio=1.0)(dict(img=CASES['image']))


def test_what_came_in_is_left_as_it_is():
    found, image = instances(), CASES['image'].copy()
    before = copy.deepcopy(found)
    result = InstaBoost(aug_ratio=1.0, color_prob=1.0)(dict(img=image, instances=found))
    assert found == before and (image == CASES['image']).all()
    assert (result['img'] != image).any() and result['img'].dtype == image.dtype


def test_runs_are_repeatable_in_every_process():
    one = boosted(number=7, color_prob=0.5)
    seed(7)
    transform = pickle.loads(pickle.dumps(InstaBoost(aug_ratio=1.0)))  # as workers get it
    two = transform(dict(img=CASES['image'].copy(), instances=instances()))
    assert one['instances'] == two['instances'] and (one['img'] == two['img']).all()


def test_crowds_and_objects_without_a_mask_stay():
    square = [[10, 70, 24, 70, 24, 82, 10, 82]]
    stay = [
        dict(bbox=[10, 70, 24, 82], bbox_label=9, mask=square, ignore_flag=1),
        dict(bbox=[10, 70, 24, 82], bbox_label=10, mask=[[10, 70, 24, 82]], ignore_flag=0),
        dict(bbox=[10, 70, 24, 82], bbox_label=11, ignore_flag=0),
        dict(bbox=[0, 0, 9, 9], bbox_label=12, mask=dict(size=[9, 9], counts='0'), ignore_flag=0),
    ]
    result = boosted([*instances()[:4], *stay])
    assert result['instances'][-4:] == stay and len(result['instances']) == 8
    assert (result['img'][70:82, 10:24] == CASES['image'][70:82, 10:24]).all()
    result = boosted(stay)
    assert result['instances'] == stay and (result['img'] == CASES['image']).all()


def test_masks_are_read_in_every_form():
    height, width = 12, 16
    mask = np.zeros((height, width), np.uint8)
    mask[2:7, 3:9] = 1
    packed = coco_mask.encode(np.asfortranarray(mask))
    text = dict(packed, counts=packed['counts'].decode())
    counts = dict(size=[height, width], counts=[38, *[5, 7] * 5, 5, 12 * 16 - 38 - 5 * 12 - 5])
    for each in ([[3, 2, 9, 2, 9, 7, 3, 7], [1, 1, 2, 2]], packed, text, counts):
        np.testing.assert_array_equal(decoded(each, mask.shape), mask)
    for each in ([], [[1, 1, 2, 2]], None, dict(size=[height, width]), dict(text, size=[9, 9])):
        assert decoded(each, mask.shape) is None


@pytest.mark.parametrize('number', range(5))
def test_objects_at_a_border_stay_there(number):
    corner = [[0, 0, 40, 0, 40, 30, 0, 30]]
    found = [dict(bbox=[0, 0, 40, 30], bbox_label=0, mask=corner, ignore_flag=0)]
    (each,) = boosted(found, number)['instances']
    assert each['bbox'][:2] == [0, 0] and each['bbox'][2] >= 38 and each['bbox'][3] >= 28
    # Where only mirrored ones are wanted, they are not moved either.
    settings = dict(action_candidate=('horizontal',), action_prob=(1,))
    (each,) = boosted(found, number, **settings)['instances']
    assert each['bbox'] == [0, 0, 40, 30]


def test_boxes_beyond_the_image_are_cut_at_its_border():
    outside = [[-20, 60, 30, 60, 30, 110, -20, 110]]
    found = [dict(bbox=[-20, 60, 30, 110], bbox_label=0, mask=outside, ignore_flag=0)]
    (each,) = boosted(found)['instances']
    height, width = CASES['image'].shape[:2]
    assert coco_mask.decode(each['mask']).sum() >= 30 * 36
    assert each['bbox'][0] == 0 and each['bbox'][3] == height and each['bbox'][2] < width


def test_image_whose_objects_would_vanish_is_left_as_it_is():
    gone = [[60, 60, 60.1, 60, 60.1, 60.1, 60, 60.1]]
    found = [dict(bbox=[60, 60, 60.1, 60.1], bbox_label=0, mask=gone, ignore_flag=0)]
    result = boosted(found)
    assert result['instances'] == found and (result['img'] == CASES['image']).all()
    both = boosted([*found, *instances()[:1]])['instances']
    assert [each['bbox_label'] for each in both] == [0] and both[0]['bbox'][2] > 40


def test_many_objects_that_overlap_are_one_group():
    chain = [[3.0 * i, 0, 3.0 * i + 4, 9] for i in range(3000)]
    assert groups_of_overlapping(chain) == [list(range(3000))]
    assert groups_of_overlapping([[0, 0, 4, 4], [4, 0, 8, 4], [3, 3, 5, 5]]) == [[0, 2, 1]]
    assert groups_of_overlapping([[0, 0, 4, 4], [4, 0, 8, 4]]) == [[0], [1]]


@pytest.mark.parametrize(
    'settings, match',
    [
        (dict(action_prob=(1, 0)), 'add up to 1'),
        (dict(action_prob=(1, 1, 0)), 'add up to 1'),
        (dict(action_candidate=('up',), action_prob=(1,)), r"normal, .*\('up',\)"),
        (dict(hflag=True), 'hflag=False'),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        InstaBoost(**settings)


def test_it_comes_before_annotations_are_read():
    config = Config.fromfile(
        Path(__file__).parents[1] / 'configs/mmdet/focal-l_htcpp_3x.py'
    ).train_dataloader.dataset.pipeline
    names = [step.type.rpartition('.')[2] for step in config]
    assert names[:3] == ['LoadImageFromFile', 'InstaBoost', 'LoadAnnotations']
