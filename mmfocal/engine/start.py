"""How a run starts: anew, from weights, or where another one stopped."""

from __future__ import annotations

import filecmp
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.runner import Runner

from mmfocal.utils.errors import UserError

from .checkpoints import (
    LAST,
    Checkpoint,
    CheckpointFolders,
    archive,
    last_checkpoint,
    latest_valid,
    num_iterations,
)
from .lock import owned

AUTO = 'auto'
Result = TypeVar('Result')


@dataclass(frozen=True)
class Start:
    """What a run begins with.

    Attributes:
        resume_from: path or URL of the checkpoint whose run is resumed, or None.
        load_from: path or URL of the weights with which a new run begins, or None.
        archived: files of other runs that are moved out of the way.
        notes: for the user.
    """

    resume_from: str | None = None
    load_from: str | None = None
    archived: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def apply(self, runner: Runner) -> None:
        """Lets a runner begin so. Its config, which it writes down, is left as it is."""
        runner._resume = self.resume_from is not None
        runner._load_from = self.resume_from or self.load_from


@contextmanager
def begun(cfg: Config, option: str | None) -> Iterator[Start]:
    """Owns the folders of a run, clears them, and says how the run starts.

    The first process decides for all of them, which have to have joined before.

    Args:
        cfg: the config, with ``work_dir``; it is not changed.
        option: as for :func:`decide`.

    Yields:
        The start; what it archives has been moved.

    Raises:
        UserError: another run has the folder, it cannot be written, or as :func:`decide`.
    """
    with ExitStack() as stack:
        yield _in_first_process(lambda: _begin(cfg, option, stack))


def _in_first_process(function: Callable[[], Result]) -> Result:
    """What a function returns or raises for users in the first process, in all of them."""
    outcome: list[Any] = [None]
    if is_main_process():
        try:
            outcome = [function()]
        except UserError as error:
            outcome = [error]
    broadcast_object_list(outcome)
    if isinstance(outcome[0], UserError):
        raise outcome[0]
    return outcome[0]


def _begin(cfg: Config, option: str | None, stack: ExitStack) -> Start:
    folders = CheckpointFolders.of(cfg)
    notes = [stack.enter_context(owned(path)) for path in folders.paths]
    try:
        leftovers = folders.leftovers()
        for path in leftovers:
            path.unlink(missing_ok=True)
        start = decide(cfg, option)
    except OSError as error:  # other processes only hear of errors for users
        raise UserError(
            f'{cfg.work_dir}: checkpoints of earlier runs cannot be looked at ({error}). Choose '
            'another --work-dir.'
        ) from error
    if leftovers:
        notes.append(
            'Removed what a run that was killed had not finished writing: '
            + ', '.join(path.name for path in leftovers)
        )
    archives = archive(start.archived, _named(cfg, start.archived))
    if archives:
        notes.append(
            'Checkpoints of an earlier run were in the way. They are in '
            f'{" and ".join(map(str, archives))} now; to resume that run, move them back and add '
            '--resume.'
        )
    return replace(start, notes=(*filter(None, notes), *start.notes))


def decide(cfg: Config, option: str | None) -> Start:
    """Whether a run starts anew or resumes, from what, and which files are in its way.

    ``resume = True`` in a config asks for the checkpoint ``load_from``, or without that for the
    newest one, as ``--resume`` does. A path as ``resume``, and ``resume_from`` and ``auto_resume``
    of MMDetection 2, are understood as well. Checkpoints are looked for in all folders into which
    the config's hooks write them.

    =========== ============= ========================== =========== =============== =============
    `--resume`  config asks   checkpoints there          resumed     weights         archived
    =========== ============= ========================== =========== =============== =============
    no          no            any                        --          of `load_from`  all
    no          for newest    any                        as if `yes`
    no          for a path    any                        as if path
    yes         any           one is whole               the newest  --              none
    yes         any           all are damaged            error
    yes         any           none, `last_checkpoint`    the newest  --              none
                              names another folder       there
    yes         no, newest    none, or only best ones    --          of `load_from`  best ones
    yes         for a path    none, or only best ones    as if path
    a path      any           that one and others        that path   --              later ones
    a path      any           others, or none            that path   --              all
    =========== ============= ========================== =========== =============== =============

    A path that is needed, and ``load_from`` of a new run, have to be there. What the config names
    is copied instead of moved: it stays in place, and counts as no checkpoint of the new run.

    Args:
        cfg: the config, with ``work_dir``.
        option: ``'auto'`` for ``--resume``, the path or URL of a checkpoint, or None.

    Raises:
        UserError: a file is not there, or none of the checkpoints is whole.
    """
    folders = CheckpointFolders.of(cfg)
    present = folders.checkpoints()
    archived = [path for path in _named(cfg, _paths(present)) if _is_archived(path)]
    present = [each for each in present if each.path not in archived]
    notes = [_about_remote(path) for path in folders.remote]
    wish = _wish(cfg)
    asked = _path(option) or wish
    if asked == AUTO:
        newest, more = _newest(cfg.work_dir, folders, archived)
        notes += more
        if newest is not None:
            return Start(resume_from=newest, notes=tuple(notes))
        asked = None if wish == AUTO else wish
        notes.append(f'{cfg.work_dir} holds no checkpoint yet: {_told(asked, cfg)}.')
    if asked is None:
        load_from = _path(cfg.get('load_from'))
        _check_file(load_from, 'load_from')
        old = (*_paths(present), *_last_checkpoint(cfg))
        return Start(load_from=load_from, archived=old, notes=tuple(notes))
    _check_file(asked, 'resume')
    asked = asked if '://' in asked else os.path.abspath(os.path.expanduser(asked))
    resumed = next((each for each in present if _is_same(each.path, asked)), None)
    if resumed is None:
        old = (*_paths(present), *_last_checkpoint(cfg))
    else:
        old = _paths(each for each in present if _is_later(each, resumed))
    return Start(resume_from=asked, archived=old, notes=tuple(notes))


def _wish(cfg: Config) -> str | None:
    """What a config asks for: ``'auto'``, the path of a checkpoint, or None for a new run."""
    wish = cfg.get('resume') or cfg.get('resume_from') or (cfg.get('auto_resume') and AUTO)
    if wish and not isinstance(wish, str | os.PathLike):
        wish = cfg.get('load_from') or AUTO
    return _path(wish)


def _path(text: str | os.PathLike | None) -> str | None:
    return os.fspath(text).removeprefix('file://') if text else None


def _newest(
    work_dir: str, folders: CheckpointFolders, without: Sequence[Path]
) -> tuple[str | None, list[str]]:
    """The newest whole checkpoint, also where ``last_checkpoint`` says, and notes."""
    newest, notes = latest_valid(folders, without)
    last = last_checkpoint(work_dir)
    if newest is None and last is not None:
        newest = last
        if '://' not in last:
            newest, more = latest_valid(CheckpointFolders.around(last), without)
            notes += more
        if newest is not None:
            notes.append(f'last_checkpoint of {work_dir} leads to {newest}, which is resumed.')
    return newest and str(newest), notes


def _told(path: str | None, cfg: Config) -> str:
    if path is not None:
        return f'{path} is resumed, as the config says'
    load_from = cfg.get('load_from')
    return 'this is a new run' + (f' with the weights of {load_from}' if load_from else '')


def _about_remote(folder: str) -> str:
    return (
        f'Checkpoints are written to {folder}, where earlier ones are not looked for: a new run '
        'may write over them. --resume resumes from the one that last_checkpoint of the work '
        'folder names.'
    )


def _check_file(path: str | None, option: str) -> None:
    if path is None or '://' in path or os.path.isfile(os.path.expanduser(path)):
        return
    raise UserError(
        f'{option}: there is no file {path} (looked for {os.path.abspath(path)}). Give the path '
        'of a checkpoint that is there; --resume without a path takes the newest whole one of the '
        'work folder.'
    )


def _paths(checkpoints: Iterable[Checkpoint]) -> tuple[Path, ...]:
    return tuple(each.path for each in checkpoints)


def _last_checkpoint(cfg: Config) -> tuple[Path, ...]:
    path = Path(cfg.work_dir, LAST).absolute()
    return (path,) if path.is_file() else ()


def _is_same(path: Path, other: str) -> bool:
    return os.path.exists(other) and os.path.samefile(path, other)


def _is_later(checkpoint: Checkpoint, other: Checkpoint) -> bool:
    if checkpoint.template == other.template:
        return checkpoint.number > other.number
    return num_iterations(checkpoint.path) > num_iterations(other.path)


def _named(cfg: Config, paths: Sequence[Path]) -> list[Path]:
    """Those of some files that a config names anywhere, also by a link or as ``file://``."""
    texts = {os.path.expanduser(text.removeprefix('file://')) for text in _texts(cfg.to_dict())}
    files = [text for text in texts if os.path.isfile(text)]
    return [path for path in paths if any(os.path.samefile(path, file) for file in files)]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str | os.PathLike):
        yield os.fspath(value)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from _texts(each)


def _is_archived(path: Path) -> bool:
    """Whether a checkpoint that stayed in place is one of an earlier run, as it was then."""
    copies = path.parent.glob(f'earlier_*/{glob.escape(path.name)}')
    return any(filecmp.cmp(path, each, shallow=False) for each in copies)
