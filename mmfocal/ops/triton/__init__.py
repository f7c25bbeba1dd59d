"""Fused kernels for NVIDIA GPUs: neither scores nor gathered keys are ever written to memory.

``forward_pass.py`` and ``backward_pass.py`` hold the kernels and how they are launched,
``layout.py`` the tensors that they read beside queries, keys and values. Triton is imported when a
kernel is first called, so that mmfocal runs without it.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec

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
        return f'its kernels take {_names(DTYPES)}, not {_names([dtype])}'
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
        return f'its kernels need compute capability 8.0, and the GPU has {_version(capability)}'
    return None


@torch.compiler.assume_constant_result
def serves(
    backend: str, device: torch.device, dtype: torch.dtype, head_dim: int = 1, drops: bool = False
) -> bool:
    """Whether what surrounds attention runs on kernels, too: where attention itself does.

    Args:
        backend: of attention, or ``'auto'``: who asks for another has PyTorch everywhere.
        device: of the tensors.
        dtype: of the tensors.
        head_dim: channels of a head.
        drops: whether attention weights are dropped.
    """
    return backend in ('auto', 'triton') and not drops and _takes(device, dtype, head_dim)


@lru_cache
def _takes(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    return why_not(device, dtype, head_dim) is None


def _names(dtypes: object) -> str:
    return ', '.join(str(dtype).removeprefix('torch.') for dtype in dtypes)


def _version(capability: tuple[int, int]) -> str:
    return '.'.join(map(str, capability))


def empty_kept(qkv: Tensor, keys: FocalKeys, bias: Tensor) -> tuple[Tensor, Tensor]:
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
    return lse, empty_tiled_bias(qkv, bias, isinstance(keys, ClosestKeys))


def forward(
    qkv: Tensor, keys: FocalKeys, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Output of :func:`mmfocal.ops.focal_attention`, and what :func:`empty_kept` is for."""
    from .forward_pass import run_forward

    return run_forward(qkv, keys, bias, scale)


def backward(
    grad_out: Tensor,
    qkv: Tensor,
    keys: FocalKeys,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    tiled_bias: Tensor,
    scale: float,
    bias_needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of ``qkv`` and ``bias``; the latter is zero where it is not needed.

    Deterministic: gradients of keys and values go to a workspace in window order, of 256 MB unless
    one head of one image needs more, and are summed from there in a fixed order.
    """
    from .backward_pass import run_backward

    return run_backward(grad_out, qkv, keys, bias, out, lse, tiled_bias, scale, bias_needs_grad)
