"""How operators are registered with PyTorch, called past its dispatcher, and differentiated once.

Registered operators are opaque to ``torch.compile``, and tools that watch operators see them. The
geometry goes in as numbers, which a compiled graph can hold; tables that it stands for are looked
up inside the operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from mmfocal.geometry import ClosestGeometry, FocalGeometry, WindowGeometry

CLOSEST = 'closest'


class Operator(NamedTuple):
    """Functions that make an operator, its results and gradients.

    Attributes:
        schema: arguments and results, as in :mod:`torch.library`.
        run: computes it on every device.
        fake: makes empty results.
    """

    schema: str
    run: Callable[..., Any]
    fake: Callable[..., Any]


def register(
    name: str,
    forward: Operator,
    backward: Operator,
    save: Callable[[Any, tuple, Any], None],
    backward_call: Callable[[Any, Tensor], tuple],
) -> Callable[..., Any]:
    """Registers ``torch.ops.mmfocal.<name>`` and ``torch.ops.mmfocal.<name>_backward``.

    Args:
        name: of the operator.
        forward: its first result is differentiable once.
        backward: gives gradients of the first arguments of ``forward``.
        save: from context, arguments and results: keeps what the backward pass needs.
        backward_call: from context and gradient of the first result to arguments of ``backward``.

    Returns:
        A function that calls the operator, past the dispatcher where that makes no difference.
    """

    def differentiate(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        if grad is None:
            return (None,) * len(needed)
        call = backward_call(ctx, grad)
        if runs_eagerly(grad):
            grads = _once(backward.run, *call)
        else:
            grads = getattr(torch.ops.mmfocal, f'{name}_backward')(*call)
        grads = grads if isinstance(grads, tuple) else (grads,)
        grads = (*grads, *[None] * (len(needed) - len(grads)))
        return tuple(g if need else None for g, need in zip(grads, needed, strict=True))

    for each, operator, derivative, setup in (
        (name, forward, differentiate, save),
        (f'{name}_backward', backward, _refuse_to_differentiate, None),
    ):
        each = f'mmfocal::{each}'
        torch.library.define(each, operator.schema)
        torch.library.impl(each, 'default')(operator.run)
        torch.library.register_fake(each)(operator.fake)
        torch.library.register_autograd(each, derivative, setup_context=setup)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = forward.run(*inputs)
            save(ctx, inputs, output)
            return output

        backward = staticmethod(differentiate)

    def call(*inputs: Any) -> Any:
        tensors = [each for each in inputs if isinstance(each, Tensor)]
        run = Eager.apply if runs_eagerly(*tensors) else getattr(torch.ops.mmfocal, name)
        return run(*inputs)

    return call


def runs_eagerly(*tensors: Tensor) -> bool:
    """Whether operators just run: nothing compiles, traces, fakes, transforms or counts them.

    Kernels are then launched without PyTorch's dispatcher in between, whose work in Python takes
    the host as long as several launches. Tensors of the device ``meta`` need its fake results.
    """
    return (
        not torch.compiler.is_compiling()
        and not is_in_torch_dispatch_mode()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
        and all([type(t) in (Tensor, nn.Parameter) and not t.is_meta for t in tensors])
    )


def _once(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function that computes gradients, which cannot be differentiated again."""
    return _Once.apply(function, *arguments) if torch.is_grad_enabled() else function(*arguments)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        _refuse_to_differentiate(ctx, *grads)


def _refuse_to_differentiate(ctx: Any, *grads: Tensor) -> NoReturn:
    """The backward pass of a backward pass."""
    raise RuntimeError(
        'the fused backends of focal attention, and the kernels around them, are differentiable '
        "once; for gradients of gradients take backend='reference'"
    )


def as_numbers(geometry: WindowGeometry) -> tuple[list[int], str]:
    """Settings of a geometry, and its border or :data:`CLOSEST`."""
    if isinstance(geometry, ClosestGeometry):
        return list(geometry.values()), CLOSEST
    *numbers, border = geometry.values()
    return numbers, border


def from_numbers(numbers: Sequence[int], rule: str) -> WindowGeometry:
    """The geometry of which :func:`as_numbers` gave these."""
    return _geometry(tuple(numbers), rule)


@lru_cache
def _geometry(numbers: tuple[int, ...], rule: str) -> WindowGeometry:
    return ClosestGeometry(*numbers) if rule == CLOSEST else FocalGeometry(*numbers, rule)
