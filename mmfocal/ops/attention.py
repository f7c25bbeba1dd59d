"""The public op: its contract, the choice of a backend, and its registration with PyTorch.

Backends are plain functions of tensors, registered as ``torch.ops.mmfocal.focal_attention`` and
``torch.ops.mmfocal.focal_attention_backward``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import index
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mmfocal.geometry import ClosestKeys, FocalKeys
from mmfocal.utils.checks import require

from . import gather_sdpa, triton
from .reference import focal_attention_reference
from .registration import Operator, as_numbers, from_numbers, register, runs_eagerly


class Backend(NamedTuple):
    """An implementation with a backward pass of its own.

    Attributes:
        why_not: from device, dtype and head dim to the reason for which it cannot run, None if it
            can.
        forward: ``(qkv, keys, bias, scale)`` to the output and two tensors that are kept for
            backward: log-sum-exps of the scores, and the bias as it is read; empty ones if
            backward does without.
        empty_kept: ``(qkv, keys, bias, scale)`` to tensors of the shapes and dtypes of these two.
        backward: ``(grad_out, qkv, keys, bias, out, lse, prepared_bias, scale, bias_needs_grad)``
            to the gradients of ``qkv`` and ``bias``.
    """

    why_not: Callable[[torch.device, torch.dtype, int], str | None]
    forward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    empty_kept: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor]]


# Fastest first: 'auto' takes the first that does not decline, and the reference after them all.
FUSED = {
    'triton': Backend(triton.why_not, triton.forward, triton.empty_kept, triton.backward),
    'gather_sdpa': Backend(
        gather_sdpa.why_not, gather_sdpa.forward, gather_sdpa.empty_kept, gather_sdpa.backward
    ),
}
REFERENCE = 'reference'


def available_backends() -> tuple[str, ...]:
    """Names that ``backend`` of :func:`focal_attention` takes, besides ``'auto'``."""
    return (*FUSED, REFERENCE)


def check_backend(name: str) -> None:
    """Raises a ValueError for what is neither ``'auto'`` nor a backend's name."""
    names = ('auto', *available_backends())
    require(name in names, 'the attention backend', f'one of {names}', name)


def why_not(
    backend: str, device: torch.device, dtype: torch.dtype, head_dim: int, drops: bool = False
) -> str | None:
    """Reason for which a backend cannot take such a call, None if it can.

    Args:
        backend: one of :func:`available_backends`, or ``'auto'``.
        device: of the tensors.
        dtype: of ``qkv``.
        head_dim: ``D``, channels of a head.
        drops: whether attention weights are dropped.
    """
    check_backend(backend)
    if backend in ('auto', REFERENCE):
        return None
    if drops:
        return 'its backward pass computes the weights again and cannot repeat their dropout'
    return FUSED[backend].why_not(device, dtype, head_dim)


def focal_attention(
    qkv: Tensor,
    keys: FocalKeys,
    bias: Tensor,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str = 'auto',
) -> Tensor:
    """Attention of each window of queries over its own list of keys (paper section 3.2).

    For a query ``i`` of window ``w`` and the keys ``j`` that it may see, with the tables
    ``index`` and ``allowed()`` of ``keys``::

        out[i] = softmax_j(scale * query[i] . key[index[w, j]] + bias[:, i, j]) value[index[w, j]]

    in one softmax over all sources of keys. Where the tables have ``columns``, ``bias[:, i,
    columns[w, j]]`` is added: windows differ in their bias then. Queries of padding, among which
    are all that may see no key, have no output.

    All backends sum and take the softmax in float32 at least. ``reference`` is these lines in
    PyTorch and keeps all scores for the backward pass. The fused backends keep their arguments and
    their output, and ``triton`` also a float32 number for each query and head, and the bias as it
    reads it; they compute the weights again in the backward pass. Their results are the same in
    every run. They are differentiable once, and decline dropout, which they could not repeat in
    the backward pass. Under autocast ``qkv`` is cast to its dtype and ``bias`` is left as it is.

    Args:
        qkv: float ``(B, L, 3, nH, D)``, queries, keys and values as one projection gives them. The
            ``L`` tokens are laid out as :class:`~mmfocal.geometry.FocalKeys` says: the padded
            map, whose tokens are the queries, then pooled maps, whose queries are not read.
        keys: keys of each window, from :meth:`FocalGeometry.keys
            <mmfocal.geometry.FocalGeometry.keys>`.
        bias: float ``(nH, Wh * Ww, N)``, added to the scaled scores of every window; with
            ``columns`` there are :attr:`~mmfocal.geometry.FocalKeys.num_bias_columns` instead of
            ``N``. It may be of higher precision than ``qkv``; with 16-bit ``qkv``, ``triton``
            rounds ``bias / scale`` to float16, and takes values beyond 65,504 for that.
        scale: positive factor of the products, ``D ** -0.5`` by default.
        dropout_p: probability that an attention weight is dropped. The caller sets it to 0
            outside training.
        backend: one of :func:`available_backends`, or ``'auto'`` for the fastest that can run.

    Returns:
        ``(B, H * W, nH, D)`` over the map without its padding, in row-major order, in the dtype of
        ``qkv``.

    Raises:
        ValueError: shapes that do not fit each other or ``keys``, an unknown backend, or a
            backend that cannot take this call; the message says why.
    """
    scale = qkv.shape[-1] ** -0.5 if scale is None else float(scale)
    _check(qkv, keys, bias, scale, dropout_p)
    # The choice needs plain values, where a compiled graph may have symbols.
    head_dim = index(qkv.shape[-1])
    drops = True if dropout_p > 0 else False  # noqa: SIM210
    backend = _choose(backend, qkv.device, qkv.dtype, head_dim, drops)
    if backend == REFERENCE:
        return focal_attention_reference(qkv, keys, bias, scale, dropout_p)
    call = _as_numbers(keys, scale, backend)
    device = qkv.device.type
    if not runs_eagerly(qkv, bias) or not torch.is_autocast_enabled(device):
        return _attend(qkv, bias, *call)[0]
    return _under_autocast(qkv, bias, *call)[0]


def _check(qkv: Tensor, keys: FocalKeys, bias: Tensor, scale: float, dropout_p: float) -> None:
    if qkv.dim() != 5 or qkv.shape[2] != 3:
        raise ValueError(f'qkv must be (B, L, 3, nH, D), got {tuple(qkv.shape)}')
    if qkv.shape[1] != keys.num_tokens:
        raise ValueError(
            f'the token axis must have {keys.num_tokens} entries for a padded map of '
            f'{keys.padded_size} and pooled maps of {keys.pooled_sizes}, got {qkv.shape[1]}'
        )
    # The number of columns may follow from tables, which are no part of a compiled graph.
    compiling = torch.compiler.is_compiling() and isinstance(keys, ClosestKeys)
    columns = bias.shape[2] if compiling else keys.num_bias_columns(qkv.device)
    expected = (qkv.shape[3], keys.num_queries, columns)
    if tuple(bias.shape) != expected:
        axes = '(nH, Wh*Ww, N)' if columns == keys.num_keys else '(nH, Wh*Ww, columns)'
        raise ValueError(f'bias must be {axes} = {expected}, got {tuple(bias.shape)}')
    require(scale > 0, 'scale', 'positive', scale)
    require(0 <= dropout_p < 1, 'dropout_p', 'at least 0 and less than 1', dropout_p)


@torch.compiler.assume_constant_result
def _choose(
    backend: str, device: torch.device, dtype: torch.dtype, head_dim: int, drops: bool
) -> str:
    """The backend to run."""
    return _choose_once(backend, device, dtype, head_dim, drops)


@lru_cache
def _choose_once(backend: str, device: torch.device, *call: object) -> str:
    """The choice for each different call, logged when it is first made."""
    if reason := why_not(backend, device, *call):
        raise ValueError(f'attention backend {backend!r} cannot run here: {reason}')
    if backend != 'auto':
        return backend
    declined = {}
    for name in available_backends():
        reason = why_not(name, device, *call)
        if reason is None:
            break
        declined[name] = reason
    reasons = ''.join(f'; {name!r} declined: {why}' for name, why in declined.items())
    if device.type != 'meta':  # where nothing runs
        print_log(f'Focal attention runs on backend {name!r}{reasons}.', logger='current')
    return name


def _forward(qkv: Tensor, bias: Tensor, *call: Any) -> tuple[Tensor, Tensor, Tensor]:
    keys, scale, backend = _resolved(*call)
    return FUSED[backend].forward(qkv, keys, bias, scale)


def _fake_forward(qkv: Tensor, bias: Tensor, *call: Any) -> tuple[Tensor, Tensor, Tensor]:
    keys, scale, backend = _resolved(*call)
    batch, _, _, heads, dim = qkv.shape
    out = qkv.new_empty(batch, keys.num_outputs, heads, dim)
    return out, *FUSED[backend].empty_kept(qkv, keys, bias, scale)


def _backward(
    grad_out: Tensor,
    qkv: Tensor,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    prepared_bias: Tensor,
    *call_and_need: Any,
) -> tuple[Tensor, Tensor]:
    *call, bias_needs_grad = call_and_need
    keys, scale, backend = _resolved(*call)
    return FUSED[backend].backward(
        grad_out, qkv, keys, bias, out, lse, prepared_bias, scale, bias_needs_grad
    )


def _fake_backward(
    grad_out: Tensor, qkv: Tensor, bias: Tensor, *call: object
) -> tuple[Tensor, Tensor]:
    grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    return grad_qkv, torch.empty_like(bias, memory_format=torch.contiguous_format)


def _as_numbers(keys: FocalKeys, scale: float, backend: str) -> tuple[Any, ...]:
    """A call as the operators take it."""
    return *keys.map_size, *as_numbers(keys.geometry), scale, backend


def _resolved(
    height: int, width: int, numbers: Sequence[int], rule: str, scale: float, backend: str
) -> tuple[FocalKeys, float, str]:
    return from_numbers(numbers, rule).keys(height, width), scale, backend


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    qkv, bias, *ctx.call = inputs
    ctx.save_for_backward(qkv, bias, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


_CALL = 'SymInt height, SymInt width, int[] geometry, str rule, float scale, str backend'
_attend = register(
    'focal_attention',
    Operator(
        f'(Tensor qkv, Tensor bias, {_CALL}) -> (Tensor out, Tensor lse, Tensor prepared_bias)',
        _forward,
        _fake_forward,
    ),
    Operator(
        '(Tensor grad_out, Tensor qkv, Tensor bias, Tensor out, Tensor lse, Tensor prepared, '
        f'{_CALL}, bool bias_needs_grad) -> (Tensor grad_qkv, Tensor grad_bias)',
        _backward,
        _fake_backward,
    ),
    _save,
    lambda ctx, grad: (grad, *ctx.saved_tensors, *ctx.call, ctx.needs_input_grad[1]),
)


def _under_autocast(qkv: Tensor, bias: Tensor, *call: object) -> tuple[Tensor, Tensor, Tensor]:
    """Casts ``qkv``, but not the bias, which in lower precision would be lost among the scores."""
    device = qkv.device.type
    with torch.autocast(device, enabled=False):
        return _attend(qkv.to(torch.get_autocast_dtype(device)), bias, *call)


@register_flop_formula(torch.ops.mmfocal.focal_attention)
def _flops(qkv: Sequence[int], bias: Sequence[int], *call: Any, **_: Any) -> int:
    """FLOPs of the two products of scores and values; shapes come in place of tensors."""
    keys, _, _ = _resolved(*call)
    batch, _, _, heads, dim = qkv
    return 4 * batch * keys.num_windows * keys.num_queries * keys.num_keys * heads * dim


@register_flop_formula(torch.ops.mmfocal.focal_attention_backward)
def _backward_flops(
    grad_out: Sequence[int], qkv: Sequence[int], bias: Sequence[int], *call: Any, **_: Any
) -> int:
    """Of five products: the scores anew, and gradients of weights, values, queries and keys."""
    return _flops(qkv, bias, *call[3:-1]) * 5 // 2


_library = torch.library.Library('mmfocal', 'FRAGMENT')
for _key in ('AutocastCPU', 'AutocastCUDA'):
    _library.impl('focal_attention', _under_autocast, _key)
