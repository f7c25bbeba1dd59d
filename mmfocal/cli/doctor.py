"""Tells what is installed here and, for each thing that does not fit, the command that repairs it.

Ends with status 0 if training would work.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from mmfocal.utils.compat import (
    CORE,
    TORCH,
    Problem,
    detect_stack,
    family_problem,
    find_problems,
    import_problem,
    install,
    installed,
    mmcv_ops_problem,
    pip,
    reinstall,
    stack_requirements,
)
from mmfocal.version import __version__

# Of which one is enough to train. mmpretrain is only for classification.
FAMILIES = ('mmdet', 'mmseg')
OTHERS = ('numpy', 'pycocotools', 'matplotlib', 'safetensors', 'triton')
# Each of them provides cv2.
OPENCV = (
    'opencv-python',
    'opencv-python-headless',
    'opencv-contrib-python',
    'opencv-contrib-python-headless',
)
GIB = 2**30


class Probe(NamedTuple):
    """Something to try out: ``run`` says what it found; a Problem, or what it raises, is bad."""

    name: str
    run: Callable[[], str | Problem]
    repair: str


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    packages = stack_requirements()
    families = tuple(name for name in FAMILIES if installed(packages[name].distribution))
    problems = find_problems(CORE + (families or FAMILIES[:1]))
    for name, value in versions():
        show(name, value)
    for name, outcome in () if problems else try_out(probes(families)):
        works = not isinstance(outcome, Problem)
        show(name, outcome if works else 'does not work, see below')
        problems += [] if works else [outcome]

    if problems:
        print('\nTo repair, in this order:')
        for problem in problems:
            print(f'- {problem.text}\n  Run: {problem.command}')
        print('Or run `make env`, which builds an environment of its own that fits.')
        return 1
    print('\nEverything fits: training will work.')
    for family in FAMILIES:
        if family not in families:
            print(f'For configs of {family}, run: {install(packages[family])}')
    return 0


def show(name: str, value: str) -> None:
    print(f'{name:20} {value}', flush=True)


def versions() -> Iterator[tuple[str, str]]:
    """Names and versions of what is there, from metadata only."""
    yield 'Python', f'{platform.python_version()} ({sys.executable})'
    yield 'System', f'{platform.platform()}, {os.cpu_count()} cores, {memory()}'
    yield 'Stack', detect_stack() or 'none'
    distributions = [package.distribution for package in stack_requirements().values()]
    for distribution in ('torch', *distributions, *OTHERS):
        yield distribution, installed(distribution) or 'not installed'
    found = [f'{name} {version}' for name in OPENCV if (version := installed(name))]
    yield 'OpenCV', ', '.join(found) or 'not installed'


def memory() -> str:
    try:
        size = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    except (AttributeError, ValueError):  # not on every system
        return 'unknown memory'
    return f'{size / GIB:.0f} GiB memory'


def probes(families: tuple[str, ...]) -> list[Probe]:
    """What is tried out, in order: each rests on those before it."""
    packages = stack_requirements()
    return [
        Probe('GPU', gpu, reinstall(TORCH)),
        Probe('mmcv operators', operators, reinstall(packages['mmcv'])),
        *(
            Probe(f'{name} imports', FAMILY_PROBES[name], reinstall(packages[name]))
            for name in families
        ),
        Probe('mmfocal', backbone, 'make test'),
        Probe('mmpretrain', mmpretrain, reinstall(packages['mmpretrain'])),
        Probe('Cache', cache, 'export MMFOCAL_CACHE=/a/folder/with/room'),
        Probe('Triton', triton_kernel, pip('install', '--force-reinstall', '--no-deps', 'triton')),
    ]


def try_out(probes: list[Probe]) -> Iterator[tuple[str, str | Problem]]:
    """Runs probes up to the first that fails, in another process: a crash ends only that."""
    # Not a fork: nothing that this process loaded or set is to make a difference.
    context = multiprocessing.get_context('spawn')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_probes, args=(probes, sender))
    process.start()
    sender.close()
    for probe in probes:
        try:
            outcome = receiver.recv()
        except EOFError:
            process.join()
            text = f'{probe.name}: Python crashes (exit code {process.exitcode}).'
            outcome = Problem(text, probe.repair)
        yield probe.name, outcome
        if isinstance(outcome, Problem):
            break
    process.join()


def run_probes(probes: list[Probe], sender: Connection) -> None:
    # Warnings and progress of third parties, written by C++ code too.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    for probe in probes:
        try:
            outcome = probe.run()
        except Exception as error:  # a broken package may raise anything
            outcome = Problem(f'{probe.name}: {type(error).__name__}: {error}', probe.repair)
        sender.send(outcome)
        if isinstance(outcome, Problem):
            return


def gpu() -> str | Problem:
    if problem := import_problem('torch'):
        return problem
    import torch

    if not torch.cuda.is_available():
        built = f'for CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA'
        return f'none that PyTorch sees, which is built {built}'
    torch.ones(1, device='cuda').item()
    properties = torch.cuda.get_device_properties(0)
    return (
        f'{torch.cuda.device_count()} x {properties.name}, '
        f'{properties.total_memory / GIB:.0f} GiB, '
        f'compute capability {properties.major}.{properties.minor}, CUDA {torch.version.cuda}'
    )


def operators() -> str | Problem:
    if problem := mmcv_ops_problem():
        return problem
    import torch
    from mmcv.ops import nms

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]], device=device)
    _, kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)
    if kept.tolist() != [0, 2]:
        raise RuntimeError(f'nms kept boxes {kept.tolist()} instead of [0, 2]')
    return f'work (nms on the {device.upper()})'


def mmdet() -> str | Problem:
    return family_problem('mmdet') or 'yes'


def mmseg() -> str | Problem:
    return family_problem('mmseg') or 'yes'


# Functions of this module, since probes travel to another process.
FAMILY_PROBES = {'mmdet': mmdet, 'mmseg': mmseg}


def backbone() -> str:
    import torch

    from mmfocal.models import FocalTransformer

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    arch = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    model = FocalTransformer(arch).to(device)
    sum(output.sum() for output in model(torch.rand(1, 3, 32, 32, device=device))).backward()
    return f'{__version__}, a backbone runs forward and backward'


def mmpretrain() -> str:
    """Optional: what is wrong is told and is no Problem."""
    problem = family_problem('mmpretrain')
    return f'for its configs: {problem}' if problem else 'imports'


def cache() -> str | Problem:
    from mmfocal.datasets import shapes_root

    folder = Path(shapes_root()).parent
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < GIB or not os.access(existing, os.W_OK):
        raise RuntimeError(f'{folder} cannot be written, or has less than 1 GiB free')
    return f'{folder}, {free / GIB:.0f} GiB free'


def triton_kernel() -> str:
    """Runs a kernel. Optional: what is wrong is told and is no Problem."""
    if installed('triton') is None:
        return 'not installed; attention runs on its other backends'
    import torch

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ['TRITON_INTERPRET'] = '1'
    try:
        import triton
        import triton.language as tl

        @triton.jit
        def double(source, target, size: tl.constexpr):
            offsets = tl.arange(0, size)
            tl.store(target + offsets, 2 * tl.load(source + offsets))

        source = torch.arange(8.0, device='cuda' if on_gpu else 'cpu')
        target = torch.zeros_like(source)
        double[(1,)](source, target, 8)
        if not torch.equal(target, 2 * source):
            raise RuntimeError(f'a kernel gave {target.tolist()}')
    except Exception as error:  # its compiler may raise anything
        return f'does not work ({type(error).__name__}: {error}); other backends take its place'
    return (
        'kernels run' if on_gpu else 'no GPU; kernels run in its interpreter (TRITON_INTERPRET=1)'
    )
