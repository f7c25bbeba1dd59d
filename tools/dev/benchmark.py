"""Times backbones and focal attention: against MMDetection's Swin-T, and backend against backend.

All candidates run in turn, so that the ratios hold on a machine whose speed drifts. Before
anything is timed, every backend is compared with the reference in float64.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.dev.timing.parts import Report

PARTS = ('models', 'memory', 'op', 'growth', 'limits')
SERVING = 'serving'  # on its own: it needs onnxruntime, and is of the CPU
TABLES = 'tables'  # on its own: it times no model
DTYPES = {'fp32': 'float32', 'bf16': 'bfloat16', 'fp16': 'float16'}
FULL = dict(
    sizes=[(224, 224), (448, 448), (896, 896), (800, 1344)],
    growth_sizes=[(224, 224), (448, 448), (896, 896), (1792, 1792)],
    runs=7,
    table_sizes=300,
)
QUICK = dict(sizes=[(64, 64)], growth_sizes=[(64, 64), (128, 128)], runs=2, table_sizes=5)
# PyTorch's profiler reports its own start and stop.
os.environ.setdefault('KINETO_LOG_LEVEL', '99')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--parts',
        nargs='+',
        choices=(*PARTS, SERVING, TABLES),
        default=list(PARTS),
        help='models: time of backbones; memory: what a training step adds; op: attention alone; '
        'growth: time against pixels; limits: a training step operator by operator; serving: '
        'PyTorch and ONNX Runtime on a CPU; tables: tables of keys for new sizes of images '
        '(default: all but serving and tables)',
    )
    parser.add_argument(
        '--sizes',
        nargs='+',
        type=size_in_pixels,
        metavar='SIDE|HxW',
        help='images, in pixels (default: 224 448 896 800x1344)',
    )
    parser.add_argument(
        '--growth-sizes',
        nargs='+',
        type=size_in_pixels,
        metavar='SIDE|HxW',
        help='of part growth (default: 224 448 896 1792)',
    )
    parser.add_argument(
        '--table-sizes', type=int, help='different images of part tables (default: 300)'
    )
    parser.add_argument('--batch', type=int, default=1, help='images at once (default: 1)')
    parser.add_argument('--runs', type=int, help='counted runs of each candidate (default: 7)')
    parser.add_argument(
        '--device', help='cpu, cuda, cuda:1, ... (default: cuda where there is one)'
    )
    parser.add_argument(
        '--dtype', choices=DTYPES, default='fp32', help='16-bit ones by autocast (default: fp32)'
    )
    parser.add_argument(
        '--backends',
        nargs='+',
        default=['auto'],
        help='attention backends of the models, such as auto reference (default: auto)',
    )
    parser.add_argument(
        '--models',
        nargs='+',
        metavar='NAME',
        help='of the models, by the names that are printed, in place of all; Swin-T is always '
        'there (write each name in quotes)',
    )
    parser.add_argument('--compile', action='store_true', help='add models with compiled blocks')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all runs')
    parser.add_argument('--markdown', type=Path, metavar='FILE', help='write the tables')
    parser.add_argument(
        '--plot', type=Path, metavar='FILE', help='draw the ratios of models (.png or .svg)'
    )
    parser.add_argument(
        '--quick', action='store_true', help='a first look: small images and two runs by default'
    )
    # For the processes that it starts itself: a CPU shows the peak of a process only once.
    parser.add_argument('--memory-of', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.growth_sizes = sorted(args.growth_sizes)
    if args.runs < 1 or args.batch < 1:
        parser.error('--runs and --batch must be at least 1')
    return args


def size_in_pixels(text: str) -> tuple[int, int]:
    """'224' or '800x1344' as height and width."""
    try:
        sides = tuple(int(side) for side in text.split('x'))
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise argparse.ArgumentTypeError(f'expected a side or HxW in pixels, got {text!r}')
    return (sides[0], sides[-1])


def main() -> int:
    args = parse_args()
    import torch

    from mmfocal.utils.compat import CORE, check_versions
    from mmfocal.utils.errors import user_errors_without_trace
    from tools.dev.timing.cases import (
        YARDSTICK,
        ParityError,
        backbones,
        check_models,
        check_parity,
    )
    from tools.dev.timing.measure import GIVE_MEMORY_BACK, machine
    from tools.dev.timing.parts import PARTS, Report, Settings, memory_of_step

    try:
        check_versions((*CORE, 'mmdet'))
    except ImportError as error:
        print(f'Swin-T of MMDetection is the yardstick. {error}', file=sys.stderr)
        return 2
    device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    dtype = getattr(torch, DTYPES[args.dtype])
    try:
        makers = backbones(args.backends, args.compile)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if unknown := sorted({*(args.models or ())} - {*makers}):
        print(f'--models: expected names of {sorted(makers)}, got {unknown}', file=sys.stderr)
        return 2
    if args.models:
        makers = {name: make for name, make in makers.items() if name in (YARDSTICK, *args.models)}
    if args.memory_of:
        name, size = args.memory_of
        print(memory_of_step(makers[name], size_in_pixels(size), args.batch, device, dtype))
        return 0

    def memory_of(name: str, size: tuple[int, int]) -> int:
        if device.type == 'cuda':
            return memory_of_step(makers[name], size, args.batch, device, dtype)
        asked = ['--memory-of', name, 'x'.join(map(str, size))]
        options = ['--batch', str(args.batch), '--device', str(device), '--dtype', args.dtype]
        options += ['--backends', *args.backends, *(['--compile'] if args.compile else [])]
        command = [sys.executable, '-m', __spec__.name, *asked, *options]
        environment = {**os.environ, **GIVE_MEMORY_BACK}
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        return int(done.stdout.splitlines()[-1])

    settings = Settings(
        makers,
        args.sizes,
        args.growth_sizes,
        args.batch,
        args.runs,
        device,
        dtype,
        memory_of,
    )
    parts = dict(PARTS)
    if SERVING in args.parts:
        from mmfocal.export.files import require_packages
        from tools.dev.timing.serving import time_serving

        with user_errors_without_trace():
            require_packages()
        parts[SERVING] = time_serving
    if TABLES in args.parts:
        from tools.dev.timing.tables import time_tables

        parts[TABLES] = partial(time_tables, num_sizes=args.table_sizes)
    try:
        check_parity(device, dtype)
        check_models(makers, device, dtype)
    except ParityError as error:
        print(error, file=sys.stderr)
        return 1
    report = Report()
    report.data['machine'] = machine(device)
    report.say(', '.join(f'{name} {value}' for name, value in report.data['machine'].items()))
    report.say('', f'Batch {args.batch}, {args.dtype}, {args.runs} runs in turn: median (spread).')
    try:
        for part in args.parts:
            parts[part](report, settings)
    except ParityError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        report.say('', 'Interrupted: what follows was not measured.')
    finally:
        # What was measured before something failed may have taken an hour.
        write(report, args)
    return 0


def write(report: Report, args: argparse.Namespace) -> None:
    """Writes the files that were asked for; of what was interrupted, the runs that it had."""
    for part, rows in report.data.items():
        if isinstance(rows, list):
            report.data[part] = [row for row in rows if row.get('seconds') != []]
    for path in (args.json, args.markdown, args.plot):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    if args.json:
        args.json.write_text(json.dumps(report.data, indent=1) + '\n')
    if args.markdown:
        args.markdown.write_text('\n'.join(report.lines) + '\n')
    if args.plot and report.data.get('models'):
        import matplotlib

        matplotlib.use('Agg')
        from tools.dev.timing.cases import YARDSTICK
        from tools.dev.timing.performance import draw_ratios

        draw_ratios(report.data['models'], YARDSTICK).savefig(args.plot, dpi=160)


if __name__ == '__main__':
    sys.exit(main())
