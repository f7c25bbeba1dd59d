"""Training loops that resume a run where it was, in the middle of an epoch too.

mmengine's own repeat the epoch (EpochBasedTrainLoop) or load all data of the past again
(IterBasedTrainLoop), and draw other random numbers than the run that was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from mmengine.dist import get_rank
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from mmfocal.utils.errors import UserError

from .data_loader import ResumableDataLoader
from .randomness import derived_seed, seed_generators


class _Resumable:
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
        loader = ResumableDataLoader(dataloader, runner.seed, get_rank())
        super().__init__(runner, loader, *args, **kwargs)

    def run(self) -> nn.Module:
        """Trains, and ends the workers."""
        try:
            return super().run()
        finally:
            self.dataloader.stop()

    def run_iter(self, *args: Any) -> None:
        """One iteration, whose drop path, dropout and sampling follow from its number."""
        # Another stream than that of samples, whose positions have one number more.
        seed_generators(derived_seed(self.runner.seed, get_rank(), self._iter))
        super().run_iter(*args)


@LOOPS.register_module()
class ResumableEpochBasedTrainLoop(_Resumable, EpochBasedTrainLoop):
    """mmengine's loop by epochs, which can begin at any iteration."""

    def run_epoch(self) -> None:
        """One epoch, or what is left of it."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        self.dataloader.begin(self._epoch, skip=done)
        for number, batch in enumerate(self.dataloader, start=done):
            self.run_iter(number, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


@LOOPS.register_module()
class ResumableIterBasedTrainLoop(_Resumable, IterBasedTrainLoop):
    """mmengine's loop by iterations, which loads nothing of the past again."""

    def run(self) -> nn.Module:
        """Trains."""
        self.dataloader_iterator = _Batches(self.dataloader, self._iter)
        return super().run()


class _Batches:
    """Batches without end. mmengine's loop asks for those of the past first; they cost nothing."""

    def __init__(self, loader: ResumableDataLoader, past: int) -> None:
        self.past, self.batches = past, _endless(loader, past)

    def __next__(self) -> Any:
        if self.past == 0:
            return next(self.batches)
        self.past -= 1
        return None

    def skip_iter(self, count: int) -> None:
        """What OneDL's loop calls instead."""
        self.past -= count


def _endless(loader: ResumableDataLoader, past: int) -> Iterator[Any]:
    """Batches of one pass over the data after the other, without those of the past."""
    loader.begin(0, skip=past)
    for passes in count(1):
        left, is_empty = loader.batch_sampler.skip, True
        for batch in loader:
            is_empty = False
            yield batch
        if is_empty and loader.batch_sampler.skip == left:
            raise UserError(
                'The training data gives no batch: it has fewer samples than one batch, or its '
                'sampler has come to an end. Reduce train_dataloader.batch_size, or add samples.'
            )
        loader.begin(passes)
