"""Trains one model on one, two and four processes with the same images in a step, and compares.

    python -m tools.dev.equal_processes

prints a Markdown table: the largest difference of losses and of weights from those of one process,
relative to the largest loss and weight. The model is a small UPerNet, whose loss is a mean over
pixels and so the mean of the means of equal shares, without batch norm and random augmentation.
Processes are those of tools/dist_train.sh, joined by gloo on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmfocal.engine import load_checkpoint_file

ROOT = Path(__file__).parents[2]

BATCH = 4  # images of a step, of all processes together
ITERATIONS = 6
CONFIG = """
_base_ = '{root}/configs/mmseg/focal_upernet_shapes.py'
num_images = dict(train=16, val=4)
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    **loader,
    batch_size={batch_size},
    dataset=dict(data_root='{data}', num_images=num_images, pipeline=pipeline))
val_dataloader = dict(**loader, dataset=dict(data_root='{data}', num_images=num_images))
test_dataloader = val_dataloader
arch = dict(_delete_=True, embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
norm_cfg = dict(_delete_=True, type='GN', num_groups=4)
cross_entropy = dict(type='CrossEntropyLoss')
model = dict(
    backbone=dict(arch=arch, drop_path_rate=0.0),
    decode_head=dict(
        channels=32, in_channels=[32, 64, 128], norm_cfg=norm_cfg, loss_decode=[cross_entropy]),
    auxiliary_head=dict(
        channels=32, in_channels=64, norm_cfg=norm_cfg,
        loss_decode=dict(_delete_=True, **cross_entropy)))
train_cfg = dict(max_iters={iterations}, val_interval=1000)
default_hooks = dict(
    checkpoint=dict(interval=2, max_keep_ckpts=10, by_epoch=False), logger=dict(interval=1))
# Adam divides by the size of gradients and so makes much of rounding where they are close to zero.
optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05, momentum=0.9),
    clip_grad=dict(max_norm=1.0), accumulative_counts={accumulative_counts})
param_scheduler = []
custom_imports = dict(imports=['mmfocal', 'tools.dev.equal_processes'])
custom_hooks = [dict(type='MeanLossHook')]
randomness = dict(seed=0)
"""


@HOOKS.register_module(force=True)
class MeanLossHook(Hook):
    """Logs the mean of the processes' losses; mmengine that of the first, over several steps."""

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        loss = torch.as_tensor(outputs['loss']).detach().clone()
        all_reduce(loss, 'mean')
        runner.message_hub.update_scalar('train/over_processes', loss.item())


@dataclass(frozen=True)
class Run:
    """One way to train.

    Attributes:
        processes: that share the images of a step.
        accumulated: steps backward for one of the optimizer.
    """

    processes: int = 1
    accumulated: int = 1

    @property
    def name(self) -> str:
        if self.accumulated > 1:
            return f'1 process, {self.accumulated} times {BATCH // self.accumulated} images'
        if self.processes == 1:
            return f'1 process, {BATCH} images'
        share = BATCH // self.processes
        images = f'{share} image{"s" * (share > 1)} each'
        return f'{self.processes} processes, {images}'


ONE = Run()
OTHERS = (
    Run(accumulated=2),
    Run(2),
    Run(4),
)


def write_config(folder: Path, run: Run, iterations: int = ITERATIONS) -> Path:
    """The config of a run, in a folder that has the drawn data or gets it."""
    path = folder / f'{run.processes}_{run.accumulated}.py'
    path.write_text(
        CONFIG.format(
            root=ROOT,
            data=folder / 'shapes',
            batch_size=BATCH // run.processes // run.accumulated,
            iterations=iterations * run.accumulated,
            accumulative_counts=run.accumulated,
        )
    )
    return path


def command(config: Path, run: Run, *options: Any) -> list[str]:
    """That trains: tools/train.py, or tools/dist_train.sh for several processes."""
    options = ('--work-dir', config.with_suffix(''), '--no-data-check', *options)
    if run.processes == 1:
        start = (sys.executable, ROOT / 'tools/train.py', config)
    else:
        start = (ROOT / 'tools/dist_train.sh', config, run.processes)
    return [str(each) for each in (*start, *options)]


def environment() -> dict[str, str]:
    """Of all runs: one thread, and the hook above importable."""
    own = dict(PYTHON=sys.executable, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
    return {**os.environ, **own}


def train(folder: Path, run: Run) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of all steps, and the weights at the end."""
    config = write_config(folder, run)
    done = subprocess.run(
        command(config, run), cwd=folder, capture_output=True, text=True, env=environment()
    )
    if done.returncode:
        raise RuntimeError(f'{run.name}: {done.stdout[-2000:]}{done.stderr[-3000:]}')
    work_dir = config.with_suffix('')
    losses = losses_of(work_dir)
    if run.accumulated > 1:
        groups = zip(*[iter(losses)] * run.accumulated, strict=True)
        losses = [sum(group) / len(group) for group in groups]
    checkpoint = load_checkpoint_file(work_dir / f'iter_{ITERATIONS * run.accumulated}.pth')
    return losses, checkpoint['state_dict']


def losses_of(work_dir: Path) -> list[float]:
    """All losses that the newest start of a run has logged."""
    *_, log = sorted(work_dir.glob('*/vis_data/scalars.json'))
    rows = map(json.loads, log.read_text().splitlines())
    return [row['over_processes'] for row in rows if 'over_processes' in row]


def differences(run: tuple, one: tuple) -> tuple[float, float]:
    """Largest ones of losses and weights, relative to the largest loss and weight."""
    losses, weights = run
    expected_losses, expected_weights = one
    if len(losses) != len(expected_losses) or weights.keys() != expected_weights.keys():
        raise ValueError('the runs differ in their steps or in the names of their weights')
    of_losses = max(abs(a - b) for a, b in zip(losses, expected_losses, strict=True))
    of_weights = max(
        (weights[name] - expected).abs().max() for name, expected in expected_weights.items()
    )
    largest = max(expected.abs().max() for expected in expected_weights.values())
    return of_losses / max(expected_losses), float(of_weights / largest)


def compare(others: Sequence[Run]) -> None:
    """Prints the table of some runs."""
    with tempfile.TemporaryDirectory() as name:
        one = train(Path(name), ONE)
        first, last = one[0][0], one[0][-1]
        print(f'{ONE.name} a step, {ITERATIONS} steps: loss from {first:.4f} to {last:.4f}\n')
        print('| compared with it | losses | weights |\n|---|---|---|')
        for run in others:
            cells = (f'{each:.1e}' for each in differences(train(Path(name), run), one))
            print(f'| {run.name} | {" | ".join(cells)} |', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    compare(OTHERS)


if __name__ == '__main__':
    main()
