"""Pooling of a map to the cells of one focal level (paper section 3.2.1, sub-window pooling)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfocal.geometry import WindowGeometry
from mmfocal.utils.checks import require

POOL_METHODS = ('fc', 'conv', 'mean', 'max')


class FocalPooling(nn.Module):
    """Summarises each sub-window of a map by one cell.

    Methods, after ``FocalTransformerBlock`` of the authors'
    ``classification/focal_transformer.py``: ``fc`` weighs the tokens of a sub-window, with the
    same weights in all channels; ``conv`` has weights for each channel; ``mean`` and ``max`` have
    no parameters. ``fc`` and ``conv`` begin as the mean, which is what the authors' code sets
    before its general initialisation overwrites it.

    Args:
        geometry: settings of the attention.
        level: pooled level, 1 for one cell a window.
        method: one of ``fc``, ``conv``, ``mean``, ``max``.
        embed_dims: channels ``C``.
    """

    def __init__(
        self,
        geometry: WindowGeometry,
        level: int,
        method: str,
        embed_dims: int,
    ) -> None:
        super().__init__()
        require(method in POOL_METHODS, 'pool_method', f'one of {POOL_METHODS}', method)
        self.geometry, self.level, self.method = geometry, level, method
        self.cells_per_window = geometry.cells_per_window(level)
        side = geometry.sub_window_size(level)
        if method == 'fc':
            self.weight = nn.Parameter(torch.full((1, side * side), 1 / side**2))
            self.bias = nn.Parameter(torch.zeros(1))
        elif method == 'conv':
            self.weight = nn.Parameter(torch.full((embed_dims, 1, side, side), 1 / side**2))
            self.bias = nn.Parameter(torch.zeros(embed_dims))

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pools a map that is padded to whole windows.

        Args:
            x: float ``(B, Hp, Wp, C)``, moved by the shift of the windows if there is one.
            grid: rows and columns of windows that it has.

        Returns:
            float ``(B, H_level, W_level, C)``, in the cells of :attr:`FocalKeys.pooled_sizes
            <mmfocal.geometry.FocalKeys.pooled_sizes>`.
        """
        side, cells = self.geometry.sub_window_size(self.level), self.cells_per_window
        height, width = (along * cells for along in grid)
        top, left = (self.geometry.trim(self.level, along) for along in grid)
        x = x[:, top : top + height * side, left : left + width * side]
        x = x.unflatten(2, (width, side)).unflatten(1, (height, side))
        if self.method == 'mean':
            return x.mean(dim=(2, 4))
        if self.method == 'max':
            return x.amax(dim=(2, 4))
        if self.method == 'fc':
            weight = self.weight.view(side, side)
            return torch.einsum('bhiwjc,ij->bhwc', x, weight) + self.bias
        weight = self.weight.view(-1, side, side)
        return torch.einsum('bhiwjc,cij->bhwc', x, weight) + self.bias
