"""The one way in which mmfocal reads checkpoints: without running anything out of them.

A PyTorch checkpoint is a pickle, and a pickle is a program. PyTorch's ``weights_only`` mode runs
it on a list of harmless functions, but mmengine's own files need two that are not: ``getattr``,
and ``HistoryBuffer``, an object whose attributes a file may set. Together they let a file run any
code. Here both are replaced: ``getattr`` by a function that knows the four statistics of a
``HistoryBuffer`` and nothing else, ``HistoryBuffer`` by a class that takes two arrays of numbers
and nothing else. Nothing falls back to unsafe loading.

Upstream gaps that this closes: mmengine 0.10.7 cannot load its own files on torch >= 2.6 and loads
URLs without ``weights_only``; onedl-mmengine 0.10.12 loads unsafely what it cannot load safely;
both run the text that a file holds as ``meta['config']`` on resume.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.fileio import get as read_bytes
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from .errors import UserError

STATISTICS = ('min', 'max', 'current', 'mean')


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or holds more than data. The message is for users."""


def load_checkpoint_file(source: str | os.PathLike, map_location: Any = 'cpu') -> dict:
    """Loads a checkpoint without running anything out of it.

    Args:
        source: a path, an ``http(s)://`` URL (downloaded once, kept in torch's hub folder), or
            any scheme that mmengine knows, such as ``open-mmlab://``. A file whose name ends in
            ``.safetensors`` is read as such.
        map_location: as in ``torch.load``.

    Returns:
        What was saved; tensors alone for a ``.safetensors`` file.

    Raises:
        CheckpointError: the file is missing, damaged, or refers to code.
    """
    source = os.fspath(source)
    url = _url_of(source)
    if url is not None:
        return _load(_downloaded(url), source, map_location)
    if source.startswith('file://'):
        return _load(urlparse(source).path, source, map_location)
    if '://' in source:
        return _load(_remote(source), source, map_location)
    return _load(os.path.expanduser(source), source, map_location)


def install_safe_loading() -> None:
    """Makes mmengine, mmdet and mmseg load every checkpoint through this module.

    ``load_from``, ``--resume``, ``init_cfg=dict(type='Pretrained')`` and the inferencers ask
    mmengine's ``CheckpointLoader``; all its schemes are answered here from now on. May be called
    again.
    """
    CheckpointLoader.register_scheme(
        list(CheckpointLoader._schemes), load_from_weights_only, force=True
    )


def load_from_weights_only(filename: str, map_location: Any = None) -> dict:
    """Loader for mmengine, which prints the part of the name behind ``load_from_``."""
    return load_checkpoint_file(filename, map_location)


# --- Where it comes from ----------------------------------------------------------------------


def _url_of(source: str) -> str | None:
    """The URL behind an address: itself, or what mmengine's tables of models say."""
    scheme, _, name = source.partition('://')
    if scheme in ('http', 'https'):
        return source
    if scheme in ('torchvision', 'modelzoo'):
        models = mmengine_checkpoint.get_torchvision_models()
    elif scheme in ('open-mmlab', 'openmmlab'):
        models = mmengine_checkpoint.get_external_models()
        name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    elif scheme == 'mmcls':
        models = mmengine_checkpoint.get_mmcls_models()
    else:
        return None
    if name not in models:
        raise CheckpointError(f'{source}: mmengine knows no model of that name.')
    return models[name]


def _downloaded(url: str) -> str:
    """Path of the file behind ``url``, downloaded unless it is there.

    A name like ``model-1a2b3c4d.pth`` holds the beginning of the file's SHA-256, which is checked.
    """
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, os.path.basename(urlparse(url).path))
    if not os.path.exists(path):
        known = torch.hub.HASH_REGEX.search(os.path.basename(path))
        try:
            torch.hub.download_url_to_file(
                url, path, hash_prefix=known.group(1) if known else None, progress=False
            )
        except (URLError, OSError, RuntimeError) as error:
            raise CheckpointError(
                f'{url} could not be downloaded: {error}. Download it by other means and give its '
                'path instead.'
            ) from error
    return path


def _remote(source: str) -> BytesIO:
    try:
        return BytesIO(read_bytes(source))
    except Exception as error:  # noqa: BLE001 - each storage client has errors of its own
        raise CheckpointError(
            f'{source} could not be read: {error}. Download it by other means and give its path '
            'instead.'
        ) from error


# --- What is in it ----------------------------------------------------------------------------


def _load(file: str | BytesIO, source: str, map_location: Any) -> dict:
    if isinstance(file, str) and not os.path.isfile(file):
        raise CheckpointError(
            f'{source}: there is no such file (looked for {os.path.abspath(file)}).'
        )
    if source.endswith('.safetensors'):
        return _load_safetensors(file, source, map_location)
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            loaded = torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f'{source} was refused: {_reason(error)} A checkpoint is loaded as data here, and code '
            'in it is never run. If you trust its origin, have its author save tensors alone '
            '(torch.save(model.state_dict(), ...)) or as .safetensors.'
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f'{source} could not be read as a checkpoint; it may be cut off or damaged: '
            f'{str(error) or type(error).__name__}'
        ) from error
    return _cleaned(loaded)


def _load_safetensors(file: str | BytesIO, source: str, map_location: Any) -> dict:
    try:
        import safetensors.torch
    except ImportError:
        raise CheckpointError(
            f'{source}: the package safetensors is missing. Run: pip install safetensors'
        ) from None
    data = file.getvalue() if isinstance(file, BytesIO) else Path(file).read_bytes()
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f'{source} is no valid safetensors file: {error}') from error
    if map_location is not None:
        tensors = {name: tensor.to(map_location) for name, tensor in tensors.items()}
    return tensors


def _reason(error: pickle.UnpicklingError) -> str:
    """The first sentence of torch's message that says what was asked for."""
    for line in str(error).splitlines():
        line = line.removeprefix('WeightsUnpickler error:').strip()
        if 'nsupported' in line or 'mmfocal' in line:
            return line.split('. ')[0].rstrip('.') + '.'
    return 'it holds more than tensors, numbers and text.'


class _Buffer:
    """Stands in for ``HistoryBuffer`` while a file is read."""

    def __setstate__(self, state: dict) -> None:
        expected = {'max_length', '_log_history', '_count_history'}
        fits = isinstance(state, dict) and expected <= set(state) <= {*expected, '_statistics_methods'}
        if not fits or not isinstance(state['max_length'], int):
            raise pickle.UnpicklingError('mmfocal: unsupported content of a HistoryBuffer')
        for name in ('_log_history', '_count_history'):
            if type(state[name]) is not np.ndarray or state[name].dtype.hasobject:
                raise pickle.UnpicklingError('mmfocal: unsupported content of a HistoryBuffer')
        self.state = {name: state[name] for name in expected}

    def restored(self) -> HistoryBuffer:
        return HistoryBuffer(
            self.state['_log_history'], self.state['_count_history'], self.state['max_length']
        )


def _statistic(owner: Any, name: str) -> str:
    """Stands in for ``getattr``, which files of mmengine use for a buffer's statistics alone."""
    if owner is not _Buffer or name not in STATISTICS:
        raise pickle.UnpicklingError('mmfocal: unsupported use of builtins.getattr')
    return name


def _array(kind: type, shape: tuple, typecode: bytes) -> np.ndarray:
    """Stands in for numpy's ``_reconstruct``, which would make an object of any class."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError('mmfocal: unsupported kind of numpy array')
    return np.ndarray(shape, np.dtype('b'))


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    """Stands in for numpy's ``scalar``; numbers alone."""
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError('mmfocal: unsupported kind of numpy scalar')
    return np.frombuffer(data, dtype, count=1)[0]


def _dtype(code: str, *flags: bool) -> np.dtype:
    """Stands in for ``numpy.dtype``, without types that hold objects."""
    dtype = np.dtype(code)
    if dtype.hasobject:
        raise pickle.UnpicklingError('mmfocal: unsupported numpy type of objects')
    # A copy: the file sets its byte order.
    return np.dtype(dtype, copy=True)


def _safe_globals() -> list:
    """What a file may refer to beyond tensors: exactly what mmengine writes.

    Pairs name the global in the file and what it becomes. Classes of number types are those whose
    byte order a file sets.
    """
    numbers = {type(np.dtype(code)) for code in '?bhilqBHILQefdgFD'}
    numpy_modules = ('numpy.core.multiarray', 'numpy._core.multiarray')
    return [
        _Buffer,
        (_Buffer, 'mmengine.logging.history_buffer.HistoryBuffer'),
        (_statistic, 'builtins.getattr'),
        *((_array, f'{module}._reconstruct') for module in numpy_modules),
        *((_scalar, f'{module}.scalar') for module in numpy_modules),
        (_dtype, 'numpy.dtype'),
        np.ndarray,
        *numbers,
    ]


def _cleaned(value: Any) -> Any:
    """The loaded content in plain containers, with buffers restored.

    A pickle may set attributes on an ``OrderedDict`` that change how it is copied later; only
    ``_metadata`` of state dicts is kept. ``meta['config']``, text that mmengine would run on
    resume, is dropped.
    """
    if isinstance(value, _Buffer):
        return value.restored()
    if isinstance(value, dict):
        items = {key: _cleaned(item) for key, item in value.items()}
        if isinstance(items.get('meta'), dict):
            items['meta'].pop('config', None)
        if type(value) is not OrderedDict:
            return items if type(value) is dict else type(value)(items)
        cleaned = OrderedDict(items)
        if isinstance(metadata := vars(value).get('_metadata'), dict):
            cleaned._metadata = _cleaned(metadata)
        return cleaned
    if type(value) in (list, tuple, set):
        return type(value)(_cleaned(item) for item in value)
    return value
