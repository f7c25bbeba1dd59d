"""A folder has one run at a time."""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from mmfocal.utils.errors import UserError
from mmfocal.utils.files import check_target

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = 'run.lock'
TAKEN = (errno.EACCES, errno.EAGAIN)
_owned: set[str] = set()  # by this process, which its own locks do not keep out


@contextmanager
def owned(folder: Path) -> Iterator[str | None]:
    """Keeps other runs out of a folder.

    ``run.lock`` in it says which process has it, and holds a POSIX record lock: processes that are
    forked do not have that, the kernel ends it together with the process, and NFS knows it. The
    file stays, emptied, when the run ends: another process may have opened it already.

    Args:
        folder: made if it is not there.

    Yields:
        A note for the user, or None.

    Raises:
        UserError: another run has the folder, or it cannot be written.
    """
    real = os.path.realpath(folder)
    if real in _owned:
        raise UserError(f'{folder} is the folder of another run of this process. Choose another.')
    with _opened(folder) as file:
        try:
            problem = _lock(file)
        except BlockingIOError as error:
            raise UserError(
                f'{folder} is the folder of a run that has not ended: {_owner(file)}. Wait for '
                'it, end it, or choose another --work-dir.'
            ) from error
        if problem:
            yield f'{folder} could not be locked: {problem}. Start no other run there.'
            return
        cut_off = _owner(file)
        with _told(folder / NAME):
            _write(file, _this_process())
        _owned.add(real)
        try:
            yield cut_off and f'{folder} is taken over from a run that was cut off: {cut_off}.'
        finally:
            _owned.discard(real)
            with suppress(OSError):
                _write(file, '')


def _opened(folder: Path) -> TextIO:
    path = folder / NAME
    check_target(path)
    with _told(path):
        folder.mkdir(parents=True, exist_ok=True)
        # A link would have another file emptied.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0)
        descriptor = os.open(path, flags, 0o666)
    with suppress(OSError, AttributeError):  # others who may write into the folder may lock it
        os.fchmod(descriptor, 0o600 | (0o666 & folder.stat().st_mode))
    return open(descriptor, 'r+', errors='replace')


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f'{path} could not be written: {error.strerror}. Choose a --work-dir that can be '
            'written.'
        ) from error


def _lock(file: TextIO) -> str | None:
    """Why there are no locks here; None if the file is locked now.

    Raises:
        BlockingIOError: another process has locked it.
    """
    if fcntl is None:
        return f'there are no record locks on {sys.platform}'
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            raise BlockingIOError(*error.args) from error
        return error.strerror  # as of file systems without locks
    return None


def _this_process() -> str:
    return json.dumps(
        dict(
            process=os.getpid(),
            host=socket.gethostname(),
            since=time.strftime('%Y-%m-%d %H:%M:%S %z'),
            command=shlex.join([sys.executable, *sys.argv]),
        )
    )


def _owner(file: TextIO) -> str | None:
    """Which process has or had the folder, for users; None if that ended in order."""
    file.seek(0)
    text = file.read()
    try:
        owner = json.loads(text)
        return 'process {process} on {host}, since {since} ({command})'.format_map(owner)
    except (ValueError, KeyError, TypeError):  # killed while it wrote this
        return 'its process is not known' if text else None


def _write(file: TextIO, text: str) -> None:
    # Not by the file's buffer, which would be written once more when it is closed.
    os.ftruncate(file.fileno(), 0)
    os.pwrite(file.fileno(), text.encode(), 0)
