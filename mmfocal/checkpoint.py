"""Weights and settings of other code, translated to :class:`mmfocal.FocalTransformer`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

# Constructor arguments of the authors' FocalTransformer and their defaults
# (microsoft/Focal-Transformer at 57bb303, classification/focal_transformer.py).
AUTHORS_DEFAULTS: dict[str, Any] = dict(
    img_size=224,
    patch_size=4,
    in_chans=3,
    num_classes=1000,
    embed_dim=96,
    depths=(2, 2, 6, 2),
    num_heads=(3, 6, 12, 24),
    window_size=7,
    mlp_ratio=4.0,
    qkv_bias=True,
    qk_scale=None,
    drop_rate=0.0,
    attn_drop_rate=0.0,
    drop_path_rate=0.1,
    ape=False,
    patch_norm=True,
    use_checkpoint=False,
    use_shift=False,
    focal_stages=(0, 1, 2, 3),
    focal_levels=(1, 1, 1, 1),
    focal_windows=(7, 5, 3, 1),
    focal_pool='fc',
    expand_stages=(0, 1, 2, 3),  # not used by their code
    expand_sizes=(3, 3, 3, 3),
    expand_layer='all',
    use_conv_embed=False,
    use_layerscale=False,
    layerscale_value=1e-4,
    use_pre_norm=False,
)

# The authors' names and ours. A name that is the same on both sides is listed too: what is not
# listed here or in AUTHORS_DROPPED is an error.
AUTHORS_RENAMED = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r'absolute_pos_embed', r'absolute_pos_embed'),
        (r'patch_embed\.(proj|norm)\.(weight|bias)', r'patch_embed.\1.\2'),
        (
            r'layers\.(\d+)\.downsample\.(pre_norm|proj|norm)\.(weight|bias)',
            r'stages.\1.downsample.\2.\3',
        ),
        (r'layers\.(\d+)\.blocks\.(\d+)\.(gamma_[12])', r'stages.\1.blocks.\2.\3'),
        (
            r'layers\.(\d+)\.blocks\.(\d+)\.(norm[12]|mlp\.fc[12]|attn\.qkv|attn\.proj)'
            r'\.(weight|bias)',
            r'stages.\1.blocks.\2.\3.\4',
        ),
        (
            r'layers\.(\d+)\.blocks\.(\d+)\.attn\.'
            r'(relative_position_bias_table(?:_to_neighbors|_to_windows\.\d+)?)',
            r'stages.\1.blocks.\2.attn.position_bias.\3',
        ),
        (
            r'layers\.(\d+)\.blocks\.(\d+)\.pool_layers\.(\d+)\.(weight|bias)',
            r'stages.\1.blocks.\2.attn.pools.\3.\4',
        ),
    )
)

# Buffers that follow from the settings, and the classifier, which a backbone does not have.
AUTHORS_DROPPED = re.compile(
    r'(norm|head)\.(weight|bias)'
    r'|layers\.\d+\.blocks\.\d+\.attn_mask'
    r'|layers\.\d+\.blocks\.\d+\.attn\.(relative_position_index(_\d+)?|valid_ind_rolled'
    r'|valid_ind_unfold_\d+)'
)


def from_authors(
    config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Translates settings and weights of the authors' model to ours.

    The model made of the result computes what theirs computes for images of their ``img_size``:
    its outputs are the maps behind the last block of each stage. Their classifier is the linear
    layer ``head`` on the mean over all tokens of the last map, normalised by ``norm``; both are
    dropped here, as a backbone has neither.

    Their model changes its settings to fit ``img_size``: a stage whose map is no larger than a
    window gets a window as large as the map's shorter side, no ring and no shift. These become
    settings of that stage.

    Args:
        config: arguments of the authors' ``FocalTransformer``; what is left out has their default.
        state_dict: their ``state_dict()``, with or without buffers, or any part of it.

    Returns:
        Arguments of :class:`mmfocal.FocalTransformer`, and its state dict. Tensors are not copied.

    Raises:
        ValueError: an argument or a key that their model does not have; the message names it.

    Example:
        >>> kwargs, weights = from_authors(config, torch.load(path, weights_only=True)['model'])
        >>> model = FocalTransformer(**kwargs)
        >>> model.load_state_dict(weights)
        <All keys matched successfully>
    """
    config = _complete(config)
    return _kwargs(config), _state_dict(config, state_dict)


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(config) - set(AUTHORS_DEFAULTS)):
        raise ValueError(
            f"{', '.join(map(repr, unknown))}: no argument of the authors' FocalTransformer "
            '(classification/focal_transformer.py); known are '
            f'{", ".join(AUTHORS_DEFAULTS)}'
        )
    return {**AUTHORS_DEFAULTS, **config}


def _patch_resolution(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the first map in tokens."""
    size = config['img_size']
    height, width = (size, size) if isinstance(size, int) else size
    return height // config['patch_size'], width // config['patch_size']


def _kwargs(config: Mapping[str, Any]) -> dict[str, Any]:
    height, width = _patch_resolution(config)
    num_stages = len(config['depths'])
    windows, expands, shifts = [], [], []
    for stage in range(num_stages):
        shorter = min(height, width) // 2**stage
        fits = shorter > config['window_size']
        windows.append(config['window_size'] if fits else shorter)
        ring = fits and config['focal_levels'][stage] > 0
        expands.append(config['expand_sizes'][stage] if ring else 0)
        shifts.append(config['use_shift'] and fits)
    return dict(
        arch=dict(
            embed_dims=config['embed_dim'],
            depths=tuple(config['depths']),
            num_heads=tuple(config['num_heads']),
        ),
        in_channels=config['in_chans'],
        patch_size=config['patch_size'],
        window_size=tuple(windows),
        focal_levels=tuple(max(level, 1) for level in config['focal_levels']),
        focal_windows=tuple(config['focal_windows']),
        focal_stages=tuple(i for i in range(num_stages) if i in config['focal_stages']),
        pool_method=config['focal_pool'],
        expand_sizes=tuple(expands),
        expand_layer=config['expand_layer'],
        use_shift=tuple(shifts),
        mlp_ratio=config['mlp_ratio'],
        qkv_bias=config['qkv_bias'],
        qk_scale=config['qk_scale'],
        drop_rate=config['drop_rate'],
        attn_drop_rate=config['attn_drop_rate'],
        drop_path_rate=config['drop_path_rate'],
        use_abs_pos_embed=config['ape'],
        pretrain_img_size=(height * config['patch_size'], width * config['patch_size']),
        patch_norm=config['patch_norm'],
        use_conv_embed=config['use_conv_embed'],
        use_pre_norm=config['use_pre_norm'],
        layer_scale_init_value=config['layerscale_value'] if config['use_layerscale'] else None,
        with_cp=config['use_checkpoint'],
        out_indices=tuple(range(num_stages)),
        out_norm=False,
    )


def _state_dict(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ours, unknown = {}, []
    for name, value in state_dict.items():
        if AUTHORS_DROPPED.fullmatch(name):
            continue
        renamed = _renamed(name)
        if renamed is None:
            unknown.append(name)
        elif renamed == 'absolute_pos_embed':
            height, width = _patch_resolution(config)
            ours[renamed] = value.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        else:
            ours[renamed] = value
    if unknown:
        raise ValueError(
            "keys that the authors' FocalTransformer (classification/focal_transformer.py) does "
            f'not have: {", ".join(unknown)}'
        )
    return ours


def _renamed(name: str) -> str | None:
    for pattern, ours in AUTHORS_RENAMED:
        if match := pattern.fullmatch(name):
            return match.expand(ours)
    return None
