"""What one query of a trained model attends to, as numbers and as a figure over the image."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.collections import PatchCollection
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Patch, Polygon, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator
from torch import Tensor, nn

from mmfocal.geometry import FocalKeys
from mmfocal.models.focal_self_attention import FocalSelfAttention
from mmfocal.ops.reference import focal_attention_weights
from mmfocal.utils.colours import VERMILION
from mmfocal.utils.errors import UserError
from mmfocal.visualization.view import View, find_backbone

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class AttentionWeights:
    """What one query attends to, in one block.

    Places are in pixels of the image, from its upper left corner. The map of tokens, padded to
    whole windows, covers ``map_box``. Keys stand around the query as its window sees them: those
    that come round from the other side of the map have boxes outside of ``map_box``, which repeats
    there.

    Attributes:
        stage: index into ``stages`` of the backbone.
        block: index into ``blocks`` of the stage.
        stride: pixels of the model's input along the side of a token.
        point: x and y of the point that was asked for.
        query: box of the token that holds it.
        window: box of the token's window.
        map_box: box of the padded map.
        weights: float64 ``(nH, n)``, the attention weights of each head to the ``n`` keys that
            the query may see; a head's sum is 1.
        kinds: for each key ``'window'``, a token of the query's own window, ``'ring'``, another
            token, or ``'level1'``, ``'level2'``, ..., a pooled cell.
        boxes: float64 ``(n, 4)``, left, top, right and bottom of each key.
    """

    stage: int
    block: int
    stride: int
    point: tuple[float, float]
    query: Box
    window: Box
    map_box: Box
    weights: np.ndarray
    kinds: np.ndarray
    boxes: np.ndarray

    def share(self, kind: str, head: int | None = None) -> float:
        """Part of the attention that keys of a kind get, of a head or as the mean over heads."""
        return float(self.of_head(head)[self.kinds == kind].sum())

    @property
    def wraps(self) -> bool:
        """Whether some keys come round from the other side of the map."""
        left, top, right, bottom = self.map_box
        outside = self.boxes < (left, top, left, top)
        return bool((outside | (self.boxes > (right, bottom, right, bottom))).any())

    def of_head(self, head: int | None) -> np.ndarray:
        """float64 ``(n,)``: the weights of a head, or their mean over heads."""
        return self.weights.mean(axis=0) if head is None else self.weights[head]


def attention_weights(
    model: nn.Module,
    inputs: View | Tensor,
    point: Sequence[float],
    stage: int,
    block: int = -1,
) -> AttentionWeights:
    """What the query at a point attends to, in a forward pass of the backbone.

    Args:
        model: a backbone of mmfocal, or a model that has one.
        inputs: an image as :func:`mmfocal.visualization.view.view_image` gives it; or float
            ``(1, 3, H, W)``, what the backbone gets, whose pixels then are those of the image.
        point: x and y in the image, in pixels. Pixel ``i`` reaches from ``i`` to ``i + 1``.
        stage: index into ``stages`` of the backbone, counted from 0.
        block: index into the stage's ``blocks``, from 0, or from the end if negative.

    Returns:
        The weights and where their keys are.

    Raises:
        UserError: the point is outside of what the model sees, there is no such stage or block,
            or the model has no backbone of mmfocal.
    """
    return attention_of_blocks(model, inputs, point, [(stage, block)])[0]


def attention_of_blocks(
    model: nn.Module,
    inputs: View | Tensor,
    point: Sequence[float],
    blocks: Sequence[tuple[int, int]],
) -> list[AttentionWeights]:
    """:func:`attention_weights` of several blocks, pairs of a stage and a block, in one pass."""
    view = inputs if isinstance(inputs, View) else View.of_inputs(inputs)
    backbone = find_backbone(model)
    check_point(view, point)
    blocks = [_checked(backbone, *pair) for pair in blocks]
    layers = {pair: backbone.stages[pair[0]].blocks[pair[1]].attn for pair in blocks}
    calls = _calls(backbone, set(layers.values()), view.inputs)
    return [
        _weights_at(
            view, point, *pair, backbone.patch_embed.stride * 2 ** pair[0], *calls[layers[pair]]
        )
        for pair in blocks
    ]


def check_point(view: View, point: Sequence[float]) -> None:
    """Raises a ``UserError`` for a point that the model does not see."""
    height, width = view.image.shape[:2]
    x, y = point
    if not (0 <= x < width and 0 <= y < height):
        raise UserError(
            f'The point {x:g} {y:g} is outside of the image, which is {width} pixels wide and '
            f'{height} high: x is at least 0 and less than {width}, y less than {height}.'
        )
    left, top, right, bottom = view.seen
    if not (left <= x < right and top <= y < bottom):
        raise UserError(
            f'The point {x:g} {y:g} is cropped away by the test pipeline, which leaves x from '
            f'{left:.1f} to {right:.1f} and y from {top:.1f} to {bottom:.1f} of this image.'
        )


def _checked(backbone: nn.Module, stage: int, block: int) -> tuple[int, int]:
    """Indices counted from 0."""
    depths = [len(stage.blocks) for stage in backbone.stages]
    if not 0 <= stage < len(depths):
        raise UserError(
            f'There is no stage {stage + 1} (index {stage}): the backbone has {len(depths)}.'
        )
    if not -depths[stage] <= block < depths[stage]:
        raise UserError(
            f'Stage {stage + 1} has no block {block + 1} (index {block}): it has {depths[stage]}.'
        )
    return stage, block % depths[stage]


def _calls(
    backbone: nn.Module, layers: set[FocalSelfAttention], inputs: Tensor
) -> dict[FocalSelfAttention, tuple[Tensor, FocalKeys, Tensor, float]]:
    """What each layer gives to the attention op: ``qkv``, keys, bias and scale.

    The op is called with the output of the projection and that of the position bias, which hooks
    take here, so that nothing is computed in another way than the model does.
    """
    kept: dict[nn.Module, tuple[tuple, Tensor]] = {}

    def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
        kept[module] = args, output

    training = backbone.training
    backbone.eval()
    try:
        with ExitStack() as hooks, torch.no_grad(), torch.compiler.set_stance('force_eager'):
            for layer in layers:
                for module in (layer.qkv, layer.position_bias):
                    hooks.callback(module.register_forward_hook(keep).remove)
            backbone(inputs.to(next(backbone.parameters())))
    finally:
        backbone.train(training)
    calls = {}
    for layer in layers:
        (keys,), bias = kept[layer.position_bias]
        qkv = kept[layer.qkv][1].unflatten(-1, (3, layer.num_heads, layer.head_dims))
        calls[layer] = qkv, keys, bias, layer.scale
    return calls


def _weights_at(
    view: View,
    point: Sequence[float],
    stage: int,
    block: int,
    stride: int,
    qkv: Tensor,
    keys: FocalKeys,
    bias: Tensor,
    scale: float,
) -> AttentionWeights:
    col, row = (int(place // stride) for place in view.to_inputs(np.array(point)))
    tables = keys.tables()
    at = int(tables.inverse[row * keys.map_size[1] + col])
    window, query = divmod(at, keys.num_queries)
    # The model's own rounding is in qkv and bias; none is added to it.
    weights = focal_attention_weights(
        qkv[:1].double().cpu(), keys, bias.double().cpu(), scale, torch.tensor([window])
    )[0, 0, :, query]  # (nH, N)
    allowed = tables.allowed(torch.tensor([window]))[0].expand(keys.num_queries, -1)[query]

    size, shift = keys.geometry.window_size, keys.geometry.shift_size
    corner = torch.tensor(divmod(window, keys.grid[1])) * size + shift
    squares = keys.squares(window)[allowed]
    level, place, side = squares[:, 0], squares[:, 1:3], squares[:, 3:]
    # A shifted window may see its query beyond the border of the map.
    token = torch.tensor([row, col])
    round_border = token - corner - torch.tensor(divmod(query, size))
    corner, place = corner + round_border, place + round_border
    own = ((place >= corner) & (place < corner + size)).all(dim=1)
    kinds = np.array([f'level{number}' for number in level.tolist()])
    kinds[(level == 0).numpy()] = 'ring'
    kinds[((level == 0) & own).numpy()] = 'window'

    def boxes(first: Tensor, sides: Tensor | int) -> np.ndarray:
        """Of squares of tokens, rows and columns first, in pixels of the image."""
        corners = torch.cat([first, first + sides], dim=-1).view(-1, 2, 2).flip(-1)
        return view.to_image(corners.double().numpy() * stride).reshape(-1, 4)

    def box(first: Tensor, sides: Tensor | int) -> Box:
        return tuple(boxes(first, sides)[0].tolist())

    return AttentionWeights(
        stage=stage,
        block=block,
        stride=stride,
        point=(float(point[0]), float(point[1])),
        query=box(token, 1),
        window=box(corner, size),
        map_box=box(torch.tensor([0, 0]), torch.tensor(keys.padded_size)),
        weights=weights[:, allowed].numpy(),
        kinds=kinds,
        boxes=boxes(place, side),
    )


# --- The figure -------------------------------------------------------------------------------
# Lengths are in centimetres; the figure fits a column of a paper.

WIDTH, MARGIN, GAP = 8.5, 0.08, 0.14
COLUMNS = 4
LABEL = 0.36  # left of the panels: what they show
CAPTION, BAR = 0.28, 1.0  # a line below a panel, the colour bar with its text
OVERVIEW = 4.5  # largest height of the image
LEGEND, LEGEND_HEIGHT = 3.4, 4.2
FONT = 6.5  # points
COLOURS = 'YlGnBu'
DECADES = 2.5  # weights so far below the largest have one colour
DARKEST = 0.6  # grey of the image's black, so that marks stand out
PADDING = 0.82  # grey of what is no image
REPEATED = 0.5  # opacity beyond the border of the map, where it repeats
SMALLEST = 0.12  # side of a mark over that of its token or cell

NAMES = dict(window='own', ring='ring')  # of kinds, else pooled
QUERY = dict(edgecolor=VERMILION, linewidth=1.1)
WINDOW = dict(edgecolor='black', linewidth=0.8)
BORDER = dict(edgecolor='0.3', linewidth=0.6, linestyle=(0, (1, 1)))
CELL = dict(facecolor='none', edgecolor='white', linewidth=0.35)
REACH = dict(edgecolor='white', linewidth=0.6)
CASING = [withStroke(linewidth=1.5, foreground='black')]
MARK = dict(edgecolor='0.25', linewidth=0.15)


def draw_attention(view: View, attentions: Sequence[AttentionWeights]) -> Figure:
    """Draws the image, and what its query attends to in some blocks, as the mean over heads.

    A column for each block has its fine keys above and a row of pooled cells for each level
    below, since cells lie over the tokens that they pool. Squares are tokens of the own window,
    circles those of the ring, diamonds pooled cells. The colour of a mark is the weight of its
    key, on one scale; its area is the weight as a part of the block's largest.

    Args:
        view: of the image.
        attentions: of one point, one column each.

    Returns:
        The figure, 8.5 cm wide; the caller saves and closes it.
    """
    columns = [_Column(_told(attention), attention, None) for attention in attentions]
    label = 'attention weight of a token or cell, mean over heads'
    return _draw(view, columns, label, overview=True)


def draw_heads(view: View, attention: AttentionWeights) -> Figure:
    """Draws what each head of a block attends to, as :func:`draw_attention` does blocks."""
    columns = [
        _Column(f'head {head + 1}', attention, head) for head in range(len(attention.weights))
    ]
    label = f'attention weight of a token or cell, {_told(attention)}'.replace('\n', ', ')
    return _draw(view, columns, label, overview=False)


@dataclass(frozen=True)
class _Column:
    """A column of panels: one head of a block, or the mean over heads if that is None."""

    title: str
    attention: AttentionWeights
    head: int | None

    @property
    def weights(self) -> np.ndarray:
        return self.attention.of_head(self.head)


class _Page:
    """A figure on which axes and text are placed from the upper left corner."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = plt.figure(figsize=(WIDTH / 2.54, height / 2.54))

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = 1 - (top + height) / self.height
        place = left / WIDTH, bottom, width / WIDTH, height / self.height
        return self.figure.add_axes(place, xticks=[], yticks=[])

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        self.figure.text(x / WIDTH, 1 - y / self.height, text, fontsize=FONT, **style)


def _told(attention: AttentionWeights) -> str:
    return f'stage {attention.stage + 1}, block {attention.block + 1}\nstride {attention.stride}'


def _draw(view: View, columns: list[_Column], label: str, overview: bool) -> Figure:
    levels = sorted({kind for c in columns for kind in c.attention.kinds if 'level' in kind})
    rows = {'tokens': ('window', 'ring')}
    rows |= {f'cells, level {level.removeprefix("level")}': (level,) for level in levels}
    side = (WIDTH - LABEL - MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
    heading = 0.12 + CAPTION * len(columns[0].title.splitlines())
    band = heading + sum(side + 0.1 + CAPTION * len(kinds) for kinds in rows.values())
    bands = [columns[at : at + COLUMNS] for at in range(0, len(columns), COLUMNS)]
    height, width = view.image.shape[:2]
    scale = min((WIDTH - LABEL - GAP - LEGEND) / width, OVERVIEW / height)
    size = width * scale, height * scale
    top_height = max(size[1], LEGEND_HEIGHT) if overview else 0
    page = _Page(MARGIN + top_height + len(bands) * band + BAR)

    # One scale for all panels, so that they can be compared.
    weights = np.concatenate([column.weights for column in columns])
    least = max(weights.min(), weights.max() / 10**DECADES)
    norm = LogNorm(min(least, weights.max() / 2), weights.max())

    top = MARGIN
    if overview:
        _draw_overview(page.axes(LABEL, top + (top_height - size[1]) / 2, *size), view, columns)
        _draw_legend(page.axes(LABEL + size[0] + GAP, top, LEGEND, top_height), columns)
        top += top_height
    for in_band in bands:
        for place, column in enumerate(in_band):
            left, below = LABEL + place * (side + GAP), top + heading
            style = dict(ha='center', va='bottom', linespacing=1.1)
            page.text(left + side / 2, below - 0.08, column.title, **style)
            for name, kinds in rows.items():
                if place == 0:
                    style = dict(ha='center', va='center', rotation=90)
                    page.text(LABEL / 2, below + side / 2, name, **style)
                _draw_panel(page.axes(left, below, side, side), view, column, kinds, norm)
                below += side + 0.1 + CAPTION * len(kinds)
        top += band

    bar = page.figure.colorbar(
        plt.cm.ScalarMappable(norm, COLOURS),
        cax=page.axes(LABEL + 0.6, top + 0.12, WIDTH - LABEL - MARGIN - 1.2, 0.2),
        orientation='horizontal',
        extend='min' if weights.min() < norm.vmin else 'neither',
    )
    bar.ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.xaxis.set_major_formatter('{x:g}')
    bar.ax.xaxis.set_minor_formatter('')
    bar.set_label(label, fontsize=FONT, labelpad=1)
    bar.ax.tick_params(labelsize=FONT, pad=1, length=2, which='both', width=0.4)
    bar.outline.set_linewidth(0.4)
    return page.figure


def _draw_panel(
    axes: Axes, view: View, column: _Column, kinds: Sequence[str], norm: LogNorm
) -> None:
    """Keys of some kinds over the part of the image where they are."""
    attention, weights = column.attention, column.weights
    for spine in axes.spines.values():
        spine.set(linewidth=0.4, color='0.5')
    shown = np.isin(attention.kinds, kinds)
    if not shown.any():
        axes.axis('off')
        style = dict(ha='center', va='center', fontsize=FONT, color='0.4')
        axes.text(0.5, 0.5, 'no pooled\ncells', **style)
        return
    left, top, right, bottom = limits = _square_around(
        np.vstack([attention.boxes[shown], attention.query])
    )
    _draw_backdrop(axes, view, attention.map_box, limits)
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.add_patch(_frame(attention.map_box, **BORDER))
    colours = plt.get_cmap(COLOURS)(norm(np.maximum(weights, norm.vmin)))
    for kind in kinds:
        of_kind = np.flatnonzero(attention.kinds == kind)
        if kind not in NAMES:
            cells = [_frame(attention.boxes[i]) for i in of_kind]
            axes.add_collection(PatchCollection(cells, **CELL))
        sizes = np.sqrt(weights[of_kind] / weights.max())
        marks = [
            _mark(kind, attention.boxes[i], size) for i, size in zip(of_kind, sizes, strict=True)
        ]
        axes.add_collection(PatchCollection(marks, facecolor=colours[of_kind], zorder=2, **MARK))
    if 'window' in kinds:
        axes.add_patch(_frame(attention.window, **WINDOW, zorder=3))
    axes.add_patch(_frame(attention.query, **QUERY, zorder=4))
    shares = [
        f'{NAMES.get(kind, "pooled")} {100 * attention.share(kind, column.head):.1f} %'
        for kind in kinds
        if kind in attention.kinds
    ]
    axes.set_xlabel('\n'.join(shares), fontsize=FONT, labelpad=2, linespacing=1.05)


def _mark(kind: str, box: Sequence[float], size: float) -> Patch:
    """The mark of a key in the middle of its box, which it all but fills with a ``size`` of 1."""
    left, top, right, bottom = box
    middle = np.array([left + right, top + bottom]) / 2
    half = 0.46 * max(size, SMALLEST) * np.array([right - left, bottom - top])
    if kind == 'ring':
        return Ellipse(middle, *(2 * half))
    if kind == 'window':
        return Rectangle(middle - half, *(2 * half))
    return Polygon(middle + half * [(0, -1), (1, 0), (0, 1), (-1, 0)])


def _frame(box: Sequence[float], **style: Any) -> Rectangle:
    left, top, right, bottom = box
    return Rectangle((left, top), right - left, bottom - top, fill=False, **style)


def _square_around(boxes: np.ndarray) -> Box:
    """A square, a little larger than the smallest box around ``boxes``, with its middle."""
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    middle, half = (low + high) / 2, 0.52 * (high - low).max()
    return (*(middle - half), *(middle + half))


def _draw_backdrop(axes: Axes, view: View, map_box: Box, limits: Box) -> None:
    """The image in light greys, repeated within ``limits`` as the padded map is."""
    grey = cv2.cvtColor(view.image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    grey = DARKEST + (1 - DARKEST) * (grey - grey.min()) / max(np.ptp(grey), 1)
    height, width = grey.shape
    axes.set_facecolor(str(PADDING))
    first, last, start, end = np.array([*map_box, *limits]).reshape(4, 2)
    counts = np.floor([(start - first) / (last - first), (end - first) / (last - first)])
    for count in product(*(range(int(low), int(high) + 1) for low, high in counts.T)):
        x, y = np.array(count) * (last - first)
        opacity = 1 if count == (0, 0) else REPEATED
        style = dict(cmap='gray', vmin=0, vmax=1, alpha=opacity, aspect='auto')
        tile = axes.imshow(grey, extent=(x, x + width, y + height, y), **style)
        seen = np.add(view.seen, (x, y, x, y)).reshape(2, 2)
        part = *np.maximum(seen[0], start), *np.minimum(seen[1], end)
        tile.set_clip_path(_frame(part, transform=axes.transData))


def _draw_overview(axes: Axes, view: View, columns: list[_Column]) -> None:
    """The whole image with the query, and a frame around the keys of each stage."""
    height, width = view.image.shape[:2]
    axes.imshow(view.image, extent=(0, width, height, 0))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.spines[:].set_visible(False)
    labels = [np.array(columns[0].attention.point)]
    for column in columns:
        boxes = column.attention.boxes
        low = np.maximum(boxes[:, :2].min(axis=0), 0)
        high = np.minimum(boxes[:, 2:].max(axis=0), (width, height))
        if np.array_equal((*low, *high), (0, 0, width, height)):
            continue
        axes.add_patch(_frame((*low, *high), **REACH, path_effects=CASING))
        # Frames share corners, where images end; a label is in that which is furthest from others.
        inset = 0.03 * np.array([width, width])
        corners = [np.where(upper, low + inset, high - inset) for upper in product((1, 0), (1, 0))]
        place = max(
            corners, key=lambda corner: min(np.ptp([corner, x], axis=0).max() for x in labels)
        )
        labels.append(place)
        style = dict(ha='center', va='center_baseline', fontsize=FONT, color='white')
        axes.text(*place, str(column.attention.stage + 1), **style, path_effects=CASING)
    for colour, size, thickness in (('white', 7.5, 2.4), (VERMILION, 6.5, 1.3)):
        axes.plot(
            *columns[0].attention.point,
            '+',
            color=colour,
            markersize=size,
            markeredgewidth=thickness,
        )


def _draw_legend(axes: Axes, columns: list[_Column]) -> None:
    """What frames and marks mean, only those that occur."""
    axes.axis('off')
    attentions = [column.attention for column in columns]
    kinds = {kind for attention in attentions for kind in attention.kinds}
    query = dict(marker='+', color=VERMILION, markersize=6.5, markeredgewidth=1.3, ls='')
    entries = [
        Line2D([], [], label='query', **query),
        Patch(label='its token', fill=False, **QUERY),
        Patch(label='its window', fill=False, **WINDOW),
    ]
    for kind, label, marker in (
        ('window', 'token of the window', 's'),
        ('ring', 'token around: ring', 'o'),
        ('level1', 'pooled cell', 'D'),
    ):
        if kind in kinds:
            style = dict(marker=marker, color=plt.get_cmap(COLOURS)(0.5), markersize=5, ls='')
            entries.append(Line2D([], [], label=label, **style))
    entries += [
        Patch(label='reach of a stage', fill=False, **REACH, path_effects=CASING),
        Line2D([], [], label='border of the map', color='0.3', lw=0.6, ls=(0, (1, 1))),
    ]
    notes = "Area of a mark: weight as a\npart of its column's largest."
    if any(attention.wraps for attention in attentions):
        notes += '\nKeys beyond the border:\nfrom the opposite side.'
    style = dict(fontsize=FONT, frameon=False, borderpad=0, borderaxespad=0.4)
    axes.legend(handles=entries, loc='upper left', **style, handlelength=1.2)
    axes.text(0, 0.02, notes, va='bottom', fontsize=FONT, linespacing=1.1)
