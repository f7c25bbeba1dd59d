"""The best checkpoint so far, which leaves the newest one as it is."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class BestCheckpointHook(CheckpointHook):
    """mmengine's hook, which does not write the newest checkpoint again after a validation.

    mmengine does so when the validated weights are the best ones. Hooks that follow in the same
    validation would not be in that file, and it would look as if they were: a run is resumed from
    before a validation or from after it.
    """

    _is_validating = False

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        self._is_validating = True
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self._is_validating = False

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        if not self._is_validating:
            super()._save_checkpoint_with_step(runner, step, meta)
