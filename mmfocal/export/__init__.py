"""Models for serving: ONNX and torch.export, for images of any size, and how equal they are."""

from .building import graph_of
from .detectors import SingleStageGraph, TwoStageGraph
from .graphs import BackboneGraph, Graph, write_onnx, write_torch
from .masks import paste_masks
from .plain import exportable
from .segmenters import SegmenterGraph

__all__ = [
    'BackboneGraph',
    'Graph',
    'SegmenterGraph',
    'SingleStageGraph',
    'TwoStageGraph',
    'exportable',
    'graph_of',
    'paste_masks',
    'write_onnx',
    'write_torch',
]
