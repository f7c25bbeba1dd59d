"""Which tensors can be weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmfocal.utils.errors import UserError

MAX_NAMED = 5  # tensors in a message
# Names of parameters and running statistics. Other integers may be buffers.
_FLOATS = re.compile(
    r'(.*[._])?(weight|bias|scale|gamma|beta|running_(mean|var)|table(_to_\w+)?|(cls|mask)_token'
    r'|\w*embed)([._]\d+)*'
)


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or holds what cannot be used. The message is for users."""


def refuse_unusable(tensors: Mapping[Any, Any], source: str) -> None:
    """Refuses tensors with which a model would compute nothing, or nothing but NaN.

    Weights have to be finite floating-point numbers; of a model's other tensors, those with names
    such as ``num_batches_tracked``, integers and booleans are fine, and so are masks that add
    ``-inf`` to attention and 0 elsewhere.

    Args:
        tensors: a state dict; what is no tensor in it is passed over.
        source: the file, for the message.

    Raises:
        CheckpointError: the names, and what is wrong with each.
    """
    refuse(
        {
            name: problem
            for name, value in tensors.items()
            if isinstance(value, Tensor) and (problem := problem_of(value, str(name)))
        },
        source,
    )


def refuse(problems: Mapping[Any, str], source: str) -> None:
    """Raises a CheckpointError if there are problems of tensors by their names."""
    if not problems:
        return
    told = [f'{name} {problem}' for name, problem in problems.items()]
    more = f'; and {len(told) - MAX_NAMED} more' if len(told) > MAX_NAMED else ''
    raise CheckpointError(
        f'{source} holds tensors that are no usable weights: {"; ".join(told[:MAX_NAMED])}{more}. '
        'Take an earlier file, or have its author save plain, finite floating-point tensors.'
    )


def problem_of(value: Tensor, name: str) -> str | None:
    """Why a tensor of this name can be no weight; None if it can."""
    if value.is_nested or value.layout != torch.strided:
        return f'is no dense tensor ({"nested" if value.is_nested else value.layout})'
    if value.is_quantized:
        return f'is quantised ({value.dtype})'
    if value.is_meta:
        return 'has no values (meta device)'
    if value.is_complex():
        return f'is complex ({value.dtype})'
    if not value.is_floating_point():
        is_float = _FLOATS.fullmatch(name)
        return f'is {value.dtype}, no floating-point tensor' if is_float else None
    return _odd_numbers(value)


def _odd_numbers(value: Tensor) -> str | None:
    if not value.numel():
        return None
    if value.element_size() == 1:  # PyTorch knows no minimum of such numbers
        try:
            value = value.float()
        except RuntimeError:
            return f'is {value.dtype}, which PyTorch cannot convert'
    low, high = torch.aminmax(value)  # NaN if there is one
    if low.isfinite() and high.isfinite():
        return None
    if low == -torch.inf and high == 0 and (value.isneginf() | (value == 0)).all():
        return None
    wrong = value.numel() - int(value.isfinite().sum())
    return f'has {wrong:,} of {value.numel():,} elements that are NaN or infinite'
