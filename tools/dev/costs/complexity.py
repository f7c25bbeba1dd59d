"""How many parameters a model has and how many multiplications an image costs it.

Models are counted without memory for their weights and without computing anything, on PyTorch's
``meta`` device, in seconds. Published tables of detectors call a multiplication with its addition
one FLOP, and so does this module.
"""

from __future__ import annotations

import copy
import sys
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
        model = MODELS.build(copy.deepcopy(config)).eval()  # DETR writes into its config
    return model.to('meta')  # what mmdet makes by torch.Tensor(), too


def count_parameters(model: nn.Module) -> int:
    """Number of weights, trainable or not; buffers such as running means are left out."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(function: Callable, *args: Any) -> tuple[int, Any]:
    """Multiplications with addition in the products of a call.

    Counted are convolutions and attention, deformable ones included, linear layers, products of
    matrices and focal attention on any backend, whose keys outside of the map are not counted.
    Sums, norms, activations and interpolation, also that of sampling, are left out, as in all
    published tables.

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
        with counter, torch.no_grad(), ordinary_products():
            result = function(*args)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    # PyTorch counts the addition as well.
    return counter.get_total_flops() // 2, result


@contextmanager
def ordinary_products() -> Iterator[None]:
    """Lets operators that sample where data says do their products where it does not matter.

    Deformable convolutions sample on their grid. Deformable attention multiplies its weights with
    as many samples as it takes, and what surrounds it in mmdet's Deformable DETR, DINO and
    Mask2Former gets along without sizes of maps as tensors, whose values the meta device lacks.
    The products are the same, and visible ones.
    """
    from mmcv.ops import DeformConv2d, ModulatedDeformConv2d, MultiScaleDeformableAttention

    replaced = {
        (DeformConv2d, 'forward'): _convolve,
        (ModulatedDeformConv2d, 'forward'): _convolve,
        (MultiScaleDeformableAttention, 'forward'): _attend,
    }
    if 'mmdet' in sys.modules:
        from mmdet.models.detectors import DeformableDETR
        from mmdet.models.layers import DeformableDetrTransformerEncoder, MSDeformAttnPixelDecoder

        replaced |= {
            (DeformableDETR, 'gen_encoder_output_proposals'): _propose,
            (DeformableDetrTransformerEncoder, 'forward'): _encode,
            (MSDeformAttnPixelDecoder, 'forward'): _decode_pixels,
        }
    originals = {(kind, name): getattr(kind, name) for kind, name in replaced}
    for (kind, name), function in replaced.items():
        setattr(kind, name, function)
    try:
        yield
    finally:
        for (kind, name), function in originals.items():
            setattr(kind, name, function)


def _convolve(self: nn.Module, x: Tensor, *_: Tensor) -> Tensor:
    bias = getattr(self, 'bias', None)
    settings = self.stride, self.padding, self.dilation, self.groups
    return F.conv2d(x, self.weight, bias, *settings)


def _attend(
    self: nn.Module,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    identity: Tensor | None = None,
    query_pos: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """Of any order of dimensions, which changes no number of products."""
    value = query if value is None else value
    identity = query if identity is None else identity
    query = query if query_pos is None else query + query_pos
    self.sampling_offsets(query)
    weights = self.attention_weights(query)
    weights = weights.reshape(query.shape[0] * query.shape[1] * self.num_heads, 1, -1)
    channels = self.value_proj(value).shape[-1]
    samples = weights.new_empty(len(weights), weights.shape[-1], channels // self.num_heads)
    found = torch.bmm(weights, samples).reshape(*query.shape[:2], channels)
    return self.output_proj(found) + identity


def _encode(self: nn.Module, query: Tensor, query_pos: Tensor, **_: Any) -> Tensor:
    for layer in self.layers:
        query = layer(query=query, query_pos=query_pos, key_padding_mask=None)
    return query


def _propose(self: nn.Module, memory: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    memory = self.memory_trans_norm(self.memory_trans_fc(memory))
    return memory, memory.new_empty(*memory.shape[:2], 4)


def _decode_pixels(self: nn.Module, feats: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    levels = self.num_encoder_levels
    maps = [conv(x) for conv, x in zip(self.input_convs, reversed(feats[-levels:]), strict=True)]
    tokens = torch.cat([each.flatten(2) for each in maps], dim=2).transpose(1, 2)
    _encode(self.encoder, tokens, tokens)
    finer = zip(feats[:-levels], self.lateral_convs, self.output_convs, strict=True)
    for x, lateral, output in reversed(list(finer)):
        maps.append(output(lateral(x)))
    return self.mask_feature(maps[-1]), maps[: self.num_outs]


def detector_flops(model: nn.Module, height: int, width: int) -> dict[str, int]:
    """Multiplications with addition of a detector of mmdet, for one image, part by part.

    Regions are counted as published tables do: as many as the proposal stage may hand on, and as
    many masks as detections are kept; every stage of a cascade sees all of them.

    Args:
        model: on the meta device, as :func:`build_without_weights` makes it.
        height: of the image, in pixels, padded to a multiple of 32.
        width: in the same unit.

    Returns:
        Numbers by part, such as ``backbone``, ``neck``, ``rpn_head``, ``transformer``,
        ``bbox_head``, ``semantic_head``, ``mask_head`` and ``panoptic_head``.
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
    if getattr(roi_head, 'with_mask', False):
        masks = model.test_cfg.rcnn.max_per_img
    else:
        masks = (model.test_cfg or {}).get('max_per_img', 0)
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
        _call_single_stage(model, features, _samples(images), masks, call)
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
        passed_on = ()
        size = as_list(roi_head.mask_roi_extractor)[0].roi_layers[0].output_size
        for head in as_list(roi_head.mask_head):
            seen = features_of(masks, head.in_channels, size)
            result = call('mask_head', head, seen, *passed_on)
            if getattr(roi_head, 'mask_info_flow', False):
                passed_on = (result[1],)


def _samples(images: Tensor) -> list[Any]:
    """What mmdet's models want to know of images that fill their batch."""
    from mmdet.structures import DetDataSample

    size = tuple(images.shape[-2:])
    meta = dict(img_shape=size, batch_input_shape=size)
    return [DetDataSample(metainfo=meta) for _ in images]


def _call_single_stage(
    model: nn.Module,
    features: Sequence[Tensor],
    samples: list[Any],
    masks: int,
    call: Callable[..., Any],
) -> None:
    """Calls what detectors without regions have after backbone and neck."""
    if hasattr(model, 'panoptic_head'):  # Mask2Former's and MaskFormer's
        call('panoptic_head', model.panoptic_head, features, samples)
    elif hasattr(model, 'forward_transformer'):  # DETR and its successors
        inputs = call('transformer', model.forward_transformer, features, samples)
        call('bbox_head', lambda: model.bbox_head(**inputs))
    else:
        outputs = call('bbox_head', model.bbox_head, features)
        if hasattr(model.bbox_head, 'mask_head'):  # RTMDet-Ins; its kernels make masks
            *_, kernels, mask_features = outputs
            call(
                'mask_head',
                model.bbox_head._mask_predict_by_feat_single,
                mask_features[0],
                mask_features.new_empty(masks, kernels[0].shape[1]),
                mask_features.new_empty(masks, 4),
            )


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
    meta = dict(img_shape=(height, width))
    flops = {}
    flops['backbone'], features = count_flops(model.backbone, image)
    if model.with_neck:
        flops['neck'], features = count_flops(model.neck, features)
    # Mask2Former's scores of pixels are products, which prediction makes.
    flops['decode_head'], _ = count_flops(
        model.decode_head.predict, features, [meta], model.test_cfg
    )
    return flops


def as_list(modules: nn.Module) -> list[nn.Module]:
    """Stages of a cascade, or the only one."""
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]
