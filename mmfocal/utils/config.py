"""What configs say, in whichever form they say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from .errors import UserError

SCOPES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmfocal')


def type_name(config: Any) -> str:
    """Name of what a config builds, without scope and module.

    Args:
        config: a dict with ``type``, or such a type: a name (``'CocoDataset'``), one with a scope
            or a module (``'mmdet.CocoDataset'``), or the class itself, as in configs that import.

    Returns:
        ``'CocoDataset'`` for all of these, ``''`` for a dict without ``type``.
    """
    kind = config.get('type') if isinstance(config, Mapping) else config
    if kind is None:
        return ''
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
    return name.rpartition('.')[2]


def is_third_party(config: Any) -> bool:
    """Whether a type names a class outside OpenMMLab's packages and ours.

    Such a class may have the name of one of theirs and still be another; a name without scope or
    module is looked up in their registries.

    Args:
        config: as for :func:`type_name`.
    """
    kind = config.get('type') if isinstance(config, Mapping) else config
    where = kind if isinstance(kind, str) else f'{getattr(kind, "__module__", "mmengine")}.'
    scope, dot, _ = where.partition('.')
    return bool(dot) and scope not in SCOPES


def import_custom_modules(cfg: Config) -> None:
    """Imports what a config names for its own classes, as a run does.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        import_modules_from_strings(**(cfg.get('custom_imports') or dict(imports=[])))
    except ImportError as error:
        raise UserError(
            f'custom_imports of the config: {error} ({error.__context__ or "no reason is given"}).'
        ) from error
