"""Fused kernels for NVIDIA GPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfocal.geometry import FocalKeys


def why_not(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    return 'not here yet'


def empty_lse(qkv: Tensor, keys: FocalKeys) -> Tensor: ...


def forward(qkv: Tensor, keys: FocalKeys, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]: ...


def backward(*args): ...
