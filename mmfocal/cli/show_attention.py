"""Draws what a point of an image attends to in each stage, with the attention weights.

The image goes through the test pipeline of the config, and the weights are those of the model's
own forward pass, averaged over heads.
"""

import argparse
from pathlib import Path

import matplotlib
import torch

from mmfocal.engine import load_config
from mmfocal.utils.errors import UserError
from mmfocal.utils.files import written_atomically
from mmfocal.visualization.attention import attention_of_blocks, draw_attention, draw_heads
from mmfocal.visualization.view import find_backbone, load_model, view_image

from ._arguments import add_checkpoint, add_config, natural, parser_of


def parse_args() -> argparse.Namespace:
    parser = parser_of(__doc__)
    add_config(parser)
    add_checkpoint(parser, 'weights before training, which show which keys there are')
    parser.add_argument('image', type=Path)
    parser.add_argument(
        '--point',
        type=float,
        nargs=2,
        required=True,
        metavar=('X', 'Y'),
        help='the query, in pixels from the upper left corner of the image',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('attention.png'),
        help='image to write, .png or .svg (default: attention.png)',
    )
    parser.add_argument(
        '--stages',
        type=natural,
        nargs='+',
        help='counted from 1 (default: all that the model has)',
    )
    parser.add_argument(
        '--blocks',
        type=natural,
        nargs='+',
        help='of each of the stages, or one for all, counted from 1 (default: the last)',
    )
    parser.add_argument(
        '--dpi', type=int, default=300, help='of a .png, 8.5 cm wide (default: 300)'
    )
    parser.add_argument(
        '--heads',
        action='store_true',
        help='also write an image of the heads of each stage, as attention-stage1.png',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.out.suffix not in ('.png', '.svg'):
        raise UserError(f'--out must end in .png or .svg, got {args.out}')
    cfg = load_config(args.config, args.cfg_options)
    matplotlib.use('Agg')
    torch.manual_seed(0)  # for weights before training
    model = load_model(cfg, None if args.checkpoint == 'none' else args.checkpoint)
    view = view_image(cfg, model, args.image)
    stages = args.stages or range(1, len(find_backbone(model).stages) + 1)
    blocks = args.blocks or [0]  # from the end, once 1 is taken off
    blocks = blocks * len(stages) if len(blocks) == 1 else blocks
    if len(blocks) != len(stages):
        raise UserError(
            f'--blocks must be one number, or one for each of {len(stages)} stages, got '
            f'{len(blocks)}'
        )
    pairs = [(stage - 1, block - 1) for stage, block in zip(stages, blocks, strict=True)]
    attentions = attention_of_blocks(model, view, args.point, pairs)

    figures = {args.out: draw_attention(view, attentions)}
    for attention in attentions if args.heads else ():
        name = f'{args.out.stem}-stage{attention.stage + 1}{args.out.suffix}'
        figures[args.out.with_name(name)] = draw_heads(view, attention)
    for path, figure in figures.items():
        with written_atomically(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=args.dpi)
        print(f'Wrote {path}')
