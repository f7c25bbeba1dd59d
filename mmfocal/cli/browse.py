"""Draws images of a config as training gets them, with their annotations: browse.html.

Images come after augmentation, in the order and with the random numbers of a run with the seed,
with boxes, masks, label maps or classes, on one sheet with a legend and counts. Grey is what is
ignored. Of pipelines that load annotations after they resize, as for evaluation, the image is
shown in its own size. The data is checked before, as mmfocal check_data does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmfocal.datasets.checks import check_contents, check_data, install_sample_errors
from mmfocal.engine import load_config
from mmfocal.engine.sections import check_sections, check_seed
from mmfocal.utils.errors import UserError
from mmfocal.utils.files import check_target
from mmfocal.visualization.browse import MAX_IMAGES, SHEETS, make_sheet, write_sheet

from ._arguments import add_config, natural, parser_of


def parse_args() -> argparse.Namespace:
    parser = parser_of(__doc__)
    add_config(parser)
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('browse.html'),
        metavar='FILE',
        help='sheet to write, .html or .png (default: browse.html)',
    )
    parser.add_argument(
        '--split',
        choices=['train', 'val', 'test'],
        default='train',
        help='data loader of the config (default: train)',
    )
    parser.add_argument(
        '--num', type=natural, default=16, metavar='N', help='images to show (default: 16)'
    )
    parser.add_argument(
        '--start', type=natural, default=1, metavar='N', help='the first of them (default: 1)'
    )
    parser.add_argument('--seed', type=int, help='default: of the config, or 0')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.out.suffix not in SHEETS:
        raise UserError(f'The sheet must end in {" or ".join(SHEETS)}, got {args.out}.')
    if args.num > MAX_IMAGES:
        raise UserError(f'--num: expected up to {MAX_IMAGES} images, got {args.num}.')
    check_seed('--seed', args.seed)
    check_target(args.out)
    cfg = load_config(args.config, args.cfg_options)
    check_sections(cfg)
    check_data(cfg, (args.split,))
    for line in check_contents(cfg, (args.split,)):
        print(line)
    install_sample_errors()
    seed = args.seed
    if seed is None:
        seed = (cfg.get('randomness') or {}).get('seed') or 0
    sheet = make_sheet(cfg, args.split, seed, args.start - 1, args.num)
    write_sheet(sheet, args.out)
    print(f'Wrote {args.out}: {len(sheet.tiles)} images, seed {seed}')
