"""Looks for what is wrong with the data of a config, as mmfocal train does before it begins.

Reads all annotations, looks whether all files are there, and opens a sample of the images. Ends
with status 2 and a list if training on the data would break or teach what is wrong, else with a
histogram of the classes.
"""

from mmfocal.datasets.checks import check_contents, check_data
from mmfocal.engine import load_config

from ._arguments import add_config, parser_of


def main() -> None:
    parser = parser_of(__doc__)
    add_config(parser)
    parser.add_argument(
        '--deep', action='store_true', help='decode every image and mask; minutes to hours'
    )
    parser.add_argument(
        '--splits',
        nargs='+',
        choices=['train', 'val', 'test'],
        default=['train', 'val'],
        help='data loaders of the config (default: train val)',
    )
    args = parser.parse_args()
    cfg = load_config(args.config, args.cfg_options)
    check_data(cfg, args.splits)
    lines = check_contents(cfg, args.splits, args.deep, histograms=True)
    for line in lines or ['Data check: the config reads no files.']:
        print(line)
