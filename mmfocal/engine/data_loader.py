"""A data loader that can begin anywhere, and whose samples do not depend on what came before."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from .randomness import derived_seed, seeded


class SeededIndex(int):
    """Index of a sample that carries the seed of its augmentation.

    Args:
        index: place in the data set.
        seed: see :func:`~mmfocal.engine.randomness.derived_seed`.
    """

    def __new__(cls, index: int, seed: int) -> SeededIndex:
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __getnewargs__(self) -> tuple[int, int]:  # on its way to a worker
        return int(self), self.seed


class SeededDataset(Dataset):
    """A data set whose random numbers follow from the index; all else is that of ``dataset``."""

    def __init__(self, dataset: Any) -> None:
        self.__dict__['dataset'] = dataset

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, SeededIndex):
            return self.dataset[index]
        with seeded(index.seed):
            return self.dataset[int(index)]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or 'dataset' not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Hooks switch pipelines by setting them.
        setattr(self.dataset, name, value)


class SeededBatchSampler(Sampler):
    """Batches of another batch sampler, with seeds, from any batch on.

    Args:
        batches: iterable of lists of indices, such as PyTorch's ``BatchSampler`` or mmdet's
            ``AspectRatioBatchSampler``; its other attributes are those of this sampler, too.
        seed: of the run.
        rank: of the process, whose samples differ from those of others.
    """

    def __init__(self, batches: Any, seed: int, rank: int) -> None:
        self.batches, self.seed, self.rank = batches, seed, rank
        self.pass_number = self.skip = 0

    def __iter__(self) -> Iterator[list[int]]:
        pass_number, position = self.pass_number, 0
        for batch in self.batches:
            begin, position = position, position + len(batch)
            if self.skip > 0:
                self.skip -= 1
                continue
            yield [
                SeededIndex(index, derived_seed(self.seed, self.rank, pass_number, begin + i))
                for i, index in enumerate(batch)
            ]

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or 'batches' not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.batches, name)


class ResumableDataLoader(DataLoader):
    """Does what another loader does, from any batch on, with samples that follow from the seed.

    Nothing is loaded for batches that are skipped. Workers start with the first batch that is
    asked for, and are prepared by :func:`prepare_workers`.

    Args:
        loader: the loader to be like.
        seed: of the run.
        rank: of the process.

    Raises:
        TypeError: a loader without batches of indices, such as one of an iterable data set.
    """

    def __init__(self, loader: DataLoader, seed: int, rank: int) -> None:
        if loader.batch_sampler is None:
            raise TypeError('the data loader has no batches of indices')
        vars(self).update(
            vars(loader),
            dataset=SeededDataset(loader.dataset),
            batch_sampler=SeededBatchSampler(loader.batch_sampler, seed, rank),
        )
        self.batches: Any = None  # that are being taken
        prepare_workers(self)

    def begin(self, pass_number: int, skip: int | None = None) -> None:
        """Sets where the next iteration begins.

        Args:
            pass_number: passes over the data before it; the order and the samples depend on it.
            skip: batches to leave out; None for what an earlier call has left over.
        """
        batches = self.batch_sampler
        batches.pass_number = pass_number
        if skip is not None:
            batches.skip = skip
        if hasattr(batches, 'sampler') and hasattr(batches.sampler, 'set_epoch'):
            batches.sampler.set_epoch(pass_number)

    def __iter__(self) -> Iterator[Any]:
        # A generator: IterBasedTrainLoop asks for an iterator long before a batch.
        self.batches = super().__iter__()
        yield from self.batches

    def stop(self) -> None:
        """Ends the workers, which garbage collection would wait for."""
        if hasattr(self.batches, '_shutdown_workers'):
            self.batches._shutdown_workers()


def prepare_workers(loader: DataLoader) -> None:
    """Lets the workers that a loader will start end only with the process that started them.

    Clusters signal all processes of a job, and the main process needs its workers until it has
    saved. Where it is killed itself, PyTorch's workers wait for ever until somebody takes the
    batches that they have made, if those are larger than what a pipe holds.
    """
    loader.worker_init_fn = partial(_begin_worker, loader.worker_init_fn, os.getpid())


def _begin_worker(worker_init_fn: Callable[[int], None] | None, main: int, worker_id: int) -> None:
    if hasattr(signal, 'sigtimedwait'):  # Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_with, args=(os.getppid(), main), daemon=True).start()
    if worker_init_fn is not None:
        worker_init_fn(worker_id)


def _end_with(parent: int, main: int) -> None:
    """Ends this process when the main one asks for it by SIGTERM, or its parent is gone.

    They are the same, unless a server forks the workers (multiprocessing's ``forkserver``).
    """
    while os.getppid() == parent:
        received = signal.sigtimedwait([signal.SIGTERM], 1)  # seconds
        if received is not None and received.si_pid in (parent, main):
            break
    os._exit(0)
