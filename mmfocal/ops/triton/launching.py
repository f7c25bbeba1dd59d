"""How kernels are defined and launched: one variant for all map sizes, and little host time.

A launch through Triton looks at every argument to find the variant that was compiled for it, which
takes the host longer than most of our kernels take a GPU. Ours have a variant for each set of
constants and dtypes, so from the second launch on only these are looked at.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import triton
from torch import Tensor

# What Triton assumes of a pointer that is a multiple of it: that vectors can be loaded from there.
ALIGNMENT = 16

_constants: dict[Callable, list[str]] = {}
_compiled: dict[tuple, Any] = {}


def kernel(function: Callable) -> Any:
    """:func:`triton.jit` without variants for particular numbers, such as sizes of a map.

    Args:
        function: with the names of tensors ending in ``_ptr``, then numbers, then constants
            annotated ``tl.constexpr``.
    """
    parameters = inspect.signature(function).parameters.values()
    constants = [p.name for p in parameters if 'constexpr' in str(p.annotation)]
    numbers = [
        p.name for p in parameters if p.name not in constants and not p.name.endswith('_ptr')
    ]
    _constants[function] = constants
    return triton.jit(do_not_specialize=numbers)(function)


def ceil_div(count: int, size: int) -> int:
    """How many of ``size`` hold ``count``; Triton's own takes the host as long as a launch."""
    return -(-count // size)


def check_count(count: int) -> None:
    """Raises ValueError for more numbers of an image than kernels count in 32 bits."""
    if count >= 2**31:
        raise ValueError(
            f'the kernels of focal attention take fewer than {2**31:,} numbers of an image, and '
            f"there are {count:,}; take smaller images, or attention_backend='gather_sdpa'"
        )


def launch(
    function: Any,
    grid: tuple[int, int, int],
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[int | float, ...],
    constants: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """Launches a kernel on the current device and stream.

    Args:
        function: what :func:`kernel` gave.
        grid: programs along each axis.
        tensors: in the order of the kernel's arguments; the first is on the device to run on.
        numbers: those after the tensors.
        constants: all constants of the kernel by name, and maybe others.
        options: of the compiler, such as ``num_warps``.
    """
    names = _constants[function.fn]
    values = [constants[name] for name in names]
    dtypes = [None if t is None else t.dtype for t in tensors]
    key = (function.fn, tensors[0].device, *dtypes, *values, *options.values())
    compiled = _compiled.get(key)
    aligned = not any([t is not None and t.data_ptr() % ALIGNMENT for t in tensors])
    if compiled is not None and aligned:
        compiled[grid](*tensors, *numbers, *values)
        return
    made = function[grid](*tensors, *numbers, **dict(zip(names, values, strict=True)), **options)
    if made is not None and aligned:  # Triton's interpreter makes nothing
        _compiled[key] = made
