"""A line below the log that says how far training, validation and testing are."""

from __future__ import annotations

import logging
import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmfocal.utils.progress import Line, Pace, told


@contextmanager
def live_progress(runner: Runner, file: TextIO | None = None) -> Iterator[None]:
    """Shows the line while the runner works: in the first process, if it has a terminal.

    The lines of the logger go above it.

    Args:
        runner: that will train or test.
        file: of the terminal; None for standard error.
    """
    line = Line(file)
    if not is_main_process() or not line.is_live or _log_is_piped():
        yield
        return
    runner.register_hook(_ProgressHook(line))
    before, after = _Call(line.clear), _Call(line.redraw)
    handlers = runner.logger.handlers  # they are called in this order
    handlers.insert(0, before)
    handlers.append(after)
    try:
        yield
    finally:
        line.end()
        handlers.remove(before)
        handlers.remove(after)


def _log_is_piped() -> bool:
    """Whether another program, such as tee, writes the log, whose lines nothing can wait for."""
    return stat.S_ISFIFO(os.fstat(1).st_mode)


class _Call(logging.Handler):
    """Calls a function for each record."""

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__()
        self.function = function

    def emit(self, record: logging.LogRecord) -> None:
        self.function()


class _ProgressHook(Hook):
    """Writes what runners do on a line."""

    priority = 'LOWEST'  # the time of the other hooks counts

    def __init__(self, line: Line) -> None:
        self.line = line
        self.paces: dict[str, Pace] = {}

    def _begin(self, name: str) -> None:
        self.paces.setdefault(name, Pace()).begin()

    def before_train_epoch(self, runner: Runner) -> None:
        self._begin('train')

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self._begin('train')  # goes on, without the time of validation

    def before_val_epoch(self, runner: Runner) -> None:
        self.paces.pop('val', None)
        self._begin('val')

    def before_test_epoch(self, runner: Runner) -> None:
        self._begin('test')

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        self.paces['train'].step()
        if not self.line.is_due:
            return  # reading the loss waits for the GPU
        by_epoch = runner.max_epochs > 1  # loops by iterations have a single one
        title = f'Epoch {runner.epoch + 1} of {runner.max_epochs}' if by_epoch else 'Training'
        text = told(title, runner.iter + 1, runner.max_iters, self.paces['train'].rate, bar=True)
        loss = (outputs or {}).get('loss')
        if loss is not None:
            text += f', loss {float(loss):.4g}'
        self.line.show(f'{text}, {_peak_memory() / 1e9:.1f} GB')

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._evaluated('val', 'Validating', batch_idx + 1, len(runner.val_dataloader))

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._evaluated('test', 'Testing', batch_idx + 1, len(runner.test_dataloader))

    def before_val_loss(self, runner: Runner) -> None:
        self.paces.pop('val_loss', None)
        self._begin('val_loss')

    def after_val_loss_iter(self, runner: Runner, batch_idx: int, total: int) -> None:
        self._evaluated('val_loss', 'Losses', batch_idx + 1, total)

    def _evaluated(self, name: str, title: str, done: int, total: int) -> None:
        self.paces[name].step()
        if done == total:
            self.line.end()  # metrics are printed next, by packages that know no logger
        elif self.line.is_due:
            self.line.show(told(title, done, total, self.paces[name].rate, bar=True))


def _peak_memory() -> int:
    """Bytes that this process has taken at most: of the GPU, or without one of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
