"""What is exported: a module with one image tensor as input, and the files that it becomes."""

from __future__ import annotations

import logging
import os
import re
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.fx.experimental._config
from torch import Tensor, nn

from mmfocal.models import FocalTransformer
from mmfocal.utils.errors import UserError

from .operators import translations
from .plain import exportable

# What PyTorch's exporter writes and ONNX Runtime 1.32 reads; GELU is an operator from 20 on. The
# default is read by ONNX Runtime 1.23, the last for Python 3.10.
OPSETS = range(20, 26)
DEFAULT_OPSET = 23
# Traced sizes decide nothing. These have several windows in every stage, since PyTorch takes a
# side of one for a constant.
TRACED_SHAPE = (2, 3, 512, 640)
DYNAMIC = ('batch', None, 'height', 'width')


class Graph(nn.Module):
    """A model of one input, ``image``, whose batch, height and width are free.

    Attributes:
        output_names: of what ``forward`` returns.
        dtype: of the image.
        newest_opset: the newest of ``OPSETS`` whose operators ONNX Runtime has.
    """

    output_names: tuple[str, ...]
    newest_opset: ClassVar[int] = OPSETS[-1]
    dtype: ClassVar[torch.dtype] = torch.float32

    @abstractmethod
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs, in the order of their names."""

    @staticmethod
    @abstractmethod
    def expected(model: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
        """What the model itself, from which a graph was made, says of an image."""

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

    @staticmethod
    def expected(model: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
        return model(image)


def write_onnx(graph: Graph, path: str | os.PathLike, opset: int | None = None) -> None:
    """Writes a graph as ONNX, with its weights in the same file.

    Args:
        graph: what is exported.
        path: of the file.
        opset: from ``OPSETS[0]`` to the graph's newest; ``DEFAULT_OPSET`` or the graph's newest by
            default.

    Raises:
        UserError: the opset is none of them, or a package is missing.
    """
    opset = min(DEFAULT_OPSET, graph.newest_opset) if opset is None else opset
    if not OPSETS[0] <= opset <= graph.newest_opset:
        raise UserError(
            f'The opset must be one of {OPSETS[0]} to {graph.newest_opset}, got {opset}: ONNX '
            'Runtime has the operators of these, and GELU is an operator from 20 on.'
        )
    require_packages()
    dynamic = {axis: name for axis, name in enumerate(DYNAMIC) if name}
    with _tracing():
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
    _name_sizes(program.model.graph)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    program.save(path)


def write_torch(graph: Graph, path: str | os.PathLike) -> None:
    """Writes a graph as a program of :mod:`torch.export`.

    To be run by ``torch.export.load(path).module(check_guards=False)``. The guards that this
    leaves out are about strides of the traced image, by which no result is decided, and would
    refuse single windows and sizes that are multiples of them.
    """
    dynamic = {axis: torch.export.Dim.DYNAMIC for axis, name in enumerate(DYNAMIC) if name}
    with _tracing():
        program = torch.export.export(
            graph, (graph.image(*_traced_size()),), dynamic_shapes=(dynamic,), strict=False
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)


def _name_sizes(graph: Any) -> None:
    """Calls the number of detections by that name, instead of one that PyTorch has made up."""
    for output in graph.outputs:
        for axis, size in enumerate(output.shape):
            if re.fullmatch(r'u\d+', str(size)):
                output.shape[axis] = 'detections'


def require_packages() -> None:
    """Raises a UserError where a package is missing that ONNX files need."""
    from importlib.util import find_spec

    from mmfocal.utils.compat import pip

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
def _tracing() -> Iterator[None]:
    """Sizes of one are like all others, and the exporter is silent about itself."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            torch.fx.experimental._config.patch(backed_size_oblivious=True),
            torch.no_grad(),
        ):
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
