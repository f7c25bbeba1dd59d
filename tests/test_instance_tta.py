"""Test-time augmentation of boxes and masks against plain detection, and what views contribute."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import tensor

from mmfocal.detection.instance_tta import InstanceTTAModel, by_class, keep_sizes

CONFIGS = Path(__file__).parents[1] / 'configs/mmdet'
FAMILIES = ['maskrcnn', 'cascade-maskrcnn', 'htcpp', 'retinanet', 'atss', 'reppointsv2', 'dyhead']


def detector(family):
    """A detector with random weights that finds something everywhere."""
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    torch.manual_seed(0)
    config = Config.fromfile(CONFIGS / f'focal_{family}_shapes.py').model
    rcnn = config.test_cfg.get('rcnn', config.test_cfg)
    rcnn.update(score_thr=0.0 if rcnn is not config.test_cfg else 0.001, max_per_img=20)
    rcnn.nms = dict(type='nms', iou_threshold=0.5)
    if 'rpn' in config.test_cfg:
        config.test_cfg.rpn.max_per_img = 30
    return MODELS.build(config).eval()


def merge_with(model):
    rcnn = model.test_cfg.get('rcnn', model.test_cfg)
    return dict(nms=rcnn.nms, max_per_img=rcnn.max_per_img)


def views(image, *, scales=(1.0,), flips=(None,)):
    """What ``TestTimeAug`` gives for one image: scales first, then directions of flips."""
    from mmcv.transforms import Compose
    from mmdet.registry import TRANSFORMS

    init_default_scope('mmdet')
    keys = ('ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
    pack = TRANSFORMS.build(dict(type='PackDetInputs', meta_keys=keys))
    inputs, samples = [], []
    height, width = image.shape[:2]
    for scale in scales:
        for flip in flips:
            resize = dict(type='Resize', scale=(int(width * scale), int(height * scale)))
            turn = dict(type='RandomFlip', prob=1.0 if flip else 0.0, direction=flip or 'vertical')
            steps = Compose([TRANSFORMS.build(resize), TRANSFORMS.build(turn), pack])
            packed = steps(
                dict(img=image.copy(), img_shape=(height, width), ori_shape=(height, width))
            )
            inputs.append([packed['inputs']])
            samples.append([packed['data_samples']])
    return dict(inputs=inputs, data_samples=samples)


def one(data):
    return dict(inputs=data['inputs'][0], data_samples=data['data_samples'][0])


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


@pytest.mark.parametrize('family', FAMILIES)
def test_one_view_gives_what_the_detector_gives(family, image):
    model = detector(family)
    (expected,) = model.test_step(one(views(image)))
    (found,) = InstanceTTAModel(model, merge_with(model)).test_step(views(image))
    found, expected = found.pred_instances, expected.pred_instances
    assert len(expected) > 3
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.bboxes, expected.bboxes, atol=1e-3, rtol=0)
    assert torch.equal(found.labels, expected.labels)
    if 'masks' in expected:
        assert found.masks.shape == (len(found), 96, 128) and found.masks.dtype == torch.bool
        # Averages of bytes: a probability within 1 / 255 of the threshold may fall either way.
        assert (found.masks != expected.masks).float().mean() < 0.02


@pytest.mark.parametrize('family', ['maskrcnn', 'htcpp', 'atss'])
@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_what_a_flipped_view_finds_is_turned_back(family, direction, image):
    model = detector(family)
    tta = InstanceTTAModel(model, merge_with(model))
    axes = {'horizontal': (1,), 'vertical': (0,), 'diagonal': (0, 1)}[direction]
    turned = np.ascontiguousarray(np.flip(image, axes))
    # A flipped view of the flipped image is the image.
    (expected,) = tta.test_step(views(image))
    (found,) = tta.test_step(views(turned, flips=[direction]))
    found, expected = found.pred_instances, expected.pred_instances
    boxes = expected.bboxes.clone()
    if direction != 'vertical':
        boxes[:, [0, 2]] = 128 - expected.bboxes[:, [2, 0]]
    if direction != 'horizontal':
        boxes[:, [1, 3]] = 96 - expected.bboxes[:, [3, 1]]
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.bboxes, boxes, atol=1e-3, rtol=0)
    if 'masks' in expected:
        flipped = expected.masks.flip([1 + axis for axis in axes])
        assert (found.masks != flipped).float().mean() < 0.01


def test_masks_of_all_views_are_averaged(image, monkeypatch):
    model = detector('maskrcnn')
    tta = InstanceTTAModel(model, merge_with(model))
    votes = iter([200, 120, 250])  # of 255: 0.75 on average, above the threshold of 0.5

    def predict_mask(x, batch_img_metas, results_list, rescale):
        value = next(votes)
        for region, meta in zip(results_list, batch_img_metas, strict=True):
            region.masks = torch.full((len(region), *meta['ori_shape']), value, dtype=torch.uint8)
        return results_list

    monkeypatch.setattr(model.roi_head, 'predict_mask', predict_mask)
    (found,) = tta.test_step(views(image, scales=[0.5, 1.0, 1.5]))
    assert found.pred_instances.masks.all()
    votes = iter([100, 120, 130])
    (found,) = tta.test_step(views(image, scales=[0.5, 1.0, 1.5]))
    assert not found.pred_instances.masks.any()
    assert model.roi_head.test_cfg.mask_thr_binary == 0.5


def test_views_of_a_scale_contribute_the_sizes_it_is_trusted_with(image, monkeypatch):
    model = detector('retinanet')
    boxes = tensor([[0.0, 0, 20, 20], [0, 0, 60, 60], [0, 0, 100, 100]])

    def predict_by_feat(*outs, batch_img_metas, **_):
        scale = batch_img_metas[0]['scale_factor'][0]
        return [
            InstanceData(
                bboxes=boxes.clone(), scores=torch.full((3,), 0.1 + scale), labels=torch.arange(3)
            )
        ]

    monkeypatch.setattr(model.bbox_head, 'predict_by_feat', predict_by_feat)
    tta = InstanceTTAModel(model, merge_with(model), [['large'], ['small', 'medium']])
    (found,) = tta.test_step(views(image, scales=[0.25, 0.5], flips=[None, None]))
    best = dict(
        zip(
            found.pred_instances.labels.tolist(), found.pred_instances.scores.tolist(), strict=True
        )
    )
    assert best == pytest.approx({0: 0.6, 1: 0.6, 2: 0.35})
    with pytest.raises(ValueError, match='2 scales of object_sizes, got 3 views'):
        tta.test_step(views(image, scales=[0.25, 0.5, 1.0]))


def test_soft_suppression_over_views_lowers_scores():
    from mmdet.structures import DetDataSample

    nms = dict(type='soft_nms', iou_threshold=0.3, min_score=0.01)
    tta = InstanceTTAModel(detector('retinanet'), dict(nms=nms, max_per_img=3))
    views = []
    # The boxes of both views overlap by 0.8 and are of one class; the last overlaps with none.
    for boxes, scores in (
        ([[0.0, 0, 100, 100]], [0.9]),
        ([[0.0, 0, 100, 80], [200, 200, 250, 250]], [0.8, 0.3]),
    ):
        found = InstanceData(bboxes=tensor(boxes), scores=tensor(scores))
        found.labels = torch.zeros(len(boxes), dtype=torch.int64)
        views.append(DetDataSample(pred_instances=found))
    (merged,) = tta.merge_preds([views])
    merged = merged.pred_instances
    torch.testing.assert_close(merged.scores, tensor([0.9, 0.3, 0.8 * (1 - 0.8)]))
    assert merged.bboxes[:, 3].tolist() == [100, 250, 80]


def test_no_object_in_any_view_is_no_object(image):
    model = detector('maskrcnn')
    model.roi_head.test_cfg.score_thr = 2.0
    (found,) = InstanceTTAModel(model, merge_with(model)).test_step(
        views(image, flips=[None, 'horizontal'])
    )
    assert len(found.pred_instances) == 0
    assert found.pred_instances.masks.shape == (0, 96, 128)


def test_object_sizes_are_those_of_coco():
    sides = tensor([31.0, 32.0, 95.0, 96.0])
    boxes = torch.stack([torch.zeros(4), torch.zeros(4), sides, sides], 1)
    instances = InstanceData(bboxes=boxes, labels=torch.arange(4))
    assert keep_sizes(instances, ['small']).labels.tolist() == [0]
    assert keep_sizes(instances, ['medium', 'large']).labels.tolist() == [1, 2, 3]


def test_regions_give_an_instance_for_each_class_above_the_threshold():
    regions = InstanceData(
        bboxes=torch.arange(16.0).view(2, 8), scores=tensor([[0.1, 0.6, 0.3], [0.5, 0.4, 0.1]])
    )
    found = by_class(regions, 0.3)
    assert found.labels.tolist() == [1, 0, 1]
    assert found.bboxes[:, 0].tolist() == [4, 8, 12]
    regions.bboxes = regions.bboxes[:, :4]
    assert by_class(regions, 0.3).bboxes[:, 0].tolist() == [0, 8, 8]


def test_what_cannot_be_merged_is_named():
    with pytest.raises(ValueError, match=r"expected object_sizes of small, .*'tiny'"):
        InstanceTTAModel(detector('retinanet'), {}, [['tiny']])
    init_default_scope('mmdet')
    from mmdet.registry import MODELS

    sparse = MODELS.build(Config.fromfile(CONFIGS / 'focal_sparsercnn_shapes.py').model)
    with pytest.raises(ValueError, match=r'suppresses overlapping boxes.*SparseRCNN'):
        InstanceTTAModel(sparse, {})


@pytest.mark.parametrize(
    'name, views_expected', [('focal-l_htcpp_3x', 12), ('focal-l_dyhead_2x', 12)]
)
def test_published_variants_have_two_views_of_six_scales(name, views_expected, image, tmp_path):
    from mmcv.transforms import Compose
    from mmdet.registry import TRANSFORMS

    init_default_scope('mmdet')
    config = Config.fromfile(CONFIGS / f'{name}.py')
    pipeline = Compose([TRANSFORMS.build(step) for step in config.tta_pipeline[1:]])
    instances = [dict(bbox=[0, 0, 9, 9], bbox_label=0, mask=[[0, 0, 9, 0, 9, 9]], ignore_flag=0)]
    results = dict(img=image, img_shape=(96, 128), ori_shape=(96, 128), instances=instances)
    results.update(img_id=0, img_path='')
    packed = pipeline(results)
    metas = [sample.metainfo for sample in packed['data_samples']]
    assert len(metas) == views_expected
    assert [meta['flip'] for meta in metas] == [False, True] * 6
    shorts = [min(meta['img_shape']) for meta in metas[::2]]
    assert shorts == sorted(shorts) and len(set(shorts)) == 6
    sizes = config.tta_model.get('object_sizes')
    assert sizes is None or len(sizes) == 6
