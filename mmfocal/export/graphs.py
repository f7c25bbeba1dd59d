"""What is exported: a module with one image tensor as input, and the files that it becomes."""

from __future__ import annotations

import logging
import os
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmfocal.errors import UserError
from mmfocal.models import FocalTransformer

from .backbone import exportable
from .operators import translations

# What PyTorch's exporter writes and ONNX Runtime reads; GELU is an operator from 20 on.
OPSETS = range(20, 26)
NEWEST_OPSET = OPSETS[-1]
# Traced sizes decide nothing. These have several windows in every stage, since PyTorch takes a
# side of one for a constant.
TRACED_SHAPE = (2, 3, 512, 640)
DYNAMIC = ('batch', None, 'height', 'width')


class Graph(nn.Module):
    """A model of one input, ``image``, whose batch, height and width are free.

    Attributes:
        output_names: of what ``forward`` returns.
        dtype: of the image.
    """

    output_names: tuple[str, ...]
    dtype: ClassVar[torch.dtype] = torch.float32

    @abstractmethod
    def forward(self, image: Tensor) -> tuple[Tensor, ...]: ...

    def image(self, batch: int, height: int, width: int, seed: int = 0) -> Tensor:
        """An image to try it with, without meaning but not of noise alone."""
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(batch, 3, height // 24 + 2, width // 24 + 2, generator=generator)
        image = nn.functional.interpolate(coarse, (height, width), mode='bilinear')
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


def write_onnx(graph: Graph, path: str | os.PathLike, opset: int = NEWEST_OPSET) -> None:
    """Writes a graph as ONNX, with its weights in the same file.

    Args:
        graph: what is exported.
        path: of the file.
        opset: one of ``OPSETS``.

    Raises:
        UserError: the opset is none of them, or a package is missing.
    """
    if opset not in OPSETS:
        raise UserError(
            f'The opset must be one of {OPSETS[0]} to {OPSETS[-1]}, got {opset}: PyTorch and ONNX '
            'Runtime know these, and GELU is an operator from 20 on.'
        )
    require_packages()
    dynamic = {axis: name for axis, name in enumerate(DYNAMIC) if name}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            (graph.image(*_traced_size()),),
            dynamo=True,
            opset_version=opset,
            input_names=['image'],
            output_names=list(graph.output_names),
            dynamic_shapes=(dynamic,),
            custom_translation_table=translations(),
            verbose=False,
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    program.save(path)


def write_torch(graph: Graph, path: str | os.PathLike) -> None:
    """Writes a graph as a program of :mod:`torch.export`, for :func:`torch.export.load`.

    It refuses images whose map has a single window along a side in some stage.
    """
    dynamic = {axis: torch.export.Dim.DYNAMIC for axis, name in enumerate(DYNAMIC) if name}
    with _quiet(), torch.no_grad():
        program = torch.export.export(
            graph, (graph.image(*_traced_size()),), dynamic_shapes=(dynamic,), strict=False
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)


def require_packages() -> None:
    """Raises a UserError where a package is missing that ONNX files need."""
    from importlib.util import find_spec

    from mmfocal.compat import pip

    missing = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if find_spec(name) is None]
    if missing:
        raise UserError(
            f'{", ".join(missing)}: not installed, and needed for ONNX. Run: '
            f'{pip("install", *missing)}'
        )


def _traced_size() -> tuple[int, int, int]:
    batch, _, height, width = TRACED_SHAPE
    return batch, height, width


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself, and of packages that it does not need."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
