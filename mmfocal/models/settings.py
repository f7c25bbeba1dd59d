"""The settings of a backbone: its arguments, checked in this module and nowhere else.

Each error names the argument, what was expected and what came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from mmfocal.geometry import fit_to_map
from mmfocal.ops import available_backends
from mmfocal.utils.checks import check_int, is_int, require

from .pooling import POOL_METHODS

# Paper appendix A.1, Table 9; 'large' has the widths of Swin-L, from which the authors made it.
ARCH_SETTINGS = {
    'tiny': dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    'small': dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    'base': dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    'large': dict(embed_dims=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
}
EXPAND_LAYERS = {'all': None, 'even': 0, 'odd': 1}  # blocks without a ring, modulo 2
FLAGS = (
    *('qkv_bias', 'use_abs_pos_embed', 'patch_norm', 'use_conv_embed', 'use_pre_norm'),
    *('clamp_windows', 'out_norm', 'with_cp', 'compile_blocks'),
)
RATES = ('drop_rate', 'attn_drop_rate', 'drop_path_rate')
PER_STAGE = ('window_size', 'focal_levels', 'focal_windows', 'expand_sizes', 'use_shift')


class Settings(SimpleNamespace):
    """The arguments of :class:`~mmfocal.FocalTransformer`, by their names.

    In place of ``arch`` there are ``embed_dims``, ``depths`` and ``num_heads``. Arguments that
    take "one or four" have a value for each stage.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value.
    """

    def __init__(
        self,
        arch: str | dict,
        norm_cfg: dict | None,
        act_cfg: dict | None,
        init_cfg: dict | list | None,
        **given: Any,
    ) -> None:
        super().__init__(**given)
        self.embed_dims, self.depths, self.num_heads = _resolve_arch(arch)
        self.norm_cfg = dict(type='LN') if norm_cfg is None else norm_cfg
        self.act_cfg = dict(type='GELU') if act_cfg is None else act_cfg
        _check_norm(self.norm_cfg)
        _check_activation(self.act_cfg)
        _check_init(init_cfg)
        self._check_values()
        self._check_stages()

    def _check_values(self) -> None:
        choices = dict(
            pool_method=('none', *POOL_METHODS),
            expand_layer=tuple(EXPAND_LAYERS),
            downsample=('conv', 'merging'),
            attention_backend=('auto', *available_backends()),
        )
        given = vars(self)
        for name, expected in choices.items():
            require(given[name] in expected, name, f'one of {expected}', given[name])
        for name in FLAGS:
            _check_bool(name, given[name])
        for name in RATES:
            rate, expected = given[name], 'at least 0 and less than 1'
            require(_is_number(rate) and 0 <= rate < 1, name, expected, rate)
        for name in ('in_channels', 'patch_size'):
            check_int(name, given[name], least=1)
        enough = 'a number that leaves an MLP at least one channel'
        least_ratio = math.nextafter(1 / self.embed_dims, 0)
        _check_number('mlp_ratio', self.mlp_ratio, enough, above=least_ratio)
        if self.qk_scale is not None:
            _check_number('qk_scale', self.qk_scale, 'a positive number or None', above=0)
        if self.layer_scale_init_value is not None:
            value = self.layer_scale_init_value
            _check_number('layer_scale_init_value', value, 'a number or None')
        if self.downsample == 'merging' and (self.use_conv_embed or self.use_pre_norm):
            raise ValueError(
                "downsample='merging' takes the place of the convolution that use_conv_embed and "
                'use_pre_norm are about; leave them out'
            )

    def _check_stages(self) -> None:
        count = len(self.depths)
        for name in ('focal_stages', 'out_indices'):
            _check_stages(name, getattr(self, name), count)
        self.out_indices = tuple(self.out_indices)
        require(
            self.out_indices, 'out_indices', 'a sequence of at least one stage', self.out_indices
        )
        check_int('frozen_stages', self.frozen_stages, least=-1, most=count)
        least = self.patch_size if self.use_abs_pos_embed else 1
        self.pretrain_img_size = _pair('pretrain_img_size', self.pretrain_img_size, least)
        for name in PER_STAGE:
            setattr(self, name, _per_stage(name, getattr(self, name), count))
        for shift in self.use_shift:
            _check_bool('use_shift', shift)
        if self.clamp_windows:
            self._clamp_windows()

    def _clamp_windows(self) -> None:
        """Fits windows, rings and shifts to the maps of images of ``pretrain_img_size``."""
        least = self.patch_size * 2 ** (self.num_stages - 1)
        at_least = f'at least {least} pixels a side for {self.num_stages} stages to be clamped to'
        size = self.pretrain_img_size
        require(min(size) >= least, 'pretrain_img_size', at_least, size)
        windows, rings, shifts = [], [], []
        per_stage = zip(self.window_size, self.expand_sizes, self.use_shift, strict=True)
        for stage, (window, ring, shift) in enumerate(per_stage):
            check_int('each of window_size', window, least=1)
            check_int('each of expand_sizes', ring, least=0)
            stride = self.patch_size * 2**stage
            window, surrounded = fit_to_map(window, [max(side // stride, 1) for side in size])
            windows.append(window)
            rings.append(ring if surrounded else 0)
            shifts.append(shift and surrounded)
        self.window_size, self.expand_sizes = tuple(windows), tuple(rings)
        self.use_shift = tuple(shifts)

    @property
    def num_stages(self) -> int:
        """Stages that are built, up to the last one that is returned."""
        return max(self.out_indices) + 1

    def channels(self, stage: int) -> int:
        return self.embed_dims * 2**stage

    def drop_path(self, stage: int, block: int) -> float:
        """Rate of stochastic depth, which grows linearly from the first block to the last."""
        number, last = sum(self.depths[:stage]) + block, max(sum(self.depths) - 1, 1)
        return self.drop_path_rate * number / last

    def geometry(self, stage: int, block: int) -> dict[str, int | str]:
        """Settings of a block's keys, by the names of :class:`~mmfocal.geometry.FocalGeometry`."""
        window, level = self.window_size[stage], self.focal_levels[stage]
        is_pooled = stage in self.focal_stages and self.pool_method != 'none'
        has_ring = block % 2 != EXPAND_LAYERS[self.expand_layer]
        return dict(
            window_size=window,
            expand_size=self.expand_sizes[stage] if has_ring else 0,
            shift_size=window // 2 if self.use_shift[stage] and block % 2 else 0,
            focal_level=level if is_pooled else min(level, 1),
            focal_window=self.focal_windows[stage],
            border=self.border,
        )


def is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or is_int(value)


def _check_bool(name: str, value: Any) -> None:
    require(isinstance(value, bool), name, 'True or False', value, TypeError)


def _check_number(name: str, value: Any, expected: str, above: float = -math.inf) -> None:
    """Checks that a number is finite and greater than ``above``."""
    require(_is_number(value), name, expected, value, TypeError)
    require(math.isfinite(value) and value > above, name, expected, value)


def _resolve_arch(arch: str | dict) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """``embed_dims``, ``depths`` and ``num_heads`` of a named or given architecture."""
    names, keys = tuple(ARCH_SETTINGS), {'embed_dims', 'depths', 'num_heads'}
    expected = f'one of {names} or a dict with exactly the keys {sorted(keys)}'
    settings = ARCH_SETTINGS.get(arch) if isinstance(arch, str) else arch
    require(isinstance(settings, dict) and set(settings) == keys, 'arch', expected, arch)
    embed_dims, depths, num_heads = (
        settings[key] for key in ('embed_dims', 'depths', 'num_heads')
    )
    check_int("arch: 'embed_dims'", embed_dims, least=1)
    for name, values in (('depths', depths), ('num_heads', num_heads)):
        one_each = 'a sequence of one int per stage'
        require(is_sequence(values), f'arch: {name!r}', one_each, values, TypeError)
        for value in values:
            check_int(f'arch: each of {name!r}', value, least=1)
    if len(depths) != len(num_heads) or not depths:
        raise ValueError(
            f"arch: 'depths' and 'num_heads' need one value per stage each, got {depths!r} and "
            f'{num_heads!r}'
        )
    for stage, heads in enumerate(num_heads):
        if embed_dims * 2**stage % heads:
            raise ValueError(
                f'arch: stage {stage} needs a number of heads that divides its '
                f'{embed_dims * 2**stage} channels, got {heads} heads'
            )
    return embed_dims, tuple(depths), tuple(num_heads)


def _check_stages(name: str, stages: Any, num_stages: int) -> None:
    require(is_sequence(stages), name, 'a sequence of stages', stages, TypeError)
    require(all(map(is_int, stages)), name, 'a sequence of int', stages, TypeError)
    ascending = all(a < b for a, b in pairwise(stages))
    expected = f'ascending stages between 0 and {num_stages - 1}'
    inside = all(stage in range(num_stages) for stage in stages)
    require(ascending and inside, name, expected, stages)


def _per_stage(name: str, value: Any, num_stages: int) -> tuple:
    """One value for all stages, or one each, as one each."""
    if isinstance(value, int):
        return (value,) * num_stages
    expected = f'one value or a sequence of {num_stages}, one per stage'
    require(is_sequence(value) and len(value) == num_stages, name, expected, value)
    return tuple(value)


def _pair(name: str, value: Any, least: int) -> tuple[int, int]:
    """One size for height and width, or both, as both."""
    sides = tuple(value) if is_sequence(value) else (value, value)
    require(len(sides) == 2, name, 'one int or (height, width)', value)
    for side in sides:
        check_int(name, side, least)
    return sides


def _check_norm(norm_cfg: Any) -> None:
    """Refuses norms over other axes, which would silently misread channel-last maps."""
    norm = _built('norm_cfg', norm_cfg, lambda cfg: build_norm_layer(cfg, 4)[1])
    other_axes = isinstance(norm, nn.GroupNorm | nn.modules.batchnorm._BatchNorm)
    expected = "a norm over the last axis, such as dict(type='LN')"
    fits = not other_axes and _keeps_shape(norm, torch.zeros(1, 2, 3, 4))
    require(fits, 'norm_cfg', expected, norm_cfg)


def _check_activation(act_cfg: Any) -> None:
    activation = _built('act_cfg', act_cfg, build_activation_layer)
    expected = "an activation that keeps the shape, such as dict(type='GELU')"
    require(_keeps_shape(activation, torch.zeros(2, 4)), 'act_cfg', expected, act_cfg)


def _check_init(init_cfg: Any) -> None:
    """Refuses what mmengine's ``BaseModule`` would not understand, or only when it is used."""
    if init_cfg is None:
        return
    for cfg in init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg]:
        a_dict = "a dict such as dict(type='Pretrained', checkpoint=FILE), a list of such, or None"
        require(isinstance(cfg, dict), 'init_cfg', a_dict, init_cfg, TypeError)
        kind = cfg.get('type')
        is_known = isinstance(kind, str) and WEIGHT_INITIALIZERS.get(kind) is not None
        if not (is_known or isinstance(kind, type)):
            raise ValueError(
                "init_cfg must have the name of an initialisation under 'type', such as "
                f"'Pretrained' or 'TruncNormal', got {cfg!r}"
            )


def _built(name: str, cfg: Any, build: Callable[[dict], nn.Module]) -> nn.Module:
    """What a config says, with the argument's name in errors."""
    require(isinstance(cfg, dict), name, "a dict with 'type'", cfg, TypeError)
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
