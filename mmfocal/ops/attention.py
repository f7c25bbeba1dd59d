"""The public op: its contract, the checks that all backends share, and the choice of a backend."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from mmengine.logging import print_log
from torch import Tensor

from mmfocal.geometry import FocalKeys

from .gather_sdpa import focal_attention_gather_sdpa, why_not_gather_sdpa
from .reference import focal_attention_reference


class Backend(NamedTuple):
    """One implementation: why it cannot take a call (None if it can), and the call itself."""

    why_not: Callable[[Tensor, float], str | None]
    run: Callable[..., Tensor]


# Fastest first: 'auto' takes the first that does not decline.
BACKENDS = {
    'gather_sdpa': Backend(why_not_gather_sdpa, focal_attention_gather_sdpa),
    'reference': Backend(lambda query, dropout_p: None, focal_attention_reference),
}


def available_backends() -> tuple[str, ...]:
    """Names that ``backend`` of :func:`focal_attention` takes, besides ``'auto'``."""
    return tuple(BACKENDS)


def check_backend(name: str) -> None:
    """Raises a ValueError for what is neither ``'auto'`` nor a backend's name."""
    if name != 'auto' and name not in BACKENDS:
        names = ', '.join(map(repr, ('auto', *BACKENDS)))
        raise ValueError(f'the attention backend must be one of {names}, got {name!r}')


def focal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: FocalKeys,
    bias: Tensor,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str = 'auto',
) -> Tensor:
    """Attention of each window of queries over its own list of keys (paper section 3.2).

    For a query ``i`` of window ``w`` and the keys ``j`` that it may see (``keys.allowed()``)::

        out[i] = softmax_j(scale * query[i] . key[index[w, j]] + bias[:, i, j]) value[index[w, j]]

    in one softmax over all sources of keys. A query that may see no key gives 0.

    Args:
        query: float ``(B, L, nH, D)``; of its ``L`` tokens, laid out as
            :class:`~mmfocal.geometry.FocalKeys` says, those of the padded map are queries and the
            rest is not read.
        key: like ``query``. The three may be views of one packed projection.
        value: like ``query``.
        keys: tables of the map, on the same device.
        bias: float ``(nH, Wh * Ww, N)``, added to the scaled scores of every window. It may be
            of higher precision than ``query``.
        scale: factor of the products, ``D ** -0.5`` by default.
        dropout_p: probability that an attention weight is dropped. The caller sets it to 0
            outside training.
        backend: one of :func:`available_backends`, or ``'auto'`` for the fastest that can run.

    Returns:
        float ``(B, Hp * Wp, nH, D)`` over the padded map, in row-major order.

    Raises:
        ValueError: shapes that do not fit each other or ``keys``, an unknown backend, or a
            backend that cannot take this call; the message says why.
    """
    if scale is None:
        scale = query.shape[-1] ** -0.5
    _check(query, key, value, keys, bias, dropout_p)
    check_backend(backend)
    if backend == 'auto':
        backend = _first_that_runs(query, dropout_p)
    elif reason := BACKENDS[backend].why_not(query, dropout_p):
        raise ValueError(f'attention backend {backend!r} cannot run here: {reason}')
    return BACKENDS[backend].run(query, key, value, keys, bias, scale, dropout_p)


def _check(
    query: Tensor, key: Tensor, value: Tensor, keys: FocalKeys, bias: Tensor, dropout_p: float
) -> None:
    if query.dim() != 4 or not query.shape == key.shape == value.shape:
        raise ValueError(
            'query, key and value must have one shape (B, L, nH, D), got '
            f'{tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}'
        )
    if query.shape[1] != keys.num_tokens:
        raise ValueError(
            f'the token axis must have {keys.num_tokens} entries for a padded map of '
            f'{keys.padded_size} and pooled maps of {keys.pooled_sizes}, got {query.shape[1]}'
        )
    expected = (query.shape[2], keys.num_queries, keys.num_keys)
    if tuple(bias.shape) != expected:
        raise ValueError(f'bias must be (nH, Wh*Ww, N) = {expected}, got {tuple(bias.shape)}')
    if not 0 <= dropout_p < 1:
        raise ValueError(f'dropout_p must be at least 0 and less than 1, got {dropout_p}')


def _first_that_runs(query: Tensor, dropout_p: float) -> str:
    declined = {}
    for name, backend in BACKENDS.items():
        reason = backend.why_not(query, dropout_p)
        if reason is None:
            _log_choice(name, tuple(declined.items()))
            return name
        declined[name] = reason
    raise AssertionError('the reference backend never declines')


@lru_cache
def _log_choice(name: str, declined: tuple[tuple[str, str], ...]) -> None:
    """Tell each different choice once in a process."""
    reasons = ''.join(f'; {other!r} declined: {reason}' for other, reason in declined)
    print_log(f'Focal attention runs on backend {name!r}{reasons}.', logger='current')
