"""Runs of our configs, made once for all clients that open what they wrote."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from mmfocal.engine import TrainOptions, load_config, train

ROOT = Path(__file__).parents[2]
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
OPTIONS = {
    'train_cfg.max_iters': 2,
    'train_cfg.val_interval': 2,
    'default_hooks.checkpoint.interval': 2,
    'train_dataloader.batch_size': 2,
    **{f'{name}.num_workers': 0 for name in LOADERS},
    **{f'{name}.persistent_workers': False for name in LOADERS},
    **{f'{name}.dataset.indices': 2 for name in LOADERS},
}
# So that two iterations are enough to find something.
LOW_SCORES = {
    'focal_retinanet_shapes': {'model.test_cfg.score_thr': 0.0, 'model.test_cfg.max_per_img': 20},
    'focal_maskrcnn_shapes': {
        'model.test_cfg.rcnn.score_thr': 0.0,
        'model.test_cfg.rcnn.max_per_img': 20,
        # Whole boxes: sahi raises an error at masks of single pixels, as noise has them.
        'model.test_cfg.rcnn.mask_thr_binary': 0.0,
    },
}

IS_HERE = importlib.util.find_spec('sahi') is not None
# Part of `make clients`, not of `make test`.
collect_ignore_glob = [] if IS_HERE else ['test_*.py']

if IS_HERE and importlib.util.find_spec('torchvision') is None:
    sys.path.append(str(ROOT / 'tests/stand_ins'))


@pytest.fixture(scope='session')
def options():
    """What makes a run of a config for the embedded shapes as short as it can be."""
    return OPTIONS


@pytest.fixture(scope='session')
def run_of(tmp_path_factory):
    """From the name of a config to its dumped config and checkpoint, in the folder of a run."""
    runs = {}

    def run(name):
        if name not in runs:
            folder = tmp_path_factory.mktemp(name)
            cfg = load_config(name, {**OPTIONS, **LOW_SCORES.get(name, {})})
            train(cfg, TrainOptions(work_dir=str(folder), log_to=[], seed=0, data_check=False))
            runs[name] = folder / f'{name}.py', folder / 'iter_2.pth'
        return runs[name]

    return run


@pytest.fixture(scope='session')
def image():
    """``(120, 160, 3)``, uint8."""
    return np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
