"""Random numbers that follow from where a run is, so that a resumed run draws the same ones.

mmengine saves no generator, and restoring one would not help: loaders draw from it at moments that
differ after a restart. Here every sample and every iteration has a seed of its own, derived from
the run's seed and the position alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def seeded(seed: int, gpu: bool = False) -> Iterator[None]:
    """Seeds the generators of this process's CPU, and puts them back afterwards.

    Args:
        seed: for each of them.
        gpu: whether the generator of the current GPU, if there is one, is seeded and put back too;
            not for workers of data loaders, which would take memory there.
    """
    gpu = gpu and torch.cuda.is_available()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu_state = torch.cuda.get_rng_state() if gpu else None
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
    if gpu:
        torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if gpu:
            torch.cuda.set_rng_state(gpu_state)
