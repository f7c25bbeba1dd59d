"""Time, memory and the limits of a machine, measured so that ratios can be trusted."""

from __future__ import annotations

import gc
import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Spread:
    """The median of some runs, and the least and the most of them."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        values = sorted(values)
        return cls(median(values), values[0], values[-1])


def synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    runs: int,
    device: torch.device,
    keep: dict[str, list[float]] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call in each run, all calls in turn: A B C A B C ...

    A machine that is slow for a while slows all of them, so that ratios within a run hold.

    Args:
        calls: what to time, by name. Each is called once before, to warm up.
        runs: times that each is counted.
        device: which is waited for before a clock is read.
        keep: filled as runs finish, so that an interrupted benchmark loses nothing.
    """
    for call in calls.values():
        call()
    seconds = {} if keep is None else keep
    seconds.update({name: [] for name in calls})
    for _ in range(runs):
        for name, call in calls.items():
            gc.collect()
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: Mapping[str, list[float]], yardstick: str) -> dict[str, Spread]:
    """Each call's time over the yardstick's, run by run."""
    base = seconds[yardstick]
    return {
        name: Spread.of(t / b for t, b in zip(times, base, strict=False))
        for name, times in seconds.items()
        if times
    }


def added_memory(step: Callable[[], object], device: torch.device) -> int:
    """Bytes that a step adds at its peak to what is there before it.

    On a GPU what PyTorch's allocator counts; on a CPU the resident memory of the process, for
    which Linux is asked. Memory that was freed may stay resident, so on a CPU this is for a fresh
    process, after a small step that loads the libraries.
    """
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    Path('/proc/self/clear_refs').write_text('5')  # sets the peak back to what is resident now
    before = _resident('VmRSS')
    step()
    return max(0, _resident('VmHWM') - before)


def _resident(name: str) -> int:
    lines = Path('/proc/self/status').read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f'{name}:'))
    return int(kilobytes) * 1024


def growth(pixels: Iterable[float], seconds: Iterable[float]) -> float:
    """Exponent ``e`` of the best fit of ``seconds ~ pixels ** e``, by least squares of logs."""
    x = [math.log(p) for p in pixels]
    y = [math.log(s) for s in seconds]
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - x_mean) ** 2 for a in x)


@dataclass
class OpGroup:
    """Sums over calls of similar operators."""

    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0


@dataclass
class OpMeter(TorchDispatchMode):
    """Time, FLOPs and bytes of each kind of operator that PyTorch runs inside it.

    FLOPs are those of products, counted by :mod:`torch.utils.flop_counter`, to which focal
    attention is registered. Bytes are those of tensors read and written once each, the least that
    an operator can move. Views move nothing and are left out.
    """

    device: torch.device
    groups: dict[str, OpGroup] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        synchronize(self.device)
        start = time.perf_counter()
        out = func(*args, **kwargs)
        synchronize(self.device)
        seconds = time.perf_counter() - start
        if not func.is_view:
            group = self.groups.setdefault(group_of(func), OpGroup())
            group.calls += 1
            group.seconds += seconds
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            group.bytes += sum(t.numel() * t.element_size() for t in tensors)
            if func.overloadpacket in flop_registry:
                group.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        return out


GROUPS = {
    'attention, forward': ('mmfocal.focal_attention.',),
    'attention, backward': ('mmfocal.focal_attention_backward.',),
    'linear layers': ('aten.mm.', 'aten.addmm.', 'aten.linear'),
    'other products': ('aten.bmm.', 'aten.baddbmm.', 'aten._scaled_dot_product'),
    'convolutions': ('aten.convolution',),
    'GELU': ('aten.gelu',),
    'norms': ('aten.native_layer_norm',),
    'softmax': ('aten._softmax',),
}


def group_of(func: Any) -> str:
    """Kind of an operator; what moves data and adds is one kind."""
    for group, names in GROUPS.items():
        if str(func).startswith(names):
            return group
    return 'copies, sums and the rest'


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int = 2048) -> float:
    """FLOPs per second of a large square product, the best of some."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = min(interleaved({'product': lambda: left @ right}, 7, device)['product'])
    return 2 * side**3 / best


def bandwidth(device: torch.device, megabytes: int = 256) -> float:
    """Bytes per second of a large copy, reading and writing counted, the best of some."""
    source = torch.zeros(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = min(interleaved({'copy': lambda: target.copy_(source)}, 7, device)['copy'])
    return 2 * source.numel() / best


def machine(device: torch.device) -> dict[str, str | int]:
    """Where and with what something was measured."""
    versions = {}
    for name in ('mmdet', 'onedl-mmdetection', 'triton'):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    processor = platform.processor() or platform.machine()
    if (cpuinfo := Path('/proc/cpuinfo')).exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
        processor = names[0] if names else processor
    gpu = {'GPU': torch.cuda.get_device_name(device)} if device.type == 'cuda' else {}
    return {
        'date': time.strftime('%Y-%m-%d'),
        'processor': processor,
        'threads': torch.get_num_threads(),
        **gpu,
        'Python': platform.python_version(),
        'torch': torch.__version__,
        **versions,
    }
