"""The settings of a backbone: its arguments, validated in one place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmfocal.ops import available_backends

from .arguments import (
    check_activation,
    check_bool,
    check_choice,
    check_int,
    check_norm,
    check_number,
    check_rate,
    check_stages,
    pair,
    per_stage,
    resolve_arch,
)
from .pooling import POOL_METHODS

EXPAND_LAYERS = {'all': None, 'even': 0, 'odd': 1}  # blocks without a ring, modulo 2
DOWNSAMPLES = ('conv', 'merging')
FLAGS = (
    *('qkv_bias', 'use_abs_pos_embed', 'patch_norm', 'use_conv_embed', 'use_pre_norm'),
    *('out_norm', 'with_cp', 'compile_blocks'),
)
RATES = ('drop_rate', 'attn_drop_rate', 'drop_path_rate')
PER_STAGE = ('window_size', 'focal_levels', 'focal_windows', 'expand_sizes', 'use_shift')


@dataclass(frozen=True)
class Settings:
    """Arguments of :class:`~mmfocal.FocalTransformer`, which has their meaning.

    Those that take "one or four" have a value for each stage here.
    """

    embed_dims: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    in_channels: int
    patch_size: int
    window_size: tuple[int, ...]
    focal_levels: tuple[int, ...]
    focal_windows: tuple[int, ...]
    focal_stages: Sequence[int]
    pool_method: str
    expand_sizes: tuple[int, ...]
    expand_layer: str
    border: str
    use_shift: tuple[bool, ...]
    mlp_ratio: float
    qkv_bias: bool
    qk_scale: float | None
    drop_rate: float
    attn_drop_rate: float
    drop_path_rate: float
    use_abs_pos_embed: bool
    pretrain_img_size: tuple[int, int]
    patch_norm: bool
    use_conv_embed: bool
    use_pre_norm: bool
    downsample: str
    layer_scale_init_value: float | None
    out_indices: tuple[int, ...]
    out_norm: bool
    frozen_stages: int
    with_cp: bool
    norm_cfg: dict
    act_cfg: dict
    attention_backend: str
    compile_blocks: bool

    @classmethod
    def of(
        cls, arch: str | dict, norm_cfg: dict | None, act_cfg: dict | None, **given: Any
    ) -> Settings:
        """Settings from the arguments of the backbone.

        Raises:
            TypeError, ValueError: an argument of the wrong type or value; the message names it,
                what was expected and what came.
        """
        embed_dims, depths, num_heads = resolve_arch(arch)
        norm_cfg = dict(type='LN') if norm_cfg is None else norm_cfg
        act_cfg = dict(type='GELU') if act_cfg is None else act_cfg
        check_norm(norm_cfg)
        check_activation(act_cfg)
        _check_values(given, embed_dims)
        _check_stages(given, len(depths))
        least = given['patch_size'] if given['use_abs_pos_embed'] else 1
        size = pair('pretrain_img_size', given['pretrain_img_size'], least)
        by_stage = {name: per_stage(name, given[name], len(depths)) for name in PER_STAGE}
        for shift in by_stage['use_shift']:
            check_bool('use_shift', shift)
        resolved = dict(
            given,
            **by_stage,
            pretrain_img_size=size,
            out_indices=tuple(given['out_indices']),
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
        )
        return cls(embed_dims, depths, num_heads, **resolved)

    @property
    def num_stages(self) -> int:
        """Stages that are built: later ones than the last that is returned are not."""
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


def _check_values(given: dict[str, Any], embed_dims: int) -> None:
    """Raises for single values of the wrong type or out of range."""
    choices = dict(
        pool_method=('none', *POOL_METHODS),
        expand_layer=tuple(EXPAND_LAYERS),
        downsample=DOWNSAMPLES,
        attention_backend=('auto', *available_backends()),
    )
    for name, expected in choices.items():
        check_choice(name, given[name], expected)
    for name in FLAGS:
        check_bool(name, given[name])
    for name in RATES:
        check_rate(name, given[name])
    for name in ('in_channels', 'patch_size'):
        check_int(name, given[name], least=1)
    enough = 'a number that leaves an MLP at least one channel'
    check_number('mlp_ratio', given['mlp_ratio'], enough, above=math.nextafter(1 / embed_dims, 0))
    if given['qk_scale'] is not None:
        check_number('qk_scale', given['qk_scale'], 'a positive number or None', above=0)
    if given['layer_scale_init_value'] is not None:
        check_number('layer_scale_init_value', given['layer_scale_init_value'], 'a number or None')
    if given['downsample'] == 'merging' and (given['use_conv_embed'] or given['use_pre_norm']):
        raise ValueError(
            "downsample='merging' takes the place of the convolution that use_conv_embed and "
            'use_pre_norm are about; leave them out'
        )


def _check_stages(given: dict[str, Any], num_stages: int) -> None:
    """Raises for lists and numbers of stages that there are not."""
    check_stages('focal_stages', given['focal_stages'], num_stages)
    check_stages('out_indices', given['out_indices'], num_stages)
    if not given['out_indices']:
        raise ValueError(f'out_indices must name at least one stage, got {given["out_indices"]!r}')
    check_int('frozen_stages', given['frozen_stages'], least=-1, most=num_stages)
