"""The backbone and its parts."""

from .focal_transformer import FocalTransformer

__all__ = ['FocalTransformer']
