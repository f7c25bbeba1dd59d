"""Stands in for torchvision where tests run without it: mmpretrain can be imported then.

mmpretrain imports torchvision for visual grounding and for transforms and models that it wraps.
Nothing that the tests run comes from there. PyPI has no build of torchvision for PyTorch's CPU
builds, and one for GPUs cannot be imported beside them.
"""

from . import transforms

__all__ = ['__version__', 'transforms']
__version__ = '0'
