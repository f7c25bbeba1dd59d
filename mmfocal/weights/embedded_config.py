"""Configs inside files of weights: written as literals, and read without running anything.

mmengine keeps the config of a run as Python text in ``message_hub.runtime_info.cfg`` of its
checkpoints, and runs that text. Here it is parsed, and what comes out is refused if a part of
mmengine, mmcv, mmdet, mmseg or mmpretrain would run code for it: their registries import what they
do not know, and some of their functions evaluate text.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from mmengine import registry as registries
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.runner import Runner
from mmengine.utils import get_object_from_string

from mmfocal.utils.config import SCOPES

from .contents import CheckpointError

MAX_LENGTH = 4_000_000  # of a text; Python's parser takes a hundred times as much memory
# What a config says beside the arguments of a runner, and tools read.
_OTHERS = (
    'default_scope',
    'custom_imports',
    'tta_model',
    'tta_pipeline',
    'test_pipeline',
)
# Of one machine, or of one run.
_LEFT_OUT = ('work_dir', 'load_from', 'resume', 'launcher', 'cfg', 'experiment_name')
_LEFT_OUT_BELOW = (
    *('file_client_args', 'pretrained'),
    *('out_dir', 'outfile_prefix', 'output_dir', 'save_dir'),
)
_NAME = re.compile(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*')
_TYPE_KEY = re.compile(r'(\w*_)?type|constructor|\w+_fn')
# What a text needs that does something when it is evaluated: a call, or a comprehension, which can
# assign to attributes of classes.
_EXPRESSION = re.compile(r'\(|[\[{].*for\b', re.DOTALL)
# mmengine writes keys between quotes as they are, and fills in templates where it reads a config.
_UNWRITABLE_KEY = re.compile(r"['\\\n\r]")
_TEMPLATE = '{{'
_FILE = re.compile(r'\.(bmp|csv|gz|jpe?g|json|npy|npz|pkl|png|pth|py|tiff?|txt|xml|ya?ml|zip)$')
_ELSEWHERE = (
    'If you trust its origin, give its config as a file of its own: CONFIG.py and then this file.'
)


def embedded_text(checkpoint: Any) -> str | None:
    """The text of a config in a loaded checkpoint, where mmengine looks for it; None without."""
    for path in (('message_hub', 'runtime_info', 'cfg'), ('meta', 'cfg')):
        value = checkpoint
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, str) and value.strip():
            return value
    return None


def text_of(config: Mapping[str, Any]) -> str:
    """A config as Python assignments of literals, as mmengine writes its own.

    Raises:
        CheckpointError: it holds what cannot be said so.
    """
    text = Config(dict(config)).pretty_text
    found = None
    with suppress(CheckpointError):
        found = parsed(text, 'The config')
    if found != config:
        raise CheckpointError(
            'The config cannot be written as text: expected numbers, text, and lists, tuples and '
            'dicts of them.'
        )
    return text


def config_of(text: str, source: str) -> dict[str, Any]:
    """What a text of :func:`text_of`, or of mmengine, says; nothing of it is run or imported.

    Args:
        text: assignments of literals and of ``dict(...)``.
        source: the file that it is from, for messages.

    Returns:
        The config, as :func:`portable` leaves it.

    Raises:
        CheckpointError: it is none, or asks for code other than classes that are registered.
    """
    config = portable(parsed(text, source))
    _check(config, source)
    return config


# --- Text ---------------------------------------------------------------------------------------


def parsed(text: str, source: str) -> dict[str, Any]:
    """The values that assignments of literals give to names.

    Raises:
        CheckpointError: there is anything else in the text, or it is too long.
    """
    if len(text) > MAX_LENGTH:
        raise CheckpointError(
            f'{source}: its config has {len(text):,} characters, expected up to {MAX_LENGTH:,}.'
        )
    try:
        found = {}
        for statement in ast.parse(text).body:
            if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
                raise _CodeError(statement)
            (target,) = statement.targets
            if not isinstance(target, ast.Name):
                raise _CodeError(statement)
            found[target.id] = _literal(statement.value)
        return found
    except _CodeError as error:
        raise CheckpointError(
            f'{source}: its config holds code, which is not run: {error}. Expected assignments of '
            f'numbers, text, and lists and dicts of them. {_ELSEWHERE}'
        ) from None
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise CheckpointError(
            f'{source}: its config cannot be read ({type(error).__name__}: {error}).'
        ) from None


class _CodeError(Exception):
    """A part of a text that is no literal."""

    def __init__(self, node: ast.AST) -> None:
        super().__init__(f'{ast.unparse(node)[:60]!r} in line {node.lineno}')


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value) if value is not ...:
            return value
        case ast.List(elts=elements):
            return [_literal(each) for each in elements]
        case ast.Tuple(elts=elements):
            return tuple(_literal(each) for each in elements)
        case ast.Set(elts=elements):
            return {_literal(each) for each in elements}
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_literal(k): _literal(v) for k, v in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=keywords) if all(
            each.arg for each in keywords
        ):
            return {each.arg: _literal(each.value) for each in keywords}
        case ast.Call(func=ast.Name(id='dict'), args=[ast.Dict() as mapping], keywords=[]):
            return _literal(mapping)  # with keys that are no names, such as 'backbone.norm'
    raise _CodeError(node)


# --- What others can use --------------------------------------------------------------------


def portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what is of one machine or one run; the rest of the recipe stays.

    Variables that only the config itself used are left out, and so are work folders, folders that
    metrics write to after they have emptied them, addresses of pretrained weights, settings of
    storage, which may hold passwords, and logs to other services. Absolute paths, addresses and
    paths out of the folder become ``data/<last part>``, with what follows a ``data_root`` after
    it; others stay. A portable config stays as it is.
    """
    known = {*inspect.signature(Runner.__init__).parameters, *_OTHERS} - {'self', *_LEFT_OUT}
    kept = {key: value for key, value in config.items() if key in known}
    roots = {value.rstrip('/\\') for key, value in _items(kept) if key == 'data_root' and value}
    return _portable(kept, sorted(filter(None, roots), key=len, reverse=True))


def _portable(value: Any, roots: list[str], key: Any = None) -> Any:
    if key == 'backend_args':
        return None
    if isinstance(value, Mapping):
        return {
            k: _portable(v, roots, k)
            for k, v in value.items()
            if k not in _LEFT_OUT_BELOW and not (k == 'init_cfg' and _loads(v))
        }
    if key == 'vis_backends':
        return [dict(type='LocalVisBackend')]
    if isinstance(value, list | tuple) and key != 'classes':
        return type(value)(_portable(each, roots) for each in value)
    return _relative(value, roots) if isinstance(value, str) else value


def _loads(init_cfg: Any) -> bool:
    """Whether an ``init_cfg`` is or has one that loads a file."""
    return any(key == 'checkpoint' for key, _ in _items(init_cfg, kinds=object))


def _relative(text: str, roots: list[str]) -> str:
    parts = re.split(r'[\\/]+', text.rstrip('\\/'))
    is_absolute = re.match(r'[\\/~]|[A-Za-z]:[\\/]|file:', text) or '://' in text
    if not is_absolute and '..' not in parts:
        return text
    for root in roots:
        if text == root or text.startswith((f'{root}/', f'{root}\\')):
            name = re.split(r'[\\/]+', root)[-1]
            return f'data/{name.strip("~.")}{text[len(root) :]}'.replace('\\', '/')
    return f'data/{parts[-1].strip("~.")}'


def _items(value: Any, key: Any = None, kinds: Any = str) -> Iterator[tuple[Any, Any]]:
    """Keys and values at all depths, those of lists under the key of the list; not class names."""
    if key == 'classes' and isinstance(value, list | tuple):
        return
    if isinstance(value, kinds):
        yield key, value
    if isinstance(value, Mapping):
        for k, v in value.items():
            yield from _items(v, k, kinds)
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from _items(each, key, kinds)


# --- What runs code -------------------------------------------------------------------------


def _check(config: dict[str, Any], source: str) -> None:
    """Raises a CheckpointError for what would run more than the classes of registries."""
    custom = config.get('custom_imports') or {}
    names = custom.get('imports', []) if isinstance(custom, Mapping) else [custom]
    for name in names if isinstance(names, list | tuple) else [names]:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not _may_import(name):
            raise _refused(
                source,
                f'custom_imports asks for {name!r}',
                f'modules of {", ".join(SCOPES)}, or such as you have imported before',
            )
    for text, is_key in _texts(config):
        if _TEMPLATE in text or (is_key and _UNWRITABLE_KEY.search(text)):
            raise _refused(
                source,
                f'it holds {text[:60]!r}',
                'no templates, and no quotes in names of settings',
            )
    for key, value in _items(config, kinds=object):
        if problem := _problem(key, value):
            raise _refused(source, *problem)


def _texts(value: Any) -> Iterator[tuple[str, bool]]:
    """All texts at all depths, and whether each is a key."""
    if isinstance(value, str):
        yield value, False
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from ((text, True) for text, _ in _texts(key))
            yield from _texts(each)
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from _texts(each)


def _refused(source: str, found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f'{source}: its config is refused: {found}. Expected {expected}. {_ELSEWHERE}'
    )


def _problem(key: Any, value: Any) -> tuple[str, str] | None:
    """What about a setting would run code, and what is expected in its place."""
    if key in ('_scope_', 'default_scope') and value is not None and value not in SCOPES:
        return f'{key} is {value!r}', f'one of {", ".join(SCOPES)}'
    if key == 'trust_remote_code' and value:
        return 'it asks for trust_remote_code', 'models of the installed packages'
    if not isinstance(value, str):
        return None
    if _EXPRESSION.search(value):  # mmcv, mmdet and mmpretrain evaluate some texts
        return f'{key} is {value[:60]!r}', 'names and numbers, no expressions'
    if re.fullmatch(r'(\w*_)?config', str(key)):  # mmdet runs the file that teacher_config names
        return f'{key} is {value[:60]!r}', 'a dict, no other file'
    if key == 'decode_backend' and value == 'pickle':  # mmseg unpickles images so
        return f'{key} is {value!r}', "'numpy', 'nifti' or 'cv2'"
    if key == 'imports':
        return None
    is_type = bool(_TYPE_KEY.fullmatch(str(key)))
    package, dot, _ = value.partition('.')
    if dot:
        is_file = bool(_FILE.search(value)) and not is_type
        is_bad = not is_file and _is_module(package) and not _is_registered(value)
    else:
        is_bad = is_type and _would_import(value)
    return (f'{key} is {value!r}', 'names that are registered') if is_bad else None


def _may_import(name: str) -> bool:
    return name.partition('.')[0] in SCOPES or name in sys.modules


def _would_import(name: str) -> bool:
    """Whether a registry that does not have a name imports a module for it."""
    return _is_module(name) and name not in sys.modules


def _is_module(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _is_registered(name: str) -> bool:
    """Whether a dotted name is a class or function that a registry has, or a class of mmfocal.

    Nothing is imported but modules of packages that register.
    """
    package, _, rest = name.partition('.')
    if package not in (*SCOPES, 'torch'):
        return False
    try:
        found = get_object_from_string(name)
    except Exception:  # imports of packages may raise anything
        found = None
    if found is None:  # a scope and a name, which its registry may look for as a module
        return '.' not in rest and not _would_import(rest)
    if package == 'mmfocal' and inspect.isclass(found):
        return found.__module__.startswith('mmfocal.')
    return any(found is each for registry in _registries() for each in registry.values())


def _registries() -> Iterator[Mapping[str, Any]]:
    waiting = [each for each in vars(registries).values() if isinstance(each, Registry)]
    while waiting:
        registry = waiting.pop()
        if registry.name != 'runner':  # a part of a config is no run of its own
            yield registry.module_dict
        waiting += registry.children.values()
