"""Writes files of weights."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmfocal.utils.errors import UserError
from mmfocal.utils.files import written_atomically


def save_tensors(tensors: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Writes tensors by name: as safetensors if ``path`` ends so, else as torch.save does.

    Raises:
        UserError: the file could not be written, or the package safetensors is missing.
    """
    if Path(path).suffix != '.safetensors':
        content = io.BytesIO()
        torch.save({'state_dict': dict(tensors)}, content)
        _write(content.getbuffer(), path)
        return
    try:
        import safetensors.torch
    except ImportError:
        raise UserError(
            f'{path}: the package safetensors is missing. Run: pip install safetensors'
        ) from None
    content = safetensors.torch.save({key: value.contiguous() for key, value in tensors.items()})
    _write(content, path)


def _write(content: bytes | memoryview, path: str | os.PathLike) -> None:
    # PyTorch's own writer turns the error of a full disk into a RuntimeError, so it has no file.
    with written_atomically(path) as file:
        file.write(content)
