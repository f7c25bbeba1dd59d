"""The one way in which mmfocal reads checkpoints: without running anything out of them.

A PyTorch checkpoint is a pickle, and a pickle is a program. PyTorch's ``weights_only`` mode runs
it on a list of harmless functions, but mmengine's own files need two that are not: ``getattr``,
and ``HistoryBuffer``, an object whose attributes a file may set. Together they let a file run any
code. Here both are replaced, see ``stand_ins.py``: ``getattr`` by a function that knows the four
statistics of a ``HistoryBuffer`` and nothing else, ``HistoryBuffer`` by a class that takes two
arrays of numbers and nothing else. Nothing falls back to unsafe loading.

Upstream gaps that this closes: mmengine 0.10.7 cannot load its own files on torch >= 2.6 and loads
URLs without ``weights_only``; onedl-mmengine 0.10.12 loads unsafely what it cannot load safely;
both run the texts of configs that a file holds, on resume and in inferencers.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from mmengine.fileio import get_local_path
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from mmfocal.utils.errors import UserError
from mmfocal.utils.files import written_atomically

from . import paddle
from .archives import check_archive, check_old_file, is_archive
from .contents import CheckpointError, refuse_unusable
from .embedded_config import config_of, embedded_text
from .pickles import Refused
from .saving import PUBLISHED
from .stand_ins import SAFE_GLOBALS, restored

SUFFIXES = ('.pth', '.pt', '.safetensors', paddle.SUFFIX)
# PyTorch's pattern, which also takes fewer digits, as in focal-224.pth.
_HASH = re.compile(r'-([0-9a-f]{8,})\.')


def names_weights(source: str | os.PathLike) -> bool:
    """Whether a path or URL ends as those of files of weights do."""
    return os.fspath(source).split('?')[0].endswith(SUFFIXES)


def load_checkpoint_file(
    source: str | os.PathLike, map_location: Any = 'cpu', sha256: str | None = None
) -> dict:
    """Loads a checkpoint without running anything out of it.

    Args:
        source: a path, an ``http(s)://`` URL (downloaded once, kept in torch's hub folder), or
            any scheme that mmengine knows, such as ``open-mmlab://``. A file whose name ends in
            ``.safetensors`` or ``.pdparams`` is read as such; one of PaddlePaddle's with another
            name, if it says that it is.
        map_location: as in ``torch.load``.
        sha256: of the file, in hexadecimal, or the beginning of it; not compared if None.

    Returns:
        What was saved; only tensors for a ``.safetensors`` file, unless it is one that was
        published, which gives what the ``.pth`` beside it gives. Linear weights of PaddlePaddle
        are transposed to PyTorch's (out, in).

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

    mmengine runs texts of configs that a file may hold, one on resume, and its inferencers another
    if they are given a checkpoint and no config. Both are left out, and where
    :func:`~mmfocal.weights.embedded_config.config_of` takes the second, what that has read is
    written in its place.

    Args:
        filename: of the checkpoint.
        map_location: ignored. Everything is loaded to the CPU, and copied to its place by whoever
            asked. mmengine would load a whole run to the GPU, where PyTorch would leave Adam's
            counters, and wait for each of them in every step.

    Raises:
        CheckpointError: as for :func:`load_checkpoint_file`, or tensors of a model are no weights
            that anything can be computed with; which ones.
    """
    checkpoint = load_checkpoint_file(filename)
    _check_weights(checkpoint, filename)
    text = embedded_text(checkpoint)
    for path in (('meta',), ('message_hub', 'runtime_info')):
        holder = checkpoint
        for key in path:
            holder = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(holder, dict):
            holder.pop('cfg', None)
            holder.pop('config', None)
            with suppress(CheckpointError):
                if text and 'message_hub' in path:
                    settings = config_of(text, filename)
                    holder['cfg'] = '\n'.join(f'{k} = {v!r}' for k, v in settings.items())
    return checkpoint


def _check_weights(checkpoint: Any, source: str) -> None:
    """Refuses what loads by name and computes nothing: mmengine asks for shapes only."""
    if not isinstance(checkpoint, dict):
        return
    whole = [checkpoint] if 'state_dict' not in checkpoint else []
    found = [checkpoint.get(key) for key in ('state_dict', 'ema_state_dict')]
    for tensors in (*whole, *found):
        if isinstance(tensors, dict):
            refuse_unusable(tensors, source)


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

    A name like ``model-1a2b3c4d.pth`` holds the beginning of the file's SHA-256, which is compared
    each time.
    """
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    name = os.path.basename(urlparse(url).path)
    known = _HASH.search(name)
    # Many sites have a file latest.pth; names have 255 characters at most.
    key = hashlib.sha256(url.encode()).hexdigest()[:16]
    path = os.path.join(folder, f'{key}-{name[-128:]}')
    if not os.path.exists(path):
        try:
            _download(url, path, known[1] if known else '')
        except (HTTPException, OSError, ValueError, UserError) as error:
            raise CheckpointError(
                f'{url} could not be downloaded: {error}. Download it by other means and give its '
                'path instead.'
            ) from error
    elif known:
        _check_hash(path, url, known[1])
    return path


def _download(url: str, path: str, sha256: str) -> None:
    """Writes what is at ``url``, as a whole or not at all.

    Raises:
        OSError: it cannot be reached, or the connection broke off.
        ValueError: it is another file than ``sha256`` says.
        UserError: the file cannot be written.
    """
    digest, length = hashlib.sha256(), 0
    with (
        urlopen(Request(url, headers={'User-Agent': 'mmfocal'}), timeout=60) as response,
        written_atomically(path) as file,
    ):
        while chunk := response.read(1 << 20):
            file.write(chunk)
            digest.update(chunk)
            length += len(chunk)
        expected = response.headers.get('Content-Length')
        if expected is not None and length != int(expected):
            raise ValueError(f'it broke off after {length:,} of {int(expected):,} bytes')
        if not digest.hexdigest().startswith(sha256):
            raise ValueError(
                f'its hash is {digest.hexdigest()}, and not {sha256}... as its name says'
            )


# --- What is in it ----------------------------------------------------------------------------


def _load(path: str, source: str, map_location: Any) -> dict:
    says_paddle = source.split('?')[0].endswith(paddle.SUFFIX)
    if says_paddle and is_archive(path):
        raise CheckpointError(
            f"{source} is PyTorch's archive and no pickle of PaddlePaddle, whose linear weights "
            'are transposed. If it holds weights as PyTorch has them, let its name end in .pth.'
        )
    try:
        if says_paddle or paddle.is_paddle(path):
            return paddle.load_paddle(path, map_location, says_paddle)
        (check_archive if is_archive(path) else check_old_file)(path)
        with _only_safe_globals():
            loaded = torch.load(path, map_location=map_location, weights_only=True)
        return restored(loaded, os.path.getsize(path))
    except Exception as error:  # damage shows itself in many ways
        if isinstance(error, pickle.UnpicklingError) and (reason := _refusal(error)):
            raise CheckpointError(
                f'{source} was refused: {reason} A checkpoint is loaded as data here, and code in '
                'it is never run. If you trust its origin, have its author save tensors only '
                '(torch.save(model.state_dict(), ...)) or as .safetensors.'
            ) from None
        if _is_page(path):
            at = f' (kept as {path})' if _url_of(source) else ''
            raise CheckpointError(
                f'{source} is a web page and no checkpoint{at}. Some sites, such as Google Drive, '
                'show one before the file: download that in a browser, and give its path.'
            ) from None
        raise CheckpointError(
            f'{source} could not be read as a checkpoint; it may be cut off or damaged '
            f'({type(error).__name__}: {str(error).splitlines()[0] if str(error) else "empty"}).'
        ) from error


def _is_page(path: str) -> bool:
    with open(path, 'rb') as file:
        start = file.read(200)
    return re.match(rb'(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml)\b', start, re.I) is not None


def _load_safetensors(path: str, source: str, map_location: Any) -> dict:
    try:
        import safetensors.torch
    except ImportError:
        raise CheckpointError(
            f'{source}: the package safetensors is missing. Run: pip install safetensors'
        ) from None
    try:
        # As bytes: tensors of a mapped file would change with it.
        content = Path(path).read_bytes()
        tensors = safetensors.torch.load(content)
    except KeyError as error:
        raise CheckpointError(
            f'{source} holds tensors of type {error}, which this version of safetensors does not '
            'read into PyTorch. Have its author save them as float32, float16 or bfloat16.'
        ) from error
    except Exception as error:  # damage shows itself in many ways
        raise CheckpointError(f'{source} is no valid safetensors file: {error}') from error
    if map_location is not None:
        tensors = {name: tensor.to(map_location) for name, tensor in tensors.items()}
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])
    texts = header.get('__metadata__', {})
    if PUBLISHED not in texts:
        return tensors
    try:
        meta = dict(json.loads(texts[PUBLISHED]))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f'{source}: its metadata {PUBLISHED!r} is no JSON object.'
        ) from error
    info = {'cfg': texts['config']} if 'config' in texts else {}
    return dict(meta=meta, state_dict=tensors, message_hub=dict(runtime_info=info))


def _refusal(error: pickle.UnpicklingError) -> str | None:
    """What a file was refused for, out of torch's long message; None if it is no refusal."""
    text = str(error)
    if isinstance(error, Refused):
        return text.removeprefix('mmfocal: ')
    if asked_for := re.search(r'GLOBAL (\S+)', text):
        return f'it asks for {asked_for[1]}.'
    if ours := re.search(r'mmfocal: (.*?\.)(?=\s|$)', text):
        return ours[1]
    if re.search('Trying to|Can only', text):
        return 'it holds more than tensors, numbers and text.'
    return None


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
