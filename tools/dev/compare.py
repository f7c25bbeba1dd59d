"""Trains what a file lists, several times each, and says which differences are more than chance.

The file is a config with one more key, ``comparison``; tools/dev/comparisons has some. Each run is
one of `mmfocal train` with a seed of its own. Results are kept after every run: killed at any
time, the same command resumes from there. At the end it writes tables and curves with bands.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from mmengine.logging import MMLogger

from mmfocal.utils.errors import UserError, user_errors_without_trace
from tools.dev import ROOT

DOCS = ROOT / 'docs'
PAGE = DOCS / 'tables/comparisons.md'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('comparison', type=Path, help='such as tools/dev/comparisons/bccd.py')
    parser.add_argument(
        '--work-dir',
        type=Path,
        help='folder of runs, results.json, tables.md and curves.png '
        '(default: work_dirs/compare_NAME)',
    )
    parser.add_argument(
        '--docs',
        action='store_true',
        help='keep results and tables in docs/tables, curves in docs/images',
    )
    parser.add_argument('--jobs', type=int, help='runs at a time (default: one on each core)')
    parser.add_argument(
        '--rounds', type=int, default=15, help='steps of each variant to time (default: 15)'
    )
    parser.add_argument('--retime', action='store_true', help='time the steps again')
    parser.add_argument('--only-report', action='store_true', help='of the results that there are')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    with user_errors_without_trace():
        return compare(args)


def compare(args: argparse.Namespace) -> int:
    from tools.dev.comparing import (
        Outcome,
        Results,
        prepare_data,
        read_comparison,
        time_steps,
        train_all,
    )

    comparison, name = read_comparison(args.comparison), args.comparison.stem
    work_dir = (args.work_dir or Path(f'work_dirs/compare_{name}')).absolute()
    stored, curves = work_dir / 'results.json', work_dir / 'curves.png'
    if args.docs:
        stored = DOCS / f'tables/compare_{name}.json'
        curves = DOCS / f'images/compare_{name}.png'
        with_tables(PAGE.read_text(), name, '')  # before hours of training
    results = Results(stored, comparison)
    failed = []
    if not args.only_report:
        # Building what is timed would print a line for each parameter.
        MMLogger.get_current_instance().setLevel(logging.WARNING)
        prepare_data(comparison)
        # First, while nothing else runs.
        if args.retime or not results.steps:
            time_steps(comparison, results, args.rounds)
        failed = train_all(comparison, results, work_dir, args.jobs)
    outcome = Outcome(comparison, results)
    if outcome.runs:
        tables = outcome.tables()
        outcome.draw().savefig(curves, dpi=130)
        if args.docs:
            PAGE.write_text(with_tables(PAGE.read_text(), name, tables))
        else:
            (work_dir / 'tables.md').write_text(tables)
        print(f'\n{tables}\nCurves: {curves}')
    else:
        print(f'{stored}: no seed yet of which all variants are complete')
    return 1 if failed or not outcome.runs else 0


def with_tables(page: str, name: str, tables: str) -> str:
    """A page with other tables between the comments that say whose they are."""
    begin, end = f'<!-- tables of {name} -->\n', f'<!-- end of {name} -->\n'
    before, found, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise UserError(f'{PAGE} has no place for tables: expected {begin.strip()}, {end.strip()}')
    return f'{before}{begin}\n{tables}\n{end}{after}'


if __name__ == '__main__':
    sys.exit(main())
