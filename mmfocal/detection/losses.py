"""Losses of RepPointsV2 that mmdet does not have."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.losses import GIoULoss
from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F


@MODELS.register_module()
class InclusiveGIoULoss(GIoULoss):
    """Generalised IoU loss between boxes whose last pixel belongs to them.

    Widths and heights are one larger than the difference of coordinates, as in versions of mmdet
    before 2. RepPointsV2 was published with it and feeds boxes in units of four strides, where the
    added one is large: it smooths the loss of small boxes.
    """

    def forward(self, pred: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of each pair of boxes, weighted and reduced as by mmdet's ``GIoULoss``.

        Args:
            pred: ``(n, 4)`` boxes x1, y1, x2, y2; sides may be negative.
            target: ``(n, 4)`` boxes.
            *args: as for mmdet's ``GIoULoss``.
            **kwargs: as for mmdet's ``GIoULoss``.
        """
        if not len(pred):
            return pred.sum()  # mmdet gives a zero that has no gradient
        last = pred.new_tensor([0, 0, 1, 1], dtype=torch.float32)
        return super().forward(pred.float() + last, target.float() + last, *args, **kwargs)


@MODELS.register_module()
class VerificationFocalLoss(nn.Module):
    """Focal loss over a map, positive and negative cells each with a normaliser of their own.

    The foreground verification of RepPointsV2 (Chen et al., arXiv 2007.08508, section 3.2): the
    positive cells are weighted by one over the area of their object, so that all objects count the
    same, and divided by the sum of these weights; the negative ones are divided by the number of
    positive cells.

    Args:
        gamma: exponent of the modulating factor.
        alpha: weight of positive cells; of negative ones it is ``1 - alpha``.
        loss_weight: factor.
    """

    def __init__(self, gamma: float = 2.0, alpha: float = 0.25, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha
        self.loss_weight = loss_weight

    def forward(self, logits: Tensor, weights: Tensor) -> Tensor:
        """The loss of all cells, a scalar.

        Args:
            logits: any shape.
            weights: of the same shape: the weight of each positive cell, 0 for negative ones.
        """
        logits, weights = logits.float(), weights.float()
        positive = weights > 0
        probability = logits.sigmoid()
        # By log-sigmoid: the logarithm of a sigmoid is -inf where it rounds to zero.
        missed = -F.logsigmoid(logits) * (1 - probability) ** self.gamma
        false = -F.logsigmoid(-logits) * probability**self.gamma
        missed = (missed * weights).sum() / weights.sum().clamp(min=1e-12)
        false = (false * ~positive).sum() / positive.sum().clamp(min=1)
        return self.loss_weight * (self.alpha * missed + (1 - self.alpha) * false)
