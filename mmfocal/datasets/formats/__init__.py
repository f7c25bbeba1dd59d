"""Data sets of other formats: recognised, read, and written in the form that mmdet or mmseg reads.

Each module of a format has two functions: ``recognise(folder)`` looks at names and a few files and
says in a phrase what it found, or None; ``read(folder, report)`` reads all into
:class:`~.content.Annotated` and notes what it leaves out. None of them writes to the source.
"""

from .content import Folder
from .detection import CocoSplit, DetectionData, Source, prepare_detection
from .label_maps import LabelMaps, LabelMapSplit
from .label_tables import read_names
from .recognition import READERS
from .segmentation import prepare_segmentation

__all__ = [
    'READERS',
    'CocoSplit',
    'DetectionData',
    'Folder',
    'LabelMapSplit',
    'LabelMaps',
    'Source',
    'prepare_detection',
    'prepare_segmentation',
    'read_names',
]
