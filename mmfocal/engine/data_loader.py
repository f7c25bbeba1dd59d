"""A data loader that can begin anywhere, and whose samples do not depend on what came before."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, IterableDataset

from mmfocal.datasets.checks import sample_errors_for_workers

from .randomness import derived_seed, iterate_seeded, seeded


class SeededIndex(NamedTuple):
    """Index of a sample, of any kind, and the seed of the sample's augmentation."""

    index: Any
    seed: int


class SeededDataset(Dataset):
    """What workers read: a data set whose random numbers follow from the index.

    All else is that of the data set, for functions that prepare workers.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: SeededIndex) -> Any:
        with seeded(index.seed):
            return self.dataset[index.index]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or 'dataset' not in vars(self):
            raise AttributeError(name)
        return getattr(self.dataset, name)


class SeededOrder:
    """Indices in the order of a loader, with seeds, from any batch on.

    What samplers draw from the global generators follows from the seed as well.

    Args:
        indices: what the loader iterates over: lists of indices, such as PyTorch's
            ``BatchSampler`` or mmdet's ``AspectRatioBatchSampler``, or single ones.
        in_batches: whether they are lists.
        seed: of the run.
        rank: of the process, whose samples differ from those of others.

    Attributes:
        pass_number: passes over the data before the next one.
        skip: batches that are left out.
    """

    def __init__(self, indices: Iterable, in_batches: bool, seed: int, rank: int) -> None:
        self.indices, self.in_batches, self.seed, self.rank = indices, in_batches, seed, rank
        self.pass_number = self.skip = 0

    def __iter__(self) -> Iterator[SeededIndex | list[SeededIndex]]:
        pass_number, position = self.pass_number, 0
        # The same in all processes, which share out one order; no other stream ends with 2.
        order_seed = derived_seed(self.seed, pass_number, 0, 0, 2)
        for item in iterate_seeded(self.indices, order_seed):
            indices = item if self.in_batches else [item]
            begin, position = position, position + len(indices)
            if self.skip > 0:
                self.skip -= 1
                continue
            batch = [
                SeededIndex(index, derived_seed(self.seed, self.rank, pass_number, begin + i))
                for i, index in enumerate(indices)
            ]
            yield batch if self.in_batches else batch[0]

    def __len__(self) -> int:
        return len(self.indices)


class ResumableDataLoader(DataLoader):
    """Does what another loader does, from any batch on, with samples that follow from the seed.

    To everybody else it is that loader, with its data set, samplers and settings. Nothing is
    loaded for batches that are skipped. Workers start with the first batch that is asked for, and
    are prepared by :func:`prepare_workers`.

    Args:
        loader: the loader to be like, see :meth:`fits`.
        seed: of the run.
        rank: of the process.
    """

    def __init__(self, loader: DataLoader, seed: int, rank: int) -> None:
        vars(self).update(vars(loader))
        self.order = SeededOrder(loader._index_sampler, loader._auto_collation, seed, rank)
        self.batches: Any = None  # that are being taken
        prepare_workers(self)

    @staticmethod
    def fits(loader: Any) -> bool:
        """Whether a loader is one of PyTorch's that reads its data set by indices."""
        return type(loader) is DataLoader and not isinstance(loader.dataset, IterableDataset)

    def begin(self, pass_number: int, skip: int | None = None) -> None:
        """Sets where the next iteration begins.

        Args:
            pass_number: passes over the data before it; the order and the samples depend on it.
            skip: batches to leave out; None for what an earlier call has left over.
        """
        self.order.pass_number = pass_number
        if skip is not None:
            self.order.skip = skip
        inner = getattr(self.batch_sampler, 'sampler', None)
        for sampler in (self.sampler, self.batch_sampler, inner):
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(pass_number)

    @property
    def _index_sampler(self) -> SeededOrder:
        """What PyTorch iterates over in the place of the sampler."""
        return self.order

    def _get_iterator(self) -> Any:
        view = copy.copy(self)
        vars(view)['dataset'] = SeededDataset(self.dataset)
        return super(ResumableDataLoader, view)._get_iterator()

    def __iter__(self) -> Iterator[Any]:
        # A generator: IterBasedTrainLoop asks for an iterator long before a batch.
        self.batches = super().__iter__()
        yield from self.batches

    def stop(self) -> None:
        """Ends the workers, which garbage collection would wait for."""
        if hasattr(self.batches, '_shutdown_workers'):
            self.batches._shutdown_workers()


def prepare_workers(loader: DataLoader) -> None:
    """Prepares the workers that a loader will start: they end only with the process that did.

    Clusters signal all processes of a job, and the main process needs its workers until it has
    saved. Where it is killed itself, PyTorch's workers wait for ever until somebody takes the
    batches that they have made, if those are larger than what a pipe holds.

    Those that are not forked are told how to name bad samples, too.
    """
    loader.worker_init_fn = partial(
        _begin_worker, loader.worker_init_fn, os.getpid(), sample_errors_for_workers()
    )


def _begin_worker(
    worker_init_fn: Callable[[int], None] | None,
    main: int,
    name_samples: Callable[[], None] | None,
    worker_id: int,
) -> None:
    if hasattr(signal, 'sigtimedwait'):  # Linux
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_with, args=(os.getppid(), main), daemon=True).start()
    if name_samples is not None:
        name_samples()
    if worker_init_fn is not None:
        worker_init_fn(worker_id)


def _end_with(parent: int, main: int) -> None:
    """Ends this process when the main one asks for it by SIGTERM, or is gone.

    The main one is the parent, unless a server forks the workers (multiprocessing's
    ``forkserver``, the default from Python 3.14 on). That lives as long as a worker does, and
    multiprocessing tells them when the main one is gone.
    """
    main_process = multiprocessing.parent_process()
    while os.getppid() == parent and main_process.is_alive():
        received = signal.sigtimedwait([signal.SIGTERM], 1)  # seconds
        if received is not None and received.si_pid in (parent, main):
            break
    os._exit(0)
