"""What a run changes in its process, put back when it ends, so that many can share one."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

import cv2
import torch
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from mmengine.utils import ManagerMixin
from mmengine.visualization import Visualizer

from mmfocal.utils.compat import without_warnings_of_others

from .randomness import generator_states, restore_generators


@contextmanager
def left_as_found() -> Iterator[None]:
    """Lets a run begin as in a new process, and leaves the process as it was.

    mmengine keeps loggers, visualizers and default scopes of a process by name: without this, a
    second run would write into the log of the first, whose visualizer has the same name, and a
    detector's scope would stay for what comes next. Random numbers, PyTorch's deterministic mode
    and the process group are put back as well; of a run that fails the group stays, since its
    process is about to end.
    """
    before = {kind: dict(kind._instance_dict) for kind in _managers(ManagerMixin)}
    for kind in before:
        kind._instance_dict.clear()
    generators, restore_modes = generator_states(), _modes()
    had_group, failed = torch.distributed.is_initialized(), False
    try:
        with without_warnings_of_others():
            yield
    except BaseException as error:
        failed = not isinstance(error, SystemExit)  # which all processes come to together
        for each in _instances(Visualizer):
            with suppress(Exception):  # the error of the run is the one to tell
                each.close()
        raise
    finally:
        for logger in _instances(MMLogger):
            for handler in [each for each in logger.handlers if _has_file(each)]:
                logger.removeHandler(handler)
                handler.close()
        for kind in _managers(ManagerMixin):
            kind._instance_dict.clear()
            kind._instance_dict.update(before.get(kind, {}))
        restore_generators(generators)
        restore_modes()
        # NCCL would wait for the other processes, which do not know that this one failed, and the
        # error would be told to nobody.
        if torch.distributed.is_initialized() and not had_group and not failed:
            torch.distributed.destroy_process_group()


def _managers(kind: type) -> Iterator[Any]:
    for each in kind.__subclasses__():
        yield each
        yield from _managers(each)


def _instances(kind: Any) -> list[Any]:
    return [each for found in (kind, *_managers(kind)) for each in found._instance_dict.values()]


def _has_file(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.FileHandler)


def _modes() -> Any:
    """A function that restores how PyTorch and OpenCV compute now."""
    cudnn = torch.backends.cudnn
    benchmark, deterministic = cudnn.benchmark, cudnn.deterministic
    only = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    threads = cv2.getNumThreads()

    def restore() -> None:
        cudnn.benchmark, cudnn.deterministic = benchmark, deterministic
        torch.use_deterministic_algorithms(only, warn_only=warn)
        if cv2.getNumThreads() != threads:
            # Not without need: from 0 to 1, which it counts as the same, it waits for threads
            # that a forked process does not have.
            cv2.setNumThreads(threads)

    return restore


class QuietRunner(Runner):
    """A runner whose log goes to its file, and of which only warnings are shown."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """mmengine's, with another level for the terminal."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and not _has_file(handler):
                handler.setStream(sys.stderr)
                handler.setLevel(logging.WARNING)
                handler.addFilter(lambda record: 'will be deprecated' not in record.getMessage())
        return logger


@contextmanager
def without_prints(active: bool) -> Iterator[None]:
    """Drops what packages print, such as pycocotools; warnings and errors go another way."""
    if not active:
        yield
        return
    with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere):
        yield
