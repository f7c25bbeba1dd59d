"""Writes docs/model_zoo.md: published results, and parameters and FLOPs counted from the configs.

With configs it prints what these amount to instead.
"""

from __future__ import annotations

import argparse
import difflib
import sys

import _startup
from _startup import REPOSITORY

PAGE = REPOSITORY / 'docs' / 'model_zoo.md'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='*', help='detectors to count, instead of the page')
    parser.add_argument(
        '--image',
        type=int,
        nargs=2,
        default=(800, 1280),
        metavar=('HEIGHT', 'WIDTH'),
        help='in pixels, for configs that are named (default: 800 1280)',
    )
    parser.add_argument(
        '--check', action='store_true', help='compare the page with the configs and write nothing'
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    _startup.check_installation()
    from mmfocal.compat import CORE, check_versions
    from mmfocal.errors import user_errors_without_trace
    from mmfocal.model_zoo import load_published, measure, page

    check_versions((*CORE, 'mmdet'))
    if args.configs:
        with user_errors_without_trace():
            for config in args.configs:
                print_cost(config, measure(config, tuple(args.image)))
        return 0
    text = page(load_published())
    if not args.check:
        PAGE.write_text(text)
        print(f'Wrote {PAGE.relative_to(REPOSITORY)}.')
        return 0
    old = PAGE.read_text() if PAGE.is_file() else ''
    if old == text:
        print(f'{PAGE.relative_to(REPOSITORY)} agrees with the configs.')
        return 0
    sys.stdout.writelines(
        difflib.unified_diff(old.splitlines(True), text.splitlines(True), 'page', 'configs')
    )
    print('\nThe page does not agree with the configs. Run: python tools/model_zoo.py')
    return 1


def print_cost(config: str, cost) -> None:
    print(f'{config}: {cost.parameters / 1e6:.2f} M parameters, {cost.gflops:.1f} GFLOPs')
    for part, flops in cost.flops.items():
        print(f'  {part:14} {flops / 1e9:8.2f}')


if __name__ == '__main__':
    sys.exit(main())
