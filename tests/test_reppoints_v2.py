"""RepPointsV2: targets, losses and corner refinement against cases worked out by hand."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import tensor

from mmfocal.detection import (
    BiFPN,
    CornerPooling,
    InclusiveGIoULoss,
    RepPointsV2Head,
    VerificationFocalLoss,
    corner_radius,
    corner_targets,
    foreground_weights,
    refine_corners,
)

CONFIGS = Path(__file__).parents[1] / 'configs/mmdet'
ASSIGNERS = ConfigDict(
    init=dict(assigner=dict(type='PointAssigner', scale=4, pos_num=1)),
    refine=dict(assigner=dict(type='ATSSAssigner', topk=9)),
)
TEST = ConfigDict(
    nms_pre=1000, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.6), max_per_img=100
)
GN = dict(type='GN', num_groups=2)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def small_head(**settings):
    defaults = dict(
        num_classes=3,
        in_channels=8,
        feat_channels=8,
        corner_channels=4,
        stacked_convs=1,
        strides=(8, 16),
        norm_cfg=GN,
        train_cfg=ASSIGNERS,
        test_cfg=TEST,
    )
    head = RepPointsV2Head(**{**defaults, **settings})
    head.init_weights()
    return head


def metas(*shapes, batch):
    """Of images padded to these shapes, and again to that of their batch."""
    return [
        dict(img_shape=(h - 9, w - 10), pad_shape=(h, w), batch_input_shape=batch)
        for h, w in shapes
    ]


def objects(boxes, labels):
    return InstanceData(bboxes=tensor(boxes).float().view(-1, 4), labels=tensor(labels).long())


# Size.


def test_parts_have_the_published_number_of_parameters():
    model = Config.fromfile(CONFIGS / 'focal_reppointsv2_3x.py').model
    fpn = Config.fromfile(CONFIGS / 'focal_reppointsv2-fpn_3x.py').model.neck
    from mmdet.registry import MODELS

    assert parameters(MODELS.build(model.bbox_head)) == pytest.approx(7.210e6, abs=500)
    assert parameters(MODELS.build(model.neck)) == pytest.approx(10.185e6, abs=500)
    assert parameters(MODELS.build(fpn)) == pytest.approx(4.477e6, abs=500)


def test_outputs_start_at_the_prior_with_small_weights():
    torch.manual_seed(0)
    head = small_head()
    logit = math.log(0.01 / 0.99)
    for out in (head.cls_out, head.foreground_out, *head.corner_heat_outs):
        torch.testing.assert_close(out.bias, torch.full_like(out.bias, logit))
        assert out.weight.std().item() == pytest.approx(0.01, rel=0.5)
    assert all((norm.weight == 1).all() for norm in head.modules() if 'Norm' in str(type(norm)))


# Pyramid.


@pytest.mark.parametrize('sizes', [[(20, 12), (10, 6), (5, 3)], [(3, 1), (2, 1), (1, 1)]])
def test_pyramid_halves_sizes_and_rounds_up(sizes):
    maps = [torch.rand(2, 4 * 2**i, *size) for i, size in enumerate(sizes)]
    outs = BiFPN([4, 8, 16], 8, num_outs=5, norm_cfg=GN)(maps)
    expected = list(sizes)
    while len(expected) < 5:
        expected.append(tuple(-(-side // 2) for side in expected[-1]))
    assert [tuple(out.shape[-2:]) for out in outs] == expected
    assert all(out.shape[:2] == (2, 8) for out in outs)


def test_fusion_weights_are_positive_and_add_up_to_one():
    fusion = BiFPN([4], 4, num_outs=2, norm_cfg=GN).layers[0].down_fusions[0]
    fusion.weights.data = tensor([3.0, -1.0])
    first, second = torch.full((1, 4, 2, 2), 2.0), torch.full((1, 4, 2, 2), 50.0)
    swish = 2.0 / (1 + math.exp(-2.0))
    torch.testing.assert_close(
        fusion(first, second), torch.full_like(first, swish), rtol=1e-3, atol=0
    )


def test_pyramid_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r'num_outs of at least 2 .* got num_outs=2'):
        BiFPN([4, 8, 16], 8, num_outs=2)
    with pytest.raises(ValueError, match=r'expected 2 maps.*got 1'):
        BiFPN([4, 8], 8, num_outs=2, norm_cfg=GN)([torch.rand(1, 4, 4, 4)])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_head_learns_in_mixed_precision(dtype):
    head = small_head()
    maps = [torch.randn(1, 8, 8, 8), torch.randn(1, 8, 4, 4)]
    gt = [objects([[3, 5, 30, 29], [20, 22, 60, 62]], [2, 0])]
    expected = head.loss_by_feat(*head(maps), gt, metas((64, 64), batch=(64, 64)))
    with torch.autocast('cpu', dtype):
        outs = head(maps)
        losses = head.loss_by_feat(*outs, gt, metas((64, 64), batch=(64, 64)))
    assert outs[0][0].dtype == dtype
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name], rtol=0.05, atol=1e-3)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


# Targets.


def test_corner_radius_is_that_of_mmdet():
    from mmdet.models.utils import gaussian_radius

    sizes = torch.rand(50, 2, dtype=torch.float64) * 300 + 1
    expected = [gaussian_radius((height, width), 0.7) for width, height in sizes.tolist()]
    torch.testing.assert_close(corner_radius(sizes), tensor(expected, dtype=torch.float64))


def test_corner_targets_by_hand():
    # A row of four cells of stride 8 and one of two cells of stride 16.
    points = tensor([[0, 0], [8, 0], [16, 0], [24, 0], [0, 0], [16, 0]]).float()
    strides = tensor([8, 8, 8, 8, 16, 16]).float()
    corners, radii = tensor([[9.0, 2.0], [23.0, 0.0]]), tensor([8.0, 2.0])
    heat, offsets = corner_targets(points, strides, [4, 2], corners, radii)
    sigma = (2 * 8 + 1) / 6
    # (16, 0) is 7.28 away from the first corner and 7 from the second, whose radius is 2.
    near = math.exp(-(7**2 + 2**2) / (2 * sigma**2))
    torch.testing.assert_close(heat, tensor([0.0, 1.0, near, 1.0, 0.0, 1.0]))
    expected = torch.zeros(6, 2)
    expected[1] = tensor([1 / 8, 2 / 8])
    expected[3] = tensor([-1 / 8, 0])
    # On the coarse level (16, 0) is the nearest point to both; the second corner is 7 away from
    # it and the first 7.28.
    expected[5] = tensor([7 / 16, 0])
    torch.testing.assert_close(offsets, expected)


def test_corner_targets_without_objects_are_zero():
    heat, offsets = corner_targets(
        torch.rand(6, 2), torch.ones(6), [4, 2], torch.zeros(0, 2), torch.zeros(0)
    )
    assert not heat.any() and not offsets.any()


def test_foreground_of_the_smaller_object_covers_that_of_the_larger():
    boxes = tensor([[0.0, 0, 31, 15], [9, 1, 23, 7]])
    weights = foreground_weights(boxes, tensor([1, 1]), 2, (17, 40))
    large, small = 1 / (31 * 15), 1 / (14 * 6)
    expected = torch.zeros(2, 3, 5)
    expected[1, :2, :4] = large
    expected[1, 0, 1:3] = small
    torch.testing.assert_close(weights, expected)


def test_objects_go_to_the_level_of_their_size_and_to_its_nearest_cell():
    head = small_head()
    maps = [torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)]
    priors = torch.cat(head._priors(maps))
    gt = objects([[7, 15, 37, 45], [0, 0, 64, 64]], [2, 0])  # 30 and 64 pixels: levels 2.9, 4
    valid = head._valid(maps, dict(pad_shape=(64, 64)))
    assigned = head._assign_init(priors, valid, gt, None)
    # The first has its centre at (22, 30): nearest to column 3, row 4 of stride 8.
    assert (assigned >= 0).nonzero().flatten().tolist() == [4 * 8 + 3, 64 + 2 * 4 + 2]
    assert assigned[4 * 8 + 3] == 0 and assigned[64 + 10] == 1


# Losses.


@pytest.mark.parametrize(
    'pred, target, expected',
    [
        ([0, 0, 3, 3], [0, 0, 3, 3], 0.0),
        # One pixel each, side by side: no overlap, and the hull holds nothing else.
        ([0, 0, 0, 0], [1, 0, 1, 0], 1.0),
        # Sides of 2 and 4, the smaller inside: 1 - 4 / 16.
        ([0, 0, 1, 1], [0, 0, 3, 3], 0.75),
        # One pixel each, two apart: the hull of four cells has two others.
        ([0, 0, 0, 0], [3, 0, 3, 0], 1.5),
    ],
)
def test_inclusive_giou_loss_by_hand(pred, target, expected):
    loss = InclusiveGIoULoss(loss_weight=2.0)(tensor([pred]).float(), tensor([target]).float())
    assert loss.item() == pytest.approx(2 * expected, abs=1e-6)


def test_inclusive_giou_loss_pulls_boxes_together_and_reduces_as_mmdet_does():
    loss = InclusiveGIoULoss()
    pred = tensor([[5.0, 5, 2, 9], [0, 0, 0, 0]], requires_grad=True)  # the first inside out
    target = tensor([[0.0, 0, 8, 8], [3, 0, 3, 0]])
    loss(pred, target, avg_factor=4).backward()
    assert pred.grad[0, 2] < 0  # its right side moves to the right
    each = loss(pred, target, reduction_override='none')
    torch.testing.assert_close(loss(pred, target, avg_factor=4), each.sum() / 4)
    weight = tensor([[0.0] * 4, [2.0] * 4])
    torch.testing.assert_close(loss(pred, target, weight, avg_factor=1.0), 2 * each[1])
    assert loss(pred[:0], target[:0], avg_factor=1.0) == 0


def test_verification_focal_loss_by_hand():
    logits, weights = tensor([0.0, 2.0, 0.0, -1.0]), tensor([0.5, 0.25, 0.0, 0.0])
    sigmoid = [1 / (1 + math.exp(-x)) for x in (0, 2, 0, -1)]
    missed = [-math.log(p) * (1 - p) ** 2 for p in sigmoid[:2]]
    false = [-math.log(1 - p) * p**2 for p in sigmoid[2:]]
    expected = 0.25 * (0.5 * missed[0] + 0.25 * missed[1]) / 0.75 + 0.75 * sum(false) / 2
    loss = VerificationFocalLoss(loss_weight=0.1)(logits, weights)
    assert loss.item() == pytest.approx(0.1 * expected, rel=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
def test_verification_focal_loss_is_finite_at_extreme_logits_and_without_objects(dtype):
    logits = tensor([-200.0, 200.0, -200.0, 200.0], dtype=dtype, requires_grad=True)
    for weights in (tensor([1.0, 1.0, 0.0, 0.0]), torch.zeros(4)):
        loss = VerificationFocalLoss()(logits, weights)
        loss.backward()
        assert loss.isfinite() and logits.grad.isfinite().all()


def perfect_outputs(head, gt, size):
    """What the head should give for objects of one image."""
    height, width = size
    shapes = [(-(-height // stride), -(-width // stride)) for stride in head.strides]
    maps = [torch.zeros(1, 1, *shape) for shape in shapes]
    level_priors = head._priors(maps)
    priors = torch.cat(level_priors)
    counts = [len(each) for each in level_priors]
    corner = gt.bboxes[:, :2], gt.bboxes[:, 2:]
    radii = corner_radius(gt.bboxes[:, 2:] - gt.bboxes[:, :2])
    targets = [corner_targets(priors[:, :2], priors[:, 2], counts, c, radii) for c in corner]
    middle = (corner[0] + corner[1]) / 2
    nearest = torch.cdist(priors[:, :2], middle).argmin(1)
    boxes = gt.bboxes[nearest]
    shifts = (boxes - priors[:, [0, 1, 0, 1]]) / priors[:, 2:3]
    points = torch.zeros(len(priors), 18)
    points[:, :4] = shifts[:, [1, 0, 3, 2]]

    def split(values):
        parts = zip(values.split(counts), shapes, strict=True)
        return [part.T.reshape(1, -1, *shape) for part, shape in parts]

    heat = torch.stack([target[0] for target in targets], 1)
    offsets = torch.cat([target[1] for target in targets], 1)
    painted = foreground_weights(gt.bboxes, gt.labels, head.num_classes, size)
    foreground = [
        torch.nn.functional.interpolate(painted[None], size=shape) > 0 for shape in shapes
    ]
    return dict(
        points=split(points),
        heats=split((heat == 1) * 40.0 - 20),
        offsets=split(offsets),
        foregrounds=[each * 40.0 - 20 for each in foreground],
        shapes=shapes,
    )


def test_losses_of_a_perfect_prediction_vanish():
    head = small_head()
    gt = objects([[3, 5, 30, 29], [20, 22, 70, 62]], [2, 0])
    perfect = perfect_outputs(head, gt, (72, 80))
    # Class scores are asked to be the IoU, 1, at what the refined stage assigns.
    priors = head._priors([torch.zeros(1, 1, *shape) for shape in perfect['shapes']])
    flat = [points.flatten(2).transpose(1, 2) for points in perfect['points']]
    boxes = head.points_to_boxes(torch.cat(flat, 1), torch.cat(priors))[0]
    valid = torch.ones(len(boxes), dtype=torch.bool)
    assigned = head._assign_refine(priors, boxes, valid, gt, None)
    scores = torch.full((len(boxes), 3), -20.0)
    scores[assigned >= 0, gt.labels[assigned[assigned >= 0]]] = 20.0
    counts = [len(each) for each in priors]
    scores = [
        part.T.reshape(1, 3, *shape)
        for part, shape in zip(scores.split(counts), perfect['shapes'], strict=True)
    ]
    losses = head.loss_by_feat(
        scores,
        perfect['points'],
        perfect['points'],
        perfect['heats'],
        perfect['offsets'],
        perfect['foregrounds'],
        [gt],
        metas((72, 80), batch=(72, 80)),
    )
    assert (assigned >= 0).sum() >= 2
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(0, abs=1e-5), name


def test_losses_by_hand_for_one_object_and_one_level():
    head = small_head(loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25))
    head.strides = (8,)
    head.prior_generator = type(head.prior_generator)((8,), offset=0)
    # A map of two by two cells, each with a box of 7 pixels from its position on.
    points = torch.zeros(1, 18, 2, 2)
    points[:, 2:4] = 7 / 8
    zeros = torch.zeros(1, 1, 2, 2)
    gt = objects([[0, 0, 7, 7]], [1])
    losses = head.loss_by_feat(
        [zeros.expand(1, 3, 2, 2)],
        [points],
        [points],
        [zeros.expand(1, 2, 2, 2)],
        [zeros.expand(1, 4, 2, 2)],
        [zeros.expand(1, 3, 2, 2)],
        [gt],
        metas((16, 16), batch=(16, 16)),
    )
    log2 = math.log(2)
    # The first cell is the nearest to the object's centre, and its box is the object's.
    assert losses['loss_pts_init'] == pytest.approx(0, abs=1e-6)
    # Four candidates of overlap 1, 0, 0, 0: the threshold is 0.25 + 0.5, which the first passes.
    assert losses['loss_pts_refine'] == pytest.approx(0, abs=1e-6)
    # One positive of twelve logits, each at a probability of a half.
    focal = (0.25 + 0.75 * 11) * 0.25 * log2
    assert losses['loss_cls'].item() == pytest.approx(focal, rel=1e-5)
    # Each corner has its own nearest point, (0, 0) and (8, 8), and a radius of about a pixel.
    assert losses['loss_corner_heat'].item() == pytest.approx(0.25 * 4 * 0.25 * log2, rel=1e-5)
    # The second is an eighth of a stride off, both ways, and one of two kinds of corners.
    assert losses['loss_corner_offset'].item() == pytest.approx((1 / 8 - 1 / 18) * 2 / 2, rel=1e-5)
    # The first cell is foreground of one class: one positive of twelve logits.
    foreground = 0.1 * (0.25 + 0.75 * 11) * 0.25 * log2
    assert losses['loss_foreground'].item() == pytest.approx(foreground, rel=1e-5)


def test_quality_is_the_overlap_of_the_final_box():
    head = small_head()
    boxes = tensor([[[0.0, 0, 10, 5], [0, 0, 10, 10]]], requires_grad=True)
    gt = objects([[0, 0, 10, 10]], [1])
    logits = torch.zeros(1, 3, 1, 2)
    loss = head._loss_cls([logits], boxes, [tensor([0, -1])], [torch.ones(2).bool()], [gt])
    # Asked for 0.5 where the logit says 0.5: nothing to pay there; five others pay.
    assert loss.item() == pytest.approx(5 * 0.25 * math.log(2), rel=1e-5)
    assert not loss.requires_grad  # the overlap is a constant


# Images of one batch, which ends the smaller ones with padding. The authors' code assigns objects
# and corners to points of an image's own `pad_shape` only, and paints foreground on its own map.

SIZES = [(64, 96), (96, 32)]  # of two images, each padded to 32 pixels
BATCH = (96, 96)
STRIDES = (8, 16, 64)
OBJECTS = [
    (
        [
            [40, 30, 96, 64],  # ends with its image, at cells of the padding
            [3, 3, 96, 64],  # so large that there are other cells near its corners
            [70, 60, 78, 64],  # the nearest cell to its centre is of the padding
        ],
        [2, 0, 1],
    ),
    ([[1, 50, 31, 90]], [1]),
]


def padded_batch():
    """A head, its outputs for noise, objects, and which cells of each level an image has."""
    torch.manual_seed(0)
    head = small_head(strides=STRIDES)
    for module in head.modules():
        if isinstance(module, (torch.nn.Conv2d, type(head.cls_sample))):
            torch.nn.init.normal_(module.weight, std=0.1)
    shapes = [tuple(-(-side // stride) for side in BATCH) for stride in STRIDES]
    outs = head([torch.randn(2, 8, *shape) for shape in shapes])
    outs = [[each.detach().requires_grad_() for each in maps] for maps in outs]
    own = []
    for stride, shape in zip(STRIDES, shapes, strict=True):
        inside = torch.zeros(2, 1, *shape, dtype=torch.bool)
        for image, size in enumerate(SIZES):
            rows, columns = (-(-side // stride) for side in size)
            inside[image, :, :rows, :columns] = True
        own.append(inside)
    return head, outs, [objects(*each) for each in OBJECTS], own


def corner_losses(heats, offsets, inside, boxes):
    """Sums over an image of heat and offset loss of its own cells, and positives, by corner.

    As in section 3.2 of the paper and the authors' ``PointHMAssigner``, cell by cell.
    """
    sums = []
    for kind in (0, 1):
        heat_loss, offset_loss, positives = 0.0, 0.0, 0
        for level, stride in enumerate(STRIDES):
            cells = inside[level][0].nonzero().tolist()
            nearest = {}
            for box in boxes:
                corner = box[2 * kind : 2 * kind + 2]
                distance, cell = min(
                    (math.dist((column * stride, row * stride), corner), (row, column))
                    for row, column in cells
                )
                nearest[cell] = min(nearest.get(cell, (math.inf,)), (distance, corner))
            for row, column in cells:
                point = (column * stride, row * stride)
                heat = 0.0
                for box in boxes:
                    corner = box[2 * kind : 2 * kind + 2]
                    width, height = box[2] - box[0], box[3] - box[1]
                    radius = corner_radius(tensor([[width, height]]).double()).item()
                    distance, sigma = math.dist(point, corner), (2 * radius + 1) / 6
                    if distance < radius:
                        heat = max(heat, math.exp(-(distance**2) / (2 * sigma**2)))
                p = heats[level][kind, row, column].double().sigmoid().item()
                if (row, column) in nearest:
                    positives += 1
                    heat_loss -= math.log(p) * (1 - p) ** 2
                    _, corner = nearest[row, column]
                    for axis in (0, 1):
                        wanted = (corner[axis] - point[axis]) / stride
                        found = offsets[level][2 * kind + axis, row, column].item()
                        off = abs(wanted - found)
                        offset_loss += off - 1 / 18 if off >= 1 / 9 else off**2 * 9 / 2
                else:
                    heat_loss -= math.log(1 - p) * p**2 * (1 - heat) ** 4
        sums.append((heat_loss, offset_loss, positives))
    return sums


def test_corners_of_a_batch_are_those_of_each_image_within_its_own_size():
    head, outs, gts, own = padded_batch()
    losses = head.loss_by_feat(*outs, gts, metas(*SIZES, batch=BATCH))
    each = [
        corner_losses(
            [level[image].detach() for level in outs[3]],
            [level[image].detach() for level in outs[4]],
            [level[image] for level in own],
            OBJECTS[image][0],
        )
        for image in range(2)
    ]
    heat, offset = 0.0, 0.0
    for image in zip(*each, strict=True):  # both images, for each kind of corner
        positives = sum(count for _, _, count in image)
        heat += 0.25 * sum(value for value, _, _ in image) / positives / 2
        offset += sum(value for _, value, _ in image) / positives / 2
    assert losses['loss_corner_heat'].item() == pytest.approx(heat, rel=1e-5)
    assert losses['loss_corner_offset'].item() == pytest.approx(offset, rel=1e-5)


def test_padding_of_a_batch_has_no_influence_but_as_background():
    head, outs, gts, own = padded_batch()
    shapes = metas(*SIZES, batch=BATCH)
    losses = head.loss_by_feat(*outs, gts, shapes)
    foreground = losses.pop('loss_foreground')
    sum(losses.values()).backward()
    for maps in outs[:-1]:
        for out, inside in zip(maps, own, strict=True):
            assert not out.grad.masked_fill(inside, 0).any()
    assert all(maps[0].grad.any() for maps in outs[:-1])
    other = [
        [torch.where(i, out, 9 * torch.randn_like(out)) for out, i in zip(maps, own, strict=True)]
        for maps in outs
    ]
    changed = head.loss_by_feat(*other[:-1], outs[-1], gts, shapes)
    assert {name: changed[name] for name in losses} == losses
    # Foreground alone sees padding, as background; a stride of 64 does not divide these sizes.
    foreground.backward()
    for out, inside in zip(outs[-1][:2], own, strict=False):
        assert (out.grad > 0).masked_fill(inside, True).all()


def test_losses_of_a_batch_are_the_means_of_those_of_its_images():
    head, outs, gts, _ = padded_batch()
    losses = head.loss_by_feat(*outs, gts, metas(*SIZES, batch=BATCH))
    alone, counts = [], []
    for image, size in enumerate(SIZES):
        cells = [tuple(-(-side // stride) for side in size) for stride in STRIDES]
        crops = [
            [out[image : image + 1, :, :r, :c] for out, (r, c) in zip(maps, cells, strict=True)]
            for maps in outs
        ]
        meta = metas(size, batch=size)
        alone.append(head.loss_by_feat(*crops, [gts[image]], meta))
        priors = head._priors(crops[0])
        flags = head._valid(crops[0], meta[0])
        assert flags.all()
        boxes = head.points_to_boxes(
            torch.cat([each.flatten(2).transpose(1, 2) for each in crops[1]], 1), torch.cat(priors)
        )[0]
        init = head._assign_init(torch.cat(priors), flags, gts[image], None)
        refine = head._assign_refine(priors, boxes.detach(), flags, gts[image], None)
        counts.append([int((each >= 0).sum()) for each in (refine, init, refine)])
    assert min(min(each) for each in counts) > 0
    for index, name in enumerate(('loss_cls', 'loss_pts_init', 'loss_pts_refine')):
        weights = [each[index] for each in counts]
        parts = [each[name] * weight for each, weight in zip(alone, weights, strict=True)]
        torch.testing.assert_close(losses[name], sum(parts) / sum(weights))


def test_foreground_ends_with_its_own_image():
    head, outs, gts, _ = padded_batch()
    found = head.loss_by_feat(*outs, gts, metas(*SIZES, batch=BATCH))['loss_foreground']
    painted = torch.zeros(2, 3, 12, 12)
    for image, (boxes, labels) in enumerate(OBJECTS):
        rows, columns = (side // 8 for side in SIZES[image])
        for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
            weight = 1 / ((right - left) * (bottom - top))
            row, column = slice(top // 8, bottom // 8 + 1), slice(left // 8, right // 8 + 1)
            painted[image, label, :rows, :columns][row, column] = weight
    # Of a cell of a coarser map, the one that its upper left corner lies in.
    weights = [painted, painted[..., ::2, ::2], painted[..., ::6, ::6]]
    flat = [torch.cat([each.flatten() for each in maps]) for maps in (outs[-1], weights)]
    loss = VerificationFocalLoss(loss_weight=0.1)(*flat)
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize('size', [(0, 0), (0, 64), (32, 32)])
def test_images_without_points_on_a_level_or_at_all_are_no_nan(size):
    head = small_head()
    outs = head([torch.rand(2, 8, 8, 8), torch.rand(2, 8, 4, 4)])
    outs[0][0].retain_grad()
    gts = [objects([[2, 2, 28, 28]], [0]), objects([[9, 9, 50, 50]], [1])]
    losses = head.loss_by_feat(*outs, gts, metas(size, (64, 64), batch=(64, 64)))
    total = sum(losses.values())
    total.backward()
    assert total.isfinite()
    assert all(p.grad.isfinite().all() for p in head.parameters())


# What gradients pass.


def test_final_points_move_the_first_only_by_sampling():
    """Refined points are relative to a copy of the first; sampling passes a part on."""

    def gradient(part):
        torch.manual_seed(0)
        head = small_head(gradient_mul=part)
        for conv in (head.init_out, head.refine_sample, head.refine_out):
            torch.nn.init.normal_(conv.weight, std=0.1)
        points = head([torch.randn(1, 8, 6, 5)])[2][0]
        (points * torch.linspace(0, 1, points.numel()).view_as(points)).sum().backward()
        return head.init_out.weight.grad

    assert not gradient(0.0).any()
    whole = gradient(1.0)
    assert whole.any()
    torch.testing.assert_close(gradient(0.1), 0.1 * whole)
    assert RepPointsV2Head(3, 8, norm_cfg=GN, feat_channels=8).gradient_mul == 0.1


def test_both_towers_see_the_embedding_of_the_foreground():
    head = small_head()
    # What it may change by way of the points and corners stays as it is.
    for out in (head.init_out, *head.corner_heat_outs, *head.corner_offset_outs):
        out.weight.data.zero_()
    x = torch.randn(1, 8, 4, 4)
    before = head.forward_single(x)
    head.foreground_embedding.register_forward_hook(lambda *call: call[-1] + 1)
    changed = [not torch.equal(*pair) for pair in zip(before, head.forward_single(x), strict=True)]
    assert changed == [True, False, True, False, False, False]


def test_quality_is_within_0_and_1_for_boxes_of_any_kind():
    head = small_head()
    torch.manual_seed(0)
    boxes = 40 * torch.randn(1, 2000, 4)  # three of four are turned inside out
    gt = objects([[0, 0, 30, 40], [5, 5, 5, 5]], [1, 2])
    seen = []
    head.loss_cls.forward = lambda pred, target, *_, **__: seen.append(target) or pred.sum()
    assigned = torch.arange(2000) % 2
    head._loss_cls([torch.zeros(1, 3, 40, 50)], boxes, [assigned], [assigned >= 0], [gt])
    ((_, quality),) = seen
    assert quality.min() == 0 and 0 < quality.max() <= 1


# Inference.


def test_corners_move_to_the_hottest_of_four_cells():
    heat, offsets = torch.zeros(3, 4), torch.zeros(2, 3, 4)
    heat[1, 2], offsets[:, 1, 2] = 1.0, tensor([0.25, -0.5])
    heat[0, 0] = 5.0  # too far away to count
    heat[2, 3] = 0.5
    corners = tensor([[8.0 + 3, 8.0 + 7], [31.0, 23.0], [500.0, -3.0], [0.0, 0.0]])
    moved = refine_corners(corners, heat, offsets, 8)
    # In cells: the square from (1, 1) has (2, 1); the one at the border, from (2, 1), has it as
    # well; outside of the map, the nearest square has none that is hot and keeps its first cell.
    expected = tensor([[2.25, 0.5], [2.25, 0.5], [2.25, 0.5], [0.0, 0.0]]) * 8
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize('size', [(1, 1), (1, 3), (2, 1)])
def test_corners_of_tiny_maps_stay_on_them(size):
    heat = torch.arange(size[0] * size[1]).float().view(size)
    moved = refine_corners(tensor([[90.0, 90.0]]), heat, torch.zeros(2, *size), 8)
    assert moved.tolist() == [[(size[1] - 1) * 8, (size[0] - 1) * 8]]


def test_boxes_of_coarse_maps_take_corners_of_the_finest():
    head = small_head()
    scores = [torch.full((1, 3, 8, 8), -9.0), torch.full((1, 3, 4, 4), -9.0)]
    scores[1][0, 2, 1, 1] = 2.0
    points = [torch.zeros(1, 18, 8, 8), torch.zeros(1, 18, 4, 4)]
    points[1][0, :4, 1, 1] = tensor([-0.5, -0.5, 1.4, 1.4])  # 8 to 38.4 on the cell at (16, 16)
    heats = [torch.full((1, 2, 8, 8), -9.0), torch.full((1, 2, 4, 4), 9.0)]
    offsets = [torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 4, 4)]
    heats[0][0, 0, 1, 2], offsets[0][0, :2, 1, 2] = 3.0, tensor([-0.5, 0.25])
    heats[0][0, 1, 5, 4], offsets[0][0, 2:, 5, 4] = 3.0, tensor([0.75, 0.5])
    meta = dict(img_shape=(60, 64), scale_factor=(2.0, 2.0))
    foregrounds = scores
    (found,) = head.predict_by_feat(
        scores, points, points, heats, offsets, foregrounds, [meta], rescale=True
    )
    assert found.labels.tolist() == [2]
    assert found.scores.item() == pytest.approx(1 / (1 + math.exp(-2)))
    # Top left: the square of cells from (1, 1) has column 2, row 1; bottom right: from (4, 4),
    # column 4, row 5. In pixels, halved by the scale.
    expected = tensor([[(2 - 0.5) * 8, (1 + 0.25) * 8, (4 + 0.75) * 8, (5 + 0.5) * 8]]) / 2
    torch.testing.assert_close(found.bboxes, expected)


def test_settings_say_how_many_boxes_of_a_level_and_above_which_score():
    head = small_head()
    outs = list(head([torch.zeros(1, 8, 8, 8), torch.zeros(1, 8, 4, 4)]))
    scores = [torch.arange(3 * n * n).view(1, 3, n, n) / (n * n) - 1.5 for n in (8, 4)]
    meta = dict(img_shape=(64, 64), scale_factor=(1.0, 1.0))

    def found(**settings):
        cfg = ConfigDict(TEST, **settings)
        (instances,) = head.predict_by_feat(scores, *outs[1:], [meta], cfg, with_nms=False)
        return instances

    # Of the third class, all are above 0.5, of the second the later half.
    assert len(found(score_thr=0.5, nms_pre=1000)) == (64 + 16) + (31 + 7)
    best = found(score_thr=0.5, nms_pre=5)
    assert best.labels.bincount().tolist() == [0, 2 * 5, 2 * 5]
    assert (best.scores > 0.5).all()


def test_boxes_stay_inside_of_the_image():
    head = small_head()
    torch.manual_seed(1)
    for conv in (head.cls_out, head.init_out, head.refine_out, *head.corner_offset_outs):
        torch.nn.init.normal_(conv.weight, std=3)
    head.cls_out.bias.data.zero_()
    outs = head([torch.randn(1, 8, 5, 7), torch.randn(1, 8, 3, 4)])
    meta = dict(img_shape=(37, 53), scale_factor=(1.0, 1.0))
    (found,) = head.predict_by_feat(*outs, [meta])
    assert len(found) > 5
    assert (found.bboxes >= 0).all()
    assert (found.bboxes <= tensor([53.0, 37, 53, 37])).all()


def test_corner_pooling_looks_along_the_sides_of_a_box():
    torch.manual_seed(0)
    # Without norms, so that a change stays where it is.
    pooling = CornerPooling(2, 2, ('top', 'left'), None).double().eval()
    x = torch.rand(1, 2, 9, 9, dtype=torch.float64)
    moved = x.clone()
    moved[0, :, 4, 4] += 100.0
    changed = (pooling(x) != pooling(moved))[0].any(0)
    # The maximum runs from the bottom up and from right to left, with a cell around each of the
    # two convolutions of three cells: nothing below or to the right sees the change.
    assert changed[0, 4] and changed[4, 0]
    assert not changed[7:].any() and not changed[:, 7:].any()


# The whole detector.


@pytest.mark.parametrize('backbone', ['focal', 'resnet'])
@pytest.mark.parametrize('variant', ['bifpn', 'fpn'])
def test_detector_learns_with_either_backbone_and_variant(backbone, variant):
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs

    name = 'focal_reppointsv2_3x.py' if variant == 'bifpn' else 'focal_reppointsv2-fpn_3x.py'
    config = Config.fromfile(CONFIGS / name).model
    config.neck.out_channels = 32
    config.bbox_head.update(in_channels=32, feat_channels=32, corner_channels=8, stacked_convs=1)
    config.bbox_head.norm_cfg = dict(type='GN', num_groups=4)
    if backbone == 'resnet':
        config.backbone = dict(type='ResNet', depth=50, out_indices=(1, 2, 3))
        config.neck.in_channels = [512, 1024, 2048]
    else:
        config.backbone.arch = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))
        config.neck.in_channels = [16, 32, 64]
    model = MODELS.build(config)
    model.bbox_head.init_weights()
    # The second image has no object; neither has a size that is a multiple of 32.
    inputs = demo_mm_inputs(2, [(3, 67, 95), (3, 95, 61)], num_items=[3, 0], num_classes=3)
    data = model.data_preprocessor(inputs, training=True)
    losses = model.train()(**data, mode='loss')
    assert set(losses) == {
        *('loss_cls', 'loss_pts_init', 'loss_pts_refine'),
        *('loss_corner_heat', 'loss_corner_offset', 'loss_foreground'),
    }
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    for name, parameter in model.named_parameters():
        # Without positives on it, a level has nothing to be fused with by the highest weights.
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert len(model.eval()(**model.data_preprocessor(inputs), mode='predict')) == 2


def test_images_without_objects_pay_for_false_alarms_alone():
    head = small_head()
    outs = head([torch.rand(1, 8, 4, 4), torch.rand(1, 8, 2, 2)])
    losses = head.loss_by_feat(*outs, [objects([], [])], metas((32, 32), batch=(32, 32)))
    paid = {name for name, loss in losses.items() if loss.item() > 0}
    assert paid == {'loss_cls', 'loss_corner_heat', 'loss_foreground'}
    sum(losses.values()).backward()
