"""The sections of a config: which there are, of what kind, and what it means if one is None."""

from __future__ import annotations

import importlib.util
import multiprocessing
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from mmfocal.utils.compat import FAMILIES
from mmfocal.utils.config import family_of, is_third_party, type_name
from mmfocal.utils.errors import UserError

from .misspelt import check_arguments, check_names, has_own_code, nearest

DICTS = (
    'auto_scale_lr',
    'custom_imports',
    'data_preprocessor',
    'default_hooks',
    'env_cfg',
    'log_processor',
    'model',
    'optim_wrapper',
    'randomness',
    'test_cfg',
    'test_dataloader',
    'train_cfg',
    'train_dataloader',
    'val_cfg',
    'val_dataloader',
    'visualizer',
)
LISTS = ('custom_hooks',)
PATHS = ('load_from', 'work_dir')
# Sections for which mmengine has a default, which it takes only where the key is not there.
OPTIONAL = ('default_scope', 'env_cfg', 'launcher', 'log_level', 'randomness', 'resume')
# Constructors of optimizer wrappers, and what they look up in paramwise_cfg.
CONSTRUCTORS = ('', 'DefaultOptimWrapperConstructor', 'LayerDecayOptimWrapperConstructor')
PARAMWISE = (
    'bias_decay_mult',
    'bias_lr_mult',
    'bypass_duplicate',
    'custom_keys',
    'dcn_offset_lr_mult',
    'dwconv_decay_mult',
    'flat_decay_mult',
    'layer_decay_rate',
    'norm_decay_mult',
)
# What mmengine wants as a whole or not at all.
GROUPS = dict(
    train=('train_dataloader', 'train_cfg', 'optim_wrapper'),
    val=('val_dataloader', 'val_cfg', 'val_evaluator'),
    test=('test_dataloader', 'test_cfg', 'test_evaluator'),
)
# What configs of MMDetection 2.x and MMSegmentation 0.x say under data, and in loaders now.
FORMER = ('train', 'val', 'test', 'samples_per_gpu', 'workers_per_gpu')
FORMER_LOADER = dict(samples_per_gpu='batch_size', workers_per_gpu='num_workers')
LEVELS = ('CRITICAL', 'ERROR', 'WARNING', 'INFO', 'DEBUG')  # of logging, by their names
MAX_SEED = 2**32 - 1  # that NumPy takes


def check_sections(cfg: Config, needed: str | None = None) -> None:
    """Checks the kinds of a config's sections, and leaves out those that are None.

    To leave one out means what mmengine takes for its default. A config whose classes are imported
    and which names no ``default_scope`` gets that of its model's class, which says how its data
    are read and its predictions shown.

    Args:
        cfg: the config, changed in place.
        needed: the group of sections without which there is nothing to run: one of
            :data:`GROUPS`; None if nothing is run.

    Raises:
        UserError: a section is not of its kind, or lacks others that belong to it.
    """
    for name in (*DICTS, *LISTS, *OPTIONAL):
        if name in cfg and cfg[name] is None:
            cfg.pop(name)
    for names, kinds, words in (
        (DICTS, dict, 'dict'),
        (LISTS, list | tuple, 'list of dicts'),
        (PATHS, str, 'path'),
    ):
        for name in names:
            value = cfg.get(name)
            if _is_plain(value) and not isinstance(value, kinds):
                raise UserError(f'{name}: expected a {words}, got {value!r}.')
    _check_former(cfg)
    _check_choices(cfg)
    _check_length(cfg)
    _check_optimizer(cfg)
    check_seed('randomness.seed', (cfg.get('randomness') or {}).get('seed'))
    if needed is not None:
        _check_groups(cfg, needed)
        for split in ('train', 'val') if needed == 'train' else (needed,):
            _check_loader(f'{split}_dataloader', cfg.get(f'{split}_dataloader'))
    _check_scope(cfg)
    family = family_of(cfg)
    if cfg.get('default_scope') is None and family:
        cfg.default_scope = family


def _check_former(cfg: Config) -> None:
    """Raises UserError for a config of MMDetection 2.x, MMSegmentation 0.x or MMClassification."""
    data = cfg.get('data')
    is_former = isinstance(data, dict) and not data.keys().isdisjoint(FORMER)
    if is_former and not any(cfg.get(f'{split}_dataloader') for split in GROUPS):
        raise UserError(
            f'{cfg.filename or "The config"} is of MMDetection 2.x or MMSegmentation 0.x: it has '
            "data=dict(train=..., samples_per_gpu=...). Of today's configs each split has a "
            'loader: train_dataloader=dict(batch_size=..., num_workers=..., dataset=...), and '
            'optimizer, lr_config and runner are optim_wrapper, param_scheduler and train_cfg.'
        )


def _check_loader(path: str, loader: Any) -> None:
    loader = loader if isinstance(loader, dict) else {}
    for former, now in FORMER_LOADER.items():
        if former in loader:
            raise UserError(
                f'{path}.{former} is of MMDetection 2.x or MMSegmentation 0.x. Write {now} '
                'instead.'
            )
    for name, none in (('persistent_workers', False), ('prefetch_factor', None)):
        if not loader.get('num_workers') and loader.get(name):
            raise UserError(
                f'{path}: num_workers=0 and {name}={loader[name]!r} exclude each other, since the '
                f'latter is about worker processes. Set {path}.num_workers to 1 or more, or '
                f'{path}.{name} to {none}.'
            )


def _check_length(cfg: Config) -> None:
    for name in ('max_epochs', 'max_iters', 'val_interval'):
        value = (cfg.get('train_cfg') or {}).get(name)
        # mmengine takes 9e4 for a number of iterations, too.
        is_whole = isinstance(value, int | float) and value >= 1 and value == value // 1
        if value is not None and not is_whole:
            raise UserError(f'train_cfg.{name}: expected a whole number from 1, got {value!r}.')


def _check_optimizer(cfg: Config) -> None:
    """Checks what is passed on only in the first iteration, or looked up and not missed."""
    wrapper = cfg.get('optim_wrapper')
    wrapper = wrapper if isinstance(wrapper, dict) else {}
    clip = wrapper.get('clip_grad')
    if isinstance(clip, dict):
        function = clip_grad_value_ if clip.get('type') == 'value' else clip_grad_norm_
        check_arguments('optim_wrapper.clip_grad', clip, function)
    settings = wrapper.get('paramwise_cfg')
    constructor = wrapper.get('constructor')
    is_stock = type_name(constructor) in CONSTRUCTORS and not is_third_party(constructor)
    if isinstance(settings, dict) and is_stock:
        check_names('optim_wrapper.paramwise_cfg', settings, PARAMWISE)


def _check_choices(cfg: Config) -> None:
    processes = (cfg.get('env_cfg') or {}).get('mp_cfg') or {}
    for name, value, choices in (
        ('log_level', cfg.get('log_level'), LEVELS),
        (
            'env_cfg.mp_cfg.mp_start_method',
            processes.get('mp_start_method'),
            multiprocessing.get_all_start_methods(),
        ),
    ):
        if isinstance(value, str) and value not in choices:  # logging has numbers for levels, too
            raise UserError(f'{name}: expected one of {", ".join(choices)}, got {value!r}.')


def _check_scope(cfg: Config) -> None:
    scope = cfg.get('default_scope')
    if scope in (None, MODELS.scope, *FAMILIES, *MODELS.children) or has_own_code(cfg):
        return
    if not str(scope).isidentifier() or importlib.util.find_spec(scope) is None:
        near = nearest(str(scope), FAMILIES) or FAMILIES
        raise UserError(
            f'default_scope: there is no package {scope!r} that is installed or that '
            f'custom_imports name. Nearest to it: {", ".join(near)}.'
        )


def _is_plain(value: Any) -> bool:
    """Whether a value can be written in a config; mmengine takes objects that are built, too."""
    return isinstance(value, dict | list | tuple | str | int | float)


def _check_groups(cfg: Config, needed: str) -> None:
    if cfg.get('model') is None:
        raise UserError(f'{cfg.filename or "The config"} says no model.')
    for group, names in GROUPS.items():
        absent = [name for name in names if cfg.get(name) is None]
        if absent and (group == needed or len(absent) < len(names)):
            there = [name for name in names if name not in absent]
            remedy = f', or set {" and ".join(there)} to None, too' if group != needed else ''
            raise UserError(
                f'{cfg.filename or "The config"} does not set {" and ".join(absent)}, which '
                f'{"training" if group == "train" else group} needs: {", ".join(names)} belong '
                f'together. Set what is missing{remedy}.'
            )


def check_seed(name: str, seed: Any) -> None:
    """Raises UserError if ``seed``, from where ``name`` says, is no seed of all generators."""
    is_number = isinstance(seed, int) and not isinstance(seed, bool)
    if seed is not None and not (is_number and 0 <= seed <= MAX_SEED):
        raise UserError(f'{name}: expected a whole number from 0 to {MAX_SEED}, got {seed!r}.')
