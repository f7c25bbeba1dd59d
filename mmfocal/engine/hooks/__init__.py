"""Hooks of a run, which register themselves."""

from .curves import CurvesHook
from .non_finite import NonFiniteError, NonFiniteHook
from .provenance import ProvenanceHook
from .run_state import RunStateHook
from .validation_loss import ValidationLossHook

__all__ = [
    'CurvesHook',
    'NonFiniteError',
    'NonFiniteHook',
    'ProvenanceHook',
    'RunStateHook',
    'ValidationLossHook',
]
