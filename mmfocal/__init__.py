"""Focal Transformer as a backbone for MMDetection 3.x and MMSegmentation 1.x."""

import importlib
import os
import sys
from typing import Any

from .utils.compat import (
    check_versions,
    register_config_packages,
    without_warnings_of_others,
)
from .version import __version__

__all__ = [
    'FocalTransformer',
    'FocalTransformerFast',
    'Inferencer',
    'UserError',
    '__version__',
    'focal_attention',
    'new_config',
    'publish',
    'train',
]

# How long threads of OpenMP that wait for each other spin before they sleep: long enough for the
# waits between two operators, which makes small models train a third faster on two cores than
# sleeping at once; not for ever, which made training five times slower when one other process was
# on the machine. Read when PyTorch is imported, if it is not yet; variables that are set stay.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
os.environ.setdefault('GOMP_SPINCOUNT', '6000')  # has the last word, where OpenMP is GNU's


def _command() -> list[str] | None:
    """Arguments of the command ``mmfocal``; None in every other process."""
    program, *arguments = sys.argv or ['']
    if program == '-m':  # as which Python knows a module while it imports the packages around it
        program = sys.orig_argv[-len(sys.argv)]
    return arguments if os.path.basename(program) == 'mmfocal' else None


def _works_without_engine() -> bool:
    """Whether this process is a tool that is needed where the imports below would fail."""
    arguments = _command()
    return 'MMFOCAL_WITHOUT_ENGINE' in os.environ or (
        arguments is not None and (arguments or ['-h'])[0] in ('-h', '--help', 'doctor', 'list')
    )


if _works_without_engine():
    os.environ['MMFOCAL_WITHOUT_ENGINE'] = '1'  # and so do the processes that it starts
else:
    # Before the imports that would fail with somebody else's assertion.
    try:
        check_versions()
    except ImportError as error:
        if _command() is None:
            raise
        print(error, file=sys.stderr)
        sys.exit(2)
    with without_warnings_of_others():
        register_config_packages()
        from .models import FocalTransformer, FocalTransformerFast
        from .ops import focal_attention


# What is imported on first use, since a training run does not need it, and where it is.
LAZY = {
    'Inferencer': 'inference',
    'UserError': 'utils.errors',
    'new_config': 'api',
    'publish': 'inference',
    'train': 'api',
}


def __getattr__(name: str) -> Any:
    """Imports on first use what :data:`LAZY` lists."""
    if name in LAZY:
        return getattr(importlib.import_module(f'{__name__}.{LAZY[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
