"""Draws two figures of docs/how_it_works.md: what attention costs, and what a kernel does.

    python -m tools.dev.diagrams

cost.png has the keys of a query in each stage and the multiplications with their additions of
whole backbones, counted on tensors without contents; kernel.png is a diagram.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from mmdet.models.backbones import SwinTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmfocal import FocalTransformer
from mmfocal.utils.colours import BLUE, GREEN, ORANGE, PURPLE
from mmfocal.utils.files import written_atomically
from tools.dev import ROOT

IMAGE = 800, 1344  # height and width of a detector's image in pixels, for keys in each stage
SIDES = 224, 448, 896, 1344, 1792  # of square images in pixels, for the cost of a backbone
WINDOW = 7  # tokens
DETECTION = (15, 13, 9, 7)  # focal windows of the detectors, in cells
SWIN, FOCAL, FOCAL_WIDE, ALL = 'Swin-T', 'Focal-T', 'Focal-T, detection windows', 'all tokens'
COLOURS = {SWIN: BLUE, FOCAL: ORANGE, FOCAL_WIDE: GREEN, ALL: PURPLE}
DPI = 160


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--out', type=Path, default=ROOT / 'docs/images', help='folder (default: docs/images)'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    matplotlib.use('Agg')
    args.out.mkdir(parents=True, exist_ok=True)
    for name, figure in (
        ('cost.png', draw_costs(keys_of_stages(), gflops_by_side())),
        ('kernel.png', draw_kernel()),
    ):
        with written_atomically(args.out / name) as file:
            figure.savefig(file, format='png', dpi=DPI)
        plt.close(figure)
        print(f'Wrote {args.out / name}')


# --- What is counted ----------------------------------------------------------------------------


def backbones() -> dict[str, nn.Module]:
    """The backbones that are compared, in evaluation mode and without contents."""
    models = {
        SWIN: SwinTransformer(),
        FOCAL: FocalTransformer('tiny'),
        FOCAL_WIDE: FocalTransformer('tiny', focal_windows=DETECTION),
    }
    for model in models.values():
        model.to('meta').train(False)  # mmdet's train() gives nothing back
    return models


def keys_of_stages() -> dict[str, list[int]]:
    """Keys of a query in the middle of an image of ``IMAGE``, by model, for each stage.

    Those of ``ALL`` are the tokens of the map.
    """
    models = backbones()
    found: dict[str, list[int]] = {SWIN: [WINDOW**2] * 4}
    for name in (FOCAL, FOCAL_WIDE):
        stages = models[name].stages
        found[name] = [stage.blocks[0].attn.geometry.num_keys for stage in stages]
    sides = [[-(-side // stride) for side in IMAGE] for stride in (4, 8, 16, 32)]
    return found | {ALL: [height * width for height, width in sides]}


def gflops_by_side() -> dict[str, list[float]]:
    """10^9 multiplications, each with its addition, of a forward pass at each of ``SIDES``.

    ``ALL`` is Swin-T whose attention, alone, is exchanged for one over all tokens of a map.
    """
    models = backbones()
    found = {name: [count(model, side) for side in SIDES] for name, model in models.items()}
    swin = models[SWIN]
    found[ALL] = [
        gflops + sum(extra_of_all_tokens(swin, side))
        for gflops, side in zip(found[SWIN], SIDES, strict=True)
    ]
    return found


def count(model: nn.Module, side: int) -> float:
    """10^9 multiplications of a forward pass on an image of ``side x side`` pixels."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, side, side, device='meta'))
    return counter.get_total_flops() / 2e9


def extra_of_all_tokens(swin: nn.Module, side: int) -> list[float]:
    """By how much attention over the map exceeds that in windows, in 10^9, for each stage.

    Scores and the sum of values take a multiplication for each channel, query and key.
    """
    extra = []
    for number, stage in enumerate(swin.stages):
        along = -(-side // (4 << number))
        padded = -(-along // WINDOW) * WINDOW
        channels = stage.blocks[0].norm1.normalized_shape[0]
        pairs = along**4 - padded**2 * WINDOW**2
        extra.append(2 * len(stage.blocks) * pairs * channels / 1e9)
    return extra


# --- The figures --------------------------------------------------------------------------------


def draw_costs(keys: Mapping[str, list[int]], gflops: Mapping[str, list[float]]) -> Figure:
    """Keys of a query by stage, and the cost of a backbone by the size of its image.

    Args:
        keys: of :func:`keys_of_stages`.
        gflops: of :func:`gflops_by_side`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.5), layout='constrained')
    width = 0.2
    for place, (name, counts) in enumerate(keys.items()):
        middles = [stage + (place - 1.5) * width for stage in range(4)]
        bars = left.bar(middles, counts, width, color=COLOURS[name])
        left.bar_label(bars, [f'{n:,}' for n in counts], fontsize=6.5, rotation=90, padding=2)
    left.set(
        yscale='log',
        ylim=(10, 1e6),
        xticks=range(4),
        xticklabels=[f'stride {4 << stage}' for stage in range(4)],
        title=f'Keys of a query, image of {IMAGE[0]}x{IMAGE[1]}',
    )
    for name, values in gflops.items():
        line = '--' if name == ALL else '-'
        right.plot(SIDES, values, line, marker='o', ms=4, color=COLOURS[name], label=name)
    right.set(
        xscale='log',
        yscale='log',
        xticks=SIDES,
        xticklabels=[f'{side}²' for side in SIDES],
        xlabel='pixels',
        title='GFLOPs of the backbone, forward',
    )
    right.minorticks_off()
    right.grid(alpha=0.3)
    right.legend(frameon=False, fontsize=9)
    for axes in (left, right):
        axes.title.set_fontsize(10)
        axes.spines[['top', 'right']].set_visible(False)
    return figure


def draw_kernel() -> Figure:
    """Attention of one window in plain operators, and in one kernel."""
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 4.3), layout='constrained')
    plain, fused = panels
    for axes, title in ((plain, 'Plain operators'), (fused, 'One kernel')):
        axes.set(xlim=(0, 10), ylim=(0, 10))
        axes.axis('off')
        axes.set_title(title, fontsize=11)

    _box(plain, 0.2, 7.9, 9.6, 1.8, 'GPU memory: queries, keys, values of the map', BLUE)
    _arrow(plain, 7.9, 7.0, 'gather: each key copied for each window that sees it')
    _box(plain, 0.2, 5.2, 9.6, 1.8, 'GPU memory: keys and values of every window', ORANGE)
    _arrow(plain, 5.2, 4.3, 'product, bias, softmax: one after the other')
    _box(
        plain,
        0.2,
        2.5,
        9.6,
        1.8,
        'GPU memory: all scores, windows x 49 x 394 for each head',
        ORANGE,
    )
    _arrow(plain, 2.5, 1.6, 'product with the values')
    _box(plain, 0.2, 0.2, 9.6, 1.4, 'GPU memory: output', BLUE)

    _box(
        fused,
        0.2,
        7.9,
        9.6,
        1.8,
        'GPU memory: queries, keys, values of the map;\nlist of the keys of each window',
        BLUE,
    )
    _arrow(fused, 7.9, 7.0, 'one program for each window and head loads its queries once')
    loop = (
        'Registers and shared memory, 64 keys at a time:\n'
        '1. load 64 keys and values by their place in the list\n'
        '2. scores = scale x queries x keys + position bias\n'
        '3. rescale the running maximum and sum (online softmax)\n'
        '4. add weights x values to the output'
    )
    _box(fused, 0.2, 2.6, 9.6, 4.3, loop, GREEN, align='left')
    _arrow(fused, 2.5, 1.6, 'output, and one number for each query (log of the sum)')
    _box(fused, 0.2, 0.2, 9.6, 1.4, 'GPU memory: output', BLUE)
    return figure


def _box(
    axes: Axes,
    left: float,
    bottom: float,
    width: float,
    height: float,
    text: str,
    colour: str,
    align: str = 'center',
) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (left, bottom),
            width,
            height,
            boxstyle='round,pad=0,rounding_size=0.25',
            facecolor=f'{colour}22',
            edgecolor=colour,
        )
    )
    x = left + (width / 2 if align == 'center' else 0.5)
    axes.text(x, bottom + height / 2, text, ha=align, va='center', fontsize=9, linespacing=1.6)


def _arrow(axes: Axes, start: float, end: float, text: str) -> None:
    axes.annotate('', (1.0, end), (1.0, start), arrowprops=dict(arrowstyle='->', lw=1.3))
    axes.text(1.4, (start + end) / 2, text, va='center', fontsize=8.5)


if __name__ == '__main__':
    sys.exit(main())
