"""Configs: finding them and reading them. Without PyTorch, so that errors come at once."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmfocal.utils.compat import register_config_packages
from mmfocal.utils.errors import UserError

# Holds configs/ and tools/, as OpenMMLab's packages do: in a checkout by links.
REPOSITORY = Path(__file__).resolve().parents[1] / '.mim'


def load_config(path: str | os.PathLike, cfg_options: dict[str, Any] | None = None) -> Config:
    """Reads a config and merges options into it, without importing what it asks for.

    Args:
        path: looked for from the current folder, from the repository or the installed package, and
            by its bare name (with or without ``.py``) below ``configs/``.
        cfg_options: values by dotted key, as ``--cfg-options`` gives them.

    Raises:
        UserError: there is no such config, or it does not load.
    """
    file = find_config(path)
    register_config_packages()
    try:
        cfg = Config.fromfile(file, import_custom_modules=False)
    except Exception as error:  # a config is code and may raise anything
        raise UserError(f'{file} does not load: {type(error).__name__}: {error}') from error
    _drop_own_scope(cfg._cfg_dict)
    try:
        cfg.merge_from_dict(cfg_options or {})
    except (KeyError, TypeError, IndexError, AssertionError) as error:
        raise UserError(f'--cfg-options do not fit {file}: {error}') from error
    return cfg


def _drop_own_scope(value: Any) -> None:
    """Undoes what mmengine marks the parts of an inherited ``mmfocal::...`` with.

    They would be looked for in registries of mmfocal, which registers with mmdet, mmseg and
    mmengine: there is no difference to the parts of other configs.
    """
    if isinstance(value, dict):
        if value.get('_scope_') == 'mmfocal':
            del value['_scope_']
        for item in value.values():
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
