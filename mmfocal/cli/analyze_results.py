"""Writes a report of what a model finds and misses on the test set of its config: report.html.

Detectors and segmenters; the test set has to have annotations. docs/evaluation.md says what each
number means.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from mmfocal.datasets.checks import check_data
from mmfocal.engine import load_config, settings
from mmfocal.engine.checkpoints import checkpoint_of
from mmfocal.evaluation.report import text_table, write_report
from mmfocal.evaluation.running import analyze, predict
from mmfocal.utils.errors import is_first_process

from ._arguments import add_checkpoint, add_config, add_launcher, parse_distributed, parser_of


def parse_args() -> argparse.Namespace:
    parser = parser_of(__doc__)
    add_config(parser)
    add_checkpoint(parser)
    parser.add_argument(
        '--out', help='folder for the report (default: analysis in the work folder)'
    )
    parser.add_argument('--work-dir', help='folder for logs')
    parser.add_argument(
        '--predictions',
        metavar='FILE.json',
        help='that mmfocal test --out has written; the model is not run then',
    )
    parser.add_argument(
        '--images', type=int, default=12, help='worst images to show (default: 12)'
    )
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='least score of a detection (default: 0.3)'
    )
    parser.add_argument(
        '--iou-thr', type=float, default=0.5, help='least IoU of boxes that fit (default: 0.5)'
    )
    add_launcher(parser)
    args = parse_distributed(parser)
    if args.images < 1 or not 0 <= args.score_thr < 1 or not 0.1 < args.iou_thr <= 1:
        parser.error('expected --images of 1 at least, and thresholds between 0 (0.1) and 1')
    return args


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    check_data(cfg, ('test',))
    settings.set_work_dir(cfg, args.work_dir)
    out = Path(args.out or os.path.join(cfg.work_dir, 'analysis'))
    predictions = Path(args.predictions or out / 'predictions.json')
    if args.predictions is None:
        predict(cfg, args.checkpoint, predictions, args.launcher)
    if not is_first_process():
        return
    report = analyze(
        cfg,
        predictions,
        score_threshold=args.score_thr,
        iou_threshold=args.iou_thr,
        images=args.images,
    )
    report.facts += [
        ('config', args.config),
        ('checkpoint', checkpoint_of(args.checkpoint)),
        ('made', time.strftime('%Y-%m-%d %H:%M')),
    ]
    curves = Path(args.checkpoint) / 'curves.png'
    report.curves = curves if curves.is_file() else None
    page = write_report(report, out, f'{Path(args.config).stem}: what it finds')
    for table in report.tables:
        print('\n' + text_table(table))
    print('\n' + ', '.join(f'{name} {value}' for name, value in report.summary))
    print(f'Wrote {page} and report.json beside it.')
