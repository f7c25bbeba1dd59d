"""The detector RepPointsV2."""

from __future__ import annotations

from mmdet.models.detectors import SingleStageDetector
from mmdet.registry import MODELS

__all__ = ['RepPointsV2Detector']


@MODELS.register_module()
class RepPointsV2Detector(SingleStageDetector):
    """Backbone, pyramid and :class:`~mmfocal.detection.RepPointsV2Head`.

    Chen et al., "RepPoints V2: Verification Meets Regression for Object Detection", NeurIPS 2020,
    arXiv 2007.08508. The published Swin and Focal results have a
    :class:`~mmfocal.detection.BiFPN` between backbone and head; the paper's own have mmdet's
    ``FPN`` with group normalisation. Arguments are those of mmdet's ``SingleStageDetector``.
    """
