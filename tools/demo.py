"""The story of `make demo`: draws data, trains a small detector on it, evaluates, makes pictures.

It starts the tools that a user starts: tools/train.py and tools/test.py.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib

matplotlib.use('Agg')

from mmfocal.datasets import prepare_shapes, shapes_root
from mmfocal.visualization.curves import draw_curves, read_scalars
from mmfocal.visualization.detections import draw_detections

CONFIG = 'configs/mmdet/focal_maskrcnn_shapes.py'
TRAINING = re.compile(r'Iter\(train\) \[ *(\d+)/(\d+)\].* eta: (\S+) .* loss: (\S+)')
EVALUATION = re.compile(r'Iter\(val\).*coco/bbox_mAP: (\S+).*coco/segm_mAP: (\S+)')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/demo')
    work_dir = parser.parse_args().work_dir
    work_dir.mkdir(parents=True, exist_ok=True)

    print(f'1/4  Drawing pictures of shapes into {shapes_root()}')
    data = prepare_shapes(progress=lambda done, total: live(f'     {done} of {total}'))
    live('')

    print(f'2/4  Training {CONFIG}, from scratch')
    started = time.monotonic()
    status = run(
        'train.py', CONFIG, '--work-dir', work_dir, log=work_dir / 'train.log', follow=Progress()
    )
    if status:
        return status
    minutes = (time.monotonic() - started) / 60

    print('3/4  Evaluating the checkpoint on the held-out pictures')
    checkpoint = Path((work_dir / 'last_checkpoint').read_text().strip())
    results = work_dir / 'results.json'
    status = run(
        *('test.py', CONFIG, checkpoint, '--work-dir', work_dir, '--out', results),
        log=work_dir / 'test.log',
    )
    if status:
        return status

    print('4/4  Drawing curves and detections')
    curves, detections = work_dir / 'curves.png', work_dir / 'detections.png'
    draw_curves(work_dir).savefig(curves, dpi=150)
    draw_detections(
        data / 'annotations/instances_val.json',
        data / 'val',
        results.with_suffix('.segm.json'),
    ).savefig(detections, dpi=150)

    final = [row for row in read_scalars(work_dir) if 'coco/bbox_mAP' in row][-1]
    print(
        f'\nTrained in {minutes:.1f} minutes, evaluation included: '
        f'box mAP {final["coco/bbox_mAP"]:.3f}, mask mAP {final["coco/segm_mAP"]:.3f} '
        '(COCO, IoU 0.50:0.95, held-out pictures)'
    )
    for name, path in (
        ('Detections', detections),
        ('Curves', curves),
        ('Results', results),
        ('Checkpoint', checkpoint),
        ('Log', work_dir / 'train.log'),
    ):
        print(f'  {name:11} {path}')
    return 0


def run(tool: str, *args: object, log: Path, follow=lambda line: None) -> int:
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

    def __init__(self) -> None:
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
        elif match := EVALUATION.search(line):
            live('')
            print(f'     held-out pictures: box mAP {match[1]}, mask mAP {match[2]}', flush=True)


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
