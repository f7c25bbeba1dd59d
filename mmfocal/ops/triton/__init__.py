"""Fused kernels for NVIDIA GPUs: neither scores nor gathered keys are ever written to memory.

``forward_pass.py`` and ``backward_pass.py`` hold the kernels and how they are launched,
``layout.py`` the tensors that they read besides queries, keys and values. Triton is imported when
a kernel is first called, so that mmfocal runs without it.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mmfocal.geometry import ClosestKeys, FocalKeys

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 64
COMPUTE_CAPABILITY = (8, 0)  # below, Triton's matrix products become scalar code


def why_not(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Reason for which the kernels cannot take such tensors, None if they can.

    With ``TRITON_INTERPRET=1`` in the environment they run on a CPU too, slowly, for tests.
    """
    if find_spec('triton') is None:
        return 'Triton is not installed (pip install triton)'
    interpreted = os.environ.get('TRITON_INTERPRET') == '1'
    if dtype not in DTYPES:
        names = [str(each).removeprefix('torch.') for each in (*DTYPES, dtype)]
        return f'its kernels take {", ".join(names[:-1])}, not {names[-1]}'
    if interpreted and dtype == torch.bfloat16:
        return "Triton's interpreter cannot multiply bfloat16"
    if head_dim > MAX_HEAD_DIM:
        return f'its kernels take heads of up to {MAX_HEAD_DIM} channels, not {head_dim}'
    if interpreted:
        return None
    if device.type != 'cuda' or torch.version.hip:
        return f'its kernels are for NVIDIA GPUs, and the tensors are on {device.type!r}'
    capability = torch.cuda.get_device_capability(device)
    if capability < COMPUTE_CAPABILITY:
        version = '.'.join(map(str, capability))
        return f'its kernels need compute capability 8.0, and the GPU has {version}'
    return None


@torch.compiler.assume_constant_result
def serves(
    backend: str, device: torch.device, dtype: torch.dtype, head_dim: int = 1, drops: bool = False
) -> bool:
    """Whether what surrounds attention runs on kernels: where attention itself does.

    Args:
        backend: of attention, or ``'auto'``; any other than these runs everything in PyTorch.
        device: of the tensors.
        dtype: of the tensors.
        head_dim: channels of a head.
        drops: whether attention weights are dropped.
    """
    return backend in ('auto', 'triton') and not drops and _takes(device, dtype, head_dim)


@lru_cache
def _takes(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    return why_not(device, dtype, head_dim) is None


def empty_kept(qkv: Tensor, keys: FocalKeys, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """For what the forward pass keeps for the backward pass.

    Returns:
        Log-sum-exps to base 2 of the scores of each query, float32 ``(B, nH, nW, MQ)`` in the
        order of windows, with ``Wh * Ww`` filled up to whole tiles ``MQ``; and the bias as the
        kernels read it.
    """
    from .layout import empty_tiled_bias, filled

    batch, _, _, heads, _ = qkv.shape
    shape = (batch, heads, keys.num_windows, filled(keys.num_queries))
    lse = qkv.new_empty(shape, dtype=torch.float32)
    return lse, empty_tiled_bias(qkv, bias, scale, isinstance(keys, ClosestKeys))


def forward(*call: Any) -> tuple[Tensor, Tensor, Tensor]:
    from .forward_pass import run_forward

    return run_forward(*call)


def backward(*call: Any) -> tuple[Tensor, Tensor]:
    from .backward_pass import run_backward

    return run_backward(*call)
