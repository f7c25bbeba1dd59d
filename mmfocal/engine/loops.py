"""Training loops that resume a run where it was, in the middle of an epoch too.

mmengine's own repeat the epoch (EpochBasedTrainLoop) or load all data of the past again
(IterBasedTrainLoop), and draw other random numbers than the run that was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import Any

from mmengine.dist import get_rank
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from mmfocal.utils.errors import UserError

from .data_loader import ResumableDataLoader
from .randomness import derived_seed, seed_generators

VALIDATED = 'last_validation'  # what begins with val, train or test is logged


class ResumableLoop:
    """What both loops share.

    Args:
        runner: the runner, with a seed.
        dataloader: settings of a data loader, or one.
        *args: as for mmengine's loop.
        **kwargs: as for mmengine's loop.
    """

    def __init__(
        self, runner: Runner, dataloader: DataLoader | dict, *args: Any, **kwargs: Any
    ) -> None:
        if isinstance(dataloader, dict):
            diff_rank_seed = runner._randomness_cfg.get('diff_rank_seed', False)
            dataloader = runner.build_dataloader(
                dataloader, seed=runner.seed, diff_rank_seed=diff_rank_seed
            )
        if ResumableDataLoader.fits(dataloader):
            dataloader = ResumableDataLoader(dataloader, runner.seed, get_rank())
        super().__init__(runner, dataloader, *args, **kwargs)

    def run(self) -> nn.Module:
        """Trains, and ends the workers."""
        try:
            self.runner.call_hook('before_train')
            self._train()
            self.runner.call_hook('after_train')
        finally:
            if isinstance(self.dataloader, ResumableDataLoader):
                self.dataloader.stop()
        return self.runner.model

    def run_iter(self, *args: Any) -> None:
        """One iteration, whose drop path, dropout and sampling follow from its number."""
        # Another stream than that of samples, whose positions have one number more.
        seed_generators(derived_seed(self.runner.seed, get_rank(), self._iter))
        super().run_iter(*args)

    # --- Validation -------------------------------------------------------------------------

    def _make_up_for_validation(self) -> None:
        """Validates if that was due when the run was saved; now all hooks are ready for it."""
        log = self.runner.message_hub
        if self._iter > 0 and log.runtime_info.get(VALIDATED) != self._iter:
            log.update_info('iter', self._iter - 1)  # as after the iteration that it was due after
            self._validate('Validation was due when this run was saved, and is made up for.')

    def _validate(self, note: str | None = None) -> None:
        """Validates if it is time to."""
        number, end = self._progress()
        self._decide_current_val_interval()
        is_time = number >= self.val_begin and (number % self.val_interval == 0 or number == end)
        if self.runner.val_loop is not None and is_time:
            if note:
                self.runner.logger.info(note)
            self.runner.val_loop.run()


@LOOPS.register_module()
class ResumableEpochBasedTrainLoop(ResumableLoop, EpochBasedTrainLoop):
    """mmengine's loop by epochs, which can begin at any iteration."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begun: int | None = None  # the iteration with which the current epoch began
        self._batches_done: int | None = None  # of the epoch that is resumed
        self._begins_anew = False  # though some were done

    @property
    def max_iters(self) -> int:
        """Iterations in all: those so far, and of the epochs that are left."""
        return self._epoch_begin() + (self._max_epochs - self._epoch) * len(self.dataloader)

    def batches_done(self, epoch: int, iteration: int) -> int:
        """How many batches of an epoch are done.

        Args:
            epoch: the current one, or the next.
            iteration: how many there have been in all.
        """
        return iteration - self._epoch_begin() if epoch == self._epoch else 0

    def resume_epoch(self, batches_done: int, same_order: bool) -> None:
        """Sets how the current epoch continues, before it is resumed.

        Args:
            batches_done: how many of its batches are done.
            same_order: whether they come as they did; if not, the epoch begins anew.
        """
        self._batches_done = batches_done if same_order else 0
        self._begins_anew = batches_done > 0 and not same_order

    def _epoch_begin(self) -> int:
        if self._begun is not None:
            return self._begun
        done = self._batches_done
        if done is None:  # mmengine saves at ends of epochs only, unless it is told otherwise
            done = self._iter - self._epoch * len(self.dataloader)
            done = done if 0 <= done <= len(self.dataloader) else 0
        return self._iter - done

    def run_epoch(self) -> None:
        """One epoch, or what is left of it."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        done = self._iter - self._begun
        for number, batch in enumerate(self._batches(done), start=done):
            self.run_iter(number, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
        self._begun = self._iter

    def _batches(self, done: int) -> Iterator[Any]:
        if not isinstance(self.dataloader, ResumableDataLoader):
            return islice(self.dataloader, done, None)
        self.dataloader.begin(self._epoch, skip=done)
        return iter(self.dataloader)

    def _train(self) -> None:
        self._begun = self._epoch_begin()
        if self._iter == self._begun and not self._begins_anew:
            self._make_up_for_validation()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate()

    def _progress(self) -> tuple[int, int]:
        return self._epoch, self._max_epochs


@LOOPS.register_module()
class ResumableIterBasedTrainLoop(ResumableLoop, IterBasedTrainLoop):
    """mmengine's loop by iterations, which loads nothing of the past again."""

    def _train(self) -> None:
        self.runner.call_hook('before_train_epoch')  # all iterations are one
        self._make_up_for_validation()
        self.dataloader_iterator = self._batches(self._iter)
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._validate()
        self.runner.call_hook('after_train_epoch')

    def _batches(self, done: int) -> Iterator[Any]:
        batches = _endless(self.dataloader, done)
        if isinstance(self.dataloader, ResumableDataLoader):
            return batches
        return islice(batches, done, None)

    def _progress(self) -> tuple[int, int]:
        return self._iter, self._max_iters


def _endless(loader: DataLoader, past: int) -> Iterator[Any]:
    """Batches of one pass over the data after the other.

    Args:
        loader: gives the batches of one pass.
        past: the first batches, which are left out if the loader can do so.
    """
    is_resumable = isinstance(loader, ResumableDataLoader)
    for passes in count():
        if is_resumable:
            loader.begin(passes, skip=past if passes == 0 else None)
        left, is_empty = loader.order.skip if is_resumable else 0, True
        for batch in loader:
            is_empty = False
            yield batch
        if is_empty and (not is_resumable or loader.order.skip == left):
            raise UserError(
                'The training data gives no batch: it has fewer samples than one batch, or its '
                'sampler has come to an end. Reduce train_dataloader.batch_size, or add samples.'
            )
