"""Loads third-party checkpoints into a backbone of mmfocal, and accounts for each tensor."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmfocal.geometry import WindowGeometry

from .contents import CheckpointError, problem_of, refuse
from .layouts import Weights, read_weights
from .resizing import (
    INTERPOLATIONS,
    RINGS,
    missing_ring,
    resize_grid,
    resize_pool,
    resize_ring_table,
)
from .safe_loading import load_checkpoint_file

# What to do without the weights that a config begins with.
ELSEWHERE = """You can:
  - take PaddleViT's conversion of the authors' file: docs/weights.md says where each is
  - name another file: --cfg-options model.backbone.init_cfg.checkpoint=FILE
  - begin with Swin Transformer: configs/mmdet/focal_maskrcnn_ms-1x_from-swin.py shows how
  - train from scratch: --cfg-options model.backbone.init_cfg=None"""

_TABLE = 'relative_position_bias_table'
_TURNED = (
    " Linear weights are transposed: take PaddlePaddle's .pdparams as it is; if that has them as "
    'PyTorch does, write its tensors to a .pth with torch.save.'
)
_BLOCK = re.compile(r'stages\.(\d+)\.blocks\.(\d+)\.attn\.')
MAX_KINDS = 6  # kinds of names in the log line


@dataclass
class LoadReport:
    """What became of every tensor of a file and of a model.

    Attributes:
        source: the file.
        layout: whose layout it had.
        loaded: names that were taken as they are.
        resized: names that were resized to other windows.
        left_out: keys of the file that the model has no use for.
        new: names of the model that the file does not have, with what they begin as.
    """

    source: str
    layout: str
    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line for the log."""
        parts = [f'{self.source}, {self.layout}: {len(self.loaded)} tensors loaded']
        for what in ('resized', 'left_out', 'new'):
            names = getattr(self, what)
            if names:
                parts.append(f'{len(names)} {what.replace("_", " ")} ({_kinds(names)})')
        return ', '.join(parts) + '.'


def load_pretrained(
    model: nn.Module,
    checkpoint: str | Mapping[str, Any],
    prefix: str | None = None,
    map_location: str = 'cpu',
    sha256: str | None = None,
    interpolation: str = 'bilinear',
    ring: str | float = 'normal',
    source: str = 'the given state dict',
    log: bool = True,
) -> LoadReport:
    """Loads pretrained weights, as ``init_cfg=dict(type='Pretrained', checkpoint=...)`` does.

    Files may be of mmfocal (a backbone, or a detector, segmenter or classifier with one), of the
    authors' classifiers, Focal-fast included, also as PaddleViT converted them (``.pdparams``), or
    of Swin Transformer in the layouts of its authors, of mmdet and mmpretrain, of timm and of
    torchvision. Position bias tables are resized
    where windows or focal windows differ from those that a file was trained with. The ring of
    stage 4, which the authors' ImageNet models lack, and all that Swin Transformer lacks begin as
    new.

    Args:
        model: the backbone, with attention layers whose ``geometry`` says which windows their
            tables are for. Its attribute ``arch_settings``, if it has one, names architectures in
            messages. It is changed only if all fits.
        checkpoint: path, URL, or what such a file holds.
        prefix: of the backbone's keys in the file, such as ``'backbone.'``; found if None.
        map_location: where the file's tensors are put before they are copied.
        sha256: of the file, or the beginning of it, in hexadecimal; not compared if None.
        interpolation: of position bias tables, ``'bilinear'`` as in the paper, or ``'bicubic'``.
        ring: how a ring's table begins that the file does not have: ``'normal'`` as in the
            authors' code, ``'nearest'`` or a number; see
            :func:`~mmfocal.weights.resizing.missing_ring`.
        source: name of what is given and no path or URL, for messages.
        log: whether the report is logged, as one line.

    Returns:
        What became of each tensor.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe, holds no weights of a Focal or
            Swin Transformer, or those of another architecture.
        ValueError: an unknown ``interpolation`` or ``ring``.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f'interpolation must be one of {INTERPOLATIONS}, got {interpolation!r}')
    if ring not in RINGS and (isinstance(ring, bool) or not isinstance(ring, int | float)):
        raise ValueError(f'ring must be one of {RINGS} or a number, got {ring!r}')
    if not isinstance(checkpoint, Mapping):
        source = str(checkpoint)
        try:
            checkpoint = load_checkpoint_file(checkpoint, map_location, sha256)
        except CheckpointError as error:
            if source.startswith(('http://', 'https://')):
                raise CheckpointError(f'{error}\n{ELSEWHERE}') from error
            raise
    weights = read_weights(checkpoint, source, prefix)
    fitted, report = _fit(model, weights, source, interpolation, ring)
    model.load_state_dict(fitted, strict=False)
    if log:
        print_log(f'Pretrained weights: {report}', logger='current')
    return report


def _fit(
    model: nn.Module, weights: Weights, source: str, interpolation: str, ring: str | float
) -> tuple[dict[str, Tensor], LoadReport]:
    """The file's tensors as the model takes them."""
    own = model.state_dict()
    tensors = dict(weights.tensors)
    refuse(
        {
            name: problem
            for name, value in tensors.items()
            if (problem := _problem(name, value, own.get(name)))
        },
        source,
    )
    _check_architecture(model, tensors, source, weights.layout)
    report = LoadReport(source, weights.layout, left_out=list(weights.left_out))
    if _merges(own) != _merges(tensors):
        for name in [name for name in tensors if '.downsample.' in name]:
            del tensors[name]
            report.left_out.append(name)

    geometries = {
        f'{name}.': module.geometry
        for name, module in model.named_modules()
        if _BLOCK.fullmatch(f'{name}.')
    }
    fitted, misfits, is_turned = {}, [], False
    for name, value in tensors.items():
        if name not in own:
            report.left_out.append(name)
            continue
        try:
            fitted[name] = _resized(name, value, tensors, geometries, interpolation)
        except (IndexError, KeyError, RuntimeError, ValueError) as error:
            misfits.append(f'{name}: {error}')
            continue
        if fitted[name].shape != own[name].shape:
            misfits.append(f'{name} is {tuple(value.shape)}, not {tuple(own[name].shape)}')
            if value.dim() == 2 and value.T.shape == own[name].shape:
                is_turned = True
        (report.loaded if fitted[name].shape == value.shape else report.resized).append(name)
    if misfits:
        raise CheckpointError(
            f'{source} ({weights.layout}) does not fit the model: {"; ".join(misfits[:5])}'
            + (f'; and {len(misfits) - 5} more.' if len(misfits) > 5 else '.')
            + (_TURNED if is_turned else '')
        )
    for name in own:
        if name not in fitted:
            report.new.append(name)
            if name.endswith(f'{_TABLE}_to_neighbors'):
                block = _BLOCK.match(name)[0]
                table_name = f'{block}position_bias.{_TABLE}'
                table = fitted.get(table_name, own[table_name])
                fitted[name] = missing_ring(ring, table, own[name], geometries[block])
    return fitted, report


def _problem(name: str, value: Tensor, own: Tensor | None) -> str | None:
    """Why a tensor cannot be fitted to the model's, whatever windows either is for."""
    if own is None:
        is_counter = not value.is_floating_point()  # num_batches_tracked of another norm
        return None if value.dim() or is_counter else 'is a single number'
    if value.dim() != own.dim():
        return f'is {tuple(value.shape)}, not {tuple(own.shape)}'
    if value.is_floating_point() != own.is_floating_point():
        return f'is {value.dtype}, not {own.dtype}'
    # A finite number may be none in a type of fewer bits.
    return problem_of(value.to(own.dtype), name) if value.dtype != own.dtype else None


def _resized(
    name: str,
    value: Tensor,
    tensors: Mapping[str, Tensor],
    geometries: Mapping[str, WindowGeometry],
    interpolation: str,
) -> Tensor:
    """A tensor for the model's windows; of the same shape if they are those of the file."""
    match = _BLOCK.match(name)
    if match is None:
        return value
    geometry, part = geometries[match[0]], name.removeprefix(match[0])
    if part == f'position_bias.{_TABLE}':
        return resize_grid(value.T, 2 * geometry.window_size - 1, interpolation).T
    if part.endswith('_to_neighbors'):
        window = _window(tensors[f'{match[0]}position_bias.{_TABLE}'])
        expand = _expand(window, value.shape[-1])
        old = replace(geometry, window_size=window, expand_size=expand, shift_size=0)
        return resize_ring_table(value, old, replace(geometry, shift_size=0), interpolation)
    if '_to_windows.' in part:
        level = int(part.rpartition('.')[2]) + 1
        side = geometry.window_size + geometry.region_size(level) - 1
        return resize_grid(value, side, interpolation)
    if re.fullmatch(r'pools\.\d+\.weight', part):
        side = geometry.sub_window_size(int(part.split('.')[1]) + 1)
        resized = resize_pool(value.flatten(1), side)
        return resized if value.dim() == 2 else resized.unflatten(1, (1, side, side))
    return value


def _window(table: Tensor) -> int:
    """Side of the window that a table of relative positions is for."""
    return (round(table.shape[0] ** 0.5) + 1) // 2


def _expand(window: int, num_listed: int) -> int:
    """Width of the ring with so many listed positions: 4 copies less what lies in the window."""
    for expand in range(window + 1):
        if 4 * (window**2 - (window - expand) ** 2) == num_listed:
            return expand
    raise ValueError(f'no ring around a window of {window} has {num_listed} listed tokens')


# --- Which architecture ---------------------------------------------------------------------


def _merges(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the step between stages is Swin's patch merging."""
    return any('.downsample.reduction.' in name for name in tensors)


def _check_architecture(
    model: nn.Module, tensors: Mapping[str, Tensor], source: str, layout: str
) -> None:
    here, there = _architecture(model.state_dict()), _architecture(tensors)
    named = getattr(model, 'arch_settings', {})
    stages = len(here['depths'])  # the model may have fewer than the file
    for key in ('depths', 'num_heads'):
        there[key] = there[key][:stages]
    if here != there:
        raise CheckpointError(
            f'{source} ({layout}) holds another architecture than the model.\n'
            f'  file:  {_told(there, named)}\n'
            f'  model: {_told(here, named)}\n'
            'Take weights of the same architecture, or set the backbone to that of the file.'
        )


def _architecture(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    blocks: dict[int, set[int]] = {}
    heads: dict[int, int] = {}
    for name, value in tensors.items():
        match = _BLOCK.match(name)
        if match and name.endswith('.qkv.weight'):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
        if match and name.endswith((f'.{_TABLE}', '.position_bias.mlps.0.2.weight')):
            heads[int(match[1])] = value.shape[-1 if name.endswith(_TABLE) else 0]
    stem = tensors.get('patch_embed.proj.weight', torch.empty(0, 0, 0, 0))
    return dict(
        embed_dims=stem.shape[0],
        depths=tuple(len(blocks[stage]) for stage in sorted(blocks)),
        num_heads=tuple(heads[stage] for stage in sorted(heads)),
        in_channels=stem.shape[1],
        patch_kernel=stem.shape[-1],
        layer_scale=any(name.endswith('.gamma_1') for name in tensors),
        fast=any('.position_bias.mlps.' in name for name in tensors),
    )


def _told(architecture: Mapping[str, Any], named: Mapping[str, Any]) -> str:
    settings = {name: architecture[name] for name in ('embed_dims', 'depths', 'num_heads')}
    known = [f"'{name}'" for name, arch in named.items() if arch == settings]
    return ', '.join([*known[:1], *(f'{name} {value}' for name, value in architecture.items())])


def _kinds(names: list[str]) -> str:
    """What names are of, with how many of a kind there are; numbers are left out."""
    kinds: Counter[str] = Counter()
    for name in names:
        kind = re.sub(r'^.*\.blocks\.\d+\.(attn\.(position_bias\.)?)?', '', name)
        kinds[re.sub(r'^norm\d', 'norm', re.sub(r'^(stages|layers)\.\d+\.', '', kind))] += 1
    told = [kind if count == 1 else f'{count} {kind}' for kind, count in kinds.items()]
    more = len(told) - MAX_KINDS
    return ', '.join(told[:MAX_KINDS]) + (f' and {more} more kinds' if more > 0 else '')
