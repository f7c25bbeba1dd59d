"""What is exported: modules with one image tensor as input, of any batch, height and width."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfocal.models import FocalTransformer
from mmfocal.models.focal_transformer import pad_to_multiple
from mmfocal.utils.errors import UserError

from .plain import exportable


class Graph(nn.Module):
    """A model of one input, ``image``, whose batch, height and width are free.

    Attributes:
        output_names: of what ``forward`` returns.
        newest_opset: the newest ONNX opset whose operators ONNX Runtime 1.32 has.
        dtype: of the image.
    """

    output_names: tuple[str, ...]
    newest_opset: ClassVar[int] = 25
    dtype: ClassVar[torch.dtype] = torch.float32

    @staticmethod
    @abstractmethod
    def expected(model: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
        """What the original model computes, for comparison with the outputs."""

    def image(self, batch: int, height: int, width: int) -> Tensor:
        """An image with random structure, to try the graph with."""
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(batch, 3, height // 24 + 2, width // 24 + 2, generator=generator)
        image = F.interpolate(coarse, (height, width), mode='bilinear')
        image += 0.1 * torch.rand(image.shape, generator=generator)
        if self.dtype == torch.uint8:
            return (image * 230).to(torch.uint8)
        return (image - image.mean()) / image.std(correction=0).clamp(min=1e-3)


class BackboneGraph(Graph):
    """A backbone: from the image as a model's preprocessing gives it to maps.

    Input: float32 ``(B, in_channels, H, W)``, normalised, of any size; it need not be padded.
    Outputs: ``stride4``, ``stride8``, ..., float32 ``(B, C_i, ceil(H / s_i), ceil(W / s_i))``.
    """

    def __init__(self, backbone: FocalTransformer) -> None:
        super().__init__()
        self.backbone = exportable(backbone)
        stride = self.backbone.patch_embed.stride
        self.output_names = tuple(f'stride{stride * 2**i}' for i in backbone.out_indices)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.backbone(image)

    @staticmethod
    def expected(model: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
        return model(image)


class ImageGraph(Graph):
    """A model that begins with raw pixels.

    Input: uint8 ``(B, 3, H, W)``, RGB, of any size, not padded, and resized as the model expects.
    """

    dtype: ClassVar[torch.dtype] = torch.uint8

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = exportable(model)
        self.preprocessing = Preprocessing(model.data_preprocessor)

    def features(self, image: Tensor) -> Sequence[Tensor]:
        return self.model.extract_feat(self.preprocessing(image))


class Preprocessing(nn.Module):
    """Normalisation, and padding to a multiple of a size, as a ``data_preprocessor`` has them."""

    def __init__(self, preprocessor: nn.Module) -> None:
        super().__init__()
        # mmcv reads images as BGR. The families name the option differently.
        converts = ('_channel_conversion', 'channel_conversion')
        self.is_bgr = not any(getattr(preprocessor, name, False) for name in converts)
        if getattr(preprocessor, 'test_cfg', None):
            raise UserError(
                'Padding by data_preprocessor.test_cfg cannot be exported. Leave it out: '
                '--cfg-options model.data_preprocessor.test_cfg=None'
            )
        self.divisor = getattr(preprocessor, 'pad_size_divisor', 1)
        self.pad_value = float(getattr(preprocessor, 'pad_value', 0))
        self.normalises = preprocessor._enable_normalize
        if self.normalises:
            self.register_buffer('mean', preprocessor.mean.cpu().view(1, 3, 1, 1).clone())
            self.register_buffer('std', preprocessor.std.cpu().view(1, 3, 1, 1).clone())

    def forward(self, image: Tensor) -> Tensor:
        """uint8 RGB ``(B, 3, H, W)`` to what the backbone takes."""
        x = image.float()
        if self.is_bgr:
            x = x.flip(1)
        if self.normalises:
            x = (x - self.mean) / self.std
        return x if self.divisor == 1 else pad_to_multiple(x, self.divisor, self.pad_value)


class SegmenterGraph(ImageGraph):
    """UPerNet and other segmenters of mmseg that see an image as a whole.

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

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        logits, aligned = self.head(self.features(image)), self.head.align_corners
        return (F.interpolate(logits, image.shape[-2:], mode='bilinear', align_corners=aligned),)

    @staticmethod
    def expected(model: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
        data = model.data_preprocessor(dict(inputs=list(image.flip(1))), False)
        return (model.encode_decode(data['inputs'], [dict(img_shape=tuple(image.shape[-2:]))]),)
