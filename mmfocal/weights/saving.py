"""Writes files of weights."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfocal.utils.errors import UserError
from mmfocal.utils.files import written_atomically

# Key of what mmfocal itself says of a published file: in 'meta' of a .pth, and in a .safetensors,
# which holds nothing but text beside tensors.
PUBLISHED = 'mmfocal'


def save_tensors(tensors: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Writes tensors by name: as safetensors if ``path`` ends so, else as torch.save does.

    Raises:
        UserError: the file could not be written, or the package safetensors is missing.
    """
    if Path(path).suffix == '.safetensors':
        content = _as_safetensors(tensors, path)
    else:
        content = _as_pth({'state_dict': dict(tensors)})
    _write(content, path)


def save_published(
    tensors: Mapping[str, Tensor], config: str, meta: Mapping[str, Any], stem: str | os.PathLike
) -> list[Path]:
    """Writes weights with their config, as ``STEM-<hash>.pth``, ``.py`` and ``.safetensors``.

    Both files of weights say the same. The ``.pth`` is a checkpoint of mmengine in which its tools
    find config and classes, and holds nothing that ``torch.load(weights_only=True)`` refuses. The
    eight digits in their names begin the SHA-256 of each; whoever downloads one compares them. The
    ``.py`` has those of the ``.pth``.

    Args:
        tensors: by name.
        config: as text, see :mod:`~mmfocal.weights.embedded_config`.
        meta: plain data, what is in ``checkpoint['meta']``: ``dataset_meta``, and under
            :data:`PUBLISHED` what mmfocal says.
        stem: path without suffix.

    Returns:
        The files in this order. The ``.safetensors`` is left out where that package is missing.

    Raises:
        UserError: one of the files is there already, or could not be written.
    """
    stem = Path(stem)
    hub = dict(log_scalars={}, runtime_info=dict(cfg=config), resumed_keys={})
    content = _as_pth(dict(meta=dict(meta), state_dict=dict(tensors), message_hub=hub))
    path = _named_by_hash(stem, content, '.pth')
    contents: dict[Path, bytes] = {path: content}
    contents[path.with_suffix('.py')] = config.encode()
    if importlib.util.find_spec('safetensors'):
        content = safetensors_of(tensors, config, meta, stem)
        contents[_named_by_hash(stem, content, '.safetensors')] = content
    if present := [str(path) for path in contents if os.path.lexists(path)]:
        raise UserError(
            f'There already: {", ".join(present)}. Choose another name, or remove what is there.'
        )
    for path, content in contents.items():
        _write(content, path)
    return list(contents)


def safetensors_of(
    tensors: Mapping[str, Tensor], config: str, meta: Mapping[str, Any], path: str | os.PathLike
) -> bytes:
    """The content of a published ``.safetensors``, as of :func:`save_published`."""
    texts = {'format': 'pt', 'config': config, PUBLISHED: json.dumps(meta)}
    return _as_safetensors(tensors, path, texts)


def _named_by_hash(stem: Path, content: bytes, suffix: str) -> Path:
    return stem.with_name(f'{stem.name}-{hashlib.sha256(content).hexdigest()[:8]}{suffix}')


def _as_pth(content: Mapping[str, Any]) -> bytes:
    # PyTorch's own writer turns the error of a full disk into a RuntimeError, so it has no file.
    file = io.BytesIO()
    torch.save(content, file)
    # Without a copy, as getbuffer(), of which an error's traceback may outlive the file: Python
    # 3.12 crashes when both are collected.
    return file.getvalue()


def _as_safetensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike, texts: dict[str, str] | None = None
) -> bytes:
    try:
        import safetensors.torch
    except ImportError:
        raise UserError(
            f'{path}: the package safetensors is missing. Run: pip install safetensors'
        ) from None
    # Tensors of one storage, such as shared layers, are refused; each gets its own.
    own = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    return safetensors.torch.save(own, texts)


def _write(content: bytes, path: str | os.PathLike) -> None:
    with written_atomically(path) as file:
        file.write(content)
