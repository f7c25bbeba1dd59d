"""What a checkpoint may ask for beside tensors, and what it gets instead.

A file is read with stand-ins in place of the classes that it names. The real things are made from
them afterwards: no code of numpy or mmengine sees what a file says before it is checked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from .pickles import refuse

MAX_UNPACKED = 10  # times the size of a file; more only if tensors repeat elements


class _DType:
    """Stands in for ``numpy.dtype``; numbers only."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        self.dtype = np.dtype(code) if isinstance(code, str) else refuse('odd numpy type')
        if self.dtype.kind not in 'biufc':
            refuse(f'it holds numpy values of type {code[:200]!r}, which are no numbers')

    def __setstate__(self, state: tuple) -> None:
        _version, order, *rest = state
        if order not in ('<', '>', '|', '=') or rest[:3] != [None] * 3:
            refuse('odd numpy type')
        self.dtype = self.dtype.newbyteorder(order)


class Array:
    """Stands in for ``numpy.ndarray``."""

    value = None

    def __setstate__(self, state: tuple) -> None:
        _version, shape, dtype, fortran, data = state
        if type(dtype) is not _DType or type(data) is not bytes:
            refuse('odd numpy array')
        flat = np.frombuffer(data, dtype.dtype)
        self.value = flat.reshape(shape, order='F' if fortran else 'C').copy()


class _Buffer:
    """Stands in for ``HistoryBuffer``."""

    value = None

    def __setstate__(self, state: dict) -> None:
        # Its statistics are those of the class; a file has no say in them.
        log, count = state['_log_history'], state['_count_history']
        if type(log) is not Array or type(count) is not Array:
            refuse('odd HistoryBuffer')
        self.value = HistoryBuffer(log.value, count.value, int(state['max_length']))


def _reconstruct(kind: type, shape: tuple, code: bytes) -> Array:
    """Stands in for the function of numpy that makes an empty array, of any class."""
    return Array() if kind is Array else refuse('odd kind of numpy array')


def _scalar(dtype: _DType, data: bytes) -> np.generic:
    """Stands in for the function of numpy that makes a scalar, of any type."""
    if type(dtype) is not _DType or type(data) is not bytes:
        refuse('odd numpy scalar')
    return np.frombuffer(data, dtype.dtype, count=1)[0]


def _empty_bytes() -> bytes:
    """Stands in for ``bytes``, of which files only need the content of an empty array."""
    return b''


def _getattr(owner: Any, name: str) -> str:
    """Stands in for ``getattr``, which files need only for a buffer's statistics."""
    if owner is not _Buffer or name not in ('min', 'max', 'current', 'mean'):
        refuse('it asks for builtins.getattr')
    return name


# What a file may ask for beyond torch's own list, and what it gets: all that mmengine writes.
SAFE_GLOBALS = [
    (_Buffer, 'mmengine.logging.history_buffer.HistoryBuffer'),
    (_getattr, 'builtins.getattr'),
    (_empty_bytes, 'builtins.bytes'),
    (Array, 'numpy.ndarray'),
    (_DType, 'numpy.dtype'),
    # numpy 1 and 2
    (_reconstruct, 'numpy.core.multiarray._reconstruct'),
    (_reconstruct, 'numpy._core.multiarray._reconstruct'),
    (_scalar, 'numpy.core.multiarray.scalar'),
    (_scalar, 'numpy._core.multiarray.scalar'),
]


def restored(content: Any, num_bytes: int) -> Any:
    """The loaded content in plain objects, with stand-ins replaced by the real things.

    What is shared in the file stays shared. A file may set attributes on tensors and on an
    ``OrderedDict`` that change how these are copied later; objects are made anew without them,
    except ``_metadata`` of state dicts.

    Args:
        content: as ``torch.load`` returns it; measured before by ``check_pickle``.
        num_bytes: size of the file.

    Raises:
        Refused: a tensor is of an odd class, or tensors have many more elements than the file;
            the message names one.
    """
    return Restorer(num_bytes).restore(content, ())


class Restorer:
    """Restores each object once; time and memory are linear in the number of objects."""

    def __init__(self, num_bytes: int) -> None:
        self.done: dict[int, tuple[Any, Any]] = {}  # keeps the originals, and so their ids, alive
        self.bytes_left = MAX_UNPACKED * num_bytes

    def restore(self, value: Any, path: tuple[Any, ...]) -> Any:
        if id(value) not in self.done:
            self.done[id(value)] = value, self.made(value, path)
        return self.done[id(value)][1]

    def made(self, value: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(value, Array | _Buffer):
            return value.value
        if isinstance(value, _DType):
            return value.dtype
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        if isinstance(value, dict):
            # Counter and OrderedDict stay what they are.
            made = type(value)()
            for key, item in value.items():
                made[self.restore(key, (*path, 'a key'))] = self.restore(item, (*path, key))
            metadata = getattr(value, '_metadata', None)
            if isinstance(metadata, dict):
                made._metadata = self.restore(metadata, (*path, '_metadata'))
            return made
        if type(value) in (list, tuple, set):
            items = enumerate(value)
            return type(value)(self.restore(item, (*path, index)) for index, item in items)
        return value

    def _tensor(self, tensor: Tensor, path: tuple[Any, ...]) -> Tensor:
        if type(tensor) not in (Tensor, nn.Parameter):
            refuse(f'{_dotted(path)} is a {type(tensor).__name__}, no plain tensor')
        if not tensor.is_meta:
            self.count(tensor.numel() * tensor.element_size(), path)
        plain = tensor.detach()
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(plain, tensor.requires_grad)
        return plain.requires_grad_(tensor.requires_grad)

    def count(self, num_bytes: int, path: tuple[Any, ...]) -> None:
        self.bytes_left -= num_bytes
        if self.bytes_left < 0:
            refuse(f'with {_dotted(path)} it holds over {MAX_UNPACKED} times the size of the file')


def _dotted(path: tuple[Any, ...]) -> str:
    """The place of a value in the file, such as ``state_dict.backbone.norm0.weight``."""
    parts = [part if isinstance(part, str | int) else type(part).__name__ for part in path]
    return '.'.join(repr(str(part)[:200])[1:-1] for part in parts) or 'its content'
