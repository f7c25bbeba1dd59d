"""Watches memory and open files of a long training run, and says whether they grow.

`python -m tools.dev.soak` prints a Markdown table. The run is one of tools/train.py: a small Mask
R-CNN on drawn shapes, every batch of another size, with loader workers, validation and checkpoints
on the way. Memory is what the run and its workers hold by themselves (unique set size, which
leaves out pages that they share), and open files and threads are theirs too. What they hold in the
last third is compared with the third before; the first one is warming up.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from mmfocal.datasets import prepare_shapes

ROOT = Path(__file__).parents[2]

GROWTH = 0.03  # of memory from one third to the next that is let pass; files and threads: none
INTERVAL = 0.2  # seconds between two looks
CONFIG = """
_base_ = '{root}/configs/mmdet/focal_maskrcnn_shapes.py'
num_images = dict(train=64, val=8)
loader = dict(dataset=dict(data_root='{data}', num_images=num_images))
train_dataloader = dict(
    **loader | dict(dataset=dict(**loader['dataset'], pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='RandomResize', scale=(128, 128), ratio_range=(0.5, 1.5), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(0.6, 0.6), crop_type='relative_range'),
        dict(type='PackDetInputs'),
    ])),
    batch_size=2,
    num_workers=2,
)
val_dataloader = dict(**loader, num_workers=1)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{data}/annotations/instances_val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_iters={iterations}, val_interval={interval})
default_hooks = dict(
    checkpoint=dict(interval={interval}, max_keep_ckpts=2), logger=dict(interval=10)
)
"""


@dataclass(frozen=True)
class Look:
    """What a run and its workers hold at a moment: iteration, MiB, open files, threads."""

    iteration: int
    memory: float
    files: int
    threads: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--iterations', type=int, default=1500, help='(default: 1500)')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        looks = watch(Path(folder), args.iterations)
    return report(looks, args.iterations)


def watch(folder: Path, iterations: int) -> list[Look]:
    """Trains, and looks again and again.

    Raises:
        SystemExit: the run failed; with the end of its log.
    """
    data = folder / 'shapes'
    prepare_shapes(data, num_images=dict(train=64, val=8))
    config, log = folder / 'config.py', folder / 'log'
    config.write_text(
        CONFIG.format(root=ROOT, data=data, iterations=iterations, interval=iterations // 6)
    )
    command = [sys.executable, ROOT / 'tools/train.py', config, '--work-dir', folder / 'run']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE'}
    looks = []
    with log.open('w') as file:
        run = psutil.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    while run.poll() is None:
        time.sleep(INTERVAL)
        if (look := look_at(run, log.read_text())) is not None:
            looks.append(look)
    if run.returncode:
        raise SystemExit(f'The run ended with status {run.returncode}:\n{log.read_text()[-3000:]}')
    return looks


def look_at(run: psutil.Process, log: str) -> Look | None:
    """What it holds now; None before the first iteration, and where a process has just ended."""
    iterations = re.findall(r'Iter\(train\) \[ *(\d+)/', log)
    if not iterations:
        return None
    try:
        processes = [run, *run.children(recursive=True)]
        return Look(
            int(iterations[-1]),
            sum(process.memory_full_info().uss for process in processes) / 2**20,
            sum(process.num_fds() for process in processes),
            sum(process.num_threads() for process in processes),
        )
    except psutil.Error:
        return None


def report(looks: list[Look], iterations: int) -> int:
    """Prints the table; returns 1 if something grows."""
    thirds = [
        [look for look in looks if look.iteration * 3 // (iterations + 1) == third]
        for third in range(3)
    ]
    print('| | warming up | then | last third | grows |\n|---|---|---|---|---|')
    grows = False
    for name, title, allowed in (
        ('memory', 'memory, MiB', GROWTH),
        ('files', 'open files', 0),
        ('threads', 'threads', 0),
    ):
        # Medians: validation and checkpoints take more for moments.
        values = [statistics.median(getattr(look, name) for look in third) for third in thirds]
        growth = values[2] / values[1] - 1
        bad = growth > allowed
        grows |= bad
        cells = ' | '.join(f'{value:.0f}' for value in values)
        print(f'| {title} | {cells} | {growth:+.1%}{" **yes**" if bad else ""} |')
    return int(grows)


if __name__ == '__main__':
    sys.exit(main())
