"""The tokens that focal attention reads: a padded map and its pooled cells, made in one pass.

In PyTorch that is a pad, a product, a sum and a concatenation, each of which goes through memory
by itself, and twice as many operators in the backward pass. Here it is one kernel, and two for the
gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mmfocal.geometry import FocalKeys, WindowGeometry

from .registration import Operator, register

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

    summed in float32 from ``x`` as it is. The backward pass needs only the result and
    ``weight``. It is differentiable once, and the same in every run.

    Args:
        x: float ``(B, H, W, C)``, where :func:`mmfocal.ops.triton.serves`.
        keys: of its size, with a geometry of which :func:`pools_whole_windows` holds.
        weight: float ``(1, Wh * Ww)``, the same in all channels.
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
    return _tokens(x, weight, bias, keys.geometry.window_size, dtype)


def _empty_tokens(x: Tensor, window_size: int, dtype: torch.dtype) -> Tensor:
    batch, height, width, channels = x.shape
    rows, cols = ((side + window_size - 1) // window_size for side in (height, width))
    return x.new_empty((batch, rows * cols * (window_size**2 + 1), channels), dtype=dtype)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, window_size: int, dtype: torch.dtype
) -> Tensor:
    from .triton.tokens_pass import run_forward

    tokens = _empty_tokens(x, window_size, dtype)
    run_forward(x, weight, bias, window_size, tokens)
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
    shapes = (weight.shape, (1,)) if pool_needs_grad else ((0,), (0,))
    return tokens.new_empty(shape, dtype=dtype), *map(weight.new_empty, shapes)


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
    from .triton.tokens_pass import run_backward

    grads = _empty_grads(tokens, weight, height, width, dtype, x_needs_grad, pool_needs_grad)
    needed = (x_needs_grad, pool_needs_grad, pool_needs_grad)
    wanted = [grad if need else None for grad, need in zip(grads, needed, strict=True)]
    run_backward(grad_tokens, tokens, weight, height, width, window_size, *wanted)
    return grads


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, _, window_size, _ = inputs
    ctx.save_for_backward(output, weight)
    ctx.call = (*x.shape[1:3], window_size, x.dtype)


def _backward_call(ctx: Any, grad_tokens: Tensor) -> tuple:
    x_needs_grad, *pool_needs_grad, _, _ = ctx.needs_input_grad
    return grad_tokens, *ctx.saved_tensors, *ctx.call, x_needs_grad, any(pool_needs_grad)


def _fake_forward(
    x: Tensor, weight: Tensor, bias: Tensor, window_size: int, dtype: torch.dtype
) -> Tensor:
    return _empty_tokens(x, window_size, dtype)


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


_tokens = register(
    'focal_tokens',
    Operator(
        '(Tensor x, Tensor weight, Tensor bias, int window_size, ScalarType dtype) -> Tensor',
        _forward,
        _fake_forward,
    ),
    Operator(
        '(Tensor grad_tokens, Tensor tokens, Tensor weight, SymInt height, SymInt width, '
        'int window_size, ScalarType dtype, bool x_needs_grad, bool pool_needs_grad) '
        '-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)',
        _backward,
        _fake_backward,
    ),
    _save,
    _backward_call,
)


@register_flop_formula(torch.ops.mmfocal.focal_tokens)
def _flops(
    x: Sequence[int], weight: object, bias: object, window_size: int, *_: Any, **__: Any
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
    return 2 * _flops((tokens[0], height, width, tokens[2]), weight, None, window_size)
