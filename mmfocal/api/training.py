"""Training from Python: what ``mmfocal new_config`` and ``mmfocal train`` do, and its results."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.runner import Runner

from mmfocal import engine
from mmfocal.engine import TestOptions, TrainOptions, load_config
from mmfocal.engine.checkpoints import CheckpointFolders, latest_valid, num_iterations
from mmfocal.engine.curves import draw_curves, read_scalars
from mmfocal.engine.hooks.validations import ValidationsHook
from mmfocal.engine.lock import owned
from mmfocal.engine.metrics import main_metric
from mmfocal.engine.misspelt import nearest
from mmfocal.engine.start import AUTO
from mmfocal.inference import Inferencer
from mmfocal.utils.errors import UserError
from mmfocal.utils.progress import in_notebook

from .new_config import new_config


@dataclass(frozen=True)
class TrainResult:
    """What a run has left.

    Attributes:
        work_dir: folder with the log, ``curves.png`` and checkpoints.
        config: the complete config of the run, with which every tool can be called.
        metrics: of the last validation, by name; empty if there was none.
        best_metrics: of the validation after which the best checkpoint was written.
        best_checkpoint: None if none was kept.
        checkpoint: the newest one, from which the run can be resumed; None if there is none.
    """

    work_dir: Path
    config: Path
    metrics: dict[str, float]
    best_metrics: dict[str, float]
    best_checkpoint: Path | None
    checkpoint: Path | None

    @property
    def curves(self) -> Figure:
        """Losses, metrics and learning rate, see :func:`mmfocal.engine.curves.draw_curves`."""
        return draw_curves(self.work_dir)

    def inferencer(self, **options: Any) -> Inferencer:
        """The trained model: its best checkpoint, or its newest one if no best one was kept.

        Args:
            **options: of :class:`mmfocal.Inferencer`.
        """
        return Inferencer(self.config, self._evaluated(), **options)

    def test(self, **options: Any) -> dict[str, float]:
        """Evaluates the same checkpoint on the test set of the config, as ``mmfocal test`` does.

        Args:
            **options: fields of :class:`mmfocal.engine.TestOptions`.

        Returns:
            Metrics by name.
        """
        given = dict(work_dir=str(self.work_dir), quiet=in_notebook()) | options
        _check_names(given, TestOptions)
        given.setdefault('checkpoint', str(self._evaluated()))
        return engine.test(load_config(self.config), TestOptions(**given))

    def _evaluated(self) -> Path:
        found = self.best_checkpoint or self.checkpoint
        if found is None:
            raise UserError(f'{self.work_dir} holds no checkpoint of this run.')
        return found


def train(
    config: str | os.PathLike | Config,
    data: str | os.PathLike | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    **asked: Any,
) -> TrainResult:
    """Trains the model of a config, on its data or on a folder of your own.

    ::

        from mmfocal import train
        result = train('focal_maskrcnn_3x', data='my_data', epochs=12)
        result.metrics, result.curves, result.inferencer()('photos')

    It does what ``mmfocal new_config`` and ``mmfocal train`` do, and may be called any number of
    times in a process. What differs: the best checkpoint is kept if the config validates, and in
    a notebook there is a bar and a line for each validation instead of the log. If it is
    interrupted, the same call with ``resume=True`` resumes from the newest checkpoint.

    Args:
        config: path, or name of a config of this repository; with ``data`` what to begin with.
            Without ``data`` also a ``Config``, which is not changed.
        data: folder with images and annotations, in any of the formats of docs/training.md; None
            for the data of the config. For what the folder does not tell, such as names of
            classes, call :func:`mmfocal.new_config`, and give the path that it returns as config.
        options: values of the config by dotted key, as ``--cfg-options`` has them.
        **asked: any field of :class:`mmfocal.engine.TrainOptions`: ``epochs=12``,
            ``work_dir='runs/first'``, ``resume=True``, ``seed=0``, ``early_stop=10`` ... The work
            folder is that of the config, or ``work_dirs/NAME``, with ``data``
            ``work_dirs/CONFIG_DATA``.

    Raises:
        UserError: what the user can mend; the message says how. It takes the options by the names
            that they have as options of the tools: ``--save-best`` is ``save_best``.
    """
    asked = dict(asked)
    _check_names(asked, TrainOptions)
    if isinstance(resume := asked.get('resume'), bool):
        asked['resume'] = AUTO if resume else None
    asked.setdefault('quiet', in_notebook())
    if data is not None:
        if isinstance(config, Config):
            raise UserError(
                'config: with data it is a path or a name, got a Config. Write it into a file '
                "(config.dump('base.py')), and give its path."
            )
        config = _with_data(Path(data), str(config), asked)
    cfg = load_config(config, options)
    asked.setdefault('save_best', _can_keep_best(cfg))
    try:
        runner = engine.train(cfg, TrainOptions(**asked))
    except KeyboardInterrupt:
        print(
            f'Interrupted. The same call with resume=True resumes from the newest checkpoint of '
            f'{cfg.get("work_dir")}, if there is one yet.',
            file=sys.stderr,
        )
        raise
    return _result(runner)


# What notebooks show of it, with every option and its default.
train.__signature__ = inspect.signature(train).replace(
    parameters=[
        *list(inspect.signature(train).parameters.values())[:-1],
        *(
            inspect.Parameter(
                each.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=each.default,
                annotation=each.type,
            )
            for each in fields(TrainOptions)
        ),
    ]
)


def _check_names(options: Mapping[str, Any], kind: type) -> None:
    names = [each.name for each in fields(kind)]
    for name in options:
        if name not in names:
            near = nearest(name, names) or names
            raise UserError(
                f'There is no option {name} (nearest to it: {", ".join(near)}). Values of the '
                "config go into options: options={'train_dataloader.batch_size': 4}."
            )


def _with_data(data: Path, base: str, asked: dict[str, Any]) -> Path:
    """Writes a config for a folder of data into the work folder; gives its path."""
    if asked.get('launcher', 'none') != 'none':
        raise UserError(
            'data is prepared by one process, and there are several with a launcher. Run '
            'mmfocal new_config once, and train the config that it writes.'
        )
    name = f'{Path(base).stem}_{data.resolve().name}'
    work_dir = Path(asked.setdefault('work_dir', f'work_dirs/{name}') or f'work_dirs/{name}')
    asked['work_dir'] = str(work_dir)
    # Another run that is at work there reads these files.
    with owned(work_dir) as note:
        written = new_config(data, base, work_dir / f'{name}.py', force=True)
    for line in filter(None, (note, *written.lines)):
        print(line)
    return written.path


def _can_keep_best(cfg: Config) -> bool:
    if not cfg.get('val_dataloader') or not cfg.get('val_evaluator'):
        return False
    if (cfg.get('default_hooks') or {}).get('checkpoint', 'default') is None:
        return False
    with suppress(UserError):  # no evaluator whose main metric is known
        return bool(main_metric(cfg))
    return False


def _result(runner: Runner) -> TrainResult:
    cfg, work_dir = runner.cfg, Path(runner.work_dir).absolute()
    folders = CheckpointFolders.of(cfg)
    best = [each.path for each in folders.checkpoints() if each.is_best]
    best_checkpoint = max(best, key=os.path.getmtime) if best else None
    validations = _validations(runner)
    until = num_iterations(best_checkpoint) if best_checkpoint else -1
    up_to_best = [metrics for iteration, metrics in validations if iteration <= until]
    return TrainResult(
        work_dir=work_dir,
        # as mmengine names the one that it writes
        config=work_dir / Path(cfg.filename or f'{runner.timestamp}.py').name,
        metrics=validations[-1][1] if validations else {},
        best_metrics=up_to_best[-1] if up_to_best else {},
        best_checkpoint=best_checkpoint,
        checkpoint=latest_valid(folders)[0],
    )


def _validations(runner: Runner) -> list[tuple[float, dict[str, float]]]:
    """Metrics by iteration: of this start, and from the log those of earlier ones."""
    hook = next(hook for hook in runner.hooks if isinstance(hook, ValidationsHook))
    first = hook.found[0][0] if hook.found else float('inf')
    rows: list[dict[str, float]] = []
    with suppress(FileNotFoundError):  # a visualizer that writes none
        rows = read_scalars(runner.work_dir)
    logged = [
        (row['step'], {key: value for key, value in row.items() if key not in _NO_METRICS})
        for row in rows
        if 'loss' not in row and row['step'] < first
    ]
    return [*logged, *hook.found]


_NO_METRICS = ('step', 'time', 'data_time')
