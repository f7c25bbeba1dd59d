"""What holds for every test: seeds, threads, no window system, exact float32, GPU tests."""

import os
import random
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import hypothesis
import matplotlib
import mmengine.config.config
import mmengine.config.utils
import numpy as np
import pytest
import torch

matplotlib.use('Agg')


def formatted_once(format_code):
    """yapf's function, which takes up to a second for a config, once for equal texts."""
    formatted = {}

    def once(text, **settings):
        key = text, repr(settings)
        if key not in formatted:
            formatted[key] = format_code(text, **settings)
        return formatted[key]

    return once


# For each base in a package mmengine reads its hundred metafiles, and it has the config of a run
# formatted four times. Both give the same each time, and were a large part of a short run.
mmengine.config.utils.load = cache(mmengine.config.utils.load)
if find_spec('yapf'):
    yapf_api = import_module('yapf.yapflib.yapf_api')
    for module in (yapf_api, mmengine.config.config):
        if hasattr(module, 'FormatCode'):  # OneDL's fork imports it when it formats
            module.FormatCode = formatted_once(module.FormatCode)

# Reductions depend on the number of threads; workers of pytest-xdist share the cores.
torch.set_num_threads(1 if 'PYTEST_XDIST_WORKER' in os.environ else min(2, os.cpu_count() or 1))

# Convolutions of float32 are rounded to TensorFloat-32 on a GPU, unless that is switched off.
torch.backends.cudnn.allow_tf32 = False
if torch.cuda.is_available():
    # What deterministic cuBLAS asks for; PyTorch looks once in a process, at its first product.
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')

# Property-based tests draw the same examples in every run, and write nothing.
# MMFOCAL_EXAMPLES=5000 looks for new ones, that many for each property.
examples = int(os.environ.get('MMFOCAL_EXAMPLES', '0'))
hypothesis.settings.register_profile(
    'mmfocal',
    database=None,
    deadline=None,
    derandomize=not examples,
    max_examples=examples or 40,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile('mmfocal')


# Files that take minutes come first, the longest one before the others: a worker that took one of
# them as the last would work on alone.
LONGEST = (
    'triton',
    'tools',
    'compare',
    'export',
    'own_data',
    'publish',
    'checkpoint',
    'benchmark',
    'distributed',
    'kill_matrix',
    'from_python',
    'model_zoo',
)


def pytest_collection_modifyitems(items):
    order = {f'test_{name}': place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True)
def seeds():
    """The same random numbers for a test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_runtest_setup(item):
    if item.get_closest_marker('gpu') and not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
