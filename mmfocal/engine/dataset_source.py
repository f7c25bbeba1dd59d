"""What a data set's class says about itself, read from its source text.

The check of data before training needs class names and default suffixes. Importing mmdet or mmseg
for them would take longer than most checks.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

# The data sets whose files mmfocal.datasets.checking knows.
BASES = ('CocoDataset', 'BaseSegDataset')


@dataclass
class DatasetSource:
    """A data set's class with what it inherits.

    Attributes:
        names: of the class and all classes that it derives from, as far as they were found.
        own_methods: methods that classes below mmdet's ``CocoDataset`` or mmseg's
            ``BaseSegDataset`` define.
        metainfo: literal values of ``METAINFO``.
        defaults: literal default values of arguments of the constructor.
    """

    names: list[str] = field(default_factory=list)
    own_methods: set[str] = field(default_factory=set)
    metainfo: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)

    def reads_as(self, base: str) -> bool:
        """Whether it is ``base``, or derives from it without reading its files otherwise."""
        return base in self.names and not self.own_methods & {'load_data_list', 'parse_data_info'}


def find_source(kind: str, modules: Sequence[str]) -> DatasetSource | None:
    """Looks for a data set's class without importing it.

    Args:
        kind: its name, with or without a scope or a module before it.
        modules: modules to look into, and packages, into the files directly in them.

    Returns:
        What was found, None if there is no such class.
    """
    module, _, name = kind.rpartition('.')
    files = tuple(file for package in (module, *modules) if package for file in _files(package))
    source = DatasetSource()
    _collect(name, files, source)
    return source if source.names else None


def _collect(name: str, files: tuple[Path, ...], source: DatasetSource) -> None:
    """Enters a class and then what it derives from, whose values do not override its own."""
    node = _find_class(name, files)
    if node is None or name in source.names:
        return
    source.names.append(name)
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef):
            if name not in BASES and not set(BASES) & set(source.names):
                source.own_methods.add(statement.name)
            if statement.name == '__init__':
                _add_missing(source.defaults, _defaults(statement.args))
        target = getattr(statement, 'target', None) or next(
            iter(getattr(statement, 'targets', [])), None
        )
        if isinstance(target, ast.Name) and target.id == 'METAINFO':
            _add_missing(source.metainfo, _literal_dict(statement.value))
    for base in node.bases:
        _collect(ast.unparse(base).rpartition('.')[2], files, source)


def _add_missing(values: dict, more: dict) -> None:
    for key, value in more.items():
        values.setdefault(key, value)


def _defaults(arguments: ast.arguments) -> dict[str, Any]:
    positional = arguments.posonlyargs + arguments.args
    pairs = [
        *zip(reversed(positional), reversed(arguments.defaults), strict=False),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return _literals({argument.arg: value for argument, value in pairs if value is not None})


def _literal_dict(node: ast.expr | None) -> dict[str, Any]:
    """A dict in either notation, without what is no literal."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == 'dict':
        return _literals({keyword.arg: keyword.value for keyword in node.keywords})
    if isinstance(node, ast.Dict):
        keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        return _literals(dict(zip(keys, node.values, strict=True)))
    return {}


def _literals(nodes: dict[str, ast.expr]) -> dict[str, Any]:
    values = {}
    for key, node in nodes.items():
        try:
            values[key] = ast.literal_eval(node)
        except ValueError:
            values |= {key: _literal_dict(node)} if _literal_dict(node) else {}
    return values


def _find_class(name: str, files: tuple[Path, ...]) -> ast.ClassDef | None:
    for file in files:
        if name not in _class_names(file):
            continue
        for node in ast.parse(file.read_bytes()).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return node
    return None


@lru_cache(maxsize=1024)
def _class_names(file: Path) -> frozenset[str]:
    """Names of the classes of a module, without parsing all modules."""
    try:
        lines = file.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError):
        return frozenset()
    return frozenset(
        line[len('class ') :].split('(')[0].split(':')[0].strip()
        for line in lines
        if line.startswith('class ')
    )


def _files(module: str) -> list[Path]:
    """The file of a module, or those directly in a package."""
    top, *rest = module.split('.')
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if not rest and spec.origin and not spec.submodule_search_locations:
        return [Path(spec.origin)]
    for location in spec.submodule_search_locations or ():
        path = Path(location, *rest)
        if path.with_suffix('.py').is_file():
            return [path.with_suffix('.py')]
        if path.is_dir():
            return sorted(path.glob('*.py'))
    return []
