"""Whether an op may be called past PyTorch's dispatcher."""

from __future__ import annotations

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
        and all([type(each) in (Tensor, nn.Parameter) for each in tensors])
    )
