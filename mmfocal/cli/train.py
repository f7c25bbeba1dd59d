"""Trains the model of a config of mmdet, mmseg or mmpretrain: its default_scope decides."""

import sys

from mmfocal.engine import TrainOptions, load_config, train
from mmfocal.utils.errors import is_first_process

from ._arguments import (
    add_config,
    add_launcher,
    natural,
    options_of,
    parse_distributed,
    parser_of,
)


def main() -> None:
    parser = parser_of(__doc__)
    add_config(parser)
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        '--epochs',
        type=natural,
        metavar='N',
        help='passes over the data, instead of those of the config; the schedule follows',
    )
    length.add_argument(
        '--iterations',
        type=natural,
        metavar='N',
        help='the same, for configs that train by iterations',
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument('--amp', action='store_true', help='mixed precision; needs a GPU')
    precision.add_argument(
        '--precision',
        choices=['fp32', 'fp16', 'bf16'],
        help='of the computation, instead of what the config says; 16 bits need a GPU',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from a checkpoint; without a path from the newest of the work folder',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the number of images a step',
    )
    parser.add_argument(
        '--no-data-check',
        dest='data_check',
        action='store_false',
        help='train without the look into annotations and images that mmfocal check_data takes',
    )
    parser.add_argument(
        '--skip-bad-samples',
        action='store_true',
        help='train without samples that cannot be loaded, each with a line in the log',
    )
    parser.add_argument(
        '--ema', action='store_true', help='evaluate and save averaged weights as well'
    )
    parser.add_argument('--save-best', action='store_true', help='keep the best checkpoint too')
    parser.add_argument(
        '--early-stop',
        type=int,
        metavar='N',
        help='end after N validations without a better result',
    )
    parser.add_argument(
        '--val-loss',
        action='store_true',
        help='log the losses on the validation set too (val/loss, val/...)',
    )
    parser.add_argument(
        '--log-to',
        nargs='*',
        choices=['tensorboard', 'wandb', 'mlflow'],
        help='log there too (default: TensorBoard where it is installed)',
    )
    parser.add_argument('--seed', type=int, help='default: of the config, or drawn and recorded')
    parser.add_argument(
        '--deterministic',
        action='store_true',
        help='use only deterministic operators; slower on a GPU',
    )
    parser.add_argument(
        '--quiet', action='store_true', help='show metrics and warnings instead of the log'
    )
    add_launcher(parser)
    args = parse_distributed(parser)
    try:
        train(load_config(args.config, args.cfg_options), options_of(TrainOptions, args))
    except KeyboardInterrupt:
        if is_first_process():
            print(
                '\nThe same command with --resume resumes from the newest checkpoint; without one '
                'it begins anew.',
                file=sys.stderr,
            )
        raise
