"""Writes docs/model_zoo.md: published results, and parameters and FLOPs counted from the configs.

configs/metafile.yml, which mim reads, is written too.
With configs it prints what these amount to instead.
"""

from __future__ import annotations

import argparse
import difflib
import sys

from mmfocal.utils.compat import CORE, check_versions
from mmfocal.utils.errors import user_errors_without_trace
from tools.dev import ROOT
from tools.dev.costs.model_zoo import load_published, measure, metafile, page

PAGE = ROOT / 'docs' / 'model_zoo.md'
METAFILE = ROOT / 'configs' / 'metafile.yml'


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
        '--check', action='store_true', help='compare both with the configs and write nothing'
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    check_versions((*CORE, 'mmdet'))
    if args.configs:
        with user_errors_without_trace():
            for config in args.configs:
                print_cost(config, measure(config, tuple(args.image)))
        return 0
    published = load_published()
    texts = {PAGE: page(published), METAFILE: metafile(published)}
    stale = False
    for path, text in texts.items():
        name = path.relative_to(ROOT)
        if not args.check:
            path.write_text(text)
            print(f'Wrote {name}.')
            continue
        old = path.read_text() if path.is_file() else ''
        if old == text:
            print(f'{name} agrees with the configs.')
            continue
        stale = True
        sys.stdout.writelines(
            difflib.unified_diff(old.splitlines(True), text.splitlines(True), str(name), 'configs')
        )
        print(f'\n{name} does not agree with the configs. Run: python -m tools.dev.model_zoo')
    return int(stale)


def print_cost(config: str, cost) -> None:
    print(f'{config}: {cost.parameters / 1e6:.2f} M parameters, {cost.gflops:.1f} GFLOPs')
    for part, flops in cost.flops.items():
        print(f'  {part:14} {flops / 1e9:8.2f}')


if __name__ == '__main__':
    sys.exit(main())
