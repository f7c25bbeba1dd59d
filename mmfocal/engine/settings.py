"""What the options of the tools change in a config, and the runner of the result."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import init_dist, sync_random_seed
from mmengine.hooks import CheckpointHook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmfocal.utils.compat import FAMILIES
from mmfocal.utils.config import family_of, import_packages, is_third_party, type_name
from mmfocal.utils.errors import UserError
from mmfocal.utils.files import check_folder
from mmfocal.weights.safe_loading import load_checkpoint_file

from . import checkpoints, log_backends, loops, optim  # noqa: F401  register themselves
from .bfloat16 import prepare_bfloat16
from .build_errors import told_settings
from .determinism import install_determinism
from .hooks import NonFiniteHook
from .hooks.validation_loss import loss_dataloader
from .metrics import MainMetric, main_metric, own_metric
from .misspelt import check_arguments
from .process import QuietRunner
from .start import Start

# mmengine's loops, and those that can be resumed anywhere.
LOOPS = {kind: f'Resumable{kind}' for kind in ('EpochBasedTrainLoop', 'IterBasedTrainLoop')}

# Hooks that write mmengine's checkpoints.
CHECKPOINT_HOOKS = ('CheckpointHook', 'BestCheckpointHook')
MIN_KEPT = 2  # checkpoints; one may be damaged after it was written

# Packages that a run can log to, beside its own folder, and the backend for each.
LOGS = {
    'tensorboard': 'TensorboardVisBackend',
    'wandb': 'WandbBackend',
    'mlflow': 'MLflowBackend',
}
# mmengine's backends, and those that heed what is set for the service: see log_backends.
ADDRESSED = {f'{name}VisBackend': f'{name}Backend' for name in ('MLflow', 'Wandb')}
# How processes of a run may have been started, and what mmengine looks for in their environment.
LAUNCHERS = {
    'none': (),
    'pytorch': ('RANK', 'WORLD_SIZE'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS'),
    'mpi': ('MASTER_ADDR', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


def set_work_dir(cfg: Config, work_dir: str | None) -> None:
    """``work_dir`` if given, else the config's own, else ``work_dirs/<name of the config>``.

    Raises:
        UserError: none of the three is known, or it can be no folder.
    """
    work_dir = work_dir or cfg.get('work_dir')
    if not work_dir and not cfg.filename:
        raise UserError('A config that is no file needs a work_dir: set it, or give --work-dir.')
    cfg.work_dir = str(work_dir or f'work_dirs/{Path(cfg.filename).stem}')
    if '://' not in cfg.work_dir:
        check_folder(cfg.work_dir)


def set_launcher(cfg: Config, launcher: str) -> None:
    """Sets the launcher, and joins the process group of a distributed run.

    mmengine's way into a group needs a GPU. Without one, processes join by gloo here.

    Args:
        cfg: the config, changed in place.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        UserError: there is no such launcher, or it has not started this process.
    """
    if launcher not in LAUNCHERS:
        raise UserError(f'--launcher: expected one of {", ".join(LAUNCHERS)}, got {launcher!r}.')
    if absent := [name for name in LAUNCHERS[launcher] if name not in os.environ]:
        raise UserError(
            f'--launcher {launcher}: this process was not started by it, {" and ".join(absent)} '
            'are not in its environment. Use tools/dist_train.sh, torchrun or srun, or leave the '
            'option out for a single process.'
        )
    cfg.launcher = launcher
    if launcher == 'none':
        return
    # Before the runner does it: the processes have to agree on a seed that it is built with.
    if launcher == 'pytorch' and not torch.cuda.is_available():
        torch.distributed.init_process_group('gloo')
        if cfg.get('model_wrapper_cfg') is None:
            cfg.model_wrapper_cfg = dict(
                type='MMDistributedDataParallel',
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=cfg.get('find_unused_parameters', False),
            )
    else:
        if launcher == 'mpi':  # mmengine takes the GPU of this number, but wraps for LOCAL_RANK's
            os.environ['LOCAL_RANK'] = os.environ['OMPI_COMM_WORLD_LOCAL_RANK']
        init_dist(launcher, **((cfg.get('env_cfg') or {}).get('dist_cfg') or {}))


def leave_group() -> None:
    """Ends a distributed run for all its processes together.

    If one ended while others still talk to it, the job would fail after its last step.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def set_seed(
    cfg: Config,
    seed: int | None = None,
    deterministic: bool = False,
    resume_from: str | None = None,
) -> None:
    """``seed`` if given, else that of the config, of the run that is resumed, or a new one.

    It is the same in all processes and lands in the config, so that the dumped config and every
    checkpoint repeat the run.

    Args:
        cfg: the config, changed in place.
        seed: a number, or None.
        deterministic: whether only deterministic operators are used, with an error at one that has
            no such version. On a CPU all are; for GPUs see :mod:`~mmfocal.engine.determinism`.
        resume_from: the checkpoint whose run is resumed, or None.
    """
    randomness = dict(cfg.get('randomness') or {})
    if deterministic:
        randomness['deterministic'] = True
        cfg.setdefault('env_cfg', {})['cudnn_benchmark'] = False
    if randomness.get('deterministic'):
        # What cuBLAS asks for; read when CUDA is first used.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    if seed is None:
        seed = randomness.get('seed')
    if seed is None and resume_from is not None:
        # The runner reads it too, but only after it has made the order of the data.
        seed = load_checkpoint_file(resume_from).get('meta', {}).get('seed')
    cfg.randomness = dict(randomness, seed=sync_random_seed() if seed is None else seed)


def set_precision(cfg: Config, amp: bool = False, precision: str | None = None) -> str | None:
    """The number format of training: that of the config, or what is asked for.

    Weights are float32 in all of them. In ``'fp16'`` and ``'bf16'`` most operators compute in 16
    bits; gradients of the first are scaled so that small ones are not lost, those of the second,
    which has the range of float32, are not. Without a GPU everything is float32: mmengine has no
    mixed precision there.

    Args:
        cfg: the config, changed in place.
        amp: whether the user asks for mixed precision, in the format that the config says, or
            float16.
        precision: ``'fp32'``, ``'fp16'``, ``'bf16'``, or None for that of the config.

    Returns:
        A note for the user, or None.

    Raises:
        UserError: the user asks for what this machine, or the config's optimizer wrapper, cannot
            do.
    """
    wrapper = cfg.get('optim_wrapper')
    if not isinstance(wrapper, dict):
        raise UserError(f'optim_wrapper: expected a dict, got {wrapper!r}.')
    kind = type_name(wrapper.setdefault('type', 'OptimWrapper'))
    if is_third_party(wrapper):
        kind = f'{kind} of a package of your own'
    _check_precision(kind, amp, precision)
    if precision == 'bf16':
        wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')
        wrapper.loss_scale = dict(enabled=False)
    elif precision == 'fp16':
        if wrapper.get('dtype') == 'bfloat16' or 'loss_scale' not in wrapper:
            wrapper.loss_scale = 'dynamic'
        wrapper.update(type='AmpOptimWrapper', dtype='float16')
    elif amp and kind == 'OptimWrapper':
        wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    elif kind == 'AmpOptimWrapper' and (precision or not torch.cuda.is_available()):
        wrapper.type = 'OptimWrapper'
        for name in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(name, None)
        return None if precision else 'No GPU: training in float32 instead of mixed precision.'
    return None


def _check_precision(kind: str, amp: bool, precision: str | None) -> None:
    asked = '--amp' if amp else f'--precision {precision}'
    if amp and precision:
        raise UserError(f'--amp and --precision {precision} exclude each other. Give one of them.')
    if precision not in (None, 'fp32', 'fp16', 'bf16'):
        raise UserError(f'--precision: expected fp32, fp16 or bf16, got {precision!r}.')
    if precision and kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(
            f'{asked}: expected optim_wrapper.type to be OptimWrapper or AmpOptimWrapper, got '
            f'{kind}, which has a precision of its own. Leave the option out.'
        )
    if (amp or precision in ('fp16', 'bf16')) and not torch.cuda.is_available():
        raise UserError(
            f'{asked} needs a GPU, and PyTorch sees none. Leave it out to train in float32, or '
            'run `python tools/doctor.py` if there should be one.'
        )
    # What PyTorch emulates on older GPUs is slower than float32.
    if precision == 'bf16' and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            '--precision bf16: expected a GPU that computes in bfloat16 (NVIDIA Ampere or '
            f'newer), got {torch.cuda.get_device_name()}. Take --precision fp16.'
        )


def set_reliability(cfg: Config) -> str | None:
    """Lets the run be killed at any moment and resumed as if it had not been.

    mmengine's training loops are replaced by those of :mod:`~mmfocal.engine.loops`, its hook for
    checkpoints writes through :class:`~mmfocal.engine.checkpoints.AtomicBackend`, and the hooks of
    :mod:`~mmfocal.engine.hooks.run_state` and :mod:`~mmfocal.engine.hooks.provenance` are added.
    Third-party loops and hooks for checkpoints are left as they are. The config names the module
    in which these parts are, so that other tools can use it as it is written down; given here
    again, it is left as it is.

    Returns:
        A note for the user, or None.
    """
    if not cfg.get('default_hooks'):
        cfg.default_hooks = {}
    checkpoint = cfg.default_hooks.get('checkpoint', dict(interval=1))  # mmengine's default
    if checkpoint is not None:
        checkpoint = {'type': 'CheckpointHook', **checkpoint}
    cfg.default_hooks.checkpoint = _reliable(checkpoint, cfg)
    cfg.custom_hooks = [_reliable(hook, cfg) for hook in cfg.get('custom_hooks') or []]
    _add_import(cfg, 'mmfocal.engine')
    _add_hook(cfg, dict(type='RunStateHook'))
    _add_hook(cfg, dict(type='ProvenanceHook'))
    _add_hook(cfg, dict(type='PlainCheckpointHook'))

    settings = cfg.train_cfg
    if 'type' not in settings:
        settings.type = f'{"Epoch" if settings.pop("by_epoch", True) else "Iter"}BasedTrainLoop'
    kind = type_name(settings)
    if kind in LOOPS.values():
        return None
    if kind not in LOOPS or is_third_party(settings):
        return (
            f'train_cfg.type is {kind}: after --resume, this run may not continue exactly as it '
            f'would have. Loops that can: {", ".join(LOOPS)}.'
        )
    settings.type = LOOPS[kind]
    return None


def _reliable(hook: Any, cfg: Config) -> Any:
    """A hook as it is, or if it is mmengine's for checkpoints, one that loses none of them."""
    stock = isinstance(hook, Mapping) and not is_third_party(hook)
    if not stock or type_name(hook) not in CHECKPOINT_HOOKS:
        return hook
    check_arguments('The checkpoint hook', hook, CheckpointHook, Runner.save_checkpoint)
    hook = dict(hook, type='BestCheckpointHook')
    if 0 < hook.get('max_keep_ckpts', -1) < MIN_KEPT:
        hook['max_keep_ckpts'] = MIN_KEPT
    is_local = '://' not in str(hook.get('out_dir') or cfg.get('work_dir'))
    if is_local and not (hook.get('backend_args') or hook.get('file_client_args')):
        hook['backend_args'] = dict(backend='atomic')
    return hook


def _add_import(cfg: Config, module: str) -> None:
    custom = dict(cfg.get('custom_imports') or {})
    names = custom.get('imports') or []
    names = [names] if isinstance(names, str) else [*names]
    if module not in names:
        cfg.custom_imports = dict(custom, imports=[*names, module])


def set_logs(cfg: Config, names: Sequence[str] | None = None) -> None:
    """Lets a run log to other services, and draw its curves.

    mmengine's backends of the config are replaced by those of
    :mod:`~mmfocal.engine.log_backends`, which heed the environment.

    Args:
        cfg: the config.
        names: of :data:`LOGS`; None for TensorBoard where it is installed.

    Raises:
        UserError: the package of a service is not installed.
    """
    if names is None:
        names = ['tensorboard'] if importlib.util.find_spec('tensorboard') else []
    names = [names] if isinstance(names, str) else names
    if cfg.get('visualizer') is None:
        cfg.visualizer = dict(type='Visualizer')
    backends = cfg.visualizer.get('vis_backends') or [dict(type='LocalVisBackend')]
    backends = [_addressed(backend) for backend in backends]
    present = {type_name(backend) for backend in backends}
    for name in names:
        if name not in LOGS:
            raise UserError(f'--log-to: expected one of {", ".join(LOGS)}, got {name!r}.')
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f'--log-to {name}: the package is not installed. Run: pip install {name}'
            )
        if LOGS[name] not in present:
            backends.append(dict(type=LOGS[name]))
    cfg.visualizer.vis_backends = backends
    _add_hook(cfg, dict(type='CurvesHook'))


def _addressed(backend: Any) -> Any:
    """A backend as it is, or if it is mmengine's, one that logs where the user says."""
    stock = isinstance(backend, Mapping) and not is_third_party(backend)
    kind = ADDRESSED.get(type_name(backend)) if stock else None
    return backend if kind is None else dict(backend, type=kind)


def set_stopping(cfg: Config, save_best: bool, early_stop: int | None) -> None:
    """Keeps the best checkpoint, and ends training that does not get better.

    What is better, :func:`~mmfocal.engine.metrics.main_metric` says. A validation without that
    metric is passed over, for a best checkpoint that the config itself asks for, too.

    Args:
        cfg: the config, changed in place.
        save_best: whether ``best_*.pth`` is kept beside the newest checkpoints.
        early_stop: validations without a better metric after which training ends; None for never.

    Raises:
        UserError: the config does not validate, does not keep checkpoints, or its evaluators have
            no main metric.
    """
    if early_stop is not None and (type(early_stop) is not int or early_stop < 1):
        raise UserError(f'--early-stop: expected a number of validations, got {early_stop!r}.')
    if not save_best and early_stop is None:
        return
    if not cfg.get('val_dataloader') or not cfg.get('val_evaluator'):
        raise UserError(
            f'{"--save-best" if save_best else "--early-stop"} compares validations, and this '
            'config has none. Set val_dataloader, val_cfg and val_evaluator, or leave it out.'
        )
    metric = main_metric(cfg)
    if save_best and own_metric(cfg) is None:
        _save_best(cfg, metric)
    if early_stop is not None:
        # By default mmengine wants the metric to grow by 0.1, which is a lot for an AP; with 0 it
        # takes an equal one for better.
        stopping = dict(type='EarlyStoppingHook', rule=metric.rule, min_delta=1e-6)
        _add_hook(cfg, dict(**stopping, monitor=metric.name, patience=early_stop))


def _save_best(cfg: Config, metric: MainMetric) -> None:
    hooks = cfg.get('default_hooks') or {}
    checkpoint = hooks.get('checkpoint', dict(interval=1))
    if checkpoint is None:
        raise UserError(
            '--save-best: default_hooks.checkpoint is None, so that no checkpoints are kept.'
        )
    checkpoint = dict(checkpoint, save_best=metric.name, rule=metric.rule)
    cfg.default_hooks = dict(hooks, checkpoint=checkpoint)


def set_ema(cfg: Config) -> None:
    """Evaluates and saves an average of the weights of the last iterations as well.

    The average is exponential, with a share of 0.0002 for each new iteration and more at the
    beginning, as YOLOX does; ``custom_hooks`` of a config can have it otherwise.
    """
    if not any(type_name(hook) == 'EMAHook' for hook in cfg.get('custom_hooks') or []):
        average = dict(type='EMAHook', ema_type='WarmedUpEMA', momentum=0.0002)
        _add_hook(cfg, dict(**average, update_buffers=True))


def set_validation_loss(cfg: Config) -> None:
    """Logs the losses on the validation set too, by ``ValidationLossHook``.

    Raises:
        UserError: the config does not validate, or its pipelines are of another form.
    """
    if not cfg.get('val_dataloader') or family_of(cfg) not in FAMILIES:
        raise UserError(
            f'--val-loss: this config has no validation, or is none of {", ".join(FAMILIES)}. '
            'Leave it out, or set val_dataloader.'
        )
    evaluators = cfg.get('val_evaluator') or []
    evaluators = [evaluators] if isinstance(evaluators, dict) else evaluators
    if evaluators and all(evaluator.get('format_only') for evaluator in evaluators):
        raise UserError(
            '--val-loss: val_evaluator only writes predictions (format_only), as for images '
            'without annotations, and losses need them. Leave it out, or validate on other data.'
        )
    _add_hook(cfg, dict(type='ValidationLossHook', dataloader=loss_dataloader(cfg)))


def _add_hook(cfg: Config, hook: dict) -> None:
    """Adds a hook, in the place of those of its type that watch the same metric, if any."""

    def does_the_same(other: Any) -> bool:
        is_ours = isinstance(other, Mapping) and not is_third_party(other)
        same_type = is_ours and type_name(other) == type_name(hook)
        return same_type and other.get('monitor') == hook.get('monitor')

    others = [each for each in cfg.get('custom_hooks') or [] if not does_the_same(each)]
    cfg.custom_hooks = [*others, hook]


def set_auto_scale_lr(cfg: Config) -> None:
    """Scales the learning rate from the recipe's batch size to the real one."""
    if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
        raise UserError(
            f'--auto-scale-lr: {cfg.filename} does not say which batch size its learning rate is '
            'for. Add auto_scale_lr = dict(base_batch_size=16), with its own number, to it.'
        )
    cfg.auto_scale_lr.enable = True


def set_test_time_augmentation(cfg: Config) -> None:
    """Merges predictions for several views of each image, as ``tta_*`` of the config say.

    Raises:
        UserError: the config does not say how, or nothing merges what the model predicts.
    """
    model, merger = cfg.model, cfg.get('tta_model') or {}
    stock = type_name(merger) in ('DetTTAModel', 'InstanceTTAModel') and not is_third_party(merger)
    without_boxes = 'panoptic_head' in model or 'loss_mask' in (model.get('bbox_head') or {})
    if family_of(cfg) == 'mmdet' and without_boxes and (stock or not merger):
        raise UserError(
            f'--tta: {cfg.filename}: the masks of {type_name(model)} are not predicted for boxes, '
            'and nothing here merges those of several views. Test without --tta.'
        )
    if not merger or not cfg.get('tta_pipeline'):
        raise UserError(
            f'--tta: {cfg.filename} lacks tta_model or tta_pipeline, which say what views there '
            "are and how to merge them. For mmdet, copy both from this repository's "
            "configs/mmdet/_base_/tta_*.py; for mmseg, its data sets' and runtime's _base_ files "
            'have them.'
        )
    has_masks = family_of(cfg) == 'mmdet' and (model.get('roi_head') or {}).get('mask_head')
    if has_masks and stock and type_name(merger) == 'DetTTAModel':
        raise UserError(
            f'--tta: {cfg.filename} has a mask head, and DetTTAModel only merges boxes. Set '
            "tta_model.type to 'InstanceTTAModel', and name 'mmfocal.detection' among the imports "
            'of custom_imports.'
        )
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(merger, module=model)


def build_runner(cfg: Config, start: Start | None = None, quiet: bool = False) -> Runner:
    """The runner of a complete config, with the modules that it asks for imported.

    A run that is resumed leaves out the pretrained weights that it began with: mmengine would
    load, and perhaps download, them only to overwrite them.

    Args:
        cfg: the config; the runner writes it down as it is.
        start: what the run begins with; None for what the config says.
        quiet: whether only warnings are shown of the log, unless the config has a runner of its
            own.

    Raises:
        UserError: as :func:`~mmfocal.utils.config.import_packages`, or a setting cannot be.
    """
    import_packages(cfg)
    if (cfg.get('randomness') or {}).get('deterministic') and torch.cuda.is_available():
        install_determinism()
    with told_settings(cfg):
        kind = QuietRunner if quiet else Runner
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else kind.from_cfg(cfg)
    if start is not None:
        start.apply(runner)
    runner.register_hook(NonFiniteHook())
    has_bfloat16 = (cfg.get('optim_wrapper') or {}).get('dtype') == 'bfloat16'
    if has_bfloat16 and family_of(cfg) == 'mmdet':
        prepare_bfloat16(runner.model)
    resumes = start.resume_from if start is not None else cfg.get('resume')
    for module in runner.model.modules() if resumes else ():
        init_cfg = getattr(module, 'init_cfg', None)
        if isinstance(init_cfg, dict) and type_name(init_cfg) in ('Pretrained', 'PretrainedInit'):
            module.init_cfg = None
    return runner
