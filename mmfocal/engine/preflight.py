"""Checks before the start that save hours: is the data there, and is it fit to train on?"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmfocal.datasets.checking import (
    CocoData,
    Counts,
    Findings,
    Pictures,
    SegmentationData,
    check_coco,
    check_segmentation,
)
from mmfocal.datasets.preparation import DATASETS
from mmfocal.utils.config import is_third_party, type_name
from mmfocal.utils.errors import UserError

from .dataset_source import DatasetSource, find_source

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
# Our data sets of drawn shapes, and of each family the config that trains on them.
DRAWN = ('ShapesDataset', 'ShapesSegDataset', 'ShapesClsDataset')
EMBEDDED = {
    'mmdet': 'mmdet/focal_maskrcnn_shapes',
    'mmseg': 'mmseg/focal_upernet_shapes',
    'mmpretrain': 'mmpretrain/focal_shapes',
}
# Files that mmengine reads by running what they say.
PROGRAMS = ('.pkl', '.pickle', '.yaml', '.yml')
# What transforms of mmdet import that mmdet does not require.
PACKAGES = {'InstaBoost': 'instaboostfast', 'Albu': 'albumentations'}


class MissingDataError(UserError):
    """The data of a config is not where it looks for it."""


class BadDataError(UserError):
    """Training on the data of a config would break, or teach what is wrong."""


def check_data(cfg: Config, splits: Sequence[str] = ('train', 'val')) -> None:
    """Looks for the files of a config's data sets, before anything is built.

    Args:
        cfg: the config.
        splits: ``'train'``, ``'val'``, ``'test'``.

    Raises:
        MissingDataError: what is missing, where it was looked for, how to get it, how to point
            elsewhere, and what to try instead.
        UserError: a transform needs a package that is not installed, or annotations are in a file
            that can hold code.
    """
    missing, options, kinds = [], {}, []
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        for key, dataset in _leaves(f'{split}_dataloader.dataset', loader['dataset']):
            _check_packages(f'{key}.pipeline', dataset)
            _check_formats(key, dataset)
            absent = [path for path in _paths(dataset) if not os.path.exists(path)]
            if not absent:
                continue
            missing += [path for path in absent if path not in missing]
            kinds.append(_kind(dataset))
            options[f'{key}.data_root'] = 'FOLDER'
            options.update(_evaluator_options(cfg, split, dataset))
    if missing:
        raise MissingDataError(_message(cfg, missing, options, kinds))


def check_contents(
    cfg: Config,
    splits: Sequence[str] = ('train', 'val'),
    deep: bool = False,
    histograms: bool = False,
) -> list[str]:
    """Looks into the annotations, pictures and label maps of a config's data sets.

    That is done for COCO's form and mmseg's data sets, in seconds;
    :mod:`mmfocal.datasets.checking` says what is looked for.

    Args:
        cfg: the config; its data has to be there, see :func:`check_data`.
        splits: ``'train'``, ``'val'``, ``'test'``.
        deep: whether every picture is decoded, which takes minutes to hours.
        histograms: whether bars show how often each class occurs.

    Returns:
        Notes, a line that sums up, and histograms; nothing if the config reads no files.

    Raises:
        BadDataError: with all errors, each with file, annotation or image, and reason.
    """
    start = time.monotonic()
    findings, totals, seen, bars = Findings(), [], [], []
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        counts = []
        for key, dataset in _leaves('', loader['dataset']) if loader else ():
            data = _described(cfg, split, dataset)
            if data is None:
                where = f'{split}_dataloader.dataset{key}'
                findings.note(
                    'data sets of an unknown form',
                    f'{where}: {_kind(dataset)} is read in a way of its own; its files were not '
                    'looked at.',
                )
            elif data not in seen:
                seen.append(data)
                check = check_coco if isinstance(data, CocoData) else check_segmentation
                counts.append((data, check(data, findings, deep)))
        for data, count in counts:
            _check_num_classes(cfg, data, findings)
            totals.append(_counted(split, data, count))
            if histograms and count.classes is not None:
                bars += ['', *count.classes.histogram(split)]
    if not totals and not findings.num_notes:
        return []
    errors = f'{findings.num_errors:,} errors' if findings.num_errors else 'no errors'
    summary = (
        f'Data check: {"; ".join(totals) or "nothing looked at"}: {errors}, '
        f'{findings.num_notes:,} notes, {time.monotonic() - start:.1f} s.'
    )
    if findings.num_errors:
        raise BadDataError('\n'.join([*findings.lines(errors=True), summary]))
    return [*findings.lines(errors=False), summary, *bars]


def _counted(split: str, data: CocoData | SegmentationData, count: Counts) -> str:
    what = 'annotations' if isinstance(data, CocoData) else 'label maps'
    return (
        f'{split} {count.pictures:,} pictures ({count.opened:,} opened) and '
        f'{count.annotations:,} {what}'
    )


def _described(cfg: Config, split: str, dataset: dict) -> CocoData | SegmentationData | None:
    """What a data set reads, and how; None for a form that the check does not know."""
    modules = (cfg.get('custom_imports') or {}).get('imports') or []
    modules = [modules] if isinstance(modules, str) else list(modules)
    scopes = dict.fromkeys((cfg.get('default_scope'), 'mmdet', 'mmseg'))
    source = find_source(_kind(dataset), [*modules, *(f'{s}.datasets' for s in scopes if s)])
    if source is None:
        return None
    root, prefixes = dataset.get('data_root') or '', dataset.get('data_prefix') or {}
    if not isinstance(prefixes, dict):
        return None
    steps = list(_steps(dataset.get('pipeline') or ()))
    filters = dataset.get('filter_cfg') or {}
    pictures = _pictures(steps, filters.get('min_size', 0) if split == 'train' else 0)

    def below(path: str | None) -> str | None:
        return path if path is None else os.path.normpath(os.path.join(root, path))

    if source.reads_as('CocoDataset') and dataset.get('ann_file'):
        loads_masks = any(step.get('with_mask') for step in steps)
        return CocoData(
            annotations=below(dataset['ann_file']),
            images=below(prefixes.get('img', '')),
            classes=_classes(dataset, source),
            has_masks=loads_masks or _evaluates_masks(cfg, split),
            trains=split == 'train',
            label_maps=below(prefixes.get('seg') or None),
            label_map_suffix=_setting('seg_map_suffix', dataset, source),
            pictures=pictures,
        )
    if source.reads_as('BaseSegDataset'):
        # Labels of a file are those of the class; a config may rename or leave out some of them.
        classes = source.metainfo.get('classes') or _classes(dataset, source)
        list_file = below(dataset.get('ann_file') or None)
        return SegmentationData(
            images=below(prefixes.get('img_path', '')),
            label_maps=below(prefixes.get('seg_map_path')),
            classes=tuple(classes) if classes else None,
            list_file=list_file if list_file and not os.path.isdir(list_file) else None,
            image_suffix=_setting('img_suffix', dataset, source),
            label_map_suffix=_setting('seg_map_suffix', dataset, source),
            reduce_zero_label=_setting('reduce_zero_label', dataset, source),
            pictures=pictures,
        )
    return None


def _setting(name: str, dataset: dict, source: DatasetSource) -> Any:
    return dataset.get(name, source.defaults.get(name))


def _classes(dataset: dict, source: DatasetSource) -> tuple[str, ...] | None:
    """Names of classes, from the config or the data set's class."""
    metainfo = dataset.get('metainfo') or {}
    classes = metainfo.get('classes', source.metainfo.get('classes'))
    if isinstance(classes, str):  # mmengine takes it for a file with a name on each line
        file = Path(classes)
        classes = file.read_text().splitlines() if file.is_file() else (classes,)
    return tuple(classes) if classes else None


def _steps(pipeline: Any) -> Iterator[dict]:
    """Transforms of a pipeline, those inside others too."""
    for step in pipeline if isinstance(pipeline, list | tuple) else ():
        if isinstance(step, dict):
            yield step
            yield from _steps(step.get('transforms'))
        else:
            yield from _steps(step)


def _pictures(steps: Iterable[dict], min_size: int) -> Pictures:
    """How transforms load and resize pictures."""
    load, bounds = {}, []
    for step in steps:
        if type_name(step).endswith('LoadImageFromFile'):
            load = step
        if not step.get('keep_ratio'):
            continue
        scales = step.get('scales') or step.get('scale') or ()
        shrink = min(step.get('ratio_range') or (1.0,))
        for scale in [scales] if _is_pair(scales) else scales:
            if _is_pair(scale):
                bounds.append(int(max(scale) * shrink))
    color_type = load.get('color_type', 'color')
    return Pictures(
        turns=not color_type.endswith('ignore_orientation') and color_type != 'unchanged',
        backend=load.get('imdecode_backend', 'cv2'),
        longest=min(bounds, default=None),
        min_size=min_size,
    )


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(side, int | float) for side in value)
    )


def _evaluators(cfg: Config, split: str) -> list[dict]:
    evaluators = cfg.get(f'{split}_evaluator') or []
    return [evaluators] if isinstance(evaluators, dict) else list(evaluators)


def _evaluates_masks(cfg: Config, split: str) -> bool:
    metrics = (evaluator.get('metric') or () for evaluator in _evaluators(cfg, split))
    return any('segm' in metric for metric in metrics)


def _check_num_classes(cfg: Config, data: CocoData | SegmentationData, findings: Findings) -> None:
    """Labels that no output of a head stands for end the process, on a GPU without a reason."""
    if not isinstance(data, CocoData) or data.classes is None:
        return
    model = cfg.get('model') or {}
    parts = {'bbox_head': model.get('bbox_head')}
    for name in ('bbox_head', 'mask_head'):
        parts[f'roi_head.{name}'] = (model.get('roi_head') or {}).get(name)
    for name, heads in parts.items():
        for head in heads if isinstance(heads, list | tuple) else [heads]:
            number = (head or {}).get('num_classes')
            if isinstance(number, int) and number < len(data.classes):
                findings.error(
                    'heads with fewer classes than the data',
                    f'{data.annotations}: has {len(data.classes)} classes, and model.{name} of '
                    f'the config num_classes={number}. Set it to {len(data.classes)}.',
                )


def _check_packages(key: str, dataset: dict) -> None:
    """Raises UserError if a transform of the data set's pipeline lacks its package."""
    for number, step in enumerate(dataset.get('pipeline') or ()):
        package = PACKAGES.get(type_name(step))
        if package and importlib.util.find_spec(package) is None:
            raise UserError(
                f'{key}.{number}, {type_name(step)}, needs a package that is not installed. Run: '
                f'pip install {package}, or leave this transform out of the config.'
            )


def _check_formats(key: str, dataset: dict) -> None:
    """Raises UserError if the data set reads a file that can hold code."""
    for name in ('ann_file', 'proposal_file'):
        path = dataset.get(name)
        if isinstance(path, str) and path.lower().endswith(PROGRAMS):
            raise UserError(
                f'{key}.{name}: expected a file with data alone, such as JSON, got {path}. A '
                f'{Path(path).suffix} file can hold code, which is run when the file is read. If '
                'you trust its origin, read it and write its content as JSON.'
            )


def _leaves(key: str, dataset: Any) -> Iterator[tuple[str, dict]]:
    """Data sets that read files, below wrappers, with their keys in the config."""
    if 'dataset' in dataset:
        yield from _leaves(f'{key}.dataset', dataset['dataset'])
    elif 'datasets' in dataset:
        for i, inner in enumerate(dataset['datasets']):
            yield from _leaves(f'{key}.datasets.{i}', inner)
    elif type_name(dataset) in DRAWN and not is_third_party(dataset):
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
    if type_name(dataset) == 'ImageNet':  # it has folders by the names of splits
        prefixes = prefixes or [dataset.get('split')]
    parts = [part for part in (dataset.get('ann_file'), *prefixes) if part]
    paths = [os.path.join(root, part) for part in parts or [root]]
    return [os.path.abspath(path) for path in paths if path and '://' not in path]


def _evaluator_options(cfg: Config, split: str, dataset: dict) -> dict[str, str]:
    """The evaluator's own path to the annotations, which has to follow the data set's."""
    single = isinstance(cfg.get(f'{split}_evaluator'), dict)
    options = {}
    for i, evaluator in enumerate(_evaluators(cfg, split)):
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
