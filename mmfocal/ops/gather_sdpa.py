"""Gathered keys and PyTorch's fused attention, a few windows of a head at a time.

The backward pass computes scores again, chunk by chunk. Gradients of keys are written window by
window and then summed token by token in a fixed order: several times faster than adding to rows at
random, and deterministic.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocal.geometry import FocalKeys

# Bytes of gathered keys and values per chunk. On a CPU small chunks stay in the cache, and large
# ones wake the threads less often: of 1 to 64 MB this was the best where threads sleep while they
# wait, and within some percent of the best where they spin. Elsewhere only memory bounds them.
CPU_CHUNK_BYTES = 2**23
DEVICE_CHUNK_BYTES = 2**27


def why_not(*call: object) -> None:
    """Nothing: it runs everywhere."""


def empty_kept(qkv: Tensor, keys: FocalKeys, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Nothing: PyTorch's attention does not return its log-sum-exps."""
    return qkv.new_empty(0), bias.new_empty(0)


def forward(
    qkv: Tensor, keys: FocalKeys, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Output of :func:`mmfocal.ops.focal_attention`, and the empty tensors of `empty_kept`.

    Memory beyond the arguments and the output: one group of heads, see :class:`_Group`.
    """
    qkv = qkv.contiguous()
    batch, _, _, heads, dim = qkv.shape
    out = qkv.new_empty(batch, keys.num_outputs, heads, dim)
    for group in _groups(qkv, keys, bias):
        windows = group.new_windows(keys.num_queries)
        for chunk in group.chunks():
            attended = F.scaled_dot_product_attention(
                chunk.query, chunk.key, chunk.value, attn_mask=chunk.bias, scale=scale
            )
            windows[:, chunk.windows] = attended
        group.store(group.map_order(windows), out)
    return out, *empty_kept(qkv, keys, bias, scale)


def backward(
    grad_out: Tensor,
    qkv: Tensor,
    keys: FocalKeys,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    prepared_bias: Tensor,
    scale: float,
    bias_needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of ``qkv`` and ``bias``; the latter is zero where it is not needed.

    Memory beyond the arguments and the result: one group of heads, see :class:`_Group`.
    """
    qkv, grad_out = qkv.contiguous(), _padded(grad_out, keys)
    grad_qkv = torch.empty_like(qkv)
    grad_qkv[:, keys.num_map_tokens :, 0] = 0  # pooled tokens are no queries
    (height, width), grad_queries = keys.map_size, grad_qkv[:, : keys.num_map_tokens, 0]
    grad_queries = grad_queries.unflatten(1, keys.padded_size)  # (B, Hp, Wp, nH, D)
    grad_queries[:, height:] = 0  # nor is padding
    grad_queries[:, :height, width:] = 0
    grad_bias = torch.zeros(bias.shape, dtype=_precision(bias), device=bias.device)
    for group in _groups(qkv, keys, bias):
        grad_query = group.new_windows(keys.num_queries)
        grad_key, grad_value = (group.new_windows(keys.num_keys) for _ in range(2))
        bias_sums = _BiasSums(group) if bias_needs_grad else None
        for chunk in group.chunks():
            d_out = group.gather_out(grad_out, chunk.windows).flatten(0, 1)
            query, key, value = (t.flatten(0, 1) for t in chunk[1:4])
            query = query * scale
            weights = chunk.fresh_bias().baddbmm_(query, key.mT).softmax(dim=-1)
            d_weights = d_out.bmm(value.mT)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            _multiply(d_scores, key, grad_query[:, chunk.windows])
            _multiply(d_scores.mT, query, grad_key[:, chunk.windows])
            _multiply(weights.mT, d_out, grad_value[:, chunk.windows])
            if bias_sums is not None:
                bias_sums.add(d_scores, chunk.windows)
        if bias_sums is not None:
            grad_bias[group.heads] += bias_sums.total()
        grad_query = group.map_order(grad_query.mul_(scale)).unflatten(1, keys.map_size)
        group.store(grad_query, grad_queries[:, :height, :width])
        group.store(group.sum_by_token(grad_key), grad_qkv[:, :, 1])
        group.store(group.sum_by_token(grad_value), grad_qkv[:, :, 2])
    return grad_qkv, grad_bias.to(bias.dtype)


def _padded(grad_out: Tensor, keys: FocalKeys) -> Tensor:
    """``(B, Hp * Wp, nH, D)`` of ``(B, H * W, nH, D)``, with zeros for padding, contiguous."""
    (height, width), (padded_height, padded_width) = keys.map_size, keys.padded_size
    if (height, width) == (padded_height, padded_width):
        return grad_out.contiguous()
    on_map = grad_out.unflatten(1, (height, width))
    below, right = padded_height - height, padded_width - width
    return F.pad(on_map, (0, 0, 0, 0, 0, right, 0, below)).flatten(1, 2).contiguous()


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    # A view: a chunk has all windows of its heads, or one head.
    torch.bmm(left, right, out=out.view(-1, *out.shape[2:]))


def _precision(tensor: Tensor) -> torch.dtype:
    """Of what is computed: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


class _Chunk(NamedTuple):
    """Gathered windows of a group, whose heads of all images are counted by ``h``."""

    windows: slice
    query: Tensor  # (h, windows, Wh*Ww, D)
    key: Tensor  # (h, windows, N, D)
    value: Tensor  # (h, windows, N, D)
    bias: Tensor  # (h, 1 or windows, Wh*Ww, N), -inf at keys not allowed
    bias_is_own: bool  # whether the bias was made for this chunk, window by window

    def fresh_bias(self) -> Tensor:
        """The bias of each window, ``(h * windows, Wh*Ww, N)``, to be written over."""
        if self.bias_is_own:
            return self.bias.flatten(0, 1)
        return self.bias.repeat(1, self.query.shape[1], 1, 1).flatten(0, 1)


class _Group:
    """Some heads of one image, or all heads of some images: as few as fill a chunk.

    The heads of all its images are counted by ``h``. Outputs and gradients are kept in window
    order until all windows of the group are done.
    """

    def __init__(
        self,
        qkv: Tensor,
        keys: FocalKeys,
        bias: Tensor,
        images: slice,
        heads: slice,
        windows_per_chunk: int,
    ) -> None:
        self.images, self.heads, self.keys = images, heads, keys
        self.windows_per_chunk = windows_per_chunk
        self.tables = tables = keys.tables(qkv.device)
        self.dtype, self.dim = _precision(qkv), qkv.shape[-1]
        self.num_images = images.stop - images.start
        bias = bias[heads].to(self.dtype).expand(self.num_images, -1, -1, -1)
        self.bias = bias.flatten(0, 1)[:, None]  # (h, 1, Wh*Ww, N or columns)
        self.by_column = tables.columns is not None
        if self.by_column:
            self.bias_rows = self.bias.mT.flatten(0, 2)  # (h * columns, Wh*Ww)

        # Tensors are seen as rows of D numbers, which are gathered at the speed of copying.
        num_heads, step = qkv.shape[3], 3 * qkv.shape[3]
        self.query, self.key, self.value = (
            qkv.view(-1, self.dim)[part * num_heads :] for part in range(3)
        )
        image, head = (
            torch.arange(part.start, part.stop, device=qkv.device) for part in (images, heads)
        )

        def first_row(rows_per_image: int) -> Tensor:
            return (image[:, None] * rows_per_image + head).view(-1, 1, 1)

        self.query_rows = first_row(keys.num_tokens * step) + tables.queries * step
        self.key_rows = first_row(keys.num_tokens * step) + tables.index * step
        self.out_rows = first_row(keys.num_map_tokens * num_heads) + tables.queries * num_heads

    def chunks(self) -> Iterator[_Chunk]:
        tables = self.tables
        for start in range(0, self.keys.num_windows, self.windows_per_chunk):
            stop = min(start + self.windows_per_chunk, self.keys.num_windows)
            windows = slice(start, stop)
            bias = self._bias(windows)
            if not all(tables.all_allowed[windows]):
                allowed = tables.allowed(windows)
                if tables.any_keyless:
                    # It is padding, without an output or its gradient: any keys but none at all,
                    # of which a softmax would make NaN.
                    allowed = allowed | ~allowed.any(dim=-1, keepdim=True)
                bias = torch.where(allowed, bias, float('-inf'))
            key_rows = self.key_rows[:, windows]
            yield _Chunk(
                windows,
                self._gather(self.query, self.query_rows[:, windows]),
                self._gather(self.key, key_rows),
                self._gather(self.value, key_rows),
                bias,
                bias_is_own=bias is not self.bias,
            )

    def gather_out(self, out: Tensor, windows: slice) -> Tensor:
        """Rows of a padded ``(B, Hp * Wp, nH, D)`` of the windows' queries."""
        return self._gather(out.view(-1, self.dim), self.out_rows[:, windows])

    def _bias(self, windows: slice) -> Tensor:
        """Bias of some windows ``(h, windows, Wh*Ww, N)``, or ``(h, 1, Wh*Ww, N)`` of all."""
        if not self.by_column:
            return self.bias
        columns = self.tables.columns[windows]
        rows = self._in_each_head(columns.flatten(), self.bias.shape[-1]).flatten()
        bias = self.bias_rows.index_select(0, rows).view(-1, *columns.shape, self.bias.shape[2])
        return bias.mT.contiguous()

    def _gather(self, flat: Tensor, rows: Tensor) -> Tensor:
        return flat.index_select(0, rows.flatten()).view(*rows.shape, -1).to(self.dtype)

    def new_windows(self, rows: int) -> Tensor:
        """Empty ``(h, nW, rows, D)``."""
        return self.bias.new_empty(len(self.bias), self.keys.num_windows, rows, self.dim)

    def store(self, values: Tensor, target: Tensor) -> None:
        """Copies ``(h, ..., D)`` to this group's part of ``(B, ..., nH, D)``."""
        values = values.unflatten(0, (self.num_images, -1)).movedim(1, -2)
        target[self.images, ..., self.heads, :] = values

    def map_order(self, windows: Tensor) -> Tensor:
        """``(h, nW, Wh*Ww, D)`` as ``(h, H * W, D)``, without padding."""
        rows = self._in_each_head(self.tables.inverse, windows[0, ..., 0].numel())
        return windows.flatten(0, 2).index_select(0, rows.flatten()).view(*rows.shape, -1)

    def sum_by_token(self, windows: Tensor) -> Tensor:
        """Sums ``(h, nW, N, D)`` over all places of each token: ``(h, L, D)``."""
        return self.sum_by_reader(windows, *self.tables.readers)

    def sum_by_reader(self, windows: Tensor, entries: Tensor, offsets: Tensor) -> Tensor:
        """Sums ``(h, nW, N, x)`` over the places of each reader: ``(h, readers, x)``."""
        rows = self._in_each_head(entries, windows[0, ..., 0].numel())
        bags = self._in_each_head(offsets[:-1], len(entries))
        sums = F.embedding_bag(rows.flatten(), windows.flatten(0, 2), bags.flatten(), mode='sum')
        return sums.view(*bags.shape, -1)

    def _in_each_head(self, rows: Tensor, rows_per_head: int) -> Tensor:
        """``rows`` of the first head and their counterparts in all others: ``(h, len(rows))``."""
        head = torch.arange(len(self.bias), device=rows.device, dtype=rows.dtype)
        return rows + head[:, None] * rows_per_head


class _BiasSums:
    """The gradient of the bias of a group, summed over windows and images."""

    def __init__(self, group: _Group) -> None:
        self.group, self.columns = group, None
        if group.by_column:  # gradients of single keys, (h, nW, N, Wh*Ww)
            shape = (len(group.bias), *group.tables.columns.shape, group.keys.num_queries)
            self.columns = group.bias.new_empty(shape)
        else:
            heads = len(group.bias) // group.num_images
            self.sum = group.bias.new_zeros(heads, *group.bias.shape[2:])

    def add(self, d_scores: Tensor, windows: slice) -> None:
        """Adds gradients ``(h * windows, Wh*Ww, N)`` of scores."""
        if self.columns is not None:
            self.columns[:, windows] = d_scores.unflatten(0, (len(self.columns), -1)).mT
        else:
            parts = (self.group.num_images, len(self.sum), -1)
            self.sum += d_scores.unflatten(0, parts).sum((0, 2))

    def total(self) -> Tensor:
        """``(heads, Wh*Ww, N or columns)``."""
        if self.columns is None:
            return self.sum
        sums = self.group.sum_by_reader(self.columns, *self.group.tables.column_readers)
        return sums.unflatten(0, (self.group.num_images, -1)).sum(0).mT


def _groups(qkv: Tensor, keys: FocalKeys, bias: Tensor) -> Iterator[_Group]:
    batch, _, _, heads, dim = qkv.shape
    limit = CPU_CHUNK_BYTES if qkv.device.type == 'cpu' else DEVICE_CHUNK_BYTES
    windows = max(1, limit // (2 * keys.num_keys * dim * _precision(qkv).itemsize))
    heads_per_group = max(1, windows // keys.num_windows)
    images_per_group = max(1, heads_per_group // heads)
    heads_per_group = min(heads_per_group, heads)
    for image in range(0, batch, images_per_group):
        images = slice(image, min(image + images_per_group, batch))
        for head in range(0, heads, heads_per_group):
            some_heads = slice(head, min(head + heads_per_group, heads))
            yield _Group(qkv, keys, bias, images, some_heads, windows)
