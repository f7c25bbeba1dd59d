"""Weights of others, loaded into a backbone: recognised, renamed, resized, and accounted for."""

from .layouts import Weights, read_weights
from .loading import Accounting, load_pretrained
from .resizing import INTERPOLATIONS, RINGS

__all__ = [
    'INTERPOLATIONS',
    'RINGS',
    'Accounting',
    'Weights',
    'load_pretrained',
    'read_weights',
]
