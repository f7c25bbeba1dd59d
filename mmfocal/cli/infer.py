"""Predicts for images, folders, videos and cameras, with a model of mmdet, mmseg or mmpretrain.

Writes into a folder: images with predictions (pictures/) and videos (videos/); of detectors and
classifiers predictions.json in COCO's form; of segmenters label maps (label_maps/, one byte a
pixel, the class index) and classes.json. Ends with status 1 if something could not be read, which
is listed, and with 2 for wrong arguments.
"""

import argparse
import sys
from pathlib import Path

from mmfocal.engine import load_config
from mmfocal.inference import Inferencer, Layout, find_inputs, run

from ._arguments import add_checkpoint, add_config, natural, parser_of, share


def parse_args() -> argparse.Namespace:
    parser = parser_of(__doc__)
    add_config(parser)
    add_checkpoint(parser)
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='INPUT',
        help='image, video, folder (searched at all depths), pattern in quotes '
        "('photos/**/*.jpg'), or number of a camera (0), which Ctrl-C stops",
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('inference'),
        metavar='DIR',
        help='folder of the results (default: inference)',
    )
    parser.add_argument(
        '--force', action='store_true', help='overwrite files of earlier results in DIR'
    )
    parser.add_argument(
        '--score-thr',
        type=share,
        default=0.3,
        metavar='SCORE',
        help='least score of an object, in images and in predictions.json alike (default: 0.3); '
        '0 writes all that the model gives, as evaluation needs it',
    )
    parser.add_argument('--batch-size', type=natural, default=1, help='(default: 1)')
    parser.add_argument('--device', help="such as cpu or cuda:1 (default: a GPU if there's one)")
    parser.add_argument(
        '--every',
        type=natural,
        default=1,
        metavar='N',
        help='take every Nth frame of videos and cameras (default: 1)',
    )
    parser.add_argument('--no-pictures', action='store_true', help='draw no images and videos')
    parser.add_argument('--no-labels', action='store_true', help='write no names into images')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    inputs = find_inputs(args.inputs, exclude=args.out)
    layout = Layout(args.out)
    layout.check(args.force)
    model = Inferencer(cfg, args.checkpoint, device=args.device, score_thr=args.score_thr)
    if any(given.kind == 'camera' for given in inputs):
        print('Ctrl-C stops the camera.', file=sys.stderr)
    outcome = run(
        model,
        inputs,
        layout,
        batch_size=args.batch_size,
        every=args.every,
        draw=not args.no_pictures,
        labels=not args.no_labels,
    )
    print(
        f'{outcome.predicted} images and frames, {outcome.things} {model.task.noun}, in '
        f'{outcome.seconds:.1f} s on {model.device}'
    )
    for title, path in outcome.written.items():
        print(f'  {title:11} {path}')
    if outcome.skipped:
        print(f'Skipped: {len(outcome.skipped)}', file=sys.stderr)
        for path, reason in outcome.skipped:
            print(f'  {path}: {reason}', file=sys.stderr)
    return 1 if outcome.skipped else 0
