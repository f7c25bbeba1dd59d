"""Checkpoints that hold nothing but plain data, which any tool can read."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

KEY = 'mmfocal_log_history'
# What torch.load(weights_only=True) gives back as it was.
ATOMS = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Lets ``torch.load(weights_only=True)`` read what a run writes, and with it all other tools.

    mmengine saves the history of the log as objects of its own, which PyTorch refuses since
    version 2.6. It is saved as float64 and int64 tensors here, by name, and restored from them;
    a run that resumes without this hook begins its log anew, and is the same otherwise. What
    else is no plain data, from third-party hooks and models, becomes plain, or is left out with a
    warning.
    """

    priority = 'LOWEST'  # after all hooks that add something

    def __init__(self) -> None:
        self._told: set[str] = set()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Replaces what is not plain."""
        hub = checkpoint['message_hub']
        histories = {k: v for k, v in hub['log_scalars'].items() if isinstance(v, HistoryBuffer)}
        checkpoint[KEY] = {name: _to_tensors(each) for name, each in histories.items()}
        hub['log_scalars'] = {k: v for k, v in hub['log_scalars'].items() if k not in histories}
        left_out: list[str] = []
        for name, value in list(checkpoint.items()):
            checkpoint[name] = plain(value, name, left_out)
        if new := sorted(set(left_out) - self._told):
            self._told.update(new)
            runner.logger.warning(
                f'The checkpoint is saved without {", ".join(new)}: expected tensors, numbers, '
                'text, and lists or dicts of them. A hook or model that needs it after --resume '
                'has to save it in one of these forms.'
            )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Puts the history where mmengine looks for it."""
        histories = checkpoint.pop(KEY, {})
        if runner._resume:
            for name, state in histories.items():
                checkpoint['message_hub']['log_scalars'][name] = _from_tensors(**state)


def _to_tensors(history: HistoryBuffer) -> dict[str, Any]:
    values, counts = history.data
    return dict(
        values=torch.tensor(values, dtype=torch.float64),
        counts=torch.tensor(counts, dtype=torch.int64),
        max_length=history.max_length,
    )


def _from_tensors(values: Tensor, counts: Tensor, max_length: int) -> HistoryBuffer:
    return HistoryBuffer(values.cpu().numpy(), counts.cpu().numpy(), max_length)


def plain(value: Any, name: str, left_out: list[str]) -> Any:
    """A value as tensors, numbers, text and plain containers of them.

    Args:
        value: anything.
        name: where it stands, for ``left_out``.
        left_out: gets the names and types of what cannot be said so; None stands in its place.
    """
    if type(value) in (*ATOMS, Tensor, torch.nn.Parameter):
        return value
    if isinstance(value, Tensor):
        return value.as_subclass(Tensor)
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in 'biufcSU':
        return value.tolist()
    if isinstance(value, Mapping):
        items = {k: plain(v, f'{name}.{k}', left_out) for k, v in value.items()}
        items = {plain(k, f'{name}.{k}', left_out): v for k, v in items.items()}
        if not isinstance(value, OrderedDict):
            return items
        ordered = OrderedDict(items)
        if hasattr(value, '_metadata'):  # of state dicts
            ordered._metadata = plain(dict(value._metadata), f'{name}._metadata', left_out)
        return ordered
    if isinstance(value, Set):
        return {plain(each, name, left_out) for each in value}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    for kind in (int, float, str):  # enumerations and others that are one of these
        if isinstance(value, kind):
            return kind.__str__(value) if kind is str else kind(value)
    if isinstance(value, Sequence):
        items = [plain(each, f'{name}.{i}', left_out) for i, each in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    left_out.append(f'{name} ({type(value).__name__})')
    return None
