"""The embedded data set."""

from .shapes import prepare_shapes, shapes_root

__all__ = ['prepare_shapes', 'shapes_root']
