"""Checkpoints of a run: written whole, kept until the next one is whole, and found again."""

from __future__ import annotations

import os
import re
import time
import zipfile
from pathlib import Path
from typing import ClassVar

from mmengine.fileio import LocalBackend, register_backend

from mmfocal.utils.errors import UserError
from mmfocal.utils.files import written_atomically
from mmfocal.weights.safe_loading import CheckpointError, load_checkpoint_file

# Of a run itself, from which it can be resumed; best_*.pth lacks the optimizer.
_NAME = re.compile(r'(epoch|iter)_(\d+)\.pth')
_RUN = re.compile(rf'{_NAME.pattern}|best_.*\.pth')


@register_backend('atomic', force=True)
class AtomicBackend(LocalBackend):
    """mmengine's backend of local files, which loses no good file to a kill or a full disk.

    A new file is there as a whole or not at all. A removed one goes when the next one is there:
    mmengine's ``CheckpointHook`` removes an old checkpoint before it writes the new one.
    """

    _removed: ClassVar[set[Path]] = set()

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes ``obj``, and deletes what was removed before."""
        with written_atomically(filepath) as file:
            file.write(obj)
        self._removed.discard(Path(filepath))
        while self._removed:
            self._removed.pop().unlink(missing_ok=True)

    def remove(self, filepath: str | Path) -> None:
        """Deletes a file, after the next one is written."""
        self._removed.add(Path(filepath))


def archive_previous_run(folder: str | os.PathLike) -> Path | None:
    """Moves the checkpoints of an earlier run out of the way of a new one, into a new folder.

    Returns:
        That folder, or None if there was nothing to move.
    """
    folder = Path(folder)
    old = [path for path in folder.glob('*.pth') if _RUN.fullmatch(path.name)]
    if not old:
        return None
    aside = folder / time.strftime('earlier_%Y%m%d_%H%M%S')
    aside.mkdir()
    for path in (*old, folder / 'last_checkpoint'):
        if path.exists():
            path.rename(aside / path.name)
    return aside


def latest_valid(folder: str | os.PathLike) -> tuple[Path | None, list[str]]:
    """The newest checkpoint in a work folder from which its run can be resumed.

    ``last_checkpoint`` is not asked: it may be missing or name another folder, and the file that
    it names may be damaged.

    Returns:
        The path, or None if there is no checkpoint; and a note for each that is passed over.

    Raises:
        UserError: there are checkpoints, and none is whole.
    """
    notes: list[str] = []
    found = []
    matches = {path: _NAME.fullmatch(path.name) for path in Path(folder).glob('*.pth')}
    for kind in ('epoch', 'iter'):
        numbers = {path: int(m[2]) for path, m in matches.items() if m and m[1] == kind}
        for path in sorted(numbers, key=numbers.get, reverse=True):
            problem, iteration = _examine(path)
            if problem is None:
                found.append((iteration, path))
                break
            notes.append(f'{path.name} is passed over: {problem}')
    if not found and notes:
        raise UserError(
            f'--resume: {Path(folder).absolute()} holds no checkpoint that is whole.\n'
            + '\n'.join(notes)
            + '\nTo begin anew, choose another --work-dir.'
        )
    return (max(found)[1] if found else None), notes


def _examine(path: Path) -> tuple[str | None, int]:
    """What is wrong with a checkpoint, if anything, and the iterations before it."""
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch writes checksums and does not compare them.
            damaged = archive.testzip()
        if damaged:
            return f'{damaged} in it is damaged.', 0
        checkpoint = load_checkpoint_file(path)
    except (OSError, zipfile.BadZipFile, CheckpointError) as error:
        return f'it cannot be read ({str(error).splitlines()[0]}).', 0
    if 'optimizer' not in checkpoint:
        return 'it lacks the state of the optimizer.', 0
    return None, int(checkpoint.get('meta', {}).get('iter', 0))
