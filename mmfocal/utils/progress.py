"""Progress bars: tqdm, where somebody looks at a terminal or a notebook."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import TqdmWarning, tqdm

with warnings.catch_warnings():
    warnings.simplefilter('ignore', TqdmWarning)  # where there are no ipywidgets
    from tqdm.contrib.logging import logging_redirect_tqdm
    from tqdm.notebook import IProgress, tqdm_notebook


class ProgressBar(tqdm):
    """tqdm without its thread, which may hold a lock when a data loader forks the process."""

    monitor_interval = 0


class NotebookBar(tqdm_notebook):
    """The same in a notebook, for those who have ipywidgets."""

    monitor_interval = 0


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get('IPython')
    shell = ipython and ipython.get_ipython()
    return shell is not None and 'IPKernelApp' in shell.config


def is_live_terminal() -> bool:
    """Whether standard error is a terminal that rewrites lines, and no job of a CI service."""
    is_dumb = os.environ.get('TERM') == 'dumb' or bool(os.environ.get('CI'))
    return sys.stderr.isatty() and not is_dumb


def progress_bar(desc: str, total: int | None, unit: str = 'it', **options: Any) -> ProgressBar:
    """A bar on standard error that disappears when it is closed.

    Args:
        desc: what is done, such as ``'Training'``.
        total: steps; None if that is not known.
        unit: of a step.
        **options: more of tqdm's.

    Returns:
        The bar, which is disabled where there is neither a live terminal nor a notebook.
    """
    kind = NotebookBar if in_notebook() and IProgress is not None else ProgressBar
    return kind(
        desc=desc,
        total=total,
        unit=unit,
        file=sys.stderr,
        disable=not (is_live_terminal() or in_notebook()),
        leave=False,
        dynamic_ncols=True,
        mininterval=0.2,
        miniters=1,  # else tqdm looks at the clock less often, and slow steps are shown late
        **options,
    )


@contextmanager
def log_above_bars(logger: logging.Logger) -> Iterator[None]:
    """Writes what a logger writes to the terminal above bars, which stay in the last line."""
    consoles = [each for each in logger.handlers if type(each) is logging.StreamHandler]
    with logging_redirect_tqdm([logger], ProgressBar):
        # tqdm's handler takes the place of the one for the terminal, but not its level.
        level = min((console.level for console in consoles), default=logging.INFO)
        logger.handlers[-1].setLevel(level)
        yield
