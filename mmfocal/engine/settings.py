"""What the options of the tools change in a config, and the runner of the result."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import init_dist, sync_random_seed
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmfocal.utils.compat import CORE, FAMILIES, check_versions, import_problem, require_mmcv_ops
from mmfocal.utils.config import import_custom_modules, is_third_party, type_name
from mmfocal.utils.errors import UserError, is_first_process
from mmfocal.weights.safe_loading import load_checkpoint_file

from . import checkpoints, loops, optim  # noqa: F401  register themselves
from .bfloat16 import prepare_bfloat16
from .determinism import install_determinism
from .hooks import NonFiniteHook
from .hooks.validation_loss import loss_dataloader

# mmengine's loops, and those that can be resumed anywhere.
LOOPS = {kind: f'Resumable{kind}' for kind in ('EpochBasedTrainLoop', 'IterBasedTrainLoop')}

MIN_KEPT = 2  # checkpoints; one may be damaged after it was written

# Packages that a run can log to, beside its own folder, and mmengine's name for each.
LOGS = {
    'tensorboard': 'TensorboardVisBackend',
    'wandb': 'WandbVisBackend',
    'mlflow': 'MLflowVisBackend',
}
# The metric that says which checkpoint is best, by family.
MAIN_METRICS = {'mmdet': 'coco/bbox_mAP', 'mmseg': 'mIoU', 'mmpretrain': 'accuracy/top1'}


def set_work_dir(cfg: Config, work_dir: str | None) -> None:
    """``work_dir`` if given, else the config's own, else ``work_dirs/<name of the config>``."""
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'work_dirs/{Path(cfg.filename).stem}'


def set_launcher(cfg: Config, launcher: str) -> None:
    """Sets the launcher, and joins the process group of a distributed run.

    mmengine's way into a group needs a GPU. Without one, processes join by gloo here.

    Args:
        cfg: the config, changed in place.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
    """
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
        init_dist(launcher, **cfg.get('env_cfg', {}).get('dist_cfg', {}))


def leave_group() -> None:
    """Ends a distributed run for all its processes together.

    If one ended while others still talk to it, the job would fail after its last step.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def set_seed(cfg: Config, seed: int | None = None, deterministic: bool = False) -> None:
    """``seed`` if given, else that of the config, of the run that is resumed, or a new one.

    It is the same in all processes and lands in the config, so that the dumped config and every
    checkpoint repeat the run.

    Args:
        cfg: the config, changed in place.
        seed: a number, or None.
        deterministic: whether only deterministic operators are used, with an error at one that has
            no such version. On a CPU all are; for GPUs see :mod:`~mmfocal.engine.determinism`.
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
    if seed is None and cfg.get('resume') and cfg.get('load_from'):
        # The runner reads it too, but only after it has made the order of the data.
        seed = load_checkpoint_file(cfg.load_from).get('meta', {}).get('seed')
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
    wrapper = cfg.optim_wrapper
    kind = type_name(wrapper.setdefault('type', 'OptimWrapper'))
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


def set_resume(cfg: Config, resume: str | None) -> str | None:
    """``'auto'`` resumes from the newest valid checkpoint of the work folder, a path from there.

    A work folder without any checkpoint starts a new run, so that a job on a cluster may always be
    given ``--resume``. Without ``resume``, checkpoints of an earlier run are moved to a folder of
    their own, since a new run would write over them.

    Returns:
        A note for the user, or None.

    Raises:
        UserError: the file is not there, or no checkpoint of the folder is whole.
    """
    if resume is None:
        aside = checkpoints.archive_previous_run(cfg.work_dir) if is_first_process() else None
        return aside and (
            f'{cfg.work_dir} held checkpoints of an earlier run. They are in {aside} now; to '
            'resume that run, move them back and add --resume.'
        )
    notes: list[str] = []
    if resume == 'auto':
        # Every process looks for itself, and finds the same.
        checkpoint, notes = checkpoints.latest_valid(cfg.work_dir)
        if checkpoint is None:
            return f'--resume: {cfg.work_dir} holds no checkpoint yet; this is a new run.'
        resume = str(checkpoint)
    elif '://' not in resume and not os.path.isfile(resume):
        raise UserError(
            f'--resume: there is no file {resume} (looked for {os.path.abspath(resume)}). Give '
            'the path of a checkpoint that is there; without a path, --resume takes the newest '
            'whole one of the work folder.'
        )
    cfg.resume, cfg.load_from = True, resume
    return '\n'.join(f'--resume: {note}' for note in notes) or None


def set_reliability(cfg: Config) -> str | None:
    """Lets the run be killed at any moment and resumed as if it had not been.

    mmengine's training loops are replaced by those of :mod:`~mmfocal.engine.loops`, its hook for
    checkpoints writes through :class:`~mmfocal.engine.checkpoints.AtomicBackend`, and the hooks of
    :mod:`~mmfocal.engine.hooks.run_state` and :mod:`~mmfocal.engine.hooks.provenance` are added.
    Third-party loops and hooks for checkpoints are left as they are.

    Returns:
        A note for the user, or None.
    """
    hooks = cfg.setdefault('default_hooks', {})
    checkpoint = hooks.get('checkpoint', dict(type='CheckpointHook'))
    stock = checkpoint is not None and not is_third_party(checkpoint)
    if stock and type_name(checkpoint) in ('', 'CheckpointHook', 'BestCheckpointHook'):
        checkpoint = dict(checkpoint, type='BestCheckpointHook')
        if 0 < checkpoint.get('max_keep_ckpts', -1) < MIN_KEPT:
            checkpoint['max_keep_ckpts'] = MIN_KEPT
        is_local = '://' not in str(checkpoint.get('out_dir') or cfg.get('work_dir'))
        if is_local and not (checkpoint.get('backend_args') or checkpoint.get('file_client_args')):
            checkpoint['backend_args'] = dict(backend='atomic')
        hooks['checkpoint'] = checkpoint
    _add_hook(cfg, dict(type='RunStateHook'))
    _add_hook(cfg, dict(type='ProvenanceHook'))
    _add_hook(cfg, dict(type='PlainCheckpointHook'))

    settings = cfg.train_cfg
    if 'type' not in settings:
        settings.type = f'{"Epoch" if settings.pop("by_epoch", True) else "Iter"}BasedTrainLoop'
    kind = type_name(settings)
    if kind not in LOOPS or is_third_party(settings):
        return (
            f'train_cfg.type is {kind}: after --resume, this run may not continue exactly as it '
            f'would have. Loops that can: {", ".join(LOOPS)}.'
        )
    settings.type = LOOPS[kind]
    return None


def set_logs(cfg: Config, names: Sequence[str] | None = None) -> None:
    """Lets a run log to other services, and draw its curves.

    Args:
        cfg: the config.
        names: of :data:`LOGS`; None for TensorBoard where it is installed.

    Raises:
        UserError: the package of a service is not installed.
    """
    if names is None:
        names = ['tensorboard'] if importlib.util.find_spec('tensorboard') else []
    backends = cfg.setdefault('visualizer', dict(type='Visualizer')).setdefault(
        'vis_backends', [dict(type='LocalVisBackend')]
    )
    present = {type_name(backend) for backend in backends}
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f'--log-to {name}: the package is not installed. Run: pip install {name}'
            )
        if LOGS[name] not in present:
            backends.append(dict(type=LOGS[name]))
    _add_hook(cfg, dict(type='CurvesHook'))


def set_stopping(cfg: Config, save_best: bool, early_stop: int | None) -> None:
    """Keeps the best checkpoint, and ends training that does not get better.

    Args:
        cfg: the config; its ``default_scope`` says which metric counts, see
            :data:`MAIN_METRICS`.
        save_best: whether ``best_*.pth`` is kept beside the newest checkpoints.
        early_stop: validations without a better metric after which training ends; None for never.

    Raises:
        UserError: the config does not validate, or its family has no main metric.
    """
    if not save_best and early_stop is None:
        return
    metric = MAIN_METRICS.get(cfg.get('default_scope'))
    if metric is None or not cfg.get('val_evaluator'):
        raise UserError(
            '--save-best and --early-stop compare validations; this config has no validation, or '
            f'is none of {", ".join(MAIN_METRICS)}.'
        )
    if save_best:
        hooks = cfg.setdefault('default_hooks', {})
        hooks.setdefault('checkpoint', dict(type='CheckpointHook')).update(
            save_best=metric, rule='greater'
        )
    if early_stop is not None:
        if early_stop < 1:
            raise UserError(f'--early-stop: expected a number of validations, got {early_stop}.')
        # By default mmengine wants the metric to grow by 0.1, which is a lot for an AP; with 0 it
        # takes an equal one for better.
        stopping = dict(type='EarlyStoppingHook', rule='greater', min_delta=1e-6)
        _add_hook(cfg, dict(**stopping, monitor=metric, patience=early_stop))


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
    if not cfg.get('val_dataloader') or cfg.get('default_scope') not in MAIN_METRICS:
        raise UserError(
            '--val-loss: this config has no validation, or is none of '
            f'{", ".join(MAIN_METRICS)}. Leave it out, or set val_dataloader.'
        )
    _add_hook(cfg, dict(type='ValidationLossHook', dataloader=loss_dataloader(cfg)))


def _add_hook(cfg: Config, hook: dict) -> None:
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def set_auto_scale_lr(cfg: Config) -> None:
    """Scales the learning rate from the recipe's batch size to the real one."""
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise UserError(
            f'--auto-scale-lr: {cfg.filename} does not say which batch size its learning rate is '
            'for. Add auto_scale_lr = dict(base_batch_size=16), with its own number, to it.'
        )
    cfg.auto_scale_lr.enable = True


def checkpoint_of(source: str) -> str:
    """The checkpoint that a path or URL means.

    Args:
        source: a URL, a file, or the work folder of a run, whose best checkpoint is taken, and if
            there is none its newest that is whole.

    Raises:
        UserError: there is none.
    """
    if '://' in source or os.path.isfile(source):
        return source
    if os.path.isdir(source):
        best = sorted(Path(source).glob('best_*.pth'), key=os.path.getmtime)
        newest = best[-1] if best else checkpoints.latest_valid(source)[0]
        if newest is not None:
            return str(newest)
    raise UserError(f'There is no checkpoint {source} (looked for {os.path.abspath(source)}).')


def set_test_time_augmentation(cfg: Config) -> None:
    """Merges predictions for several views of each image, as ``tta_*`` of the config say.

    Raises:
        UserError: the config does not say how, or mmdet cannot merge what the model predicts.
    """
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise UserError(
            f'--tta: {cfg.filename} lacks tta_model or tta_pipeline, which say what views there '
            "are and how to merge them. For mmdet, copy both from this repository's "
            "configs/mmdet/_base_/tta_*.py; for mmseg, its data sets' and runtime's _base_ files "
            'have them.'
        )
    has_masks = cfg.default_scope == 'mmdet' and (cfg.model.get('roi_head') or {}).get('mask_head')
    if has_masks and type_name(cfg.tta_model) == 'DetTTAModel':
        raise UserError(
            f'--tta: {cfg.filename} has a mask head, and DetTTAModel only merges boxes. Set '
            "tta_model.type to 'InstanceTTAModel', and name 'mmfocal.detection' among the imports "
            'of custom_imports.'
        )
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(cfg.tta_model, module=cfg.model)


def import_packages(cfg: Config) -> None:
    """Imports the family of a config and the modules that it asks for.

    Raises:
        UserError: mmcv's operators or the family are missing, or a custom import fails.
    """
    families = set(FAMILIES) & {cfg.get('default_scope')}
    try:
        check_versions((*CORE, *families))
        require_mmcv_ops()
        for family in families:
            if problem := import_problem(f'{family}.models'):
                raise ImportError(str(problem))
    except ImportError as error:
        raise UserError(str(error)) from error
    import_custom_modules(cfg)


def build_runner(cfg: Config) -> Runner:
    """The runner of a complete config, with the modules that it asks for imported.

    A run that is resumed leaves out the pretrained weights that it began with: mmengine would
    load, and perhaps download, them only to overwrite them.

    Raises:
        UserError: as :func:`import_packages`.
    """
    import_packages(cfg)
    if (cfg.get('randomness') or {}).get('deterministic') and torch.cuda.is_available():
        install_determinism()
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.register_hook(NonFiniteHook())
    has_bfloat16 = (cfg.get('optim_wrapper') or {}).get('dtype') == 'bfloat16'
    if has_bfloat16 and cfg.get('default_scope') == 'mmdet':
        prepare_bfloat16(runner.model)
    for module in runner.model.modules() if cfg.get('resume') else ():
        init_cfg = getattr(module, 'init_cfg', None)
        if isinstance(init_cfg, dict) and type_name(init_cfg) in ('Pretrained', 'PretrainedInit'):
            module.init_cfg = None
    return runner
