"""Which keys each window of queries attends to, as plain integer data.

:mod:`~mmfocal.geometry.focal` has the keys of the first version of the model,
:mod:`~mmfocal.geometry.closest` those of the second.
"""

from .closest import ClosestGeometry, ClosestKeys
from .focal import FocalGeometry, FocalKeys, WindowGeometry, fit_to_map
from .tables import KeyTables

__all__ = [
    'ClosestGeometry',
    'ClosestKeys',
    'FocalGeometry',
    'FocalKeys',
    'KeyTables',
    'WindowGeometry',
    'fit_to_map',
]
