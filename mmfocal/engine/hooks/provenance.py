"""Where a checkpoint comes from: versions, machine, command, and the state of the code."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmfocal.utils.compat import STACKS, installed
from mmfocal.version import __version__

PACKAGES = (
    *('numpy', 'triton'),
    *(package.distribution for stack in STACKS.values() for package in stack.values()),
)
KEY = 'mmfocal_provenance'
LISTED = 20  # changed files at most


def provenance(config: str | None = None) -> dict[str, Any]:
    """What someone needs to run the same again, in plain strings, numbers, lists and dicts.

    Args:
        config: path of the config, for the state of the repository that it lies in.

    Returns:
        ``command``, as a line for a shell; ``versions`` by package; ``machine``; ``code``, one
        entry for each git repository that mmfocal or the config lies in, see :func:`git_state`.
    """
    folders = [Path(__file__).parents[2]]
    if config:
        folders.append(Path(config).resolve().parent)
    states = [state for folder in folders if (state := git_state(folder))]
    return dict(
        command=shlex.join([sys.executable, *sys.argv]),
        versions=package_versions(),
        machine=dict(
            system=platform.platform(),
            cuda=torch.version.cuda or 'none',
            cudnn=torch.backends.cudnn.version() or 0,
            gpus=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            threads=torch.get_num_threads(),
        ),
        code=[state for i, state in enumerate(states) if state not in states[:i]],
    )


def package_versions() -> dict[str, str]:
    """Versions of what a run rests on, by package."""
    return dict(
        mmfocal=__version__,
        python=platform.python_version(),
        torch=str(torch.__version__),  # a string of a class that no checkpoint may hold
        **{name: number for name in PACKAGES if (number := installed(name))},
    )


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and changes of the repository that a folder lies in; None without git or outside one.

    Returns:
        ``folder``, the root of the repository; ``commit``, of 40 digits, or '' before the first;
        ``changed``, the first files that differ from it or are new, as git lists them; and
        ``more``, how many others there are.
    """
    root = _git(folder, 'rev-parse', '--show-toplevel')
    if not root:
        return None
    # A folder of packages below somebody's repository is no part of it.
    if _git(folder, 'check-ignore', '--quiet', '.') is not None:
        return None
    changed = (_git(folder, 'status', '--porcelain') or '').splitlines()
    return dict(
        folder=root,
        commit=_git(folder, 'rev-parse', '--verify', '--quiet', 'HEAD') or '',
        changed=changed[:LISTED],
        more=max(len(changed) - LISTED, 0),
    )


def _git(folder: Path, *args: str) -> str | None:
    """What git prints; None if there is no git or it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith('GIT_')}
    try:
        result = subprocess.run(
            ['git', '-C', str(folder), *args],
            capture_output=True,
            text=True,
            timeout=30,  # file systems of clusters may be slow
            env=dict(environment, GIT_OPTIONAL_LOCKS='0'),
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.rstrip() if result.returncode == 0 else None


@HOOKS.register_module()
class ProvenanceHook(Hook):
    """Writes :func:`provenance` into the log and, as ``mmfocal_provenance``, every checkpoint."""

    priority = 'VERY_LOW'

    def before_run(self, runner: Runner) -> None:
        """Looks once, at the code that was imported and not at what it has become since."""
        self.found: dict[str, Any] = {}
        if is_main_process():
            self.found = provenance(getattr(runner.cfg, 'filename', None))
            runner.logger.info(_text(self.found))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds it."""
        checkpoint[KEY] = self.found


def _text(found: dict[str, Any]) -> str:
    lines = [f'Command: {found["command"]}']
    for state in found['code']:
        count = len(state['changed']) + state['more']
        changes = f', {count} files changed or new' if count else ''
        lines.append(f'Code: {state["folder"]} at {state["commit"] or "no commit"}{changes}')
        lines.extend(f'  {line}' for line in state['changed'])
    return '\n'.join(lines)
