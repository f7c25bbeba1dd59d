"""Pickles, measured before anything is made of them.

A few bytes can ask for a list of two times the same list, sixty times over. It takes no room, but
whoever hashes its like, or writes it into an error message, visits each of its 2 ** 60 parts, and
PyTorch's reader does both. It also makes a set of a tensor's elements if a file says so, and a
tensor can have billions of elements that are one. What is nested too deeply ends the process.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import re
from collections.abc import Container
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

MAX_DEPTH = 100  # of containers in containers; runs have less than 20
_FREE = 1_000_000  # bytes and parts that may be visited beside 10 times the pickle; runs need 1.2

_PUT = ('BINPUT', 'LONG_BINPUT', 'PUT', 'MEMOIZE')
_GET = ('BINGET', 'LONG_BINGET', 'GET')
_GROWS = ('APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'BUILD')
_CALLS = ('REDUCE', 'NEWOBJ', 'BINPERSID')
# Functions that visit what they are given, or what is in it.
_ITERATES = re.compile(r'.* (set|frozenset|Counter|OrderedDict|Size)')


class Refused(pickle.UnpicklingError):
    """A file asks for what no checkpoint needs. PyTorch puts the message into one of its own."""


def refuse(what: str) -> NoReturn:
    """Raises :class:`Refused`, in the form that is found in PyTorch's message."""
    raise Refused(f'mmfocal: {what}.')


@dataclass(slots=True, eq=False)
class _Extent:
    """How much a value holds: bytes and parts, what is shared counted each time."""

    parts: int = 1
    depth: int = 0
    made: float = math.inf  # how deep in it there is what a function made: 0 if it is that itself
    is_shared: bool = False
    iterates: bool = False

    def hold(self, values: list[_Extent]) -> None:
        self.made = min([self.made, *(value.made + 1 for value in values)])
        self.parts += sum(value.parts for value in values)
        self.depth = max([self.depth, *(value.depth + 1 for value in values)])
        if self.depth > MAX_DEPTH:
            refuse(f'it is nested more than {MAX_DEPTH} deep')


_MARK = _Extent()


def check_pickle(file: BinaryIO, opcodes: Container[str] | None = None) -> None:
    """Follows a pickle to its end, only counting, in time that grows with its length.

    Args:
        file: open at its beginning, and after it at its end.
        opcodes: names of those that it may have, as in ``pickletools``; all if None.

    Raises:
        Refused: it has other opcodes, is nested too deeply, holds itself, numbers what it keeps
            as no pickler does, or hands to a function or a hash what repeats its parts beyond all
            measure.
        Exception: whatever ``pickletools`` raises for damaged pickles.
    """
    stack: list[_Extent] = []
    memo: dict[int, _Extent] = {}
    visited = 0
    for opcode, argument, position in pickletools.genops(file):
        if opcodes is not None and opcode.name not in opcodes:
            refuse(f'it has the pickle opcode {opcode.name}')
        if opcode.name in _PUT:
            number = len(memo) if argument is None else argument
            if number > (position or 0):  # Python's reader makes room for all that are before it
                refuse('it leaves out numbers of what it keeps')
            memo[number] = stack[-1]
            continue
        if opcode.name in _GET:
            memo[argument].is_shared = True
            stack.append(memo[argument])
            continue
        taken = _taken(stack, opcode)
        _check_functions(opcode.name, taken)
        visited += sum(value.parts for value in _visited(opcode.name, taken))
        if visited > _FREE + 10 * (position or 0):
            refuse('it repeats parts of itself beyond all measure')
        if opcode.name in _GROWS:
            made = taken.pop()
            if made.is_shared:  # or is changed after it is used, which no pickler writes
                refuse('a part of it holds itself')
            if opcode.name == 'BUILD' and made.made:  # a function itself, for one
                refuse('it sets attributes of what no function made')
        else:
            made = _Extent()
            if isinstance(argument, str | bytes):
                made.parts += len(argument)
        made.hold(taken)
        if opcode.name in _CALLS:
            made.made = 0
        elif opcode.name == 'GLOBAL':
            if argument.endswith(' bytearray'):  # of any length, for a number
                refuse('it asks for bytearray')
            made.iterates = bool(_ITERATES.fullmatch(argument))
        stack.extend(
            _MARK if kind is pickletools.markobject else made for kind in opcode.stack_after
        )


def _taken(stack: list[_Extent], opcode: pickletools.OpcodeInfo) -> list[_Extent]:
    """Takes from the stack what an opcode does, the last first."""
    wanted, taken = list(opcode.stack_before), []
    if pickletools.markobject in wanted:
        while (top := stack.pop()) is not _MARK:
            taken.append(top)
        wanted = wanted[: wanted.index(pickletools.markobject)]
    taken.extend(stack.pop() for _ in wanted)
    return taken


def _check_functions(name: str, taken: list[_Extent]) -> None:
    if name == 'REDUCE' and taken[1].iterates:
        # Arguments, list, pair: so deep are the tensors of an OrderedDict of Python 2.
        if taken[0].made < 3:
            refuse('it makes a collection of the elements of a tensor')
    elif any(value.iterates for value in taken):
        refuse('it hands a function to another')


def _visited(name: str, taken: list[_Extent]) -> list[_Extent]:
    """What is hashed, called or handed to a function, of what an opcode takes."""
    if name in ('SETITEM', 'SETITEMS'):
        return taken[1:-1:2]  # the keys
    return taken[:1] if name == 'BUILD' else taken if name in _CALLS else []
