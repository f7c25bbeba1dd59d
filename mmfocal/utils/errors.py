"""Errors that a user can mend: tools print their message and no stack trace."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .text import printable_lines


class UserError(RuntimeError):
    """What was expected, what came, and what to do."""


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the first one, before they have joined."""
    ranks = (os.environ.get(name) for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'))
    return next((rank for rank in ranks if rank is not None), '0') == '0'


@contextmanager
def user_errors_without_trace() -> Iterator[None]:
    """Ends the process with status 2 and only the message if a :class:`UserError` comes out.

    Of several processes the first one speaks. Ctrl-C ends with status 130.
    """
    try:
        yield
    except UserError as error:
        if is_first_process():
            print(f'\n{printable_lines(error)}', file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # who reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print('\nInterrupted.', file=sys.stderr)
        sys.exit(130)
