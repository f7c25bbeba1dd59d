"""Focal self-attention: project, pool, bias, attend, project (paper section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfocal.geometry import ClosestGeometry, FocalKeys, WindowGeometry
from mmfocal.ops import (
    check_backend,
    focal_attention,
    focal_tokens,
    pools_whole_windows,
    serves,
)

from .pooling import FocalPooling
from .position_bias import CoordinatePositionBias, FocalPositionBias


class FocalSelfAttention(nn.Module):
    """Multi-head attention of each window over tokens around it and pooled cells.

    Args:
        geometry: which keys a window attends to: its own tokens, a ring and a region of cells
            (:class:`~mmfocal.geometry.FocalGeometry`), or what is closest
            (:class:`~mmfocal.geometry.ClosestGeometry`).
        embed_dims: channels ``C`` of the map.
        num_heads: heads ``nH``; ``C`` is a multiple of it.
        pool_method: how pooled levels are made, see :class:`FocalPooling`; not used where
            ``geometry`` has none.
        qkv_bias: whether the projection to query, key and value has a bias.
        qk_scale: factor of the products, ``(C / nH) ** -0.5`` by default.
        attn_drop: drop rate of attention weights.
        proj_drop: drop rate of the output.
        backend: of :func:`mmfocal.focal_attention`.
    """

    def __init__(
        self,
        geometry: WindowGeometry,
        embed_dims: int,
        num_heads: int,
        pool_method: str = 'fc',
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        backend: str = 'auto',
    ) -> None:
        super().__init__()
        check_backend(backend)
        self.geometry = geometry
        self.num_heads, self.head_dims = num_heads, embed_dims // num_heads
        self.scale = qk_scale or self.head_dims**-0.5
        self.attn_drop = attn_drop
        self.backend = backend

        self.pools = nn.ModuleList(
            FocalPooling(geometry, level, pool_method, embed_dims)
            for level in range(1, geometry.focal_level)
        )
        self._pools_plainly = pool_method == 'fc' and pools_whole_windows(geometry)
        if isinstance(geometry, ClosestGeometry):
            self.position_bias = CoordinatePositionBias(geometry, num_heads, self.head_dims)
        else:
            self.position_bias = FocalPositionBias(geometry, num_heads)
        self.qkv = nn.Linear(embed_dims, embed_dims * 3, bias=qkv_bias)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop)

    def keys(self, x: Tensor) -> FocalKeys:
        """Keys of each window of a map ``(B, H, W, C)``."""
        return self.geometry.keys(*x.shape[1:3])

    def forward(self, x: Tensor, keys: FocalKeys) -> Tensor:
        """Attention within one map.

        Args:
            x: float ``(B, H, W, C)``.
            keys: ``self.keys(x)``.

        Returns:
            float ``(B, H, W, C)``.
        """
        batch, height, width, channels = x.shape
        dropout = self.attn_drop if self.training else 0.0
        # A plain value: to a compiled graph for symbolic sizes the rate is a symbol as well.
        drops = True if dropout > 0 else False  # noqa: SIM210
        fused = serves(self.backend, x.device, x.dtype, self.head_dims, drops)
        tokens = self._tokens(x, keys, fused)
        out = focal_attention(
            self.qkv(tokens).unflatten(-1, (3, self.num_heads, self.head_dims)),
            keys,
            self.position_bias(keys, fused=fused),
            scale=self.scale,
            dropout_p=dropout,
            backend=self.backend,
        )
        return self.proj_drop(self.proj(out.reshape(batch, height, width, channels)))

    def _tokens(self, x: Tensor, keys: FocalKeys, fused: bool = False) -> Tensor:
        """The padded map and its pooled maps, ``(B, L, C)``; in one kernel if ``fused``."""
        if fused and self._pools_plainly:
            (pool,) = self.pools
            if type(pool) is FocalPooling and not _is_watched(pool):
                return focal_tokens(x, keys, pool.weight, pool.bias)
        (height, width), (padded_height, padded_width) = x.shape[1:3], keys.padded_size
        if (padded_height, padded_width) != (height, width):  # F.pad always copies
            x = F.pad(x, (0, 0, 0, padded_width - width, 0, padded_height - height))
        on_grid, shift = x, self.geometry.shift_size
        if self.pools and shift > 0:
            on_grid = x.roll((-shift, -shift), dims=(1, 2))
        maps = [x, *(pool(on_grid, keys.grid) for pool in self.pools)]
        return torch.cat([each.flatten(1, 2) for each in maps], dim=1)


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody's hooks want to see a module called."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks) or nn.modules.module._has_any_global_hook()
