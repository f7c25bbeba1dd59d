"""Looks for what is wrong with the data of a config, as tools/train.py does before it begins.

Reads all annotations, looks whether all files are there, and opens a sample of the pictures. Ends
with status 2 and a list if training on the data would break or teach what is wrong, else with a
histogram of the classes.
"""

import argparse

from _startup import add_config_options, check_installation, light_imports

check_installation()
with light_imports():
    from mmfocal.engine import check_contents, check_data, load_config
    from mmfocal.utils.errors import user_errors_without_trace


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path, or name of a config of this repository')
    parser.add_argument(
        '--deep', action='store_true', help='decode every picture and mask; minutes to hours'
    )
    parser.add_argument(
        '--splits',
        nargs='+',
        choices=['train', 'val', 'test'],
        default=['train', 'val'],
        help='data loaders of the config (default: train val)',
    )
    add_config_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with light_imports():
        cfg = load_config(args.config, args.cfg_options)
        check_data(cfg, args.splits)
        lines = check_contents(cfg, args.splits, args.deep, histograms=True)
    for line in lines or ['Data check: the config reads no files.']:
        print(line)


if __name__ == '__main__':
    with user_errors_without_trace():
        main()
