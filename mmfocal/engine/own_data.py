"""A config for one's own data, written from a folder with annotations in COCO's form."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from yapf.yapflib.yapf_api import FormatCode

from mmfocal.datasets.checks import CocoContent, read_coco
from mmfocal.utils.config import type_name
from mmfocal.utils.errors import UserError

from .config import REPOSITORY, find_config, load_config

# What names of annotation files and folders say of the split, best first.
SPLITS = {'train': ('train',), 'val': ('val', 'test')}
DEPTH = 3  # folders below the data's that are looked into
# Training of few images takes more epochs than that of COCO: this many iterations at least.
LEAST_ITERATIONS = 3000
MOST_EPOCHS = 300


@dataclass(frozen=True)
class Split:
    """Images to train on, or to validate with.

    Attributes:
        annotations: of COCO's form.
        images: folder of the images.
        num_images: how many the annotations name.
        classes: names of the categories that have objects, in the order of the file, which is that
            of mmdet's labels.
        has_masks: whether objects have segmentations.
    """

    annotations: Path
    images: Path
    num_images: int
    classes: tuple[str, ...]
    has_masks: bool


def find_splits(root: Path, given: dict[str, Path] | None = None) -> dict[str, Split]:
    """Annotations and images below a folder, as many tools lay them out.

    Annotation files are JSON with ``train`` and ``val`` (or ``valid``, ``test``) in their name or
    that of their folder, such as ``annotations/instances_train.json`` or
    ``train/_annotations.coco.json``; images are looked for wherever the names in them fit.

    Args:
        root: the data's folder.
        given: annotation files by split, where names do not tell.

    Returns:
        A split for ``'train'`` and for ``'val'``.

    Raises:
        UserError: what was looked for and not found, or found more than once.
    """
    if not root.is_dir():
        raise UserError(f'There is no folder {root} (looked for {root.absolute()}).')
    files = {}
    for path in _below(root, '.json'):
        with suppress(ValueError):  # any other JSON
            files[path] = read_coco(path)
    splits = {}
    for split, words in SPLITS.items():
        path = (given or {}).get(split) or _annotations(root, split, words, files)
        try:
            content = files.get(path) or read_coco(path)
        except ValueError as error:
            raise UserError(f'{path}: {error}') from error
        splits[split] = _split(root, path, content, words)
    return splits


def config_text(root: Path, splits: dict[str, Split], base: str) -> str:
    """The text of a config that trains ``base`` on ``splits``.

    Names of classes are in it once, and every number of classes follows from them. What fits few
    images is set as well: more epochs, warm-up in proportion, learning rate by batch size.

    Args:
        root: the data's folder.
        splits: see :func:`find_splits`.
        base: name or path of a config of mmdet with plain COCO data.

    Raises:
        UserError: the base has data that this cannot replace, or masks that the data lack.
    """
    cfg = load_config(base)
    if Config._is_lazy_import(str(find_config(base))):
        raise UserError(
            f'{base} imports its classes (a pure-Python config), and the config that is written '
            'cannot inherit from such a file. Take another base, such as focal_maskrcnn_3x.'
        )
    _check_base(cfg, base, splits['train'])
    inherited = find_config(base)
    configs = (REPOSITORY / 'configs').resolve()
    if inherited.is_relative_to(configs):
        inherited = f'mmfocal::{inherited.relative_to(configs).as_posix()}'
    heads = _with_num_classes(cfg.model)
    lines = [
        f"_base_ = '{inherited}'",
        f'classes = {splits["train"].classes!r}',
        f"data_root = '{root.absolute().as_posix()}/'",
        'num_classes = len(classes)',
        'metainfo = dict(classes=classes)',
        f'model = {_source(heads)}',
    ]
    for split, data in splits.items():
        dataset = dict(
            type='CocoDataset',
            data_root=_Name('data_root'),
            ann_file=_relative(data.annotations, root),
            data_prefix=dict(img=f'{_relative(data.images, root)}/'),
            metainfo=_Name('metainfo'),
        )
        lines.append(f'{split}_dataloader = {_source(dict(dataset=dataset))}')
    val_file = _relative(splits['val'].annotations, root)
    lines += [
        'test_dataloader = val_dataloader',
        f'val_evaluator = dict(ann_file=data_root + {val_file!r})',
        'test_evaluator = val_evaluator',
    ]
    if type_name(cfg.train_cfg) in ('', 'EpochBasedTrainLoop'):
        lines += _schedule(cfg, splits['train'].num_images)
    formatted, _ = FormatCode('\n'.join(lines), style_config=dict(column_limit=99))
    head = (
        '# Trains a detector on your own data; change what you like. Paths are below data_root.\n'
    )
    return head + formatted


# --- Finding --------------------------------------------------------------------------------


def _below(root: Path, suffix: str | None) -> Iterator[Path]:
    """Files with a suffix, or folders, down to :data:`DEPTH`, in the order of their names."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        if len(Path(folder).relative_to(root).parts) >= DEPTH:
            folders.clear()
        if suffix is None:
            yield Path(folder)
        else:
            yield from (Path(folder, name) for name in sorted(files) if name.endswith(suffix))


def _annotations(root: Path, split: str, words: Sequence[str], files: Iterable[Path]) -> Path:
    for word in words:
        found = [path for path in files if word in str(path.relative_to(root)).lower()]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f'{root} holds several annotation files for "{split}": '
                f'{", ".join(_relative(path, root) for path in found)}. Say which: '
                f'--{split}-json FILE'
            )
    raise UserError(
        f'{root} holds no annotations for "{split}": looked for a JSON file of COCO\'s form with '
        f"{' or '.join(words)} in its name or its folder's. Say which it is: --{split}-json FILE"
    )


def _split(root: Path, path: Path, content: CocoContent, words: Sequence[str]) -> Split:
    names = [str(image.get('file_name', '')) for image in content.images]
    if not names:
        raise UserError(f'{path}: names no images.')
    samples = {names[0], names[len(names) // 2], names[-1]}
    folders = sorted(
        _below(root, None),
        key=lambda folder: (
            folder != path.parent,
            not any(word in folder.name.lower() for word in words),
        ),
    )
    for folder in folders:
        if all((folder / name).is_file() for name in samples):
            break
    else:
        raise UserError(
            f'{path} names {names[0]}, which is in no folder of {root} (looked {DEPTH} folders '
            'deep).'
        )
    counts = Counter(each.get('category_id') for each in content.annotations)
    classes = tuple(each['name'] for each in content.categories if counts[each['id']])
    if not classes:
        raise UserError(f'{path}: has no objects of its categories.')
    has_masks = all(each.get('segmentation') for each in content.annotations)
    return Split(path, folder, len(names), classes, has_masks)


def _relative(path: Path, root: Path) -> str:
    return os.path.relpath(path, root).replace(os.sep, '/')


# --- Writing --------------------------------------------------------------------------------


class _Name(str):
    """A name of the config, which has no quotation marks in its text."""

    def __repr__(self) -> str:
        return str(self)


def _source(value: Any) -> str:
    """Python source of plain values, with ``dict(...)``."""
    if isinstance(value, dict):
        return f'dict({", ".join(f"{key}={_source(item)}" for key, item in value.items())})'
    if isinstance(value, list):
        return f'[{", ".join(map(_source, value))}]'
    return repr(value)


def _with_num_classes(value: Any) -> dict | None:
    """What of a model's config has to change for another number of classes."""
    changes = {}
    for key, item in value.items():
        if key == 'num_classes':
            changes[key] = _Name('num_classes')
        elif isinstance(item, dict) and (inner := _with_num_classes(item)):
            changes[key] = inner
        elif isinstance(item, list | tuple) and any(
            isinstance(each, dict) and _with_num_classes(each) for each in item
        ):
            # A list of heads, which a config can only replace as a whole.
            changes[key] = [_replaced(each) for each in item]
    return changes


def _replaced(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    names = dict(num_classes=_Name('num_classes'))
    return {
        key: names.get(key, _replaced(item)) for key, item in value.items() if key != '_scope_'
    }


def _check_base(cfg: Config, base: str, data: Split) -> None:
    kind = type_name(cfg.train_dataloader.dataset)
    if cfg.get('default_scope') != 'mmdet' or kind not in (
        'CocoDataset',
        'ShapesDataset',
    ):
        raise UserError(
            f'{base} has training data of type {kind}, which cannot be replaced by a folder: '
            'expected a config of mmdet with CocoDataset, such as focal_maskrcnn_3x, '
            'focal_retinanet_3x or focal_atss_3x.'
        )
    if 'seg' in cfg.train_dataloader.dataset.data_prefix:
        raise UserError(
            f'{base} learns from label maps beside boxes, which {data.annotations} does not name. '
            'Take another base, such as focal_cascade-maskrcnn_3x.'
        )
    steps = cfg.train_dataloader.dataset.pipeline
    if any(step.get('with_mask') for step in steps) and not data.has_masks:
        raise UserError(
            f'{base} learns masks, and {data.annotations} has objects without segmentation. Take '
            'a base without masks: focal_retinanet_3x, focal_atss_3x, focal_sparsercnn_3x.'
        )


def _schedule(cfg: Config, num_images: int) -> list[str]:
    batch, base = cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs
    iterations = math.ceil(num_images / batch)
    epochs = max(base, min(math.ceil(LEAST_ITERATIONS / iterations), MOST_EPOCHS))
    warm_up = min(500, epochs * iterations // 10)
    return [
        f'max_epochs = {epochs}  # {iterations} iterations each on one GPU',
        f'train_cfg = dict(max_epochs=max_epochs, val_interval={math.ceil(epochs / 36)})',
        'param_scheduler = [',
        f"dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end={warm_up}),",
        "dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, ",
        'milestones=[max_epochs * 3 // 4, max_epochs * 11 // 12], gamma=0.1)]',
        '# By the number of images in a step, which the number of GPUs decides.',
        'auto_scale_lr = dict(enable=True)',
    ]
