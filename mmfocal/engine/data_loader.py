"""A data loader that can begin anywhere, and whose samples do not depend on what was before."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import time
import weakref
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
            ``AspectRatioBatchSampler``.
        seed: of the run.
        rank: of the process, whose samples are others'.
    """

    def __init__(self, batches: Any, seed: int, rank: int) -> None:
        self.batches, self.seed, self.rank = batches, seed, rank
        self.pass_number = self.skip = 0

    @property
    def sampler(self) -> Any:
        """The sampler below, whose ``set_epoch`` mmengine's hooks call."""
        return self.batches.sampler

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


class ResumableDataLoader(DataLoader):
    """Does what another loader does, from any batch on, with samples that follow from the seed.

    Nothing is loaded for batches that are skipped. Workers start with the first batch that is
    asked for. A signal that asks the run to end is left to the main process.

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
        options = dict(prefetch_factor=loader.prefetch_factor) if loader.num_workers else {}
        super().__init__(
            SeededDataset(loader.dataset),
            batch_sampler=SeededBatchSampler(loader.batch_sampler, seed, rank),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=partial(_begin_worker, loader.worker_init_fn),
            multiprocessing_context=loader.multiprocessing_context,
            persistent_workers=loader.persistent_workers,
            **options,
        )

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
        if hasattr(batches.sampler, 'set_epoch'):
            batches.sampler.set_epoch(pass_number)

    def __iter__(self) -> Iterator[Any]:
        # A generator: IterBasedTrainLoop asks for an iterator long before a batch.
        batches = super().__iter__()
        if self.num_workers:
            _WITH_WORKERS.add(batches)
        yield from batches


# Iterators of this process that have worker processes.
_WITH_WORKERS: weakref.WeakSet = weakref.WeakSet()


def stop_workers() -> None:
    """Ends the workers of all loaders of this kind in this process."""
    for batches in list(_WITH_WORKERS):
        batches._shutdown_workers()
    _WITH_WORKERS.clear()


@atexit.register
def _kill_workers() -> None:
    """Before multiprocessing terminates daemons by the signal that ours ignore, and waits."""
    stop_workers()
    # PyTorch's handler takes each killed worker for a failure.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def prepare_workers(loader: DataLoader) -> None:
    """Lets the workers that another loader will start behave like those of this module's."""
    loader.worker_init_fn = partial(_begin_worker, loader.worker_init_fn)


def _begin_worker(worker_init_fn: Callable[[int], None] | None, worker_id: int) -> None:
    # Clusters signal all processes. The main process ends the workers once it has saved.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if worker_init_fn is not None:
        worker_init_fn(worker_id)


def _end_with(parent: int) -> None:
    """Ends this process when its parent has been killed.

    PyTorch's workers notice that as well, but then wait for ever until somebody takes the batches
    that they have made, if those are larger than what a pipe holds.
    """
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
