"""The backbone and its parts, and a loss."""

from .focal_transformer import FocalTransformer
from .focal_transformer_fast import FocalTransformerFast
from .losses import ClassWeightedCrossEntropyLoss

__all__ = ['ClassWeightedCrossEntropyLoss', 'FocalTransformer', 'FocalTransformerFast']
