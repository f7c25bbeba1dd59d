"""Linear layers of an ONNX file in 8 bits."""

from __future__ import annotations

import logging
import os


def write_int8(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Writes an ONNX file whose products with weights are of 8-bit integers.

    Weights are rounded when the file is made, with a scale for each column, and what they are
    multiplied with when it is run, with a scale found then ("dynamic"): no data is needed to
    calibrate. Convolutions, and the products of attention, stay in float32.

    Args:
        source: ONNX file in float32.
        target: file to be written.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it recommends a preparation that does not know all sizes
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=['MatMul', 'Gemm'],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    finally:
        logger.setLevel(level)
