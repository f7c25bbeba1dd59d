"""Which graph a model becomes."""

from __future__ import annotations

import sys

from torch import nn

from mmfocal.utils.errors import UserError
from mmfocal.visualization.view import find_backbone

from .detectors import SingleStageGraph, TwoStageGraph
from .graphs import BackboneGraph, Graph, SegmenterGraph

WHAT_CAN_BE_EXPORTED = (
    'There are graphs for RetinaNet, ATSS and other single stages that predict deltas of '
    'anchors, Faster R-CNN and Mask R-CNN of mmdet, UPerNet of mmseg; of all others --what '
    'backbone exports the backbone.'
)


def graph_of(model: nn.Module, what: str = 'model') -> Graph:
    """The graph of a model, in evaluation mode.

    Args:
        model: a detector or segmenter with a backbone of mmfocal, or such a backbone.
        what: ``'model'``, or ``'backbone'`` for only that.

    Raises:
        UserError: the model, or a part of it, cannot be exported; the message says what can.
    """
    backbone = find_backbone(model)
    if what == 'backbone' or backbone is model:
        return BackboneGraph(backbone).eval()
    for layer in model.modules():
        if 'DeformConv' in type(layer).__name__:
            raise UserError(
                f'{type(model).__name__} has deformable convolutions of mmcv, which cannot be '
                f'exported. {WHAT_CAN_BE_EXPORTED}'
            )
    # A model of a family has imported it.
    if 'mmdet' in sys.modules:
        if _is_single_stage(model):
            return SingleStageGraph(model).eval()
        if _is_two_stage(model):
            return TwoStageGraph(model).eval()
    if 'mmseg' in sys.modules:
        from mmseg.models import EncoderDecoder
        from mmseg.models.decode_heads.decode_head import BaseDecodeHead

        # Mask2Former's head is mmdet's.
        if type(model) is EncoderDecoder and isinstance(model.decode_head, BaseDecodeHead):
            return SegmenterGraph(model).eval()
    raise UserError(
        f'{type(model).__name__} is not among what can be exported. {WHAT_CAN_BE_EXPORTED}'
    )


def _is_single_stage(model: nn.Module) -> bool:
    """Whether predictions are made as in mmdet's base classes, by whatever head."""
    from mmdet.models.dense_heads.anchor_head import AnchorHead
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.detectors import SingleStageDetector

    return (
        isinstance(model, SingleStageDetector)
        and isinstance(getattr(model, 'bbox_head', None), AnchorHead)  # Mask2Former has none
        and _has_own(model, SingleStageDetector, 'predict', 'extract_feat')
        and _has_own(
            model.bbox_head,
            BaseDenseHead,
            'predict',
            'predict_by_feat',
            '_predict_by_feat_single',
            '_bbox_post_process',
        )
    )


def _is_two_stage(model: nn.Module) -> bool:
    from mmdet.models.dense_heads import RPNHead
    from mmdet.models.detectors import TwoStageDetector
    from mmdet.models.roi_heads import StandardRoIHead
    from mmdet.models.roi_heads.bbox_heads import BBoxHead
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    if not (isinstance(model, TwoStageDetector) and model.with_rpn and model.with_roi_head):
        return False
    head = model.roi_head
    extractors = [head.bbox_roi_extractor, *([head.mask_roi_extractor] if head.with_mask else [])]
    return (
        _has_own(model, TwoStageDetector, 'predict', 'extract_feat')
        and type(model.rpn_head) is RPNHead
        and type(head) is StandardRoIHead
        and _has_own(head.bbox_head, BBoxHead, 'predict_by_feat', '_predict_by_feat_single')
        and all(type(extractor) is SingleRoIExtractor for extractor in extractors)
        and (not head.with_mask or type(head.mask_head) is FCNMaskHead)
    )


def _has_own(model: nn.Module, base: type, *methods: str) -> bool:
    """Whether methods are those of a base class."""
    return all(getattr(type(model), name) is getattr(base, name) for name in methods)
