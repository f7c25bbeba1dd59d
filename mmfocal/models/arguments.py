"""Checks of the backbone's arguments: each error names it, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

# Paper appendix A.1, Table 9; 'large' has the widths of Swin-L, from which the authors made it.
ARCH_SETTINGS = {
    'tiny': dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    'small': dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    'base': dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    'large': dict(embed_dims=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
}


def resolve_arch(arch: str | dict) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """``embed_dims``, ``depths`` and ``num_heads`` of a named or given architecture."""
    if isinstance(arch, str):
        check_choice('arch', arch, tuple(ARCH_SETTINGS))
        arch = ARCH_SETTINGS[arch]
    expected = {'embed_dims', 'depths', 'num_heads'}
    if not isinstance(arch, dict) or set(arch) != expected:
        raise ValueError(
            f'arch must be one of {tuple(ARCH_SETTINGS)} or a dict with exactly the keys '
            f'{sorted(expected)}, got {arch!r}'
        )
    embed_dims, depths, num_heads = arch['embed_dims'], arch['depths'], arch['num_heads']
    check_int("arch: 'embed_dims'", embed_dims, least=1)
    for name, values in (('depths', depths), ('num_heads', num_heads)):
        if not is_sequence(values):
            raise TypeError(
                f'arch: {name!r} must be a sequence of one int per stage, got {values!r}'
            )
        for value in values:
            check_int(f'arch: each of {name!r}', value, least=1)
    if len(depths) != len(num_heads) or not depths:
        raise ValueError(
            f"arch: 'depths' and 'num_heads' need one value per stage each, got {depths!r} and "
            f'{num_heads!r}'
        )
    for i, heads in enumerate(num_heads):
        if embed_dims * 2**i % heads:
            raise ValueError(
                f'arch: stage {i} needs a number of heads that divides its {embed_dims * 2**i} '
                f'channels, got {heads} heads'
            )
    return embed_dims, tuple(depths), tuple(num_heads)


def check_int(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises TypeError for what is no int, ValueError for one out of range."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f'{name} must be an int, got {value!r} of type {type(value).__name__}')
    if value < least or (most is not None and value > most):
        bounds = f'at least {least}' if most is None else f'between {least} and {most}'
        raise ValueError(f'{name} must be {bounds}, got {value!r}')


def check_bool(name: str, value: Any) -> None:
    """Raises TypeError for what is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(
            f'{name} must be True or False, got {value!r} of type {type(value).__name__}'
        )


def check_number(name: str, value: Any, expected: str, above: float = -math.inf) -> None:
    """Raises TypeError for what is no number, ValueError for one that is not as expected.

    Args:
        name: of the argument.
        value: what came.
        expected: what was expected, in words.
        above: what it has to be greater than, besides being finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f'{name} must be {expected}, got {value!r} of type {type(value).__name__}')
    if not math.isfinite(value) or value <= above:
        raise ValueError(f'{name} must be {expected}, got {value!r}')


def check_rate(name: str, value: Any) -> None:
    """Raises ValueError for what is no rate of dropping."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < 1:
        raise ValueError(f'{name} must be at least 0 and less than 1, got {value!r}')


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises ValueError for what is none of the choices."""
    if value not in choices:
        raise ValueError(f'{name} must be one of {choices}, got {value!r}')


def check_stages(name: str, stages: Any, num_stages: int) -> None:
    """Raises TypeError for what is no list of stages, ValueError for stages that there are not."""
    if not is_sequence(stages):
        raise TypeError(
            f'{name} must be a sequence of stages, got {stages!r} of type {type(stages).__name__}'
        )
    for stage in stages:
        if isinstance(stage, bool) or not isinstance(stage, int):
            raise TypeError(f'{name} must be a sequence of int, got {stages!r}')
    ascending = all(a < b for a, b in pairwise(stages))
    if not ascending or any(stage not in range(num_stages) for stage in stages):
        raise ValueError(
            f'{name} must be ascending stages between 0 and {num_stages - 1}, got {stages!r}'
        )


def per_stage(name: str, value: object, num_stages: int) -> tuple:
    """One value for all stages, or one each, as one each."""
    if isinstance(value, bool | int):
        return (value,) * num_stages
    if not is_sequence(value) or len(value) != num_stages:
        raise ValueError(
            f'{name} must be one value or a sequence of {num_stages}, one per stage, got {value!r}'
        )
    return tuple(value)


def pair(name: str, value: Any, least: int = 1) -> tuple[int, int]:
    """One size for height and width, or both, as both."""
    sides = tuple(value) if is_sequence(value) else (value, value)
    if len(sides) != 2:
        raise ValueError(f'{name} must be one int or (height, width), got {value!r}')
    for side in sides:
        check_int(name, side, least)
    return sides


def check_norm(norm_cfg: Any) -> None:
    """Raises for a norm that maps cannot have.

    They are channel-last, which norms over other axes would silently misread.
    """
    norm = _built('norm_cfg', norm_cfg, lambda cfg: build_norm_layer(cfg, 4)[1])
    probe = torch.zeros(1, 2, 3, 4)
    if not _keeps_shape(norm, probe) or isinstance(
        norm, nn.GroupNorm | nn.modules.batchnorm._BatchNorm
    ):
        raise ValueError(
            "norm_cfg must be a norm over the last axis, such as dict(type='LN'), "
            f'got {norm_cfg!r}'
        )


def check_activation(act_cfg: Any) -> None:
    """Raises for what is no activation value by value."""
    activation = _built('act_cfg', act_cfg, build_activation_layer)
    if not _keeps_shape(activation, torch.zeros(2, 4)):
        raise ValueError(
            "act_cfg must be an activation that keeps the shape, such as dict(type='GELU'), got "
            f'{act_cfg!r}'
        )


def check_init(init_cfg: Any) -> None:
    """Raises for what mmengine's ``BaseModule`` would not understand, or only when it is used."""
    settings = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg]
    for cfg in settings if init_cfg is not None else ():
        if not isinstance(cfg, dict):
            raise TypeError(
                "init_cfg must be a dict such as dict(type='Pretrained', checkpoint=FILE), a list "
                f'of such, or None, got {init_cfg!r}'
            )
        kind = cfg.get('type')
        if not isinstance(kind, str | type) or (
            isinstance(kind, str) and WEIGHT_INITIALIZERS.get(kind) is None
        ):
            raise ValueError(
                "init_cfg must have the name of an initialisation under 'type', such as "
                f"'Pretrained' or 'TruncNormal', got {cfg!r}"
            )


def is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _built(name: str, cfg: Any, build: Any) -> nn.Module:
    """What a config says, with the argument's name in errors."""
    if not isinstance(cfg, dict):
        raise TypeError(f"{name} must be a dict with 'type', got {cfg!r}")
    try:
        return build(dict(cfg))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{name} must be a dict with the 'type' of a layer and its arguments, got {cfg!r} "
            f'({reason})'
        ) from error


def _keeps_shape(layer: nn.Module, probe: torch.Tensor) -> bool:
    try:
        return layer(probe).shape == probe.shape
    except (RuntimeError, ValueError):
        return False
