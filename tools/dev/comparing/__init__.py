"""What compare.py is made of: which trainings, how they run, and what follows from them."""

from .outcome import Outcome
from .plan import Comparison, read_comparison
from .results import Results
from .running import prepare_data, time_steps, train_all

__all__ = [
    'Comparison',
    'Outcome',
    'Results',
    'prepare_data',
    'read_comparison',
    'time_steps',
    'train_all',
]
