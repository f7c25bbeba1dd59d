"""The loss that mmseg's segmenters here lack."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class ClassWeightedCrossEntropyLoss(nn.Module):
    """Cross entropy whose mean follows the weights of classes, and leaves out ignored pixels.

    That is mmseg's ``CrossEntropyLoss`` with ``class_weight`` where no pixel is ignored. At one
    that is, mmseg 1.2 looks for the weight of class 255 and ends with an IndexError.

    Args:
        class_weight: a weight for each class; None for equal ones.
        loss_weight: factor of the whole.
        loss_name: in logs; names that begin with ``'loss'`` are trained on.
    """

    def __init__(
        self,
        class_weight: Sequence[float] | None = None,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_ce',
    ) -> None:
        super().__init__()
        weights = None
        if class_weight is not None:
            weights = torch.tensor(class_weight, dtype=torch.float32)
        self.register_buffer('class_weight', weights, persistent=False)
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = 255,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            logits: ``(B, C, H, W)``.
            labels: int64 ``(B, H, W)``.
            weight: of each pixel, ``(B, H, W)``, by mmseg's samplers of pixels.
            ignore_index: the label of pixels that are left out; if all are, the loss is 0.
        """
        is_used = labels != ignore_index
        class_weight, weights = None, is_used
        if self.class_weight is not None:
            class_weight = self.class_weight.to(logits.dtype)
            weights = self.class_weight[labels.masked_fill(~is_used, 0)] * is_used
        losses = F.cross_entropy(
            logits, labels, class_weight, ignore_index=ignore_index, reduction='none'
        )
        if weight is not None:
            losses = losses * weight
        return self.loss_weight * losses.sum() / (weights.sum() + torch.finfo(torch.float32).eps)
