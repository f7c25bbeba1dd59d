"""Draws which tokens and pooled cells windows of focal attention attend to."""

import argparse
from pathlib import Path

import matplotlib

from mmfocal.geometry import FocalGeometry
from mmfocal.geometry.focal import BORDERS
from mmfocal.utils.errors import UserError
from mmfocal.utils.files import written_atomically
from mmfocal.visualization.keys import draw_keys


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('out', type=Path, help='image to write, .png or .svg')
    parser.add_argument(
        '--map', type=int, nargs=2, default=(49, 63), metavar=('H', 'W'), help='size in tokens'
    )
    parser.add_argument(
        '--window',
        type=int,
        nargs=2,
        action='append',
        metavar=('ROW', 'COL'),
        help='a window to draw, counted in windows; may be given again (default: 3 4 and 0 0)',
    )
    parser.add_argument('--window-size', type=int, default=7, help='tokens')
    parser.add_argument('--expand-size', type=int, default=3, help='tokens')
    parser.add_argument('--shift-size', type=int, default=0, help='tokens')
    parser.add_argument('--focal-level', type=int, default=2)
    parser.add_argument('--focal-window', type=int, default=5, help='cells')
    parser.add_argument('--border', choices=BORDERS, default='wrap')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.out.suffix not in ('.png', '.svg'):
        raise UserError(f'The image must end in .png or .svg, got {args.out}.')
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
        windows = args.window or [(3, 4), (0, 0)]
        figure = draw_keys(geometry, tuple(args.map), [tuple(window) for window in windows])
    except ValueError as error:
        raise UserError(str(error)) from error
    with written_atomically(args.out) as file:
        figure.savefig(file, format=args.out.suffix[1:], dpi=160)
    print(f'Wrote {args.out}')
