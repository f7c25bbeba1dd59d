"""In which layout a file holds weights, and their names in the backbones of mmfocal.

A layout is recognised by the keys of the file. Files hold a state dict itself, or one under
``state_dict``, ``model`` or ``module``; of a detector, segmenter or classifier the backbone is
taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .contents import CheckpointError, problem_of, refuse

CONTAINERS = ('state_dict', 'model', 'module')


class Weights(NamedTuple):
    """Weights under the names of the backbones of mmfocal.

    Attributes:
        layout: whose layout it was, for messages.
        tensors: by name.
        left_out: keys of the file that belong to nothing in a backbone, such as a classifier's.
    """

    layout: str
    tensors: dict[str, Tensor]
    left_out: tuple[str, ...]


# Names of parameters of the backbones of mmfocal.
_OURS = re.compile(
    r'absolute_pos_embed'
    r'|(patch_embed\.(proj|norm)|norm\d)\.(weight|bias)'
    r'|stages\.\d+\.downsample\.(pre_norm|proj|norm|reduction)\.(weight|bias)'
    r'|stages\.\d+\.blocks\.\d+\.('
    r'gamma_[12]'
    r'|(norm[12]|mlp\.fc[12]|attn\.(qkv|proj|pools\.\d+))\.(weight|bias)'
    r'|attn\.position_bias\.relative_position_bias_table(_to_neighbors|_to_windows\.\d+)?'
    r'|attn\.position_bias\.mlps\.\d+\.[02]\.(weight|bias))'
)
Replacements = tuple[tuple[str, str | Callable[[re.Match], str]], ...]
_TABLE = (r'attn\.(relative_position_bias_table)', r'attn.position_bias.\1')
_SWIN: Replacements = ((r'^layers\.', 'stages.'), _TABLE)
AUTHORS: Replacements = (
    *_SWIN,
    (r'\.pool_layers\.', '.attn.pools.'),
    (r'\.coord2rpb_all\.', '.position_bias.mlps.'),
)


@dataclass(frozen=True)
class Layout:
    """One way in which files name the weights of a backbone.

    Attributes:
        title: whose it is, for messages.
        anchor: a key that every such file has, without a prefix.
        replacements: patterns of parts of keys, and what stands there in the names here.
        needs: a further key that tells this layout from others with the same anchor.
        merging: from the weights of a patch merging to those of the Swin authors' layout.
    """

    title: str
    anchor: str
    replacements: Replacements
    needs: str | None = None
    merging: Callable[[Tensor], Tensor] | None = None


def our_name(key: str, replacements: Replacements) -> str | None:
    """The name of a parameter here, or None if the backbones here have no such parameter."""
    for pattern, replacement in replacements:
        key = re.sub(pattern, replacement, key)
    return key if _OURS.fullmatch(key) else None


def _timm_downsample(match: re.Match) -> str:
    """timm has a patch merging at the start of a stage, all others at the end of one."""
    return f'stages.{int(match[1]) - 1}.downsample.'


def _torchvision_stage(match: re.Match) -> str:
    """Modules of torchvision's stages are numbered through: blocks, merging, blocks, ..."""
    number = int(match[1])
    return (
        f'stages.{number // 2}.blocks.' if number % 2 else f'stages.{number // 2 - 1}.downsample.'
    )


def _from_unfolded(merging: Tensor) -> Tensor:
    """Patch merging of mmdet and mmpretrain: channels first, then rows and columns.

    Args:
        merging: ``(..., 4 * C)``, the 2x2 tokens of each channel together, row by row.

    Returns:
        The same in the Swin authors' order: channels of a token together, column by column.
    """
    by_token = merging.unflatten(-1, (-1, 2, 2)).movedim((-1, -2), (-3, -2))
    return by_token.flatten(-3)


_BLOCK = 'layers.0.blocks.0.attn.qkv.weight'
LAYOUTS = (
    Layout('mmfocal', 'stages.0.blocks.0.attn.qkv.weight', ()),
    Layout(
        "mmdet's or mmpretrain's Swin Transformer",
        'stages.0.blocks.0.attn.w_msa.qkv.weight',
        (
            (r'patch_embed\.projection', 'patch_embed.proj'),
            (r'attn\.w_msa', 'attn'),
            _TABLE,
            (r'ffn\.layers\.0\.0', 'mlp.fc1'),
            (r'ffn\.layers\.1', 'mlp.fc2'),
        ),
        merging=_from_unfolded,
    ),
    Layout("the authors' Focal-fast", _BLOCK, AUTHORS, r'.*\.attn\.coord2rpb_all\..*'),
    Layout(
        "the authors' Focal Transformer",
        _BLOCK,
        AUTHORS,
        r'.*(pool_layers\.|_table_to_neighbors|_table_to_windows|downsample\.proj\.).*',
    ),
    Layout(
        "timm's Swin Transformer",
        _BLOCK,
        ((r'^layers\.(\d+)\.downsample\.', _timm_downsample), *_SWIN),
        r'layers\.3\.downsample\..*',
    ),
    Layout(
        "the Swin authors' Swin Transformer",
        _BLOCK,
        _SWIN,
        r'layers\.0\.downsample\.reduction\.weight',
    ),
    Layout(
        "torchvision's Swin Transformer",
        'features.1.0.attn.qkv.weight',
        (
            (r'^features\.0\.0\.', 'patch_embed.proj.'),
            (r'^features\.0\.2\.', 'patch_embed.norm.'),
            (r'^features\.(\d+)\.', _torchvision_stage),
            _TABLE,
            (r'mlp\.0\.', 'mlp.fc1.'),
            (r'mlp\.3\.', 'mlp.fc2.'),
        ),
    ),
)


def read_weights(checkpoint: Mapping[str, Any], source: str, prefix: str | None = None) -> Weights:
    """Recognises and renames the backbone's weights in a loaded file.

    Args:
        checkpoint: what the file holds.
        source: its name, for messages.
        prefix: of the backbone's keys, such as ``'backbone.'``; found by itself if None.

    Returns:
        The weights. Tensors are not copied, except those of patch mergings.

    Raises:
        CheckpointError: the file holds no weights of a Focal or Swin Transformer, or such that
            nothing can be computed with; which ones.
    """
    state_dict = state_dict_of(checkpoint, source)
    # A relative that looks alike and computes something else.
    if any(re.search(r'attn\.(logit_scale$|cpb_mlp\.)', key) for key in state_dict):
        raise CheckpointError(
            f'{source} holds weights of Swin Transformer V2, whose attention is another. They do '
            'not fit here.'
        )
    for layout in LAYOUTS:
        found = _prefix(layout, state_dict)
        if found is not None and prefix in (None, found):
            return _weights(layout, found, _container(checkpoint), source)
    keys = ', '.join(list(state_dict)[:4])
    under = f' under {prefix!r}' if prefix else ''
    raise CheckpointError(
        f'{source} holds no weights of a Focal or Swin Transformer{under}. Its {len(state_dict)} '
        f'keys begin with: {keys}.'
    )


def state_dict_of(checkpoint: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Tensors by their names in a loaded file, found below :data:`CONTAINERS`.

    Raises:
        CheckpointError: there are none, or names are no text.
    """
    tensors = {
        key: value for key, value in _container(checkpoint).items() if torch.is_tensor(value)
    }
    refuse(
        {
            key: f'is a name of type {type(key).__name__}, no text'
            for key in tensors
            if not isinstance(key, str)
        },
        source,
    )
    if not tensors:
        found = f'a {type(checkpoint).__name__}'
        if isinstance(checkpoint, Mapping):
            found = ', '.join(map(str, list(checkpoint)[:4])) or 'nothing'
        raise CheckpointError(f'{source} holds no state dict: no tensors by name, but {found}.')
    return tensors


def _container(checkpoint: Mapping[str, Any]) -> Mapping[Any, Any]:
    """The innermost state dict in a loaded file, with whatever else is in it."""
    state_dict = checkpoint if isinstance(checkpoint, Mapping) else {}
    for container in CONTAINERS:
        if isinstance(state_dict.get(container), Mapping):
            state_dict = state_dict[container]
    return state_dict


def _prefix(layout: Layout, state_dict: Mapping[str, Tensor]) -> str | None:
    """What stands before the layout's keys, ``''`` for nothing; None if it is another layout."""
    for key in state_dict:
        prefix = key.removesuffix(layout.anchor)
        if prefix == key or (prefix and not prefix.endswith('.')):
            continue
        own = (key.removeprefix(prefix) for key in state_dict if key.startswith(prefix))
        if layout.needs is None or any(re.fullmatch(layout.needs, key) for key in own):
            return prefix
    return None


def _weights(layout: Layout, prefix: str, state_dict: Mapping[str, Any], source: str) -> Weights:
    tensors, left_out, problems = {}, [], {}
    for key, value in state_dict.items():
        if not isinstance(key, str):
            continue
        name = _name(layout, key.removeprefix(prefix)) if key.startswith(prefix) else None
        if name is None:
            if torch.is_tensor(value):
                left_out.append(key)
            continue
        if problem := _problem(name, value):
            problems[key] = problem
            continue
        try:
            tensors[name] = _arranged(layout, name, value)
        except (IndexError, RuntimeError):
            problems[key] = f'has the odd shape {tuple(value.shape)}'
    refuse(problems, source)
    return Weights(layout.title, tensors, tuple(left_out))


def _name(layout: Layout, own: str) -> str | None:
    if layout.replacements:
        return our_name(own, layout.replacements)
    # Ours, with whatever parameters other norms have.
    return own if re.match(r'(patch_embed|stages|norm\d|absolute_pos_embed)\b', own) else None


def _problem(name: str, value: Any) -> str | None:
    if not torch.is_tensor(value):
        return f'is of type {type(value).__name__}, no tensor'
    return problem_of(value, name)


def _arranged(layout: Layout, name: str, value: Tensor) -> Tensor:
    if name == 'absolute_pos_embed' and value.dim() == 3:
        # Tokens of a square map, (1, H*W, C), as in files of both groups of authors.
        side = round(value.shape[1] ** 0.5)
        return value.unflatten(1, (side, -1)).permute(0, 3, 1, 2)
    if layout.merging and '.downsample.' in name:
        return layout.merging(value)
    return value
