"""The weighted bidirectional feature pyramid of EfficientDet, as RepPointsV2 uses it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F


class WeightedFusion(nn.Module):
    """Sum of maps of one size with learned weights that are positive and add up to one.

    "Fast normalized fusion" of Tan et al., arXiv 1911.09070, section 3.3, with the swish that
    their section 4 puts before the convolution that follows.

    Args:
        num_inputs: how many maps there are.
    """

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(num_inputs))

    def forward(self, *maps: Tensor) -> Tensor:
        weights = self.weights.relu()
        weights = weights / (weights.sum() + 1e-4)
        return F.silu(sum(weight * each for weight, each in zip(weights, maps, strict=True)))


class BiFPNLayer(BaseModule):
    """One way down the pyramid and one way up: Tan et al., figure 3 (d).

    Args:
        channels: of every map.
        num_levels: how many maps there are.
        norm_cfg: normalisation after each convolution.
    """

    def __init__(self, channels: int, num_levels: int, norm_cfg: dict) -> None:
        super().__init__()

        def convs() -> nn.ModuleList:
            return nn.ModuleList(
                ConvModule(channels, channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=None)
                for _ in range(num_levels - 1)
            )

        # Entry i of the way down makes level i, of the way up level i + 1.
        self.down_fusions = nn.ModuleList(WeightedFusion(2) for _ in range(num_levels - 1))
        self.down_convs = convs()
        # The topmost level has no map of the way down besides its own input.
        self.up_fusions = nn.ModuleList(
            WeightedFusion(3 if level < num_levels - 1 else 2) for level in range(1, num_levels)
        )
        self.up_convs = convs()

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        top = len(inputs) - 1
        down = list(inputs)
        for level in reversed(range(top)):
            coarser = F.interpolate(down[level + 1], size=inputs[level].shape[-2:])
            down[level] = self.down_convs[level](self.down_fusions[level](inputs[level], coarser))

        up = down[:1]
        for level in range(1, top + 1):
            finer = F.max_pool2d(up[-1], 3, stride=2, padding=1)
            own = [inputs[level]] if level == top else [inputs[level], down[level]]
            up.append(self.up_convs[level - 1](self.up_fusions[level - 1](*own, finer)))
        return up


@MODELS.register_module()
class BiFPN(BaseModule):
    """Feature pyramid with top-down and bottom-up ways, repeated, and learned fusion weights.

    Tan et al., "EfficientDet", arXiv 1911.09070, section 3. As RepPointsV2 with Swin Transformer
    has it: ordinary instead of separable convolutions, and coarser levels that are pooled from the
    backbone's last map before it is projected.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        out_channels: channels of every map of the pyramid.
        num_outs: levels of the pyramid; those beyond the backbone's are pooled.
        num_repeats: how often the two ways are gone.
        norm_cfg: normalisation after each convolution.
        init_cfg: initialisation.

    Raises:
        ValueError: fewer levels than maps, fewer than two levels, or no repeat.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        num_outs: int = 5,
        num_repeats: int = 2,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            init_cfg or dict(type='Xavier', layer='Conv2d', distribution='uniform', bias=0)
        )
        if num_outs < max(2, len(in_channels)) or num_repeats < 1:
            raise ValueError(
                f'BiFPN: expected num_outs of at least 2 and at least the {len(in_channels)} maps '
                f'of in_channels, and num_repeats of at least 1, got num_outs={num_outs} and '
                f'num_repeats={num_repeats}.'
            )
        norm_cfg = norm_cfg or dict(type='GN', num_groups=32, requires_grad=True)
        self.in_channels = tuple(in_channels)
        self.num_outs = num_outs
        widths = [*in_channels, *[in_channels[-1]] * (num_outs - len(in_channels))]
        self.laterals = nn.ModuleList(
            ConvModule(width, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None) for width in widths
        )
        self.layers = nn.ModuleList(
            BiFPNLayer(out_channels, num_outs, norm_cfg) for _ in range(num_repeats)
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The pyramid.

        Args:
            inputs: maps ``(B, C_i, H_i, W_i)``, each half as high and wide as the one before,
                rounded up.

        Returns:
            ``num_outs`` maps ``(B, out_channels, H_i, W_i)``.

        Raises:
            ValueError: another number of maps than ``in_channels`` says.
        """
        if len(inputs) != len(self.in_channels):
            raise ValueError(
                f'BiFPN: expected {len(self.in_channels)} maps, as in_channels='
                f'{self.in_channels} says, got {len(inputs)}. Choose as many in out_indices of '
                'the backbone.'
            )
        maps = list(inputs)
        while len(maps) < self.num_outs:
            maps.append(F.max_pool2d(maps[-1], 3, stride=2, padding=1))
        maps = [lateral(each) for lateral, each in zip(self.laterals, maps, strict=True)]
        for layer in self.layers:
            maps = layer(maps)
        return tuple(maps)
