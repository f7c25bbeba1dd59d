"""Writes a config for your own data: images with boxes, masks or label maps, in many formats."""

import argparse
from pathlib import Path

from mmfocal.datasets.checks import Report
from mmfocal.datasets.checks.heads import IGNORED_LABEL
from mmfocal.datasets.checks.report import some
from mmfocal.datasets.formats import (
    READERS,
    DetectionData,
    Folder,
    LabelMaps,
    Source,
    prepare_detection,
    prepare_segmentation,
    read_names,
)
from mmfocal.engine.own_data import (
    check_base,
    config_text,
    learns_labels_of_pixels,
    learns_masks,
)
from mmfocal.utils.errors import UserError
from mmfocal.utils.files import check_target, written_atomically
from mmfocal.utils.text import printable

from ._arguments import parser_of


def _name_of_format(text: str) -> str:
    """A format in the spelling of its list, whatever the case."""
    return {name.lower(): name for name in READERS}.get(text.lower(), text)


def parse_args() -> argparse.Namespace:
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
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.out.exists() and not args.force:
        raise UserError(f'{args.out} is there already; --force overwrites it.')
    check_target(args.out)
    report = Report()
    data = _prepare(args, report)
    text = config_text(args.data, data, args.base)
    with written_atomically(args.out) as file:
        file.write(text.encode())
    print(printable(f'Recognised {data.found}'))
    for split, part in data.splits.items():
        print(f'{split}: {part.num_images:,} images')
    print(printable(f'{len(data.classes)} classes: {some(data.classes)}'))
    for line in report.lines('note'):
        print(line)
    if data.is_converted:
        print(f'Wrote what had to be converted to {_converted(args.out)}')
    print(f'Wrote {args.out}. Next: mmfocal check_data {args.out}')


def _prepare(args: argparse.Namespace, report: Report) -> DetectionData | LabelMaps:
    check_base(args.base)
    is_segmentation = learns_labels_of_pixels(args.base)
    _refuse_unused(args, is_segmentation)
    ignored = IGNORED_LABEL if args.ignored_label is None else args.ignored_label
    if not 0 <= ignored < 2**16:
        raise UserError(f'--ignored-label: expected a label from 0 to 65535, got {ignored}.')
    given = {split: getattr(args, f'{split}_json') for split in ('train', 'val')}
    source = Source(
        folder=Folder(args.data),
        out=_converted(args.out),
        format=args.format,
        files={split: path for split, path in given.items() if path},
        val_share=args.val_share,
        seed=args.seed,
        classes=read_names(args.classes) if args.classes else None,
        ignored=ignored,
        colours=args.colours,
        needs_masks=not is_segmentation and learns_masks(args.base),
    )
    return (prepare_segmentation if is_segmentation else prepare_detection)(source, report)


def _refuse_unused(args: argparse.Namespace, is_segmentation: bool) -> None:
    of_label_maps = ('classes', 'ignored_label', 'colours')
    unused = ('train_json', 'val_json') if is_segmentation else of_label_maps
    given = [f'--{name}'.replace('_', '-') for name in unused if getattr(args, name) is not None]
    if given:
        task = 'a segmenter' if is_segmentation else 'a detector'
        other = 'focal_maskrcnn_3x' if is_segmentation else 'focal_upernet_160k'
        raise UserError(
            f'{args.base} is {task}, for which {", ".join(given)} has no meaning. Leave it out, '
            f'or take another --base, such as {other}.'
        )


def _converted(config: Path) -> Path:
    return config.with_name(f'{config.stem}_data')
