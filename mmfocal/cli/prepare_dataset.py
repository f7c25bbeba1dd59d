"""Lays out a public data set from what was downloaded, or the embedded one, and checks it.

Archives are unpacked, folders that are unpacked or cloned already are linked, and what the configs
cannot read as it is published (BCCD, CamVid) is converted once. What is there stays, so this can
be run again: after an interruption, or without SOURCE, to check what there is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmfocal.datasets.preparation import check, prepare
from mmfocal.datasets.published import DATASETS

from ._arguments import parser_of


def parse_args() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument('dataset', choices=list(DATASETS))
    parser.add_argument(
        'source', nargs='?', type=Path, help='folder with the archives or what they hold'
    )
    parser.add_argument('--out', type=Path, help='folder to make (default: where configs look)')
    parser.add_argument(
        '--samples', type=int, default=50, help='images of each split to open (default: 50)'
    )
    parser.add_argument('--all', action='store_true', help='open every image')
    parser.add_argument(
        '--subset', action='store_true', help='fewer images than published are fine'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    root = prepare(args.dataset, args.source, args.out)
    samples = None if args.all else args.samples
    for line in check(args.dataset, root, samples, args.subset):
        print(line)
    dataset = DATASETS[args.dataset]
    print(f'{dataset.title} is ready in {root}.')
    if root.absolute() != Path(dataset.root).absolute():
        print(f'The configs look for it in {dataset.root}, so link it there:')
        print(f'  mkdir -p {Path(dataset.root).parent}')
        print(f'  ln -s {root.absolute()} {dataset.root}')
    print(f'To train on it: python tools/train.py {dataset.config}')
