"""What holds for every test: seeds, threads, no window system, and the mark for GPU tests."""

import os
import random

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use('Agg')

# Reductions depend on the number of threads; workers of pytest-xdist share the cores.
torch.set_num_threads(1 if 'PYTEST_XDIST_WORKER' in os.environ else min(2, os.cpu_count() or 1))


@pytest.fixture(autouse=True)
def seeds():
    """The same random numbers for a test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_runtest_setup(item):
    if item.get_closest_marker('gpu') and not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
