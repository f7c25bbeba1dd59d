"""Errors that a user can mend: tools print their message and no stack trace."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .text import printable_lines


class UserError(RuntimeError):
    """What was expected, what came, and what to do.

    Attributes:
        of_one_process: whether one process of several may have it alone.
    """

    of_one_process = False


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the first one, before they have joined."""
    return _rank() == '0'


def _rank() -> str:
    names = 'RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'
    return next((os.environ[name] for name in names if name in os.environ), '0')


@contextmanager
def user_errors_without_trace() -> Iterator[None]:
    """Ends the process with status 2 and only the message if a :class:`UserError` comes out.

    Of several processes the first one speaks, or the one that has the error alone. Ctrl-C ends
    with status 130.
    """
    try:
        yield
    except UserError as error:
        if is_first_process():
            print(f'\n{printable_lines(error)}', file=sys.stderr)
        elif error.of_one_process:
            print(f'\nProcess {_rank()}: {printable_lines(error)}', file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # who reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print('\nInterrupted.', file=sys.stderr)
        sys.exit(130)
