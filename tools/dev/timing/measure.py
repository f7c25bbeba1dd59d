"""Time, memory and the limits of a machine, measured so that ratios can be trusted."""

from __future__ import annotations

import gc
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mmfocal.utils.compat import installed
from mmfocal.version import __version__

SHORTEST_RUN = 0.1  # seconds; shorter calls are repeated, and a GPU may lag its queue

# For the environment of a process whose memory is measured on a CPU: glibc then gives every large
# block back when it is freed. By default it keeps some, which moves the peak of Swin-T at 448 by
# 5% from run to run and 20 to 27% above what PyTorch allocates; so, both agree within 1%.
GIVE_MEMORY_BACK = {'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TRIM_THRESHOLD_': '65536'}


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
    seconds: dict[str, list[float]] | None = None,
    shortest: float = SHORTEST_RUN,
) -> dict[str, list[float]]:
    """Seconds of each call in each run, all calls in turn: A B C A B C ...

    A machine that is slow for a while slows all of them, so that ratios within a run hold.

    Args:
        calls: what to time, by name. Each is called twice before: to warm up, and to see how often
            it has to be repeated.
        runs: times that each is counted.
        device: which is waited for before a clock is read.
        seconds: a list for each name, filled as runs finish, so that an interrupted benchmark
            loses nothing.
        shortest: seconds that a run takes at least; a call that takes less is repeated.
    """
    repeats = {}
    for name, call in calls.items():
        _seconds(call, 1, device)
        repeats[name] = max(1, math.ceil(shortest / _seconds(call, 1, device)))
    seconds = {name: [] for name in calls} if seconds is None else seconds
    for _ in range(runs):
        for name, call in calls.items():
            gc.collect()
            seconds[name].append(_seconds(call, repeats[name], device))
    return seconds


def _seconds(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Mean time of some calls in a row."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def on_device(
    calls: Mapping[str, Callable[[], object]],
    runs: int,
    device: torch.device,
    seconds: dict[str, list[float]],
) -> None:
    """Seconds of each call on a GPU alone, all calls in turn, as CUDA graphs.

    PyTorch takes the host some microseconds for each operator. Where that is longer than the GPU
    takes, :func:`interleaved` measures the host; a graph is launched as one.

    Args:
        calls: what to time, by name; without anything that waits for the GPU.
        runs: times that each is counted.
        device: a GPU.
        seconds: a list for each name, filled as runs finish.
    """
    graphs = {name: _graph_of(call, device) for name, call in calls.items()}
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for run in range(runs + 1):  # the first is to warm up
        for name, graph in graphs.items():
            begin.record()
            graph.replay()
            end.record()
            synchronize(device)
            if run:
                seconds[name].append(1e-3 * begin.elapsed_time(end))


def _graph_of(call: Callable[[], object], device: torch.device) -> torch.cuda.CUDAGraph:
    """A CUDA graph of a call, which makes its tables and workspaces before."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


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
    process with :data:`GIVE_MEMORY_BACK` in its environment, after a small step that loads the
    libraries.
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

    Time is PyTorch's profiler's: of the kernels on a GPU, without the launching of them, and of
    the calls on a CPU. FLOPs are those of products, counted by :mod:`torch.utils.flop_counter`, to
    which focal attention is registered. Bytes are those of tensors read and written once each, the
    least that an operator can move. Views and new memory move nothing and are left out.

    Attributes:
        device: where the operators run.
        phase: part of the name of each group, to be changed over time.
    """

    device: torch.device
    phase: str = 'forward'
    _counted: dict[str, OpGroup] = field(default_factory=dict)

    PREFIX = 'mmfocal benchmark: '

    def __post_init__(self) -> None:
        super().__init__()

    def __enter__(self) -> OpMeter:
        on_gpu = self.device.type == 'cuda'
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        self._profile = profile(activities=activities)
        self._profile.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        synchronize(self.device)
        self._profile.__exit__(*error)

    @cached_property
    def groups(self) -> dict[str, OpGroup]:
        """What was seen, by kind and phase.

        To be asked for when the meter has ended. Reading what the profiler wrote takes longer than
        what it saw, and nobody asks for that of steps that only warm up.
        """
        for event in self._profile.events():
            # A GPU's timeline has ranges of the same names.
            if event.device_type == DeviceType.CPU and event.name.startswith(self.PREFIX):
                on_gpu = self.device.type == 'cuda'
                microseconds = event.device_time_total if on_gpu else event.cpu_time_total
                self._counted[event.name.removeprefix(self.PREFIX)].seconds += 1e-6 * microseconds
        return self._counted

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if moves_nothing(func):
            return func(*args, **kwargs)
        name = f'{group_of(func)}, {self.phase}'
        group = self._counted.setdefault(name, OpGroup())
        with record_function(self.PREFIX + name):
            out = func(*args, **kwargs)
        group.calls += 1
        group.bytes += moved_bytes(args, kwargs, out)
        group.flops += product_flops(func, args, kwargs, out)
        return out


# Of the last kind is the look at a fake tensor's device, which is dispatched as an operator.
MOVES_NOTHING = ('aten.empty', 'aten.new_empty', 'aten._unsafe_view', 'prim.')
GROUPS = {
    'attention': ('mmfocal.focal_attention.', 'mmfocal.focal_attention_backward.'),
    'tokens and position bias': ('mmfocal.focal_tokens', 'mmfocal.table_bias'),
    'linear layers': ('aten.mm.', 'aten.addmm.', 'aten.linear'),
    'other products': ('aten.bmm.', 'aten.baddbmm.', 'aten._scaled_dot_product'),
    'convolutions': ('aten.convolution',),
    'GELU': ('aten.gelu',),
    'norms': ('aten.native_layer_norm',),
    'softmax': ('aten._softmax',),
}


def moves_nothing(func: Any) -> bool:
    """Whether an operator only makes views or new memory, or only asks."""
    return func.is_view or str(func).startswith(MOVES_NOTHING)


def moved_bytes(*values: Any) -> int:
    """Bytes of all tensors in arguments and results, each once; what is expanded is read once."""
    return sum(
        min(leaf.numel() * leaf.element_size(), leaf.untyped_storage().nbytes())
        for leaf in tree_leaves(values)
        if isinstance(leaf, Tensor)
    )


def product_flops(func: Any, args: tuple, kwargs: dict, out: Any) -> int:
    """FLOPs of an operator as :mod:`torch.utils.flop_counter` knows it, else 0."""
    count = flop_registry.get(func.overloadpacket)
    return count(*args, **kwargs, out_val=out) if count else 0


def group_of(func: Any) -> str:
    """Kind of an operator; what moves data and adds is one kind."""
    for group, names in GROUPS.items():
        if str(func).startswith(names):
            return group
    return 'copies, sums and the rest'


def matrix_rate(device: torch.device, dtype: torch.dtype, runs: int = 7) -> float:
    """FLOPs per second of a large square product, the best of some runs."""
    side = 8192 if device.type == 'cuda' else 2048
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = min(interleaved({'product': lambda: left @ right}, runs, device)['product'])
    return 2 * side**3 / best


def bandwidth(device: torch.device, runs: int = 7, megabytes: int = 256) -> float:
    """Bytes per second of a large copy, reading and writing counted, the best of some runs."""
    source = torch.zeros(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = min(interleaved({'copy': lambda: target.copy_(source)}, runs, device)['copy'])
    return 2 * source.numel() / best


def machine(device: torch.device) -> dict[str, str | int]:
    """Where and with what something was measured."""
    packages = ('mmdet', 'onedl-mmdetection', 'mmsegmentation', 'onedl-mmsegmentation')
    names = (*packages, 'triton', 'onnxruntime')
    versions = {name: found for name in names if (found := installed(name))}
    processor = platform.processor() or platform.machine()
    if (cpuinfo := Path('/proc/cpuinfo')).exists():
        lines = cpuinfo.read_text().splitlines()
        models = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
        processor = models[0] if models else processor
    gpu = {}
    if device.type == 'cuda':
        gpu = {'GPU': torch.cuda.get_device_name(device), 'CUDA': torch.version.cuda}
        if shutil.which('nvidia-smi'):
            asked = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
            found = subprocess.run(asked, capture_output=True, text=True).stdout.split()
            gpu |= {'driver': found[0]} if found else {}
    return {
        'date': time.strftime('%Y-%m-%d'),
        'processor': processor,
        'cores': len(os.sched_getaffinity(0))
        if hasattr(os, 'sched_getaffinity')
        else os.cpu_count(),
        'threads': torch.get_num_threads(),
        **gpu,
        'Python': platform.python_version(),
        'mmfocal': __version__,
        'torch': torch.__version__,
        **versions,
    }
