"""Gathered keys and PyTorch's fused attention, a few windows at a time.

The gathered keys and values of a chunk of windows stay in the cache of a CPU core, scores are
never kept, and the backward pass computes them again, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmfocal.geometry import FocalKeys

# Bytes of gathered keys and values per chunk. On a CPU they should stay in a core's cache, while
# the calls must not cost more than the work; elsewhere only memory bounds them.
CPU_CHUNK_BYTES = 2**21
DEVICE_CHUNK_BYTES = 2**28


def why_not_gather_sdpa(query: Tensor, dropout_p: float) -> str | None:
    """Reason for which this backend cannot take a call, or None."""
    if dropout_p > 0:
        return 'its backward pass computes the weights again and cannot repeat their dropout'
    return None


def focal_attention_gather_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: FocalKeys,
    bias: Tensor,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """As :func:`mmfocal.ops.focal_attention`, without dropout and differentiable once.

    Memory beyond the arguments, the output and their gradients: one chunk of windows.
    """
    assert dropout_p == 0
    return _GatherSDPA.apply(query, key, value, bias, keys, scale)


class _Chunk:
    """Some windows of the batch, and the rows of the flat token axis that they read and write."""

    def __init__(self, keys: FocalKeys, windows: Tensor) -> None:
        """``windows`` int64 ``(nC,)`` counts through all windows of all images."""
        image = torch.div(windows, keys.num_windows, rounding_mode='floor')[:, None]
        window = windows % keys.num_windows
        self.num_windows = windows.shape[0]
        self.query_rows = (keys.queries[window] + image * keys.num_tokens).flatten()
        self.key_rows = (keys.index[window] + image * keys.num_tokens).flatten()
        self.out_rows = (keys.queries[window] + image * keys.inverse.shape[0]).flatten()
        allowed = keys.allowed(window)[:, None]  # (nC, 1, Wh*Ww or 1, N)
        self.allowed = None if allowed.all() else allowed
        keyless = ~allowed.any(dim=-1, keepdim=True)
        self.keyless = keyless if keyless.any() else None

    def gather(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Rows of ``(B * L, nH, D)`` as ``(nC, nH, rows per window, D)``."""
        picked = tokens.index_select(0, rows)
        return picked.view(self.num_windows, -1, *tokens.shape[1:]).transpose(1, 2)

    def scatter_add(self, tokens: Tensor, rows: Tensor, values: Tensor) -> None:
        """Adds ``(nC, nH, rows per window, D)`` to the rows that :meth:`gather` read."""
        tokens.index_add_(0, rows, values.transpose(1, 2).flatten(0, 1).to(tokens.dtype))

    def masked(self, bias: Tensor) -> Tensor:
        """``bias`` ``(nH, Wh*Ww, N)`` for each window of the chunk, -inf at keys not allowed."""
        if self.allowed is None:
            return bias[None]
        allowed = self.allowed if self.keyless is None else self.allowed | self.keyless
        return torch.where(allowed, bias[None], float('-inf'))

    def zero_keyless(self, values: Tensor) -> Tensor:
        """Zero in the rows of queries that may see no key."""
        return values if self.keyless is None else values.masked_fill(self.keyless, 0)


def _chunks(keys: FocalKeys, query: Tensor) -> Iterator[_Chunk]:
    batch, _, heads, dim = query.shape
    limit = CPU_CHUNK_BYTES if query.device.type == 'cpu' else DEVICE_CHUNK_BYTES
    bytes_per_window = 2 * keys.num_keys * heads * dim * query.element_size()
    windows = torch.arange(batch * keys.num_windows, device=query.device)
    for chunk in windows.split(max(1, limit // bytes_per_window)):
        yield _Chunk(keys, chunk)


class _GatherSDPA(torch.autograd.Function):
    """Forward by fused attention; backward by the softmax's own formula, scores computed anew."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        keys: FocalKeys,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, bias)
        ctx.keys, ctx.scale = keys, scale
        batch, _, *heads_and_dim = query.shape
        out = query.new_empty(batch * keys.inverse.shape[0], *heads_and_dim)
        queries, gathered_from, values = (t.flatten(0, 1) for t in (query, key, value))
        for chunk in _chunks(keys, query):
            windows = F.scaled_dot_product_attention(
                chunk.gather(queries, chunk.query_rows),
                chunk.gather(gathered_from, chunk.key_rows),
                chunk.gather(values, chunk.key_rows),
                attn_mask=chunk.masked(bias),
                scale=scale,
            )
            windows = chunk.zero_keyless(windows)
            out.index_copy_(0, chunk.out_rows, windows.transpose(1, 2).flatten(0, 1))
        return out.view(batch, -1, *heads_and_dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias = ctx.saved_tensors
        keys, scale = ctx.keys, ctx.scale
        grads = [
            torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (query, key, value)
        ]
        grad_query, grad_key, grad_value = (t.flatten(0, 1) for t in grads)
        grad_bias = torch.zeros_like(bias)
        grad_out = grad_out.flatten(0, 1)
        queries, gathered_from, values = (t.flatten(0, 1) for t in (query, key, value))
        for chunk in _chunks(keys, query):
            q = chunk.gather(queries, chunk.query_rows)
            k = chunk.gather(gathered_from, chunk.key_rows)
            v = chunk.gather(values, chunk.key_rows)
            d_out = chunk.zero_keyless(chunk.gather(grad_out, chunk.out_rows))

            scores = (q @ k.mT).mul_(scale) + chunk.masked(bias)
            weights = scores.softmax(dim=-1)  # in the precision of the bias
            d_weights = d_out @ v.mT
            d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True))
            grad_bias += d_scores.sum(0)

            d_scores = d_scores.to(q.dtype)
            chunk.scatter_add(grad_query, chunk.query_rows, (d_scores @ k).mul_(scale))
            chunk.scatter_add(grad_key, chunk.key_rows, (d_scores.mT @ q).mul_(scale))
            chunk.scatter_add(grad_value, chunk.key_rows, weights.to(q.dtype).mT @ d_out)
        return *grads, grad_bias, None, None
