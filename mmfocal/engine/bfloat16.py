"""What detectors of mmdet need to train in bfloat16, which mmdet and mmcv were not written for.

mmcv's operators only know float16 and float32. And mmdet takes the number format of a head's
outputs for anchors and regions, too: with the 8 bits of bfloat16, coordinates of an image 1333
pixels wide would be multiples of 8. So both compute in float32; backbones, necks, and the layers
of heads do not.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd import Function


def prepare_bfloat16(model: nn.Module) -> None:
    """Lets outputs of heads, regions, and mmcv's operators be float32 under autocast.

    Args:
        model: a detector of mmdet. It computes as before where nothing is bfloat16, as in
            evaluation.
    """
    from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor

    for module in model.modules():
        if isinstance(module, BaseRoIExtractor):
            module.register_forward_pre_hook(_float32_inputs, with_kwargs=True)
        elif callable(getattr(module, 'loss', None)):
            module.register_forward_hook(_float32_outputs)
    _install_float32_operators()


def _float32_inputs(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return _float32(args), _float32(kwargs)


def _float32_outputs(module: nn.Module, args: tuple, outputs: Any) -> Any:
    return _float32(outputs)


def _float32(value: Any) -> Any:
    """The same with float32 in the place of bfloat16, in lists, tuples and dicts too."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype == torch.bfloat16 else value
    if isinstance(value, dict):
        return {key: _float32(each) for key, each in value.items()}
    return type(value)(map(_float32, value)) if type(value) in (list, tuple) else value


def _install_float32_operators() -> None:
    """Lets all of mmcv's autograd functions compute in float32 under autocast."""
    import mmcv.ops

    prefix = f'{mmcv.ops.__name__}.'
    modules = [module for name, module in sys.modules.items() if name.startswith(prefix)]
    for operator in [each for module in modules for each in vars(module).values()]:
        is_operator = isinstance(operator, type) and issubclass(operator, Function)
        if is_operator and operator.__module__.startswith(prefix):
            compute_in_float32(operator)


def compute_in_float32(operator: type[Function]) -> None:
    """Lets an autograd function cast what it gets to float32, where autocast is on."""
    if not hasattr(operator, 'mmfocal_float32'):
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
        forward = custom_fwd(operator.forward, device_type=device, cast_inputs=torch.float32)
        operator.forward = staticmethod(forward)
        operator.backward = staticmethod(custom_bwd(operator.backward, device_type=device))
        operator.mmfocal_float32 = True
