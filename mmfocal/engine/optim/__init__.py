"""Learning rates by depth and averages of weights, which register themselves."""

from .averaging import WarmedUpEMA
from .layer_decay import LayerDecayOptimWrapperConstructor

__all__ = ['LayerDecayOptimWrapperConstructor', 'WarmedUpEMA']
