"""The story of `make demo`: draws data, trains a small model on it, evaluates, makes pictures.

It starts the tools that a user starts: tools/train.py and tools/test.py.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib

matplotlib.use('Agg')

from mmfocal.datasets import prepare_shapes, shapes_root
from mmfocal.datasets.shapes import CLASSES, PALETTE
from mmfocal.engine.curves import draw_curves, read_scalars
from mmfocal.visualization.detections import draw_detections
from mmfocal.visualization.segmentations import draw_segmentations

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINING = re.compile(r'Iter\(train\) \[ *(\d+)/(\d+)\].* eta: (\S+) .* loss: (\S+)')


def detections(data: Path, results: Path) -> Figure:
    """Pictures of what ``tools/test.py --out results`` wrote for a detector."""
    truth = data / 'annotations/instances_val.json'
    return draw_detections(truth, data / 'val', results.with_suffix('.segm.json'))


def segmentations(data: Path, results: Path) -> Figure:
    """Likewise for a segmenter."""
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
        config: path in this repository.
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
        'configs/mmdet/focal_maskrcnn_shapes.py',
        {'coco/bbox_mAP': 'box mAP', 'coco/segm_mAP': 'mask mAP'},
        1,
        detections,
    ),
    'segmentation': Demo(
        'configs/mmseg/focal_upernet_shapes.py', {'mIoU': 'mIoU'}, 100, segmentations
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('task', nargs='?', choices=DEMOS, default='detection')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo or demo-seg')
    args = parser.parse_args()
    demo = DEMOS[args.task]
    name = 'demo' if args.task == 'detection' else 'demo-seg'
    work_dir = args.work_dir or ROOT / 'work_dirs' / name
    work_dir.mkdir(parents=True, exist_ok=True)

    print(f'1/4  Drawing pictures of shapes into {shapes_root()}')
    data = prepare_shapes(progress=lambda done, total: live(f'     {done} of {total}'))
    live('')

    print(f'2/4  Training {demo.config}, from scratch')
    started = time.monotonic()
    status = run(
        *('train.py', demo.config, '--work-dir', work_dir),
        log=work_dir / 'train.log',
        follow=Progress(demo),
    )
    if status:
        return status
    minutes = (time.monotonic() - started) / 60

    print('3/4  Evaluating the checkpoint on the held-out pictures')
    checkpoint = Path((work_dir / 'last_checkpoint').read_text().strip())
    results = work_dir / 'results.json'
    status = run(
        *('test.py', demo.config, checkpoint, '--work-dir', work_dir, '--out', results),
        log=work_dir / 'test.log',
    )
    if status:
        return status

    print(f'4/4  Drawing curves and {args.task}s')
    curves, pictures = work_dir / 'curves.png', work_dir / f'{args.task}s.png'
    draw_curves(work_dir).savefig(curves, dpi=150)
    demo.draw(data, results).savefig(pictures, dpi=150)

    final = [row for row in read_scalars(work_dir) if set(demo.metrics) <= set(row)][-1]
    print(
        f'\nTrained in {minutes:.1f} minutes, evaluation included: {demo.told(final)} '
        '(held-out pictures)'
    )
    for title, path in (
        ('Pictures', pictures),
        ('Curves', curves),
        ('Results', results),
        ('Checkpoint', checkpoint),
        ('Log', work_dir / 'train.log'),
    ):
        print(f'  {title:11} {path}')
    return 0


def run(tool: str, *args: object, log: Path, follow: Callable = lambda line: None) -> int:
    """Runs a tool of this repository; its output goes to ``log`` and, line by line, to ``follow``.

    Returns:
        The exit status; if it is not 0, the end of the log has been shown.
    """
    command = [sys.executable, str(ROOT / 'tools' / tool), *map(str, args)]
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
        print(f'\n{tool} failed; the end of {log}:\n{"".join(tail)}', file=sys.stderr)
    return process.returncode


class Progress:
    """Shows how far training is, from the lines of its log."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.tenths = 0

    def __call__(self, line: str) -> None:
        if match := TRAINING.search(line):
            done, total = int(match[1]), int(match[2])
            bar = '#' * (30 * done // total)
            text = f'     [{bar:30}] {done}/{total}  loss {match[4]}  time left {match[3]}'
            if sys.stdout.isatty():
                live(text)
            elif 10 * done // total > self.tenths:
                self.tenths = 10 * done // total
                print(text, flush=True)
        elif 'Iter(val)' in line:
            values = dict(re.findall(r'(\S+): ([\d.]+)', line))
            if set(self.demo.metrics) <= set(values):
                live('')
                numbers = {key: float(values[key]) for key in self.demo.metrics}
                print(f'     held-out pictures: {self.demo.told(numbers)}', flush=True)


def live(text: str) -> None:
    """Replaces the last line of a terminal; elsewhere nothing is shown."""
    if sys.stdout.isatty():
        print(f'\r\033[K{text}', end='', flush=True)


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print('\nInterrupted.', file=sys.stderr)
        sys.exit(130)
