"""Test-time augmentation of boxes and instance masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.ops import batched_nms
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import HybridTaskCascadeRoIHead, SparseRoIHead
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip, scale_boxes
from mmengine.model import BaseTTAModel
from mmengine.structures import InstanceData
from torch import Tensor, nn

# COCO's object sizes: areas in pixels of the original image.
AREAS = {'small': (0, 32**2), 'medium': (32**2, 96**2), 'large': (96**2, float('inf'))}


@MODELS.register_module()
class InstanceTTAModel(BaseTTAModel):
    """Detects in several views of an image and merges boxes, then masks.

    Every view, an image at some scale and maybe flipped, gives boxes without suppression; those
    of all views are suppressed together. Then every view gives a mask for each remaining box, and
    the masks are averaged. mmdet before version 3 did the same; its ``DetTTAModel`` suppresses
    boxes in each view first, and refuses masks.

    Args:
        module: the detector, or its config: of one stage, or of two with a region proposal
            network.
        tta_cfg: how boxes are merged: ``nms``, as of :func:`mmcv.ops.batched_nms`, and
            ``max_per_img``, the number of boxes that are left.
        object_sizes: for each scale, which sizes of objects (``'small'``, ``'medium'``,
            ``'large'``, by COCO's areas in the original image) it contributes. Of the lists in
            ``TestTimeAug``, the scales come first, so that all views of a scale follow each
            other. All sizes by default.
        data_preprocessor: in place of the detector's own.

    Raises:
        ValueError: an unknown size, or a detector that gives its final boxes at once.
    """

    def __init__(
        self,
        module: dict | nn.Module,
        tta_cfg: dict,
        object_sizes: Sequence[Sequence[str]] | None = None,
        data_preprocessor: dict | nn.Module | None = None,
    ) -> None:
        super().__init__(module, data_preprocessor)
        if not isinstance(self.module, (SingleStageDetector, TwoStageDetector)) or isinstance(
            getattr(self.module, 'roi_head', None), SparseRoIHead
        ):
            raise ValueError(
                'InstanceTTAModel: expected a detector of mmdet that suppresses overlapping '
                f'boxes, of one stage or two, got {type(self.module).__name__}.'
            )
        unknown = {size for sizes in object_sizes or () for size in sizes} - set(AREAS)
        if unknown:
            raise ValueError(
                f'InstanceTTAModel: expected object_sizes of {", ".join(AREAS)}, got '
                f'{sorted(unknown)}.'
            )
        self.tta_cfg = tta_cfg
        self.object_sizes = object_sizes

    def merge_preds(self, data_samples_list: list[list[DetDataSample]]) -> list[DetDataSample]:
        """Suppresses the boxes of all views of an image together.

        Args:
            data_samples_list: for each image a list over views, with ``pred_instances`` in pixels
                of the original image, upright.

        Returns:
            The first view of each image, with the instances that are left.
        """
        for views in data_samples_list:
            merged = InstanceData.cat([view.pred_instances for view in views])
            if len(merged):
                suppressed, keep = batched_nms(
                    merged.bboxes, merged.scores, merged.labels, self.tta_cfg['nms']
                )
                merged = merged[keep]
                merged.scores = suppressed[:, -1]  # soft suppression lowers them
            views[0].pred_instances = merged[: self.tta_cfg['max_per_img']]
        return [views[0] for views in data_samples_list]

    @torch.no_grad()
    def test_step(self, data: dict) -> list[DetDataSample]:
        """Detects in a batch of images.

        Args:
            data: ``inputs`` and ``data_samples``, for each view a list over images, as
                ``TestTimeAug`` and ``PackDetInputs`` give them, with ``flip`` among the meta
                keys.

        Returns:
            A sample for each image, with ``pred_instances`` in pixels of the original image.
        """
        num_views = len(data['inputs'])
        if self.object_sizes and num_views % len(self.object_sizes):
            raise ValueError(
                f'InstanceTTAModel: expected as many views of each of the '
                f'{len(self.object_sizes)} scales of object_sizes, got {num_views} views.'
            )

        features, samples = [], []
        for index in range(num_views):
            view = {key: of_views[index] for key, of_views in data.items()}
            view = self.module.data_preprocessor(view, False)
            features.append(self.module.extract_feat(view['inputs']))
            samples.append(view['data_samples'])
            found = self._boxes(features[-1], samples[-1])
            for sample, instances in zip(samples[-1], found, strict=True):
                if self.object_sizes:
                    sizes = self.object_sizes[index * len(self.object_sizes) // num_views]
                    instances = keep_sizes(instances, sizes)
                sample.pred_instances = instances

        results = self.merge_preds([list(of_image) for of_image in zip(*samples, strict=True)])
        if isinstance(self.module, TwoStageDetector) and self.module.roi_head.with_mask:
            self._add_masks([result.pred_instances for result in results], features, samples)
        return results

    def _boxes(
        self, features: tuple[Tensor, ...], samples: list[DetDataSample]
    ) -> list[InstanceData]:
        """Boxes in one view of each image, not yet suppressed, upright in the original image."""
        metas = [sample.metainfo for sample in samples]
        if isinstance(self.module, SingleStageDetector):
            head = self.module.bbox_head
            outs = head(features)
            found = head.predict_by_feat(
                *outs, batch_img_metas=metas, cfg=head.test_cfg, rescale=True, with_nms=False
            )
        else:
            head = self.module.roi_head
            proposals = self.module.rpn_head.predict(features, samples, rescale=False)
            # Without a test_cfg, mmdet's heads give all regions, each with a score of all classes.
            semantic = self._semantic(features, 'semantic_feat')
            regions = head.predict_bbox(features, metas, proposals, None, rescale=True, **semantic)
            found = [by_class(each, head.test_cfg.score_thr) for each in regions]
        for instances, meta in zip(found, metas, strict=True):
            if meta.get('flip'):
                instances.bboxes = bbox_flip(
                    instances.bboxes, meta['ori_shape'], meta['flip_direction']
                )
        return found

    def _semantic(self, features: tuple[Tensor, ...], name: str) -> dict[str, Tensor | None]:
        """What a branch of Hybrid Task Cascade wants besides the features, by its own name."""
        head = self.module.roi_head
        if not isinstance(head, HybridTaskCascadeRoIHead):
            return {}
        return {name: head.semantic_head(features)[1] if head.with_semantic else None}

    def _add_masks(
        self,
        merged: list[InstanceData],
        features: list[tuple[Tensor, ...]],
        samples: list[list[DetDataSample]],
    ) -> None:
        """Adds ``masks (n, H, W)`` bool in the original image to the boxes of each image."""
        head = self.module.roi_head
        threshold = head.test_cfg.mask_thr_binary
        sums: list[Tensor | int] = [0] * len(merged)  # int16, of 128 views at most
        # With a negative threshold, mmdet's heads give probabilities as bytes.
        head.test_cfg.mask_thr_binary = -1
        try:
            for view_features, view_samples in zip(features, samples, strict=True):
                metas, regions = [], []
                for instances, sample in zip(merged, view_samples, strict=True):
                    meta = dict(sample.metainfo)
                    boxes = instances.bboxes
                    if meta.get('flip'):
                        boxes = bbox_flip(boxes, meta['ori_shape'], meta['flip_direction'])
                    boxes = scale_boxes(boxes, [float(scale) for scale in meta['scale_factor']])
                    regions.append(InstanceData(bboxes=boxes, labels=instances.labels))
                    # Masks are turned back here. What mmdet does with this entry is for masks
                    # that were turned already.
                    meta['flip'] = False
                    metas.append(meta)
                found = head.predict_mask(
                    x=view_features,
                    batch_img_metas=metas,
                    results_list=regions,
                    rescale=True,
                    **self._semantic(view_features, 'semantic_heat'),
                )
                for image, (instances, sample) in enumerate(zip(found, view_samples, strict=True)):
                    masks = turned_back(instances.masks, sample.metainfo)
                    sums[image] += masks.short()
        finally:
            head.test_cfg.mask_thr_binary = threshold
        for instances, total in zip(merged, sums, strict=True):
            instances.masks = total >= threshold * 255 * len(features)


def keep_sizes(instances: InstanceData, sizes: Sequence[str]) -> InstanceData:
    """Instances of certain sizes.

    Args:
        instances: with ``bboxes`` in pixels of the original image.
        sizes: of :data:`AREAS`.
    """
    areas = (instances.bboxes[:, 2:] - instances.bboxes[:, :2]).clamp(min=0).prod(1)
    keep = torch.zeros_like(areas, dtype=torch.bool)
    for size in sizes:
        least, most = AREAS[size]
        keep |= (areas >= least) & (areas < most)
    return instances[keep]


def by_class(regions: InstanceData, score_thr: float) -> InstanceData:
    """One instance for each region and class with a score above a threshold.

    Args:
        regions: ``bboxes (n, 4)``, or ``(n, 4 K)`` with a box for each class, and ``scores
            (n, K + 1)``, the last of which is that of the background.
        score_thr: the threshold.
    """
    scores = regions.scores[:, :-1]
    boxes = regions.bboxes.view(len(scores), -1, 4)
    region, label = (scores > score_thr).nonzero().unbind(1)
    boxes = boxes[region, label if boxes.shape[1] > 1 else 0]
    return InstanceData(bboxes=boxes, scores=scores[region, label], labels=label)


def turned_back(masks: Tensor, meta: dict) -> Tensor:
    """Masks ``(n, H, W)`` of a flipped view as they lie in the original image."""
    axes = {'horizontal': (2,), 'vertical': (1,), 'diagonal': (1, 2)}
    return masks.flip(axes[meta['flip_direction']]) if meta.get('flip') else masks
