"""Checkpoints of a run: written whole, kept until the next one is whole, and found again."""

from __future__ import annotations

import os
import re
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmfocal.utils.errors import UserError
from mmfocal.utils.files import written_atomically
from mmfocal.weights.safe_loading import CheckpointError, load_checkpoint_file

# Of a run itself, from which it can go on; best_*.pth lacks the optimizer.
_NAME = re.compile(r'(epoch|iter)_(\d+)\.pth')
_RUN = re.compile(rf'{_NAME.pattern}|best_.*\.pth')
MIN_KEPT = 2  # one may be damaged after it was written


@register_backend('atomic', force=True)
class AtomicBackend(LocalBackend):
    """mmengine's backend of local files, whose new files are there as a whole or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes ``obj``."""
        with written_atomically(filepath) as file:
            file.write(obj)


@HOOKS.register_module()
class WholeCheckpointHook(CheckpointHook):
    """mmengine's hook, which loses no good checkpoint to a kill or a full disk.

    mmengine writes in place, over the good file too when a best score is added, and deletes an
    old file before the new one is there.

    Args:
        max_keep_ckpts: as in mmengine, but two at least.
        **kwargs: as for mmengine's ``CheckpointHook``.
    """

    def __init__(self, *args: Any, max_keep_ckpts: int = -1, **kwargs: Any) -> None:
        if max_keep_ckpts > 0:
            max_keep_ckpts = max(max_keep_ckpts, MIN_KEPT)
        super().__init__(*args, max_keep_ckpts=max_keep_ckpts, **kwargs)

    def before_train(self, runner: Runner) -> None:
        """Chooses the backend."""
        local = '://' not in str(self.out_dir or runner.work_dir)
        if local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend='atomic')
        super().before_train(runner)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        keep = self.max_keep_ckpts
        if keep <= 0:
            super()._save_checkpoint_with_step(runner, step, meta)
            return
        outdated = []
        if step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == keep:
                outdated.append(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self.max_keep_ckpts = -1  # mmengine would delete first
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        finally:
            self.max_keep_ckpts = keep
        for old in outdated if is_main_process() else ():
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old))
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)


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
    """The newest checkpoint in a work folder from which its run can go on.

    ``last_checkpoint`` is not asked: it may be missing or name another folder, and the file that
    it names may be damaged.

    Returns:
        The path, or None if there is no checkpoint; and a note for each that is passed over.

    Raises:
        UserError: there are checkpoints, and none is whole.
    """
    notes: list[str] = []
    found = []
    for names in _by_kind(Path(folder)):
        for path in names:
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


def _by_kind(folder: Path) -> Iterator[list[Path]]:
    """Paths by epoch and by iteration, newest first."""
    matches = [
        (match, path) for path in folder.glob('*.pth') if (match := _NAME.fullmatch(path.name))
    ]
    for kind in ('epoch', 'iter'):
        numbered = [(int(match[2]), path) for match, path in matches if match[1] == kind]
        yield [path for _, path in sorted(numbered, reverse=True)]


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
