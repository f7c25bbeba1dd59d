"""Checks that take no time and save hours: is the data where the config looks for it?"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config

from mmfocal.datasets.preparation import DATASETS
from mmfocal.errors import UserError

# By a part of the data set's type: its name, and how to get it.
SOURCES = {
    'Coco': (DATASETS['coco'].title, DATASETS['coco'].how_to_get()),
    'ADE20K': (DATASETS['ade20k'].title, DATASETS['ade20k'].how_to_get()),
    'Cityscapes': (
        'Cityscapes',
        'Download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from '
        'cityscapes-dataset.com, unpack them in one folder, and convert the labels with '
        'tools/dataset_converters/cityscapes.py of MMSegmentation.',
    ),
    'ImageNet': (
        'ImageNet-1K',
        'Download ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org and '
        'unpack them to train/<class>/*.JPEG and val/<class>/*.JPEG, or to val/*.JPEG with their '
        'classes in meta/val.txt.',
    ),
}
# Of each family, the config that trains on drawn shapes.
EMBEDDED = {
    'mmdet': 'mmdet/focal_maskrcnn_shapes',
    'mmseg': 'mmseg/focal_upernet_shapes',
    'mmpretrain': 'mmpretrain/focal_shapes',
}
# What transforms of mmdet import that mmdet does not require.
PACKAGES = {'InstaBoost': 'instaboostfast', 'Albu': 'albumentations'}


class MissingDataError(UserError):
    """The data of a config is not where it looks for it."""


def check_data(cfg: Config, splits: Sequence[str] = ('train', 'val')) -> None:
    """Looks for the files of a config's data sets, before anything is built.

    Args:
        cfg: the config.
        splits: ``'train'``, ``'val'``, ``'test'``.

    Raises:
        MissingDataError: what is missing, where it was looked for, how to get it, how to point
            elsewhere, and what to try instead.
        UserError: a transform needs a package that is not installed.
    """
    missing, options, kinds = [], {}, []
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        for key, dataset in _leaves(f'{split}_dataloader.dataset', loader['dataset']):
            _check_packages(f'{key}.pipeline', dataset)
            absent = [path for path in _paths(dataset) if not os.path.exists(path)]
            if not absent:
                continue
            missing += [path for path in absent if path not in missing]
            kinds.append(_kind(dataset))
            options[f'{key}.data_root'] = 'FOLDER'
            options.update(_evaluator_options(cfg, split, dataset))
    if missing:
        raise MissingDataError(_message(cfg, missing, options, kinds))


def _check_packages(key: str, dataset: dict) -> None:
    """Raises UserError if a transform of the data set's pipeline lacks its package."""
    for number, step in enumerate(dataset.get('pipeline') or ()):
        package = PACKAGES.get(step.get('type'))
        if package and importlib.util.find_spec(package) is None:
            raise UserError(
                f'{key}.{number}, {step["type"]}, needs a package that is not installed. Run: pip '
                f'install {package}, or leave this transform out of the config.'
            )


def _leaves(key: str, dataset: Any) -> Iterator[tuple[str, dict]]:
    """Data sets that read files, below wrappers, with their keys in the config."""
    if 'dataset' in dataset:
        yield from _leaves(f'{key}.dataset', dataset['dataset'])
    elif 'datasets' in dataset:
        for i, inner in enumerate(dataset['datasets']):
            yield from _leaves(f'{key}.datasets.{i}', inner)
    elif 'Shapes' in _kind(dataset):
        return  # drawn on first use
    elif not dataset.get('backend_args'):  # else its paths are those of another storage
        yield key, dataset


def _kind(dataset: dict) -> str:
    kind = dataset.get('type', '')
    return kind if isinstance(kind, str) else kind.__name__


def _paths(dataset: dict) -> list[str]:
    """Absolute paths of the annotation file and the folders that a data set reads."""
    root = dataset.get('data_root') or ''
    prefixes = dataset.get('data_prefix') or {}
    prefixes = [prefixes] if isinstance(prefixes, str) else list(prefixes.values())
    if _kind(dataset) == 'ImageNet':  # it has folders by the names of splits
        prefixes = prefixes or [dataset.get('split')]
    parts = [part for part in (dataset.get('ann_file'), *prefixes) if part]
    paths = [os.path.join(root, part) for part in parts or [root]]
    return [os.path.abspath(path) for path in paths if path and '://' not in path]


def _evaluator_options(cfg: Config, split: str, dataset: dict) -> dict[str, str]:
    """The evaluator's own path to the annotations, which has to follow the data set's."""
    evaluators = cfg.get(f'{split}_evaluator') or []
    single = isinstance(evaluators, dict)
    options = {}
    for i, evaluator in enumerate([evaluators] if single else evaluators):
        if evaluator.get('ann_file'):
            key = f'{split}_evaluator' + ('' if single else f'.{i}')
            options[f'{key}.ann_file'] = f'FOLDER/{dataset.get("ann_file")}'
    return options


def _message(cfg: Config, missing: list[str], options: dict[str, str], kinds: list[str]) -> str:
    names = [part for part in SOURCES if any(part in kind for kind in kinds)]
    embedded = EMBEDDED.get(cfg.get('default_scope'), EMBEDDED['mmdet'])
    lines = ['The data of this config is not there. Looked for:']
    lines += [f'  {path}' for path in missing]
    for name, text in (SOURCES[part] for part in names):
        lines += ['', f'To get {name}: {text}']
    if any('stuffthingmaps' in path for path in missing):
        lines += ['', f'To get label maps: {DATASETS["coco"].how_to_get(optional=True)}']
    lines += ['', 'If it lies in another FOLDER, say so:', '  --cfg-options \\']
    lines += [f'    {key}={value} \\' for key, value in options.items()]
    lines[-1] = lines[-1].removesuffix(' \\')
    lines += [
        '',
        'To try mmfocal without a download, train on drawn shapes (minutes, no GPU needed):',
        f'  python tools/train.py configs/{embedded}.py',
    ]
    return '\n'.join(lines)
