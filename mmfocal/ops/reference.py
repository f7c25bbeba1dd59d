"""The meaning of focal attention: every other backend must give what this one gives."""

from __future__ import annotations

from types import EllipsisType

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocal.geometry import FocalKeys


def focal_attention_reference(
    qkv: Tensor, keys: FocalKeys, bias: Tensor, scale: float, dropout_p: float
) -> Tensor:
    """Gather the keys of every window, materialise all scores, take one softmax.

    Arguments and result as in :func:`mmfocal.ops.focal_attention`. Any device, any float dtype,
    autograd of any order; like the other backends, sums and the softmax are in float32 at least.
    Memory grows with ``B * nW * nH * Wh * Ww * N``.
    """
    tables = keys.tables(qkv.device)
    weights = focal_attention_weights(qkv, keys, bias, scale)
    weights = F.dropout(weights, dropout_p)
    value = qkv[:, :, 2].to(weights.dtype)
    with torch.autocast(qkv.device.type, enabled=False):
        out = torch.einsum('bwhqk,bwkhd->bwqhd', weights, value[:, tables.index])
    return out.flatten(1, 2)[:, tables.inverse].to(qkv.dtype)


def focal_attention_weights(
    qkv: Tensor,
    keys: FocalKeys,
    bias: Tensor,
    scale: float,
    windows: Tensor | slice | EllipsisType = ...,
) -> Tensor:
    """How much each query attends to each key of its window.

    Args:
        qkv, keys, bias, scale: as in :func:`mmfocal.ops.focal_attention`; values are not read.
        windows: numbers of the windows asked for, all by default.

    Returns:
        ``(B, nW, nH, Wh * Ww, N)``, of float32 at least: 0 where the query may
        not see the key, and a sum of 1 over the keys of a query that sees any.
    """
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    tables = keys.tables(qkv.device)
    query, key = qkv[:, :, :2].to(dtype).unbind(2)
    queries = query[:, tables.queries[windows]]  # (B, nW, Wh*Ww, nH, D)
    if tables.columns is not None:
        bias = bias[:, :, tables.columns[windows]].permute(2, 0, 1, 3)  # (nW, nH, Wh*Ww, N)
    gathered = key[:, tables.index[windows]]
    with torch.autocast(qkv.device.type, enabled=False):
        scores = torch.einsum('bwqhd,bwkhd->bwhqk', queries * scale, gathered) + bias
    allowed = tables.allowed(windows)[:, None]  # (nW, 1, Wh*Ww or 1, N)
    # A row without any key has no softmax; its output is zero, and so are its gradients.
    any_allowed = allowed.any(dim=-1, keepdim=True)
    scores = scores.masked_fill(~allowed & any_allowed, float('-inf'))
    return F.softmax(scores, dim=-1).masked_fill(~any_allowed, 0)
