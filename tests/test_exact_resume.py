"""Runs that are interrupted anywhere end as if they had not been."""

import errno
import math
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import psutil
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch import nn
from torch.utils.data import IterableDataset

from mmfocal.engine import install_safe_loading, settings
from mmfocal.engine.checkpoints import AtomicBackend, latest_valid
from mmfocal.engine.hooks import run_state
from mmfocal.engine.hooks.run_state import RunStateHook
from mmfocal.engine.start import begun
from mmfocal.utils.errors import UserError
from mmfocal.utils.files import written_atomically
from mmfocal.weights.safe_loading import load_checkpoint_file

RUNS = count()
SAMPLES, BATCH = 14, 3  # the last batch of an epoch is smaller


@DATASETS.register_module()
class NoisyDataset(BaseDataset):
    """Samples with noise of all three generators, as augmentation draws from them."""

    METAINFO: ClassVar[dict] = dict(classes=('a',))

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
    settings.set_reliability(cfg)
    install_safe_loading()
    with begun(cfg, 'auto' if resume else None) as start:
        runner = settings.build_runner(cfg, start)
        try:
            runner.train()
        finally:
            for hook in runner.hooks:
                if isinstance(hook, RunStateHook):
                    hook.stop_listening()
    return runner


def final(work_dir):
    """What the newest checkpoint holds that has to be equal, by name."""
    path, notes = latest_valid(work_dir)
    assert not notes
    checkpoint = load_checkpoint_file(path)
    for info in (checkpoint['meta'], checkpoint['message_hub']['runtime_info']):
        assert 'train_dataloader = ' in info['cfg']  # in that of resumed runs too
    history = checkpoint['mmfocal_log_history']['train/loss']['values']
    found = {'iterations': checkpoint['meta']['iter'], 'losses': history.tolist()}
    found |= flat('hooks', checkpoint['mmfocal_run']['hooks'])
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


# Iterations are counted from 0; an epoch has 5, validation is due after 10 or 6.
@pytest.mark.parametrize('killer', [('train', 5), ('train', 8), ('train', 14), ('val', 12), None])
@pytest.mark.parametrize('by_epoch, workers', KINDS)
def test_killed_run_is_resumed_as_if_it_had_not_been(tmp_path, whole, by_epoch, workers, killer):
    killer = killer or ('val', 10 if by_epoch else 18)
    if killer == ('val', 12) and by_epoch:
        killer = ('val', 20)  # the last one
    with pytest.raises(Killed):
        train(config(tmp_path, by_epoch, workers, killer))
    train(config(tmp_path, by_epoch, workers), resume=True)
    assert_equal(final(tmp_path), whole[by_epoch])


def test_gradients_that_wait_for_a_step_survive(tmp_path):
    options = {
        'optim_wrapper.accumulative_counts': 3,
        'param_scheduler': [],
        'default_hooks.checkpoint.interval': 4,  # in the middle of three
    }
    train(config(tmp_path / 'whole', False, **options))
    with pytest.raises(Killed):
        train(config(tmp_path / 'killed', False, killer=('train', 9), **options))
    saved = load_checkpoint_file(tmp_path / 'killed/iter_8.pth')
    assert saved['mmfocal_run']['gradients'].keys() == dict(ToyModel().named_parameters()).keys()
    train(config(tmp_path / 'killed', False, **options), resume=True)
    assert_equal(final(tmp_path / 'killed'), final(tmp_path / 'whole'))


@HOOKS.register_module()
class Preempted(Hook):
    """Asks the run to end as a cluster does."""

    def __init__(self, when, number, signal):
        self.moment, self.signal = (when, number), signal

    def _maybe(self, *moment):
        if moment == self.moment:
            os.kill(os.getpid(), self.signal)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._maybe('train', runner.iter)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._maybe('val', runner.iter)


def train_until_asked_to_end(cfg, when, number, by=signal.SIGTERM):
    cfg.custom_hooks.append(dict(type='Preempted', when=when, number=number, signal=by))
    with pytest.raises(SystemExit) as ended:
        train(cfg)
    assert ended.value.code == 143


@pytest.mark.parametrize('by', [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(
    'when, number, name', [('train', 6, 'iter_7.pth'), ('val', 10, 'iter_10.pth')]
)
def test_request_to_end_saves_between_checkpoints(tmp_path, whole, when, number, name, by):
    train_until_asked_to_end(config(tmp_path, True, 2), when, number, by)
    assert latest_valid(tmp_path)[0].name == name  # epochs have 5 iterations
    train(config(tmp_path, True, 2), resume=True)
    assert_equal(final(tmp_path), whole[True])
    assert not (tmp_path / name).exists()  # later ones are there


@pytest.mark.parametrize('interval', [4, -1])
def test_checkpoint_of_a_request_stays_if_it_is_a_regular_one(tmp_path, interval):
    options = {'default_hooks.checkpoint.interval': interval}
    train_until_asked_to_end(config(tmp_path, False, **options), 'train', 3)
    train(config(tmp_path, False, **options), resume=True)
    assert (tmp_path / 'iter_4.pth').is_file() == (interval == 4)


def test_processes_are_asked_after_batches_that_all_have(monkeypatch):
    """A sampler may give one process a batch more, after which the others would not answer."""
    asked = []

    def all_reduce(tensor, operation):
        if operation == 'min':
            tensor.fill_(2)  # of the other process
        else:
            asked.append(int(tensor))

    monkeypatch.setattr(run_state, 'get_world_size', lambda: 2)
    monkeypatch.setattr(run_state, 'all_reduce', all_reduce)
    loop = SimpleNamespace(dataloader=[1, 2, 3])
    hook, runner = RunStateHook(), SimpleNamespace(seed=0, iter=5, val_loop=loop)
    hook.before_val_epoch(runner)
    for batch in range(3):
        hook.after_val_iter(runner, batch)
    assert asked == [0, 0]


def test_scaler_that_was_off_is_not_resumed():
    """A run in bfloat16 that goes on in float16; of several optimizers, too."""
    first = dict(loss_scaler={}, state={}, param_groups=[])
    second = dict(loss_scaler=dict(scale=4.0), state={}, param_groups=[])
    checkpoint = dict(meta=dict(seed=0), optimizer=dict(first=first, second=second))
    runner = SimpleNamespace(_resume=True, seed=0, optim_wrapper=None, train_dataloader=None)
    hook = RunStateHook()
    hook._data_order = dict(files=1)
    hook.after_load_checkpoint(runner, checkpoint)
    assert 'loss_scaler' not in first and second['loss_scaler'] == dict(scale=4.0)
    scaler = torch.amp.GradScaler('cpu', enabled=False)
    assert scaler.state_dict() == {}, 'what a scaler that is off gives'


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
def test_forked_children_die_of_signals(number):
    """As those of ``multiprocessing.Pool`` in a metric have to."""
    hook, before = RunStateHook(), signal.getsignal(number)
    hook.listen()
    try:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.2)
        os.kill(child, number)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number
        assert not hook.asked_to_end and signal.getsignal(number) == hook._ask
    finally:
        hook.stop_listening()
    assert signal.getsignal(number) == before


def counting(cfg):
    """With what counts validations: the best score, and those since it."""
    cfg.default_hooks.checkpoint.update(save_best='score', rule='greater')
    stopping = dict(type='EarlyStoppingHook', monitor='score', rule='greater', patience=2)
    cfg.custom_hooks += [stopping, dict(type='Counting')]
    return cfg


@HOOKS.register_module()
class Counting(Hook):
    """Counts validations, and says so in the way that is documented."""

    count = 0

    def after_val_epoch(self, runner, metrics=None):
        self.count += 1

    def state_dict(self):
        return dict(count=np.int64(self.count))

    def load_state_dict(self, state):
        self.count = state['count']


@pytest.mark.parametrize('interval', [4, 5])
@pytest.mark.parametrize('killer', [('val', 8), ('train', 9), ('train', 13), ('val', 16)])
def test_counts_of_hooks_are_resumed(tmp_path, monkeypatch, killer, interval):
    """So training ends where it would have, and keeps the same best checkpoint."""
    scores = {3: 1.0, 7: 3.0, 11: 2.0, 15: 2.0, 19: 2.0}
    monkeypatch.setattr(
        ToyMetric,
        'compute_metrics',
        lambda *_: dict(score=scores[MessageHub.get_current_instance().get_info('iter')]),
    )
    options = {'train_cfg.val_interval': 4, 'default_hooks.checkpoint.interval': interval}
    train(counting(config(tmp_path / 'whole', False, **options)))
    with pytest.raises(Killed):
        train(counting(config(tmp_path / 'killed', False, killer=killer, **options)))
    train(counting(config(tmp_path / 'killed', False, **options)), resume=True)
    whole, killed = (
        sorted(path.name for path in (tmp_path / folder).glob('*.pth'))
        for folder in ('whole', 'killed')
    )
    assert killed == whole and 'best_score_iter_8.pth' in whole and 'iter_20.pth' not in whole
    got, want = (final(tmp_path / folder) for folder in ('killed', 'whole'))
    assert (want['hooks.Counting 0.count'], want['hooks.EarlyStoppingHook 0.best_score']) == (3, 3)
    assert_equal(got, want)


@pytest.mark.parametrize('how', [shutil.move, shutil.copytree])
def test_best_checkpoint_is_replaced_in_its_own_folder(tmp_path, monkeypatch, how):
    scores = iter(range(10))
    monkeypatch.setattr(ToyMetric, 'compute_metrics', lambda *_: dict(score=next(scores)))
    with pytest.raises(Killed):
        train(counting(config(tmp_path / 'run', False, killer=('train', 9))))
    other = tmp_path / 'other'
    how(tmp_path / 'run', other)
    assert (other / 'best_score_iter_6.pth').is_file()
    train(counting(config(other, False)), resume=True)
    assert [path.name for path in other.glob('best_*')] == ['best_score_iter_20.pth']
    if how is shutil.copytree:
        assert (tmp_path / 'run/best_score_iter_6.pth').is_file()


def with_validation_loss(cfg):
    cfg.custom_hooks.insert(1, dict(type='ValidationLossHook', dataloader=cfg.val_dataloader))
    return cfg


@pytest.mark.parametrize('by_epoch', [True, False])
def test_losses_on_the_validation_set_change_nothing(tmp_path, whole, by_epoch, monkeypatch):
    """Nor does a request to end while they are computed, which is granted at once."""
    forward, asked = ToyModel.forward, []

    def terminated(self, *args, mode='tensor', **kwargs):
        if mode == 'loss' and not self.norm.training and not asked:
            asked.append(os.kill(os.getpid(), signal.SIGTERM))
        return forward(self, *args, mode=mode, **kwargs)

    monkeypatch.setattr(ToyModel, 'forward', terminated)
    with pytest.raises(SystemExit) as ended:
        train(with_validation_loss(config(tmp_path, by_epoch)))
    assert ended.value.code == 143
    assert latest_valid(tmp_path)[0].name == ('iter_10.pth' if by_epoch else 'iter_6.pth')
    train(with_validation_loss(config(tmp_path, by_epoch)), resume=True)
    assert_equal(final(tmp_path), whole[by_epoch])
    checkpoint = load_checkpoint_file(latest_valid(tmp_path)[0])
    assert 'val/val/loss' in checkpoint['mmfocal_log_history']


WITH_WORKERS = """
import multiprocessing, os, signal, time
from torch.utils.data import DataLoader
from mmfocal.engine.data_loader import ResumableDataLoader, prepare_workers

multiprocessing.set_start_method('{method}')
# More than a pipe holds: workers wait until somebody takes it.
loader = DataLoader([bytes(1 << 20)] * 64, num_workers=2, collate_fn=list)
if {ours}:
    loader = ResumableDataLoader(loader, seed=0, rank=0)
else:
    prepare_workers(loader)
batches = iter(loader)
next(batches)
time.sleep(1)
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize('ours', [True, False])
@pytest.mark.parametrize('method', ['fork', 'forkserver'])
def test_workers_of_a_killed_process_end(method, ours):
    program = WITH_WORKERS.format(method=method, ours=ours)
    command = [sys.executable, '-c', program]
    # Not a pipe, which would wait for the workers to close it.
    with tempfile.TemporaryFile('w+') as output:
        subprocess.run(command, stdout=output, timeout=60)
        output.seek(0)
        workers = [int(number) for number in output.read().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(map(is_running, workers)):
        time.sleep(0.1)
    assert not any(map(is_running, workers))


def is_running(number):
    return psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE


# --- Files ----------------------------------------------------------------------------------


@pytest.fixture
def killed(tmp_path):
    """Work folder of a run by iterations with checkpoints after 4, 8 and 12 of 20."""
    folder = tmp_path / 'run'
    with pytest.raises(Killed):
        train(config(folder, False, killer=('train', 13)))
    return folder


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path):
    """In the last byte of the largest tensor; a bit between entries would mean nothing."""
    with zipfile.ZipFile(path) as archive:
        tensors = [entry for entry in archive.infolist() if '/data/' in entry.filename]
        entry = max(tensors, key=lambda entry: entry.file_size)
    content = bytearray(path.read_bytes())
    name, extra = struct.unpack_from('<2H', content, entry.header_offset + 26)
    content[entry.header_offset + 30 + name + extra + entry.file_size - 1] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b'')


@pytest.mark.parametrize('damage', [cut_off, flip_a_bit, empty, Path.unlink])
def test_older_checkpoint_takes_the_place_of_a_damaged_one(killed, whole, damage):
    newest = killed / 'iter_12.pth'
    damage(newest)
    path, notes = latest_valid(killed)
    assert path.name == 'iter_8.pth'
    assert newest.exists() == any('iter_12.pth is passed over' in note for note in notes)
    newest.unlink(missing_ok=True)
    train(config(killed, False), resume=True)
    assert_equal(final(killed), whole[False])


@pytest.mark.parametrize('content', [None, '', '/elsewhere/iter_4.pth'])
def test_run_is_resumed_in_a_moved_folder(killed, whole, content, tmp_path):
    moved = tmp_path / 'moved'
    shutil.move(killed, moved)
    name = moved / 'last_checkpoint'
    name.unlink() if content is None else name.write_text(content)
    train(config(moved, False), resume=True)
    assert_equal(final(moved), whole[False])


def test_without_a_whole_checkpoint_nothing_is_begun_anew(killed):
    for path in killed.glob('*.pth'):
        cut_off(path)
    with pytest.raises(UserError, match=r'(?s)no checkpoint that is whole.*iter_12.*iter_4'):
        train(config(killed, False), resume=True)


def test_file_that_cannot_be_is_an_error_for_users(tmp_path):
    (tmp_path / 'file').touch()
    for path in (tmp_path / 'file/below.pth', tmp_path / ('long' * 100)):
        message = 'could not be written|can be no folder'
        with pytest.raises(UserError, match=message), written_atomically(path):
            raise AssertionError('there is nothing to write to')


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS])
def test_full_disk_leaves_what_was_there(tmp_path, monkeypatch, number):
    real, written = os.fsync, []

    def fsync(descriptor):
        written.append(descriptor)
        if len(written) > 6:  # each checkpoint has a file and its folder
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, 'fsync', fsync)
    with pytest.raises(UserError, match=f'could not be written: {os.strerror(number)}'):
        train(config(tmp_path, False))
    monkeypatch.undo()
    path, notes = latest_valid(tmp_path)
    assert path.name == 'iter_12.pth' and not notes
    assert not list(tmp_path.glob('.*'))  # nothing half


def test_two_checkpoints_are_kept_at_any_moment(tmp_path, monkeypatch):
    seen, put = [], AtomicBackend.put

    def listed():
        seen.append(sorted(file.name for file in tmp_path.glob('iter_*.pth')))

    def spied(self, obj, path):
        listed()
        put(self, obj, path)
        listed()

    monkeypatch.setattr(AtomicBackend, 'put', spied)
    options = {'default_hooks.checkpoint.max_keep_ckpts': 1}
    train(config(tmp_path, False, **options))
    assert seen[4:] == [
        ['iter_4.pth', 'iter_8.pth'],  # while the third is written
        ['iter_12.pth', 'iter_8.pth'],
        ['iter_12.pth', 'iter_8.pth'],
        ['iter_12.pth', 'iter_16.pth'],
        ['iter_12.pth', 'iter_16.pth'],
        ['iter_16.pth', 'iter_20.pth'],
    ]


@pytest.mark.parametrize('fails', [True, False])
def test_best_checkpoint_is_kept_until_the_next_is_written(tmp_path, monkeypatch, fails):
    scores, put = iter(range(10)), AtomicBackend.put
    monkeypatch.setattr(ToyMetric, 'compute_metrics', lambda *_: dict(score=next(scores)))

    def full(self, obj, path):
        if fails and 'best_score_iter_12' in str(path):
            raise UserError('the disk is full')
        put(self, obj, path)

    monkeypatch.setattr(AtomicBackend, 'put', full)
    options = {'default_hooks.checkpoint.save_best': 'score'}
    options |= {'default_hooks.checkpoint.rule': 'greater'}
    with pytest.raises(UserError) if fails else nullcontext():
        train(config(tmp_path, False, **options))
    expected = ['best_score_iter_6.pth' if fails else 'best_score_iter_20.pth']
    assert [path.name for path in tmp_path.glob('best_*')] == expected


# --- What is compared -----------------------------------------------------------------------


@pytest.mark.parametrize(
    'change, samples, batch, told',
    [
        ({}, 5, BATCH, 'number of samples (14, now 5)'),
        ({}, 30, BATCH, 'number of samples (14, now 30)'),
        ({'train_dataloader.batch_size': 2}, SAMPLES, 2, 'batch size (3, now 2)'),
        ({'randomness.seed': 6}, SAMPLES, BATCH, 'seed (5, now 6)'),
        ({'optim_wrapper.accumulative_counts': 2}, SAMPLES, BATCH, 'accumulated batches (1, now'),
    ],
)
@pytest.mark.parametrize('in_epoch', [False, True])
def test_what_changes_the_order_of_data_is_told(
    tmp_path, monkeypatch, change, samples, batch, told, in_epoch
):
    """And an epoch that had begun, and those that follow, are whole ones."""
    if in_epoch:
        train_until_asked_to_end(config(tmp_path, True), 'train', 11)
    else:
        with pytest.raises(Killed):
            train(config(tmp_path, True, killer=('train', 12)))
    assert latest_valid(tmp_path)[0].name == ('iter_12.pth' if in_epoch else 'epoch_2.pth')
    monkeypatch.setattr(NoisyDataset, 'load_data_list', lambda self: [{}] * samples)
    seen = []
    monkeypatch.setattr(
        Killer,
        'before_train_iter',
        lambda self, runner, batch_idx, data_batch=None: seen.append((runner.epoch, batch_idx)),
        raising=False,
    )
    train(config(tmp_path, True, killer=('never', 0), **change), resume=True)
    batches = range(math.ceil(samples / batch))
    assert seen == [(epoch, number) for epoch in (2, 3) for number in batches]
    log = ''.join(path.read_text() for path in tmp_path.glob('*/*.log'))
    assert told in log
    # The second epoch was validated only where it was in the midst of the third.
    assert log.count('is made up for') == (not in_epoch)


@DATASETS.register_module()
class Stream(IterableDataset):
    """Samples without numbers."""

    metainfo: ClassVar = dict(classes=('a',))

    def __iter__(self):
        return iter([dict(inputs=torch.full((4,), float(i)), number=i) for i in range(SAMPLES)])

    def __len__(self):
        return SAMPLES


@pytest.mark.parametrize('by_epoch, last', [(True, 'epoch_4.pth'), (False, 'iter_20.pth')])
def test_data_without_numbers_is_named_and_resumed(tmp_path, by_epoch, last):
    loader = dict(batch_size=BATCH, num_workers=0, dataset=dict(type='Stream'), sampler=None)
    first, resumed = (config(tmp_path, by_epoch) for _ in range(2))
    first.train_dataloader = resumed.train_dataloader = loader
    train_until_asked_to_end(first, 'train', 11)
    train(resumed, resume=True)
    assert (tmp_path / last).is_file()
    log = ''.join(path.read_text() for path in tmp_path.glob('*/*.log'))
    assert 'Stream: the samples of this run cannot be repeated exactly' in log


def test_loops_of_others_are_left_alone(tmp_path):
    cfg = config(tmp_path, True)
    cfg.train_cfg = dict(type='MyLoop', by_epoch=True)
    assert 'MyLoop' in settings.set_reliability(cfg)
    assert cfg.train_cfg == dict(type='MyLoop', by_epoch=True)


def test_empty_data_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(NoisyDataset, 'load_data_list', lambda self: [dict(number=0)])
    cfg = config(tmp_path, False)
    cfg.train_dataloader.update(sampler=dict(type='DefaultSampler', shuffle=True), drop_last=True)
    with pytest.raises(UserError, match='gives no batch'):
        train(cfg)
