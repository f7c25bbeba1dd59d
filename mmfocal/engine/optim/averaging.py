"""An average of weights for all families; mmdet's own is not there for mmseg and mmpretrain."""

from __future__ import annotations

import math

import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS


@MODELS.register_module()
class WarmedUpEMA(ExponentialMovingAverage):
    """Exponential moving average to which new weights add a larger share at the beginning.

    The share is ``(1 - momentum) * exp(-(1 + steps) / 2000) + momentum``, as in YOLOX and mmdet's
    ``ExpMomentumEMA``.
    """

    def avg_func(
        self, averaged_param: torch.Tensor, source_param: torch.Tensor, steps: torch.Tensor | int
    ) -> None:
        """Moves the average towards the weights, in place."""
        share = (1 - self.momentum) * math.exp(-(1 + int(steps)) / 2000) + self.momentum
        averaged_param.lerp_(source_param, share)
