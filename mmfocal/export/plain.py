"""Layers in plain operations of tensors, whose graph serves images of all sizes.

A traced graph fixes every decision that Python takes, and other runtimes do not know the operator
of :func:`mmfocal.focal_attention`. The modules here take over the weights of those that they
replace, decide nothing by the size of a map, and compute attention with products, gathered rows
and softmax. The tables of :mod:`mmfocal.geometry` become part of the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from mmfocal.geometry import ClosestGeometry, FocalKeys
from mmfocal.models.focal_self_attention import FocalSelfAttention
from mmfocal.models.focal_transformer import FocalTransformer
from mmfocal.utils.errors import UserError


def exportable(model: nn.Module) -> nn.Module:
    """A copy of a model whose backbone is in plain operations.

    Args:
        model: a backbone of mmfocal, or a model that has one. It is left as it is.

    Returns:
        The copy, in evaluation mode, without gradients, on the CPU. It computes what the model
        does, but for rounding.

    Raises:
        UserError: a backbone whose keys do not follow from sizes by arithmetic.
    """
    model = deepcopy(model).cpu().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, FocalTransformer) and module.absolute_pos_embed is not None:
            raise UserError(
                'use_abs_pos_embed=True cannot be exported: the embedding of the pretraining size '
                'is taken as it is, any other resized, and a graph does one of the two.'
            )
    _replace(model)
    return model


def _replace(module: nn.Module) -> None:
    """Puts plain modules in their places below ``module``, inner ones first."""
    for name, child in module.named_children():
        _replace(child)
        if type(child) in PLAIN:
            setattr(module, name, PLAIN[type(child)](child))


class KeysInGraph(NamedTuple):
    """The keys of a map, and what a graph computes of them once for all blocks of a stage.

    Attributes:
        keys: sizes.
        index: int64 ``(nW * N,)``, position of each key on the token axis.
        mask: float ``(nW, Wh * Ww or 1, N)``, added to scores: 0 for keys that may be seen, else
            so little that softmax makes it 0. Rows of nothing else, of queries that are padding,
            get a meaningless output that is cut off.
    """

    keys: FocalKeys
    index: Tensor
    mask: Tensor


class PlainAttention(nn.Module):
    """:class:`FocalSelfAttention` for inference. The position bias is a constant of the graph."""

    def __init__(self, layer: FocalSelfAttention) -> None:
        super().__init__()
        if isinstance(layer.geometry, ClosestGeometry):
            raise UserError(
                'FocalTransformerFast cannot be exported: torch.topk chooses among its equally '
                'close keys, which is no arithmetic of sizes that other runtimes repeat. Export a '
                'FocalTransformer.'
            )
        self.geometry = layer.geometry
        self.num_heads, self.head_dims = layer.num_heads, layer.head_dims
        self.pools, self.proj = layer.pools, layer.proj
        # Apart, so that runtimes copy no parts out of a common output.
        self.query, self.key, self.value = _projections(layer)
        self.register_buffer('bias', layer.position_bias().detach()[:, None])

    def keys(self, x: Tensor) -> KeysInGraph:
        """Keys of each window of a map ``(B, H, W, C)``."""
        keys = self.geometry.keys(*x.shape[1:3])
        tables = keys.make_tables(x.device)
        # Not infinite: a row of infinities would make NaN, which runtimes may compute with.
        mask = (~tables.allowed()).to(x.dtype) * torch.finfo(x.dtype).min
        return KeysInGraph(keys, tables.index.flatten(), mask)

    def forward(self, x: Tensor, in_graph: KeysInGraph) -> Tensor:
        """Attention within one map, float ``(B, H, W, C)`` to the same."""
        keys = in_graph.keys
        height, width = x.shape[1:3]
        padded_height, padded_width = keys.padded_size
        x = F.pad(x, (0, 0, 0, padded_width - width, 0, padded_height - height))
        on_grid = self._rolled(x, -1)
        maps = [x, *(pool(on_grid, keys.grid) for pool in self.pools)]
        tokens = torch.cat([each.flatten(1, 2) for each in maps], dim=1)

        query = self._cut(self.query(on_grid), keys)  # (B, nH, nW, Wh * Ww, D)
        key = self._gathered(self.key(tokens), in_graph)  # (B, nH, nW, N, D)
        value = self._gathered(self.value(tokens), in_graph)
        weights = (query @ key.mT + self.bias + in_graph.mask).softmax(dim=-1)
        out = self._rolled(self._joined(weights @ value, keys), 1)
        return self.proj(out[:, :height, :width])

    def _rolled(self, x: Tensor, direction: int) -> Tensor:
        """A map on the moved grid of windows, or back from there."""
        shift = direction * self.geometry.shift_size
        return x.roll((shift, shift), dims=(1, 2)) if shift else x

    def _gathered(self, tokens: Tensor, in_graph: KeysInGraph) -> Tensor:
        """Rows of ``(B, L, C)`` that each window lists, ``(B, nH, nW, N, D)``."""
        tokens = tokens.unflatten(-1, (self.num_heads, self.head_dims)).transpose(1, 2)
        keys = in_graph.keys
        return tokens.index_select(2, in_graph.index).unflatten(
            2, (keys.num_windows, keys.num_keys)
        )

    def _cut(self, x: Tensor, keys: FocalKeys) -> Tensor:
        """A map ``(B, Hp, Wp, C)`` as tokens of windows, ``(B, nH, nW, Wh * Ww, D)``."""
        side, (rows, cols) = self.geometry.window_size, keys.grid
        x = x.view(-1, rows, side, cols, side, self.num_heads, self.head_dims)
        x = x.permute(0, 5, 1, 3, 2, 4, 6)
        return x.reshape(-1, self.num_heads, rows * cols, side * side, self.head_dims)

    def _joined(self, x: Tensor, keys: FocalKeys) -> Tensor:
        """The map that :meth:`_cut` cut."""
        side, (rows, cols) = self.geometry.window_size, keys.grid
        x = x.view(-1, self.num_heads, rows, cols, side, side, self.head_dims)
        x = x.permute(0, 2, 4, 3, 5, 1, 6)
        return x.reshape(-1, rows * side, cols * side, self.num_heads * self.head_dims)


def _projections(layer: FocalSelfAttention) -> list[nn.Linear]:
    """The three parts of a layer's projection; queries have its scale."""
    weights = layer.qkv.weight.chunk(3)
    biases = [None] * 3 if layer.qkv.bias is None else layer.qkv.bias.chunk(3)
    parts = []
    for weight, bias, scale in zip(weights, biases, (layer.scale, 1.0, 1.0), strict=True):
        linear = nn.Linear(*weight.shape, bias=bias is not None)
        linear.weight = nn.Parameter(weight * scale, requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias * scale, requires_grad=False)
        parts.append(linear)
    return parts


class PlainAveragePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as products with matrices, which follow the size of the map."""

    def __init__(self, layer: nn.AdaptiveAvgPool2d) -> None:
        super().__init__()
        self.size = _pair(layer.output_size)

    def forward(self, x: Tensor) -> Tensor:
        """float ``(B, C, H, W)`` to ``(B, C, *size)``."""
        rows, cols = (
            self._means(cells, side, x)
            for cells, side in zip(self.size, x.shape[-2:], strict=True)
        )
        return rows @ x @ cols.mT

    @staticmethod
    def _means(cells: int, side: int, like: Tensor) -> Tensor:
        """Matrix ``(cells, side)`` whose rows take means of overlapping parts of a side."""
        cell = torch.arange(cells, device=like.device)[:, None]
        place = torch.arange(side, device=like.device)
        first = cell * side // cells
        end = ((cell + 1) * side + cells - 1) // cells
        inside = ((place >= first) & (place < end)).to(like.dtype)
        return inside / inside.sum(dim=1, keepdim=True)


# What decides by the size of a map, and what takes its place.
PLAIN: dict[type[nn.Module], Callable[[nn.Module], nn.Module]] = {
    FocalSelfAttention: PlainAttention,
    nn.AdaptiveAvgPool2d: PlainAveragePool,
}
