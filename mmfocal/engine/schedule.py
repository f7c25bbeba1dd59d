"""Another length of training than that of the config, and everything that follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dist import get_world_size
from mmengine.registry import DATASETS

from mmfocal.utils.config import family_of, import_packages, type_name
from mmfocal.utils.errors import UserError

from .build_errors import told_settings

# Settings of mmengine's schedulers that are points in time or spans, single ones or lists.
TIMES = ('begin', 'end', 'T_max', 'step_size', 'total_steps')
LISTS_OF_TIMES = ('milestones', 'periods', 'restarts')
ENDLESS = 10**8  # mmengine's INF is 1e9
LOG_LINES = 10  # that a short run has at least


def set_length(
    cfg: Config, epochs: int | None = None, iterations: int | None = None
) -> str | None:
    """Trains longer or shorter than the config says.

    Ends and milestones of schedulers move in proportion, to whole epochs or iterations. Warm-up
    stays as long as it is, but takes at most a tenth of the run, or the share that it has now if
    that is more. The intervals of validation and of checkpoints get shorter with a shorter run,
    and stay in a longer one. Custom hooks are left as they are.

    Args:
        cfg: the config, changed in place, after its process has joined its group.
        epochs: passes over the training data. Loops by iterations get as many iterations as that
            takes, for which the training set is built once more.
        iterations: steps of the optimizer, for loops by iterations; or None for both.

    Returns:
        A note for the user, or None.

    Raises:
        UserError: both are given, one is no number from 1, or it does not fit the config's loop.
    """
    for option, value in (('--epochs', epochs), ('--iterations', iterations)):
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f'{option}: expected a whole number from 1, got {value!r}.')
    if epochs is None and iterations is None:
        return None
    if epochs is not None and iterations is not None:
        raise UserError('--epochs and --iterations exclude each other. Give one of them.')
    loop = cfg.train_cfg
    unit = next((unit for unit in ('epochs', 'iters') if loop.get(f'max_{unit}')), None)
    if unit is None:
        raise UserError(
            f'train_cfg says neither max_epochs nor max_iters ({type_name(loop)}), so that '
            'training cannot be made longer or shorter. Leave --epochs and --iterations out.'
        )
    if unit == 'epochs' and epochs is None:
        raise UserError(
            f'--iterations {iterations}: this config trains by epochs, {loop.max_epochs} of them. '
            'Give --epochs.'
        )
    old = loop[f'max_{unit}']
    new = epochs if unit == 'epochs' else iterations or epochs * _iterations_per_epoch(cfg)
    loop[f'max_{unit}'] = new
    ratio = Fraction(new, old)
    shorter = min(ratio, Fraction(1))
    for key in ('val_begin', 'val_interval'):
        if key in loop:
            loop[key] = _scaled(loop[key], shorter)
    if loop.get('dynamic_intervals'):
        loop.dynamic_intervals = [
            (_scaled(begin, ratio), _scaled(interval, shorter))
            for begin, interval in loop.dynamic_intervals
        ]
    hooks = cfg.get('default_hooks') or {}
    checkpoint = hooks.get('checkpoint')
    if isinstance(checkpoint, Mapping) and checkpoint.get('interval', 1) > 0:
        checkpoint['interval'] = _scaled(checkpoint.get('interval', 1), shorter)
    if unit == 'iters' and isinstance(hooks.get('logger'), Mapping):
        interval = hooks['logger'].get('interval', 10)
        hooks['logger']['interval'] = max(1, min(interval, new // LOG_LINES))

    def total() -> int:
        return new if unit == 'iters' else new * _iterations_per_epoch(cfg)

    _scale_schedulers(cfg, ratio, total, old, by_epoch=unit == 'epochs')
    unit = 'epochs' if unit == 'epochs' else 'iterations'
    asked = f' (epochs: {epochs})' if epochs and unit == 'iterations' else ''
    return (
        f'Length of training in {unit}: {new}{asked} instead of {old}. The schedule of the '
        'learning rate follows in proportion.'
    )


def _scaled(number: int, ratio: Fraction) -> int:
    return max(math.floor(number * ratio), min(number, 1))


def _scale_schedulers(
    cfg: Config, ratio: Fraction, total: Callable[[], int], old: int, by_epoch: bool
) -> None:
    """Moves what schedulers say of time.

    Args:
        cfg: the config, changed in place.
        ratio: of the new length to the old one.
        total: gives the iterations of the run that is to be.
        old: length of the run, in epochs or iterations.
        by_epoch: which of both.
    """
    schedulers = cfg.get('param_scheduler') or []
    schedulers = [schedulers] if isinstance(schedulers, Mapping) else schedulers
    flat = list(_each(schedulers))
    # Where a warm-up ends, what comes next may begin.
    ends = {
        (bool(each.get('by_epoch', True)), each['end'])
        for each in flat
        if _is_warm_up(each, old, by_epoch)
    }
    moved = {(unit, end): _warm_up(end, unit, ratio, total) for unit, end in ends}
    for each in flat:
        unit = bool(each.get('by_epoch', True))

        def place(time: Any, unit: bool = unit) -> Any:
            if not isinstance(time, int) or time >= ENDLESS:
                return time
            return moved.get((unit, time), _scaled(time, ratio))

        for key in TIMES:
            if key in each:
                each[key] = place(each[key])
        for key in LISTS_OF_TIMES:
            if each.get(key) is not None:
                # One milestone twice would lower the learning rate twice.
                each[key] = list(dict.fromkeys(map(place, each[key])))
    # In very short runs a warm-up leaves no time to what follows it, which PyTorch would refuse.
    for holder in (schedulers, *(schedulers.values() if isinstance(schedulers, Mapping) else ())):
        if isinstance(holder, list):
            holder[:] = [each for each in holder if not _is_over_at_once(each)]


def _is_over_at_once(scheduler: Any) -> bool:
    if not isinstance(scheduler, Mapping):
        return False
    begin, end = scheduler.get('begin', 0), scheduler.get('end')
    return isinstance(begin, int) and isinstance(end, int) and 0 < begin >= end


def _each(schedulers: Any) -> Any:
    """Schedulers of lists, and of dicts by the name of an optimizer."""
    for each in schedulers.values() if isinstance(schedulers, Mapping) else schedulers:
        if isinstance(each, Mapping) and 'type' in each:
            yield each
        elif isinstance(each, Mapping | list | tuple):
            yield from _each(each)


def _is_warm_up(scheduler: ConfigDict, old: int, by_epoch: bool) -> bool:
    kind = type_name(scheduler)
    rises = kind.startswith(('Linear', 'Constant')) and scheduler.get('start_factor', 0) < 1
    end = scheduler.get('end')
    if scheduler.get('begin', 0) or not isinstance(end, int) or end >= ENDLESS:
        return False
    is_whole = bool(scheduler.get('by_epoch', True)) == by_epoch and end >= old
    return (rises or 'Warmup' in kind) and not is_whole


def _warm_up(end: int, by_epoch: bool, ratio: Fraction, total: Callable[[], int]) -> int:
    if ratio >= 1:
        return end
    shrunk = _scaled(end, ratio)
    return shrunk if by_epoch else max(min(end, total() // 10), shrunk)


def _iterations_per_epoch(cfg: Config) -> int:
    """Steps in which all processes together see each image once."""
    import_packages(cfg)
    loader = cfg.train_dataloader
    with told_settings(cfg), DATASETS.switch_scope_and_registry(family_of(cfg)) as registry:
        dataset = loader.dataset
        dataset = registry.build(dataset) if isinstance(dataset, Mapping) else dataset
    try:
        num_samples, batch = len(dataset), loader.get('batch_size') or 1
    except TypeError as error:
        raise UserError(
            f'--epochs: {type(dataset).__name__}, the training data, does not say how many '
            'samples it has. Give --iterations.'
        ) from error
    count = Fraction(num_samples, batch * get_world_size())
    return max(1, math.floor(count) if loader.get('drop_last') else math.ceil(count))
