"""Evaluates a checkpoint with its config, of mmdet, mmseg or mmpretrain."""

import argparse
import os

from _startup import add_common_options, check_installation, light_imports

check_installation()
with light_imports():
    from mmfocal.engine import check_data, load_config
    from mmfocal.errors import user_errors_without_trace


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
    args = parse_args()
    with light_imports():
        cfg = load_config(args.config, args.cfg_options)
        check_data(cfg, ('test',))

    from mmfocal.engine import install_safe_loading, install_sample_errors, settings
    from mmfocal.engine.live_progress import live_progress
    from mmfocal.engine.results import set_predictions_file, set_visualization, write_metrics

    settings.set_work_dir(cfg, args.work_dir)
    settings.set_checkpoint(cfg, args.checkpoint)
    if args.out:
        set_predictions_file(cfg, args.out)
    if args.show or args.show_dir:
        set_visualization(cfg, args.show, args.show_dir)
    if args.tta:
        settings.set_test_time_augmentation(cfg)
    settings.set_launcher(cfg, args.launcher)
    settings.set_seed(cfg)
    install_safe_loading()
    install_sample_errors()
    runner = settings.build_runner(cfg)
    with live_progress(runner):
        metrics = runner.test()
    if args.out:
        write_metrics(args.out, metrics, args.config, args.checkpoint)
    settings.leave_group()


if __name__ == '__main__':
    with user_errors_without_trace():
        main()
