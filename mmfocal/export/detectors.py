"""Detectors of mmdet as graphs: raw pixels in, boxes, scores, labels and masks out.

mmdet decides in Python, image by image, what is kept; here one graph does so for all images of a
batch. Layers are mmdet's own, and every rule is that of the mmdet class that it names. The result
is that of ``model.predict`` for an image of the same size, except that rounding may exchange
detections whose scores or overlaps are the same to the last digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfocal.utils.config import type_name
from mmfocal.utils.errors import UserError

from .graphs import ImageGraph
from .operators import MOST_PLACES, nms, roi_align


class DetectorGraph(ImageGraph):
    """A detector, whose outputs name the image of each detection.

    Outputs, of ``N`` detections in all images together, those of an image by descending score:

    * ``boxes`` float32 ``(N, 4)``: left, top, right and bottom in pixels of the input,
    * ``scores`` float32 ``(N,)``, ``labels`` int64 ``(N,)``: index of the class,
    * ``images`` int64 ``(N,)``: index of the image in the batch.
    """

    output_names = ('boxes', 'scores', 'labels', 'images')

    @staticmethod
    def expected(model: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
        """As the outputs, but with masks of pixels, bool ``(N, H, W)``."""
        from mmdet.structures import DetDataSample
        from mmengine.structures import InstanceData

        size = tuple(image.shape[-2:])
        info = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
        samples = [DetDataSample(metainfo=info) for _ in image]
        inputs = dict(inputs=list(image.flip(1)), data_samples=samples)
        data = model.data_preprocessor(inputs, False)
        predicted = model.predict(data['inputs'], data['data_samples'], rescale=False)
        counts = torch.tensor([len(sample.pred_instances) for sample in predicted])
        found = InstanceData.cat([sample.pred_instances for sample in predicted])
        images = torch.arange(len(image)).repeat_interleave(counts)
        masks = (found.masks,) if model.with_mask else ()
        return found.bboxes, found.scores, found.labels, images, *masks


class SingleStageGraph(DetectorGraph):
    """RetinaNet, ATSS and other one-stage detectors whose heads predict deltas of anchors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.head = Anchors(self.model.bbox_head, model.test_cfg)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.head(self.features(image), image.shape[-2:])


class TwoStageGraph(DetectorGraph):
    """Faster R-CNN and Mask R-CNN.

    Outputs as of :class:`DetectorGraph`, and ``masks`` float32 ``(N, 28, 28)`` if there is a
    mask head: probabilities on a grid over the box, see :func:`mmfocal.export.paste_masks`.
    """

    newest_opset: ClassVar[int] = 21  # from 22 on ONNX Runtime lacks RoiAlign

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.rpn = Anchors(self.model.rpn_head, model.test_cfg.rpn)
        self.regions = Regions(self.model.roi_head, model.test_cfg.rcnn)
        if model.with_mask:
            self.output_names = (*DetectorGraph.output_names, 'masks')

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.features(image)
        boxes, _, _, images = self.rpn(features, image.shape[-2:])
        return self.regions(features, boxes, images, image.shape[0], image.shape[-2:])


class Anchors(nn.Module):
    """A head of anchors, after ``BaseDenseHead`` and ``RPNHead`` of mmdet.

    Of each level the ``nms_pre`` best pairs of an anchor and a class are candidates; the
    candidates of a class, or those of a level in a region proposal network, suppress one another.
    """

    def __init__(self, head: nn.Module, test_cfg: dict) -> None:
        super().__init__()
        from mmdet.models.dense_heads import RPNHead

        _refuse_own_activation(head.loss_cls, 'custom_cls_channels')
        self.head = head
        self.decode = Deltas(head.bbox_coder)
        self.proposes = isinstance(head, RPNHead)
        self.score_thr = 0.0 if self.proposes else float(test_cfg.get('score_thr', 0))
        self.candidates = int(test_cfg.get('nms_pre', -1))
        self.min_size = float(test_cfg.get('min_bbox_size', -1))
        self.suppress = Suppression(test_cfg)

    def forward(
        self, features: Sequence[Tensor], size: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes ``(N, 4)``, scores ``(N,)``, labels or levels ``(N,)`` and images ``(N,)``.

        Args:
            features: maps of the levels.
            size: height and width of the image without padding.
        """
        scores, deltas, *factors = self.head(features)
        grids = self.head.prior_generator.grid_priors(
            [level.shape[-2:] for level in scores], device=scores[0].device
        )
        levels = [
            self._best(number, *level)
            for number, level in enumerate(zip(grids, scores, deltas, *factors, strict=True))
        ]
        anchors, deltas, scores, groups = (
            torch.cat(parts, dim=1) for parts in zip(*levels, strict=True)
        )
        boxes = self.decode(anchors, deltas, size)
        if self.min_size >= 0:
            sides = boxes[..., 2:] - boxes[..., :2]
            scores = scores * (sides > self.min_size).all(dim=-1)
        images, numbers = self.suppress(boxes, scores, groups)
        return boxes[images, numbers], scores[images, numbers], groups[images, numbers], images

    def _best(
        self, number: int, anchors: Tensor, scores: Tensor, deltas: Tensor, *factors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Anchors and deltas ``(B, k, 4)``, scores and groups ``(B, k)`` of the best of a level.

        A score is 0 where it is not above the threshold.
        """
        channels = self.head.cls_out_channels
        scores = scores.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, channels))
        scores = scores.sigmoid() if self.head.use_sigmoid_cls else scores.softmax(-1)[..., :-1]
        classes = scores.shape[-1]
        scores = scores.flatten(1)
        count = scores.shape[1]
        if self.candidates > 0:
            count = torch.sym_min(self.candidates, count)
        scores, places = scores.topk(count, dim=1)
        scores = scores * (scores > self.score_thr)
        places, labels = places // classes, places % classes
        deltas = deltas.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))
        deltas = deltas.gather(1, places[..., None].expand(-1, -1, 4))
        for factor in factors:
            factor = factor.permute(0, 2, 3, 1).flatten(1).sigmoid()
            scores = scores * factor.gather(1, places)
        groups = torch.full_like(labels, number) if self.proposes else labels
        return anchors[places], deltas, scores, groups


class Regions(nn.Module):
    """The second stage, after ``StandardRoIHead`` of mmdet."""

    def __init__(self, head: nn.Module, test_cfg: dict) -> None:
        super().__init__()
        if head.with_shared_head:
            raise UserError('A shared head of regions cannot be exported.')
        _refuse_own_activation(head.bbox_head.loss_cls, 'custom_activation')
        self.classify = RegionHead(head.bbox_roi_extractor, head.bbox_head)
        self.segment = None
        if head.with_mask:
            self.segment = RegionHead(head.mask_roi_extractor, head.mask_head)
        self.decode = Deltas(head.bbox_head.bbox_coder)
        self.score_thr = float(test_cfg.score_thr)
        self.suppress = Suppression(test_cfg)

    def forward(
        self,
        features: Sequence[Tensor],
        proposals: Tensor,
        images: Tensor,
        batch: int,
        size: Sequence[int],
    ) -> tuple[Tensor, ...]:
        """The outputs of :class:`TwoStageGraph`.

        Args:
            features: maps of the levels.
            proposals: float32 ``(P, 4)``, boxes.
            images: int64 ``(P,)``, whose image they are in.
            batch: number of images.
            size: height and width of the image without padding.
        """
        scores, deltas = self.classify(features, proposals, images)
        scores = scores.softmax(dim=-1)[:, :-1]
        proposal, label = _places(scores > self.score_thr).unbind(1)
        scores, images = scores[proposal, label], images[proposal]
        of_class = torch.zeros_like(label) if self.classify.head.reg_class_agnostic else label
        deltas = deltas.unflatten(1, (-1, 4))[proposal, of_class]
        boxes = self.decode(proposals[proposal], deltas, size)

        # Each image sees the candidates of all, those of others with a score of 0.
        own = torch.arange(batch, device=images.device)[:, None] == images
        images, chosen = self.suppress(
            boxes.expand(batch, -1, -1), scores * own, label.expand(batch, -1)
        )
        boxes, scores, labels = boxes[chosen], scores[chosen], label[chosen]
        if self.segment is None:
            return boxes, scores, labels, images
        masks = self.segment(features, boxes, images)
        of_class = torch.zeros_like(labels) if self.segment.head.class_agnostic else labels
        masks = masks[torch.arange(labels.shape[0], device=labels.device), of_class]
        return boxes, scores, labels, images, masks.sigmoid()


class RegionHead(nn.Module):
    """A head with its ``SingleRoIExtractor`` of mmdet: each box sees the map for its size."""

    def __init__(self, extractor: nn.Module, head: nn.Module) -> None:
        super().__init__()
        from mmcv.ops import RoIAlign

        layer = extractor.roi_layers[0]
        if not (isinstance(layer, RoIAlign) and layer.aligned and layer.pool_mode == 'avg'):
            raise UserError(
                f'Features of regions are exported from RoIAlign with aligned=True and means, got '
                f'{layer}'
            )
        self.head, self.extractor = head, extractor
        self.size, self.samples = layer.output_size, layer.sampling_ratio
        self.scales = [layer.spatial_scale for layer in extractor.roi_layers]

    def forward(
        self, features: Sequence[Tensor], boxes: Tensor, images: Tensor
    ) -> Tensor | tuple[Tensor, ...]:
        """What the head gives for ``n`` boxes ``(n, 4)`` of ``images`` ``(n,)``."""
        levels = self.extractor.map_roi_levels(
            torch.cat([images[:, None].to(boxes), boxes], dim=1), len(self.scales)
        )
        parts, order = [], []
        for level, (of_level, scale) in enumerate(zip(features, self.scales, strict=False)):
            numbers = _places(levels == level).squeeze(1)
            where = boxes[numbers], images[numbers], *self.size
            parts.append(roi_align(of_level, *where, scale, self.samples))
            order.append(numbers)
        regions = torch.cat(parts)[torch.cat(order).argsort()]
        # With an empty region appended, since not all layers take a batch of none.
        out = self.head(F.pad(regions, (0, 0, 0, 0, 0, 0, 0, 1)))
        return out[:-1] if isinstance(out, Tensor) else tuple(each[:-1] for each in out)


class Deltas(nn.Module):
    """Boxes from deltas, after ``DeltaXYWHBBoxCoder`` of mmdet."""

    def __init__(self, coder: nn.Module) -> None:
        super().__init__()
        if type(coder).__name__ != 'DeltaXYWHBBoxCoder' or coder.add_ctr_clamp:
            raise UserError(
                'Boxes are exported that are decoded by DeltaXYWHBBoxCoder without add_ctr_clamp, '
                f'got {type(coder).__name__}'
            )
        self.register_buffer('means', torch.tensor(coder.means))
        self.register_buffer('stds', torch.tensor(coder.stds))
        self.clips = coder.clip_border

    def forward(self, boxes: Tensor, deltas: Tensor, size: Sequence[int]) -> Tensor:
        """float32 ``(..., 4)`` of boxes and deltas to the same, within ``size`` of the image."""
        deltas = deltas * self.stds + self.means
        centre = (boxes[..., :2] + boxes[..., 2:]) * 0.5
        sides = boxes[..., 2:] - boxes[..., :2]
        most = abs(math.log(16 / 1000))  # as decode() of the coder by default
        centre = centre + sides * deltas[..., :2]
        half = sides * deltas[..., 2:].clamp(min=-most, max=most).exp() * 0.5
        boxes = torch.cat([centre - half, centre + half], dim=-1)
        if not self.clips:
            return boxes
        height, width = size
        left, top, right, bottom = boxes.unbind(-1)
        left, right = (x.clamp(min=0, max=width) for x in (left, right))
        top, bottom = (y.clamp(min=0, max=height) for y in (top, bottom))
        return torch.stack([left, top, right, bottom], dim=-1)


class Suppression(nn.Module):
    """Non-maximum suppression within groups, after ``batched_nms`` of mmcv."""

    def __init__(self, test_cfg: dict) -> None:
        super().__init__()
        settings = dict(test_cfg.nms)
        kind = type_name(settings) or 'nms'
        settings.pop('type', None)
        threshold = settings.pop('iou_threshold', None)
        if kind != 'nms' or threshold is None or settings:
            raise UserError(
                "Non-maximum suppression is exported that is dict(type='nms', iou_threshold=...), "
                f'got {dict(test_cfg.nms)}'
            )
        self.iou_threshold, self.most = float(threshold), int(test_cfg.max_per_img)

    def forward(self, boxes: Tensor, scores: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Images and numbers of the boxes that are kept, int64 ``(N,)`` each.

        Args:
            boxes: float32 ``(B, n, 4)``.
            scores: float32 ``(B, n)``, 0 for what is no candidate.
            groups: int64 ``(B, n)``; boxes of different groups do not suppress each other.
        """
        # As in mmcv, rounding included, each group is moved out of the others' reach.
        candidates = boxes * (scores > 0)[..., None]
        reach = F.pad(candidates.flatten(1), (0, 1)).amax(dim=1) + 1
        moved = boxes + (groups * reach[:, None])[..., None]
        return nms(moved, scores, self.iou_threshold, self.most).unbind(1)


def _refuse_own_activation(loss: nn.Module, flag: str) -> None:
    if getattr(loss, flag, False):
        raise UserError(
            f'{type(loss).__name__} has an activation of its own, which cannot be exported.'
        )


def _places(mask: Tensor) -> Tensor:
    """Where a mask is set, int64 ``(n, dimensions)``."""
    places = mask.nonzero()
    # Sums of numbers without a bound have bounds that ONNX has no integers for.
    torch._check(places.shape[0] <= MOST_PLACES)
    return places
