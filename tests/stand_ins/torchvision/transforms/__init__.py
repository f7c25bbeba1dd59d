from . import functional, transforms

__all__ = ['Compose', 'Normalize', 'RandomResizedCrop', 'ToTensor', 'functional', 'transforms']


class RandomResizedCrop:
    """A base class of one of mmpretrain's transforms."""


class Compose:
    """Imported by pytorch-grad-cam for the preparation of images."""


Normalize = ToTensor = Compose
