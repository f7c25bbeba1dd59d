"""Losses of RepPointsV2 that mmdet does not have."""

from __future__ import annotations

import torch
from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ['InclusiveGIoULoss', 'VerificationFocalLoss']


@MODELS.register_module()
class InclusiveGIoULoss(nn.Module):
    """Generalised IoU loss between boxes whose last pixel belongs to them.

    Widths and heights are one larger than the difference of coordinates, as in versions of mmdet
    before 2. RepPointsV2 was published with it and feeds boxes in units of four strides, where the
    added one is large: it smooths the loss of small boxes. mmdet's ``GIoULoss`` has no such form.

    Args:
        eps: smallest union and hull, in squared units of the boxes.
        reduction: ``'none'``, ``'mean'`` or ``'sum'``.
        loss_weight: factor.
    """

    def __init__(
        self, eps: float = 1e-6, reduction: str = 'mean', loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.eps = eps
        self.reduction = reduction
        self.loss_weight = loss_weight

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """The loss of each pair of boxes, weighted and reduced.

        Args:
            pred: ``(n, 4)`` boxes x1, y1, x2, y2; sides may be negative.
            target: ``(n, 4)`` boxes.
            weight: ``(n,)`` or ``(n, 4)``, in which case the four are averaged.
            avg_factor: divides the sum, in place of the number of boxes.
            reduction_override: in place of ``reduction``.
        """
        pred, target = pred.float(), target.float()
        overlap = self._area(
            torch.maximum(pred[:, :2], target[:, :2]), torch.minimum(pred[:, 2:], target[:, 2:])
        )
        hull = self._area(
            torch.minimum(pred[:, :2], target[:, :2]), torch.maximum(pred[:, 2:], target[:, 2:])
        ).clamp(min=self.eps)
        # A predicted box with one negative side has a negative area, which has to count as such
        # for the gradient to push the side back.
        union = (
            (pred[:, 2:] - pred[:, :2] + 1).prod(1)
            + (target[:, 2:] - target[:, :2] + 1).prod(1)
            - overlap
        ).clamp(min=self.eps)
        loss = 1 - overlap / union + (hull - union) / hull
        if weight is not None and weight.dim() > 1:
            weight = weight.mean(-1)
        loss = weight_reduce_loss(loss, weight, reduction_override or self.reduction, avg_factor)
        return self.loss_weight * loss

    @staticmethod
    def _area(top_left: Tensor, bottom_right: Tensor) -> Tensor:
        return (bottom_right - top_left + 1).clamp(min=0).prod(1)


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
