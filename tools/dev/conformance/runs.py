"""Runs of one config by mmengine's ``Runner`` and by mmfocal's ``train``, recorded."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import re
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmengine.config.config
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils._pytree import tree_leaves, tree_map
from yapf.yapflib import yapf_api

from mmfocal.engine import TrainOptions, train
from mmfocal.engine.hooks.curves import CurvesHook
from mmfocal.engine.process import left_as_found
from mmfocal.engine.randomness import seed_generators
from mmfocal.utils.errors import UserError

from ..kill_and_resume import flat

TIMEOUT = 240  # seconds


@dataclass
class Record:
    """What a run did.

    Attributes:
        initial: hashes of the weights before training, and of averages of them.
        pipelines: the transforms of the data set at the begin of each epoch.
        samples: of each batch, the indices that the data set was asked for; where workers ask, the
            image files.
        batches: the classes of what is in each, nested as the batch is.
        losses: what each iteration logs, by name.
        rates: learning rate and momentum of each iteration, by name.
        metrics: of each validation, by name.
        checkpoints: hashes of what each holds, by file and part.
        files: what is in the work folder; ``<time>`` stands for a time.
        tags: what the run has logged, by name.
        error: class and message of what ended the run early, or None.
    """

    initial: list[str] = field(default_factory=list)
    pipelines: list[list[str]] = field(default_factory=list)
    samples: list[list[Any]] = field(default_factory=list)
    batches: list[Any] = field(default_factory=list)
    losses: list[dict[str, float]] = field(default_factory=list)
    rates: list[dict] = field(default_factory=list)
    metrics: list[dict] = field(default_factory=list)
    checkpoints: dict[str, dict[str, str]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    tags: set[str] = field(default_factory=set)
    error: tuple[str, str] | None = None


@HOOKS.register_module()
class RecorderHook(Hook):
    """Records a run, and trains it on the batches that the first run of a pair had.

    Args:
        batches: file of these, after whether the loop had begun to iterate before the weights were
            drawn; the first run writes it.
    """

    priority = 'VERY_HIGH'
    record: Record

    def __init__(self, batches: str) -> None:
        self.path = Path(batches)
        self.is_first = not self.path.exists()
        self.batches = self.path.open('ab' if self.is_first else 'rb')
        self.asked: list[Any] = []

    def before_run(self, runner: Runner) -> None:
        iterator = getattr(runner.train_loop, 'dataloader_iterator', None)
        if self.is_first:
            pickle.dump(getattr(iterator, '_iterator', None) is not None, self.batches)
        elif pickle.load(self.batches):  # stock has begun, which draws a number before the weights
            torch.empty((), dtype=torch.int64).random_()

    def before_train(self, runner: Runner) -> None:
        averages = [hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook)]
        self.record.initial = [_hash(model.state_dict()) for model in (runner.model, *averages)]
        loader = runner.train_loop.dataloader
        self.dataset = loader.dataset
        _record_indices(self.dataset, self.asked)
        self.train_step = runner.model.train_step
        runner.model.train_step = self._train_step

    def before_train_epoch(self, runner: Runner) -> None:
        self.record.pipelines.append(_transforms(self.dataset))

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, **kwargs: Any
    ) -> None:
        files = [x.img_path for x in tree_leaves(data_batch) if hasattr(x, 'img_path')]
        self.record.samples.append(list(self.asked) or files)
        self.record.batches.append(tree_map(lambda leaf: type(leaf).__name__, data_batch))
        self.asked.clear()

    def _train_step(self, data: Any, optim_wrapper: Any) -> dict[str, torch.Tensor]:
        """The model's own, of the same batch and random numbers in both runs."""
        number = len(self.record.losses)
        if self.is_first:
            pickle.dump(data, self.batches)
            self.batches.flush()
        else:
            data = pickle.load(self.batches)
        seed_generators(number)
        losses = self.train_step(data, optim_wrapper)
        self.record.losses.append({name: float(value) for name, value in losses.items()})
        return losses

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        wrapper = runner.optim_wrapper
        self.record.rates.append(dict(wrapper.get_lr(), **wrapper.get_momentum()))

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        seed_generators(batch_idx)  # some models draw in validation

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self.record.metrics.append(dict(metrics or {}))


def _record_indices(dataset: Any, indices: list[Any]) -> None:
    kind = type(dataset)

    def __getitem__(self: Any, index: Any) -> Any:  # noqa: N807
        indices.append(index)
        return kind.__getitem__(self, index)

    dataset.__class__ = type(kind.__name__, (kind,), dict(__getitem__=__getitem__))


def _transforms(dataset: Any) -> list[str]:
    pipeline = getattr(dataset, 'pipeline', None)
    transforms = getattr(pipeline, 'transforms', pipeline) or []
    skipped = getattr(dataset, '_skip_type_keys', None) or []
    return [name for name in (type(step).__name__ for step in transforms) if name not in skipped]


# --- Runs in processes of their own -------------------------------------------------------------


def run_stock(cfg: Config) -> None:
    """A run as mmdet's and mmseg's own ``tools/train.py`` make it."""
    Runner.from_cfg(cfg).train()


def run_ours(cfg: Config) -> None:
    """A run as ours makes it."""
    train(cfg, TrainOptions())


def recorded(run: Callable[[Config], None], cfg: Config, batches: Path) -> Record:
    """Runs a config in a process of its own; what it prints is in ``<work_dir>.log``.

    Args:
        run: :func:`run_stock` or :func:`run_ours`.
        cfg: the config, with a work folder that is not there yet.
        batches: see :class:`RecorderHook`.
    """
    result = Path(f'{cfg.work_dir}.record')
    context = multiprocessing.get_context('fork')  # the packages are imported only once
    process = context.Process(target=_run, args=(run, cfg, batches, result))
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return Record(error=('Timeout', f'it ran for more than {TIMEOUT} s'))
    if not result.exists():
        return Record(error=('Killed', f'status {process.exitcode}'))
    return pickle.loads(result.read_bytes())


def _run(run: Callable[[Config], None], cfg: Config, batches: Path, result: Path) -> None:
    os.setsid()  # its own children end with it
    torch.set_num_threads(1)  # processes share the cores
    # What only people look at takes longer than such a short training.
    for module in (mmengine.config.config, yapf_api):
        module.FormatCode = lambda text, **kwargs: (text, True)
    CurvesHook._draw = lambda self, runner: None
    log = os.open(f'{cfg.work_dir}.log', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    RecorderHook.record = record = Record()
    recorder = dict(type='RecorderHook', batches=str(batches))
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), recorder]
    try:
        with left_as_found():  # what imported the packages may have used them, too
            run(cfg)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        kind = 'UserError' if isinstance(error, UserError) else type(error).__name__
        record.error = (kind, str(error))
    work_dir = Path(cfg.work_dir)
    record.files = {_timeless(path, work_dir) for path in work_dir.rglob('*') if path.is_file()}
    record.tags, record.checkpoints = _tags(work_dir), _checkpoints(work_dir)
    sys.stdout.flush()
    result.write_bytes(pickle.dumps(record))


def _timeless(path: Path, folder: Path) -> str:
    return re.sub(r'\d{8}_\d{6}', '<time>', str(path.relative_to(folder)))


def _tags(folder: Path) -> set[str]:
    lines = (path.read_text().splitlines() for path in folder.rglob('scalars.json'))
    return {key for each in lines for line in each for key in json.loads(line)}


def _checkpoints(folder: Path) -> dict[str, dict[str, str]]:
    hashes = {}
    for path in sorted(folder.glob('*.pth')):
        checkpoint = torch.load(path, weights_only=False)
        checkpoint['meta'] = {key: checkpoint['meta'][key] for key in ('epoch', 'iter', 'seed')}
        # mmengine's history of the log has another form in ours.
        hashes[path.name] = {
            part: _hash(value) for part, value in checkpoint.items() if part != 'message_hub'
        }
    return hashes


def _hash(value: Any) -> str:
    """Of nested dicts and lists of tensors and numbers."""
    digest = hashlib.sha256()
    for name, leaf in flat(value).items():
        content = leaf.detach().contiguous().numpy().tobytes() if torch.is_tensor(leaf) else leaf
        digest.update(f'{name}: {content!r}'.encode())
    return digest.hexdigest()[:16]
