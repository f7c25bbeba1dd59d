"""The data of a config: is it there, and is it fit to train on?"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmfocal.utils.config import import_custom_modules, type_name
from mmfocal.utils.errors import UserError

from ..published import DATASETS
from .coco import CocoData, check_coco
from .dataset import (
    DatasetConfig,
    UnknownDatasetError,
    find_datasets,
    known_base,
)
from .images import Entry
from .report import Counts, Report
from .segmentation import SegmentationData, check_segmentation

# How to get published data sets, by the classes that read them.
_COCO = f'COCO 2017: {DATASETS["coco"].how_to_get()}'
_ADE20K = f'ADE20K: {DATASETS["ade20k"].how_to_get()}'
SOURCES = {
    'CocoDataset': _COCO,
    'CocoPanopticDataset': _COCO,
    'ADE20KDataset': _ADE20K,
    'CityscapesDataset': (
        'Cityscapes: Download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from '
        'cityscapes-dataset.com, unpack them in one folder, and convert the labels with '
        'tools/dataset_converters/cityscapes.py of MMSegmentation.'
    ),
    'ImageNet': (
        'ImageNet-1K: Download ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from '
        'image-net.org and unpack them to train/<class>/*.JPEG and val/<class>/*.JPEG, or to '
        'val/*.JPEG with their classes in meta/val.txt.'
    ),
}
# Of each family the config that trains on drawn shapes.
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


# --- Is it there? -----------------------------------------------------------------------------


def check_data(cfg: Config, splits: Sequence[str] = ('train', 'val')) -> None:
    """Looks for the files of a config's data sets, before a model is built.

    Args:
        cfg: the config.
        splits: ``'train'``, ``'val'``, ``'test'``.

    Raises:
        MissingDataError: what is missing, where it was looked for, how to get it, how to point
            elsewhere, and what to try instead.
        UserError: a module of the config cannot be imported, a transform needs a package that is
            not installed, or annotations are in a file that can hold code.
    """
    import_custom_modules(cfg)
    missing, options, sources = {}, {}, {}
    for split in splits:
        for dataset in find_datasets(cfg, split):
            _check_packages(dataset)
            _check_formats(dataset)
            absent = [path for path in dataset.paths() if not os.path.exists(path)]
            if not absent:
                continue
            missing |= dict.fromkeys(absent)
            options[f'{dataset.key}.data_root'] = 'FOLDER'
            options |= _evaluator_options(cfg, split, dataset)
            if dataset.name in SOURCES and not dataset.is_third_party:
                sources[SOURCES[dataset.name]] = None
    if missing:
        raise MissingDataError(_message(cfg, missing, options, sources))


def _check_packages(dataset: DatasetConfig) -> None:
    """Raises UserError if a transform of the data set's pipeline lacks its package."""
    for number, step in enumerate(dataset.settings.get('pipeline') or ()):
        package = PACKAGES.get(type_name(step))
        if package and importlib.util.find_spec(package) is None:
            raise UserError(
                f'{dataset.key}.pipeline.{number}, {type_name(step)}, needs a package that is not '
                f'installed. Run: pip install {package}, or leave this transform out of the '
                'config.'
            )


def _check_formats(dataset: DatasetConfig) -> None:
    """Raises UserError if the data set reads a file that can hold code."""
    for name in ('ann_file', 'proposal_file'):
        path = dataset.settings.get(name)
        if isinstance(path, str) and path.lower().endswith(PROGRAMS):
            raise UserError(
                f'{dataset.key}.{name}: expected a file that only holds data, such as JSON, got '
                f'{path}. A {Path(path).suffix} file can hold code, which is run when the file is '
                'read. If you trust its origin, read it and write its content as JSON.'
            )


def _evaluators(cfg: Config, split: str) -> list[dict]:
    evaluators = cfg.get(f'{split}_evaluator') or []
    return [evaluators] if isinstance(evaluators, dict) else list(evaluators)


def _evaluator_options(cfg: Config, split: str, dataset: DatasetConfig) -> dict[str, str]:
    """The evaluator's own path to the annotations, which has to follow the data set's."""
    single = isinstance(cfg.get(f'{split}_evaluator'), dict)
    return {
        f'{split}_evaluator{"" if single else f".{i}"}.ann_file': (
            f'FOLDER/{dataset.settings.get("ann_file")}'
        )
        for i, evaluator in enumerate(_evaluators(cfg, split))
        if evaluator.get('ann_file')
    }


def _message(
    cfg: Config, missing: Iterable[str], options: dict[str, str], sources: Iterable[str]
) -> str:
    embedded = EMBEDDED.get(cfg.get('default_scope'), EMBEDDED['mmdet'])
    lines = ['The data of this config is not there. Looked for:']
    lines += [f'  {path}' for path in missing]
    for source in sources:
        lines += ['', f'To get {source}']
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


# --- Is it fit? -------------------------------------------------------------------------------


def check_contents(
    cfg: Config,
    splits: Sequence[str] = ('train', 'val'),
    deep: bool = False,
    histograms: bool = False,
) -> list[str]:
    """Looks into the annotations, images and label maps of a config's data sets.

    That is done for COCO's form and mmseg's data sets, in seconds.

    Args:
        cfg: the config; its data has to be there, see :func:`check_data`.
        splits: ``'train'``, ``'val'``, ``'test'``.
        deep: whether every image is decoded, which takes minutes to hours.
        histograms: whether bars show how often each class occurs.

    Returns:
        Notes, a line that sums up, and histograms; nothing if the config reads no files.

    Raises:
        BadDataError: with all errors, each with file, annotation or image, and reason.
        UserError: a module of the config cannot be imported.
    """
    import_custom_modules(cfg)
    start = time.monotonic()
    report, totals, bars, seen = Report(), [], [], []
    for split in splits:
        for dataset in find_datasets(cfg, split):
            try:
                data = _describe(cfg, split, dataset)
            except UnknownDatasetError as error:
                problem = '{name} {error}; its files were not looked at.'
                report.note(dataset.key, problem, name=dataset.name, error=error)
                continue
            if data in seen:
                continue
            seen.append(data)
            check = check_coco if isinstance(data, CocoData) else check_segmentation
            counts = check(data, report, deep)
            _check_num_classes(cfg, data, report)
            totals.append(_sum_up(split, data, counts))
            if histograms and counts.classes is not None:
                bars += ['', *counts.classes.histogram(split)]
    if not totals and not report.count('note'):
        return []
    num_errors, num_notes = report.count('error'), report.count('note')
    errors = f'{num_errors:,}' if num_errors else 'no'
    summary = (
        f'Data check: {"; ".join(totals) or "nothing looked at"}: {errors} errors, '
        f'{num_notes:,} notes, {time.monotonic() - start:.1f} s.'
    )
    if num_errors:
        raise BadDataError('\n'.join([*report.lines('error'), summary]))
    return [*report.lines('note'), summary, *bars]


def _sum_up(split: str, data: CocoData | SegmentationData, counts: Counts) -> str:
    is_coco = isinstance(data, CocoData)
    what = f'{counts.boxes:,} annotations' if is_coco else f'{counts.label_maps:,} label maps'
    return f'{split} {counts.images:,} images ({counts.opened:,} opened) and {what}'


def _describe(cfg: Config, split: str, dataset: DatasetConfig) -> CocoData | SegmentationData:
    """What a data set reads, and how.

    Raises:
        UnknownDatasetError: it reads in a way that the checker does not know.
    """
    built = dataset.build()
    base = known_base(type(built))
    steps = list(_steps(dataset.settings.get('pipeline')))
    classes = built.metainfo.get('classes') or ()
    classes = (classes,) if isinstance(classes, str) else tuple(classes)
    # mmengine joins an empty prefix with the root, too.
    given = {key: path for key, path in dataset.settings.get('data_prefix', {}).items() if path}
    folders = {key: os.path.normpath(path) for key, path in built.data_prefix.items()}
    settings = dict(
        min_size=(built.filter_cfg or {}).get('min_size', 0) if split == 'train' else 0,
        **_image_settings(steps),
    )
    if base == 'CocoDataset':
        return CocoData(
            annotations=os.path.normpath(built.ann_file),
            images=folders.get('img', built.data_root or ''),
            label_maps=folders['seg'] if 'seg' in given else None,
            label_map_suffix=built.seg_map_suffix,
            classes=classes or None,
            has_masks=any(step.get('with_mask') for step in steps) or _evaluates_masks(cfg, split),
            trains=split == 'train',
            **settings,
        )
    # Labels of a file are those of the class; a config may rename or leave out some of them.
    classes = tuple(built.METAINFO.get('classes') or classes)
    images = folders.get('img_path', '.')
    try:
        listed = built.load_data_list()
    except Exception as error:  # as training would end
        raise BadDataError(f'{dataset.key}: its images cannot be listed: {error}') from error
    first_label = int(built.reduce_zero_label)
    return SegmentationData(
        images=images,
        entries=tuple(
            Entry(os.path.relpath(each['img_path'], images), each.get('seg_map_path'))
            for each in listed
        ),
        list_file=built.ann_file if os.path.isfile(built.ann_file) else None,
        classes=classes or None,
        first_label=first_label,
        num_labels=first_label + len(classes) if classes else None,
        **settings,
    )


def _steps(pipeline: Any) -> Iterator[Mapping]:
    """Transforms of a pipeline, those inside others too."""
    for step in pipeline if isinstance(pipeline, list | tuple) else ():
        if isinstance(step, Mapping):
            yield step
            yield from _steps(step.get('transforms'))
        else:
            yield from _steps(step)


def _image_settings(steps: Iterable[Mapping]) -> dict[str, Any]:
    """How transforms load and resize images."""
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
    return dict(
        turns=not color_type.endswith('ignore_orientation') and color_type != 'unchanged',
        backend=load.get('imdecode_backend', 'cv2'),
        longest=min(bounds, default=None),
    )


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(side, int | float) for side in value)
    )


def _evaluates_masks(cfg: Config, split: str) -> bool:
    metrics = (evaluator.get('metric') or () for evaluator in _evaluators(cfg, split))
    return any('segm' in metric for metric in metrics)


def _check_num_classes(cfg: Config, data: CocoData | SegmentationData, report: Report) -> None:
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
                report.error(
                    data.annotations,
                    'has {classes} classes, and {head} of the config num_classes={number}. Set it '
                    'to {classes}.',
                    classes=len(data.classes),
                    head=f'model.{name}',
                    number=number,
                )
