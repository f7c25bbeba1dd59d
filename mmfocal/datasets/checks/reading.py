"""What a run will read from a data set, and how: asked of the classes that a config names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import TRANSFORMS

from mmfocal.utils.config import class_of, is_third_party, setting, type_name

from .coco import CocoData, Evaluation
from .dataset import DatasetConfig, SettingError, known_base
from .heads import IGNORED_LABEL, Head, is_of_label_maps
from .images import Entry
from .report import short
from .segmentation import SegmentationData

LABELS = range(256)  # of mmseg's label maps, which it casts to uint8


class Step(NamedTuple):
    """A transform of a pipeline.

    Attributes:
        settings: what the config says.
        kind: its class, None if it is not known.
    """

    settings: Mapping
    kind: type | None

    @property
    def is_stock(self) -> bool:
        return self.kind is not None and not is_third_party(self.kind)

    def get(self, name: str) -> Any:
        """A setting, as the config or the class says; None if neither does."""
        return setting(self.settings, self.kind, name)


def describe(
    cfg: Config, split: str, dataset: DatasetConfig, heads: Sequence[Head]
) -> CocoData | SegmentationData:
    """What a data set reads, and how.

    Args:
        cfg: the config.
        split: ``'train'``, ``'val'`` or ``'test'``.
        dataset: one of its data sets.
        heads: of the config's model.

    Raises:
        UnknownDatasetError: it reads in a way that the checker does not know.
        UserError: its names of classes are none, or its images cannot be listed.
    """
    base = known_base(type(dataset.built))
    steps = list(steps_of(cfg, dataset))
    if base == 'CocoDataset':
        return _describe_coco(cfg, split, dataset, heads, steps)
    return _describe_segmentation(split, dataset, heads, steps)


def _describe_coco(
    cfg: Config, split: str, dataset: DatasetConfig, heads: Sequence[Head], steps: Sequence[Step]
) -> CocoData:
    built = dataset.built
    # mmengine joins an empty prefix with the root, too.
    given = dataset.settings.get('data_prefix', {})
    given = given if isinstance(given, Mapping) else built.data_prefix
    folders = {key: os.path.normpath(path) for key, path in built.data_prefix.items()}
    semantic = [head for head in heads if is_of_label_maps(head)]
    numbers = [head.num_classes for head in semantic if head.num_classes is not None]
    return CocoData(
        annotations=os.path.normpath(built.ann_file),
        images=folders.get('img', built.data_root or ''),
        label_maps=folders['seg'] if given.get('seg') and dataset.reads_label_maps else None,
        label_map_suffix=built.seg_map_suffix,
        num_labels=min(numbers, default=None),
        ignored=_ignored(semantic),
        classes=class_names(dataset),
        has_masks=any(step.get('with_mask') for step in steps)
        or _evaluation(cfg, split, from_file=False).masks,
        trains=split == 'train',
        filter_empty=bool(_filters(built).get('filter_empty_gt', False)),
        evaluation=_evaluation(cfg, split, from_file=True),
        **_image_settings(built, steps),
    )


def _describe_segmentation(
    split: str, dataset: DatasetConfig, heads: Sequence[Head], steps: Sequence[Step]
) -> SegmentationData:
    built = dataset.built
    images = os.path.normpath(built.data_prefix.get('img_path', '.'))
    try:
        listed = built.load_data_list()
    except Exception as error:  # as training would end
        raise SettingError(dataset.key, f'its images cannot be listed: {error}') from error
    # Labels of a file are those of the class; a config may rename or leave out some of them.
    names = class_names(dataset)
    names = tuple(built.METAINFO.get('classes') or names or ()) or None
    first = int(bool(built.reduce_zero_label))
    numbers = [head.num_classes for head in heads if head.num_classes is not None]
    is_binary = any(head.get('num_classes') == 1 and head.num_classes == 2 for head in heads)
    number = max(len(names), 2 * is_binary) if names else min(numbers, default=None)
    ignored = _ignored(heads)
    return SegmentationData(
        images=images,
        entries=tuple(
            Entry(os.path.relpath(each['img_path'], images), each.get('seg_map_path'))
            for each in listed
        ),
        list_file=built.ann_file if os.path.isfile(built.ann_file) else None,
        classes=names,
        first_label=first,
        num_labels=None if number is None else first + number,
        ignored=frozenset(each for each in LABELS if _reduced(each, first) in ignored),
        trains=split == 'train',
        **_image_settings(built, steps),
    )


def _reduced(label: int, first: int) -> int:
    """A label of a file, as mmseg changes it where ``reduce_zero_label`` is set."""
    return IGNORED_LABEL if first and label in (0, IGNORED_LABEL) else label - first


def _ignored(heads: Sequence[Head]) -> frozenset[int]:
    """Labels that all heads ignore."""
    known = [{head.ignored} for head in heads if head.ignored is not None]
    return frozenset(set.intersection(*known) if known else {IGNORED_LABEL})


# --- Classes ----------------------------------------------------------------------------------


def class_names(dataset: DatasetConfig) -> tuple[str, ...] | None:
    """Names of classes in the order of labels, None if the data set does not know them.

    Raises:
        UserError: what it gives for names are none.
    """
    names = dataset.built.metainfo.get('classes')
    given = dataset.settings.get('metainfo')
    if _loads_own(type(dataset.built)) and not (isinstance(given, Mapping) and 'classes' in given):
        return None  # it may change them when it reads its annotations
    if names is None:
        if 'CLASSES' in dataset.built.metainfo:
            problem = "names of classes are read from 'classes', not from 'CLASSES'."
            raise SettingError(f'{dataset.key}.metainfo', problem)
        return None
    where = f'{dataset.key}.metainfo.classes'
    if problem := _why_no_names(names):
        raise SettingError(where, problem)
    return tuple(names)


def _loads_own(kind: type) -> bool:
    """Whether a class of the user reads annotations in a way of its own."""
    owners = (
        next(base for base in kind.__mro__ if name in vars(base))
        for name in ('load_data_list', 'full_init')
    )
    return any(map(is_third_party, owners))


def _why_no_names(names: Any) -> str | None:
    if isinstance(names, str):
        return (
            f'expected a list of names, such as ({names!r},) with its comma, or a file with a '
            f'name a line; got the text {names!r}, each letter of which would be a class.'
        )
    if not isinstance(names, list | tuple):
        kind = type(names).__name__
        return (
            f'expected a list or tuple, in the order of labels, got a {kind}, {short(names)}, '
            'which may have another order in the next run.'
        )
    if odd := [name for name in names if not isinstance(name, str)]:
        return f'expected names, got {short(odd[0])} among them.'
    if not names:
        return 'expected at least one name, got none.'
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        return f'{twice[0]!r} is listed twice. Give each class a name of its own.'
    return None


# --- Pipelines --------------------------------------------------------------------------------


def steps_of(cfg: Config, dataset: DatasetConfig) -> Iterator[Step]:
    """Transforms of a data set's pipeline, those inside others too."""
    scope = dataset.settings.get('_scope_') or cfg.get('default_scope')
    for settings in _settings(dataset.settings.get('pipeline')):
        yield Step(settings, class_of(settings, TRANSFORMS, settings.get('_scope_', scope)))


def _settings(pipeline: Any) -> Iterator[Mapping]:
    for step in pipeline if isinstance(pipeline, list | tuple) else ():
        if isinstance(step, Mapping):
            yield step
            yield from _settings(step.get('transforms'))
        else:
            yield from _settings(step)


def _image_settings(built: BaseDataset, steps: Sequence[Step]) -> dict[str, Any]:
    """How images are loaded, resized and left out."""
    load = _first(steps, 'LoadImageFromFile')
    maps = _first(steps, 'LoadAnnotations')
    color_type = (load and load.get('color_type')) or 'color'
    return dict(
        turns=not color_type.endswith('ignore_orientation') and color_type != 'unchanged',
        backend=(load and load.get('imdecode_backend')) or 'cv2',
        label_backend=(maps and maps.get('imdecode_backend')) or 'pillow',
        loader=_other(steps) if load is None else None,
        label_loader=_other(steps) if maps is None else None,
        longest=min(_bounds(steps), default=None),
        min_size=_filters(built).get('min_size', 0),
    )


def _filters(built: BaseDataset) -> Mapping:
    """What a data set leaves out: nothing in evaluation."""
    return {} if built.test_mode else built.filter_cfg or {}


def _first(steps: Iterable[Step], name: str) -> Step | None:
    """The first transform of that name that is OpenMMLab's: others may read anything."""
    return next((step for step in steps if step.is_stock and step.kind.__name__ == name), None)


def _other(steps: Iterable[Step]) -> str | None:
    """Name of the first transform that is not OpenMMLab's or ours."""
    return next((type_name(step.settings) for step in steps if not step.is_stock), None)


def _bounds(steps: Iterable[Step]) -> Iterator[int]:
    """Bounds of the longer side in pixels of images that are resized with their aspect ratio."""
    for step in steps:
        # Others take the shorter side for the scale.
        if not step.get('keep_ratio') or step.get('resize_type') not in (None, 'Resize'):
            continue
        shrink = min(_numbers(step.settings.get('ratio_range')) or (1.0,))
        scales, scale = step.settings.get('scales'), step.settings.get('scale')
        for each in scales if isinstance(scales, list | tuple) else _pairs(scale):
            if sides := _numbers(each):
                yield int(max(sides) * shrink)


def _pairs(scale: Any) -> Sequence:
    """One scale, or the two between which one is drawn, as a list of scales."""
    is_list = isinstance(scale, list | tuple) and scale and isinstance(scale[0], list | tuple)
    return scale if is_list else [scale]


def _numbers(value: Any) -> tuple[float, ...]:
    """A number or numbers, for both sides; none if that is something else."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values if all(isinstance(each, int | float) for each in values) else ()


def _evaluation(cfg: Config, split: str, from_file: bool) -> Evaluation | None:
    """What the evaluators of a split read, from the file or what the data set made of it.

    None if there is none that reads the file.
    """
    readers = [each for each in evaluators(cfg, split) if bool(each.get('ann_file')) == from_file]
    if from_file and not readers:
        return None
    return Evaluation(
        masks=any('segm' in (each.get('metric') or ()) for each in readers),
        classwise=any(each.get('classwise') for each in readers),
    )


def evaluators(cfg: Config, split: str) -> list[dict]:
    found = cfg.get(f'{split}_evaluator') or []
    return [found] if isinstance(found, dict) else list(found)
