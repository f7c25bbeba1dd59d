"""Files of PaddlePaddle (``.pdparams``), read without it and without running anything.

``paddle.save`` pickles numpy arrays by name, linear weights as (in, out), and either a table of
its own names beside them or each tensor as a pair of its own name and the array
(PaddlePaddle/Paddle, ``python/paddle/framework/io.py`` and ``io_utils.py``). A pickle is a
program; here it may only build arrays of numbers and plain containers, out of stand-ins.
"""

from __future__ import annotations

import io
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .pickles import check_pickle, refuse
from .stand_ins import SAFE_GLOBALS, Array, Restorer

SUFFIX = '.pdparams'
_DICT = re.compile(rb'\x80[\x02-\x04](\x95.{8})?}', re.DOTALL)
_NAMES = 'StructuredToParameterName@@'  # keys of paddle.save beside those of tensors
_PARTS = 'UnpackBigParamInfor@@'
# What picklers of Python 3 write for arrays, containers and numbers by protocols 2 to 4.
_OPCODES = frozenset(
    [
        *('PROTO', 'FRAME', 'STOP', 'MARK', 'MEMOIZE', 'BINPUT', 'LONG_BINPUT', 'BINGET'),
        *('LONG_BINGET', 'GLOBAL', 'STACK_GLOBAL', 'REDUCE', 'BUILD', 'NONE', 'NEWTRUE'),
        *('NEWFALSE', 'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE'),
        *('SHORT_BINUNICODE', 'BINUNICODE8', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8'),
        *('EMPTY_DICT', 'SETITEM', 'SETITEMS', 'EMPTY_LIST', 'APPEND', 'APPENDS'),
        *('EMPTY_TUPLE', 'TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3'),
    ]
)


def is_paddle(path: str | os.PathLike) -> bool:
    """Whether a file is the pickle of a dict and nothing before it, which PyTorch never writes."""
    with open(path, 'rb') as file:
        return _DICT.match(file.read(16)) is not None


def load_paddle(path: str | os.PathLike, map_location: Any, is_named: bool) -> Any:
    """What a file of ``paddle.save`` holds, as PyTorch would hold it.

    Arrays become tensors, those that numpy calls uint16 as bfloat16, which is how PaddlePaddle
    saves them. Two-dimensional tensors whose name ends in ``weight`` are of linear layers and
    become (out, in).

    Args:
        path: the file.
        map_location: where tensors are put; left on the CPU if None.
        is_named: whether its name says that PaddlePaddle wrote it; otherwise it has to itself.

    Raises:
        Refused: it asks for more than arrays and containers, or does not say whose it is.
        Exception: whatever else shows that it is damaged.
    """
    loaded, num_bytes = _unpickled(Path(path).read_bytes())
    restorer = _Restorer(num_bytes, map_location)
    content = restorer.restore(loaded, ())
    if not (is_named or restorer.has_names):
        refuse(
            'it is a pickle that does not say whether PaddlePaddle wrote it, whose linear weights '
            f'are (in, out). If it did, let its name end in {SUFFIX}'
        )
    return content


def _unpickled(content: bytes) -> tuple[Any, int]:
    """What a pickle holds, with stand-ins, and its length."""
    file = io.BytesIO(content)
    check_pickle(file, _OPCODES)
    if left := len(content) - file.tell():
        raise pickle.UnpicklingError(f'{left} bytes follow its end')
    file.seek(0)
    return _Unpickler(file).load(), len(content)


class _Unpickler(pickle.Unpickler):
    """Python's, in which every name stands for one of :data:`_GLOBALS`."""

    def find_class(self, module: str, name: str) -> Any:
        name = f'{module.replace("__builtin__", "builtins")}.{name}'
        return _GLOBALS[name] if name in _GLOBALS else refuse(f'it asks for {name[:200]!r}')


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for ``codecs.encode``, by which protocol 2 says bytes."""
    if type(text) is not str or encoding != 'latin1':
        refuse('odd bytes')
    return text.encode('latin1')


def _array_of(pair: tuple[str, Array]) -> Array:
    """Stands in for ``tuple``, which makes a tensor's own name and its array a pair."""
    if type(pair) is not tuple or [type(each) for each in pair] != [str, Array]:
        refuse('odd tensor')
    return pair[1]


def _ordered_dict() -> dict:
    """Stands in for ``OrderedDict``, which picklers fill afterwards."""
    return {}


_GLOBALS = {
    **{name: each for each, name in SAFE_GLOBALS if name.startswith(('numpy.', 'builtins.bytes'))},
    '_codecs.encode': _encode,
    'builtins.tuple': _array_of,
    'collections.OrderedDict': _ordered_dict,
}


class _Restorer(Restorer):
    """Makes tensors of arrays, and state dicts as PyTorch has them of those of PaddlePaddle."""

    def __init__(self, num_bytes: int, map_location: Any) -> None:
        super().__init__(num_bytes)
        self.map_location = map_location
        self.has_names = False

    def made(self, value: Any, path: tuple[Any, ...]) -> Any:
        made = super().made(value, path)
        if isinstance(made, np.ndarray):
            return self._tensor(made)
        if isinstance(made, dict):
            return self._state_dict(made, path)
        is_plain = made is None and not isinstance(value, Array)
        if is_plain or isinstance(made, list | tuple | str | bytes | int | float | np.generic):
            return made
        refuse(f'it holds a value of type {type(made).__name__}')

    def _tensor(self, array: np.ndarray) -> Tensor:
        array = array.astype(array.dtype.newbyteorder('='), copy=False)
        try:
            if array.dtype == np.uint16:
                tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            else:
                tensor = torch.from_numpy(array)
        except TypeError:
            refuse(f'it holds an array of {array.dtype}, which PyTorch has no type for')
        return tensor if self.map_location is None else tensor.to(self.map_location)

    def _state_dict(self, found: dict, path: tuple[Any, ...]) -> dict:
        self.has_names |= _NAMES in found
        found.pop(_NAMES, None)
        # Arrays of 1 GiB and more are cut up by protocols 2 and 3.
        for name, cut in found.pop(_PARTS, {}).items():
            parts = [found.pop(part) for part in cut['slices']]
            self.count(sum(part.nbytes for part in parts), (*path, name))  # before it takes room
            found[name] = torch.cat(parts).reshape(cut['OriginShape'])
        for name, value in found.items():
            if isinstance(value, Tensor):
                # Each time that it is in the file: whoever checks weights goes by their names.
                self.count(value.nbytes, (*path, name))
                if value.dim() == 2 and str(name).rpartition('.')[2] == 'weight':
                    found[name] = value.T
        return found
