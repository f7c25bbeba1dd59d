"""Our operators for counters that trace, such as those of fvcore and :mod:`mmengine.analysis`.

:class:`torch.utils.flop_counter.FlopCounterMode` knows them by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from . import attention, tokens  # noqa: F401  register their formulas

__all__ = ['FLOP_HANDLES']


def _count(name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Multiplications with addition of a call of an operator, from values of a traced graph."""
    formula = flop_registry[getattr(torch.ops.mmfocal, name)]
    # These counters take a multiplication with its addition for one FLOP, and PyTorch for two.
    return formula(*map(_contents, inputs), out_val=None) // 2


def _contents(value: Any) -> Any:
    """The shape of a tensor, and everything else as it is."""
    if value.node().kind() == 'prim::ListConstruct':
        return [_contents(each) for each in value.node().inputs()]
    is_tensor = isinstance(value.type(), torch.TensorType)
    return value.type().sizes() if is_tensor else value.toIValue()


# By operator, for ``set_op_handle(**FLOP_HANDLES)`` of ``fvcore.nn.FlopCountAnalysis`` and of
# ``mmengine.analysis.FlopAnalyzer``.
FLOP_HANDLES: dict[str, Callable[[Sequence[Any], Sequence[Any]], int]] = {
    f'mmfocal::{name}': partial(_count, name) for name in ('focal_attention', 'focal_tokens')
}
