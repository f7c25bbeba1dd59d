"""Settings that nothing reads, and names that are nearest to a misspelt one."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from mmengine import registry as registries
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.runner import FlexibleRunner, Runner

from mmfocal.utils.config import SCOPES, class_of, package_of, parameters_of
from mmfocal.utils.errors import UserError

# What is read besides the arguments of mmengine's runners.
READ = frozenset(
    [
        'activation_checkpointing',
        'auto_resume',
        'compile',
        'custom_imports',
        'efficient_conv_bn_eval',
        'find_unused_parameters',
        'init_weights_for_test_or_val',
        'model_wrapper_cfg',
        'resume_from',
        'runner_type',
        'sync_bn',
        'tta_model',
        'tta_pipeline',
    ]
)
# Names for the same thing, which are not alike.
SYNONYMS = (
    ('lr', 'learning_rate', 'base_lr'),
    ('weight_decay', 'wd', 'decay'),
    ('batch_size', 'bs', 'samples_per_gpu'),
    ('num_workers', 'workers', 'workers_per_gpu'),
    ('max_epochs', 'epochs', 'total_epochs', 'max_iters', 'iterations', 'iters'),
)
MAX_NAMES, MAX_PLACES = 20, 3  # in one message


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The names that may have been meant by another, the nearest first."""
    names = list(dict.fromkeys(names))
    same = [each for group in SYNONYMS if name in group for each in group if each in names]
    if same:
        return same[:1]
    lower = {each.lower(): each for each in names}
    found = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=cutoff)
    return [lower[each] for each in found]


def advice(name: str, names: Iterable[str]) -> str:
    names = sorted(names)
    near = nearest(name, names)
    if near:
        return f'Nearest to it: {", ".join(near)}.'
    shown = ', '.join(names[:MAX_NAMES]) + (', ...' if len(names) > MAX_NAMES else '')
    return f'It takes: {shown}.' if names else 'Leave it out.'


def arguments_of(kind: Callable) -> set[str]:
    """Names that a class or function takes as keywords, see :func:`parameters_of`."""
    return set(parameters_of(kind))


def check_arguments(path: str, settings: Mapping, *kinds: Callable) -> None:
    """Raises UserError if settings at ``path`` of a config have a key that no class takes.

    For classes that keep what they do not know until they pass it on, late in a run.
    """
    check_names(path, settings, set().union(*map(arguments_of, kinds)))


def check_names(path: str, settings: Mapping, names: Collection[str]) -> None:
    """Raises UserError if settings at ``path`` of a config have another key than ``names``."""
    for name in settings:
        if name not in (*names, 'type', 'priority', '_scope_'):
            raise UserError(f'{path} does not take {name!r}. {advice(name, names)}')


# --- Options that change nothing ----------------------------------------------------------------


def check_options(cfg: Config, before: Config, options: Iterable[str]) -> list[str]:
    """Looks for options of a config that nothing would read.

    Args:
        cfg: the config with them.
        before: the config without them.
        options: their keys, such as ``'train_cfg.max_epochs'``.

    Returns:
        Notes for the user, on options that may well be mistakes.

    Raises:
        UserError: an option changes nothing; the message says which would.
    """
    notes = []
    for option in options:
        first = option.partition('.')[0]
        if first not in _read_keys(before):
            message = _unread(before, option)
            if not has_own_code(cfg):
                raise UserError(message)
            notes.append(f'{message} Unless code of your own reads it, it changes nothing.')
        elif note := _new_key(before, option):
            notes.append(note)
    return notes


def _read_keys(cfg: Config) -> set[str]:
    keys = set(READ)
    for runner in (Runner, FlexibleRunner):
        keys |= set(inspect.signature(runner.__init__).parameters)
    # It is for models that have none.
    has_own = 'data_preprocessor' in (cfg.get('model') or {})
    return keys - {'data_preprocessor'} if has_own else keys


def has_own_code(cfg: Config) -> bool:
    """Whether a config imports code that may read keys of its own from it."""
    modules = (cfg.get('custom_imports') or {}).get('imports') or []
    modules = [modules] if isinstance(modules, str) else modules
    packages = {str(module).partition('.')[0] for module in modules}
    packages |= {
        package_of(value) for path, value in items_of(cfg) if path.rpartition('.')[2] == 'type'
    }
    return not packages <= {*SCOPES, 'torch', ''}


def _unread(cfg: Config, option: str) -> str:
    """That an option changes nothing, and the places of a config that may have been meant."""
    first, _, rest = option.partition('.')
    keys = _read_keys(cfg)
    read = [(path, value) for path, value in items_of(cfg) if path.partition('.')[0] in keys]
    if first in cfg:
        what = 'it is a variable of the config file, whose value has already been used'
        places = _of_value(read, dict.get(cfg._cfg_dict, first), rest)
    else:
        what = 'the config has no such section'
        places = [] if rest else nearest(first, keys, cutoff=0.8)
    places = list(dict.fromkeys(places or _of_name(read, option.rpartition('.')[2])))
    remedy = f' Set {" or ".join(places[:MAX_PLACES])} instead.' if places else ''
    return f'--cfg-options {option} changes nothing: {what}.{remedy}'


def _of_value(read: list[tuple[str, Any]], value: Any, rest: str) -> list[str]:
    """Where the value of a variable went; numbers may be equal by chance."""
    if not isinstance(value, dict | list | tuple | str):
        return []
    return [f'{path}.{rest}' if rest else path for path, item in read if item == value]


def _of_name(read: list[tuple[str, Any]], name: str) -> list[str]:
    """Places whose last key has a name, or is nearest to it."""
    lasts = [path.rpartition('.')[2] for path, _ in read]
    names = [name] if name in lasts else nearest(name, lasts, cutoff=0.75)
    return [path for each in names for path, _ in read if path.rpartition('.')[2] == each]


def _new_key(before: Config, option: str) -> str | None:
    """A note if an option adds a key that looks misspelt to a dict that may take any."""
    parent, _, name = option.rpartition('.')
    settings = dict(items_of(before)).get(parent)
    if not isinstance(settings, Mapping) or name in settings:
        return None
    if 'type' in settings:
        names = _arguments_in_config(settings, before.get('default_scope'))
    else:
        names = set(settings)
    near = nearest(name, names) if name not in names else []
    return f'{option} is new in {parent}. Near to it: {", ".join(near)}.' if near else None


def _arguments_in_config(settings: Mapping, scope: str | None) -> set[str]:
    for registry in vars(registries).values():
        if isinstance(registry, Registry) and registry.parent is None:
            kind = class_of(settings, registry, settings.get('_scope_') or scope)
            if kind is not None:
                return arguments_of(kind)
    return set()


def items_of(value: Any, before: str = '') -> Iterator[tuple[str, Any]]:
    """The dotted keys and values of all that a config says."""
    for key, item in _items(value):
        path = f'{before}.{key}' if before else str(key)
        yield path, item
        yield from items_of(item, path)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    value = value._cfg_dict if isinstance(value, Config) else value
    if isinstance(value, dict):
        return dict.items(value)  # without imports for pure-Python configs
    return enumerate(value) if isinstance(value, list | tuple) else ()
