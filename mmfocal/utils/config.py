"""What configs say, in whichever form they say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
