"""A config for one's own data, in whatever form it is."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmengine.config import Config
from yapf.yapflib.yapf_api import FormatCode

from mmfocal.datasets.formats import CocoSplit, DetectionData, LabelMaps
from mmfocal.utils.config import type_name
from mmfocal.utils.errors import UserError

from .config import REPOSITORY, find_config, load_config

# Training of few images takes more epochs than that of COCO: this many iterations at least.
LEAST_ITERATIONS = 3000
MOST_EPOCHS = 300
# Published segmenters see each image of ADE20K 127 times.
EPOCHS_OF_SEGMENTERS = 127
EPOCHS_OF_MASK2FORMER = 50  # of COCO
# What hooks call the epoch at which the recipe changes: its epochs are left as they are.
PHASES = {'switch_epoch', 'num_last_epochs'}
BY_BATCH = [
    '# By the number of images in a step, which the number of GPUs decides.',
    'auto_scale_lr = dict(enable=True)',
]
# Pixels a side to which configs for the embedded data set, of 128, resize or cut images.
SMALL = 320
LEAST_OF_SMALL, EPOCHS_OF_SMALL = 500, 12
CROP = 256
# Instead of theirs: shapes look the same upside down.
FLIP = dict(type='RandomFlip', prob=0.5)


def learns_labels_of_pixels(base: str) -> bool:
    """Whether a config is one of semantic segmentation."""
    return load_config(base).get('default_scope') == 'mmseg'


def learns_masks(base: str) -> bool:
    """Whether a detector loads a mask for each object."""
    dataset = load_config(base).train_dataloader.dataset
    return any(step.get('with_mask') for step in dataset.get('pipeline', ()))


def check_base(base: str) -> None:
    """Raises UserError if a config is none that :func:`config_text` can begin with."""
    cfg = load_config(base)
    if Config._is_lazy_import(str(find_config(base))):
        raise UserError(
            f'{base} imports its classes (a pure-Python config), and the config that is written '
            'cannot inherit from such a file. Take another base, such as focal_maskrcnn_3x.'
        )
    (_check_segmenter if learns_labels_of_pixels(base) else _check_detector)(cfg, base)


def config_text(root: Path, data: DetectionData | LabelMaps, base: str) -> str:
    """The text of a config that trains ``base`` on ``data``.

    Names of classes are in it once, and every number of classes follows from them. What fits few
    images is set as well: more epochs, warm-up in proportion, learning rate by batch size.

    Args:
        root: the folder of the images.
        data: what was found there.
        base: name or path of a config of mmdet with plain COCO data, or of mmseg for label maps,
            which :func:`check_base` passes.
    """
    cfg = load_config(base)
    inherited = find_config(base)
    configs = (REPOSITORY / 'configs').resolve()
    if inherited.is_relative_to(configs):
        inherited = f'mmfocal::{inherited.relative_to(configs).as_posix()}'
    is_detection = isinstance(data, DetectionData)
    lines = [
        f'_base_ = {str(inherited)!r}',
        f'classes = {data.classes!r}',
        f'data_root = {_folder(root)!r}',
        'num_classes = len(classes)',
        f'metainfo = {_metainfo(data)}',
        f'model = {_source(_with_num_classes(cfg.model))}',
    ]
    lines += (_detection if is_detection else _segmentation)(root, data, cfg)
    formatted, _ = FormatCode('\n'.join(lines), style_config=dict(column_limit=99))
    what = 'a detector' if is_detection else 'a segmenter'
    return (
        f'# Trains {what} on your own data; change what you like. Relative paths are below '
        'data_root.\n'
    ) + formatted


def _metainfo(data: DetectionData | LabelMaps) -> str:
    palette = getattr(data, 'palette', None)
    return f'dict(classes=classes, palette={palette})' if palette else 'dict(classes=classes)'


def _folder(path: Path) -> str:
    return f'{path.absolute().as_posix()}/'


def _below(path: Path, root: Path) -> str:
    """A path from a folder on, or the whole path if it lies elsewhere."""
    path, root = path.absolute(), root.absolute()
    if not path.is_relative_to(root):
        return path.as_posix()
    return os.path.relpath(path, root).replace(os.sep, '/')


# --- Detectors --------------------------------------------------------------------------------


def _detection(root: Path, data: DetectionData, cfg: Config) -> list[str]:
    small = _small_images(cfg)
    lines = [*small]
    for split, part in data.splits.items():
        dataset = dict(
            type='CocoDataset',
            data_root=_Name('data_root'),
            ann_file=_below(part.annotations, root),
            data_prefix=dict(img=_prefix(part, root)),
            metainfo=_Name('metainfo'),
        )
        if small:
            dataset['pipeline'] = _Name(f'{"train" if split == "train" else "test"}_pipeline')
        lines.append(f'{split}_dataloader = {_source(dict(dataset=dataset))}')
        if split != 'train':
            file = part.annotations.absolute().as_posix()
            lines.append(f'{split}_evaluator = dict(ann_file={file!r})')
    if 'test' not in data.splits:
        lines += ['test_dataloader = val_dataloader', 'test_evaluator = val_evaluator']
    if small:
        lines += _few_iterations(cfg, data.splits['train'].num_images)
    elif type_name(cfg.train_cfg) in ('', 'EpochBasedTrainLoop'):
        lines += _epochs(cfg, data.splits['train'].num_images)
    elif type_name(cfg.train_cfg) == 'IterBasedTrainLoop':
        lines += _iterations_of_detector(cfg, data.splits['train'].num_images)
    return lines


def _prefix(part: CocoSplit, root: Path) -> str:
    below = _below(part.images, root)
    return '' if below == '.' else f'{below}/'


def _small_images(cfg: Config) -> list[str]:
    """Pipelines that resize, for bases of the embedded data set, whose images are all small."""
    if not _is_of_shapes(cfg):
        return []
    resize = dict(type='Resize', scale=_Name('image_size'), keep_ratio=True)
    train, test = (
        _plain(cfg[f'{split}_dataloader'].dataset.pipeline) for split in ('train', 'val')
    )
    train = [FLIP if step['type'] == 'RandomFlip' else step for step in train]
    train.insert(1 + [step['type'] for step in train].index('LoadAnnotations'), resize)
    test = [resize if step['type'] == 'Resize' else step for step in test]
    return [
        f'image_size = ({SMALL}, {SMALL})  # pixels that images are resized into',
        f'train_pipeline = {_source(train)}',
        f'test_pipeline = {_source(test)}',
    ]


def _few_iterations(cfg: Config, num_images: int) -> list[str]:
    """A schedule of minutes to an hour without a GPU, for bases of the embedded data set."""
    batch = cfg.train_dataloader.batch_size
    wanted = max(LEAST_OF_SMALL, math.ceil(EPOCHS_OF_SMALL * num_images / batch))
    return [
        f'max_iters = {min(cfg.train_cfg.max_iters, wanted)}  # of {batch} images',
        'train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 5)',
        'param_scheduler = [',
        "dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),",
        "dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=max_iters, "
        'eta_min_ratio=0.01)]',
        'default_hooks = dict(checkpoint=dict(interval=max_iters // 5))',
    ]


def _is_of_shapes(cfg: Config) -> bool:
    kind = cfg.train_dataloader.dataset.type
    return isinstance(kind, str) and kind.startswith('mmfocal.datasets.')


def _check_detector(cfg: Config, base: str) -> None:
    dataset = cfg.get('train_dataloader', {}).get('dataset', {})
    kind = type_name(dataset) or 'none'
    if cfg.get('default_scope') != 'mmdet' or kind not in ('CocoDataset', 'ShapesDataset'):
        raise UserError(
            f'{base} has training data of type {kind}, which cannot be replaced by a folder: '
            'expected a config of mmdet with CocoDataset, such as focal_maskrcnn_3x, '
            'focal_retinanet_3x or focal_atss_3x, or, for label maps, one of mmseg such as '
            'focal_upernet_160k.'
        )
    if 'seg' in dataset.data_prefix and any(step.get('with_seg') for step in dataset.pipeline):
        raise UserError(
            f'{base} learns from label maps beside boxes, which are not there. Take another base, '
            'such as focal_cascade-maskrcnn_3x.'
        )


def _epochs(cfg: Config, num_images: int) -> list[str]:
    if any(PHASES & hook.keys() for hook in cfg.get('custom_hooks') or ()):
        return BY_BATCH
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
        'milestones=sorted({max_epochs * 3 // 4, max_epochs * 11 // 12} - {0}), gamma=0.1)]',
        *BY_BATCH,
    ]


def _iterations_of_detector(cfg: Config, num_images: int) -> list[str]:
    """A schedule of Mask2Former's form."""
    batch = cfg.train_dataloader.batch_size
    wanted = max(LEAST_ITERATIONS, math.ceil(EPOCHS_OF_MASK2FORMER * num_images / batch))
    return [
        f'max_iters = {min(cfg.train_cfg.max_iters, wanted)}  # of {batch} images on each GPU',
        'train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 10, '
        'dynamic_intervals=None)',
        "param_scheduler = dict(_delete_=True, type='MultiStepLR', by_epoch=False, begin=0, "
        'end=max_iters, milestones=[max_iters * 8 // 9, max_iters * 26 // 27], gamma=0.1)',
        'default_hooks = dict(checkpoint=dict(interval=max_iters // 10))',
        *BY_BATCH,
    ]


# --- Segmenters -------------------------------------------------------------------------------


def _segmentation(root: Path, data: LabelMaps, cfg: Config) -> list[str]:
    lines = []
    train, test = (
        _with_labels(cfg[f'{split}_dataloader'].dataset.pipeline, data.reduce_zero_label)
        for split in ('train', 'val')
    )
    if _is_of_shapes(cfg):
        lines = [
            f'crop_size = ({CROP}, {CROP})  # pixels that are cut out of each image',
            'model.update(data_preprocessor=dict(size=crop_size))',
        ]
        crop = dict(type='RandomCrop', crop_size=_Name('crop_size'), cat_max_ratio=0.75)
        train = [FLIP if step['type'] == 'RandomFlip' else step for step in train]
        train.insert(1 + [step['type'] for step in train].index('LoadAnnotations'), crop)
    lines += [f'train_pipeline = {_source(train)}', f'test_pipeline = {_source(test)}']
    for split, part in data.splits.items():
        dataset = dict(
            type='BaseSegDataset',
            data_root=_Name('data_root'),
            ann_file='' if part.ann_file is None else _below(part.ann_file, root),
            data_prefix=dict(
                img_path=_below(part.img_path, root), seg_map_path=_below(part.seg_map_path, root)
            ),
            img_suffix=part.img_suffix,
            seg_map_suffix=part.seg_map_suffix,
            reduce_zero_label=data.reduce_zero_label,
            metainfo=_Name('metainfo'),
            pipeline=_Name(f'{"train" if split == "train" else "test"}_pipeline'),
        )
        loader = dict(dataset=dataset)
        if split != 'train':
            loader['batch_size'] = 1  # mmseg takes no images of several sizes at once
        lines.append(f'{split}_dataloader = {_source(loader)}')
    if 'test' not in data.splits:
        lines.append('test_dataloader = val_dataloader')
    schedule = _few_iterations if _is_of_shapes(cfg) else _iterations
    return lines + schedule(cfg, data.splits['train'].num_images)


def _with_labels(pipeline: Iterable, reduce_zero_label: bool) -> list[dict]:
    """Transforms that load labels as the data has them."""
    return [
        {**step, 'reduce_zero_label': reduce_zero_label}
        if step['type'] == 'LoadAnnotations'
        else step
        for step in _plain(pipeline)
    ]


def _check_segmenter(cfg: Config, base: str) -> None:
    if 'pipeline' not in cfg.train_dataloader.dataset:
        raise UserError(
            f'{base} does not learn from label maps alone: expected a config of mmseg, such as '
            'focal_upernet_160k.'
        )


def _iterations(cfg: Config, num_images: int) -> list[str]:
    batch, base = cfg.train_dataloader.batch_size, cfg.train_cfg.max_iters
    wanted = math.ceil(EPOCHS_OF_SEGMENTERS * num_images / batch)
    iterations = min(base, max(LEAST_ITERATIONS, wanted))
    warm_up = min(1500, iterations // 10)
    return [
        f'max_iters = {iterations}  # of {batch} images on each GPU',
        'train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 10)',
        'param_scheduler = [',
        f"dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end={warm_up}),",
        f"dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin={warm_up}, "
        'end=max_iters)]',
        'default_hooks = dict(checkpoint=dict(interval=max_iters // 10))',
        *BY_BATCH,
    ]


# --- Source -----------------------------------------------------------------------------------


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


def _with_num_classes(value: Any, number: int | None = None) -> dict | None:
    """What of a model's config has to change for another number of classes.

    Args:
        value: a part of the config.
        number: of classes of what it is a part of, if that says so.
    """
    changes = {}
    panoptic = value.get('num_things_classes', 0) + value.get('num_stuff_classes', 0)
    number = value.get('num_classes', panoptic) or number
    for key, item in value.items():
        if key in ('num_classes', 'num_things_classes'):
            changes[key] = _Name('num_classes')
        elif key == 'num_stuff_classes':
            changes[key] = 0
        elif key == 'class_weight' and isinstance(item, list | tuple):
            # One for all classes and one for none, as Mask2Former wants it; or for other classes.
            is_common = len(set(item[:-1])) == 1 and len(item) - 1 == number
            text = f'[{item[0]!r}] * num_classes + [{item[-1]!r}]'
            changes[key] = _Name(text) if is_common else None
        elif isinstance(item, dict) and (inner := _with_num_classes(item, number)):
            changes[key] = inner
        elif isinstance(item, list | tuple) and any(
            isinstance(each, dict) and _with_num_classes(each) for each in item
        ):
            # A list of heads, which a config can only replace as a whole.
            changes[key] = [_replaced(each) for each in item]
    return changes


def _replaced(value: Any) -> Any:
    """A head of a list, whole."""
    if isinstance(value, list | tuple):
        return [_replaced(each) for each in value]
    if not isinstance(value, dict):
        return value
    changes = _with_num_classes(value)
    return {key: changes.get(key, _replaced(item)) for key, item in _plain(value).items()}


def _plain(value: Any) -> Any:
    """A part of a config as plain lists and dicts, without the scopes that mmengine adds."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key != '_scope_'}
    return value
