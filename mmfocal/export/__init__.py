"""Models for serving: ONNX and torch.export, for images of any size, and how equal they are."""

from .backbone import exportable
from .graphs import BackboneGraph, Graph, write_onnx, write_torch

__all__ = ['BackboneGraph', 'Graph', 'exportable', 'write_onnx', 'write_torch']
