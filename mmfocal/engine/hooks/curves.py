"""A figure of the curves beside each run."""

from __future__ import annotations

from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class CurvesHook(Hook):
    """Draws ``curves.png`` in the work folder after every validation and at the end.

    It shows losses, metrics and learning rate over all starts of the run; see
    :mod:`mmfocal.engine.curves`. A figure that cannot be drawn is a warning, and does
    not end the run.
    """

    priority = 'LOWEST'  # what is drawn has been logged before

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self._draw(runner)

    def after_train(self, runner: Runner) -> None:
        self._draw(runner)

    def _draw(self, runner: Runner) -> None:
        if not is_main_process():
            return
        try:
            from ..curves import draw_curves

            figure = draw_curves(runner.work_dir)
            figure.savefig(Path(runner.work_dir) / 'curves.png', dpi=150)
        except Exception as error:
            runner.logger.warning(f'curves.png was not drawn: {type(error).__name__}: {error}')
