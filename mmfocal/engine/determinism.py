"""Deterministic training on GPUs, where PyTorch's own switch is not enough.

``torch.use_deterministic_algorithms`` knows PyTorch's operators only. On CUDA, backward passes of
several operators of mmcv add with ``atomicAdd``, in another order and with other rounding errors
in every run. Here

- RoIAlign, DeformConv2d and ModulatedDeformConv2d get gradients that are computed by deterministic
  operators of PyTorch, on the same device;
- mmcv's other operators on images that add this way end with an error, as PyTorch's do;
- three operators of PyTorch that have no deterministic version on CUDA, and that our models or
  mmseg's metrics use, run on the CPU.

What is on a CPU, and all runs without deterministic algorithms, stay as they are.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor

from mmfocal.utils.errors import UserError

from .bfloat16 import compute_in_float32

# By modules of mmcv.ops, the functions whose CUDA kernels for gradients use atomicAdd (mmcv 2.1.0,
# mmcv/ops/csrc/common/cuda) and that are not replaced here. No config of this repository uses one.
REFUSED = {
    'bezier_align': 'BezierAlignFunction',
    'border_align': 'BorderAlignFunction',
    'carafe': 'CARAFENaiveFunction',
    'chamfer_distance': 'ChamferDistanceFunction',
    'deform_roi_pool': 'DeformRoIPoolFunction',
    'multi_scale_deform_attn': 'MultiScaleDeformableAttnFunction',
    'prroi_pool': 'PrRoIPoolFunction',
    'riroi_align_rotated': 'RiRoIAlignRotatedFunction',
    'roi_align_rotated': 'RoIAlignRotatedFunction',
    'roi_pool': 'RoIPoolFunction',
    'rotated_feature_align': 'RotatedFeatureAlignFunction',
}
# Elements of the intermediate results of RoIAlign's gradient, 256 MiB of float32.
MAX_ELEMENTS = 2**26

_originals: list[tuple[Any, str, Any]] = []
_named: set[str] = set()


def install_determinism() -> None:
    """Replaces operators by deterministic ones, in use under deterministic algorithms on CUDA.

    May be called again. mmcv's operators have to be there.
    """
    if _originals:
        return
    gradients = {
        **{(module, name): _refused for module, name in REFUSED.items()},
        ('roi_align', 'RoIAlignFunction'): _roi_align_backward,
        ('deform_conv', 'DeformConv2dFunction'): _deform_conv_backward,
        ('modulated_deform_conv', 'ModulatedDeformConv2dFunction'): _deform_conv_backward,
    }
    for (module, name), backward in gradients.items():
        operator = getattr(importlib.import_module(f'mmcv.ops.{module}'), name)
        if backward is not _refused:
            # In float16, mmcv rounds positions of samples as well; the gradients are exact.
            compute_in_float32(operator)
        _replace(operator, 'backward', backward, name.removesuffix('Function'))
    _replace(F, 'adaptive_avg_pool2d', _on_cpu, 'adaptive_avg_pool2d', _has_several_bins)
    _replace(F, 'interpolate', _on_cpu, 'bicubic interpolation', _is_bicubic)
    _replace(torch, 'histc', _on_cpu, 'histc', lambda *args, **kwargs: True)


def remove_determinism() -> None:
    """Undoes :func:`install_determinism`."""
    while _originals:
        owner, name, original = _originals.pop()
        setattr(owner, name, original)
    _named.clear()


def _replace(owner: Any, name: str, replacement: Callable, *settings: Any) -> None:
    """Puts ``replacement(original, *settings, *args)`` where something unsafe would run."""
    original = getattr(owner, name)
    _originals.append((owner, name, vars(owner)[name]))  # of a class, a staticmethod

    @functools.wraps(original)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        # Gradients have a context before them.
        arguments = (*args, kwargs.get('input'))
        tensor = next((each for each in arguments if isinstance(each, Tensor)), None)
        if tensor is None or not _is_unsafe(tensor):
            return original(*args, **kwargs)
        return replacement(original, *settings, *args, **kwargs)

    setattr(owner, name, staticmethod(replaced) if isinstance(owner, type) else replaced)


def _is_unsafe(tensor: Tensor) -> bool:
    return torch.are_deterministic_algorithms_enabled() and _is_on_gpu(tensor)


def _is_on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _log_once(operator: str, what: str) -> None:
    if operator not in _named:
        _named.add(operator)
        print_log(f'--deterministic: {operator} {what}.', logger='current')


def _refused(original: Callable, operator: str, *args: Any) -> None:
    raise UserError(
        f"--deterministic: mmcv's {operator} has no deterministic gradient on CUDA. Train without "
        'the option, or on a CPU.'
    )


def _roi_align_backward(original: Callable, operator: str, ctx: Any, grad: Tensor) -> tuple:
    if ctx.pool_mode != 1:
        _refused(original, 'RoIAlign with pool_mode="max"')
    _log_once(operator, 'uses a slower gradient')
    with torch.no_grad():
        gradient = roi_align_gradient(
            grad,
            ctx.saved_tensors[0],
            ctx.input_shape,
            ctx.spatial_scale,
            ctx.sampling_ratio,
            ctx.aligned,
        )
    return (gradient, *[None] * 6)


def _deform_conv_backward(original: Callable, operator: str, ctx: Any, grad: Tensor) -> tuple:
    gradients = original(ctx, grad)
    # Only the one of the input is added by atomicAdd.
    if not ctx.needs_input_grad[0]:
        return gradients
    _log_once(operator, 'uses a slower gradient')
    # Of the modulated one: input, offset, mask, weight, bias.
    inputs, offset, *mask, weight = ctx.saved_tensors[:4]
    with torch.no_grad():
        gradient = deform_conv_gradient(
            grad,
            offset,
            mask[0] if mask else None,
            weight,
            inputs.shape,
            ctx.stride,
            ctx.padding,
            ctx.dilation,
            ctx.groups,
            ctx.deform_groups,
        )
    return (gradient, *gradients[1:])


def roi_align_gradient(
    grad: Tensor,
    rois: Tensor,
    input_shape: Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Gradient of the input of mmcv's RoIAlign that averages, as matrix products.

    A region's samples lie on a grid, and bilinear weights are products of one for the row and one
    for the column. So each output is ``rows @ image @ columns.T``, and the sum of all regions'
    gradients, ``rows.T @ grad @ columns``, is one product over regions and bins.

    Args:
        grad: of the output, ``(R, C, bins, bins)``.
        rois: ``(R, 5)``: number of the image, and two corners ``x, y, x, y``.
        input_shape: ``(B, C, H, W)``.
        spatial_scale: cells of the input in a unit of ``rois``.
        sampling_ratio: samples a bin and axis; 0 for one a cell.
        aligned: whether centres of cells are at halves.

    Returns:
        Float32, or float64 if ``grad`` is.
    """
    grad, rois = _at_least_float32(grad), _at_least_float32(rois)
    height, width = input_shape[2:]
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    start, length = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        length = length.clamp(min=1.0)
    columns = _bin_weights(start[:, 0], length[:, 0], grad.shape[3], sampling_ratio, width)
    rows = _bin_weights(start[:, 1], length[:, 1], grad.shape[2], sampling_ratio, height)

    result = grad.new_zeros(input_shape)
    step = max(1, MAX_ELEMENTS // (grad.shape[1] * grad.shape[2] * width))
    for image in range(input_shape[0]):
        for part in (rois[:, 0] == image).nonzero().flatten().split(step):
            # (R, bins, C, bins) @ (R, 1, bins, W)
            spread = grad[part].transpose(1, 2) @ columns[part].unsqueeze(1)
            # (H, R * bins) @ (R * bins, C * W)
            total = rows[part].flatten(0, 1).T @ spread.flatten(2).flatten(0, 1)
            result[image] += total.view(height, -1, width).transpose(0, 1)
    return result


def _bin_weights(
    start: Tensor, length: Tensor, bins: int, sampling_ratio: int, size: int
) -> Tensor:
    """What each cell of an axis adds to the mean of each bin, ``(R, bins, size)``.

    Args:
        start: of the regions, in cells, ``(R,)``.
        length: of the regions, in cells, ``(R,)``.
        bins: in a region.
        sampling_ratio: samples in a bin; 0 for one a cell.
        size: cells.
    """
    length = length[:, None] / bins
    # Boxes of a model that diverges are not finite; they get no gradient.
    number = length.ceil().nan_to_num(0, 0, 0) if sampling_ratio <= 0 else sampling_ratio
    number = torch.as_tensor(number, device=start.device)
    first = start[:, None] + length * torch.arange(bins, device=start.device)
    cells = torch.arange(size, device=start.device)
    weights = start.new_zeros(len(start), bins, size)
    for sample in range(int(number.max()) if len(start) else 0):
        at = first + (sample + 0.5) * length / number
        # mmcv moves samples within a cell of the border onto it and leaves out all others.
        counts = (sample < number) & (at >= -1) & (at <= size)
        distance = (at.clamp(0, size - 1)[..., None] - cells).abs()
        weights += (1 - distance).clamp(min=0).where(counts[..., None], 0)
    return weights / number.clamp(min=1)[..., None]


def deform_conv_gradient(
    grad: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    input_shape: Sequence[int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    deform_groups: int,
) -> Tensor:
    """Gradient of the input of mmcv's deformable convolutions, added by ``index_add_``.

    Args:
        grad: of the output, ``(B, C_out, h, w)``.
        offset: in pixels, ``(B, deform_groups * kernel * 2, h, w)``, y before x.
        mask: ``(B, deform_groups * kernel, h, w)``, None for all ones.
        weight: ``(C_out, C / groups, kernel, kernel)``.
        input_shape: ``(B, C, H, W)``.
        stride: for y and x, as ``padding`` and ``dilation``.
        padding: pixels.
        dilation: pixels.
        groups: of the convolution.
        deform_groups: groups of input channels, each with offsets of its own.

    Returns:
        Float32, or float64 if ``grad`` is.
    """
    grad, offset, weight = map(_at_least_float32, (grad, offset, weight))
    _, channels, height, width = input_shape
    kernel, outputs = weight.shape[2:], grad.shape[2:]
    taps = kernel.numel()
    own = channels // deform_groups

    # Where taps are without offsets, (kernel, h) and (kernel, w).
    row, column = torch.cartesian_prod(
        *(torch.arange(size, device=grad.device) for size in kernel)
    ).T
    down, right = (torch.arange(size, device=grad.device) for size in outputs)
    y = (row * dilation[0])[:, None] + down * stride[0] - padding[0]
    x = (column * dilation[1])[:, None] + right * stride[1] - padding[1]
    filters = weight.view(groups, weight.shape[0] // groups, -1).transpose(1, 2)
    first = torch.arange(deform_groups, device=grad.device)[:, None, None, None] * height * width

    result = grad.new_zeros(input_shape)
    for image, each in enumerate(grad):  # one at a time, for memory
        values = filters @ each.reshape(groups, -1, outputs.numel())
        values = values.view(deform_groups, own, taps, *outputs)
        if mask is not None:
            values = values * _first(mask[image], (deform_groups, 1, taps, *outputs))
        values = values.permute(0, 2, 3, 4, 1).reshape(-1, own)
        moved = _first(offset[image], (deform_groups, taps, 2, *outputs))
        at_y, at_x = moved[:, :, 0] + y[:, :, None], moved[:, :, 1] + x[:, None, :]
        total = grad.new_zeros(deform_groups * height * width, own)
        for down, right in product((0, 1), repeat=2):  # the four cells around
            row, column = at_y.floor() + down, at_x.floor() + right
            share = (1 - (at_y - row).abs()) * (1 - (at_x - column).abs())
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = row.long().clamp(0, height - 1) * width
            index = index + column.long().clamp(0, width - 1) + first
            total.index_add_(0, index.flatten(), values * share.where(inside, 0).view(-1, 1))
        total = total.view(deform_groups, height, width, own).permute(0, 3, 1, 2)
        result[image] = total.reshape(input_shape[1:])
    return result


def _first(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """As mmcv reads offsets and masks: DyHead gives more of them than there are outputs."""
    return values.flatten()[: math.prod(shape)].view(shape)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


# --- Operators of PyTorch ---------------------------------------------------------------------


def _on_cpu(
    original: Callable,
    operator: str,
    is_unsafe: Callable,
    input: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    if not is_unsafe(input, *args, **kwargs):
        return original(input, *args, **kwargs)
    _log_once(operator, 'runs on the CPU')
    return original(_at_least_float32(input.cpu()), *args, **kwargs).to(input)


def _has_several_bins(input: Tensor, output_size: Any) -> bool:
    """The pools of UPerNet, and those of semantic features in HTC.

    One bin is a mean, for which PyTorch has a deterministic gradient.
    """
    return _needs_gradient(input) and output_size not in (1, (1, 1), [1, 1])


def _is_bicubic(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = 'nearest',
    *args: Any,
    **kwargs: Any,
) -> bool:
    """Position embeddings of images of another size. PyTorch itself has deterministic bilinear."""
    return _needs_gradient(input) and mode == 'bicubic'


def _needs_gradient(tensor: Tensor) -> bool:
    return torch.is_grad_enabled() and tensor.requires_grad
