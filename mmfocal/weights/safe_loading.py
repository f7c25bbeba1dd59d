"""The one way in which mmfocal reads checkpoints: without running anything out of them.

A PyTorch checkpoint is a pickle, and a pickle is a program. PyTorch's ``weights_only`` mode runs
it on a list of harmless functions, but mmengine's own files need two that are not: ``getattr``,
and ``HistoryBuffer``, an object whose attributes a file may set. Together they let a file run any
code. Here both are replaced: ``getattr`` by a function that knows the four statistics of a
``HistoryBuffer`` and nothing else, ``HistoryBuffer`` by a class that takes two arrays of numbers
and nothing else. Nothing falls back to unsafe loading.

Upstream gaps that this closes: mmengine 0.10.7 cannot load its own files on torch >= 2.6 and loads
URLs without ``weights_only``; onedl-mmengine 0.10.12 loads unsafely what it cannot load safely;
both run the texts of configs that a file holds, on resume and in inferencers.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn
from urllib.error import URLError
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.fileio import get_local_path
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from mmfocal.utils.errors import UserError


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or holds more than data. The message is for users."""


def load_checkpoint_file(
    source: str | os.PathLike, map_location: Any = 'cpu', sha256: str | None = None
) -> dict:
    """Loads a checkpoint without running anything out of it.

    Args:
        source: a path, an ``http(s)://`` URL (downloaded once, kept in torch's hub folder), or
            any scheme that mmengine knows, such as ``open-mmlab://``. A file whose name ends in
            ``.safetensors`` is read as such.
        map_location: as in ``torch.load``.
        sha256: of the file, in hexadecimal, or the beginning of it; not compared if None.

    Returns:
        What was saved; only tensors for a ``.safetensors`` file.

    Raises:
        CheckpointError: the file is missing, damaged, another than ``sha256`` says, or refers to
            code.
    """
    source = os.fspath(source)
    with _located(source) as path:
        if not os.path.isfile(path):
            raise CheckpointError(
                f'{source}: there is no such file (looked for {os.path.abspath(path)}).'
            )
        if sha256 is not None:
            _check_hash(path, source, sha256)
        if source.split('?')[0].endswith('.safetensors'):
            return _load_safetensors(path, source, map_location)
        return _load(path, source, map_location)


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
    """Loader for mmengine, which prints the part of the name after ``load_from_``.

    Leaves out the texts of configs that a file may hold: mmengine runs one on resume, and its
    inferencers another if they are given a checkpoint and no config.
    """
    checkpoint = load_checkpoint_file(filename, map_location)
    for path in (('meta',), ('message_hub', 'runtime_info')):
        holder = checkpoint
        for key in path:
            holder = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(holder, dict):
            holder.pop('cfg', None)
            holder.pop('config', None)
    return checkpoint


# --- Where it comes from ----------------------------------------------------------------------


@contextmanager
def _located(source: str) -> Iterator[str]:
    """Path of a file, of a copy where it is in other storage."""
    if (url := _url_of(source)) is not None:
        yield _downloaded(url)
    elif source.startswith('file://'):
        yield urlparse(source).path
    elif '://' not in source:
        yield os.path.expanduser(source)
    else:
        with ExitStack() as stack:
            try:
                path = stack.enter_context(get_local_path(source))
            except Exception as error:  # each storage client has errors of its own
                raise CheckpointError(
                    f'{source} could not be read: {error}. Download it by other means and give '
                    'its path instead.'
                ) from error
            yield str(path)


def _check_hash(path: str, source: str, expected: str) -> None:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    found = digest.hexdigest()
    if not found.startswith(expected.lower()):
        at = f', kept as {path}; delete it to download it again' if _url_of(source) else ''
        raise CheckpointError(
            f'{source} is not the file that was expected{at}. SHA-256 expected: {expected}, '
            f'found: {found}.'
        )


def _url_of(source: str) -> str | None:
    """The URL for an address: itself, or what mmengine's tables of models say."""
    scheme, _, name = source.partition('://')
    if scheme in ('http', 'https'):
        return source
    table = {
        'torchvision': 'get_torchvision_models',
        'modelzoo': 'get_torchvision_models',
        'open-mmlab': 'get_external_models',
        'openmmlab': 'get_external_models',
        'mmcls': 'get_mmcls_models',
    }.get(scheme)
    if table is None:
        return None
    models = getattr(mmengine_checkpoint, table)()
    if table == 'get_external_models':
        name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    if name not in models:
        raise CheckpointError(f'{source}: mmengine knows no model of that name.')
    return models[name]


def _downloaded(url: str) -> str:
    """Path of the file at ``url``, downloaded unless it is there.

    A name like ``model-1a2b3c4d.pth`` holds the beginning of the file's SHA-256, which is checked.
    """
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    os.makedirs(folder, exist_ok=True)
    name = os.path.basename(urlparse(url).path)
    known = torch.hub.HASH_REGEX.search(name)
    if not known:  # many sites have a file latest.pth
        name = f'{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}'
    path = os.path.join(folder, name)
    if not os.path.exists(path):
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


# --- What is in it ----------------------------------------------------------------------------


def _load(path: str, source: str, map_location: Any) -> dict:
    try:
        with _only_safe_globals():
            loaded = torch.load(path, map_location=map_location, weights_only=True)
        return _restored(loaded)
    except Exception as error:  # damage shows itself in many ways
        if isinstance(error, pickle.UnpicklingError) and (reason := _refusal(str(error))):
            raise CheckpointError(
                f'{source} was refused: {reason} A checkpoint is loaded as data here, and code in '
                'it is never run. If you trust its origin, have its author save tensors only '
                '(torch.save(model.state_dict(), ...)) or as .safetensors.'
            ) from None
        raise CheckpointError(
            f'{source} could not be read as a checkpoint; it may be cut off or damaged '
            f'({type(error).__name__}: {str(error).splitlines()[0] if str(error) else "empty"}).'
        ) from error


def _load_safetensors(path: str, source: str, map_location: Any) -> dict:
    try:
        import safetensors.torch
    except ImportError:
        raise CheckpointError(
            f'{source}: the package safetensors is missing. Run: pip install safetensors'
        ) from None
    try:
        # As bytes: tensors of a mapped file would change with it.
        with open(path, 'rb') as file:
            tensors = safetensors.torch.load(file.read())
    except safetensors.SafetensorError as error:
        raise CheckpointError(f'{source} is no valid safetensors file: {error}') from error
    if map_location is not None:
        tensors = {name: tensor.to(map_location) for name, tensor in tensors.items()}
    return tensors


def _refusal(text: str) -> str | None:
    """What a file was refused for, out of torch's long message; None if it is no refusal."""
    if asked_for := re.search(r'GLOBAL (\S+)', text):
        return f'it asks for {asked_for[1]}.'
    if ours := re.search(r'mmfocal: (.*?\.)(?=\s|$)', text):
        return ours[1]
    if re.search('Trying to|Can only', text):
        return 'it holds more than tensors, numbers and text.'
    return None


# --- Stand-ins for what files of mmengine ask for ---------------------------------------------
# A file is read with these in place of the real things, which are made from them afterwards: no
# code of numpy or mmengine sees what a file says before it is checked.


def _refuse(what: str) -> NoReturn:
    raise pickle.UnpicklingError(f'mmfocal: {what}.')


class _DType:
    """Stands in for ``numpy.dtype``; numbers only."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        self.dtype = np.dtype(code) if isinstance(code, str) else _refuse('odd numpy type')
        if self.dtype.kind not in 'biufc':
            _refuse(f'it holds numpy values of type {code!r}, which are no numbers')

    def __setstate__(self, state: tuple) -> None:
        _version, order, *rest = state
        if order not in ('<', '>', '|', '=') or rest[:3] != [None] * 3:
            _refuse('odd numpy type')
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands in for ``numpy.ndarray``."""

    value = None

    def __setstate__(self, state: tuple) -> None:
        _version, shape, dtype, fortran, data = state
        if type(dtype) is not _DType or type(data) is not bytes:
            _refuse('odd numpy array')
        flat = np.frombuffer(data, dtype.dtype)
        self.value = flat.reshape(shape, order='F' if fortran else 'C').copy()


class _Buffer:
    """Stands in for ``HistoryBuffer``."""

    value = None

    def __setstate__(self, state: dict) -> None:
        # Its statistics are those of the class; a file has no say in them.
        log, count = state['_log_history'], state['_count_history']
        if type(log) is not _Array or type(count) is not _Array:
            _refuse('odd HistoryBuffer')
        self.value = HistoryBuffer(log.value, count.value, int(state['max_length']))


def _reconstruct(kind: type, shape: tuple, code: bytes) -> _Array:
    """Stands in for the function of numpy that makes an empty array, of any class."""
    return _Array() if kind is _Array else _refuse('odd kind of numpy array')


def _scalar(dtype: _DType, data: bytes) -> np.generic:
    """Stands in for the function of numpy that makes a scalar, of any type."""
    if type(dtype) is not _DType or type(data) is not bytes:
        _refuse('odd numpy scalar')
    return np.frombuffer(data, dtype.dtype, count=1)[0]


def _empty_bytes() -> bytes:
    """Stands in for ``bytes``, of which files only need the content of an empty array."""
    return b''


def _getattr(owner: Any, name: str) -> str:
    """Stands in for ``getattr``, which files need only for a buffer's statistics."""
    if owner is not _Buffer or name not in ('min', 'max', 'current', 'mean'):
        _refuse('it asks for builtins.getattr')
    return name


# What a file may ask for beyond torch's own list, and what it gets: all that mmengine writes.
SAFE_GLOBALS = [
    (_Buffer, 'mmengine.logging.history_buffer.HistoryBuffer'),
    (_getattr, 'builtins.getattr'),
    (_empty_bytes, 'builtins.bytes'),
    (_Array, 'numpy.ndarray'),
    (_DType, 'numpy.dtype'),
    # numpy 1 and 2
    (_reconstruct, 'numpy.core.multiarray._reconstruct'),
    (_reconstruct, 'numpy._core.multiarray._reconstruct'),
    (_scalar, 'numpy.core.multiarray.scalar'),
    (_scalar, 'numpy._core.multiarray.scalar'),
]


@contextmanager
def _only_safe_globals() -> Iterator[None]:
    """Lets ``torch.load`` use :data:`SAFE_GLOBALS`, and nothing that others have allowed."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(SAFE_GLOBALS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


def _restored(value: Any) -> Any:
    """The loaded content in plain containers, with stand-ins replaced by the real things.

    A file may set attributes on an ``OrderedDict`` that change how it is copied later; only
    ``_metadata`` of state dicts is kept.
    """
    if isinstance(value, (_Array, _Buffer)):
        return value.value
    if isinstance(value, _DType):
        return value.dtype
    if isinstance(value, dict):
        # Counter and OrderedDict stay what they are.
        restored = type(value)({key: _restored(item) for key, item in value.items()})
        metadata = getattr(value, '_metadata', None)
        if isinstance(metadata, dict):
            restored._metadata = _restored(metadata)
        return restored
    if type(value) in (list, tuple, set):
        return type(value)(_restored(item) for item in value)
    return value
