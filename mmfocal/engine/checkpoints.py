"""Checkpoints of a run: written whole, kept until the next one is whole, and found again."""

from __future__ import annotations

import os
import re
import shutil
import string
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, ClassVar

from mmengine.config import Config
from mmengine.fileio import LocalBackend, register_backend

from mmfocal.utils.config import type_name
from mmfocal.utils.errors import UserError
from mmfocal.utils.files import intended_name, why_no_file, written_atomically
from mmfocal.weights.safe_loading import CheckpointError, load_checkpoint_file

# mmengine's own, and that of runs that were asked to end.
TEMPLATES = ('epoch_{}.pth', 'iter_{}.pth')
SAVED = 'model.safetensors'  # what hubs call the weights in a folder
LAST = 'last_checkpoint'  # mmengine's file in the work folder with the path of the newest one


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


@dataclass(frozen=True)
class Checkpoint:
    """A file that has the name of a checkpoint.

    Attributes:
        path: of the file.
        template: that its name follows, without what ``best_*`` has before it; '' if none.
        number: of epochs or iterations, as the template has it.
        is_best: whether it is ``best_*``, which lacks the optimizer and cannot be resumed.
    """

    path: Path
    template: str
    number: int
    is_best: bool


@dataclass(frozen=True)
class CheckpointFolders:
    """Where a run writes checkpoints, and under which names.

    Attributes:
        paths: absolute ones, the work folder first.
        templates: names with a field for the number, as ``CheckpointHook.filename_tmpl``.
        remote: folders in other storage, into which nothing here looks.
    """

    paths: tuple[Path, ...]
    templates: tuple[str, ...] = TEMPLATES
    remote: tuple[str, ...] = ()

    @classmethod
    def of(cls, cfg: Config) -> CheckpointFolders:
        """Those of a config with ``work_dir``: that, and where its ``CheckpointHook`` writes."""
        work_dir = os.path.abspath(cfg.work_dir)
        folders, templates = [work_dir], [*TEMPLATES]
        for hook in _checkpoint_hooks(cfg):
            out_dir = hook.get('out_dir')
            if out_dir is not None and out_dir != work_dir:
                # As the hook joins them, but for paths that only differ in how they are written.
                folders.append(os.path.join(out_dir, os.path.basename(work_dir)))
            if hook.get('filename_tmpl'):
                templates.append(hook['filename_tmpl'])
        # One that is spelt in two ways, or reached by a link, is one folder.
        local = {
            os.path.realpath(path): Path(path).absolute()
            for path in reversed(folders)
            if '://' not in path
        }
        return cls(
            tuple(reversed(local.values())),
            tuple(dict.fromkeys(templates)),
            tuple(path for path in folders if '://' in path),
        )

    @classmethod
    def around(cls, path: str) -> CheckpointFolders:
        """The folder of a checkpoint, and of those that are named as it is."""
        path = Path(path).absolute()
        template = re.sub(r'\d+(?=\D*$)', '{}', path.name.replace('{', '{{').replace('}', '}}'))
        return cls((path.parent,), tuple(dict.fromkeys((*TEMPLATES, template))))

    def checkpoint(self, path: Path) -> Checkpoint | None:
        """What the name of a file says; None if it is none of a checkpoint."""
        for template in self.templates:
            if match := re.fullmatch(f'(best_.*_)?{_pattern(template)}', path.name):
                number = int(match.groupdict().get('number', 0))
                return Checkpoint(path, template, number, is_best=match[1] is not None)
        is_best = re.fullmatch(r'best_.*\.pth', path.name)
        return Checkpoint(path, '', 0, is_best=True) if is_best else None

    def checkpoints(self) -> list[Checkpoint]:
        """All that are there, by folder and name."""
        return [found for path in self._files() if (found := self.checkpoint(path))]

    def leftovers(self) -> list[Path]:
        """What runs that were killed while they wrote a checkpoint have left of it."""
        names = {path: intended_name(path.name) for path in self._files()}
        return [
            path
            for path, name in names.items()
            if name and (name == LAST or self.checkpoint(Path(name)))
        ]

    def _files(self) -> Iterator[Path]:
        for folder in self.paths:
            if folder.is_dir():
                yield from sorted(path for path in folder.iterdir() if path.is_file())


def _checkpoint_hooks(cfg: Config) -> list[Mapping[str, Any]]:
    named = dict(cfg.get('default_hooks') or {})
    hooks = [named.pop('checkpoint', None)]
    others = chain(named.values(), cfg.get('custom_hooks') or [])
    hooks += [hook for hook in others if type_name(hook).endswith('CheckpointHook')]
    return [hook for hook in hooks if isinstance(hook, Mapping)]


def _pattern(template: str) -> str:
    """Of the names that a template gives, such as ``'step_{:06d}.pth'``."""
    fields = chain([r'(?P<number>\d+)'], iter(lambda: r'\d+', None))
    return ''.join(
        re.escape(text) + ('' if field is None else next(fields))
        for text, field, *_ in string.Formatter().parse(template)
    )


def archive(paths: Collection[Path], also_in_place: Collection[Path] = ()) -> list[Path]:
    """Moves files of an earlier run out of the way of a new one, into new folders beside them.

    Args:
        paths: of the files. ``last_checkpoint`` goes where the first of the others go.
        also_in_place: those of ``paths`` that are copied instead. A link would not do: mmengine's
            own hook writes into the file that is there.

    Returns:
        The new folders.

    Raises:
        UserError: a folder cannot be written, or the disk is full.
    """
    archives: dict[Path, Path] = {}
    try:
        # What may need room on the disk comes first, ``last_checkpoint`` last.
        for path in sorted(paths, key=lambda path: (path.name == LAST, path not in also_in_place)):
            beside = path.parent
            if path.name == LAST and archives:
                beside = next(iter(archives))
            if beside not in archives:
                archives[beside] = _new_archive(beside)
            if path in also_in_place:
                with (
                    open(path, 'rb') as old,
                    written_atomically(archives[beside] / path.name) as new,
                ):
                    shutil.copyfileobj(old, new)
            else:
                shutil.move(path, archives[beside] / path.name)
    except OSError as error:
        raise UserError(
            f'Checkpoints of an earlier run could not be moved out of the way: {error}. Make '
            'room, move them yourself, or choose another --work-dir.'
        ) from error
    return list(archives.values())


def _new_archive(folder: Path) -> Path:
    name = time.strftime('earlier_%Y%m%d_%H%M%S')
    for path in chain([folder / name], (folder / f'{name}_{number}' for number in count(2))):
        with suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError('names do not end')


def latest_valid(
    folders: CheckpointFolders | str | os.PathLike, without: Collection[Path] = ()
) -> tuple[Path | None, list[str]]:
    """The newest checkpoint from which a run can be resumed.

    ``last_checkpoint`` is not asked: it may be missing or name another folder, and the file that
    it names may be damaged.

    Args:
        folders: where to look, or a work folder.
        without: files that do not count.

    Returns:
        The path, or None if there is no checkpoint; and a note for each that is passed over.

    Raises:
        UserError: there are checkpoints, and none is whole.
    """
    if not isinstance(folders, CheckpointFolders):
        folders = CheckpointFolders((Path(folders).absolute(),))
    notes: list[str] = []
    found = []
    present = [c for c in folders.checkpoints() if not c.is_best and c.path not in without]
    for template in folders.templates:
        numbered = [each for each in present if each.template == template]
        for each in sorted(numbered, key=lambda each: each.number, reverse=True):
            problem, iteration = _examine(each.path)
            if problem is None:
                found.append((iteration, each.path.name, each.path))
                break
            notes.append(f'{each.path.name} is passed over: {problem}')
    if not found and notes:
        raise UserError(
            f'{" and ".join(map(str, folders.paths))} holds no checkpoint that is whole.\n'
            + '\n'.join(notes)
            + '\nTo begin anew, choose another --work-dir.'
        )
    return (max(found)[-1] if found else None), notes


def best_or_latest(work_dir: Path) -> str | None:
    """The best checkpoint of a run, or if there is none its newest that is whole.

    It is looked for in the work folder, and if that has none, where its ``last_checkpoint`` says.

    Returns:
        Path, or URL of what lies in other storage; None if there is none.

    Raises:
        UserError: there are checkpoints, none is the best one, and none is whole.
    """
    last = last_checkpoint(work_dir)
    if last and '://' in last:
        return last
    around = CheckpointFolders.around(last or str(work_dir / TEMPLATES[0]))
    for folder in dict.fromkeys((work_dir.absolute(), *around.paths)):
        folders = CheckpointFolders((folder,), around.templates)
        best = [each.path for each in folders.checkpoints() if each.is_best]
        found = max(best, key=os.path.getmtime) if best else latest_valid(folders)[0]
        if found is not None:
            return str(found)
    return None


def checkpoint_of(source: str) -> str:
    """The checkpoint that a path or URL means.

    Args:
        source: a URL, a file, or the work folder of a run, whose best checkpoint is taken, and if
            there is none its newest that is whole; they may lie elsewhere, where
            ``last_checkpoint`` in that folder says. Or a folder with :data:`SAVED`.

    Raises:
        UserError: there is none.
    """
    source = source if '://' in source else os.path.expanduser(source)
    if '://' in source or os.path.isfile(source):
        return source
    if os.path.isdir(source):
        if os.path.isfile(saved := os.path.join(source, SAVED)):
            return saved
        if found := best_or_latest(Path(source)):
            return found
        raise UserError(
            f'There is no checkpoint in {source}: expected those of a run, which has none before '
            f'it first saves, or {SAVED}.'
        )
    raise UserError(f'There is no checkpoint {source} (looked for {os.path.abspath(source)}).')


def last_checkpoint(work_dir: str | os.PathLike) -> str | None:
    """What mmengine's file of that name says: a path or URL, which may be out of date."""
    try:
        return Path(work_dir, LAST).read_text().strip() or None
    except (OSError, ValueError):
        return None


def num_iterations(path: Path) -> float:
    """Iterations before a checkpoint, best ones too; infinite if it cannot be read."""
    try:
        return int(load_checkpoint_file(path)['meta']['iter'])
    except (CheckpointError, KeyError, TypeError, ValueError):
        return float('inf')


def _examine(path: Path) -> tuple[str | None, int]:
    """What is wrong with a checkpoint, if anything, and the iterations before it."""
    if problem := why_no_file(path):
        return f'it {problem}', 0
    try:
        checkpoint = load_checkpoint_file(path)
    except (OSError, CheckpointError) as error:
        return f'it cannot be read ({str(error).splitlines()[0]}).', 0
    if not isinstance(checkpoint, dict):
        return f'it holds a {type(checkpoint).__name__}, no dictionary of states.', 0
    if not isinstance(checkpoint.get('optimizer'), dict):
        return 'it lacks the state of the optimizer.', 0
    meta = checkpoint.get('meta', {})
    iteration = meta.get('iter', 0) if isinstance(meta, dict) else None
    if type(iteration) is not int or iteration < 0:
        return "it does not say as a whole number in meta['iter'] how far the run was.", 0
    return None, iteration
