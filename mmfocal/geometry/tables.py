"""Tables of keys as backends read them, and what they are made of.

:mod:`~mmfocal.geometry.focal` and :mod:`~mmfocal.geometry.closest` say which keys a window has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from types import EllipsisType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .caching import bytes_of

# A term of a sum without meaning: negative whatever the other is, within 32 bits.
MISSING = -(2**30)


@dataclass(frozen=True)
class KeyTables:
    """The keys of :class:`FocalKeys`, written out on one device.

    Attributes:
        queries: int64 ``(nW, Wh * Ww)``, position of each query on the token axis. Every token of
            the padded map is a query of exactly one window.
        index: int64 ``(nW, N)``, position of each key on the token axis; 0 where not valid. Where
            there are regions, the first ``Wh * Ww`` keys of a window are its own tokens.
        valid: bool ``(nW, N)``, False for a key that no query of the window may see.
        region: int64 ``(nW, N)`` or None. A key of region 0 is seen by all queries of its
            window; a key of another region only by queries of the same region (the queries'
            regions are those of the first ``Wh * Ww`` keys). None where all keys are of region 0.
        inverse: int64 ``(H * W,)``, where each token of the map stands among the flattened
            ``queries``, in row-major order and without padding.
        num_tokens: length of the token axis.
        columns: int64 ``(nW, N)``, column of the position bias that belongs to each key, so that
            windows whose keys stand elsewhere have another bias; None where key ``j`` of every
            window has column ``j``.
        offsets: float32 ``(columns of a level, 2)`` for each level where there are ``columns``:
            rows and columns in tokens from the key of a column to its window's centre.
    """

    queries: Tensor
    index: Tensor
    valid: Tensor
    region: Tensor | None
    inverse: Tensor
    num_tokens: int
    columns: Tensor | None = None
    offsets: tuple[Tensor, ...] = ()

    def allowed(self, windows: Tensor | slice | EllipsisType = ...) -> Tensor:
        """Which query may see which key, in all windows or those at ``windows``.

        Returns:
            bool ``(nW, Wh * Ww, N)``, or ``(nW, 1, N)`` where all queries of a window see the
            same keys.
        """
        allowed = self.valid[windows, None, :]
        if self.region is None:
            return allowed
        region = self.region[windows]
        num_queries = self.queries.shape[1]
        key_region, query_region = region[:, None, :], region[:, :num_queries, None]
        return allowed & ((key_region == 0) | (key_region == query_region))

    @cached_property
    def all_allowed(self) -> list[bool]:
        """For each window, whether all its queries may see all its keys."""
        return self.allowed().flatten(1).all(dim=1).tolist()

    @cached_property
    def any_keyless(self) -> bool:
        """Whether there is a query that may see no key."""
        return not self.allowed().any(dim=-1).all().item()

    @cached_property
    def num_valid(self) -> int:
        """Positions of ``index`` that are valid."""
        return int(self.valid.sum())

    @cached_property
    def readers(self) -> tuple[Tensor, Tensor]:
        """Which windows list each token: ``index`` the other way round.

        Gradients of keys and values are summed along it, in this order, without atomics.

        Returns:
            ``entries`` int32 ``(num_valid,)`` and ``offsets`` int32 ``(num_tokens + 1,)``: token
            ``t`` stands at the flat positions ``entries[offsets[t]:offsets[t + 1]]`` of
            ``index``, in ascending order.
        """
        return self._readers(self.index, self.num_tokens)

    @cached_property
    def column_readers(self) -> tuple[Tensor, Tensor]:
        """Which windows use each column of the bias: ``columns`` the other way round.

        Returns:
            As :attr:`readers`, with columns in place of tokens.
        """
        return self._readers(self.columns, sum(map(len, self.offsets)))

    def _readers(self, table: Tensor, count: int) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.no_grad():
            entries, offsets = readers_of(torch.where(self.valid, table, -1).int(), count)
            num_missing = len(entries) - self.num_valid
            return entries[num_missing:].clone(), offsets - num_missing

    def complete(self) -> KeyTables:
        """Itself, with all that else is made when it is first asked for."""
        names = ['all_allowed', 'any_keyless', 'num_valid', 'readers']
        for name in names + ([] if self.columns is None else ['column_readers']):
            getattr(self, name)
        return self

    def bytes(self) -> int:
        """Memory that it takes with lists of readers."""
        listed = self.index.numel() + self.num_tokens + 1
        if self.columns is not None:
            listed += self.columns.numel() + sum(map(len, self.offsets)) + 1
        return bytes_of([getattr(self, each.name) for each in fields(self)]) + 4 * listed


class WindowLists(NamedTuple):
    """The keys of :class:`FocalKeys` in the fewest bytes: rows to read, -1 for none.

    Lists are filled up to a multiple of a number that the caller chose, with -1, or 0 in
    ``regions`` and ``columns``.
    """

    queries: Tensor  # int32 (nW, MQ): token of each query
    outputs: Tensor  # int32 (nW, MQ): row of each query in the output, -1 for padding too
    keys: Tensor  # int32 (nW, NS): token of each key, -1 where not valid too
    regions: Tensor | None  # int8 (nW, NS), as in KeyTables
    columns: Tensor | None = None  # int32 (nW, NS), as in KeyTables


def readers_of(table: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """A table of numbers the other way round: where each number stands in it.

    Args:
        table: integers up to ``count - 1`` of any shape; negative where there is none.
        count: of numbers.

    Returns:
        ``entries`` int32 ``(n,)`` and ``offsets`` int32 ``(count + 1,)``: number ``t`` stands at
        the flat positions ``entries[offsets[t]:offsets[t + 1]]`` of the table, in ascending
        order. Positions without a number come first in ``entries``, before ``offsets[0]``.
    """
    numbers, entries = table.flatten().sort(stable=True)
    counted = torch.arange(count + 1, dtype=numbers.dtype, device=numbers.device)
    return entries.int(), torch.searchsorted(numbers, counted, out_int32=True)


# --- Terms ----------------------------------------------------------------------------------

Array = np.ndarray | Tensor


class Arrays(NamedTuple):
    """Functions that make arrays of NumPy, or tensors that a graph can hold."""

    arange: Callable[[int], Array]
    array: Callable[[int | Sequence[int]], Array]
    where: Callable[[Array, Array, int], Array]
    concatenate: Callable[[Sequence[Array], int], Array]

    @classmethod
    def of_torch(cls, device: torch.device | str) -> Arrays:
        made = (partial(make, device=device) for make in (torch.arange, torch.tensor))
        return cls(*made, torch.where, torch.cat)


NUMPY = Arrays(np.arange, np.array, np.where, np.concatenate)


class Terms(NamedTuple):
    """A table of windows whose numbers are sums: one of the window's row, one of its column."""

    rows: Tensor  # (rows of windows, n)
    cols: Tensor  # (columns of windows, n)

    def table(self) -> Tensor:
        """``(nW, n)``; negative where a term, or both, is :data:`MISSING`."""
        return (self.rows[:, None] + self.cols).flatten(0, 1)


def joined_terms(
    rows: Mapping[str, np.ndarray],
    cols: Mapping[str, np.ndarray],
    dtype: type[np.integer],
    multiple: int,
    device: torch.device | str,
) -> dict[str, Terms]:
    """Terms of several tables in one copy to a device.

    Args:
        rows: of each table, ``(rows of windows, n)``.
        cols: of each table, ``(columns of windows, n)``.
        dtype: of the tables.
        multiple: up to which ``n`` is filled, with 0 in ``regions`` and :data:`MISSING` elsewhere.
        device: of the tables.
    """
    num_rows, num_cols = (len(next(iter(terms.values()))) for terms in (rows, cols))
    widths = [-(-term.shape[1] // multiple) * multiple for term in rows.values()]
    joined = np.empty((num_rows + num_cols, sum(widths)), dtype)
    start = 0
    for name, width in zip(rows, widths, strict=True):
        part, filled = joined[:, start : start + width], rows[name].shape[1]
        part[:num_rows, :filled], part[num_rows:, :filled] = rows[name], cols[name]
        part[:, filled:] = 0 if name == 'regions' else MISSING
        start += width
    parts = torch.from_numpy(joined).to(device).split(widths, dim=1)
    return {
        name: Terms(*part.split([num_rows, num_cols]))
        for name, part in zip(rows, parts, strict=True)
    }
