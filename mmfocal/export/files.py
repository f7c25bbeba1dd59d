"""The files that a graph becomes: ONNX in float32 or 8 bits, and programs of torch.export."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.fx.experimental._config

from mmfocal.utils.compat import pip
from mmfocal.utils.errors import UserError

from .graphs import Graph
from .operators import translations

OLDEST_OPSET = 20  # GELU is an operator from there on
DEFAULT_OPSET = 23  # ONNX Runtime reads it from 1.23 on
# Traced sizes decide nothing. These have several windows in every stage, since PyTorch takes a
# side of one for a constant.
TRACED_SIZE = dict(batch=2, height=512, width=640)
AXES = {0: 'batch', 2: 'height', 3: 'width'}


def write_onnx(graph: Graph, path: str | os.PathLike, opset: int | None = None) -> None:
    """Writes a graph as ONNX, with its weights in the same file.

    Args:
        graph: what is exported.
        path: of the file.
        opset: from ``OLDEST_OPSET`` to the graph's newest; by default ``DEFAULT_OPSET``, or the
            graph's newest if that is older.

    Raises:
        UserError: the opset is none of them, or a package is missing.
    """
    opset = min(DEFAULT_OPSET, graph.newest_opset) if opset is None else opset
    if not OLDEST_OPSET <= opset <= graph.newest_opset:
        raise UserError(
            f'The opset must be one of {OLDEST_OPSET} to {graph.newest_opset}, got {opset}: ONNX '
            'Runtime has the operators of these, and GELU is an operator from 20 on.'
        )
    require_packages()
    with _tracing():
        program = torch.onnx.export(
            graph,
            (graph.image(**TRACED_SIZE),),
            dynamo=True,
            opset_version=opset,
            input_names=['image'],
            output_names=list(graph.output_names),
            dynamic_shapes=(AXES,),
            custom_translation_table=translations(),
            verbose=False,
        )
    for output in program.model.graph.outputs:
        for axis, size in enumerate(output.shape):
            if re.fullmatch(r'u\d+', str(size)):  # a name that PyTorch has made up
                output.shape[axis] = 'detections'
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    program.save(path)


def write_torch(graph: Graph, path: str | os.PathLike) -> None:
    """Writes a graph as a program of :mod:`torch.export`.

    To be run by ``torch.export.load(path).module(check_guards=False)``. The guards that this
    leaves out are about strides of the traced image, which decide no result but would refuse
    single windows and sizes that are multiples of them.
    """
    dynamic = dict.fromkeys(AXES, torch.export.Dim.DYNAMIC)
    with _tracing():
        program = torch.export.export(
            graph, (graph.image(**TRACED_SIZE),), dynamic_shapes=(dynamic,), strict=False
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)


def write_int8(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Writes an ONNX file whose products with weights are of 8-bit integers.

    Weights are rounded when the file is made, with a scale for each column, and what they are
    multiplied with when it is run, with a scale found then ("dynamic"): no data is needed to
    calibrate. Convolutions and the products of attention stay in float32.

    Args:
        source: ONNX file in float32.
        target: file to be written.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet(''):  # it recommends a preparation that cannot handle free sizes
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=['MatMul', 'Gemm'],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )


def require_packages() -> None:
    """Raises a UserError where a package is missing that ONNX files need."""
    missing = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if find_spec(name) is None]
    if missing:
        raise UserError(
            f'{", ".join(missing)}: not installed, and needed for ONNX. Run: '
            f'{pip("install", *missing)}'
        )


@contextmanager
def _tracing() -> Iterator[None]:
    """Treats sizes of one like all others, and silences the exporter."""
    with (
        _quiet('torch.onnx', 'onnxscript', 'onnx_ir'),
        warnings.catch_warnings(),
        torch.fx.experimental._config.patch(backed_size_oblivious=True),
        torch.no_grad(),
    ):
        warnings.simplefilter('ignore')
        yield


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keeps loggers to errors; '' is the root."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
