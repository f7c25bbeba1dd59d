"""Position bias: one number per head for each relative position of a query and a key.

The first version of the model learns these numbers (:class:`FocalPositionBias`), the second a
function of the relative position (:class:`CoordinatePositionBias`).
"""

from __future__ import annotations

import torch
from mmengine.model.weight_init import trunc_normal_
from torch import Tensor, nn

from mmfocal.geometry import ClosestGeometry, ClosestKeys, FocalGeometry, FocalKeys
from mmfocal.ops import relative_position_index, table_bias


class FocalPositionBias(nn.Module):
    """All position bias tables of one attention layer, and the dense bias that they make.

    The names of the tables begin with ``relative_position_bias_table``, by which optimizer
    settings find them. Layouts are those of the authors' ``WindowAttention``
    (``classification/focal_transformer.py``), so that their weights fit unchanged:

    * ``relative_position_bias_table`` ``((2 * Wh - 1) * (2 * Ww - 1), nH)``: keys of the window
      itself, by relative position, as in Swin Transformer. Begins at zero, like the authors'.
    * ``relative_position_bias_table_to_neighbors`` ``(1, nH, Wh * Ww, R)``: keys of the ring, one
      entry for each pair of a query and a place in the authors' list of ring tokens. Some tokens
      have two places there. As keys with weights ``exp(s + b1)`` and ``exp(s + b2)`` they add up
      to one with the bias ``logaddexp(b1, b2)``, which is what they get here.
    * ``relative_position_bias_table_to_windows`` list of ``(nH, S * S)`` with
      ``S = Wh + region_size - 1``, one for each pooled level: the relative position of a query in
      tokens and a cell in cells.

    Args:
        geometry: settings of the attention.
        num_heads: number of heads ``nH``.
    """

    def __init__(self, geometry: FocalGeometry, num_heads: int) -> None:
        super().__init__()
        self.geometry = geometry
        window = geometry.window_size
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window - 1) ** 2, num_heads)
        )
        self._register_index('relative_position_index', relative_position_index(window, window))

        once, first, second = geometry.ring_listings()
        self.relative_position_bias_table_to_neighbors = None
        if geometry.expand_size > 0:
            num_listed = len(once) + len(first) + len(second)
            self.relative_position_bias_table_to_neighbors = nn.Parameter(
                torch.empty(1, num_heads, window**2, num_listed)
            )
            trunc_normal_(self.relative_position_bias_table_to_neighbors, std=0.02)
        self.any_listed_twice = bool(second)
        self._register_index('listed_once', torch.tensor(once, dtype=torch.int64))
        self._register_index('listed_twice', torch.tensor([first, second], dtype=torch.int64))

        self.relative_position_bias_table_to_windows = nn.ParameterList()
        for level in range(1, geometry.focal_level):
            region = geometry.region_size(level)
            table = nn.Parameter(torch.empty(num_heads, (window + region - 1) ** 2))
            trunc_normal_(table, std=0.02)
            self.relative_position_bias_table_to_windows.append(table)
            self._register_index(
                f'relative_position_index_{level}', relative_position_index(window, region)
            )

    def _register_index(self, name: str, index: Tensor) -> None:
        # Not persistent: it follows from the settings, so checkpoints need not hold it.
        self.register_buffer(name, index, persistent=False)

    def forward(self, keys: FocalKeys | None = None, fused: bool = False) -> Tensor:
        """The bias in the key order of :class:`~mmfocal.geometry.FocalKeys`.

        Args:
            keys: not needed, as maps of all sizes have the same.
            fused: whether a kernel makes it, see :func:`mmfocal.ops.table_bias`.

        Returns:
            float ``(nH, Wh * Ww, N)``, in the precision of the tables.
        """
        tables = [self.relative_position_bias_table]
        if self.relative_position_bias_table_to_neighbors is not None:
            tables.append(self.relative_position_bias_table_to_neighbors)
        for table in self.relative_position_bias_table_to_windows:
            tables.append(table)
        return table_bias(tables, self.geometry) if fused else self._gathered(tables)

    def _gathered(self, tables: list[Tensor]) -> Tensor:
        """The bias by operators of PyTorch."""
        window, *tables = tables
        sources = [window[self.relative_position_index].permute(2, 0, 1)]
        if self.relative_position_bias_table_to_neighbors is not None:
            (ring,), *tables = tables
            sources.append(ring[..., self.listed_once])
            if self.any_listed_twice:
                sources.append(torch.logaddexp(*ring[..., self.listed_twice].unbind(-2)))
        for level, table in enumerate(tables, start=1):
            sources.append(table[:, getattr(self, f'relative_position_index_{level}')])
        return torch.cat(sources, dim=-1)


class CoordinatePositionBias(nn.Module):
    """A small MLP for each level, from relative positions in tokens to a bias for each head.

    After ``coord2rpb_all`` of the authors' ``WindowAttention``
    (``classification/focal_transformer_v2.py``): a linear layer to the channels of a head, ReLU, a
    linear layer to the heads. It is evaluated once for each column of the bias and each query, not
    for each key of each window.

    The relative positions follow from the map and are computed. For maps of ``separate_height x
    separate_width`` tokens of ``geometry``, they are state instead, in buffers
    ``coordinates.<level>`` of shape ``(nW, Wh * Ww, K, 2)``: see
    :func:`mmfocal.weights.from_authors`.

    Args:
        geometry: settings of the attention.
        num_heads: number of heads ``nH``.
        head_dims: channels of a head, and of the hidden layers.
    """

    def __init__(
        self,
        geometry: ClosestGeometry,
        num_heads: int,
        head_dims: int,
    ) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(2, head_dims), nn.ReLU(), nn.Linear(head_dims, num_heads))
            for _ in range(geometry.focal_level)
        )
        # From the window's centre to each query.
        side = torch.arange(geometry.window_size) - geometry.window_size // 2
        self.register_buffer('query_offsets', torch.cartesian_prod(side, side), persistent=False)
        self.coordinates = None
        if geometry.separate_height:
            self.coordinates = nn.Module()
            keys = geometry.keys(geometry.separate_height, geometry.separate_width)
            for level, offsets in enumerate(keys.offsets('cpu')):
                of_windows = offsets.view(keys.num_windows, 1, -1, 2)
                coordinates = of_windows + self.query_offsets[:, None]
                self.coordinates.register_buffer(str(level), coordinates)

    def forward(self, keys: ClosestKeys, fused: bool = False) -> Tensor:
        """The bias of each column of ``keys``.

        Args:
            keys: of the map.
            fused: has no effect.

        Returns:
            float ``(nH, Wh * Ww, columns)``, in the precision of the parameters.
        """
        weight = self.mlps[0][0].weight
        if self.coordinates is not None and keys.separate:
            levels = [
                level.permute(1, 0, 2, 3).flatten(1, 2) for level in self.coordinates.buffers()
            ]
        else:
            offsets = keys.offsets(weight.device)
            levels = [of_level + self.query_offsets[:, None] for of_level in offsets]
        # In 16 bits of autocast, positions hundreds of tokens away would become the same.
        device = 'cpu' if weight.is_meta else weight.device.type  # there is no autocast on meta
        with torch.autocast(device, enabled=False):
            columns = [
                _for_each_query(last, _for_each_query(first, level.to(weight.dtype)).relu())
                for (first, _, last), level in zip(self.mlps, levels, strict=True)
            ]
        return torch.cat(columns, dim=1).permute(2, 0, 1)


def _for_each_query(linear: nn.Linear, x: Tensor) -> Tensor:
    """The layer on ``(Wh * Ww, columns, C)``, as one product for each query.

    The weights' gradient is then summed over columns first and over queries last. Softmax makes
    most of its terms cancel, and one sum over all of them loses a digit of float32.
    """
    if torch.compiler.is_compiling():  # whose batched products need a known number of columns
        return linear(x)
    return x.bmm(linear.weight.T.expand(len(x), -1, -1)) + linear.bias
