"""Kills a real training run again and again, resumes it, and compares the weights it ends with.

`python -m tools.dev.kill_and_resume` prints a Markdown table. Each run is one of tools/train.py: a
small Mask R-CNN on drawn shapes, in processes of its own, with a loader worker. It is killed at
random moments, and in aimed ones, which are recognised by what the run has logged and written.
Then it is started with --resume until it ends, and has to end with the weights of a run that was
left alone, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmfocal.datasets import prepare_shapes
from mmfocal.engine import load_checkpoint_file

ROOT = Path(__file__).parents[2]

ITERATIONS = 12
CONFIG = """
_base_ = '{root}/configs/mmdet/focal_maskrcnn_shapes.py'
num_images = dict(train=8, val=4)
loader = dict(batch_size=2, dataset=dict(data_root='{data}', num_images=num_images))
train_dataloader = dict(**loader, num_workers=1)
val_dataloader = dict(**loader, num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{data}/annotations/instances_val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_iters={iterations}, val_interval=6)
model = dict(backbone=dict(drop_path_rate=0.5))
default_hooks = dict(checkpoint=dict(interval=3, max_keep_ckpts=2), logger=dict(interval=1))
custom_hooks = [dict(type='EMAHook')]
"""


@dataclass(frozen=True)
class Moment:
    """When a run is killed, and how.

    Attributes:
        title: for the table.
        reached: from what the run has logged, and its folder, whether it is time.
        number: the signal.
        times: how often the run is killed so.
    """

    title: str
    reached: Callable[[str, Path], bool]
    number: signal.Signals = signal.SIGKILL
    times: int = 1


def logged(text: str) -> Callable[[str, Path], bool]:
    return lambda log, folder: text in log


def iteration(number: int) -> Callable[[str, Path], bool]:
    return logged(f'Iter(train) [{number:2}/{ITERATIONS}]')


def writing(name: str) -> Callable[[str, Path], bool]:
    """While the temporary file of a checkpoint is there."""
    return lambda log, folder: any(folder.glob(f'.{name}.*'))


def written(name: str) -> Callable[[str, Path], bool]:
    return lambda log, folder: (folder / name).exists()


AIMED = (
    Moment('the first iteration', iteration(1)),
    Moment('writing the first checkpoint', writing('iter_3.pth')),
    Moment('writing a later checkpoint', writing('iter_9.pth')),
    Moment('just after a checkpoint', written('iter_6.pth')),
    Moment('validation', logged('Iter(val) [1/2]')),
    Moment('the last iteration', iteration(ITERATIONS)),
    Moment('every start, at its third iteration', logged('eta'), times=3),
    Moment('an iteration, asked to end', iteration(4), signal.SIGTERM),
    Moment('validation, asked to end', logged('Iter(val) [1/2]'), signal.SIGTERM),
    Moment('writing a checkpoint, asked to end', writing('iter_6.pth'), signal.SIGTERM),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--random', type=int, default=50, help='random moments (default: 50)')
    parser.add_argument('--aimed', type=int, default=len(AIMED), help='of the aimed ones')
    parser.add_argument('--seed', type=int, default=0, help='of the random moments')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), args)


def run(folder: Path, args: argparse.Namespace) -> int:
    """Prints the table; returns 1 if a run ended differently."""
    prepare_shapes(folder / 'shapes', num_images=dict(train=8, val=4))
    config = folder / 'config.py'
    config.write_text(CONFIG.format(root=ROOT, data=folder / 'shapes', iterations=ITERATIONS))
    started = time.monotonic()
    want = finish(config, folder / 'whole')
    duration = time.monotonic() - started

    draws = random.Random(args.seed)
    moments = list(AIMED[: args.aimed])
    for _ in range(args.random):
        # From when Python has imported what it needs to the end.
        after = draws.uniform(0.2, 1.0) * duration
        moments.append(Moment(f'{after / duration:.2f} of the time', since(after)))
    print('| killed in | signal | left behind | resumed ends equal |\n|---|---|---|---|')
    equal = True
    for number, moment in enumerate(moments):
        work_dir = folder / f'run{number}'
        for _ in range(moment.times):
            kill(config, work_dir, moment)
        left = ', '.join(sorted(path.name for path in work_dir.glob('*.pth'))) or 'nothing'
        got = finish(config, work_dir)
        same = got.keys() == want.keys() and all(got[key].equal(want[key]) for key in want)
        equal &= same
        answer = 'yes' if same else '**no**'
        print(f'| {moment.title} | {moment.number.name} | {left} | {answer} |', flush=True)
        shutil.rmtree(work_dir)
    return 0 if equal else 1


def since(seconds: float) -> Callable[[str, Path], bool]:
    started: list[float] = []

    def reached(log: str, folder: Path) -> bool:
        started[:] = started or [time.monotonic()]
        return time.monotonic() - started[0] >= seconds

    return reached


def start(config: Path, work_dir: Path, log: Path) -> subprocess.Popen:
    # The same threads for all: sums depend on their number.
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE'}
    command = [sys.executable, ROOT / 'tools/train.py', config, '--work-dir', work_dir, '--resume']
    with log.open('w') as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)


def kill(config: Path, work_dir: Path, moment: Moment) -> None:
    """Starts a run and kills it when its moment has come, if it has not ended before."""
    log = work_dir.with_suffix('.log')
    process = start(config, work_dir, log)
    while process.poll() is None and not moment.reached(log.read_text(), work_dir):
        time.sleep(0.0005)
    process.send_signal(moment.number)
    process.wait()


def finish(config: Path, work_dir: Path) -> dict:
    """Resumes a run to its end; its last weights by name, those of the EMA too."""
    log = work_dir.with_suffix('.log')
    if status := start(config, work_dir, log).wait():
        raise SystemExit(f'The run ended with status {status}:\n{log.read_text()[-3000:]}')
    checkpoint = load_checkpoint_file(work_dir / f'iter_{ITERATIONS}.pth')
    return {
        f'{part}.{name}': value
        for part in ('state_dict', 'ema_state_dict')
        for name, value in checkpoint[part].items()
    }


if __name__ == '__main__':
    sys.exit(main())
