"""The packages that mmfocal runs on: which stack is installed, does it fit, does it work.

Two stacks give the same import names ``mmcv``, ``mmengine``, ``mmdet``, ``mmseg`` and
``mmpretrain``: OpenMMLab's packages, and OneDL's maintained forks. Importing this module imports
none of them, and nothing but the standard library: versions come from the metadata of what is
installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple


class Requirement(NamedTuple):
    """A distribution, and the versions from ``at_least`` to before ``below`` that fit."""

    distribution: str
    at_least: str
    below: str
    tested: str

    @property
    def pin(self) -> str:
        """The tested version, as pip takes it."""
        return f'{self.distribution}=={self.tested}'

    def accepts(self, found: str) -> bool:
        return _numbers(self.at_least) <= _numbers(found) < _numbers(self.below)

    def __str__(self) -> str:
        return f'{self.at_least} or newer, below {self.below}'


class Problem(NamedTuple):
    """What was found and what is expected, and the command that repairs it."""

    text: str
    command: str

    def __str__(self) -> str:
        return f'{self.text} Run: {self.command}'


PYTHON = Requirement('python', '3.11', '3.15', '3.11')
# Loading checkpoints safely rests on weights_only and its allow-list with named stand-ins.
TORCH = Requirement('torch', '2.6', '3', '2.13.0')
# By import name, what is imported first standing first.
STACKS: dict[str, dict[str, Requirement]] = {
    'official': {
        'mmengine': Requirement('mmengine', '0.10.4', '0.11', '0.10.7'),
        'mmcv': Requirement('mmcv', '2.1.0', '2.2.0', '2.1.0'),
        'mmdet': Requirement('mmdet', '3.3.0', '3.4', '3.3.0'),
        'mmseg': Requirement('mmsegmentation', '1.2.2', '1.3', '1.2.2'),
        'mmpretrain': Requirement('mmpretrain', '1.2.0', '1.3', '1.2.0'),
    },
    'onedl': {
        'mmengine': Requirement('onedl-mmengine', '0.10.9', '0.11', '0.10.12'),
        'mmcv': Requirement('onedl-mmcv', '2.3.0', '2.4', '2.3.6'),
        'mmdet': Requirement('onedl-mmdetection', '3.4', '3.6', '3.5.1'),
        'mmseg': Requirement('onedl-mmsegmentation', '1.3', '1.5', '1.4.2'),
        'mmpretrain': Requirement('onedl-mmpretrain', '1.3', '1.4', '1.3.6'),
    },
}
# The last that have pkg_resources.
SETUPTOOLS = 'setuptools<81'
# What `import mmfocal` needs. The others are needed by configs of their own family.
CORE = ('mmengine', 'mmcv')
FAMILIES = ('mmdet', 'mmseg', 'mmpretrain')

# Distributions whose name is not that of the module that is missing.
_DISTRIBUTIONS = {
    'cv2': 'opencv-python',
    'imgaug': 'imaug',  # as OneDL's mmdet requires it
    'PIL': 'pillow',
    'skimage': 'scikit-image',
    'sklearn': 'scikit-learn',
    'yaml': 'PyYAML',
}


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def detect_stack() -> str | None:
    """``'official'`` or ``'onedl'``, whichever more is installed of; None without either."""
    counts = {
        stack: sum(installed(package.distribution) is not None for package in packages.values())
        for stack, packages in STACKS.items()
    }
    stack = max(counts, key=counts.get)
    return stack if counts[stack] else None


def stack_requirements() -> dict[str, Requirement]:
    """Requirements of the installed stack by import name; of the official one without any."""
    return STACKS[detect_stack() or 'official']


def find_problems(names: tuple[str, ...] = CORE) -> list[Problem]:
    """Everything about versions that does not fit, the first to repair first.

    Args:
        names: import names that have to be there. Others are checked if they are.
    """
    python = '.'.join(map(str, sys.version_info[:3]))
    if not PYTHON.accepts(python):
        text = f'Python {python} is used, {PYTHON} is needed.'
        # Nothing else can be put right in this one.
        return [Problem(text, 'make env PYTHON=/path/to/python3.11')]

    problems = _version_problems(TORCH, required=True)
    stack = detect_stack() or 'official'
    if stack == 'official' and importlib.util.find_spec('pkg_resources') is None:
        text = (
            'mmengine imports pkg_resources, which setuptools has up to version 80; '
            f'{installed("setuptools") or "none"} is installed.'
        )
        problems.append(Problem(text, pip('install', SETUPTOOLS)))
    mixed = _mixed_stacks(stack)
    problems += mixed
    for name, requirement in STACKS[stack].items():
        # What the repair of mixed stacks installs anew need not be asked for twice.
        problems += _version_problems(requirement, required=name in names and not mixed)
    return problems


def check_versions(names: tuple[str, ...] = CORE) -> None:
    """Raises an ImportError with the first problem and its repair, before anything else breaks.

    Args:
        names: import names that have to be there. Others are checked if they are.
    """
    problems = find_problems(names)
    if len(problems) > 1 and detect_stack() is None:
        mmcv = STACKS['official']['mmcv']
        commands = (pip('install', SETUPTOOLS), install(mmcv), pip('install', 'mmfocal[mmdet]'))
        raise ImportError(
            "mmfocal runs on OpenMMLab's packages or on OneDL's forks, and neither is installed. "
            f'Run, for detectors: {" && ".join(commands)}'
        )
    if len(problems) > 1:
        reasons = f'for {len(problems)} reasons, which `mmfocal doctor` lists; the first'
        raise ImportError(f'mmfocal cannot be used here {reasons}: {problems[0]}')
    if problems:
        raise ImportError(f'mmfocal cannot be used here: {problems[0]}')


def import_problem(name: str) -> Problem | None:
    """What keeps a module from being imported, or None.

    Args:
        name: ``'torch'``, or a package of the stack or a module in it, as ``'mmdet.models'``.
    """
    package = name.partition('.')[0]
    requirement = TORCH if package == 'torch' else stack_requirements()[package]
    if missing := _version_problems(requirement, required=True):
        return missing[0]
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken package may raise anything
        module = (getattr(error, 'name', None) or package).partition('.')[0]
        if module != package and importlib.util.find_spec(module) is None:
            return Problem(
                f'{name} imports {module}, which is not installed.',
                pip('install', _DISTRIBUTIONS.get(module, module)),
            )
        if re.search(r'lib(GL|gthread|glib)\S*\.so', str(error)):
            return Problem(
                f'OpenCV needs libraries of a desktop that are not here ({_first_line(error)}).',
                pip('uninstall', '-y', 'opencv-python')
                + ' && '
                + pip('install', '--force-reinstall', '--no-deps', 'opencv-python-headless'),
            )
        text = f'{name} cannot be imported ({type(error).__name__}: {_first_line(error)})'
        if re.search(r'mmcv\W{1,2}_ext', str(error)):
            text += ': mmcv lacks its operators, or has them for another PyTorch or Python'
        return Problem(f'{text}.', reinstall(requirement))
    return None


def family_problem(family: str) -> Problem | None:
    """What keeps the models or data sets of a family from being imported, or None.

    Args:
        family: of :data:`FAMILIES`.
    """
    return import_problem(f'{family}.models') or import_problem(f'{family}.datasets')


def mmcv_ops_problem() -> Problem | None:
    """What keeps mmcv's compiled operators from working, or None."""
    if problem := import_problem('torch') or import_problem('mmcv.ops'):
        return problem
    import torch
    from mmcv.ops import get_compiling_cuda_version

    if torch.cuda.is_available() and get_compiling_cuda_version() == 'not available':
        command = f'FORCE_CUDA=1 {reinstall(stack_requirements()["mmcv"])}'
        return Problem('There is a GPU, and mmcv was built without CUDA.', command)
    return None


def require_mmcv_ops() -> None:
    """Raises an ImportError with its repair where mmcv's compiled operators do not work."""
    if problem := mmcv_ops_problem():
        raise ImportError(str(problem))


def register_config_packages() -> None:
    """Lets mmengine find ``_base_ = 'mmfocal::...'``, and ``'mmseg::...'`` on OneDL's stack.

    It only knows OpenMMLab's packages, and looks for the distribution mmsegmentation, which is
    called onedl-mmsegmentation there; the name of a module serves as well. It also serves where
    mmfocal is installed as a link to a checkout, of whose distribution mmengine asks the wrong
    place.
    """
    from mmengine.config.utils import MODULE2PACKAGE

    MODULE2PACKAGE['mmfocal'] = 'mmfocal.version'
    if installed(MODULE2PACKAGE['mmseg']) is None:
        MODULE2PACKAGE['mmseg'] = 'mmseg'


def register_all_modules(init_default_scope: bool = True) -> None:
    """Registers what mmfocal and the installed families have, for ``mmengine.hub.get_model``.

    Args:
        init_default_scope: as in the families' functions of this name, and without effect:
            ``mmfocal`` is no scope, its configs name that of their family.
    """
    for family in FAMILIES:
        if family_problem(family) is None:
            importlib.import_module(f'{family}.utils').register_all_modules(False)
    for name in ('mmfocal.engine', 'mmfocal.detection'):
        with suppress(ImportError):  # the second needs mmdet
            importlib.import_module(name)


def pip(*arguments: str) -> str:
    """Command line of this interpreter's pip."""
    return shlex.join([sys.executable, '-m', 'pip', *arguments])


def install(requirement: Requirement) -> str:
    """Command that installs the tested version of a package and what it needs."""
    # mmcv is compiled against the PyTorch that is here.
    options = ['--no-build-isolation'] if requirement.distribution.endswith('mmcv') else []
    return _pip_install(options, requirement)


def reinstall(*requirements: Requirement) -> str:
    """Command that puts tested versions in the place of what is there, right or wrong."""
    options = ['--force-reinstall', '--no-deps']
    if any(each.distribution.endswith('mmcv') for each in requirements):
        # In pip's cache a build for another PyTorch has the same name.
        options += ['--no-build-isolation', '--no-cache-dir']
    return _pip_install(options, *requirements)


def _pip_install(options: list[str], *requirements: Requirement) -> str:
    command = pip('install', *options, *(each.pin for each in requirements))
    for each in requirements:
        if each.distribution.endswith('mmcv') and _has_to_be_repaired(each):
            # A script of the checkout repairs and compiles it.
            script = ['requirements/mmcv_wheel.sh', sys.executable, each.pin, 'wheels']
            return f'{shlex.join(script)} && {command} --find-links wheels'
    return command


def _has_to_be_repaired(mmcv: Requirement) -> bool:
    """Whether the ``setup.py`` of an mmcv fails here as it is."""
    reads_no_version = mmcv.distribution == 'mmcv' and sys.version_info >= (3, 13)
    asks_for_old_cpp = _numbers(installed('torch') or '0') >= (2, 14)
    return reads_no_version or asks_for_old_cpp


def _version_problems(requirement: Requirement, required: bool) -> list[Problem]:
    found = installed(requirement.distribution)
    if found is None and required:
        text = f'{requirement.distribution} is not installed, {requirement} is needed.'
    elif found is not None and not requirement.accepts(found):
        text = f'{requirement.distribution} {found} does not fit, {requirement} is needed.'
    else:
        return []
    return [Problem(text, install(requirement))]


def _mixed_stacks(stack: str) -> list[Problem]:
    """The problem of packages that lie in the same folders, which ``stack`` is to own."""
    (other,) = set(STACKS) - {stack}
    strangers = {
        name: package.distribution
        for name, package in STACKS[other].items()
        if installed(package.distribution)
    }
    if not strangers:
        return []
    # Removing a package takes the files of its namesake with it.
    removal = pip('uninstall', '-y', *strangers.values())
    text = (
        f'{", ".join(strangers.values())} and packages of the {stack} stack are installed side by '
        'side: they share import names, so each overwrites files of the other.'
    )
    return [Problem(text, f'{removal} && {reinstall(*(STACKS[stack][n] for n in strangers))}')]


@contextmanager
def without_warnings_of_others() -> Iterator[None]:
    """Leaves out warnings of packages about what they themselves import, at each config anew."""
    with warnings.catch_warnings():
        for message in ('pkg_resources is deprecated', r'`?torch\.jit'):
            warnings.filterwarnings('ignore', message)
        yield


def _first_line(error: Exception) -> str:
    return str(error).strip().partition('\n')[0]


def _numbers(text: str) -> tuple[int, ...]:
    """Leading numbers of a version without trailing zeros: ``'2.10.0+cpu'`` is (2, 10)."""
    match = re.match(r'\d+(\.\d+)*', text)
    numbers = [int(number) for number in match[0].split('.')] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
