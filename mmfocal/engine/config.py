"""Configs: finding them and reading them."""

from __future__ import annotations

import copy
import difflib
import importlib
import os
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject

from mmfocal.utils.compat import register_config_packages, without_warnings_of_others
from mmfocal.utils.errors import UserError, is_first_process
from mmfocal.weights.embedded_config import config_of, embedded_text
from mmfocal.weights.safe_loading import CheckpointError, load_checkpoint_file, names_weights

from .checkpoints import checkpoint_of
from .misspelt import check_options, items_of, nearest
from .sections import check_sections

# Holds configs/ and tools/, as OpenMMLab's packages do: in a checkout by links.
REPOSITORY = Path(__file__).resolve().parents[1] / '.mim'


def load_config(
    path: str | os.PathLike | Config, cfg_options: Mapping[str, Any] | None = None
) -> Config:
    """Reads a config and merges options into it, without importing its custom modules.

    Options that look like mistakes, but may not be, are printed.

    Args:
        path: looked for from the current folder, from the repository or the installed package, and
            by its bare name (with or without ``.py``) below ``configs/``. Or a file of weights
            that holds its config, a URL of one, or a folder with one: the config is read as data,
            see :mod:`mmfocal.weights.embedded_config`. Or a config that is read, which is copied.
        cfg_options: values by dotted key, as ``--cfg-options`` gives them.

    Raises:
        UserError: there is no such config, it does not load, a pure-Python config imports what is
            not there, a section is not of its kind, or an option does not fit or changes nothing.
    """
    register_config_packages()
    if not isinstance(path, str | os.PathLike | Config):
        raise UserError(f'config: expected a path, a name or a Config, got {path!r:.100}.')
    if not isinstance(cfg_options or {}, Mapping) or not all(
        isinstance(key, str) for key in cfg_options or {}
    ):
        raise UserError(
            f'Options of a config: expected a dict of values by dotted key, got '
            f'{cfg_options!r:.100}.'
        )
    if isinstance(path, Config):
        file, cfg = path.filename or 'the config', copy.deepcopy(path)
        _drop_own_scope(cfg._cfg_dict)
    elif names_weights(path) or os.path.isdir(os.path.expanduser(path)):
        file = checkpoint_of(os.fspath(path))
        cfg = embedded_config(load_checkpoint_file(file), file)
    else:
        file = find_config(path)
        try:
            with without_warnings_of_others():
                cfg = Config.fromfile(file, import_custom_modules=False)
        except Exception as error:  # a config is code and may raise anything
            raise UserError(_why_not_loaded(file, error)) from error
        _check_imports(file, cfg._cfg_dict)
        _drop_own_scope(cfg._cfg_dict)
    before = copy.deepcopy(cfg)
    try:
        cfg.merge_from_dict(_replacing(cfg_options or {}, cfg))
    except (KeyError, TypeError, IndexError, AssertionError, ValueError) as error:
        raise UserError(f'--cfg-options do not fit {file}: {error}') from error
    for note in check_options(cfg, before, cfg_options or {}):
        if is_first_process():
            print(note)
    check_sections(cfg)
    return cfg


def embedded_config(checkpoint: Mapping[str, Any], source: str) -> Config:
    """The config that a loaded file of weights holds, read as data.

    Args:
        checkpoint: what the file holds.
        source: the file, which gives the config its name.

    Raises:
        CheckpointError: there is none, or it asks for code.
    """
    text = embedded_text(checkpoint)
    if text is None:
        raise CheckpointError(
            f'{source} holds no config. Give a config and this file, or publish it with one: '
            f'mmfocal publish {source} --config CONFIG.py'
        )
    settings = config_of(text, source)
    if not isinstance(settings.get('model'), dict):
        raise CheckpointError(f'{source}: expected a config with a model, a dict, got none.')
    # mmengine writes a config down under its own name, by whose ending it knows the form.
    name = source.split('?')[0].rpartition('.')[0]
    return Config(settings, cfg_text=text, filename=f'{name}.py')


def _replacing(options: Mapping[str, Any], cfg: Config) -> dict[str, Any]:
    """Options, with dicts marked that take the place of what is no dict, as of ``arch='tiny'``."""
    given = dict(items_of(cfg))
    return {
        key: _marked(value, given[key]) if key in given else value
        for key, value in options.items()
    }


def _marked(value: Any, given: Any) -> Any:
    """A value with every dict in it marked that takes the place of what is no dict."""
    if not isinstance(value, Mapping) or value.get('_delete_'):
        return value
    if wrong := [key for key in value if not isinstance(key, str)]:
        raise TypeError(
            f'{wrong[0]!r} is no text, and a dict with such a key cannot be merged with the '
            "config's; write '_delete_': True into it to replace that"
        )
    if isinstance(given, list) and value and all(key.isdigit() for key in value):
        return value  # changes single items
    if not isinstance(given, Mapping):
        return {**value, '_delete_': True}
    return {
        key: _marked(item, given[key]) if key in given else item for key, item in value.items()
    }


def _why_not_loaded(file: Path, error: Exception) -> str:
    """What is wrong, in which of the files that a config inherits from, and where."""
    read, line, base = [str(file)], getattr(error, 'lineno', None), None
    for frame, number in traceback.walk_tb(error.__traceback__):
        names = frame.f_locals
        if frame.f_globals.get('__name__', '').startswith(('mmengine.config', 'mmengine.utils')):
            found = (names.get(name) for name in ('filename', 'module_path'))
            read += [os.path.normpath(each) for each in found if isinstance(each, str)]
            base = names.get('cfg_path', base)
        elif frame.f_code.co_name == '<module>':
            line = number  # of the config itself
    read = list(dict.fromkeys(read))
    absent = [each for each in read if not os.path.exists(each)]
    if absent:
        path = Path(absent[0])
        asking = read[read.index(absent[0]) - 1]
        others = {each.stem for each in path.parent.glob('*.py')} - {Path(asking).stem}
        near = nearest(path.stem, others)
        remedy = f' Near to it are: {", ".join(near)}.' if near else ''
        return f'{asking} does not load: it inherits from {path}, which is not there.{remedy}'
    if isinstance(base, str) and '::' in base and isinstance(error, ValueError):
        return (
            f'{read[-1]} does not load: it inherits from {base}, which no installed package has.'
        )
    if isinstance(error, RecursionError):
        return f'{read[-1]} does not load: it inherits from itself.'
    reason = error.msg if isinstance(error, SyntaxError) else error
    place = f'{read[-1]}, line {line},' if line else read[-1]
    return f'{place} does not load: {type(error).__name__}: {reason}'


def _check_imports(file: Path, settings: dict) -> None:
    """Raises UserError if a pure-Python config imports what is not there.

    mmengine imports late, wherever the value is first used; what is not used, never.
    """
    used = [each for each in dict.values(settings) if isinstance(each, dict | list | tuple)]
    for each in _lazy(used):
        try:
            each.build()
        except Exception as error:  # imports of packages may raise anything
            place = each.location or file
            raise UserError(f'{place}: {_import_problem(each, error)}') from error


def _lazy(value: Any) -> Iterator[LazyObject | LazyAttr]:
    if isinstance(value, LazyObject | LazyAttr):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in dict.values(value) if isinstance(value, dict) else value:
            yield from _lazy(each)


def _import_problem(lazy: LazyObject | LazyAttr, error: Exception) -> str:
    name = str(lazy)
    try:
        names = dir(importlib.import_module(lazy.module))
    except Exception:
        reason = str(error).rpartition(' for ')[2]
        return f'{lazy.module} cannot be imported: {reason}.'
    near = nearest(name, names)
    remedy = f' Nearest to it: {", ".join(near)}.' if near else ''
    return f'{lazy.module} has no {name}.{remedy}'


def _drop_own_scope(value: Any) -> None:
    """Undoes what mmengine marks the parts of an inherited ``mmfocal::...`` with.

    They would be looked for in registries of mmfocal, which registers with mmdet, mmseg and
    mmengine: there is no difference to the parts of other configs.
    """
    if isinstance(value, dict):
        if value.get('_scope_') == 'mmfocal':
            del value['_scope_']
        for item in dict.values(value):
            _drop_own_scope(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _drop_own_scope(item)


def find_config(path: str | os.PathLike) -> Path:
    """The file that ``path`` means, see :func:`load_config`."""
    path = Path(path)
    candidates = [path, REPOSITORY / path]
    by_name = sorted((REPOSITORY / 'configs').glob(f'[!_]*/{path.stem}.py'))
    if path.parent == Path():
        candidates += by_name
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    known = {file.stem: file for file in (REPOSITORY / 'configs').glob('[!_]*/*.py')}
    near = difflib.get_close_matches(path.stem, known, n=3, cutoff=0.4) or sorted(known)
    names = '\n'.join(f'  {known[name].relative_to(REPOSITORY)}' for name in near)
    raise UserError(
        f'There is no config {path} (looked for from {Path.cwd()} and {REPOSITORY.resolve()}).\n'
        f'Near to it are:\n{names}'
    )
