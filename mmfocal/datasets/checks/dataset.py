"""Data sets of a config, which are asked themselves: by the classes that mmengine will build."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.registry import DATASETS, DefaultScope
from torch.utils.data import Dataset

from mmfocal.utils.config import is_third_party, type_name
from mmfocal.utils.errors import UserError
from mmfocal.utils.files import why_no_file

# The classes whose files the checker knows, by package and name, and the methods that read them.
KNOWN = ('mmdet.CocoDataset', 'mmseg.BaseSegDataset')
READERS = ('load_data_list', 'parse_data_info')
# Our data sets of drawn shapes, which are not imported without their family.
DRAWN = tuple(
    f'mmfocal.datasets.{name}'
    for name in (
        'coco_shapes.ShapesDataset',
        'seg_shapes.ShapesSegDataset',
        'cls_shapes.ShapesClsDataset',
    )
)
# Arguments of data sets in MMDetection 2.x and MMSegmentation 0.x, and what they are now.
FORMER = dict(
    img_prefix="data_prefix=dict(img='...')",
    seg_prefix="data_prefix=dict(seg='...')",
    img_dir="data_prefix=dict(img_path='...')",
    ann_dir="data_prefix=dict(seg_map_path='...')",
    split='ann_file',
    classes='metainfo=dict(classes=(...))',
)


class UnknownDatasetError(Exception):
    """A data set cannot be asked, or reads files in another way; the message follows its name.

    Attributes:
        is_stock: whether one of OpenMMLab's cannot be built: a run could not, either.
    """

    def __init__(self, message: str, is_stock: bool = False) -> None:
        super().__init__(message)
        self.is_stock = is_stock


class SettingError(UserError):
    """A setting of a config cannot be.

    Args:
        where: its dotted key.
        problem: what is wrong with it, as a sentence.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f'{where}: {problem}')
        self.where, self.problem = where, problem


class DatasetConfig:
    """A data set in a config.

    Args:
        cfg: the config.
        key: of the data set in it, such as ``'train_dataloader.dataset'``.
        settings: what the config says there.

    Attributes:
        name: of its class, without scope or module.
        is_third_party: whether the class is none of OpenMMLab's or ours.
    """

    def __init__(self, cfg: Config, key: str, settings: dict) -> None:
        self.key, self.settings = key, settings
        self._scope = settings.get('_scope_') or cfg.get('default_scope') or 'mmengine'
        kind = settings.get('type', '')
        self._class = self._find_class(kind)
        self.name = type_name(self._class or kind)
        self.is_third_party = is_third_party(self._class or kind)

    def _find_class(self, kind: Any) -> type | None:
        self._why_unknown = 'is not registered'
        if isinstance(kind, str):
            try:
                with DATASETS.switch_scope_and_registry(self._scope) as registry:
                    kind = registry.get(kind)
            except Exception as error:  # imports of packages may raise anything
                self._why_unknown = f'cannot be imported ({type(error).__name__}: {error})'
        return kind if inspect.isclass(kind) else None

    @property
    def is_drawn(self) -> bool:
        """Whether it makes its files on first use."""
        kind = self._class
        return kind is not None and f'{kind.__module__}.{kind.__qualname__}' in DRAWN

    @property
    def elsewhere(self) -> str | None:
        """What says that its files are in another storage; None if they are local."""
        load = next((step for step in _steps(self.settings) if _names_storage(step)), {})
        for each in (self.settings, load):
            arguments = each.get('backend_args')
            if arguments and not _is_local(arguments):
                return f'backend_args={dict(arguments)!r}'
        parts = [self.settings.get(name) for name in ('data_root', 'ann_file')]
        return next((part for part in parts if isinstance(part, str) and '://' in part), None)

    @cached_property
    def built(self) -> BaseDataset:
        """The data set without annotations and transforms: with paths, metainfo and suffixes.

        Raises:
            UserError: it would wait for a named pipe or a device, or a setting has a wrong form.
            UnknownDatasetError: there is no such class, or it cannot be built in this way.
        """
        if self._class is None:
            raise UnknownDatasetError(self._why_unknown)
        if not issubclass(self._class, BaseDataset):
            raise UnknownDatasetError('does not derive from BaseDataset of mmengine')
        check_lists(self.settings)
        settings = copy.deepcopy(dict(self.settings)) | dict(pipeline=[], lazy_init=True)
        for key in ('type', '_scope_'):
            settings.pop(key, None)
        try:
            with DefaultScope.overwrite_default_scope(self._scope):
                return self._class(**settings)
        except Exception as error:  # classes of others may raise anything
            if not self.is_third_party and (misfit := _wrong_form(self.settings)):
                raise SettingError(f'{self.key}.{misfit[0]}', misfit[1]) from error
            reason = f'{type(error).__name__}: {" ".join(str(error).split())}'
            is_stock = not self.is_third_party and 'lazy_init' not in reason
            raise UnknownDatasetError(f'cannot be built ({reason})', is_stock) from error

    @property
    def reads_label_maps(self) -> bool:
        """Whether ``data_prefix.seg`` matters, which some configs have from a base of theirs."""
        return not any(
            type_name(step) == 'LoadAnnotations'
            and not is_third_party(step)
            and not step.get('with_seg')
            for step in _steps(self.settings)
        )

    def paths(self) -> list[str]:
        """Absolute paths of the annotation file and the folders that it reads."""
        try:
            values, below = vars(self.built), ''  # joined by mmengine
        except UnknownDatasetError:
            values, below = self.settings, self.settings.get('data_root') or ''
        root, prefixes = values.get('data_root') or '', values.get('data_prefix') or {}
        if isinstance(prefixes, Mapping):
            unread = set() if self.reads_label_maps else {'seg'}
            prefixes = [prefix for key, prefix in prefixes.items() if key not in unread]
        else:
            prefixes = [prefixes]
        parts = [part for part in (values.get('ann_file'), *prefixes) if part]
        parts = [os.path.join(below, part) for part in parts if isinstance(part, str)]
        # An empty prefix means the root, which is there where a part of it is.
        parts = [part for part in parts if os.path.normpath(part) != os.path.normpath(root)]
        return [os.path.abspath(part) for part in parts or [root] if part and '://' not in part]


def known_base(kind: type) -> str:
    """The class that reads the files of a data set: ``'CocoDataset'`` or ``'BaseSegDataset'``.

    Raises:
        UnknownDatasetError: another one does.
    """
    for base in kind.__mro__:
        is_known = f'{base.__module__.partition(".")[0]}.{base.__name__}' in KNOWN
        if is_known and all(getattr(kind, name) is getattr(base, name) for name in READERS):
            return base.__name__
    raise UnknownDatasetError('is read in a way of its own')


def check_lists(settings: Mapping) -> None:
    """Raises UserError if a value of ``metainfo`` names what would block mmengine.

    It takes each text there for a file with one name a line if it can be opened.
    """
    metainfo = settings.get('metainfo')
    for key, value in metainfo.items() if isinstance(metainfo, Mapping) else ():
        is_path = isinstance(value, str) and os.path.exists(value)
        if is_path and not os.path.isdir(value) and (problem := why_no_file(value)):
            raise UserError(f'metainfo: {key}={value!r} {problem}')


def _wrong_form(settings: Mapping) -> tuple[str, str] | None:
    """Which setting a stock data set has refused, where that is well known, and why."""
    for name in ('data_root', 'ann_file'):
        value = settings.get(name)
        if value is not None and not isinstance(value, str):
            return name, (
                f'expected one path, got {value!r}. For several, join data sets: '
                "dict(type='ConcatDataset', datasets=[...])."
            )
    prefix = settings.get('data_prefix', {})
    if not isinstance(prefix, Mapping):
        return 'data_prefix', f"expected a dict such as dict(img='train/'), got {prefix!r}."
    metainfo = settings.get('metainfo')
    metainfo = metainfo if isinstance(metainfo, Mapping) else {}
    names, palette = metainfo.get('classes'), metainfo.get('palette')
    is_given = isinstance(names, list | tuple) and isinstance(palette, list | tuple)
    if is_given and len(names) != len(palette):
        problem = f'expected a colour for each of {len(names)} classes, got {len(palette)}.'
        return 'metainfo.palette', problem
    for name, now in FORMER.items():
        if name in settings:
            return name, f'is of MMDetection 2.x or MMSegmentation 0.x. Write {now} instead.'
    return None


def _steps(settings: Mapping) -> list[Mapping]:
    steps = settings.get('pipeline')
    steps = steps if isinstance(steps, list | tuple) else []
    return [step for step in steps if isinstance(step, Mapping)]


def _names_storage(step: Mapping) -> bool:
    return type_name(step).startswith('Load') and bool(step.get('backend_args'))


def _is_local(arguments: Any) -> bool:
    try:
        return isinstance(get_file_backend(backend_args=dict(arguments)), LocalBackend)
    except Exception:  # of a package that is not installed
        return False


def find_datasets(cfg: Config, split: str) -> Iterator[DatasetConfig]:
    """Data sets of a split that are not drawn, also those inside of wrappers."""
    loader = cfg.get(f'{split}_dataloader')
    if loader is not None:
        yield from _inner(cfg, f'{split}_dataloader.dataset', loader.get('dataset'))


def _inner(cfg: Config, key: str, settings: Any) -> Iterator[DatasetConfig]:
    if isinstance(settings, Dataset):  # built already
        return
    if not isinstance(settings, Mapping):
        raise UserError(f"{key}: expected a dict with 'type', got {settings!r}.")
    if 'dataset' in settings:
        yield from _inner(cfg, f'{key}.dataset', settings['dataset'])
    elif 'datasets' in settings:
        for i, inner in enumerate(settings['datasets']):
            yield from _inner(cfg, f'{key}.datasets.{i}', inner)
    else:
        dataset = DatasetConfig(cfg, key, settings)
        if not dataset.is_drawn:
            yield dataset
