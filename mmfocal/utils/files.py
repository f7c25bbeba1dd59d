"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import UserError


@contextmanager
def written_atomically(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write into that takes the name ``path`` once it is complete and on the disk.

    If writing fails, or the process or the machine dies, what was at ``path`` before is still
    there.

    Raises:
        UserError: the disk is full, or the folder cannot be written; what to do.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, 'xb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f'{path.absolute()} could not be written: {error.strerror or error}. Make room, or '
            'choose another folder.'
        ) from error
    finally:
        with suppress(OSError):  # it is gone, or was never there
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Puts the new name itself on the disk, where folders can be opened (not on Windows)."""
    if os.name == 'posix':
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
