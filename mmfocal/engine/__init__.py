"""Runs: from a config and options to a runner, with loops, hooks and checkpoints that resume."""

from mmfocal.weights import install_safe_loading, load_checkpoint_file
from mmfocal.weights.safe_loading import CheckpointError

from .config import load_config
from .runner import TestOptions, TrainOptions, test, train

__all__ = [
    'CheckpointError',
    'TestOptions',
    'TrainOptions',
    'install_safe_loading',
    'load_checkpoint_file',
    'load_config',
    'test',
    'train',
]
