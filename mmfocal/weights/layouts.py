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

from .authors import AUTHORS_DROPPED, AUTHORS_RENAMED
from .safe_loading import CheckpointError

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


@dataclass(frozen=True)
class Layout:
    """One way in which files name the weights of a backbone.

    Attributes:
        title: whose it is, for messages.
        anchor: a key that every such file has, without a prefix.
        renamed: patterns of keys, and the names here, in the order in which they are tried.
        dropped: keys that follow from settings, or that a backbone has no use for.
        needs: a further key that tells this layout from others with the same anchor.
        merging: from the weights of a patch merging to those of the Swin authors' layout.
    """

    title: str
    anchor: str
    renamed: tuple[tuple[re.Pattern, str], ...]
    dropped: re.Pattern
    needs: str | None = None
    merging: Callable[[Tensor], Tensor] | None = None


def _patterns(**renamed: str) -> tuple[tuple[re.Pattern, str], ...]:
    return tuple((re.compile(pattern), ours) for pattern, ours in renamed.items())


_BLOCK = r'\.blocks\.(\d+)\.'
_PARTS = r'(norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(weight|bias)'
_TABLE = 'relative_position_bias_table'
_OUR_TABLE = rf'stages.\1.blocks.\2.attn.position_bias.{_TABLE}'

_SWIN_RENAMED = _patterns(
    **{
        r'absolute_pos_embed': 'absolute_pos_embed',
        r'patch_embed\.(proj|norm)\.(weight|bias)': r'patch_embed.\1.\2',
        rf'layers\.(\d+){_BLOCK}{_PARTS}': r'stages.\1.blocks.\2.\3.\4',
        rf'layers\.(\d+){_BLOCK}attn\.{_TABLE}': _OUR_TABLE,
        r'layers\.(\d+)\.downsample\.(norm|reduction)\.(weight|bias)': (
            r'stages.\1.downsample.\2.\3'
        ),
    }
)
_SWIN_DROPPED = re.compile(
    r'(norm|head|head\.fc)\.(weight|bias)|.*\.(attn_mask|relative_position_index)'
)
_MMDET_SWIN = _patterns(
    **{
        r'absolute_pos_embed': 'absolute_pos_embed',
        r'patch_embed\.projection\.(weight|bias)': r'patch_embed.proj.\1',
        r'patch_embed\.norm\.(weight|bias)': r'patch_embed.norm.\1',
        rf'stages\.(\d+){_BLOCK}(norm[12])\.(weight|bias)': r'stages.\1.blocks.\2.\3.\4',
        rf'stages\.(\d+){_BLOCK}attn\.w_msa\.(qkv|proj)\.(weight|bias)': (
            r'stages.\1.blocks.\2.attn.\3.\4'
        ),
        rf'stages\.(\d+){_BLOCK}attn\.w_msa\.{_TABLE}': _OUR_TABLE,
        rf'stages\.(\d+){_BLOCK}ffn\.layers\.0\.0\.(weight|bias)': (
            r'stages.\1.blocks.\2.mlp.fc1.\3'
        ),
        rf'stages\.(\d+){_BLOCK}ffn\.layers\.1\.(weight|bias)': r'stages.\1.blocks.\2.mlp.fc2.\3',
        r'stages\.(\d+)\.downsample\.(norm|reduction)\.(weight|bias)': (
            r'stages.\1.downsample.\2.\3'
        ),
        r'(norm[0-3])\.(weight|bias)': r'\1.\2',
    }
)


def _torchvision(match: re.Match) -> str:
    """Modules of torchvision's stages are numbered through: blocks, merging, blocks, ..."""
    number, rest = int(match[1]), match[2]
    if number == 0:
        return f'patch_embed.{ {"0": "proj", "2": "norm"}[rest[0]] }{rest[1:]}'
    if number % 2 == 0:
        return f'stages.{number // 2 - 1}.downsample.{rest}'
    block, _, rest = rest.partition('.')
    rest = rest.replace('mlp.0.', 'mlp.fc1.').replace('mlp.3.', 'mlp.fc2.')
    rest = rest.replace(_TABLE, f'position_bias.{_TABLE}')
    return f'stages.{number // 2}.blocks.{block}.{rest}'


def _timm_downsample(match: re.Match) -> str:
    """timm has a patch merging at the start of a stage, all others at the end of one."""
    return f'stages.{int(match[1]) - 1}.downsample.{match[2]}'


def _from_unfolded(merging: Tensor) -> Tensor:
    """Patch merging of mmdet and mmpretrain: channels first, then rows and columns.

    Args:
        merging: ``(..., 4 * C)``, the 2x2 tokens of each channel together, row by row.

    Returns:
        The same in the Swin authors' order: channels of a token together, column by column.
    """
    by_token = merging.unflatten(-1, (-1, 2, 2)).movedim((-1, -2), (-3, -2))
    return by_token.flatten(-3)


LAYOUTS = (
    Layout(
        title='mmfocal',
        anchor='stages.0.blocks.0.attn.qkv.weight',
        renamed=_patterns(**{r'((?:patch_embed|stages|norm\d|absolute_pos_embed)\b.*)': r'\1'}),
        dropped=re.compile(r'(?!)'),
    ),
    Layout(
        title="mmdet's or mmpretrain's Swin Transformer",
        anchor='stages.0.blocks.0.attn.w_msa.qkv.weight',
        renamed=_MMDET_SWIN,
        dropped=re.compile(r'.*\.relative_position_index'),
        merging=_from_unfolded,
    ),
    Layout(
        title="the authors' Focal-fast",
        anchor='layers.0.blocks.0.attn.qkv.weight',
        needs=r'.*\.attn\.coord2rpb_all\..*',
        renamed=AUTHORS_RENAMED,
        dropped=AUTHORS_DROPPED,
    ),
    Layout(
        title="the authors' Focal Transformer",
        anchor='layers.0.blocks.0.attn.qkv.weight',
        needs=r'.*(pool_layers\.|_table_to_neighbors|_table_to_windows|downsample\.proj\.).*',
        renamed=AUTHORS_RENAMED,
        dropped=AUTHORS_DROPPED,
    ),
    Layout(
        title="timm's Swin Transformer",
        anchor='layers.0.blocks.0.attn.qkv.weight',
        needs=r'layers\.3\.downsample\..*',
        renamed=(
            (re.compile(r'layers\.(\d+)\.downsample\.(.*)'), _timm_downsample),
            *_SWIN_RENAMED,
        ),
        dropped=_SWIN_DROPPED,
    ),
    Layout(
        title="the Swin authors' Swin Transformer",
        anchor='layers.0.blocks.0.attn.qkv.weight',
        needs=r'layers\.0\.downsample\.reduction\.weight',
        renamed=_SWIN_RENAMED,
        dropped=_SWIN_DROPPED,
    ),
    Layout(
        title="torchvision's Swin Transformer",
        anchor='features.1.0.attn.qkv.weight',
        renamed=(
            (re.compile(r'features\.(\d+)\.(.*(?<!relative_position_index))'), _torchvision),
        ),
        dropped=_SWIN_DROPPED,
    ),
)
# Relatives that look alike and compute something else.
RELATIVES = {
    r'.*attn\.(logit_scale|cpb_mlp\..*)': 'Swin Transformer V2, whose attention is another',
}


def read_weights(checkpoint: Mapping[str, Any], source: str, prefix: str | None = None) -> Weights:
    """Recognises and renames the backbone's weights in a loaded file.

    Args:
        checkpoint: what the file holds.
        source: its name, for messages.
        prefix: of the backbone's keys, such as ``'backbone.'``; found by itself if None.

    Returns:
        The weights. Tensors are not copied, except those of patch mergings.

    Raises:
        CheckpointError: the file holds no weights of a Focal or Swin Transformer.
    """
    state_dict = state_dict_of(checkpoint, source)
    for pattern, relative in RELATIVES.items():
        if any(re.fullmatch(pattern, key) for key in state_dict):
            raise CheckpointError(f'{source} holds weights of {relative}. They do not fit here.')
    for layout in LAYOUTS:
        found = _prefix(layout, state_dict)
        if found is None or prefix not in (None, found):
            continue
        tensors, left_out = {}, []
        for key, value in state_dict.items():
            name = _renamed(layout, key.removeprefix(found)) if key.startswith(found) else None
            if name is None:
                left_out.append(key)
            else:
                tensors[name] = _converted(layout, name, value)
        return Weights(layout.title, tensors, tuple(left_out))
    keys = ', '.join(list(state_dict)[:4])
    under = f' under {prefix!r}' if prefix else ''
    raise CheckpointError(
        f'{source} holds no weights of a Focal or Swin Transformer{under}. Its {len(state_dict)} '
        f'keys begin with: {keys}.'
    )


def state_dict_of(checkpoint: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Tensors by their names in a loaded file, found below :data:`CONTAINERS`.

    Raises:
        CheckpointError: there are none.
    """
    state_dict = checkpoint if isinstance(checkpoint, Mapping) else {}
    for container in CONTAINERS:
        if isinstance(state_dict.get(container), Mapping):
            state_dict = state_dict[container]
    tensors = {key: value for key, value in state_dict.items() if torch.is_tensor(value)}
    if not tensors:
        found = f'a {type(checkpoint).__name__}'
        if isinstance(checkpoint, Mapping):
            found = ', '.join(map(str, list(checkpoint)[:4])) or 'nothing'
        raise CheckpointError(f'{source} holds no state dict: no tensors by name, but {found}.')
    return tensors


def _prefix(layout: Layout, state_dict: Mapping[str, Tensor]) -> str | None:
    """What stands before the layout's keys, ``''`` for nothing; None if it is another layout."""
    for key in state_dict:
        if key.endswith(layout.anchor):
            prefix = key.removesuffix(layout.anchor)
            if prefix and not prefix.endswith('.'):
                continue
            own = (key.removeprefix(prefix) for key in state_dict if key.startswith(prefix))
            if layout.needs is None or any(re.fullmatch(layout.needs, key) for key in own):
                return prefix
    return None


def _renamed(layout: Layout, key: str) -> str | None:
    if layout.dropped.fullmatch(key):
        return None
    for pattern, ours in layout.renamed:
        if match := pattern.fullmatch(key):
            return ours(match) if callable(ours) else match.expand(ours)
    return None


def _converted(layout: Layout, name: str, value: Tensor) -> Tensor:
    if name == 'absolute_pos_embed' and value.dim() == 3:
        # Tokens of a square map, (1, H*W, C), as in files of both groups of authors.
        side = round(value.shape[1] ** 0.5)
        return value.unflatten(1, (side, -1)).permute(0, 3, 1, 2)
    if layout.merging and '.downsample.' in name:
        return layout.merging(value)
    return value
