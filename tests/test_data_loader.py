"""To everybody else, a resumable loader is the loader that it is made of."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler

from mmfocal.engine.data_loader import ResumableDataLoader
from mmfocal.engine.data_order import data_order, inexact_parts


class Noisy:
    """Ten samples with noise of all generators."""

    offset = 0

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index, self.offset + random.random() + np.random.rand() + float(torch.rand(()))


class Pairs(Sampler):
    """Samples that are named by two numbers, as frames of videos are."""

    def __init__(self):
        self.epoch = 0

    def __iter__(self):
        return iter([(video, frame + self.epoch) for video in range(2) for frame in range(5)])

    def __len__(self):
        return 10

    def set_epoch(self, epoch):
        self.epoch = epoch


class Bare:
    """Batches in an order of their own, and nothing else."""

    def __init__(self):
        self.seen = []

    def __iter__(self):
        indices = random.sample(range(5), 5) + torch.randperm(5).add(5).tolist()
        yield from (indices[i : i + 3] for i in range(0, 10, 3))

    def set_epoch(self, epoch):
        self.seen.append(epoch)


LOADERS = {
    'random': lambda: dict(batch_size=3, sampler=RandomSampler(range(10))),
    'pairs': lambda: dict(batch_size=3, sampler=Pairs()),
    'bare batches': lambda: dict(batch_sampler=Bare()),
    'batches': lambda: dict(batch_sampler=BatchSampler(range(10), 4, drop_last=True)),
    'single samples': lambda: dict(batch_size=None, sampler=range(10)),
}


def loader_of(kind, workers=0):
    settings = LOADERS[kind]()
    if settings.get('batch_size', 1) is not None:
        settings['collate_fn'] = list
    return DataLoader(Noisy(), num_workers=workers, persistent_workers=workers > 0, **settings)


@pytest.mark.parametrize('kind', LOADERS)
@pytest.mark.parametrize('workers', [0, 2])
def test_any_batch_can_be_the_first(kind, workers):
    """Whatever others draw in between, in all passes over the data."""

    def resumable():
        return ResumableDataLoader(loader_of(kind, workers), seed=3, rank=0)

    whole, passes = resumable(), []
    for number in range(2):
        whole.begin(number)
        passes.append(list(whole))
    assert passes[0] != passes[1]
    for number, skip in [(0, 0), (1, 1), (1, 2)]:
        resumed = resumable()
        random.random(), torch.rand(3)
        resumed.begin(number, skip=skip)
        assert list(resumed) == passes[number][skip:]
        resumed.stop()
    whole.stop()


def test_noise_differs_between_passes_in_the_same_order():
    loader = ResumableDataLoader(loader_of('batches'), seed=3, rank=0)
    noise = []
    for number in range(2):
        loader.begin(number)
        noise.append([value for batch in loader for _, value in batch])
    assert len({*noise[0], *noise[1]}) == 16


@pytest.mark.parametrize('kind', LOADERS)
def test_everybody_sees_the_loader_itself(kind):
    stock = loader_of(kind)
    loader = ResumableDataLoader(stock, seed=3, rank=0)
    assert ResumableDataLoader.fits(stock) and isinstance(loader, DataLoader)
    for name in ('dataset', 'sampler', 'batch_sampler', 'batch_size', 'collate_fn', 'drop_last'):
        assert getattr(loader, name) is getattr(stock, name)
    if kind != 'bare batches':  # which do not say how many they are
        assert len(loader) == len(stock)


def test_epochs_are_told_to_whatever_asks_for_them():
    batches = ResumableDataLoader(loader_of('bare batches'), seed=3, rank=0)
    pairs = ResumableDataLoader(loader_of('pairs'), seed=3, rank=0)
    for loader in (batches, pairs):
        loader.begin(4)
    assert batches.batch_sampler.seen == [4] and pairs.sampler.epoch == 4


def test_pipelines_are_switched_while_workers_live():
    """As hooks of YOLOX and RTMDet do: they set the data set's parts, and restart its workers."""
    loader = ResumableDataLoader(loader_of('batches', workers=1), seed=3, rank=0)
    first = list(loader)
    loader.dataset.offset = 100
    loader._DataLoader__initialized = False
    loader._iterator = None
    loader._DataLoader__initialized = True
    for before, after in zip(first, loader, strict=True):
        assert all(b[1] == pytest.approx(a[1] - 100) for b, a in zip(before, after, strict=True))
    loader.stop()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


def test_other_loaders_are_left_alone():
    class Loader(DataLoader):
        pass

    for loader in (DataLoader(Stream()), Loader(Noisy()), [1, 2]):
        assert not ResumableDataLoader.fits(loader)
    assert inexact_parts(DataLoader(Stream())) == ['Stream']


class Cached:
    results_cache = ()


class Seeded:
    def set_random_seed(self, seed): ...


class Albu:
    aug = Seeded()


@pytest.mark.parametrize('wrapped', [False, True])
def test_transforms_that_do_not_follow_from_the_seed_are_named(wrapped):
    class Holder:
        def __init__(self, **parts):
            vars(self).update(parts)

    dataset = Noisy()
    assert inexact_parts(ResumableDataLoader(DataLoader(dataset), 3, 0)) == []
    inner = Holder(transforms=[Cached()])
    dataset.pipeline = Holder(transforms=[Holder(branch_pipelines=dict(a=inner)), Albu()])
    if wrapped:
        outer = Noisy()
        outer.datasets = [dataset, dataset]
        dataset = outer
    loader = ResumableDataLoader(DataLoader(dataset), 3, 0)
    assert inexact_parts(loader) == ['Albu', 'Cached']


def test_order_depends_on_files_and_not_on_folders():
    class Files(Noisy):
        def __init__(self, names, folder='/a'):
            self.names, self.folder = names, folder

        def get_data_info(self, index):
            path = f'{self.folder}/{self.names[index]}'
            return dict(images=[dict(img_path=path)]) if index % 2 else dict(img_path=path)

    def files(*args):
        return data_order(DataLoader(Files(*args)))['files']

    assert data_order(DataLoader(Noisy()))['files'] is None
    assert files('abcdefghij') == files('abcdefghij', '/b') != files('abcdefghji')
    order = data_order(DataLoader(Noisy(), batch_size=5, shuffle=True))
    assert (order['number of samples'], order['batch size']) == (10, 5)
    assert order['sampler'] == 'RandomSampler'
