"""Hooks of a run, which register themselves."""

from .best_checkpoint import BestCheckpointHook
from .curves import CurvesHook
from .non_finite import NonFiniteError, NonFiniteHook
from .plain_checkpoint import PlainCheckpointHook
from .provenance import ProvenanceHook
from .run_state import RunStateHook
from .validation_loss import ValidationLossHook

__all__ = [
    'BestCheckpointHook',
    'CurvesHook',
    'NonFiniteError',
    'NonFiniteHook',
    'PlainCheckpointHook',
    'ProvenanceHook',
    'RunStateHook',
    'ValidationLossHook',
]
