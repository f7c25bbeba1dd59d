"""Random numbers that follow from where a run is, so that a resumed run draws the same ones.

mmengine saves no generator, and restoring one would not help: loaders draw from it at moments that
differ after a restart. Here every sample and every iteration has a seed of its own, derived from
the run's seed and the position only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derived_seed(seed: int, *position: int) -> int:
    """A seed of 63 bits for a position, such as (rank, iteration), of the run with ``seed``."""
    state = np.random.SeedSequence([seed, *position]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def seed_generators(seed: int) -> None:
    """Seeds Python's, NumPy's and PyTorch's generators, on GPUs too."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed)


def generator_states() -> list[tuple[Callable, Any]]:
    """The state of each generator and the function that restores it; takes microseconds."""
    states: list[tuple[Callable, Any]] = [
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),
        (torch.set_rng_state, torch.get_rng_state()),
    ]
    if torch.cuda.is_initialized():  # not in workers of data loaders
        states.append((torch.cuda.set_rng_state, torch.cuda.get_rng_state()))
    return states


def restore_generators(states: list[tuple[Callable, Any]]) -> None:
    """Restores what :func:`generator_states` returned."""
    for restore, state in states:
        restore(state)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the generators, and restores them afterwards.

    Of GPUs that is the current one where CUDA is in use: ``torch.manual_seed`` would take as long
    as all else in workers of data loaders, to remember the seed for a GPU that they never use.
    """
    states = generator_states()
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        restore_generators(states)


def iterate_seeded(items: Iterable, seed: int) -> Iterator:
    """Items of an iterable, whose draws from the global generators follow from ``seed`` only.

    What others draw from them, between two items, is not changed.
    """
    with seeded(seed):
        iterator, states = iter(items), generator_states()
    while True:
        others = generator_states()
        restore_generators(states)
        try:
            item = next(iterator)
        except StopIteration:
            return
        finally:
            states = generator_states()
            restore_generators(others)
        yield item
