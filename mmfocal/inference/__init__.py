"""From files, videos and cameras to pictures, predictions and label maps."""

from typing import Any

from .inputs import Input, Picture, Skipped, UnreadableError, find_inputs
from .layout import Layout

__all__ = [
    'Inferencer',
    'Input',
    'Layout',
    'Outcome',
    'Picture',
    'Prediction',
    'Skipped',
    'UnreadableError',
    'find_inputs',
    'run',
]


def __getattr__(name: str) -> Any:
    """Imports what needs PyTorch on first use: tools report missing inputs before that."""
    if name in ('Inferencer', 'Prediction'):
        from . import inferencer

        return getattr(inferencer, name)
    if name in ('Outcome', 'run'):
        from . import running

        return getattr(running, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
