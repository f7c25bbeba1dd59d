"""What a tool does before anything else: paths, versions, warnings of third parties."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

# How long threads of OpenMP that wait for each other spin before they sleep: long enough for the
# waits between two operators, which makes small models train a third faster on two cores than
# sleeping at once; not for ever, which made training five times slower when one other process was
# on the machine. Read when PyTorch is imported.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
os.environ.setdefault('GOMP_SPINCOUNT', '6000')  # has the last word, where OpenMP is GNU's

# Third parties' own business, repeated by every process that imports them.
for message in ('pkg_resources is deprecated', r'`?torch\.jit'):
    warnings.filterwarnings('ignore', message=message)


@contextmanager
def light_imports() -> Iterator[None]:
    """Imports submodules of mmfocal without ``mmfocal/__init__.py``, so without PyTorch.

    Importing PyTorch and mmcv takes two seconds; a missing data set is reported before that. Who
    asks for what ``mmfocal`` itself offers, as a config may, gets it from the package in full,
    which everyone gets afterwards.
    """
    if 'mmfocal' in sys.modules:
        yield
        return

    def from_full_package(name: str) -> Any:
        if sys.modules['mmfocal'] is light:
            del sys.modules['mmfocal']
        return getattr(importlib.import_module('mmfocal'), name)

    light = importlib.util.module_from_spec(importlib.util.find_spec('mmfocal'))
    light.__getattr__ = from_full_package
    sys.modules['mmfocal'] = light
    try:
        yield
    finally:
        if sys.modules['mmfocal'] is light:
            del sys.modules['mmfocal']


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """The option that changes values of a config."""
    from mmengine.config import DictAction

    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change values of the config: a.b=1 c.0.d="[(1, 2)]"',
    )


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Options that training and testing share."""
    add_config_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch's old launcher gives one of the two, torchrun sets the environment itself.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def number_or_text(text: str) -> float | str:
    """Type of an option that takes a number or one of some words."""
    try:
        return float(text)
    except ValueError:
        return text


def check_installation() -> None:
    """Ends the process with a repair for the first package that is missing or does not fit."""
    with light_imports():
        from mmfocal.utils.compat import check_versions
    try:
        check_versions()
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
