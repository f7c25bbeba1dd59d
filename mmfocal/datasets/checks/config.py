"""The data of a config: is it there, and is it fit to train on?"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmengine.config import Config

from mmfocal.utils.config import (
    import_packages,
    is_third_party,
    package_of,
    parameters_of,
    type_name,
)
from mmfocal.utils.errors import UserError

from ..published import DATASETS
from .across import Described, check_across
from .coco import CocoData, check_coco
from .dataset import DatasetConfig, SettingError, UnknownDatasetError, find_datasets
from .heads import Head, class_weight_problem, find_heads, is_of_label_maps, loss_problem
from .reading import class_names, describe, evaluators, steps_of
from .report import Counts, Report, some
from .segmentation import SegmentationData, check_segmentation

# How to get published data sets, by the classes that read them.
_COCO = f'COCO 2017: {DATASETS["coco"].how_to_get()}'
_ADE20K = f'ADE20K: {DATASETS["ade20k"].how_to_get()}'
# Classes that read data sets of any origin do not tell which; the folder of these does.
_BY_FOLDER = [DATASETS[key] for key in ('bccd', 'camvid')]
SOURCES = {
    'CocoDataset': _COCO,
    'CocoPanopticDataset': (
        f'{_COCO} Then unpack '
        'http://images.cocodataset.org/annotations/panoptic_annotations_trainval2017.zip, and '
        'the two zip files in it, there.'
    ),
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
# What transforms of mmdet import that mmdet does not require, and what pip calls it if that is
# something else.
PACKAGES = {'Albu': 'albumentations', 'LoadPanopticAnnotations': 'panopticapi'}
PIP_NAMES = {'panopticapi': 'git+https://github.com/cocodataset/panopticapi.git'}
# Transforms and arguments of MMDetection 2.x and MMSegmentation 0.x, and what they are now.
_PACKS = 'Write PackDetInputs or PackSegInputs at the end of the pipeline instead.'
FORMER_TRANSFORMS = dict(
    Collect=_PACKS,
    DefaultFormatBundle=_PACKS,
    ImageToTensor=_PACKS,
    MultiScaleFlipAug='Leave it out; for test-time augmentation write TestTimeAug.',
    LoadImageFromWebcam='Leave it out.',
)
FORMER_ARGUMENTS = dict(img_scale='scale', flip_ratio='prob', file_client_args='backend_args')


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
        UserError: packages or modules of the config cannot be imported, a transform needs a
            package that is not installed, or annotations are in a file that can hold code.
    """
    import_packages(cfg)
    missing, options, sources = {}, {}, {}
    for split in splits:
        for dataset in find_datasets(cfg, split):
            _check_steps(cfg, dataset)
            _check_formats(dataset)
            if dataset.elsewhere:
                continue
            absent = [path for path in dataset.paths() if not os.path.exists(path)]
            if not absent:
                continue
            missing |= dict.fromkeys(absent)
            options[f'{dataset.key}.data_root'] = 'FOLDER'
            options |= _evaluator_options(cfg, split, dataset)
            if source := _source(dataset, absent):
                sources[source] = None
    if missing:
        raise MissingDataError(_message(cfg, missing, options, sources))


def _source(dataset: DatasetConfig, absent: Iterable[str]) -> str | None:
    """How to get a published data set: by the folder that lacks files, else by who reads it."""
    for published in _BY_FOLDER:
        root = os.path.abspath(published.root)
        if any(Path(path).is_relative_to(root) for path in absent):
            return f'{published.title}: {published.how_to_get()}'
    return None if dataset.is_third_party else SOURCES.get(dataset.name)


def _check_steps(cfg: Config, dataset: DatasetConfig) -> None:
    """Raises UserError for a transform that lacks its package, or that there is no more."""
    for step in steps_of(cfg, dataset):
        name = type_name(step.settings)
        package = PACKAGES.get(name)
        if package and not is_third_party(step.kind) and importlib.util.find_spec(package) is None:
            raise UserError(
                f'{dataset.key}.pipeline: {name} needs a package that is not installed. Run: pip '
                f'install {PIP_NAMES.get(package, package)}, or leave this transform out of the '
                'config.'
            )
        if name == 'InstaBoost' and package_of(step.kind) == 'mmdet':
            raise UserError(
                f"{dataset.key}.pipeline: mmdet's InstaBoost calls the package instaboostfast, "
                'which fails from NumPy 1.24 on at the first object in several parts. Write '
                "type='mmfocal.detection.InstaBoost', which does the same, with the same "
                'arguments and without the package.'
            )
        if step.kind is None and name in FORMER_TRANSFORMS:
            raise UserError(
                f'{dataset.key}.pipeline: {name} is of MMDetection 2.x or MMSegmentation 0.x. '
                f'{FORMER_TRANSFORMS[name]}'
            )
        taken = parameters_of(step.kind) if step.is_stock else FORMER_ARGUMENTS
        for argument, now in FORMER_ARGUMENTS.items():
            if argument in step.settings and argument not in taken:
                raise UserError(
                    f'{dataset.key}.pipeline: {name} does not take {argument!r}, which is of '
                    f'MMDetection 2.x or MMSegmentation 0.x. Write {now!r} instead.'
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


def _evaluator_options(cfg: Config, split: str, dataset: DatasetConfig) -> dict[str, str]:
    """The evaluator's own path to the annotations, which has to follow the data set's."""
    single = isinstance(cfg.get(f'{split}_evaluator'), dict)
    return {
        f'{split}_evaluator{"" if single else f".{i}"}.ann_file': (
            f'FOLDER/{dataset.settings.get("ann_file")}'
        )
        for i, evaluator in enumerate(evaluators(cfg, split))
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
        UserError: packages or modules of the config cannot be imported.
    """
    import_packages(cfg)
    start = time.monotonic()
    report, totals, bars, seen, described = Report(), [], [], [], []
    heads = find_heads(cfg)
    _check_losses(heads, report)
    for split in splits:
        for dataset in find_datasets(cfg, split):
            data = _described(cfg, split, dataset, heads, report)
            if data is None or data in seen:
                continue
            seen.append(data)
            if isinstance(data, CocoData):
                counts = check_coco(data, report, deep)
            else:
                counts = check_segmentation(data, report, deep)
                _check_ignored(data, counts, heads, report)
            totals.append(_sum_up(split, data, counts))
            described.append(Described(split, dataset.key, data, counts.names))
            if histograms and counts.classes is not None:
                bars += ['', *counts.classes.histogram(split)]
    check_across(described, report)
    num_errors, num_notes = report.count('error'), report.count('note')
    if not totals and not num_errors and not num_notes:
        return []
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


def _described(
    cfg: Config, split: str, dataset: DatasetConfig, heads: Sequence[Head], report: Report
) -> CocoData | SegmentationData | None:
    """What a data set reads; None if its files cannot be looked at, which is told."""
    if elsewhere := dataset.elsewhere:
        problem = 'lies in another storage, {elsewhere}; its files were not looked at.'
        report.note(dataset.key, problem, elsewhere=elsewhere)
        return None
    try:
        _check_heads(dataset, heads, split == 'train', report)
        data = describe(cfg, split, dataset, heads)
    except SettingError as error:
        report.error(error.where, '{problem}', problem=error.problem)
        return None
    except UnknownDatasetError as error:
        tell = report.error if error.is_stock else report.note
        problem = '{name} {error}; its files were not looked at.'
        tell(dataset.key, problem, name=dataset.name, error=error)
        return None
    for loader in dict.fromkeys(filter(None, (data.loader, data.label_loader))):
        problem = 'files are read by {loader}; what it makes of them is not known here.'
        report.note(dataset.key, problem, loader=loader)
    return data


def _check_heads(
    dataset: DatasetConfig, heads: Sequence[Head], trains: bool, report: Report
) -> None:
    """Labels that no output of a head stands for end training, on a GPU without a reason."""
    # Of panoptic data sets, only these are objects.
    names = dataset.built.metainfo.get('thing_classes') or class_names(dataset)
    for head in heads:
        number = head.num_classes
        if names and number is not None and number < len(names) and not is_of_label_maps(head):
            is_known = head.kind is None or head.is_stock
            tell = report.error if trains and is_known else report.note
            tell(
                dataset.key,
                'has {classes} classes, and {head} of the config {counts}={number}. Set it to '
                '{classes}.',
                classes=len(names),
                head=head.key,
                counts=head.counts,
                number=number,
            )


def _check_losses(heads: Sequence[Head], report: Report) -> None:
    for head in heads:
        if problem := class_weight_problem(head):
            report.error(head.key, '{problem}', problem=problem)
        if problem := loss_problem(head, has_ignored=False):
            report.error(
                head.key,
                '{problem}. It takes one number for each output of the head; if it has these, '
                "take type='ClassWeightedCrossEntropyLoss', which mmfocal has for that.",
                problem=problem,
            )


def _check_ignored(
    data: SegmentationData, counts: Counts, heads: Sequence[Head], report: Report
) -> None:
    """Tells of losses that would end a run at the first pixel that is ignored."""
    found = counts.classes.values & data.ignored if counts.classes is not None else ()
    tell = report.error if found else report.note
    for head in heads if data.trains else ():
        problem = loss_problem(head, has_ignored=True)
        if problem is None or loss_problem(head, has_ignored=False):
            continue
        tell(
            head.key,
            '{problem} at the first pixel that is ignored{where}. Take '
            "type='ClassWeightedCrossEntropyLoss', which mmfocal has for that, or leave "
            'class_weight out.',
            problem=problem,
            where=f', and label maps hold {some(sorted(found))}' if found else '',
        )
