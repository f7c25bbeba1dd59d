"""How many parameters a model has and how many multiplications an image costs it.

Models are counted without memory for their weights and without computing anything, on PyTorch's
``meta`` device, in seconds. Published tables of detectors call a multiplication with its addition
one FLOP, and so does this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

__all__ = [
    'build_without_weights',
    'call_detector_parts',
    'count_flops',
    'count_parameters',
    'detector_flops',
    'segmenter_flops',
]


def build_without_weights(config: ConfigDict, scope: str = 'mmdet') -> nn.Module:
    """Builds the model of a config on the meta device, for inference.

    Args:
        config: of the model.
        scope: registry that its types belong to.
    """
    from mmengine.registry import MODELS, DefaultScope

    with DefaultScope.overwrite_default_scope(scope), torch.device('meta'):
        return MODELS.build(config).eval()


def count_parameters(model: nn.Module) -> int:
    """Number of weights, trainable or not; buffers such as running means are left out."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(function: Callable, *args: Any) -> tuple[int, Any]:
    """Multiplications with addition in the products of a call.

    Counted are convolutions, deformable ones included, linear layers, products of matrices and
    focal attention on any backend, whose keys outside of the map are not counted. Sums, norms,
    activations and interpolation are left out, as in all published tables.

    Args:
        function: what is called with ``args``, whose tensors are on the meta device or on a real
            one.

    Returns:
        The number, and what the call returns.
    """
    counter = FlopCounterMode(display=False)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # The counter does not see into PyTorch's fused multi-head attention.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with counter, torch.no_grad(), ordinary_convolutions():
            result = function(*args)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    # PyTorch counts the addition as well.
    return counter.get_total_flops() // 2, result


@contextmanager
def ordinary_convolutions() -> Iterator[None]:
    """Lets deformable convolutions sample on their grid: the same products, and visible ones."""
    from mmcv.ops import DeformConv2d, ModulatedDeformConv2d

    def convolve(self: nn.Module, x: Tensor, *_: Tensor) -> Tensor:
        bias = getattr(self, 'bias', None)
        settings = self.stride, self.padding, self.dilation, self.groups
        return F.conv2d(x, self.weight, bias, *settings)

    originals = {kind: kind.forward for kind in (DeformConv2d, ModulatedDeformConv2d)}
    for kind in originals:
        kind.forward = convolve
    try:
        yield
    finally:
        for kind, forward in originals.items():
            kind.forward = forward


def detector_flops(model: nn.Module, height: int, width: int) -> dict[str, int]:
    """Multiplications with addition of a detector of mmdet, for one image, part by part.

    Regions are counted as published tables do: as many as the proposal stage may hand on, and as
    many masks as detections are kept; every stage of a cascade sees all of them.

    Args:
        model: on the meta device, as :func:`build_without_weights` makes it.
        height: of the image, in pixels, padded to a multiple of 32.
        width: in the same unit.

    Returns:
        Numbers by part, such as ``backbone``, ``neck``, ``rpn_head``, ``bbox_head``,
        ``semantic_head`` and ``mask_head``.
    """
    flops: dict[str, int] = {}

    def count(part: str, function: Callable, *args: Any) -> Any:
        number, result = count_flops(function, *args)
        flops[part] = flops.get(part, 0) + number
        return result

    image = torch.empty(1, 3, height, width, device='meta')
    roi_head = getattr(model, 'roi_head', None)
    rpn = model.test_cfg.get('rpn') if roi_head else None
    regions = rpn.max_per_img if rpn else 0
    masks = model.test_cfg.rcnn.max_per_img if getattr(roi_head, 'with_mask', False) else 0
    call_detector_parts(model, image, regions, masks, count)
    return flops


def call_detector_parts(
    model: nn.Module,
    images: Tensor,
    regions: int,
    masks: int,
    call: Callable[..., Any],
) -> None:
    """Calls what a detector of mmdet computes with, on features of regions that need not exist.

    What depends on contents, such as the choice of regions, is left out, so that this works with
    tensors that have none.

    Args:
        model: the detector.
        images: ``(B, 3, H, W)``.
        regions: of all images together, that a stage with regions sees. Learned proposals, of
            Sparse R-CNN, are as many as the model has for each image instead.
        masks: regions for which masks are predicted.
        call: ``(part, function, *args)``; calls the function and returns what that returns.
    """

    def features_of(number: int, channels: int, size: Sequence[int]) -> Tensor:
        return images.new_empty(number, channels, *size)

    features = call('backbone', model.backbone, images)
    if getattr(model, 'with_neck', False):
        features = call('neck', model.neck, features)
    if not getattr(model, 'with_roi_head', False):
        call('bbox_head', model.bbox_head, features)
        return

    roi_head, batch = model.roi_head, len(images)
    if hasattr(model.rpn_head, 'num_proposals'):
        regions, width = model.rpn_head.num_proposals, model.rpn_head.proposal_feature_channel
        for head in roi_head.bbox_head:
            seen = features_of(batch * regions, head.in_channels, (7, 7))
            call('bbox_head', head, seen, images.new_empty(batch, regions, width))
        return

    call('rpn_head', model.rpn_head, features)
    if getattr(roi_head, 'with_semantic', False):
        call('semantic_head', roi_head.semantic_head, features)
    for head in as_list(roi_head.bbox_head):
        call('bbox_head', head, features_of(regions, head.in_channels, head.roi_feat_size))
    if roi_head.with_mask:
        heads = as_list(roi_head.mask_head)
        if len(heads) < getattr(roi_head, 'num_stages', 1):
            heads = heads * roi_head.num_stages
        passed_on = ()
        size = as_list(roi_head.mask_roi_extractor)[0].roi_layers[0].output_size
        for head in heads:
            seen = features_of(masks, head.in_channels, size)
            result = call('mask_head', head, seen, *passed_on)
            if getattr(roi_head, 'mask_info_flow', False):
                passed_on = (result[1],)


def segmenter_flops(model: nn.Module, height: int, width: int) -> dict[str, int]:
    """Multiplications with addition of a segmenter of mmseg, for one image, part by part.

    Auxiliary heads, which only training uses, are left out.

    Args:
        model: on the meta device, as :func:`build_without_weights` makes it.
        height: of the image, in pixels.
        width: in the same unit.

    Returns:
        Numbers of ``backbone``, ``decode_head`` and, if there is one, ``neck``.
    """
    image = torch.empty(1, 3, height, width, device='meta')
    flops = {}
    flops['backbone'], features = count_flops(model.backbone, image)
    if model.with_neck:
        flops['neck'], features = count_flops(model.neck, features)
    flops['decode_head'], _ = count_flops(model.decode_head, features)
    return flops


def as_list(modules: nn.Module) -> list[nn.Module]:
    """Stages of a cascade, or the only one."""
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]
