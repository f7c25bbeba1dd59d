"""PyTorch's zip files, checked before PyTorch reads them.

PyTorch writes checksums and does not compare them, and its reader and Python's understand damaged
archives differently. So an archive has to be as ``torch.save`` writes it: entries that are stored,
not compressed, and no larger together than the file.
"""

from __future__ import annotations

import os
import zipfile

from .pickles import check_pickle

_OLD_PICKLES = 5  # a number, the version, the system, the content, the keys of its storages
_MAGIC = b'PK\x03\x04'
_FOLDER = 0x10  # MS-DOS attribute of a folder, whose content PyTorch leaves out
_UTF8 = 0x800  # the flag of names that are not ASCII
_DESCRIPTOR = 0x8  # the flag of sizes that follow the content; PyTorch's writer sets it


def is_archive(path: str | os.PathLike) -> bool:
    """Whether PyTorch takes a file for a zip archive, which it tells by the first bytes."""
    with open(path, 'rb') as file:
        return file.read(len(_MAGIC)) == _MAGIC


def check_archive(path: str | os.PathLike) -> None:
    """Finds damage to an archive of ``torch.save``, in time and memory that grow with the file.

    Raises:
        zipfile.BadZipFile: a part is damaged, or is not as PyTorch writes it; which one.
        Exception: whatever else ``zipfile`` raises for damaged files.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        for entry in entries:
            if problem := _problem_of(entry):
                raise zipfile.BadZipFile(f'{entry.filename!r} in it {problem}')
        # PyTorch does not tell capitals.
        if len({entry.filename.lower() for entry in entries}) < len(entries):
            raise zipfile.BadZipFile('a name is in it twice')
        if sum(entry.file_size for entry in entries) > os.path.getsize(path):
            raise zipfile.BadZipFile('its parts claim to be larger than the file')
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f'{damaged!r} in it is damaged')
        for entry in entries:
            if entry.filename.lower().endswith('/data.pkl'):
                with archive.open(entry) as program:
                    check_pickle(program)


def check_old_file(path: str | os.PathLike) -> None:
    """Measures the pickles at the start of a file in PyTorch's form before 1.6.

    Raises:
        Exception: whatever shows that it is none, or is damaged.
    """
    with open(path, 'rb') as file:
        for _ in range(_OLD_PICKLES):
            check_pickle(file)


def _problem_of(entry: zipfile.ZipInfo) -> str | None:
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        return 'is compressed'
    if entry.is_dir() or entry.external_attr & _FOLDER:
        return 'is a folder'
    if entry.flag_bits & ~(_UTF8 | _DESCRIPTOR):
        return f'has odd flags ({entry.flag_bits:#x})'
    return None
