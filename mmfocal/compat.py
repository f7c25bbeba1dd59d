"""The packages that mmfocal runs on: which stack is installed, and does it fit.

Two stacks give the same import names ``mmcv``, ``mmengine``, ``mmdet`` and ``mmseg``: OpenMMLab's
packages, and OneDL's maintained forks. Nothing here imports them; versions come from the metadata
of what is installed.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

PYTHONS = ((3, 10), (3, 12))
# weights_only loading with an allow-list of named stand-ins, on which safe loading rests.
TORCH_AT_LEAST = '2.6'


class Requirement(NamedTuple):
    """A distribution, and the versions from ``at_least`` to before ``below`` that fit."""

    distribution: str
    at_least: str
    below: str
    tested: str


# By import name. mmdet and mmseg are only needed for their own configs.
STACKS: dict[str, dict[str, Requirement]] = {
    'official': {
        'mmengine': Requirement('mmengine', '0.10.4', '0.11', '0.10.7'),
        'mmcv': Requirement('mmcv', '2.1.0', '2.2.0', '2.1.0'),
        'mmdet': Requirement('mmdet', '3.3.0', '3.4', '3.3.0'),
        'mmseg': Requirement('mmsegmentation', '1.2.2', '1.3', '1.2.2'),
    },
    'onedl': {
        'mmengine': Requirement('onedl-mmengine', '0.10.9', '0.11', '0.10.12'),
        'mmcv': Requirement('onedl-mmcv', '2.3.0', '2.4', '2.3.6'),
        'mmdet': Requirement('onedl-mmdetection', '3.4', '3.6', '3.5.1'),
        'mmseg': Requirement('onedl-mmsegmentation', '1.3', '1.5', '1.4.2'),
    },
}
REQUIRED = ('mmengine', 'mmcv')


class Problem(NamedTuple):
    """Something that does not fit: what was found and expected, and its repair."""

    text: str
    command: str

    def __str__(self) -> str:
        return f'{self.text} Run: {self.command}'


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def detect_stack() -> str | None:
    """``'official'`` or ``'onedl'``, whichever mmengine belongs to; None without either."""
    for stack, requirements in STACKS.items():
        if installed(requirements['mmengine'].distribution):
            return stack
    return None


def install_command(stack: str, name: str, again: bool = False) -> str:
    """Command that installs the tested version of a package, ``again`` even if it is there."""
    requirement = STACKS[stack][name]
    options = '--force-reinstall --no-deps --no-cache-dir ' if again else ''
    options += '--no-build-isolation ' if name == 'mmcv' else ''
    return f'pip install {options}{requirement.distribution}=={requirement.tested}'


def find_problems(names: tuple[str, ...] = REQUIRED) -> list[Problem]:
    """Everything about versions that does not fit, the first to repair first.

    Args:
        names: import names that have to be there. Others are checked if they are.
    """
    problems = []
    python = sys.version_info[:2]
    if not PYTHONS[0] <= python <= PYTHONS[1]:
        problems.append(
            Problem(
                f'Python {python[0]}.{python[1]} is not supported, 3.10 to 3.12 are.',
                'make env PYTHON=/path/to/python3.11',
            )
        )
    torch = installed('torch')
    if torch is None or _numbers(torch) < _numbers(TORCH_AT_LEAST):
        found = 'is not installed' if torch is None else f'{torch} is too old'
        problems.append(
            Problem(
                f'PyTorch {found}, {TORCH_AT_LEAST} or newer is needed.',
                'pip install torch==2.13.0',
            )
        )
    setuptools = installed('setuptools')
    if importlib.util.find_spec('pkg_resources') is None:
        problems.append(
            Problem(
                f'setuptools {setuptools} has no pkg_resources, which mmengine imports.',
                "pip install 'setuptools<81'",
            )
        )
    stack = detect_stack() or 'official'
    other = 'onedl' if stack == 'official' else 'official'
    both = [
        requirement.distribution
        for name, requirement in STACKS[other].items()
        if installed(requirement.distribution)
    ]
    if both:
        problems.append(
            Problem(
                f'Packages of two stacks with the same import names are installed: {stack} and '
                f'{", ".join(both)}.',
                # Removing one of them takes files of the other with it.
                f'pip uninstall -y {" ".join(both)} && '
                + ' && '.join(install_command(stack, name, again=True) for name in STACKS[stack]),
            )
        )
    for name, requirement in STACKS[stack].items():
        found = installed(requirement.distribution)
        window = f'{requirement.at_least} or newer and below {requirement.below}'
        if found is None:
            if name in names and not both:
                problems.append(
                    Problem(
                        f'{requirement.distribution} is not installed, {window} is needed.',
                        install_command(stack, name),
                    )
                )
        elif not _numbers(requirement.at_least) <= _numbers(found) < _numbers(requirement.below):
            problems.append(
                Problem(
                    f'{requirement.distribution} {found} does not fit, {window} is needed.',
                    install_command(stack, name),
                )
            )
    return problems


def check_versions() -> None:
    """Raises an ImportError with the first problem and its repair, before anything else breaks."""
    if problems := find_problems():
        raise ImportError(f'mmfocal cannot be used here. {problems[0]}')


def require_mmcv_ops() -> None:
    """Raises an ImportError with its repair where mmcv lacks its compiled operators."""
    if problem := mmcv_ops_problem():
        raise ImportError(str(problem))


def mmcv_ops_problem() -> Problem | None:
    """What keeps mmcv's compiled operators from loading, or None."""
    try:
        importlib.import_module('mmcv._ext')
    except ImportError as error:
        stack = detect_stack() or 'official'
        return Problem(
            f"mmcv's compiled operators do not load ({error}): it was installed without them, or "
            'built for another PyTorch.',
            install_command(stack, 'mmcv', again=True),
        )
    return None


def _numbers(text: str) -> tuple[int, ...]:
    """Leading numbers of a version: '2.13.0+cpu' is (2, 13, 0)."""
    numbers = []
    for part in text.split('+')[0].split('.'):
        digits = ''.join(ch for ch in part if ch.isdigit())
        if not part[:1].isdigit():
            break
        numbers.append(int(digits))
    return tuple(numbers)
