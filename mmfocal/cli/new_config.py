"""Writes a config for your own data: images with boxes, masks or label maps, in many formats."""

from pathlib import Path

from mmfocal.api import new_config
from mmfocal.datasets.formats import READERS

from ._arguments import parser_of


def _name_of_format(text: str) -> str:
    """A format in the spelling of its list, whatever the case."""
    return {name.lower(): name for name in READERS}.get(text.lower(), text)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument('data', type=Path, help='folder with images and annotations')
    parser.add_argument(
        '--base',
        default='focal_maskrcnn_3x',
        help='config to begin with, path or name (default: focal_maskrcnn_3x); one of mmseg, such '
        'as focal_upernet_160k, for label maps',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('mine.py'),
        help='config to write (default: mine.py); what has to be converted goes to a folder '
        'beside it, mine_data',
    )
    parser.add_argument(
        '--format',
        choices=[*READERS],
        type=_name_of_format,
        help='of the annotations, if there are several',
    )
    parser.add_argument(
        '--train-json', type=Path, help="COCO's annotations of training, if names do not tell"
    )
    parser.add_argument('--val-json', type=Path, help='of validation, if names do not tell')
    parser.add_argument(
        '--val-share',
        type=float,
        help='share of the images to validate with, if the data is not divided (default: 0.2)',
    )
    parser.add_argument('--seed', type=int, default=0, help='of that choice (default: 0)')
    labels = parser.add_argument_group('label maps')
    labels.add_argument(
        '--classes',
        help='names of the classes in the order of labels: a text file with one in a line, or '
        'names with commas between them',
    )
    labels.add_argument('--ignored-label', type=int, help='that is not learned (default: 255)')
    labels.add_argument(
        '--colours', type=Path, help='text file of colours, a line "name,red,green,blue" for each'
    )
    parser.add_argument('--force', action='store_true', help='overwrite the config')
    written = new_config(**vars(parser.parse_args()))
    for line in written.lines:
        print(line)
    print(f'Wrote {written.path}. Next: mmfocal check_data {written.path}')
