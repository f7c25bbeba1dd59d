"""Makes docs/tables/scaling.md anew: memory, communication and time on GPUs, predicted.

All of it is counted on a CPU, in some minutes. With a config it prints what that needs instead.
"""

from __future__ import annotations

import argparse
import sys

from mmfocal.utils.errors import user_errors_without_trace
from tools.dev import ROOT
from tools.dev.costs import scaling

PAGE = ROOT / 'docs/tables/scaling.md'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', nargs='?', help='of mmdet or mmseg, instead of the page')
    parser.add_argument(
        '--image',
        type=int,
        nargs=2,
        default=(800, 1344),
        metavar=('HEIGHT', 'WIDTH'),
        help='that a batch is padded to, in pixels (default: 800 1344)',
    )
    parser.add_argument('--batch', type=int, default=2, help='images of a GPU (default: 2)')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    with user_errors_without_trace():
        if args.config:
            print(scaling.summary(args.config, tuple(args.image), args.batch))
            return 0
        PAGE.write_text(scaling.page(PAGE.read_text()))
        print(f'Wrote the tables of {PAGE.relative_to(ROOT)}.')
    return 0


if __name__ == '__main__':
    sys.exit(main())
