"""Writes a config for your own data: a folder with images and annotations in COCO's form."""

import argparse
from pathlib import Path

from mmfocal.engine.own_data import config_text, find_splits
from mmfocal.utils.errors import UserError
from mmfocal.utils.files import written_atomically

from ._arguments import parser_of


def parse_args() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument('data', type=Path, help='folder with images and annotations')
    parser.add_argument(
        '--base',
        default='focal_maskrcnn_3x',
        help='config to begin with, path or name (default: focal_maskrcnn_3x)',
    )
    parser.add_argument(
        '--out', type=Path, default=Path('mine.py'), help='config to write (default: mine.py)'
    )
    parser.add_argument(
        '--train-json', type=Path, help='annotations of training, if names do not tell'
    )
    parser.add_argument('--val-json', type=Path, help='of validation, if names do not tell')
    parser.add_argument('--force', action='store_true', help='overwrite the config')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.out.exists() and not args.force:
        raise UserError(f'{args.out} is there already; --force overwrites it.')
    given = {split: getattr(args, f'{split}_json') for split in ('train', 'val')}
    splits = find_splits(args.data, {split: path for split, path in given.items() if path})
    text = config_text(args.data, splits, args.base)
    with written_atomically(args.out) as file:
        file.write(text.encode())
    for split, data in splits.items():
        print(f'{split}: {data.num_images:,} images in {data.images}, {data.annotations}')
    print(f'{len(splits["train"].classes)} classes: {", ".join(splits["train"].classes)}')
    print(f'Wrote {args.out}. Next: mmfocal check_data {args.out}')
