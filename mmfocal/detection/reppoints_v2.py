"""RepPointsV2: point sets that are refined, scored and verified.

Chen et al., "RepPoints V2: Verification Meets Regression for Object Detection", arXiv 2007.08508.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from mmcv.cnn import ConvModule
from mmcv.ops import DeformConv2d
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector
from mmdet.models.losses import QualityFocalLoss
from mmdet.models.task_modules.prior_generators import MlvlPointGenerator
from mmdet.models.utils import multi_apply
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import ConfigDict
from mmengine.model import bias_init_with_prob, normal_init
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from .verification import (
    CornerPooling,
    corner_radius,
    corner_targets,
    foreground_shape,
    foreground_weights,
    refine_corners,
)

KERNEL = 3  # side of the deformable convolutions, whose samples are the points
NUM_POINTS = KERNEL**2
PRIOR = 0.01  # probability of an object, a corner or foreground before training
TOP_LEFT, BOTTOM_RIGHT = slice(0, 2), slice(2, 4)  # of a box, and of the offsets of its corners


@MODELS.register_module()
class RepPointsV2Detector(SingleStageDetector):
    """Backbone, pyramid and :class:`RepPointsV2Head`.

    The published Swin and Focal results have a :class:`~mmfocal.detection.BiFPN` as pyramid; the
    paper's own have mmdet's ``FPN`` with group normalisation.
    """


@MODELS.register_module()
class RepPointsV2Head(BaseDenseHead):
    """Dense head that regresses point sets in two steps and verifies corners and foreground.

    An object is nine points: the first is the top left corner of its box, the second the bottom
    right one, and the others are free to lie where features help (``exact_minmax`` of the authors'
    code). Points are given as (y, x) in strides from the cell's own position, (column, row) times
    stride. A tower for classes and one for points read each map of the pyramid; a side branch says
    which cells lie inside of objects and where corners are (section 3.2), feeds both towers
    (section 3.3) and moves the corners of the final boxes (section 3.4).

    The defaults are the head of the Swin and Focal Transformer results, quality focal loss and
    GIoU; the configuration of the RepPointsV2 paper has ``loss_cls`` of type ``FocalLoss``.

    Args:
        num_classes: of objects.
        in_channels: of each map of the pyramid.
        feat_channels: inside of the head.
        corner_channels: of the maps that corner pooling pools.
        stacked_convs: convolutions of each tower.
        strides: pixels per cell of each map; powers of two, finest first.
        gradient_mul: part of the gradient that the first points get from what samples at them.
        point_base_scale: boxes enter the box losses in units of this many strides.
        norm_cfg: normalisation after convolutions.
        loss_cls: ``FocalLoss`` or ``QualityFocalLoss``; the latter asks for the IoU of the box.
        loss_bbox_init: between boxes of the first points and objects.
        loss_bbox_refine: between boxes of the final points and objects.
        loss_corner_heat: between the heat of corners and Gaussians.
        loss_corner_offset: between offsets of corners, in strides.
        loss_foreground: between foreground logits and what objects cover.
        train_cfg: ``init.assigner`` and ``refine.assigner``.
        test_cfg: ``nms_pre`` boxes of each level, ``score_thr``, ``nms`` and ``max_per_img``.
        init_cfg: initialisation.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        feat_channels: int = 256,
        corner_channels: int = 64,
        stacked_convs: int = 3,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        gradient_mul: float = 0.1,
        point_base_scale: int = 4,
        norm_cfg: dict = dict(type='GN', num_groups=32, requires_grad=True),
        loss_cls: dict = dict(type='QualityFocalLoss', beta=2.0),
        loss_bbox_init: dict = dict(type='InclusiveGIoULoss'),
        loss_bbox_refine: dict = dict(type='InclusiveGIoULoss', loss_weight=2.0),
        loss_corner_heat: dict = dict(
            type='GaussianFocalLoss', alpha=2.0, gamma=4.0, loss_weight=0.25
        ),
        loss_corner_offset: dict = dict(type='SmoothL1Loss', beta=1 / 9),
        loss_foreground: dict = dict(type='VerificationFocalLoss', loss_weight=0.1),
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.gradient_mul = gradient_mul
        self.point_base_scale = point_base_scale
        self.test_cfg = test_cfg
        self.prior_generator = MlvlPointGenerator(self.strides, offset=0)
        if train_cfg:
            self.init_assigner = TASK_UTILS.build(train_cfg['init']['assigner'])
            self.refine_assigner = TASK_UTILS.build(train_cfg['refine']['assigner'])

        self.loss_cls = MODELS.build(loss_cls)
        self.loss_bbox_init = MODELS.build(loss_bbox_init)
        self.loss_bbox_refine = MODELS.build(loss_bbox_refine)
        self.loss_corner_heat = MODELS.build(loss_corner_heat)
        self.loss_corner_offset = MODELS.build(loss_corner_offset)
        self.loss_foreground = MODELS.build(loss_foreground)

        width = feat_channels

        def conv(channels: int, kernel: int) -> ConvModule:
            return ConvModule(channels, width, kernel, padding=kernel // 2, norm_cfg=norm_cfg)

        def tower() -> nn.Sequential:
            return nn.Sequential(
                *(conv(width if index else in_channels, 3) for index in range(stacked_convs))
            )

        self.cls_convs, self.reg_convs = tower(), tower()
        self.shared_conv = conv(width, 3)
        self.foreground_out = nn.Conv2d(width, num_classes, 1)
        self.foreground_embedding = conv(width, 1)
        self.top_left = CornerPooling(width, corner_channels, ('top', 'left'), norm_cfg)
        self.bottom_right = CornerPooling(width, corner_channels, ('bottom', 'right'), norm_cfg)
        self.corner_heat_outs = nn.ModuleList(nn.Conv2d(width, 1, 3, padding=1) for _ in range(2))
        self.corner_offset_outs = nn.ModuleList(
            nn.Conv2d(width, 2, 3, padding=1) for _ in range(2)
        )
        self.init_conv = nn.Conv2d(width, width, 3, padding=1)
        self.init_out = nn.Conv2d(width, 2 * NUM_POINTS, 1)
        # Both sample at the first points and see, besides their tower, two heats and four offsets.
        self.cls_sample, self.refine_sample = (
            DeformConv2d(width + 6, width, KERNEL, padding=KERNEL // 2) for _ in range(2)
        )
        self.cls_out = nn.Conv2d(width, num_classes, 1)
        self.refine_out = nn.Conv2d(width, 2 * NUM_POINTS, 1)

        # Where an ordinary convolution samples, (y, x) row by row: offsets are relative to it.
        side = torch.arange(KERNEL, dtype=torch.float32) - KERNEL // 2
        grid = torch.cartesian_prod(side, side).flatten()
        self.register_buffer('grid', grid[:, None, None], persistent=False)

    def init_weights(self) -> None:
        """Small weights everywhere except in the corner units and the embedding."""
        super().init_weights()
        small = [self.cls_convs, self.reg_convs, self.shared_conv, self.init_conv, self.init_out]
        small += [self.cls_sample, self.refine_sample, self.refine_out, self.corner_offset_outs]
        for module in small:
            for layer in module.modules():
                if isinstance(layer, (nn.Conv2d, DeformConv2d)):
                    normal_init(layer, std=0.01)
        for out in (self.cls_out, self.foreground_out, *self.corner_heat_outs):
            normal_init(out, std=0.01, bias=bias_init_with_prob(PRIOR))

    def forward(self, feats: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """Predictions for each map ``(B, in_channels, H, W)``, for training and inference.

        Returns:
            Six lists with one tensor for each level:

            - class logits ``(B, num_classes, H, W)``;
            - first and final points, ``(B, 18, H, W)`` each: (y, x) of nine points in strides;
            - heat logits ``(B, 2, H, W)`` of top left and bottom right corners;
            - their offsets ``(B, 4, H, W)``: (x, y) of each kind in strides;
            - foreground logits ``(B, num_classes, H, W)``.
        """
        return multi_apply(self.forward_single, feats)

    def forward_single(self, x: Tensor) -> tuple[Tensor, ...]:
        """One level; see :meth:`forward`."""
        cls_feat, reg_feat = self.cls_convs(x), self.reg_convs(x)
        shared = self.shared_conv(reg_feat)

        foreground = self.foreground_out(shared)
        embedding = self.foreground_embedding(shared)
        corner_feats = self.top_left(shared + embedding), self.bottom_right(shared + embedding)
        heat, offsets = (
            torch.cat([out(feat) for out, feat in zip(outs, corner_feats, strict=True)], 1)
            for outs in (self.corner_heat_outs, self.corner_offset_outs)
        )

        cls_feat, reg_feat = cls_feat + embedding, reg_feat + embedding
        points_init = self.init_out(F.relu(self.init_conv(reg_feat)))
        sampled = points_init.detach().lerp(points_init, self.gradient_mul) - self.grid
        # In float32: bfloat16 is too coarse for fractions of an offset, and mmcv has no kernel.
        with without_autocast(x.device.type):
            cls_feat, reg_feat = (
                conv(torch.cat([feat, heat, offsets], 1).float(), sampled.float())
                for conv, feat in ((self.cls_sample, cls_feat), (self.refine_sample, reg_feat))
            )
        cls_score = self.cls_out(F.relu(cls_feat))
        points_refine = self.refine_out(F.relu(reg_feat)) + points_init.detach()
        return cls_score, points_init, points_refine, heat, offsets, foreground

    @staticmethod
    def points_to_boxes(points: Tensor, priors: Tensor) -> Tensor:
        """Boxes whose corners are the first two points.

        Args:
            points: ``(..., P, 18)``, (y, x) of nine points in strides.
            priors: ``(P, 4)``, x, y, and twice the stride, in pixels.

        Returns:
            ``(..., P, 4)`` boxes x1, y1, x2, y2 in pixels.
        """
        y1, x1, y2, x2 = points[..., :4].unbind(-1)
        shifts = torch.stack([x1, y1, x2, y2], -1)
        return shifts * priors[:, 2:].repeat(1, 2) + priors[:, :2].repeat(1, 2)

    def _priors(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``(H W, 4)`` of each map: x and y of its cells, and twice the stride, in pixels."""
        sizes = [each.shape[-2:] for each in maps]
        return self.prior_generator.grid_priors(sizes, device=maps[0].device, with_stride=True)

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        points_init: list[Tensor],
        points_refine: list[Tensor],
        heats: list[Tensor],
        corner_offsets: list[Tensor],
        foregrounds: list[Tensor],
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: list[InstanceData] | None = None,
    ) -> dict[str, Tensor]:
        """Six losses, each over all levels and images with one normaliser.

        Args:
            cls_scores: and what follows, up to ``foregrounds``: see :meth:`forward`.
            batch_gt_instances: objects of each image: ``bboxes`` in pixels and ``labels``.
            batch_img_metas: with ``pad_shape`` and ``batch_input_shape`` in pixels.
            batch_gt_instances_ignore: regions of each image that assigners may leave out.
        """
        level_priors = self._priors(cls_scores)
        priors = torch.cat(level_priors)
        strides = priors[:, 2]
        boxes_init = self.points_to_boxes(flatten_levels(points_init), priors)
        boxes_refine = self.points_to_boxes(flatten_levels(points_refine), priors)

        ignored = batch_gt_instances_ignore or [None] * len(batch_img_metas)
        valid = [self._valid(cls_scores, meta) for meta in batch_img_metas]
        init = [
            self._assign_init(priors, *each)
            for each in zip(valid, batch_gt_instances, ignored, strict=True)
        ]
        refine = [
            self._assign_refine(level_priors, *each)
            for each in zip(boxes_init.detach(), valid, batch_gt_instances, ignored, strict=True)
        ]
        losses = dict(
            loss_cls=self._loss_cls(cls_scores, boxes_refine, refine, valid, batch_gt_instances),
            loss_pts_init=self._loss_boxes(
                self.loss_bbox_init, boxes_init, init, batch_gt_instances, strides
            ),
            loss_pts_refine=self._loss_boxes(
                self.loss_bbox_refine, boxes_refine, refine, batch_gt_instances, strides
            ),
        )
        losses['loss_corner_heat'], losses['loss_corner_offset'] = self._loss_corners(
            flatten_levels(heats),
            flatten_levels(corner_offsets),
            level_priors,
            valid,
            batch_gt_instances,
        )
        losses['loss_foreground'] = self._loss_foreground(
            foregrounds, batch_gt_instances, batch_img_metas
        )
        return losses

    def _valid(self, maps: Sequence[Tensor], img_meta: dict) -> Tensor:
        """``(P,)`` bool: which points lie on the image itself, not on what batching added."""
        sizes, shape = [each.shape[-2:] for each in maps], img_meta['pad_shape']
        return torch.cat(self.prior_generator.valid_flags(sizes, shape, device=maps[0].device))

    def _assign_init(
        self,
        priors: Tensor,
        valid: Tensor,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None,
    ) -> Tensor:
        """``(P,)`` int: the object whose box the first points of each cell are to give, or -1."""
        # mmdet's PointAssigner counts points on the CPU whatever device they are on.
        candidates = InstanceData(priors=priors[valid, :3].cpu())
        gt = InstanceData(bboxes=gt_instances.bboxes.cpu(), labels=gt_instances.labels.cpu())
        result = self.init_assigner.assign(candidates, gt, gt_instances_ignore)
        return scatter_valid(result.gt_inds.to(priors.device) - 1, valid)

    def _assign_refine(
        self,
        level_priors: list[Tensor],
        boxes: Tensor,
        valid: Tensor,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None,
    ) -> Tensor:
        """``(P,)`` int: the object that each cell is to score and bound, or -1 for background."""
        counts = [len(priors) for priors in level_priors]
        result = self.refine_assigner.assign(
            InstanceData(priors=boxes[valid]),
            [int(flags.sum()) for flags in valid.split(counts)],
            gt_instances,
            gt_instances_ignore,
        )
        return scatter_valid(result.gt_inds - 1, valid)

    def _loss_cls(
        self,
        cls_scores: list[Tensor],
        boxes: Tensor,
        assigned: list[Tensor],
        valid: list[Tensor],
        batch_gt_instances: list[InstanceData],
    ) -> Tensor:
        labels = torch.full(boxes.shape[:2], self.num_classes, device=boxes.device)
        quality = boxes.new_zeros(boxes.shape[:2])
        for image, (objects, gt) in enumerate(zip(assigned, batch_gt_instances, strict=True)):
            positive = objects >= 0
            objects = objects[positive]
            labels[image, positive] = gt.labels[objects]
            # From 0 to 1: a box that is turned inside out has no overlap.
            quality[image, positive] = bbox_overlaps(
                boxes[image, positive].detach(), gt.bboxes[objects], is_aligned=True
            )
        target = labels.flatten()
        if isinstance(self.loss_cls, QualityFocalLoss):
            target = target, quality.flatten()
        return self.loss_cls(
            flatten_levels(cls_scores).flatten(0, 1),
            target,
            torch.stack(valid).flatten().float(),
            avg_factor=count_positives(assigned),
        )

    def _loss_boxes(
        self,
        loss: nn.Module,
        boxes: Tensor,
        assigned: list[Tensor],
        batch_gt_instances: list[InstanceData],
        strides: Tensor,
    ) -> Tensor:
        predicted, wanted = [], []
        for each, objects, gt in zip(boxes, assigned, batch_gt_instances, strict=True):
            positive = objects >= 0
            unit = self.point_base_scale * strides[positive, None]
            predicted.append(each[positive] / unit)
            wanted.append(gt.bboxes[objects[positive]] / unit)
        return loss(torch.cat(predicted), torch.cat(wanted), avg_factor=count_positives(assigned))

    def _loss_corners(
        self,
        heats: Tensor,
        offsets: Tensor,
        level_priors: list[Tensor],
        valid: list[Tensor],
        batch_gt_instances: list[InstanceData],
    ) -> tuple[Tensor, Tensor]:
        """Of heat and of offsets, each the mean of both kinds of corners, at valid points only."""
        priors = torch.cat(level_priors)
        counts = [len(each) for each in level_priors]
        everywhere = torch.stack(valid)
        heats, offsets = heats[everywhere], offsets[everywhere]
        heat_loss, offset_loss = [], []
        for kind, corner in enumerate((TOP_LEFT, BOTTOM_RIGHT)):
            targets, avg_factor = [], 0
            for flags, gt in zip(valid, batch_gt_instances, strict=True):
                boxes = gt.bboxes
                heat, offset = corner_targets(
                    priors[flags, :2],
                    priors[flags, 2],
                    [int(each.sum()) for each in flags.split(counts)],
                    boxes[:, corner],
                    corner_radius((boxes[:, 2:] - boxes[:, :2]).clamp(min=0)),
                )
                targets.append((heat, offset))
                avg_factor += max(int((heat == 1).sum()), 1)
            heat, offset = (torch.cat(each) for each in zip(*targets, strict=True))
            positive = heat == 1
            heat_loss.append(
                self.loss_corner_heat(heats[:, kind].sigmoid(), heat, avg_factor=avg_factor)
            )
            offset_loss.append(
                self.loss_corner_offset(
                    offsets[:, corner][positive], offset[positive], avg_factor=avg_factor
                )
            )
        return sum(heat_loss) / 2, sum(offset_loss) / 2

    def _loss_foreground(
        self,
        foregrounds: list[Tensor],
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
    ) -> Tensor:
        """Objects end with their own image; as in the authors' code, what batching adds to it is
        background.
        """
        full = foreground_shape(batch_img_metas[0]['batch_input_shape'])
        painted = []
        for gt, meta in zip(batch_gt_instances, batch_img_metas, strict=True):
            own = foreground_weights(gt.bboxes, gt.labels, self.num_classes, meta['pad_shape'][:2])
            added = [size - side for size, side in zip(full, own.shape[1:], strict=True)]
            painted.append(F.pad(own, (0, added[1], 0, added[0])))
        weights = [
            F.interpolate(torch.stack(painted), size=each.shape[-2:]) for each in foregrounds
        ]
        return self.loss_foreground(flatten_levels(foregrounds), flatten_levels(weights))

    def predict_by_feat(
        self,
        cls_scores: list[Tensor],
        points_init: list[Tensor],
        points_refine: list[Tensor],
        heats: list[Tensor],
        corner_offsets: list[Tensor],
        foregrounds: list[Tensor],
        batch_img_metas: list[dict],
        cfg: ConfigDict | None = None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> list[InstanceData]:
        """Objects of each image: ``bboxes`` in pixels, ``scores`` and ``labels``.

        Args:
            cls_scores: and what follows, up to ``foregrounds``: see :meth:`forward`.
            batch_img_metas: with ``img_shape`` and, to rescale, ``scale_factor``.
            cfg: in place of ``test_cfg``.
            rescale: whether boxes are given in pixels of the original image.
            with_nms: whether overlapping boxes of a class are suppressed.
        """
        del points_init, foregrounds  # only used in training
        cfg = cfg or self.test_cfg
        level_priors = self._priors(cls_scores)
        results = []
        for image, meta in enumerate(batch_img_metas):
            levels = [
                [each[image].detach() for each in maps]
                for maps in (cls_scores, points_refine, heats, corner_offsets)
            ]
            instances = self._predict_image(*levels, level_priors, meta, cfg)
            results.append(self._bbox_post_process(instances, cfg, rescale, with_nms, meta))
        return results

    def _predict_image(
        self,
        cls_scores: list[Tensor],
        points: list[Tensor],
        heats: list[Tensor],
        corner_offsets: list[Tensor],
        level_priors: list[Tensor],
        img_meta: dict,
        cfg: ConfigDict,
    ) -> InstanceData:
        """The best boxes of each level with every class that they may have, before NMS."""
        height, width = img_meta['img_shape'][:2]

        def clamp(boxes: Tensor) -> Tensor:
            limit = boxes.new_tensor([width, height, width, height])
            return torch.minimum(boxes.clamp(min=0), limit)

        all_boxes, all_scores = [], []
        for level, priors in enumerate(level_priors):
            scores = cls_scores[level].flatten(1).T.float().sigmoid()
            best = scores.amax(1).topk(min(cfg.get('nms_pre', 1000), len(scores))).indices
            shifts = points[level].flatten(1).T.float()
            boxes = clamp(self.points_to_boxes(shifts[best], priors[best]))
            if level > 0:
                # A finer map places corners better: the first for two levels, then the second.
                finer = (level - 1) // 2
                boxes = torch.cat(
                    [
                        refine_corners(
                            boxes[:, corner],
                            heats[finer][kind].float(),
                            corner_offsets[finer][corner].float(),
                            self.strides[finer],
                        )
                        for kind, corner in enumerate((TOP_LEFT, BOTTOM_RIGHT))
                    ],
                    1,
                )
            all_boxes.append(clamp(boxes))
            all_scores.append(scores[best])
        boxes, scores = torch.cat(all_boxes), torch.cat(all_scores)
        box, label = (scores > cfg.get('score_thr', 0.05)).nonzero().unbind(1)
        return InstanceData(bboxes=boxes[box], scores=scores[box, label], labels=label)


def without_autocast(device: str) -> AbstractContextManager:
    """Turns mixed precision off on a kind of device, if it has any."""
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()  # such as 'meta'


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Maps ``(B, C, H_i, W_i)`` as one float32 ``(B, P, C)``, level after level, row by row."""
    return torch.cat([each.flatten(2).transpose(1, 2) for each in maps], 1).float()


def scatter_valid(values: Tensor, valid: Tensor) -> Tensor:
    """``values`` of valid points at their places among all ``(P,)`` points; -1 elsewhere."""
    everywhere = torch.full_like(valid, -1, dtype=torch.long)
    everywhere[valid] = values
    return everywhere


def count_positives(assigned: Sequence[Tensor]) -> float:
    """Cells with an object, at least one for each image: the normaliser of losses."""
    return float(sum(max(int((objects >= 0).sum()), 1) for objects in assigned))
