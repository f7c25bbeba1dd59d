"""Errors of single samples, in the middle of training, name the file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial, partialmethod
from typing import Any

import cv2
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from mmfocal.utils.errors import UserError
from mmfocal.utils.files import why_no_file
from mmfocal.utils.text import printable

from .images import leaves_folder, refuse_large, why_unreadable

# How torch's data loader begins the message of an error that it takes out of a worker process;
# the original message is the end of a stack trace there.
FROM_WORKER = 'Caught '


class SampleError(UserError):
    """A sample could not be loaded; the message names its file and the reason."""

    of_one_process = True

    def __init__(self, message: str) -> None:
        if message.startswith(FROM_WORKER):
            message = message.rpartition(f'{type(self).__name__}: ')[2].rstrip()
        super().__init__(printable(message))  # names of files are those of others


def install_sample_errors(skip: bool = False) -> None:
    """Makes all data sets of mmengine name the file of a sample that fails.

    That is all of mmdet's and mmseg's that read images. Loaders of mmcv name no file for an empty
    or narrow one, and read files from outside the data root. May be called again.

    Args:
        skip: whether training replaces such a sample by a random one, with a line in the log, as
            mmengine does where a pipeline gives None. Never in evaluation.
    """
    BaseDataset.prepare_data = partialmethod(_prepare_data, skip=skip)


def sample_errors_for_workers() -> Callable[[], None] | None:
    """A function that installs in another process what is installed here; None for nothing.

    Only processes that are forked have it from the start.
    """
    method = vars(BaseDataset)['prepare_data']
    if isinstance(method, partialmethod) and method.func is _prepare_data:
        return partial(install_sample_errors, **method.keywords)
    return None


def _prepare_data(dataset: BaseDataset, idx: int, *, skip: bool) -> Any:
    """In the place of ``BaseDataset.prepare_data``."""
    info = dataset.get_data_info(idx)
    try:
        _check_path(dataset, info)
        _check_files(info)
        return dataset.pipeline(info)
    except UserError:
        raise
    except Exception as error:  # pipelines may raise anything
        # From the list again: a pipeline writes into what it gets.
        message = _explain(dataset, dataset.get_data_info(idx), error)
        if not skip or dataset.test_mode:
            raise SampleError(message) from error
        print_log(f'Skipped: {printable(message)}', 'current', logging.WARNING)
        return None


def _explain(dataset: BaseDataset, info: dict, error: Exception) -> str:
    reason = f'cannot be used: {type(error).__name__}: {" ".join(str(error).split())}.'
    file = info.get('img_path')
    for path in _paths(info):
        problem = why_unreadable(path)
        if problem is not None:
            file, reason = path, problem
            break
        if not cv2.haveImageReader(path):
            file = path
            reason += f' OpenCV {cv2.__version__} does not read files of its kind.'
            break
    return (
        f'{file}: {reason} It is a sample of {type(dataset).__name__}. Repair it or take it out '
        'of the annotations; tools/check_data.py CONFIG --deep finds all such files, and '
        '--skip-bad-samples trains without them.'
    )


def _paths(info: dict) -> list[str]:
    """Of the image and the label map of a sample, where these are local."""
    paths = (info.get('img_path'), info.get('seg_map_path'))
    return [path for path in paths if isinstance(path, str) and '://' not in path]


def _check_files(info: dict) -> None:
    """Raises ValueError for a file that would block, or fill the memory, when it is loaded."""
    for path in _paths(info):
        if os.path.isfile(path):
            refuse_large(path)
        elif os.path.exists(path) and not os.path.isdir(path):
            raise ValueError(why_no_file(path))


def _check_path(dataset: BaseDataset, info: dict) -> None:
    """Raises SampleError for an image that lies neither below its prefix nor the data root."""
    path = info.get('img_path')
    prefix = dataset.data_prefix
    prefix = prefix.get('img_path') or prefix.get('img') if isinstance(prefix, dict) else None
    folders = [folder for folder in (prefix, dataset.data_root) if folder]
    if path is None or not folders or '://' in path:
        return
    # Not resolved: links in a data set are the user's own.
    if all(leaves_folder(os.path.relpath(path, folder)) for folder in folders):
        raise SampleError(
            f'{path}: leads out of the data root, {folders[-1]}. Annotations may only name files '
            'below it.'
        )
