"""Tells what is installed here and, for all that does not fit, the command that repairs it."""

import importlib
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
warnings.filterwarnings('ignore')

# Not through the package: `import mmfocal` refuses where versions do not fit, and this tool is
# for just that case.
sys.path.insert(0, str(ROOT / 'mmfocal'))
import compat

sys.path[0] = str(ROOT)


def main() -> int:
    problems = compat.find_problems(names=('mmengine', 'mmcv', 'mmdet', 'mmseg'))
    show('Python', f'{platform.python_version()} ({sys.executable})')
    show('System', f'{platform.platform()}, {os.cpu_count()} cores, {memory()}')
    show('Free disk', f'{shutil.disk_usage(Path.home()).free / 2**30:.0f} GiB in the home folder')
    stack = compat.detect_stack()
    show('Stack', stack or 'none')
    for name in ('torch', 'torchvision', 'triton', 'numpy', 'opencv-python', 'pycocotools'):
        show(name, compat.installed(name) or 'not installed')
    for requirement in compat.STACKS[stack or 'official'].values():
        show(requirement.distribution, compat.installed(requirement.distribution) or 'missing')

    if compat.installed('torch'):
        show('GPU', attempt(gpu))
    if compat.installed(compat.STACKS[stack or 'official']['mmcv'].distribution):
        problem = compat.mmcv_ops_problem()
        show('mmcv operators', 'missing' if problem else attempt(run_nms))
        problems += [problem] if problem else []
    if compat.installed('triton'):
        show('Triton kernels', attempt(triton))
    if not problems:
        outcome = attempt(run_backbone)
        show('mmfocal', outcome)
        if outcome.startswith('fails'):
            problems.append(compat.Problem('The backbone does not run (see above).', 'make test'))

    if not problems:
        print('\nEverything fits: training will work.')
        return 0
    print('\nTo repair, in this order:')
    for problem in problems:
        print(f'- {problem.text}\n    {problem.command}')
    return 1


def show(name: str, value: str) -> None:
    print(f'{name:18} {value}')


def attempt(check: Callable[[], str]) -> str:
    """What a check says, or how it fails: a broken package may raise anything at all."""
    try:
        return check()
    except Exception as error:
        return f'fails: {type(error).__name__}: {error}'


def memory() -> str:
    if not hasattr(os, 'sysconf'):
        return 'memory unknown'
    return f'{os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30:.0f} GiB memory'


def gpu() -> str:
    torch = importlib.import_module('torch')
    if not torch.cuda.is_available():
        return f'none that PyTorch sees (built for CUDA {torch.version.cuda or "- no"})'
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f'{torch.cuda.device_count()} x {name}, {total:.0f} GiB, capability {capability}'


def run_nms() -> str:
    torch, ops = importlib.import_module('torch'), importlib.import_module('mmcv.ops')
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    _, kept = ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
    if kept.tolist() != [0, 2]:
        raise RuntimeError(f'nms kept {kept.tolist()} instead of [0, 2]')
    return 'work (nms on the CPU gave the right boxes)'


def triton() -> str:
    torch = importlib.import_module('torch')
    if torch.cuda.is_available():
        return 'can run on the GPU'
    return 'no GPU; TRITON_INTERPRET=1 runs them on the CPU for tests'


def run_backbone() -> str:
    torch, mmfocal = importlib.import_module('torch'), importlib.import_module('mmfocal')
    arch = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    maps = mmfocal.FocalTransformer(arch)(torch.rand(1, 3, 32, 32))
    return f'{mmfocal.__version__}, backbone runs ({len(maps)} maps)'


if __name__ == '__main__':
    sys.exit(main())
