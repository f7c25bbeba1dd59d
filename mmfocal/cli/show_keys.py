"""Draws which tokens and pooled cells windows of focal attention attend to.

Without an image it draws windows of a map of tokens; with one, what a point sees of the image.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import mmcv

from mmfocal.datasets.checks import why_unreadable
from mmfocal.geometry import FocalGeometry
from mmfocal.geometry.focal import BORDERS
from mmfocal.utils.errors import UserError
from mmfocal.utils.files import written_atomically
from mmfocal.visualization.keys import draw_keys, draw_keys_on_image

from ._arguments import natural

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MAP = 49, 63  # height and width in tokens
STRIDE = 8  # pixels


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', type=Path, help='image to write, .png or .svg')
    parser.add_argument(
        '--map',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help=f'size in tokens (default: {MAP[0]} {MAP[1]})',
    )
    parser.add_argument(
        '--window',
        type=int,
        nargs=2,
        action='append',
        metavar=('ROW', 'COL'),
        help='a window to draw, counted in windows; may be given again (default: 3 4 and 0 0)',
    )
    parser.add_argument('--image', help='draw over this image instead of over a map of tokens')
    parser.add_argument(
        '--point',
        type=float,
        nargs=2,
        metavar=('X', 'Y'),
        help='the query in the image, in pixels from its upper left corner (default: its middle)',
    )
    parser.add_argument(
        '--stride',
        type=natural,
        help=f'pixels of the image along the side of a token (default: {STRIDE})',
    )
    # What the attention is like, as arguments of FocalGeometry.
    for name, default, unit in (
        ('window-size', 7, 'tokens'),
        ('expand-size', 3, 'tokens'),
        ('shift-size', 0, 'tokens'),
        ('focal-level', 2, 'levels, window and ring being the first'),
        ('focal-window', 5, 'cells'),
    ):
        parser.add_argument(
            f'--{name}', type=int, default=default, help=f'{unit} (default: {default})'
        )
    parser.add_argument('--border', choices=BORDERS, default='wrap', help='(default: wrap)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.out.suffix not in ('.png', '.svg'):
        raise UserError(f'The image must end in .png or .svg, got {args.out}.')
    unused = ('map', 'window') if args.image else ('point', 'stride')
    if given := [f'--{name}' for name in unused if getattr(args, name) is not None]:
        expected = '--point and --stride with --image, --map and --window without it'
        raise UserError(f'expected {expected}, got {", ".join(given)}.')
    matplotlib.use('Agg')
    try:
        geometry = FocalGeometry(
            args.window_size,
            args.expand_size,
            args.shift_size,
            args.focal_level,
            args.focal_window,
            args.border,
        )
        figure = _over_image(geometry, args) if args.image else _over_map(geometry, args)
    except ValueError as error:
        raise UserError(str(error)) from error
    with written_atomically(args.out) as file:
        figure.savefig(file, format=args.out.suffix[1:], dpi=160)
    print(f'Wrote {args.out}')


def _over_map(geometry: FocalGeometry, args: argparse.Namespace) -> 'Figure':
    windows = args.window or [(3, 4), (0, 0)]
    return draw_keys(geometry, tuple(args.map or MAP), [tuple(window) for window in windows])


def _over_image(geometry: FocalGeometry, args: argparse.Namespace) -> 'Figure':
    if problem := why_unreadable(args.image):
        raise UserError(f'{args.image}: {problem}')
    image = mmcv.imread(args.image, channel_order='rgb')
    middle = image.shape[1] / 2, image.shape[0] / 2
    return draw_keys_on_image(geometry, image, tuple(args.point or middle), args.stride or STRIDE)
