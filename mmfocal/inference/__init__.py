"""From files, videos and cameras to images, predictions and label maps."""

from .inferencer import Inferencer, Prediction
from .inputs import Input, LoadedImage, Skipped, UnreadableError, find_inputs
from .layout import Layout
from .publishing import Published, publish
from .running import Outcome, run

__all__ = [
    'Inferencer',
    'Input',
    'Layout',
    'LoadedImage',
    'Outcome',
    'Prediction',
    'Published',
    'Skipped',
    'UnreadableError',
    'find_inputs',
    'publish',
    'run',
]
