"""Runs that are interrupted anywhere end as if they had not been."""

import errno
import os
import random
import shutil
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.evaluator import BaseMetric
from torch import nn

from mmfocal.engine import install_safe_loading, settings
from mmfocal.engine.checkpoints import newest_whole
from mmfocal.engine.data_loader import stop_workers
from mmfocal.engine.safe_loading import load_checkpoint_file
from mmfocal.errors import UserError

RUNS = count()
SAMPLES, BATCH = 14, 3  # the last batch of an epoch is smaller


@DATASETS.register_module()
class NoisyDataset(BaseDataset):
    """Samples with noise of all three generators, as augmentation draws from them."""

    METAINFO = dict(classes=('a',))

    def load_data_list(self):
        return [dict(number=number) for number in range(SAMPLES)]

    def prepare_data(self, idx):
        noise = torch.rand(4) + random.random() + float(np.random.rand())
        return dict(inputs=noise + idx, number=idx)


@MODELS.register_module()
class ToyModel(BaseModel):
    """A model with dropout whose loss depends on everything that was drawn."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs, number, mode='tensor'):
        out = self.dropout(self.norm(self.layer(torch.stack(inputs))))
        if mode == 'loss':
            return dict(loss=(out.square().mean() + 0.1 * torch.rand(()) * out.mean()))
        return [dict(value=row) for row in out]


@METRICS.register_module()
class ToyMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [float(sample['value'].sum()) for sample in data_samples]

    def compute_metrics(self, results):
        return dict(score=sum(results))


class Killed(BaseException):
    """Stands for SIGKILL: nothing is saved."""


@HOOKS.register_module()
class Killer(Hook):
    """Ends the run at a call of a hook."""

    priority = 'LOWEST'

    def __init__(self, when, number):
        self.when, self.number = when, number

    def _maybe(self, when, number):
        if (when, number) == (self.when, self.number):
            raise Killed

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._maybe('train', runner.iter)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._maybe('val', runner.iter)


def config(work_dir, by_epoch, workers=0, killer=None, **options):
    loader = dict(batch_size=BATCH, num_workers=0, dataset=dict(type='NoisyDataset'))
    shuffled = dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True)
    train = dict(max_epochs=4) if by_epoch else dict(max_iters=20)
    unit = dict(by_epoch=by_epoch)
    cfg = Config(
        dict(
            model=dict(type='ToyModel'),
            work_dir=str(work_dir),
            train_dataloader=dict(
                loader, num_workers=workers, persistent_workers=workers > 0, sampler=shuffled
            ),
            val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
            train_cfg=dict(by_epoch=by_epoch, val_interval=2 if by_epoch else 6, **train),
            val_cfg=dict(),
            val_evaluator=dict(type='ToyMetric'),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
            param_scheduler=[
                dict(type='MultiStepLR', milestones=[7, 15], by_epoch=False),
                dict(type='ReduceOnPlateauParamScheduler', param_name='lr', monitor='score'),
            ],
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=1 if by_epoch else 4, **unit),
                logger=dict(type='LoggerHook', interval=1),
            ),
            custom_hooks=[dict(type='EMAHook')],
            randomness=dict(seed=5),
            log_processor=dict(window_size=1, **unit),
            # Of the same name, mmengine would mix the logs of two runs in one process.
            experiment_name=f'toy {next(RUNS)}',
        )
    )
    cfg.merge_from_dict(options)
    if killer:
        cfg.custom_hooks.append(dict(type='Killer', when=killer[0], number=killer[1]))
    return cfg


def train(cfg, resume=False):
    settings.set_resume(cfg, 'auto' if resume else None)
    settings.set_reliability(cfg)
    install_safe_loading()
    runner = settings.build_runner(cfg)
    try:
        runner.train()
    finally:  # as the end of the process does
        stop_workers()


def final(work_dir):
    """What the newest checkpoint holds that has to be equal, by name."""
    path, notes = newest_whole(work_dir)
    assert not notes
    checkpoint = load_checkpoint_file(path)
    history = checkpoint['message_hub']['log_scalars']['train/loss']._log_history
    found = {'iterations': checkpoint['meta']['iter'], 'losses': history.tolist()}
    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        found |= flat(part, checkpoint[part])
    return found


def flat(name, value):
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {name: value}
    return {key: leaf for at, inner in items for key, leaf in flat(f'{name}.{at}', inner).items()}


def assert_equal(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        same = torch.equal(got[name], value) if torch.is_tensor(value) else got[name] == value
        assert same, f'{name}: {got[name]!r}, not {value!r}'


KINDS = [(True, 0), (True, 2), (False, 0), (False, 2)]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Final states of uninterrupted runs, with any number of workers."""
    found = {}
    for by_epoch in (True, False):
        runs = []
        for workers in (0, 2):
            folder = tmp_path_factory.mktemp('whole')
            train(config(folder, by_epoch, workers))
            runs.append(final(folder))
        assert_equal(*runs)
        found[by_epoch] = runs[0]
    return found


# Iterations are counted from 0; an epoch has 5, validation is due behind 10 or 6.
@pytest.mark.parametrize('killer', [('train', 5), ('train', 8), ('train', 14), ('val', 12), None])
@pytest.mark.parametrize('by_epoch, workers', KINDS)
def test_killed_run_goes_on_as_if_it_had_not_been(tmp_path, whole, by_epoch, workers, killer):
    killer = killer or ('val', 10 if by_epoch else 18)
    if killer == ('val', 12) and by_epoch:
        killer = ('val', 20)  # the last one
    with pytest.raises(Killed):
        train(config(tmp_path, by_epoch, workers, killer))
    train(config(tmp_path, by_epoch, workers), resume=True)
    assert_equal(final(tmp_path), whole[by_epoch])
