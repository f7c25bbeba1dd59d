"""A bar below the log that shows how far training, validation and testing are."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmfocal.utils.progress import (
    ProgressBar,
    in_notebook,
    is_live_terminal,
    log_above_bars,
    progress_bar,
)


@contextmanager
def live_progress(runner: Runner) -> Iterator[None]:
    """Shows the bar while the runner works: in the first process, in a terminal or a notebook.

    The lines of the logger go above it.

    Args:
        runner: that will train or test.
    """
    is_shown = in_notebook() or (is_live_terminal() and not _log_is_piped())
    if not is_main_process() or not is_shown:
        yield
        return
    hook = _ProgressHook()
    runner.register_hook(hook)
    try:
        with nullcontext() if in_notebook() else log_above_bars(runner.logger):
            yield
    finally:
        hook.close()


def _log_is_piped() -> bool:
    """Whether another program, such as tee, writes the log, whose lines nothing can wait for."""
    return stat.S_ISFIFO(os.fstat(1).st_mode)


class _ProgressHook(Hook):
    """Shows one bar at a time.

    It begins after the first step of a phase, so that its rate holds no time between phases, and
    ends with the last one: metrics are printed next, by packages that know no logger.
    """

    priority = 'LOWEST'  # the time of the other hooks counts

    def __init__(self) -> None:
        self.bar: ProgressBar | None = None

    def close(self) -> None:
        """Removes the bar, if there is one."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        by_epoch = runner.max_epochs > 1  # loops by iterations have a single one
        desc = f'Epoch {runner.epoch + 1} of {runner.max_epochs}' if by_epoch else 'Training'
        if self._step(desc, runner.iter + 1, runner.max_iters):
            # Only now, since reading the loss waits for the GPU.
            loss = (outputs or {}).get('loss')
            shown = '' if loss is None else f'loss {float(loss.detach()):.4g}, '
            self.bar.set_postfix_str(f'{shown}{_peak_memory() / 1e9:.1f} GB')

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._evaluated('Validation', batch_idx + 1, len(runner.val_dataloader))

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._evaluated('Test', batch_idx + 1, len(runner.test_dataloader))

    def after_val_loss_iter(self, runner: Runner, batch_idx: int, total: int) -> None:
        self._evaluated('Validation loss', batch_idx + 1, total)

    def _evaluated(self, desc: str, done: int, total: int) -> None:
        if done == total:
            self.close()
        else:
            self._step(desc, done, total)

    def _step(self, desc: str, done: int, total: int) -> bool:
        """Counts a step; returns whether the bar was redrawn."""
        if self.bar is not None and self.bar.desc == desc:
            return bool(self.bar.update(done - self.bar.n))
        self.close()
        self.bar = progress_bar(desc, total, initial=done)
        return True


def _peak_memory() -> int:
    """Bytes that this process has taken at most: of the GPU, or without one of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
