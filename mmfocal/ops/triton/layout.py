"""What the kernels read beside queries, keys and values: tables of keys, and the bias."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocal.geometry import MAX_CACHED_TABLES, FocalKeys

# Queries and keys of a window are worked on in tiles of this many, the least that the matrix
# units of a Hopper GPU take at once. A window of 7x7 is one tile.
TILE = 64
LOG2_E = 1.4426950408889634  # the kernels take powers of 2


class Launch(NamedTuple):
    """How a kernel is compiled, by the bytes of a number of its inputs.

    With 16-bit inputs, 128 registers let four programs share a multiprocessor of a Hopper GPU.
    Products of float32 are made of three of TensorFloat-32, which comes to its accuracy, except
    where that would take more registers than there are. ``tests/test_triton.py`` prints what the
    kernels need.
    """

    num_warps: int
    num_stages: int
    maxnreg: int | None = None
    precision: str = 'tf32x3'

    def options(self) -> dict[str, int | str | None]:
        """Keyword arguments of a launch."""
        return dict(
            PRECISION=self.precision,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
            maxnreg=self.maxnreg,
        )


QUERY_LAUNCH = {2: Launch(4, 3, maxnreg=128), 4: Launch(4, 3)}  # forward, and query gradients
KEY_LAUNCH = {2: Launch(4, 1), 4: Launch(8, 1, precision='ieee')}
SUM_WARPS = 4


class Layout(NamedTuple):
    """Tables of one map. A slot is a place in a window's list of keys."""

    queries: Tensor  # int32 (nW, MQ): token of each query, -1 behind the last
    slots: Tensor  # int32 (nW, NS): token of each key, -1 behind the last and where not valid
    regions: Tensor | None  # int8 (nW, NS), as in KeyTables
    columns: Tensor | None  # int32 (nW, NS), as in KeyTables
    open_slots: int  # leading slots, in whole tiles, that every query of every window sees
    num_queries: int  # of a window, without filling
    num_slots: int  # of a window, without filling

    @property
    def query_tiles(self) -> int:
        return self.queries.shape[1] // TILE

    @property
    def slot_tiles(self) -> int:
        return self.slots.shape[1] // TILE


@lru_cache(maxsize=MAX_CACHED_TABLES)
def layout_of(keys: FocalKeys, device: torch.device) -> Layout:
    """The tables of ``keys`` on ``device``, made once."""
    with torch.inference_mode(False), torch.no_grad():
        tables = keys.tables(device)
        slots = tables.index.masked_fill(~tables.valid, -1)
        return Layout(
            queries=_filled(tables.queries, -1).int(),
            slots=_filled(slots, -1).int(),
            regions=None if tables.region is None else _filled(tables.region, 0).to(torch.int8),
            columns=None if tables.columns is None else _filled(tables.columns, 0).int(),
            open_slots=keys.num_open_keys // TILE * TILE,
            num_queries=keys.num_queries,
            num_slots=keys.num_keys,
        )


def _filled(table: Tensor, value: int) -> Tensor:
    """The last axis filled up to whole tiles."""
    return F.pad(table, (0, -table.shape[-1] % TILE), value=value)


def tiled_bias(bias: Tensor, dtype: torch.dtype, layout: Layout) -> Tensor:
    """The bias times log2(e), ``(nH, MQ, NS)``, or ``(nH, columns, MQ)`` where there are columns.

    For 16-bit inputs it is kept in float16, whose rounding is finer than bfloat16's and whose
    traffic is half of float32's; what lies outside its range, 45,000 before the product, decides a
    softmax alone either way, unless that of all keys of a query does.
    """
    bias = bias.float() * LOG2_E
    if layout.columns is None:
        bias = F.pad(bias, (0, -layout.num_slots % TILE, 0, -layout.num_queries % TILE))
    else:  # the queries of a column side by side, as they are loaded
        bias = F.pad(bias.mT, (0, -layout.num_queries % TILE)).contiguous()
    if dtype == torch.float32:
        return bias
    limit = torch.finfo(torch.float16).max
    return bias.clamp(-limit, limit).half()
