"""Draws data, trains a small model on it, evaluates it, and draws what it finds: `make demo`.

It starts what a user starts: `mmfocal train` and `mmfocal test`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

from mmfocal.datasets import prepare_shapes, shapes_root
from mmfocal.datasets.shapes import CLASSES, NUM_IMAGES, PALETTE
from mmfocal.engine.curves import draw_curves, read_scalars
from mmfocal.utils.files import check_folder
from mmfocal.utils.progress import progress_bar
from mmfocal.visualization.predictions import draw_detections, draw_segmentations

from ._arguments import parser_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINING = re.compile(r'Iter\(train\) \[ *(\d+)/(\d+)\].* eta: (\S+) .* loss: (\S+)')


def detections(data: Path, results: Path) -> Figure:
    """What ``mmfocal test --out results`` wrote for a detector, beside the ground truth."""
    truth = data / 'annotations/instances_val.json'
    return draw_detections(truth, data / 'val', results.with_suffix('.segm.json'))


def segmentations(data: Path, results: Path) -> Figure:
    """What ``mmfocal test --out results`` wrote for a segmenter, beside the ground truth."""
    return draw_segmentations(
        data / 'val',
        data / 'labels/val',
        results.with_suffix('.labels'),
        ('ground', *CLASSES),
        ((0, 0, 0), *PALETTE),
    )


@dataclass(frozen=True)
class Demo:
    """What is trained, which metrics tell about it, and what shows them.

    Attributes:
        config: name of a config of mmfocal.
        metrics: of the evaluator, by the names that they have in its log.
        scale: what the metrics are divided by.
        draw: from the data set and the results to a figure.
    """

    config: str
    metrics: dict[str, str]
    scale: float
    draw: Callable[[Path, Path], Figure]

    def told(self, values: dict[str, float]) -> str:
        """Metrics as they are shown."""
        return ', '.join(
            f'{name} {values[key] / self.scale:.3f}' for key, name in self.metrics.items()
        )


DEMOS = {
    'detection': Demo(
        'focal_maskrcnn_shapes',
        {'coco/bbox_mAP': 'box mAP', 'coco/segm_mAP': 'mask mAP'},
        1,
        detections,
    ),
    'segmentation': Demo('focal_upernet_shapes', {'mIoU': 'mIoU'}, 100, segmentations),
}


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument('task', nargs='?', choices=DEMOS, default='detection')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo or demo-seg')
    args = parser.parse_args()
    demo = DEMOS[args.task]
    name = 'demo' if args.task == 'detection' else 'demo-seg'
    work_dir = args.work_dir or Path('work_dirs') / name
    check_folder(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)

    print(f'1/4  Drawing images of shapes into {shapes_root()}')
    with progress_bar('     Drawing', sum(NUM_IMAGES.values()), 'image') as bar:
        data = prepare_shapes(progress=lambda done, total: bar.update())

    print(f'2/4  Training {demo.config}, from scratch')
    started = time.monotonic()
    with Progress(demo) as progress:
        status = run(
            *('train', demo.config, '--work-dir', work_dir),
            log=work_dir / 'train.log',
            follow=progress.read,
        )
    if status:
        return status
    minutes = (time.monotonic() - started) / 60

    print('3/4  Evaluating the checkpoint on the held-out images')
    checkpoint = Path((work_dir / 'last_checkpoint').read_text().strip())
    results = work_dir / 'results.json'
    status = run(
        *('test', demo.config, checkpoint, '--work-dir', work_dir, '--out', results),
        log=work_dir / 'test.log',
    )
    if status:
        return status

    print(f'4/4  Drawing curves and {args.task}s')
    matplotlib.use('Agg')
    curves, images = work_dir / 'curves.png', work_dir / f'{args.task}s.png'
    draw_curves(work_dir).savefig(curves, dpi=150)
    demo.draw(data, results).savefig(images, dpi=150)

    final = [row for row in read_scalars(work_dir) if set(demo.metrics) <= set(row)][-1]
    print(
        f'\nTrained in {minutes:.1f} minutes, evaluation included: {demo.told(final)} '
        '(held-out images)'
    )
    for title, path in (
        ('Images', images),
        ('Curves', curves),
        ('Results', results),
        ('Checkpoint', checkpoint),
        ('Log', work_dir / 'train.log'),
    ):
        print(f'  {title:11} {path}')
    return 0


def run(tool: str, *args: object, log: Path, follow: Callable = lambda line: None) -> int:
    """Runs a tool of mmfocal; its output goes to ``log`` and, line by line, to ``follow``.

    Returns:
        The exit status; if it is not 0, the end of the log has been shown.
    """
    command = [sys.executable, '-m', 'mmfocal', tool, *map(str, args)]
    tail: list[str] = []
    with (
        log.open('w') as file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        for line in process.stdout:
            file.write(line)
            tail = [*tail[-29:], line]
            follow(line)
    if process.returncode:
        print(f'\nmmfocal {tool} failed; the end of {log}:\n{"".join(tail)}', file=sys.stderr)
    return process.returncode


class Progress:
    """Shows how far training is, from its log: as a bar, or without a terminal at each tenth."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.tenths = 0

    def __enter__(self) -> Progress:
        self.bar = progress_bar('', None, bar_format='     [{bar:30}] {desc}')
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def read(self, line: str) -> None:
        """Takes a line of the log."""
        if match := TRAINING.search(line):
            done, total = int(match[1]), int(match[2])
            text = f'{done}/{total}  loss {match[4]}  time left {match[3]}'
            self.bar.total = total
            self.bar.set_description_str(text, refresh=False)
            self.bar.update(done - self.bar.n)
            if self.bar.disable and 10 * done // total > self.tenths:
                self.tenths = 10 * done // total
                print(f'     {text}', flush=True)
        elif 'Iter(val)' in line:
            values = dict(re.findall(r'(\S+): ([\d.]+)', line))
            if set(self.demo.metrics) <= set(values):
                numbers = {key: float(values[key]) for key in self.demo.metrics}
                self.bar.clear()
                print(f'     held-out images: {self.demo.told(numbers)}', flush=True)
