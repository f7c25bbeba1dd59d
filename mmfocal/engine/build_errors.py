"""Errors of what a config builds: one sentence instead of a stack trace."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS, Registry
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmfocal.utils.config import SCOPES, type_name
from mmfocal.utils.errors import UserError

from .misspelt import advice, arguments_of, items_of, nearest

PACKAGES = (*SCOPES, 'torch', 'torchvision')
CONSTRUCTORS = ('__init__', '__new__', '__call__', 'get_instance')
# An argument of the message of a TypeError, after the name of what was called.
UNEXPECTED = re.compile(r"(?P<call>\S+)\(\) got an unexpected keyword argument '(?P<name>\w+)'")
MISSING = re.compile(r'\S+\(\) missing \d+ required .*arguments?: (?P<names>.*)')


@contextmanager
def told_settings(cfg: Config) -> Iterator[None]:
    """Turns errors of settings, which come out when they are built, into :class:`UserError`.

    Those are names that there are not, arguments that a class does not take or lacks, and values
    that a constructor of mmengine's, torch's or our packages refuses. All other errors pass
    through with their stack, those of a user's own code among them.

    Args:
        cfg: the config from which everything is built.
    """
    try:
        yield
    except UserError:
        raise
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        message = _explanation(cfg, error)
        if message is None:
            raise
        raise UserError(message) from error


class _Build(NamedTuple):
    """What was built when an error came out of it.

    Attributes:
        kind: the class or function, None if it has not been found.
        given: what it was called with; anything where that is not a dict.
        inner: frames of the calls that it made itself, outermost first.
    """

    kind: Any
    given: Any
    inner: list[FrameType]


def _explanation(cfg: Config, error: Exception) -> str | None:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    unknown = _unknown_type(cfg, error, frames)
    if unknown is not None:
        return unknown
    build = _innermost_build(frames)
    text = str(error)
    if isinstance(error, TypeError) and (found := UNEXPECTED.search(text)):
        return _unexpected(cfg, build, frames[-1], found['call'], found['name'])
    if build is None:
        # What mmengine itself does not take.
        is_runner = _module(frames[-1]) == Runner.__module__ and _is_deliberate(error)
        return f'The config cannot be run: {text}' if is_runner else None
    where = _describe(cfg, build)
    if not build.inner and isinstance(error, KeyError):
        name = 'type' if build.kind is None else error.args[0]
        return f'{where} lacks {name!r}. It says {dict(build.given)!r}.'
    if not build.inner and isinstance(error, TypeError) and (found := MISSING.search(text)):
        return f'{where} lacks {found["names"]}, without which it cannot be built.'
    if not isinstance(build.given, Mapping):  # not even a dict with a type
        outer = _innermost_build(frames[: -1 - len(build.inner)])
        where = _describe(cfg, outer) if outer else 'The config'
        return f"{where} expects a dict with 'type', got {build.given!r}."
    if _refuses(build, error):
        return f'{where} refuses its settings: {text or _line(error)}'
    return None


def _refuses(build: _Build, error: Exception) -> bool:
    """Whether a constructor of a package that everybody has says what is wrong with its settings.

    Not where it reads data and finds what it does not expect.
    """
    if not build.inner:
        return build.kind is DataLoader  # by mmengine itself
    if build.inner[0].f_code.co_name not in CONSTRUCTORS or not all(map(_is_known, build.inner)):
        return False
    is_constructor = all(frame.f_code.co_name in CONSTRUCTORS for frame in build.inner)
    return is_constructor or _is_deliberate(error)


def _is_deliberate(error: Exception) -> bool:
    return _line(error).startswith(('raise ', 'assert '))


def _line(error: Exception) -> str:
    """The line of code that raised an error."""
    return traceback.extract_tb(error.__traceback__)[-1].line or ''


def _innermost_build(frames: list[FrameType]) -> _Build | None:
    for number, frame in reversed(list(enumerate(frames))):
        names, inner = frame.f_locals, frames[number + 1 :]
        if _is_in(frame, 'mmengine.registry.build_functions', 'build_from_cfg'):
            given = names.get('args', names.get('cfg'))
            return _Build(names.get('obj_cls'), given, inner)
        if _is_in(frame, 'mmengine.runner.runner', 'build_dataloader'):
            return _Build(DataLoader, names.get('dataloader_cfg') or {}, inner)
    return None


def _module(frame: FrameType) -> str:
    return frame.f_globals.get('__name__', '')


def _is_in(frame: FrameType, module: str, function: str) -> bool:
    return _module(frame) == module and frame.f_code.co_name == function


def _is_known(frame: FrameType) -> bool:
    """Whether a frame runs code of a package that everybody has, not of a user."""
    return _module(frame).partition('.')[0] in PACKAGES


def _unexpected(
    cfg: Config, build: _Build | None, last: FrameType, call: str, name: str
) -> str | None:
    """The message for an argument that is not taken; None if the config does not give it."""
    if build is not None and name in build.given:
        names = arguments_of(build.kind)
        return f'{_describe(cfg, build, name)} does not take {name!r}. {advice(name, names)}'
    # Sections that the runner itself passes on.
    if build is None and _module(last).startswith('mmengine.runner'):
        path = next((path for path, _ in items_of(cfg) if path.rpartition('.')[2] == name), None)
        called = getattr(Runner, call.rpartition('.')[2], None)
        names = set(inspect.signature(called).parameters) - {'self'} if called else set()
        if path is not None:
            return f'{path.rpartition(".")[0]} does not take {name!r}. {advice(name, names)}'
    return None


def _describe(cfg: Config, build: _Build, name: str | None = None) -> str:
    """Where a config asks for what is built, and its class: ``model.backbone (ResNet)``."""
    kind = getattr(build.kind, '__name__', '')
    candidates = []
    if not isinstance(build.given, Mapping):
        return kind or 'A section'
    for path, settings in items_of(cfg):
        if not isinstance(settings, dict) or (name and name not in settings):
            continue
        # Loaders are the one thing that is built from a dict without type.
        of = type_name(settings) or ('DataLoader' if 'dataset' in settings else '')
        if of == kind:
            shared = [key for key in dict.keys(settings) if key in build.given]
            is_same = all(_same(dict.get(settings, key), build.given[key]) for key in shared)
            if kind or (is_same and len(shared) == len(settings) > 0):
                candidates.append((is_same, path))
    # Of several of a kind, the one with these settings.
    where = next((path for is_same, path in candidates if is_same), None)
    where = where or (candidates[0][1] if candidates else None)
    return f'{where} ({kind})' if where and kind else where or kind or 'A section'


def _same(first: Any, second: Any) -> bool:
    try:
        return bool(first == second)
    except Exception:  # arrays and objects of others
        return False


def _unknown_type(cfg: Config, error: Exception, frames: list[FrameType]) -> str | None:
    """The message for a type that no registry has; None for every other error."""
    found = _failed_lookup(error, frames)
    if found is None:
        return None
    registry, kind = found
    paths = (path for path, value in items_of(cfg) if path.endswith('type') and value == kind)
    path = next(paths, 'type')
    known = _registered(registry)
    before, dot, name = kind.rpartition('.')
    near = [f'{before}{dot}{each}' for each in nearest(name, known)]
    if dot and name in known:
        near = [name]
    hint = f'Nearest to it: {", ".join(near)}.' if near else 'No name is near to it.'
    return (
        f'{path}: there is no {kind!r} among what {registry.scope} knows as {registry.name}. '
        f'{hint} A class of your own has to be imported first (custom_imports).'
    )


def _failed_lookup(error: Exception, frames: list[FrameType]) -> tuple[Registry, str] | None:
    """Where which name was looked for in vain."""
    last = frames[-1]
    if _module(last).startswith(('mmengine.registry.', 'mmcv.cnn.bricks')):
        names = last.f_locals
        registry = names.get('registry', names.get('self'))
        kind = next(
            (names[key] for key in ('obj_type', 'layer_type', 'key') if key in names), None
        )
        is_lookup = isinstance(error, KeyError | RuntimeError) and isinstance(registry, Registry)
        return (registry, kind) if is_lookup and isinstance(kind, str) else None
    for frame in frames:
        # It does not look whether there is one before it asks for its arguments.
        if _module(frame) == 'mmengine.optim.optimizer.default_constructor':
            names = frame.f_locals
            if names.get('optimizer_cls', ...) is None:
                return OPTIMIZERS, names['optimizer_cfg']['type']
    return None


def _registered(registry: Registry) -> set[str]:
    names: set[str] = set()
    each: Registry | None = registry
    while each is not None:
        names |= set(each.module_dict)
        each = each.parent
    return names
