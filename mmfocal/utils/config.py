"""What configs say, in whichever form they say it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.registry import Registry
from mmengine.utils import import_modules_from_strings

from .compat import CORE, FAMILIES, check_versions, family_problem, require_mmcv_ops
from .errors import UserError

SCOPES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmfocal')


def type_name(config: Any) -> str:
    """Name of what a config builds, without scope and module.

    Args:
        config: a dict with ``type``, or such a type: a name (``'CocoDataset'``), one with a scope
            or a module (``'mmdet.CocoDataset'``), the class itself, or mmengine's stand-in for a
            class that a pure-Python config imports.

    Returns:
        ``'CocoDataset'`` for all of these, ``''`` for a dict without ``type``.
    """
    return _path(config).rpartition('.')[2]


def is_third_party(config: Any) -> bool:
    """Whether a type names a class outside OpenMMLab's packages and ours.

    Such a class may have the name of one of theirs and still be another; a name without scope or
    module is looked up in their registries.

    Args:
        config: as for :func:`type_name`.
    """
    return package_of(config) not in ('', *SCOPES)


def package_of(config: Any) -> str:
    """The scope or package that a config's type names, ``''`` if it is a name alone.

    Args:
        config: as for :func:`type_name`.
    """
    scope, dot, _ = _path(config).partition('.')
    return scope if dot else ''


def _path(config: Any) -> str:
    """A type as text, with its scope or module where it has one."""
    kind = config.get('type') if isinstance(config, Mapping) else config
    if isinstance(kind, str) or kind is None:
        return kind or ''
    if isinstance(kind, LazyObject | LazyAttr):
        # For every other attribute they give another stand-in, so they cannot be asked.
        return f'{kind.module}.{kind}'
    module = getattr(kind, '__module__', SCOPES[0])
    return f'{module}.{getattr(kind, "__name__", kind)}'


def family_of(config: Mapping) -> str | None:
    """The package that a whole config is for: its ``default_scope``, or that of its model's class.

    Pure-Python configs name no scope, since they import their classes.

    Returns:
        Such as ``'mmdet'``; None if neither says one.
    """
    scope, model = config.get('default_scope'), config.get('model')
    if scope or not isinstance(model, Mapping):
        return scope or None
    kind = model.get('type')
    bases = [_path(base) for base in getattr(kind, '__mro__', [kind])]
    packages = (base.partition('.')[0] for base in bases)
    return next((package for package in packages if package in FAMILIES), None)


def class_of(config: Any, registry: Registry, scope: str | None) -> type | None:
    """The class that a config builds.

    Args:
        config: as for :func:`type_name`.
        registry: where names are looked up; a root of mmengine.
        scope: of names without one, such as the ``default_scope`` of the whole config.

    Returns:
        The class, or None if there is none of that name, or it cannot be imported.
    """
    kind = config.get('type') if isinstance(config, Mapping) else config
    try:
        if isinstance(kind, LazyObject | LazyAttr):
            kind = kind.build()
        if isinstance(kind, str):
            with suppress(ImportError):  # of a package that registers elsewhere
                importlib.import_module(f'{scope or registry.scope}.registry')
            kind = registry.children.get(scope, registry).get(kind)
    except Exception:  # imports of packages may raise anything
        return None
    return kind if isinstance(kind, type) else None


def parameters_of(kind: Callable) -> dict[str, inspect.Parameter]:
    """What a class or function takes as keywords, by name.

    What a class passes on is looked for in the classes that it derives from.
    """
    found: dict[str, inspect.Parameter] = {}
    for base in getattr(kind, '__mro__', [kind]):
        call = base.__dict__.get('__init__') if inspect.isclass(base) else base
        try:
            parameters = inspect.signature(call).parameters.values() if call else None
        except (TypeError, ValueError):  # written in C
            break
        if parameters is None:
            continue
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        for parameter in parameters:
            if parameter.kind in kinds and parameter.name != 'self':
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def setting(config: Mapping, kind: Callable | None, name: str) -> Any:
    """A setting of what a config builds: as it says, or as the class has it by default.

    Returns:
        None if neither is known.
    """
    if name in config:
        return config[name]
    parameter = parameters_of(kind).get(name) if kind is not None else None
    is_known = parameter is not None and parameter.default is not parameter.empty
    return parameter.default if is_known else None


def import_packages(cfg: Config) -> None:
    """Imports the family of a config and the modules that it asks for.

    Raises:
        UserError: mmcv's operators or the family are missing, or a custom import fails.
    """
    families = set(FAMILIES) & {family_of(cfg)}
    try:
        check_versions((*CORE, *families))
        require_mmcv_ops()
        for family in families:
            if problem := family_problem(family):
                raise ImportError(str(problem))
    except ImportError as error:
        raise UserError(str(error)) from error
    try:
        import_modules_from_strings(**(cfg.get('custom_imports') or dict(imports=[])))
    except ImportError as error:
        raise UserError(
            f'custom_imports of the config: {error} ({error.__context__ or "no reason is given"}).'
        ) from error
