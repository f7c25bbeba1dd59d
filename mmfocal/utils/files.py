"""Files: written whole or not at all, and opened only where that cannot block."""

from __future__ import annotations

import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import UserError

# What images end in, as far as folders are looked through for them.
IMAGE_SUFFIXES = frozenset(
    ('.jpg', '.jpeg', '.jpe', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm', '.gif')
)
# Names of temporary files; those of earlier commits had no ending.
_ENDING = '.mmfocal'
_TEMPORARY = re.compile(rf'\.(.+)\.[0-9a-f]{{8}}(?:{re.escape(_ENDING)})?')
KINDS = {
    stat.S_IFDIR: 'a folder',
    stat.S_IFIFO: 'a named pipe',
    stat.S_IFSOCK: 'a socket',
    stat.S_IFCHR: 'a device',
    stat.S_IFBLK: 'a device',
}


def why_no_file(path: str | os.PathLike) -> str | None:
    """Why a path is no ordinary file with content, as part of a sentence; None if it is one.

    Nothing is opened: opening a named pipe waits for a writer, and a device may never end. The
    files of ``/proc`` that wait for news say that they are empty.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return 'is a link to what is missing.' if os.path.islink(path) else 'is missing.'
    except PermissionError:
        return 'may not be read: its permissions forbid it.'
    except (OSError, ValueError) as error:  # links in a circle, names that cannot be
        return f'cannot be opened: {getattr(error, "strerror", None) or error}.'
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), 'of another kind')
        return f'is {kind}; expected an ordinary file.'
    return None if found.st_size else 'is empty (0 bytes).'


def check_file(path: str | os.PathLike) -> None:
    """Raises UserError if a path is no ordinary file with content."""
    if problem := why_no_file(path):
        raise UserError(f'{path} {problem}')


def check_folder(path: str | os.PathLike) -> None:
    """Raises UserError if a folder can be neither found nor made there, since a file is."""
    path = Path(path).absolute()
    existing = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not os.path.isdir(existing):
        raise UserError(f'{path} can be no folder: {existing} is none. Choose another name.')


def check_target(path: str | os.PathLike) -> None:
    """Raises UserError if there is anything but a file in the place of a file to be written."""
    path = Path(path).absolute()
    check_folder(path.parent)
    if os.path.exists(path) and not os.path.isfile(path):  # pathlib raises for long names
        raise UserError(f'{path} cannot be written: it {why_no_file(path)} Choose another name.')


@contextmanager
def written_atomically(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write into that takes the name ``path`` once it is complete and on the disk.

    If writing fails, or the process or the machine dies, what was at ``path`` before is still
    there.

    Raises:
        UserError: the disk is full, the folder cannot be written, or there is something else
            than a file under that name; what to do.
    """
    path = Path(path)
    check_target(path)
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}{_ENDING}')
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


@contextmanager
def folder_written_atomically(path: str | os.PathLike, marker: str) -> Iterator[Path]:
    """A folder to write into that takes the name ``path`` once everything is in it.

    One that was written before is replaced as a whole. If writing fails, or the process dies, it
    is still there.

    Args:
        path: of the folder.
        marker: name of a file that is always written into it, by which it is known as ours.

    Raises:
        UserError: there is a file, or a folder without the marker, under that name; or the disk
            is full.
    """
    path = Path(path).absolute()
    check_folder(path)
    if path.exists() and any(path.iterdir()) and not (path / marker).is_file():
        raise UserError(
            f'{path} is there already and holds other files (no {marker}). Choose another name.'
        )
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}{_ENDING}')
    old = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}{_ENDING}')
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f'{path} could not be written: {error.strerror or error}. Make room, or choose '
            'another folder.'
        ) from error
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def intended_name(temporary: str) -> str | None:
    """The name that a temporary file of :func:`written_atomically` was to take.

    Args:
        temporary: the name of a file that a process may have left when it was killed.

    Returns:
        None if it cannot be such a file.
    """
    match = _TEMPORARY.fullmatch(temporary)
    return match and match[1]


def _sync_folder(folder: Path) -> None:
    """Puts the new name itself on the disk, where folders can be opened (not on Windows)."""
    if os.name == 'posix':
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
