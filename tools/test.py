"""Evaluates a checkpoint with its config, of mmdet, mmseg or mmpretrain."""

import argparse
import os
from dataclasses import fields

from _startup import add_common_options, check_installation

check_installation()
from mmfocal.engine import load_config
from mmfocal.engine.runner import TestOptions, test
from mmfocal.utils.errors import user_errors_without_trace


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path, or name of a config of this repository')
    parser.add_argument(
        'checkpoint', help='path, URL, or work folder of a run: its best or newest checkpoint'
    )
    parser.add_argument('--work-dir', help='folder for logs and results')
    parser.add_argument(
        '--out',
        metavar='FILE.json',
        help='write the metrics here and the predictions beside it: of COCO metrics in COCO '
        'format to FILE.bbox.json and FILE.segm.json, of IoU metrics as label maps to '
        'FILE.labels/',
    )
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='write pictures of predictions into this folder')
    parser.add_argument(
        '--tta',
        action='store_true',
        help="test-time augmentation, by the config's tta_model and tta_pipeline",
    )
    add_common_options(parser)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def main() -> None:
    args = vars(parse_args())
    cfg = load_config(args['config'], args['cfg_options'])
    test(cfg, TestOptions(**{each.name: args[each.name] for each in fields(TestOptions)}))


if __name__ == '__main__':
    with user_errors_without_trace():
        main()
