"""How equal an exported file is to the model that it came from."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Batch, height and width of images: squares and not, multiples of 32 and not, primes, single
# windows, less than a patch.
SIZES = (
    (1, 224, 224),
    (1, 256, 320),
    (1, 320, 256),
    (1, 448, 448),
    (1, 480, 640),
    (1, 131, 197),
    (1, 333, 500),
    (1, 65, 33),
    (1, 32, 32),
    (1, 97, 480),
    (1, 401, 89),
    (1, 28, 28),
    (1, 7, 9),
    (1, 1, 1),
    (2, 224, 224),
    (2, 113, 226),
    (2, 64, 31),
    (3, 127, 127),
    (3, 96, 160),
    (3, 57, 61),
)


class Difference(NamedTuple):
    """The largest differences of an output: as it is, and over the largest value there."""

    absolute: float
    relative: float

    @classmethod
    def between(cls, got: np.ndarray, expected: Tensor) -> Difference:
        expected = expected.double().numpy()
        if got.shape != expected.shape:
            raise ValueError(f'expected an output of shape {expected.shape}, got {got.shape}')
        absolute = float(np.abs(got - expected).max(initial=0))
        return cls(absolute, absolute / max(float(np.abs(expected).max(initial=0)), 1e-30))


def onnx_session(path: str | os.PathLike, threads: int | None = None):
    """ONNX Runtime's session of a file, on the CPU.

    Args:
        path: of the file.
        threads: that it uses, by default as many as PyTorch.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    # Threads that wait for each other spin by default, which slows what else runs.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
