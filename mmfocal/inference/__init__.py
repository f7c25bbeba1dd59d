"""From files, videos and cameras to pictures, predictions and label maps."""

from typing import Any

from .inputs import Input, Picture, Skipped, UnreadableError, find_inputs
from .layout import Layout

__all__ = [
    'Inferencer',
    'Input',
    'Layout',
    'Picture',
    'Skipped',
    'UnreadableError',
    'find_inputs',
    'run',
]


def __getattr__(name: str) -> Any:
    """Imports what needs PyTorch on first use: tools report missing inputs before that."""
    if name == 'Inferencer':
        from .inferencer import Inferencer

        return Inferencer
    if name == 'run':
        from .running import run

        return run
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
