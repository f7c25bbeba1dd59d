"""What runs need beyond mmengine: safe loading, checks before the start and on the way."""

from typing import Any

from .config import load_config
from .preflight import BadDataError, MissingDataError, check_contents, check_data

__all__ = [
    'BadDataError',
    'CheckpointError',
    'MissingDataError',
    'TestOptions',
    'TrainOptions',
    'check_contents',
    'check_data',
    'install_safe_loading',
    'install_sample_errors',
    'load_checkpoint_file',
    'load_config',
    'test',
    'train',
]


def __getattr__(name: str) -> Any:
    """Imports what needs PyTorch on first use: tools report missing data before that."""
    if name in ('CheckpointError', 'install_safe_loading', 'load_checkpoint_file'):
        from mmfocal.weights import safe_loading

        return getattr(safe_loading, name)
    if name in ('TestOptions', 'TrainOptions', 'test', 'train'):
        from . import runner

        return getattr(runner, name)
    if name == 'install_sample_errors':
        from .sample_errors import install_sample_errors

        return install_sample_errors
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
