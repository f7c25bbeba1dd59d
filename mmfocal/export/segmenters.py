"""Segmenters of mmseg as graphs: raw pixels in, logits out."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmfocal.utils.errors import UserError

from .detectors import ImageGraph


class SegmenterGraph(ImageGraph):
    """UPerNet, and others that see an image as a whole.

    Output: ``logits``, float32 ``(B, classes, H, W)``, whose largest is the class of a pixel.
    """

    output_names = ('logits',)

    def __init__(self, model: nn.Module) -> None:
        if model.test_cfg.mode != 'whole':
            raise UserError(
                f'This segmenter is tested with mode={model.test_cfg.mode!r}, in windows that are '
                'no part of a graph. Export it for whole images: '
                '--cfg-options model.test_cfg.mode=whole'
            )
        super().__init__(model)
        self.head = self.model.decode_head
        self.aligned = self.head.align_corners

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        logits = self.head(self.features(image))
        size = image.shape[-2:]
        return (F.interpolate(logits, size, mode='bilinear', align_corners=self.aligned),)

    @staticmethod
    def expected(model: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
        data = model.data_preprocessor(dict(inputs=list(image.flip(1))), False)
        return (model.encode_decode(data['inputs'], [dict(img_shape=tuple(image.shape[-2:]))]),)
