"""Runs configs of mmdet and mmseg in mmengine's ``Runner`` and in ours, and prints a table."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

# Before PyTorch is imported.
os.environ.update(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')

import torch

from ..timing.measure import machine
from .cases import CASES
from .comparison import HEADER, NOTES, compare, prepare


def main() -> int:
    """Prints the table; returns 1 if a run differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('words', nargs='*', help='only configs with one of these in their name')
    parser.add_argument('--part', default='1/1', help='only these, such as 2/3 (default: 1/1)')
    parser.add_argument('--rows', type=Path, help='a folder that joins the rows of several parts')
    parser.add_argument('--jobs', type=int, default=2, help='configs at a time (default: 2)')
    parser.add_argument('--folder', type=Path, help='an empty one, where work folders are kept')
    args = parser.parse_args()
    part, parts = map(int, args.part.split('/'))
    chosen = [
        number
        for number, case in enumerate(CASES)
        if not args.words or any(word in case.config for word in args.words)
    ][part - 1 :: parts]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / 'runs'
        rows = args.rows or Path(temporary) / 'rows'
        rows.mkdir(parents=True, exist_ok=True)
        prepare(folder)
        fork = multiprocessing.get_context('fork')
        with ProcessPoolExecutor(args.jobs, mp_context=fork) as executor:
            n = len(chosen)
            list(executor.map(_write_row, chosen, [folder] * n, [rows] * n))
        return _print_table([json.loads(path.read_text()) for path in sorted(rows.iterdir())])


def _write_row(number: int, folder: Path, rows: Path) -> None:
    began = time.monotonic()
    comparison = compare(CASES[number], folder / f'{number:02}')
    differences = [
        f'{column}: {line}' for column, lines in comparison.differences().items() for line in lines
    ]
    row = dict(cells=comparison.cells(), differences=differences)
    (rows / f'{number:02}.json').write_text(json.dumps(row))
    took = f'{time.monotonic() - began:.0f} s'
    print(f'{number:02} {CASES[number].config}, {took}: {differences}', file=sys.stderr)


def _print_table(rows: Sequence[dict]) -> int:
    print('# Configs of mmdet and mmseg in stock mmengine and here\n')
    print('By `tools/dev/conformance`. Made with')
    print(', '.join(f'{name} {value}' for name, value in machine(torch.device('cpu')).items()))
    print(f'\n{NOTES}\n\n| {" | ".join(HEADER)} |\n|{"---|" * len(HEADER)}')
    for row in rows:
        print(f'| {" | ".join(row["cells"])} |')
    differing = [row for row in rows if row['differences']]
    print(f'\n{len(rows)} configs, of which {len(differing)} differ.')
    for row in differing:
        print(f'- {row["cells"][0]}: {"; ".join(row["differences"])}')
    return bool(differing)


if __name__ == '__main__':
    sys.exit(main())
