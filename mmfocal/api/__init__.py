"""From Python, what the tools do: a config for a folder of data, and training."""

from .new_config import NewConfig, new_config
from .training import TrainResult, train

__all__ = ['NewConfig', 'TrainResult', 'new_config', 'train']
