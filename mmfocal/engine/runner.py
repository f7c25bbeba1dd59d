"""Runs of a config: the one place that turns it, and what a user asks for besides, into a run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmfocal.datasets.checks import check_contents, check_data, install_sample_errors
from mmfocal.utils.errors import is_first_process
from mmfocal.weights import install_safe_loading

from . import settings
from .build_errors import told_settings
from .checkpoints import checkpoint_of
from .hooks import RunStateHook
from .hooks.progress import live_progress
from .hooks.validations import ValidationsHook
from .process import left_as_found, without_prints
from .results import set_predictions_file, set_visualization, write_metrics
from .schedule import set_length
from .sections import check_sections, check_seed
from .start import Start, begun


@dataclass(frozen=True)
class TrainOptions:
    """What a user asks for besides a config, as the options of ``tools/train.py`` do.

    Attributes:
        work_dir: folder for logs and checkpoints; None for that of the config, or
            ``work_dirs/<name of the config>``.
        resume: ``'auto'`` to resume from the newest valid checkpoint, or the path of a checkpoint;
            None for what the config says, see :func:`mmfocal.engine.start.decide`.
        amp: whether to train in mixed precision, in the format that the config says, or float16.
        precision: ``'fp32'``, ``'fp16'`` or ``'bf16'``; None for that of the config.
        auto_scale_lr: whether the learning rate follows the number of images a step.
        ema: whether averaged weights are evaluated and saved, too.
        save_best: whether the best checkpoint is kept, too.
        early_stop: validations without a better result after which training ends; None for never.
        val_loss: whether the losses on the validation set are logged, too.
        log_to: services to log to, see :func:`mmfocal.engine.settings.set_logs`.
        seed: None for that of the config, or a new one.
        deterministic: whether to use only deterministic operators.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        data_check: whether annotations and images are looked into before training.
        skip_bad_samples: whether training leaves out samples that cannot be loaded.
        epochs: passes over the data instead of those of the config, see
            :func:`mmfocal.engine.schedule.set_length`.
        iterations: the same for configs that train by iterations.
        quiet: whether, instead of the log, only metrics and warnings are shown.
    """

    work_dir: str | None = None
    resume: str | None = None
    amp: bool = False
    precision: str | None = None
    auto_scale_lr: bool = False
    ema: bool = False
    save_best: bool = False
    early_stop: int | None = None
    val_loss: bool = False
    log_to: Sequence[str] | None = None
    seed: int | None = None
    deterministic: bool = False
    launcher: str = 'none'
    data_check: bool = True
    skip_bad_samples: bool = False
    epochs: int | None = None
    iterations: int | None = None
    quiet: bool = False


@dataclass(frozen=True)
class TestOptions:
    """What a user asks for besides a config, as the options of ``tools/test.py`` do.

    Attributes:
        checkpoint: path, URL, or work folder of a run, for its best or newest checkpoint.
        work_dir: as of :class:`TrainOptions`.
        out: ``.json``; metrics go there, and predictions beside it.
        show: whether predictions are shown in a window.
        show_dir: folder for images with predictions.
        tta: whether to augment images, by the config's ``tta_model`` and ``tta_pipeline``.
        launcher: as of :class:`TrainOptions`.
        data_check: whether annotations and images are looked into before.
        quiet: as of :class:`TrainOptions`.
    """

    __test__ = False  # no class of tests, whatever pytest thinks of its name

    checkpoint: str
    work_dir: str | None = None
    out: str | None = None
    show: bool = False
    show_dir: str | None = None
    tta: bool = False
    launcher: str = 'none'
    data_check: bool = True
    quiet: bool = False


def train(cfg: Config, options: TrainOptions | None = None) -> Runner:
    """Trains the model of a config.

    Args:
        cfg: the config, changed in place.
        options: what is asked for besides.

    Returns:
        The runner, when the run has ended; loggers, random numbers and the like of the process
        are as before, see :mod:`mmfocal.engine.process`.

    Raises:
        UserError: data that is missing or bad, options that do not fit this config or machine, or
            a work folder that another run has; before anything is built.
    """
    with left_as_found():
        return _train(cfg, options or TrainOptions())


def _train(cfg: Config, options: TrainOptions) -> Runner:
    check_sections(cfg, 'train')
    check_seed('--seed', options.seed)
    _check_data(cfg, ('train', 'val'), options.data_check)
    settings.set_work_dir(cfg, options.work_dir)
    if options.auto_scale_lr:
        settings.set_auto_scale_lr(cfg)
    if options.ema:
        settings.set_ema(cfg)
    settings.set_stopping(cfg, options.save_best, options.early_stop)
    if options.val_loss:
        settings.set_validation_loss(cfg)
    settings.set_logs(cfg, options.log_to)
    notes = [
        settings.set_precision(cfg, options.amp, options.precision),
        settings.set_reliability(cfg),
    ]
    settings.set_launcher(cfg, options.launcher)
    install_safe_loading()
    install_sample_errors(skip=options.skip_bad_samples)
    with without_prints(options.quiet):
        notes.append(set_length(cfg, options.epochs, options.iterations))
    with begun(cfg, options.resume) as start, ExitStack() as stack:
        notes = [*filter(None, notes), *start.notes]
        for note in notes if is_first_process() else []:
            print(note)
        settings.set_seed(cfg, options.seed, options.deterministic, start.resume_from)
        validations = ValidationsHook(shown=options.quiet)
        stack.enter_context(without_prints(options.quiet))
        runner = settings.build_runner(cfg, start, options.quiet)
        runner.register_hook(validations)
        for hook in runner.hooks:
            if isinstance(hook, RunStateHook):
                stack.callback(hook.stop_listening)
        for note in notes:  # for its log, which was not there yet
            runner.logger.info(note)
        with told_settings(cfg), live_progress(runner):
            runner.train()
        settings.leave_group()
    return runner


def test(cfg: Config, options: TestOptions) -> dict[str, Any]:
    """Evaluates a checkpoint with its config.

    Args:
        cfg: the config, changed in place.
        options: the checkpoint, and what is asked for besides.

    Returns:
        Metrics by name.

    Raises:
        UserError: data that is missing or bad, a checkpoint that is missing, or options that do
            not fit the config.
    """
    with left_as_found():
        return _test(cfg, options)


def _test(cfg: Config, options: TestOptions) -> dict[str, Any]:
    check_sections(cfg, 'test')
    _check_data(cfg, ('test',), options.data_check)
    settings.set_work_dir(cfg, options.work_dir)
    start = Start(load_from=checkpoint_of(options.checkpoint))
    if options.out:
        set_predictions_file(cfg, options.out)
    if options.show or options.show_dir:
        set_visualization(cfg, options.show, options.show_dir)
    if options.tta:
        settings.set_test_time_augmentation(cfg)
    settings.set_launcher(cfg, options.launcher)
    settings.set_seed(cfg)
    install_safe_loading()
    install_sample_errors()
    validations = ValidationsHook(shown=options.quiet)
    with without_prints(options.quiet):
        runner = settings.build_runner(cfg, start, options.quiet)
        runner.register_hook(validations)
        with told_settings(cfg), live_progress(runner):
            metrics = runner.test()
    if options.out:
        write_metrics(options.out, metrics, str(cfg.filename), options.checkpoint)
    settings.leave_group()
    return metrics


def _check_data(cfg: Config, splits: Sequence[str], contents: bool) -> None:
    """Whether the data is there, and on request whether it is fit; tells what is noted."""
    check_data(cfg, splits)
    if contents and is_first_process():
        for line in check_contents(cfg, splits):
            print(line)
