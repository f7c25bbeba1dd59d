"""Divides what is not divided: which images are for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from mmfocal.utils.errors import UserError

from .content import SPLITS, WHOLE, Folder

# Before it, Roboflow's exports have the name of the image that several were made from.
_COPY_MARK = '.rf.'
SHARE = 0.2  # of the images, for validation


def divide(names: Sequence[str], share: float, seed: int) -> set[str]:
    """Names of images for validation, chosen at random and repeatably.

    The choice follows from each name and the seed, not from the order or the number of names:
    where images are added, those that were there mostly stay where they were. Copies of one image
    with other augmentations, as Roboflow exports them, stay together.

    Args:
        names: of all images, all different.
        share: of the images, between 0 and 1; at least one image of each part is left.
        seed: gives another choice.

    Raises:
        UserError: the share is none, or there is only one image.
    """
    if not 0 < share < 1:
        raise UserError(f'--val-share: expected a share between 0 and 1, got {share}.')
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(_COPY_MARK)[0], []).append(name)
    if len(groups) < 2:
        raise UserError(
            f'{len(names)} image(s) of one original cannot be divided into training and '
            'validation; expected two at least. Add images.'
        )
    order = sorted(groups, key=lambda group: hashlib.sha1(f'{seed}:{group}'.encode()).digest())
    wanted, chosen = share * len(names), []
    for group in order[:-1]:
        if chosen and len(chosen) + len(groups[group]) / 2 > wanted:
            break
        chosen += groups[group]
    return set(chosen)


def refuse_share(share: float | None, splits: Iterable[str]) -> None:
    """Raises UserError if a share for validation is asked for, and the data is divided already."""
    if share is not None:
        raise UserError(
            f'The data is divided already ({", ".join(splits)}), so that --val-share has no '
            'meaning. Leave it out.'
        )


def divided(
    folder: Folder, splits: dict[str, list], share: float | None, seed: int
) -> tuple[dict[str, list], str]:
    """Splits with ``'train'`` and ``'val'``, which are taken from what there is.

    Validation is ``'val'``, else ``'test'``, else a share of all other images.

    Args:
        folder: the data's.
        splits: what has an ``image`` by ``'train'``, ``'val'``, ``'test'``, or ``'all'``.
        share, seed: see :func:`divide`; None for a fifth.

    Returns:
        The splits in their usual order, and what to add to what the user reads.

    Raises:
        UserError: there is nothing to train on, or a share of what is divided already.
    """
    splits = {name: items for name, items in splits.items() if items}
    source = WHOLE if WHOLE in splits else 'train'
    if source not in splits:
        raise UserError(
            f'There are no images to train on, only for {" and ".join(splits) or "nothing"}. '
            'Expected a part that is called train.'
        )
    if {'val', 'test'} & splits.keys():
        refuse_share(share, splits)
    splits['train'] = items = splits.pop(source)
    if 'val' not in splits and 'test' in splits:
        splits['val'] = splits.pop('test')
    if 'val' in splits:
        return {split: splits[split] for split in SPLITS if split in splits}, ''
    names = [folder.relative(item.image) for item in items]
    chosen = divide(names, SHARE if share is None else share, seed)
    pairs = list(zip(names, items, strict=True))
    parts = {
        'train': [item for name, item in pairs if name not in chosen],
        'val': [item for name, item in pairs if name in chosen],
    }
    return parts, f'; {len(chosen)} of {len(names)} images taken for validation'
