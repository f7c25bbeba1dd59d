"""Checkpoints of a run in mmdet's own tools and functions, which read them with PyTorch alone."""

import subprocess
import sys
import time
from pathlib import Path

import mmdet
import pytest
import torch

from mmfocal.engine import TrainOptions, load_config, train

TOOLS = Path(mmdet.__file__).parent / '.mim/tools'
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
OPTIONS = {
    'train_cfg.max_iters': 2,
    'train_cfg.val_interval': 2,
    'default_hooks.checkpoint.interval': 2,
    'train_dataloader.batch_size': 1,
    **{f'{name}.num_workers': 0 for name in LOADERS},
    **{f'{name}.persistent_workers': False for name in LOADERS},
    **{f'{name}.dataset.indices': 2 for name in LOADERS},
}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The folder of a run that has ended."""
    folder = tmp_path_factory.mktemp('run')
    cfg = load_config('focal_retinanet_shapes', OPTIONS)
    train(cfg, TrainOptions(work_dir=str(folder), log_to=[], data_check=False))
    return folder


def ended_well(*command, folder):
    ended = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_train_resumes(run):
    command = (TOOLS / 'train.py', 'focal_retinanet_shapes.py', '--work-dir', '.', '--resume')
    more = ('--cfg-options', 'train_cfg.max_iters=3', 'train_cfg.val_interval=3')
    ended_well(*command, *more, folder=run)
    states = [
        torch.load(run / name, weights_only=True)['state_dict']
        for name in ('iter_2.pth', 'iter_3.pth')
    ]
    before, after = (state['bbox_head.retina_cls.weight'] for state in states)
    step = (after - before).abs().max()
    assert 0 < step < 0.01  # of one iteration, from there


def test_test_evaluates(run):
    ended_well(
        TOOLS / 'test.py', 'focal_retinanet_shapes.py', 'iter_2.pth', '--out', 'a.pkl', folder=run
    )
    assert (run / 'a.pkl').is_file()


PREDICT = """
import sys
import numpy as np
from mmdet.apis import DetInferencer, init_detector

model = init_detector(sys.argv[1], sys.argv[2], device='cpu')
inferencer = DetInferencer(sys.argv[1], sys.argv[2], device='cpu')
assert all((a == b).all() for a, b in zip(model.parameters(), inferencer.model.parameters()))
(result,) = inferencer(np.zeros((64, 64, 3), np.uint8))['predictions']
print(model.dataset_meta['classes'][0], sorted(result))
"""


def test_published_file_predicts(run):
    publish = TOOLS / 'model_converters/publish_model.py'
    ended_well(publish, 'iter_2.pth', 'published.pth', folder=run)
    while not (found := list(run.glob('published-*.pth'))):  # it does not wait for its own mv
        time.sleep(0.1)
    (published,) = found
    for name in ('iter_2.pth', published.name):
        out = ended_well('-c', PREDICT, 'focal_retinanet_shapes.py', name, folder=run)
        assert "circle ['bboxes', 'labels', 'scores']" in out
