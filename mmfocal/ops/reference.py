"""The meaning of focal attention: every other backend must give what this one gives."""

from __future__ import annotations

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
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    tables = keys.tables(qkv.device)
    query, key, value = qkv.to(dtype).unbind(2)
    queries = query[:, tables.queries]  # (B, nW, Wh*Ww, nH, D)
    gathered_key, gathered_value = key[:, tables.index], value[:, tables.index]

    if tables.columns is not None:
        bias = bias[:, :, tables.columns].permute(2, 0, 1, 3)  # (nW, nH, Wh*Ww, N)
    with torch.autocast(qkv.device.type, enabled=False):
        scores = torch.einsum('bwqhd,bwkhd->bwhqk', queries * scale, gathered_key) + bias
        allowed = tables.allowed()[:, None]  # (nW, 1, Wh*Ww or 1, N)
        # A row without any key has no softmax; its output is zero, and so are its gradients.
        any_allowed = allowed.any(dim=-1, keepdim=True)
        scores = scores.masked_fill(~allowed & any_allowed, float('-inf'))
        weights = F.softmax(scores, dim=-1).masked_fill(~any_allowed, 0)
        weights = F.dropout(weights, dropout_p)
        out = torch.einsum('bwhqk,bwkhd->bwqhd', weights.to(dtype), gathered_value)
    return out.flatten(1, 2)[:, tables.inverse].to(qkv.dtype)
