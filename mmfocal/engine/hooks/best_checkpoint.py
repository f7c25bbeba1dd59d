"""The best checkpoint so far, where some validations say nothing about it."""

from __future__ import annotations

import math
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .validation_loss import PREFIX


@HOOKS.register_module()
class BestCheckpointHook(CheckpointHook):
    """mmengine's hook, which takes a validation without its metric for one that is not better.

    Evaluators leave a metric out when there is nothing to measure: mmdet's, for one, as long as
    nothing is detected. A metric that is not finite is not compared either. Losses that
    ``ValidationLossHook`` adds are never what ``save_best='auto'`` chooses.

    Nor does it write the newest checkpoint again when the validated weights are the best ones.
    Hooks that follow in the same validation would not be in that file, which would look as if
    they were: a run is resumed from before a validation or from after it.
    """

    _is_validating = False

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        names = self.key_indicators if self.save_best else []
        if 'auto' in names:
            metrics = {key: value for key, value in metrics.items() if not _is_loss(key)}
            names = list(metrics)[:1]
        comparable = {name: metrics[name] for name in names if _is_finite(metrics.get(name))}
        for name in names:
            if name not in comparable:
                runner.logger.warning(
                    f'Best checkpoint: this validation is passed over, its {name} is '
                    f'{metrics.get(name, "not there")}. Metrics that it has: '
                    f'{", ".join(metrics) or "none"}.'
                )
        if not comparable:
            return
        self._is_validating = True
        try:
            # mmengine passes over a metric that is None.
            super()._save_best_checkpoint(runner, metrics | dict.fromkeys(names) | comparable)
        finally:
            self._is_validating = False

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        if not self._is_validating:
            super()._save_checkpoint_with_step(runner, step, meta)


def _is_loss(name: str) -> bool:
    return name.startswith(PREFIX)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, RuntimeError):  # nothing, a list, a tensor of several numbers
        return False
