"""The public op: its contract, the choice of a backend, and its registration with PyTorch.

Backends are plain functions of tensors. Registered as ``torch.ops.mmfocal.focal_attention`` and
``torch.ops.mmfocal.focal_attention_backward``, they are opaque to ``torch.compile``: geometry goes
in as numbers, and the tables of keys are looked up behind the op, never traced.
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

from mmfocal.geometry import ClosestGeometry, ClosestKeys, FocalGeometry, FocalKeys, WindowGeometry

from . import gather_sdpa, triton
from .eager import once, refuse_to_differentiate, runs_eagerly
from .reference import focal_attention_reference


class Backend(NamedTuple):
    """An implementation with a backward pass of its own.

    Attributes:
        why_not: from device, dtype and head dim to the reason for which it cannot run, None if it
            can.
        forward: ``(qkv, keys, bias, scale)`` to the output and two tensors that are kept for
            backward: log-sum-exps of the scores, and the bias as it is read; empty ones if
            backward does without.
        empty_kept: ``(qkv, keys, bias)`` to tensors of the shapes and dtypes of these two.
        backward: ``(grad_out, qkv, keys, bias, out, lse, prepared_bias, scale, bias_needs_grad)``
            to the gradients of ``qkv`` and ``bias``.
    """

    why_not: Callable[[torch.device, torch.dtype, int], str | None]
    forward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    empty_kept: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor]]


# Fastest first: 'auto' takes the first that does not decline, and the reference behind them all.
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
    if name not in ('auto', *available_backends()):
        names = ', '.join(map(repr, ('auto', *available_backends())))
        raise ValueError(f'the attention backend must be one of {names}, got {name!r}')


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

    in one softmax over all sources of keys. A query that may see no key gives 0. Where the tables
    have ``columns``, ``bias[:, i, columns[w, j]]`` is added: windows differ in their bias then.

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
            rounds it to float16 and takes values beyond 45,000 for that.
        scale: factor of the products, ``D ** -0.5`` by default.
        dropout_p: probability that an attention weight is dropped. The caller sets it to 0
            outside training.
        backend: one of :func:`available_backends`, or ``'auto'`` for the fastest that can run.

    Returns:
        ``(B, Hp * Wp, nH, D)`` over the padded map, in row-major order, in the dtype of ``qkv``.

    Raises:
        ValueError: shapes that do not fit each other or ``keys``, an unknown backend, or a
            backend that cannot take this call; the message says why.
    """
    scale = qkv.shape[-1] ** -0.5 if scale is None else float(scale)
    _check(qkv, keys, bias, dropout_p)
    # The choice needs plain values, where a compiled graph may have symbols.
    head_dim = index(qkv.shape[-1])
    drops = True if dropout_p > 0 else False  # noqa: SIM210
    backend = _choose(backend, qkv.device, qkv.dtype, head_dim, drops)
    if backend == REFERENCE:
        return focal_attention_reference(qkv, keys, bias, scale, dropout_p)
    if runs_eagerly(qkv, bias):
        device = qkv.device.type
        if device == 'meta' or not torch.is_autocast_enabled(device):
            return _FocalAttention.apply(qkv, bias, keys, scale, backend)
        # `qkv` alone is cast: a bias in lower precision would be lost among the scores.
        qkv = qkv.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            return _FocalAttention.apply(qkv, bias, keys, scale, backend)
    call = (*_as_numbers(keys), scale, backend)
    return torch.ops.mmfocal.focal_attention(qkv, bias, *call)[0]


class _FocalAttention(torch.autograd.Function):
    """A fused backend, below autograd."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, bias: Tensor, keys: FocalKeys, scale: float, backend: str
    ) -> Tensor:
        out, *kept = FUSED[backend].forward(qkv, keys, bias, scale)
        ctx.save_for_backward(qkv, bias, out, *kept)
        ctx.call = keys, scale, backend
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        needs_qkv, needs_bias = ctx.needs_input_grad[:2]
        grad_qkv, grad_bias = once(_gradients, grad_out, *ctx.saved_tensors, *ctx.call, needs_bias)
        return grad_qkv if needs_qkv else None, grad_bias if needs_bias else None, None, None, None


def _gradients(
    grad_out: Tensor,
    qkv: Tensor,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    prepared_bias: Tensor,
    keys: FocalKeys,
    scale: float,
    backend: str,
    bias_needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    return FUSED[backend].backward(
        grad_out, qkv, keys, bias, out, lse, prepared_bias, scale, bias_needs_grad
    )


def _check(qkv: Tensor, keys: FocalKeys, bias: Tensor, dropout_p: float) -> None:
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
    if not 0 <= dropout_p < 1:
        raise ValueError(f'dropout_p must be at least 0 and less than 1, got {dropout_p}')


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


# Registration with PyTorch. Geometry and map size travel as numbers, which a compiled graph can
# hold; the tables that they stand for are looked up behind the op. `rule` is the border of a
# FocalGeometry, or says that the numbers are those of a ClosestGeometry.

_CALL = 'SymInt height, SymInt width, int[] geometry, str rule, float scale, str backend'
torch.library.define(
    'mmfocal::focal_attention',
    f'(Tensor qkv, Tensor bias, {_CALL}) -> (Tensor out, Tensor lse, Tensor prepared_bias)',
)
torch.library.define(
    'mmfocal::focal_attention_backward',
    f'(Tensor grad_out, Tensor qkv, Tensor bias, Tensor out, Tensor lse, Tensor prepared_bias, '
    f'{_CALL}, bool bias_needs_grad) -> (Tensor grad_qkv, Tensor grad_bias)',
)


CLOSEST = 'closest'


def _as_numbers(keys: FocalKeys) -> tuple[int, int, list[int], str]:
    if isinstance(keys.geometry, ClosestGeometry):
        return *keys.map_size, list(keys.geometry.values()), CLOSEST
    *numbers, border = keys.geometry.values()
    return *keys.map_size, numbers, border


def _from_numbers(height: int, width: int, geometry: Sequence[int], rule: str) -> FocalKeys:
    return _geometry(tuple(geometry), rule).keys(height, width)


@lru_cache
def _geometry(numbers: tuple[int, ...], rule: str) -> WindowGeometry:
    return ClosestGeometry(*numbers) if rule == CLOSEST else FocalGeometry(*numbers, rule)


@torch.library.impl('mmfocal::focal_attention', 'default')
def _forward(
    qkv: Tensor,
    bias: Tensor,
    height: int,
    width: int,
    geometry: Sequence[int],
    rule: str,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    keys = _from_numbers(height, width, geometry, rule)
    return FUSED[backend].forward(qkv, keys, bias, scale)


@torch.library.register_fake('mmfocal::focal_attention')
def _fake_forward(
    qkv: Tensor,
    bias: Tensor,
    height: int,
    width: int,
    geometry: Sequence[int],
    rule: str,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    keys = _from_numbers(height, width, geometry, rule)
    batch, _, _, heads, dim = qkv.shape
    out = qkv.new_empty(batch, keys.num_map_tokens, heads, dim)
    return out, *FUSED[backend].empty_kept(qkv, keys, bias)


@torch.library.impl('mmfocal::focal_attention_backward', 'default')
def _backward(
    grad_out: Tensor,
    qkv: Tensor,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    prepared_bias: Tensor,
    height: int,
    width: int,
    geometry: Sequence[int],
    rule: str,
    scale: float,
    backend: str,
    bias_needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    keys = _from_numbers(height, width, geometry, rule)
    return _gradients(
        grad_out, qkv, bias, out, lse, prepared_bias, keys, scale, backend, bias_needs_grad
    )


@torch.library.register_fake('mmfocal::focal_attention_backward')
def _fake_backward(
    grad_out: Tensor, qkv: Tensor, bias: Tensor, *call: object
) -> tuple[Tensor, Tensor]:
    grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    return grad_qkv, torch.empty_like(bias, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    qkv, bias, *ctx.call = inputs
    ctx.save_for_backward(qkv, bias, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None, *kept: None) -> tuple[Tensor | None, ...]:
    grad_qkv = grad_bias = None
    if grad_out is not None:
        grad_qkv, grad_bias = torch.ops.mmfocal.focal_attention_backward(
            grad_out, *ctx.saved_tensors, *ctx.call, ctx.needs_input_grad[1]
        )
        if not ctx.needs_input_grad[0]:
            grad_qkv = None
        if not ctx.needs_input_grad[1]:
            grad_bias = None
    return grad_qkv, grad_bias, *(None for _ in ctx.call)


torch.library.register_autograd('mmfocal::focal_attention', _differentiate, setup_context=_save)
torch.library.register_autograd('mmfocal::focal_attention_backward', refuse_to_differentiate)


def _under_autocast(qkv: Tensor, bias: Tensor, *call: object) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`focal_attention` does where operators just run."""
    device = qkv.device.type
    with torch.autocast(device, enabled=False):
        return torch.ops.mmfocal.focal_attention(
            qkv.to(torch.get_autocast_dtype(device)), bias, *call
        )


@register_flop_formula(torch.ops.mmfocal.focal_attention)
def _flops(
    qkv: Sequence[int], bias: Sequence[int], height: int, width: int, *call: Any, **_: Any
) -> int:
    """FLOPs of the two products of scores and values; shapes come in place of tensors."""
    keys = _from_numbers(height, width, *call[:2])
    batch, _, _, heads, dim = qkv
    return 4 * batch * keys.num_windows * keys.num_queries * keys.num_keys * heads * dim


@register_flop_formula(torch.ops.mmfocal.focal_attention_backward)
def _backward_flops(
    grad_out: Sequence[int], qkv: Sequence[int], bias: Sequence[int], *call: Any, **_: Any
) -> int:
    """Of five products: the scores anew, and gradients of weights, values, queries and keys."""
    return _flops(qkv, bias, *call[3:]) * 5 // 2


_library = torch.library.Library('mmfocal', 'FRAGMENT')
for _key in ('AutocastCPU', 'AutocastCUDA'):
    _library.impl('focal_attention', _under_autocast, _key)
