"""Evaluates a checkpoint with its config, of mmdet, mmseg or mmpretrain."""

from mmfocal.engine import TestOptions, load_config, test

from ._arguments import (
    add_checkpoint,
    add_config,
    add_launcher,
    options_of,
    parse_distributed,
    parser_of,
)


def main() -> None:
    parser = parser_of(__doc__)
    add_config(parser)
    add_checkpoint(parser)
    parser.add_argument('--work-dir', help='folder for logs and results')
    parser.add_argument(
        '--out',
        metavar='FILE.json',
        help='write the metrics here and the predictions beside it: of COCO metrics in COCO '
        'format to FILE.bbox.json and FILE.segm.json, of IoU metrics as label maps to '
        'FILE.labels/',
    )
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='write images with predictions into this folder')
    parser.add_argument(
        '--tta',
        action='store_true',
        help="test-time augmentation, by the config's tta_model and tta_pipeline",
    )
    parser.add_argument(
        '--no-data-check',
        dest='data_check',
        action='store_false',
        help='test without the look into annotations and images that mmfocal check_data takes',
    )
    parser.add_argument(
        '--quiet', action='store_true', help='show metrics and warnings instead of the log'
    )
    add_launcher(parser)
    args = parse_distributed(parser)
    test(load_config(args.config, args.cfg_options), options_of(TestOptions, args))
