"""Models for serving: ONNX and torch.export, for images of any size, and their parity."""

from .building import graph_of
from .detectors import SingleStageGraph, TwoStageGraph
from .files import write_int8, write_onnx, write_torch
from .graphs import BackboneGraph, Graph, SegmenterGraph
from .masks import paste_masks
from .plain import exportable

__all__ = [
    'BackboneGraph',
    'Graph',
    'SegmenterGraph',
    'SingleStageGraph',
    'TwoStageGraph',
    'exportable',
    'graph_of',
    'paste_masks',
    'write_int8',
    'write_onnx',
    'write_torch',
]
