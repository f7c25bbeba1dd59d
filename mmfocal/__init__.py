"""Focal Transformer as a backbone for MMDetection 3.x and MMSegmentation 1.x."""

from .models import FocalTransformer
from .ops import focal_attention
from .version import __version__

__all__ = ['FocalTransformer', '__version__', 'focal_attention']
