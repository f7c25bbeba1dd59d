"""Tables of keys for map sizes that were not seen before, as multi-scale training meets them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from statistics import quantiles
from time import perf_counter
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmfocal.geometry import ClosestGeometry, FocalGeometry, FocalKeys
from mmfocal.geometry.caching import bytes_of

from .cases import FAST, FOCAL_WINDOWS
from .measure import synchronize
from .parts import DETECTION, Report, Settings, Size

STRIDES = (4, 8, 16, 32)
STAGES = {
    DETECTION: [FocalGeometry(focal_window=side) for side in FOCAL_WINDOWS[DETECTION]],
    FAST: [ClosestGeometry()] * len(STRIDES),
}
SHORTER, LONGEST, MULTIPLE = (480, 800), 1344, 32
COUNTED = 10  # sizes for which operators are counted, apart from those that are timed


class Tables(NamedTuple):
    """Tables of one kind.

    Attributes:
        make: from keys and a device.
        bytes: of what was made.
    """

    make: Callable[[FocalKeys, torch.device], object]
    bytes: Callable[[object], int]


def sizes_of_training(count: int) -> list[Size]:
    """Different sizes of batches of multi-scale training: the recipes' ``1333x(480..800)``.

    Images are scaled so that the shorter side has 480 to 800 pixels and the longer one 1333 at
    most, and batches are padded to multiples of 32. In the same order every time.
    """
    shorter = range(SHORTER[0], SHORTER[1] + 1, MULTIPLE)
    wide = [(h, w) for h in shorter for w in range(h, LONGEST + 1, MULTIPLE)]
    all_sizes = sorted({*wide, *((w, h) for h, w in wide)})
    return random.Random(0).sample(all_sizes, count)


def kinds_of_tables() -> dict[str, Tables]:
    """What backends read, by the name of the backend; of those whose packages are there."""

    def complete(keys: FocalKeys, device: torch.device) -> object:
        return keys.make_tables(device).complete()

    kinds = {'gather_sdpa': Tables(complete, lambda tables: tables.bytes())}
    try:
        from mmfocal.ops.triton.layout import make_layout
    except ImportError:
        return kinds
    return {'triton': Tables(make_layout, bytes_of)} | kinds


class OpCounter(TorchDispatchMode):
    """Counts operators that do not only look at memory in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def time_tables(report: Report, settings: Settings, num_sizes: int) -> None:
    """Operators, time and bytes of the tables of all four stages for each size."""
    kinds, sizes = kinds_of_tables(), sizes_of_training(num_sizes + COUNTED)
    device, results = settings.device, report.data.setdefault('tables', [])

    def rows() -> Iterator[list[str]]:
        for model, geometries in STAGES.items():
            for kind, tables in kinds.items():
                operators = []
                for size in sizes[num_sizes:]:
                    with OpCounter() as counter:
                        _make(tables, geometries, size, device)
                    operators.append(counter.count)
                seconds, taken = [], []
                for size in sizes[:num_sizes]:
                    synchronize(device)
                    start = perf_counter()
                    made = _make(tables, geometries, size, device)
                    synchronize(device)
                    seconds.append(perf_counter() - start)
                    taken.append(sum(map(tables.bytes, made)))
                results.append(
                    dict(
                        model=model,
                        backend=kind,
                        operators=operators,
                        sizes=sizes[:num_sizes],
                        times=seconds,
                        bytes=taken,
                    )
                )
                yield [
                    model,
                    kind,
                    _range(operators, 1, 0),
                    _range(seconds, 1e3, 1) + ' ms',
                    _range(taken, 1e-6, 1) + ' MB',
                ]

    report.table(
        f'Tables of keys, all stages, {num_sizes} sizes of images: median (tenth to nine tenths)',
        ['model', 'backend', 'operators', 'time', 'memory'],
        rows(),
    )


def _make(
    tables: Tables, geometries: list[FocalGeometry | ClosestGeometry], size: Size, device: object
) -> list[object]:
    return [
        tables.make(geometry.keys(*(-(-side // stride) for side in size)), device)
        for geometry, stride in zip(geometries, STRIDES, strict=True)
    ]


def _range(values: list[float], factor: float, digits: int) -> str:
    tenths = [factor * value for value in quantiles(values, n=10, method='inclusive')]
    return '{:.{d}f} ({:.{d}f} to {:.{d}f})'.format(tenths[4], tenths[0], tenths[8], d=digits)
