"""Weights and settings of the authors' models, translated to the backbones of mmfocal."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmfocal.geometry import ClosestGeometry, ClosestKeys, fit_to_map

from .layouts import AUTHORS, our_name

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

# The second version, classification/focal_transformer_v2.py, has all of these and one more.
AUTHORS_FAST_DEFAULTS: dict[str, Any] = dict(**AUTHORS_DEFAULTS, focal_topK=64)
# Those that have the same names here.
AUTHORS_SAME = (
    *('patch_size', 'expand_layer', 'mlp_ratio', 'qkv_bias', 'qk_scale', 'drop_rate'),
    *('attn_drop_rate', 'drop_path_rate', 'patch_norm', 'use_conv_embed', 'use_pre_norm'),
)
AUTHORS_FILES = {
    1: 'classification/focal_transformer.py',
    2: 'classification/focal_transformer_v2.py',
}

# Buffers that follow from the settings, and the classifier, which a backbone does not have.
AUTHORS_DROPPED = re.compile(
    r'(norm|head)\.(weight|bias)'
    r'|layers\.\d+\.blocks\.\d+\.attn_mask'
    r'|layers\.\d+\.blocks\.\d+\.attn\.(relative_position_index(_\d+)?|valid_ind_rolled'
    r'|valid_ind_unfold_\d+|window_coords|topk_cloest_(indice|coords)_\d+)'
)
# What only the second version has.
FAST_KEYS = re.compile(
    r'layers\.\d+\.blocks\.\d+\.attn\.(coord2rpb_all|topk_cloest|window_coords).*'
)


def authors_version(state_dict: Mapping[str, Tensor]) -> int:
    """Which version of the authors' model weights belong to: 2 for "Focal-fast", else 1."""
    return 2 if any(map(FAST_KEYS.fullmatch, state_dict)) else 1


def from_authors(
    config: Mapping[str, Any], state_dict: Mapping[str, Tensor], version: int = 1
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Translates settings and weights of the authors' model to ours.

    The model made of the result computes what theirs computes for images of their ``img_size``:
    its outputs are the maps after the last block of each stage. Their classifier is the linear
    layer ``head`` on the mean over all tokens of the last map, normalised by ``norm``; both are
    dropped here, as a backbone has neither.

    Their model changes its settings to fit ``img_size``: a stage whose map is no larger than a
    window gets a window as large as the map's shorter side, no ring and no shift. These become
    settings of that stage.

    In the second version the keys of a window and their positions are buffers, which follow from
    the settings and are dropped. Should a checkpoint hold other positions, their model computes
    with those: they go into the state dict, and ``stored_map_sizes`` says for which maps. Other
    keys than those chosen here are reported, and not followed.

    Args:
        config: arguments of the authors' ``FocalTransformer``; what is left out has their default.
        state_dict: their ``state_dict()``, with or without buffers, or any part of it.
        version: 1 for ``classification/focal_transformer.py``, 2 for ``focal_transformer_v2.py``,
            which :func:`authors_version` tells from the weights.

    Returns:
        Arguments of :class:`mmfocal.FocalTransformer`, or of version 2 of
        :class:`mmfocal.FocalTransformerFast`, and its state dict. Tensors are copied only where
        positions are put into another order.

    Raises:
        ValueError: an argument or a key that their model does not have, or an unknown version; the
            message names it.

    Example:
        >>> kwargs, weights = from_authors(config, torch.load(path, weights_only=True)['model'])
        >>> model = FocalTransformer(**kwargs)  # FocalTransformerFast of version 2
        >>> model.load_state_dict(weights)
        <All keys matched successfully>
    """
    if version not in AUTHORS_FILES:
        raise ValueError(f'version must be one of {tuple(AUTHORS_FILES)}, got {version!r}')
    config = _complete(config, version)
    kwargs, weights = _kwargs(config), _state_dict(config, state_dict, version)
    if version == 1:
        return kwargs, weights
    for name in ('focal_windows', 'expand_sizes', 'expand_layer'):  # the second version has none
        del kwargs[name]
    kwargs['top_k'] = config['focal_topK']
    if positions := _other_positions(kwargs, config, state_dict):
        sizes = _map_sizes(config)
        stages = {int(name.split('.')[1]) for name in positions}
        kwargs['stored_map_sizes'] = tuple(
            sizes[i] if i in stages else None for i in range(len(sizes))
        )
    return kwargs, {**weights, **positions}


def _complete(config: Mapping[str, Any], version: int) -> dict[str, Any]:
    defaults = AUTHORS_FAST_DEFAULTS if version == 2 else AUTHORS_DEFAULTS
    if unknown := sorted(set(config) - set(defaults)):
        raise ValueError(
            f"{', '.join(map(repr, unknown))}: no argument of the authors' FocalTransformer "
            f'({AUTHORS_FILES[version]}); known are {", ".join(defaults)}'
        )
    return {**defaults, **config}


def _patch_resolution(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the first map in tokens."""
    size = config['img_size']
    height, width = (size, size) if isinstance(size, int) else size
    return height // config['patch_size'], width // config['patch_size']


def _map_sizes(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Height and width of the map of each stage in tokens."""
    height, width = _patch_resolution(config)
    return [(height // 2**stage, width // 2**stage) for stage in range(len(config['depths']))]


def _kwargs(config: Mapping[str, Any]) -> dict[str, Any]:
    height, width = _patch_resolution(config)
    num_stages = len(config['depths'])
    windows, surrounded = zip(
        *(fit_to_map(config['window_size'], size) for size in _map_sizes(config)), strict=True
    )
    rings = [
        around and level > 0
        for around, level in zip(surrounded, config['focal_levels'], strict=False)
    ]
    return dict(
        {name: config[name] for name in AUTHORS_SAME},
        arch=dict(
            embed_dims=config['embed_dim'],
            depths=tuple(config['depths']),
            num_heads=tuple(config['num_heads']),
        ),
        in_channels=config['in_chans'],
        window_size=windows,
        focal_levels=tuple(max(level, 1) for level in config['focal_levels']),
        focal_windows=tuple(config['focal_windows']),
        focal_stages=tuple(i for i in range(num_stages) if i in config['focal_stages']),
        pool_method=config['focal_pool'],
        expand_sizes=tuple(
            size if ring else 0 for size, ring in zip(config['expand_sizes'], rings, strict=False)
        ),
        use_shift=tuple(config['use_shift'] and around for around in surrounded),
        use_abs_pos_embed=config['ape'],
        pretrain_img_size=(height * config['patch_size'], width * config['patch_size']),
        layer_scale_init_value=config['layerscale_value'] if config['use_layerscale'] else None,
        with_cp=config['use_checkpoint'],
        out_indices=tuple(range(num_stages)),
        out_norm=False,
    )


def _state_dict(
    config: Mapping[str, Any], state_dict: Mapping[str, Tensor], version: int
) -> dict[str, Tensor]:
    ours, unknown = {}, []
    for key, value in state_dict.items():
        name = our_name(key, AUTHORS)
        if name == 'absolute_pos_embed':
            height, width = _patch_resolution(config)
            value = value.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        if version == 1 and FAST_KEYS.fullmatch(key):
            unknown.append(key)
        elif name is not None:
            ours[name] = value
        elif not AUTHORS_DROPPED.fullmatch(key):
            unknown.append(key)
    if unknown:
        hint = '; they are of version 2' if any(map(FAST_KEYS.fullmatch, unknown)) else ''
        raise ValueError(
            f"keys that the authors' FocalTransformer ({AUTHORS_FILES[version]}) does not have: "
            f'{", ".join(unknown)}{hint}'
        )
    return ours


def _other_positions(
    kwargs: Mapping[str, Any], config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Relative positions in a state dict of the second version that are not those of the settings.

    Returns:
        By our names, all positions of the stages where any differs: float ``(nW, Wh * Ww, K, 2)``,
        in our order of keys.
    """
    positions = {}
    for stage, size in enumerate(_map_sizes(config)):
        pooled = config['focal_pool'] != 'none' and stage in config['focal_stages']
        geometry = ClosestGeometry(
            kwargs['window_size'][stage],
            # Shifted windows have the same keys on the moved map.
            shift_size=0,
            focal_level=config['focal_levels'][stage] if pooled else 1,
            top_k=kwargs['top_k'],
        )
        side = torch.arange(geometry.window_size) - geometry.window_size // 2
        query = torch.cartesian_prod(side, side)[:, None]
        found, differ = {}, False
        for level, (index, offsets) in enumerate(_keys_by_level(geometry.keys(*size))):
            for block in range(config['depths'][stage]):
                coordinates = _stored_positions(state_dict, stage, block, level, index)
                if coordinates is not None:
                    expected = offsets[:, None] + query
                    differ |= not torch.equal(coordinates.to(expected.dtype), expected)
                    name = f'stages.{stage}.blocks.{block}.attn.position_bias.coordinates.{level}'
                    found[name] = coordinates
        if differ:
            positions |= found
    return positions


def _stored_positions(
    state_dict: Mapping[str, Tensor], stage: int, block: int, level: int, index: Tensor
) -> Tensor | None:
    """Positions of a level that a state dict holds for the keys ``index``, in their order."""
    prefix = f'layers.{stage}.blocks.{block}.attn.topk_cloest_'
    theirs = state_dict.get(f'{prefix}indice_{level}')
    coordinates = state_dict.get(f'{prefix}coords_{level}')
    if theirs is None or coordinates is None:
        return None
    theirs, order = theirs.cpu().sort(dim=1)
    if torch.equal(theirs, index):
        return coordinates.cpu().take_along_dim(order[:, None, :, None], dim=2)
    print_log(
        f'{prefix}indice_{level} has other keys than those that are chosen here; what they were '
        'trained for and what is computed differ a little.',
        logger='current',
        level=logging.WARNING,
    )
    return None


def _keys_by_level(keys: ClosestKeys) -> Iterator[tuple[Tensor, Tensor]]:
    """At each level the numbers of all keys on their map, and how far windows' centres are.

    Yields:
        int64 ``(nW, K)``, ascending, and float32 ``(nW, K, 2)`` in tokens.
    """
    tables = keys.tables()
    sizes = [keys.num_map_tokens, *(height * width for height, width in keys.pooled_sizes)]
    indices = tables.index.split(keys.keys_per_level, dim=1)
    offsets = torch.cat(tables.offsets)[tables.columns].split(keys.keys_per_level, dim=1)
    for index, offset, start in zip(indices, offsets, accumulate(sizes, initial=0), strict=False):
        yield index - start, offset
