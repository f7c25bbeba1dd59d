"""Lists the configs that can be named: task, head, backbone, parameters, published figures.

``mmfocal train NAME`` trains one of them, and ``_base_ = 'mmfocal::FILE'`` inherits from it. Words
choose the configs in whose line they all occur, in any case:

    mmfocal list mask COCO
    mmfocal list --task detection --backbone tiny

Figures are the Focal Transformer authors', in percent; no config has weights of this repository.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mmfocal.utils.errors import UserError

# Of the configs and the index, as OpenMMLab's packages have them.
ROOT = Path(__file__).resolve().parents[1] / '.mim'
TASKS = {
    'detection': 'Object Detection',
    'instance': 'Instance Segmentation',
    'panoptic': 'Panoptic Segmentation',
    'semantic': 'Semantic Segmentation',
    'classification': 'Image Classification',
}
BACKBONES = {
    'tiny': 'Focal-T',
    'small': 'Focal-S',
    'base': 'Focal-B',
    'large': 'Focal-L',
    'fast': 'Focal-fast-T',
    'narrow': 'Focal, 32 channels',
}


class Entry(NamedTuple):
    """A config of the index.

    Attributes:
        name: as tools take it.
        file: below ``configs/``.
        tasks: keys of ``TASKS``.
        head: detector, segmenter or classifier, as papers call it.
        backbone: as the paper calls it.
        data: what the config trains on.
        parameters: number of weights of the model.
        published: the authors' figures in percent, by metric; empty if there are none.
    """

    name: str
    file: str
    tasks: tuple[str, ...]
    head: str
    backbone: str
    data: str
    parameters: int
    published: dict[str, float]

    @property
    def cells(self) -> tuple[str, ...]:
        """What the table says of it, in the order of its titles."""
        return (
            self.name,
            ', '.join(self.tasks),
            self.head,
            self.backbone,
            self.data,
            f'{self.parameters / 1e6:.1f} M',
            ', '.join(f'{metric} {value}' for metric, value in self.published.items()) or '-',
        )


TITLES = ('config', 'task', 'head', 'backbone', 'data', 'parameters', 'published')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('words', nargs='*', help='which all have to occur in what is listed')
    parser.add_argument('--task', choices=TASKS)
    parser.add_argument('--backbone', choices=BACKBONES, help='narrow: for the drawn shapes')
    parser.add_argument('--json', action='store_true', help='a list of objects, for programs')
    args = parser.parse_args()
    found = [entry for entry in entries() if fits(entry, args)]
    if args.json:
        print(json.dumps([entry._asdict() for entry in found], indent=2))
    elif found:
        print(table(found))
    else:
        options = [f'--{key} {vars(args)[key]}' for key in ('task', 'backbone') if vars(args)[key]]
        raise UserError(
            f'No config has all of these: {", ".join([*args.words, *options])}. Ask for fewer; '
            '`mmfocal list` shows all configs.'
        )


def entries() -> list[Entry]:
    """All configs of ``model-index.yml``, in its order."""
    models: list[dict[str, Any]] = []
    for part in _read(ROOT / 'model-index.yml')['Import']:
        models += _read(ROOT / part)['Models']
    names = {task: name for name, task in TASKS.items()}
    found = []
    for model in models:
        metadata = model['Metadata']
        published: dict[str, float] = {}
        for result in model.get('Results', ()):
            published |= result['Metrics']
        found.append(
            Entry(
                name=model['Name'],
                file=model['Config'].removeprefix('configs/'),
                tasks=tuple(names[task] for task in metadata['Tasks']),
                head=metadata['Method'],
                backbone=metadata['Backbone'],
                data=metadata['Training Data'],
                parameters=metadata['Parameters'],
                published=published,
            )
        )
    return found


def fits(entry: Entry, args: argparse.Namespace) -> bool:
    """Whether an entry is of the task and the backbone, and has all the words."""
    (size,) = (key for key, backbone in BACKBONES.items() if backbone == entry.backbone)
    tasks = (TASKS[task] for task in entry.tasks)
    line = ' '.join((*entry.cells, entry.file, size, *tasks)).lower()
    return (
        args.task in (None, *entry.tasks)
        and args.backbone in (None, size)
        and all(word.lower() in line for word in args.words)
    )


def table(found: list[Entry]) -> str:
    """Lines of columns, the titles first."""
    rows = [TITLES, *(entry.cells for entry in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding='utf-8'))
