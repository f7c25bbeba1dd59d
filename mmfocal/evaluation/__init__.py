"""Error analysis of a trained model: numbers, and a report in one file."""

from .detection import analyze_detections
from .report import Report, write_report
from .segmentation import analyze_segmentations

__all__ = ['Report', 'analyze_detections', 'analyze_segmentations', 'write_report']
