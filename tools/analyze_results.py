"""Writes a report of what a model finds and misses on the test set of its config: report.html.

Detectors and segmenters; the test set has to have annotations. docs/analysis.md says what each
number means.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from _startup import add_common_options, check_installation, light_imports

check_installation()
with light_imports():
    from mmfocal.engine import check_data, load_config
    from mmfocal.utils.errors import is_first_process, user_errors_without_trace


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path, or name of a config of this repository')
    parser.add_argument(
        'checkpoint', help='path, URL, or work folder of a run: its best or newest checkpoint'
    )
    parser.add_argument(
        '--out', help='folder for the report (default: analysis in the work folder)'
    )
    parser.add_argument('--work-dir', help='folder for logs')
    parser.add_argument(
        '--predictions',
        metavar='FILE.json',
        help='that tools/test.py --out has written; the model is not run then',
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
    add_common_options(parser)
    args = parser.parse_args()
    if args.images < 1 or not 0 <= args.score_thr < 1 or not 0.1 < args.iou_thr <= 1:
        parser.error('expected --images of 1 at least, and thresholds between 0 (0.1) and 1')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def main() -> None:
    args = parse_args()
    with light_imports():
        cfg = load_config(args.config, args.cfg_options)
        check_data(cfg, ('test',))

    from mmfocal.engine import settings
    from mmfocal.evaluation.report import text_table, write_report
    from mmfocal.evaluation.running import analyze, predict

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
        ('checkpoint', settings.checkpoint_of(args.checkpoint)),
        ('made', time.strftime('%Y-%m-%d %H:%M')),
    ]
    curves = Path(args.checkpoint) / 'curves.png'
    report.curves = curves if curves.is_file() else None
    page = write_report(report, out, f'{Path(args.config).stem}: what it finds')
    for table in report.tables:
        print('\n' + text_table(table))
    print('\n' + ', '.join(f'{name} {value}' for name, value in report.summary))
    print(f'Wrote {page} and report.json beside it.')


if __name__ == '__main__':
    with user_errors_without_trace():
        main()
