"""Focal Transformer as a backbone for MMDetection 3.x and MMSegmentation 1.x."""

import os
import warnings
from typing import Any

from .utils.compat import check_versions, register_config_packages
from .version import __version__

__all__ = [
    'FocalTransformer',
    'FocalTransformerFast',
    'Inferencer',
    '__version__',
    'focal_attention',
]

# How long threads of OpenMP that wait for each other spin before they sleep: long enough for the
# waits between two operators, which makes small models train a third faster on two cores than
# sleeping at once; not for ever, which made training five times slower when one other process was
# on the machine. Read when PyTorch is imported, if it is not yet; variables that are set stay.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
os.environ.setdefault('GOMP_SPINCOUNT', '6000')  # has the last word, where OpenMP is GNU's

# The doctor looks into environments in which these imports would fail.
if 'MMFOCAL_DOCTOR' not in os.environ:
    # Before the imports that would fail with somebody else's assertion.
    check_versions()
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'pkg_resources is deprecated')  # by mmengine
        register_config_packages()
        from .models import FocalTransformer, FocalTransformerFast
        from .ops import focal_attention


def __getattr__(name: str) -> Any:
    """Imports on first use what a training run does not need."""
    if name == 'Inferencer':
        from .inference import Inferencer

        return Inferencer
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
