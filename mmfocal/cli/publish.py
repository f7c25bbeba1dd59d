"""Writes a trained model into one slim file for others: weights, config, classes and metrics.

Takes the work folder of a run, or a checkpoint. NAME-<hash>.pth is for all tools that take a
checkpoint, the .py beside it is the config, and NAME-<hash>.safetensors holds all of this without
a pickle, where that package is installed. Optimizer, log, and paths of this machine are left out.
"""

from __future__ import annotations

import argparse
import os

from mmfocal.inference.publishing import publish

from ._arguments import parser_of


def parse_args() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument('source', metavar='RUN', help='work folder of a run, or a checkpoint')
    parser.add_argument(
        '--config', help='of the checkpoint (default: the one in it, or else beside it)'
    )
    parser.add_argument(
        '--out',
        metavar='NAME',
        help='path without suffix, or a folder (default: name of the config, in this folder)',
    )
    parser.add_argument(
        '--checkpoint',
        dest='which',
        default='best',
        metavar='best|last|PATH',
        help='which one of RUN (default: the best, and if there is none the newest)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    published = publish(args.source, config=args.config, out=args.out, checkpoint=args.which)
    print(f'{published.checkpoint}\n  weights  {published.reason}')
    told = ', '.join(f'{name} {value:.4g}' for name, value in published.metrics.items())
    print(f'  metrics  {told or "none are recorded for these weights"}')
    print(f'  classes  {len(published.classes)}: {", ".join(published.classes)[:200]}')
    for note in published.notes:
        print(note)
    for path in published.files:
        print(f'Wrote {path} ({os.path.getsize(path) / 2**20:.1f} MB)')
