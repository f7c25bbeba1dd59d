"""The backbone and its parts."""

from .focal_transformer import FocalTransformer
from .focal_transformer_fast import FocalTransformerFast

__all__ = ['FocalTransformer', 'FocalTransformerFast']
