"""Focal Transformer as a backbone for MMDetection 3.x and MMSegmentation 1.x."""

from typing import Any

from .utils.compat import check_versions, register_config_packages

# Before the imports that would fail with somebody else's assertion.
check_versions()
register_config_packages()

from .models import FocalTransformer, FocalTransformerFast  # noqa: E402
from .ops import focal_attention  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = [
    'FocalTransformer',
    'FocalTransformerFast',
    'Inferencer',
    '__version__',
    'focal_attention',
]


def __getattr__(name: str) -> Any:
    """Imports on first use what a training run does not need."""
    if name == 'Inferencer':
        from .inference import Inferencer

        return Inferencer
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
