"""Ops that are called past PyTorch's dispatcher, and differentiated once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def runs_eagerly(*tensors: Tensor) -> bool:
    """Whether operators just run: nothing compiles, traces, fakes, transforms or counts them.

    Kernels are then launched without PyTorch's dispatcher in between, whose work in Python takes
    the host as long as several launches.
    """
    return (
        not torch.compiler.is_compiling()
        and not is_in_torch_dispatch_mode()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
        and all([type(each) in (Tensor, nn.Parameter) for each in tensors])
    )


def once(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls what computes gradients; who differentiates these is told that there are no more."""
    return _Once.apply(function, *arguments) if torch.is_grad_enabled() else function(*arguments)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        refuse_to_differentiate(ctx, *grads)


def refuse_to_differentiate(ctx: Any, *grads: Tensor) -> NoReturn:
    """The backward pass of what computes gradients."""
    raise RuntimeError(
        'the fused backends of focal attention, and the kernels around them, are differentiable '
        "once; for gradients of gradients take backend='reference'"
    )
