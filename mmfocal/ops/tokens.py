"""The tokens that focal attention reads: a padded map and its pooled cells, made in one pass.

In PyTorch that is a pad, a product, a sum and a concatenation, each of which goes through memory
by itself, and twice as many operators in the backward pass. Here it is one kernel, and two for the
gradients.

Registered as ``torch.ops.mmfocal.focal_tokens`` and ``torch.ops.mmfocal.focal_tokens_backward`` so
that tools see them that watch operators. Where none does, an autograd function calls the kernels
directly: PyTorch's dispatcher takes the host several times as long as it takes a GPU to run them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mmfocal.geometry import FocalKeys, WindowGeometry

from .eager import once, refuse_to_differentiate, runs_eagerly

MAX_PLACES = 256  # tokens of a window, which a program holds at once


def pools_whole_windows(geometry: WindowGeometry) -> bool:
    """Whether :func:`focal_tokens` makes the tokens of such keys.

    They have one pooled level, of one cell a window, on a grid that is not moved.
    """
    area = geometry.window_size**2
    return geometry.focal_level == 2 and geometry.shift_size == 0 and area <= MAX_PLACES


def focal_tokens(x: Tensor, keys: FocalKeys, weight: Tensor, bias: Tensor) -> Tensor:
    """Token axis of a map: the map, padded to whole windows, and one cell of each window.

    With the token ``x[i, j]`` of a window, or 0 where it is padding, a window has the cell ::

        sum_ij weight[0, i * window_size + j] * x[i, j] + bias

    summed in float32 from ``x`` as it is. The backward pass needs the result and ``weight``
    alone. It is differentiable once, and the same in every run.

    Args:
        x: float ``(B, H, W, C)``, where :func:`mmfocal.ops.triton.serves`.
        keys: of its size, with a geometry of which :func:`pools_whole_windows` holds.
        weight: float ``(1, Wh * Ww)``, alike in all channels.
        bias: float ``(1,)``, of the dtype of ``weight``.

    Returns:
        ``(B, L, C)`` in the order of :class:`~mmfocal.geometry.FocalKeys`, in the dtype of ``x``,
        or that of autocast where it is on.

    Raises:
        ValueError: shapes that do not fit ``keys``.
    """
    if x.shape[1:-1] != keys.map_size or weight.shape != (1, keys.num_queries):
        raise ValueError(
            f'a map (B, H, W, C) with (H, W) = {keys.map_size} needs a weight (1, Wh*Ww) = '
            f'{(1, keys.num_queries)}, got {tuple(x.shape)} and {tuple(weight.shape)}'
        )
    dtype, device = x.dtype, x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    call = (x, weight, bias, keys.geometry.window_size, dtype)
    if runs_eagerly(x, weight, bias):
        return _FocalTokens.apply(*call)
    return torch.ops.mmfocal.focal_tokens(*call)


@cache
def _kernels() -> ModuleType:
    from .triton import tokens_pass

    return tokens_pass


def _empty_tokens(x: Tensor, window_size: int, dtype: torch.dtype) -> Tensor:
    batch, height, width, channels = x.shape
    rows, cols = ((side + window_size - 1) // window_size for side in (height, width))
    return x.new_empty((batch, rows * cols * (window_size**2 + 1), channels), dtype=dtype)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, window_size: int, dtype: torch.dtype
) -> Tensor:
    tokens = _empty_tokens(x, window_size, dtype)
    _kernels().run_forward(x, weight, bias, window_size, tokens)
    return tokens


def _empty_grads(
    tokens: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    dtype: torch.dtype,
    x_needs_grad: bool,
    pool_needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of map, weight and bias; without elements where they are not needed."""
    batch, _, channels = tokens.shape
    shape = (batch, height, width, channels) if x_needs_grad else (0,)
    grad_weight, grad_bias = (
        weight.new_empty(shape if pool_needs_grad else (0,)) for shape in (weight.shape, (1,))
    )
    return tokens.new_empty(shape, dtype=dtype), grad_weight, grad_bias


def _backward(
    grad_tokens: Tensor,
    tokens: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    window_size: int,
    dtype: torch.dtype,
    x_needs_grad: bool,
    pool_needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _empty_grads(tokens, weight, height, width, dtype, x_needs_grad, pool_needs_grad)
    needed = (x_needs_grad, pool_needs_grad, pool_needs_grad)
    wanted = [grad if need else None for grad, need in zip(grads, needed, strict=True)]
    _kernels().run_backward(grad_tokens, tokens, weight, height, width, window_size, *wanted)
    return grads


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, _, window_size, _ = inputs
    ctx.save_for_backward(output, weight)
    ctx.call = (*x.shape[1:3], window_size, x.dtype)


def _differentiate(ctx: Any, grad_tokens: Tensor) -> tuple[Tensor | None, ...]:
    x_needs_grad, *pool_needs_grad, _, _ = ctx.needs_input_grad
    call = (grad_tokens, *ctx.saved_tensors, *ctx.call, x_needs_grad, any(pool_needs_grad))
    if runs_eagerly(grad_tokens):
        grads = once(_backward, *call)
    else:
        grads = torch.ops.mmfocal.focal_tokens_backward(*call)
    needed = zip(grads, ctx.needs_input_grad[:3], strict=True)
    return *[grad if need else None for grad, need in needed], None, None


class _FocalTokens(torch.autograd.Function):
    """What is registered below, without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        tokens = _forward(*inputs)
        _save(ctx, inputs, tokens)
        return tokens

    backward = staticmethod(_differentiate)


torch.library.define(
    'mmfocal::focal_tokens',
    '(Tensor x, Tensor weight, Tensor bias, int window_size, ScalarType dtype) -> Tensor',
)
torch.library.define(
    'mmfocal::focal_tokens_backward',
    '(Tensor grad_tokens, Tensor tokens, Tensor weight, SymInt height, SymInt width, '
    'int window_size, ScalarType dtype, bool x_needs_grad, bool pool_needs_grad) '
    '-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)',
)
torch.library.impl('mmfocal::focal_tokens', 'default')(_forward)
torch.library.impl('mmfocal::focal_tokens_backward', 'default')(_backward)


@torch.library.register_fake('mmfocal::focal_tokens')
def _fake_forward(
    x: Tensor, weight: Tensor, bias: Tensor, window_size: int, dtype: torch.dtype
) -> Tensor:
    return _empty_tokens(x, window_size, dtype)


@torch.library.register_fake('mmfocal::focal_tokens_backward')
def _fake_backward(
    grad_tokens: Tensor,
    tokens: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    window_size: int,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_grads(tokens, weight, height, width, *options)


torch.library.register_autograd('mmfocal::focal_tokens', _differentiate, setup_context=_save)
torch.library.register_autograd('mmfocal::focal_tokens_backward', refuse_to_differentiate)


@register_flop_formula(torch.ops.mmfocal.focal_tokens)
def _flops(
    x: Sequence[int],
    weight: Sequence[int],
    bias: Sequence[int],
    window_size: int,
    *_: Any,
    **__: Any,
) -> int:
    """FLOPs of the sum over a window; shapes come in place of tensors."""
    batch, height, width, channels = x
    rows, cols = ((side + window_size - 1) // window_size for side in (height, width))
    return 2 * batch * rows * cols * window_size**2 * channels


@register_flop_formula(torch.ops.mmfocal.focal_tokens_backward)
def _backward_flops(
    grad_tokens: Sequence[int],
    tokens: Sequence[int],
    weight: Sequence[int],
    height: int,
    width: int,
    window_size: int,
    *_: Any,
    **__: Any,
) -> int:
    """Of two products: with the weight and with the tokens."""
    return 2 * _flops((tokens[0], height, width, tokens[2]), weight, (1,), window_size)
