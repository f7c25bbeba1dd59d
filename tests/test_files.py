"""What is no ordinary file is neither opened nor replaced, and named."""

import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mmfocal.utils.errors import UserError
from mmfocal.utils.files import check_folder, check_target, why_no_file, written_atomically

SECONDS = 15  # until a test fails that waits for a pipe


def pipe(path):
    """Makes a named pipe; whoever waits for a writer there gets an empty one in the end."""

    path = os.path.abspath(path)

    def release():
        for _ in range(10):
            time.sleep(SECONDS)
            with suppress(OSError):  # nobody waits, or it is gone
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))

    os.mkfifo(path)
    threading.Thread(target=release, daemon=True).start()


def listener(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


UNUSUAL = {
    'a named pipe': pipe,
    'a socket': listener,
    'a device': lambda path: path.symlink_to('/dev/zero'),
    'a folder': Path.mkdir,
    'a link to what is missing': lambda path: path.symlink_to('nowhere'),
    'Too many levels': lambda path: path.symlink_to(path.name),
    'empty': Path.touch,
    'missing': lambda path: None,
}


@pytest.mark.parametrize('kind', UNUSUAL)
def test_what_is_no_file_is_named_without_being_opened(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    UNUSUAL[kind](Path('x'))
    assert kind in why_no_file('x')
    Path('y').write_text('content')
    assert why_no_file('y') is None
    Path('z').symlink_to('y')
    assert why_no_file('z') is None
    assert 'null' in why_no_file('\0')  # a byte or a character: Pythons differ
    assert 'too long' in why_no_file('x' * 300)


@pytest.mark.parametrize('kind', ['a named pipe', 'a socket', 'a device', 'a folder'])
def test_what_is_no_file_is_not_replaced_by_one(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    UNUSUAL[kind](Path('x'))
    before = os.lstat('x')
    with (
        pytest.raises(UserError, match=f'x cannot be written: it is {kind}'),
        written_atomically('x'),
    ):
        raise AssertionError('unreachable')
    assert os.lstat('x').st_ino == before.st_ino


def test_files_in_the_place_of_folders_are_named(tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'link').symlink_to('nowhere')
    for name in ('file', 'link'):
        with pytest.raises(UserError, match=f'{name} is none. Choose another name'):
            check_folder(tmp_path / name / 'a/b')
    with pytest.raises(UserError, match='file is none'):
        check_target(tmp_path / 'file/a')
    check_folder(tmp_path / 'new/a/b')
    check_target(tmp_path / 'new/a/b')
    check_target(tmp_path / 'file')
    assert not (tmp_path / 'new').exists()
