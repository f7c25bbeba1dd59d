from . import functional, transforms

__all__ = ['RandomResizedCrop', 'functional', 'transforms']


class RandomResizedCrop:
    """A base class of one of mmpretrain's transforms."""
