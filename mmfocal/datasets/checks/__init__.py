"""One checker of data: finds what is wrong with a data set before a run does.

:func:`check_data` and :func:`check_contents` walk the data sets of a config; :func:`check_coco`
and :func:`check_segmentation` look through one of them, and add to a :class:`Report`. The quick
version reads every annotation, looks whether every image is there, and reads the headers of a
sample; the deep version decodes every image. :func:`install_sample_errors` is for training.
"""

from .coco import CocoData, Evaluation, check_coco
from .coco_file import CocoContent, read_coco
from .config import BadDataError, MissingDataError, check_contents, check_data
from .dataset import check_lists
from .images import (
    Entry,
    check_size,
    decoded,
    leaves_folder,
    read_image,
    refuse_large,
    unfit_pixels,
    why_unreadable,
)
from .report import Counts, Report
from .samples import SampleError, install_sample_errors, sample_errors_for_workers
from .segmentation import SegmentationData, check_segmentation

__all__ = [
    'BadDataError',
    'CocoContent',
    'CocoData',
    'Counts',
    'Entry',
    'Evaluation',
    'MissingDataError',
    'Report',
    'SampleError',
    'SegmentationData',
    'check_coco',
    'check_contents',
    'check_data',
    'check_lists',
    'check_segmentation',
    'check_size',
    'decoded',
    'install_sample_errors',
    'leaves_folder',
    'read_coco',
    'read_image',
    'refuse_large',
    'sample_errors_for_workers',
    'unfit_pixels',
    'why_unreadable',
]
