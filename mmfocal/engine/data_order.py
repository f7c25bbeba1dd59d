"""What the order of samples depends on, and what makes samples depend on more."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

from .data_loader import ResumableDataLoader

MAX_COMPARED = 4096  # samples whose files are compared, evenly spaced


def data_order(loader: Any) -> dict[str, Any]:
    """What determines the order in which a loader gives samples, beside the seed.

    Args:
        loader: of the training data.

    Returns:
        Plain values by names that users know; None for what is not known.
    """
    batches = getattr(loader, 'batch_sampler', None)
    dataset = getattr(loader, 'dataset', None)
    return {
        'number of samples': _length(dataset),
        'batch size': getattr(batches, 'batch_size', getattr(loader, 'batch_size', None)),
        'sampler': type(getattr(batches, 'sampler', batches)).__name__,
        'files': _digest(dataset),
    }


def _length(items: Any) -> int | None:
    try:
        return len(items)
    except TypeError:  # an iterable
        return None


def _digest(dataset: Any) -> str | None:
    """Of the names of a data set's images in their order; None where a name is not known."""
    length = _length(dataset) or 0
    digest = hashlib.sha256()
    for index in range(0, length, max(1, length // MAX_COMPARED)):
        name = _image_name(dataset, index)
        if name is None:
            return None
        digest.update(f'{name}\n'.encode(errors='replace'))
    return digest.hexdigest()[:12]


def _image_name(dataset: Any, index: int) -> str | None:
    """Name of the file of a sample, without folders, which may be moved."""
    while not hasattr(dataset, 'get_data_info') and hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    try:
        info = dataset.get_data_info(index)
        if info.get('images'):  # of a video
            info = info['images'][0]
        return os.path.basename(info['img_path'])
    except Exception:  # third-party data sets may raise anything, and need not have names
        return None


def inexact_parts(loader: Any) -> list[str]:
    """Names of what makes samples depend on more than the seed and their position.

    Such are transforms that keep samples of the past, as mmdet's ``CachedMosaic`` and
    ``CachedMixUp`` do, those with random generators of their own, as albumentations has, and data
    that cannot be asked for by number.

    Args:
        loader: of the training data.
    """
    dataset = getattr(loader, 'dataset', loader)
    if not isinstance(loader, ResumableDataLoader):
        return [type(dataset).__name__]
    return sorted(set(_inexact_transforms(dataset)))


def _inexact_transforms(holder: Any) -> Iterator[str]:
    if hasattr(holder, 'results_cache') or hasattr(
        getattr(holder, 'aug', None), 'set_random_seed'
    ):
        yield type(holder).__name__
    for name in ('dataset', 'datasets', 'pipeline', 'transforms', 'branch_pipelines'):
        inner = getattr(holder, name, None)
        if isinstance(inner, dict):
            inner = list(inner.values())
        for each in inner if isinstance(inner, list | tuple) else [inner]:
            if each is not None:
                yield from _inexact_transforms(each)
