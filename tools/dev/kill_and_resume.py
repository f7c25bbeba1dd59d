"""Kills training runs at exact moments, resumes them, and compares what they end with.

`python -m tools.dev.kill_and_resume` prints Markdown: the kill matrix, then runs of tools/train.py
that were killed at random moments. It ends with status 1 if a run ended differently.

The matrix is LOOPS x VARIANTS x MOMENTS x SIGNALS. Each case is a small Faster R-CNN on drawn
shapes, trained by `mmfocal.engine.train` in a process that sends the signal to itself at the
moment that is meant. It is resumed until it ends, and has to end with what a run has that was left
undisturbed, bit for bit: weights, averages, optimizer, schedulers, logged values, counters, best
checkpoint. All these processes are forked from one that has imported everything.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook, IterTimerHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmfocal.datasets import prepare_shapes
from mmfocal.datasets.shapes import CLASSES
from mmfocal.engine import TrainOptions, load_checkpoint_file, load_config, train
from mmfocal.engine.hooks.curves import CurvesHook

from .timing.measure import machine

ROOT = Path(__file__).parents[2]

# --- What is trained ------------------------------------------------------------------------

IMAGES = dict(train=6, val=4)  # three and two batches
PERIOD = 3  # iterations of an epoch, between validations, and between checkpoints
ITERATIONS = 4 * PERIOD
# What validations find, by iteration: the same on all machines, with a best one in between.
SCORES = {3: 0.1, 6: 0.3, 9: 0.2, 12: 0.2}

CONFIG = """
_base_ = '{root}/configs/mmdet/focal_maskrcnn_shapes.py'

load, boxes = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)
resize, pack = dict(type='Resize', scale=(64, 64)), dict(type='PackDetInputs')
shapes = dict(
    _delete_=True, type='CocoDataset', data_root='{data}', metainfo=dict(classes={classes})
)
loader = dict(batch_size=2, num_workers=0, persistent_workers=False)
train_dataloader = dict(
    **loader,
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(
        **shapes,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        pipeline=[load, boxes, resize, dict(type='RandomFlip', prob=0.5), pack],
    ),
)
val_dataloader = dict(
    **loader,
    dataset=dict(
        **shapes,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        pipeline=[load, resize, boxes, pack],
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{data}/annotations/instances_val.json', metric='bbox')
test_evaluator = val_evaluator

model = dict(
    backbone=dict(
        arch=dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)),
        drop_path_rate=0.5,
    ),
    neck=dict(in_channels=[16, 32, 64, 128]),
    roi_head=dict(mask_roi_extractor=None, mask_head=None),
    # Boxes are found from the first iteration on.
    test_cfg=dict(rpn=dict(max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=10)),
)
optim_wrapper = dict(paramwise_cfg=None)  # one group, which is faster
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs={epochs}, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=8),
    dict(
        type='ReduceOnPlateauParamScheduler',
        param_name='lr',
        monitor='coco/bbox_mAP',
        rule='greater',
        patience=0,
    ),
]
default_hooks = dict(
    checkpoint=dict(by_epoch=True, interval=1, max_keep_ckpts=2), logger=dict(interval=1)
)
log_processor = dict(by_epoch=True)
"""

# Values of the config, by dotted key.
LOOPS: dict[str, dict[str, Any]] = {
    'epochs': {},
    'iterations': {
        'train_cfg': dict(
            _delete_=True, type='IterBasedTrainLoop', max_iters=ITERATIONS, val_interval=PERIOD
        ),
        'train_dataloader.sampler.type': 'InfiniteSampler',
        'default_hooks.checkpoint': dict(by_epoch=False, interval=PERIOD),
        'log_processor.by_epoch': False,
    },
}


@dataclass(frozen=True)
class Variant:
    """What a run has besides.

    Attributes:
        options: of :class:`~mmfocal.engine.TrainOptions`.
        overrides: values of the config, by dotted key.
        length: of the training that the config asks for, in those of others.
        validating: when a run is in validation: between its ``'images'``, between batches of its
            ``'losses'``, or while it has a ``'pool'`` of processes.
        inexact: name of a transform after which resumed runs may differ, which has to be logged
            before training begins.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    length: int = 1
    validating: str = 'images'
    inexact: str | None = None


def _voc(split: str) -> dict[str, Any]:
    dataset = dict(
        type='VOCDataset',
        ann_file=f'VOC2007/ImageSets/Main/{split}.txt',
        data_prefix=dict(_delete_=True, sub_data_root='VOC2007/'),
    )
    return {f'{split}_dataloader.dataset': dataset}


VARIANTS = {
    'plain': Variant(),
    '--save-best': Variant(dict(save_best=True)),
    # It ends after ITERATIONS: two validations after the best one.
    '--early-stop': Variant(dict(early_stop=2), length=2),
    '--ema': Variant(dict(ema=True)),
    '--val-loss': Variant(dict(val_loss=True), validating='losses'),
    'accumulated gradients': Variant(overrides={'optim_wrapper.accumulative_counts': 2}),
    'VOCMetric': Variant(
        overrides={
            **_voc('train'),
            **_voc('val'),
            'val_evaluator': dict(_delete_=True, type='VOCMetric', eval_mode='11points'),
            'param_scheduler.1.monitor': 'pascal_voc/mAP',
        },
        validating='pool',
    ),
    'CachedMosaic': Variant(
        overrides={
            # In the place of RandomFlip.
            'train_dataloader.dataset.pipeline.3': dict(
                type='CachedMosaic', img_scale=(32, 32), max_cached_images=8, prob=1.0
            )
        },
        inexact='CachedMosaic',
    ),
}


def prepare_data(root: Path) -> None:
    """Draws the images, and describes them in VOC's form as well as in COCO's."""
    prepare_shapes(root, num_images=IMAGES)
    voc = root / 'VOC2007'
    for name in ('ImageSets/Main', 'Annotations', 'JPEGImages'):
        (voc / name).mkdir(parents=True)
    for split in IMAGES:
        coco = json.loads((root / f'annotations/instances_{split}.json').read_text())
        names = []
        for image in coco['images']:
            names.append(f'{split}_{Path(image["file_name"]).stem}')
            shutil.copy(root / split / image['file_name'], voc / f'JPEGImages/{names[-1]}.jpg')
            found = [each for each in coco['annotations'] if each['image_id'] == image['id']]
            _voc_annotation(found).write(voc / f'Annotations/{names[-1]}.xml')
        (voc / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names))


def _voc_annotation(annotations: list[dict]) -> ElementTree.ElementTree:
    root = ElementTree.Element('annotation')
    for each in annotations:
        item = ElementTree.SubElement(root, 'object')
        ElementTree.SubElement(item, 'name').text = CLASSES[each['category_id'] - 1]
        ElementTree.SubElement(item, 'difficult').text = str(each['iscrowd'])
        x, y, width, height = each['bbox']
        corners = dict(xmin=x, ymin=y, xmax=x + width, ymax=y + height)
        box = ElementTree.SubElement(item, 'bndbox')
        for name, value in corners.items():
            ElementTree.SubElement(box, name).text = str(round(value) + 1)  # pixels count from 1
    return ElementTree.ElementTree(root)


@HOOKS.register_module()
class PlannedScores(Hook):
    """Takes SCORES for what validations have found."""

    priority = 'HIGHEST'

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        for name in ('coco/bbox_mAP', 'pascal_voc/mAP'):
            if name in metrics:
                metrics[name] = SCORES.get(runner.iter, 0.0)


# --- Moments --------------------------------------------------------------------------------

# Iterations that have ended, or that end, at each moment.
MOMENTS = {
    'first iteration': 1,
    'training': 8,
    'writing newest': 9,
    'writing best': 6,
    'validation': 9,
    'last iteration': ITERATIONS,
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)
EXIT_STATUS = 143  # of runs that end themselves when they are asked to


@dataclass(frozen=True)
class Case:
    """One cell of the matrix, and one signal."""

    loop: str
    variant: str
    moment: str
    number: signal.Signals

    def __str__(self) -> str:
        return f'{self.loop}, {self.variant}, {self.moment}, {self.number.name}'


def matrix() -> list[Case]:
    cases = itertools.starmap(Case, itertools.product(LOOPS, VARIANTS, MOMENTS, SIGNALS))
    return [case for case in cases if has_moment(case.variant, case.moment)]


def has_moment(variant: str, moment: str) -> bool:
    return moment != 'writing best' or 'save_best' in VARIANTS[variant].options


def spread(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """``count`` of the cases, in which all loops, variants, moments and signals are about as
    frequent as each other; what few cases have comes first."""
    left = random.Random(seed).sample(cases, len(cases))
    everywhere = Counter(value for case in cases for value in _values(case))
    taken: Counter[str] = Counter()
    found = []

    def order(case: Case) -> tuple[int, int]:
        values = _values(case)
        return sum(taken[value] for value in values), min(everywhere[value] for value in values)

    for _ in range(min(count, len(left))):
        found.append(min(left, key=order))
        left.remove(found[-1])
        taken.update(_values(found[-1]))
    return found


def _values(case: Case) -> tuple[str, ...]:
    return case.loop, case.variant, case.moment, case.number.name


@HOOKS.register_module()
class SignalHook(Hook):
    """Sends a signal to its own process when a moment has come.

    Args:
        moment: of MOMENTS.
        number: of the signal.
        validating: as of :class:`Variant`.
    """

    priority = 'LOWEST'

    def __init__(self, moment: str, number: int, validating: str) -> None:
        self.moment, self.number, self.validating = moment, number, validating

    def before_run(self, runner: Runner) -> None:
        if self.moment.startswith('writing'):
            self._wait_for_file(runner)
        elif (self.moment, self.validating) == ('validation', 'pool'):
            self._wait_for_pool(runner)

    def _wait_for_file(self, runner: Runner) -> None:
        """For a checkpoint that lies under its temporary name and is put on the disk."""
        done = MOMENTS[self.moment]
        by_epoch = 'Epoch' in type(runner.train_loop).__name__
        name = f'epoch_{done // PERIOD}.pth' if by_epoch else f'iter_{done}.pth'
        prefix = '.best_*' if self.moment == 'writing best' else '.'
        folder, fsync = Path(runner.work_dir), os.fsync

        def signalled(descriptor: int) -> None:
            status = os.fstat(descriptor)
            for path in folder.glob(f'{prefix}{name}*'):
                if os.path.samestat(path.stat(), status):
                    if self.number == signal.SIGKILL:  # as if half of it had been written
                        os.ftruncate(descriptor, status.st_size // 2)
                    self._send()
            fsync(descriptor)

        os.fsync = signalled

    def _wait_for_pool(self, runner: Runner) -> None:
        from mmdet.evaluation.functional import mean_ap

        pool = mean_ap.Pool

        def signalled(*args: Any) -> Any:
            workers = pool(*args)
            if runner.iter == MOMENTS['validation']:
                self._send()
            return workers

        mean_ap.Pool = signalled

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        moments = ('first iteration', 'training', 'last iteration')
        if self.moment in moments and runner.iter + 1 == MOMENTS[self.moment]:
            self._send()

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._validates(runner, 'images', batch_idx == 1)

    def after_val_loss_iter(self, runner: Runner, batch_idx: int, total: int) -> None:
        self._validates(runner, 'losses', batch_idx == 0)

    def _validates(self, runner: Runner, what: str, reached: bool) -> None:
        asked = (self.moment, self.validating) == ('validation', what)
        if asked and reached and runner.iter == MOMENTS['validation']:
            self._send()

    def _send(self) -> None:
        os.kill(os.getpid(), self.number)


# --- Runs -----------------------------------------------------------------------------------


class Runs:
    """Trains in forked processes, below one folder.

    Args:
        folder: for data, configs and work folders.
        seconds: after which a run is taken for one that hangs.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        prepare_data(folder / 'shapes')
        self.config = folder / 'config.py'
        text = CONFIG.format(
            root=ROOT, data=folder / 'shapes', classes=CLASSES, epochs=ITERATIONS // PERIOD
        )
        self.config.write_text(text)
        self.cfg = load_config(self.config)
        self.undisturbed: dict[tuple[str, str], dict[str, Any] | str] = {}

    def check(self, case: Case, workers: int) -> str | None:
        """Kills a run, resumes it, and says what is not as it should be.

        Args:
            case: how it is killed.
            workers: of its data loader; the run that it is compared with has none.
        """
        work_dir = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            return self._kill(case, workers, work_dir) or self._resume(case, workers, work_dir)
        finally:
            shutil.rmtree(work_dir, ignore_errors=True)

    def _kill(self, case: Case, workers: int, work_dir: Path) -> str | None:
        asks = case.number != signal.SIGKILL
        status, log = self._train(case, workers, work_dir, signalled=True)
        expected = EXIT_STATUS if asks else -signal.SIGKILL
        if status != expected:
            return f'killed: {_ended(status)}, not {expected}\n{log[-3000:]}'
        iteration = _newest(work_dir)
        if asks and iteration < MOMENTS[case.moment]:
            return f'saved iteration {iteration}, before {MOMENTS[case.moment]}'
        inexact = VARIANTS[case.variant].inexact
        told = log.partition('(train)')[0]
        if inexact and not any(inexact in line and 'exact' in line for line in told.split('\n')):
            return f'the log does not say that {inexact} is not exact'
        return None

    def _resume(self, case: Case, workers: int, work_dir: Path) -> str | None:
        got = self._end(case, workers, work_dir)
        if VARIANTS[case.variant].inexact and not isinstance(got, str):
            return None if got['iter'] == ITERATIONS else f'ends after {got["iter"]}'
        return compared(got, self._undisturbed(case))

    def _undisturbed(self, case: Case) -> dict[str, Any] | str:
        key = case.loop, case.variant
        if key not in self.undisturbed:
            self.undisturbed[key] = self._end(case, 0, self.folder / ' '.join(key))
        return self.undisturbed[key]

    def _end(self, case: Case, workers: int, work_dir: Path) -> dict[str, Any] | str:
        """What a run has at its end, or how it failed."""
        status, log = self._train(case, workers, work_dir)
        if status != 0:
            return f'{_ended(status)}\n{log[-3000:]}'
        return torch.load(work_dir / 'end', weights_only=True)

    def _train(
        self, case: Case, workers: int, work_dir: Path, signalled: bool = False
    ) -> tuple[int | None, str]:
        """Starts or resumes the run of a case, see :meth:`train`."""
        variant = VARIANTS[case.variant]
        cfg = copy.deepcopy(self.cfg)
        # Merging takes _delete_ out of what is merged.
        cfg.merge_from_dict(copy.deepcopy({**LOOPS[case.loop], **variant.overrides}))
        cfg.train_dataloader.update(num_workers=workers, persistent_workers=workers > 0)
        length = 'max_epochs' if case.loop == 'epochs' else 'max_iters'
        cfg.train_cfg[length] *= variant.length
        cfg.custom_hooks = [dict(type='PlannedScores')]
        if signalled:
            moment = dict(moment=case.moment, number=int(case.number))
            hook = dict(type='SignalHook', **moment, validating=variant.validating)
            cfg.custom_hooks.append(hook)
        return self.train(cfg, work_dir, **variant.options)

    def train(self, cfg: Config, work_dir: Path, **options: Any) -> tuple[int | None, str]:
        """Starts or resumes a run; its exit status, None if it hangs, and what it logs.

        Args:
            cfg: the config.
            work_dir: of the run.
            **options: others of :class:`~mmfocal.engine.TrainOptions`.
        """
        work_dir.mkdir(exist_ok=True)
        log = work_dir / 'log'
        asked = TrainOptions(work_dir=str(work_dir), resume='auto', **options)
        process = get_context('fork').Process(target=_train, args=(cfg, asked, log))
        process.start()
        status = self._wait(process)
        _kill_group(process.pid)
        process.join()
        return status, log.read_text()

    def _wait(self, process: BaseProcess) -> int | None:
        deadline = time.monotonic() + self.seconds
        # Not join(), which would wait for workers that outlive the process, too.
        while process.exitcode is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return process.exitcode


def _ended(status: int | None) -> str:
    return 'hangs' if status is None else f'ends with status {status}'


def _kill_group(number: int) -> None:
    """Kills a process that leads a group, and those that it has left behind."""
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(number, signal.SIGKILL)


def _newest(work_dir: Path) -> int:
    """Iterations before the newest checkpoint, which loads; 0 if there is none."""
    paths = [*work_dir.glob('epoch_*.pth'), *work_dir.glob('iter_*.pth')]
    return max((load_checkpoint_file(path)['meta']['iter'] for path in paths), default=0)


def _train(cfg: Config, options: TrainOptions, log: Path) -> None:
    """Trains, and saves what the run ends with; in a process of its own."""
    os.setpgrp()
    with log.open('w') as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    # What only people look at takes longer than such a short training.
    import mmengine.config.config as configs

    configs.FormatCode = lambda text, **kwargs: (text, True)
    CurvesHook._draw = lambda self, runner: None
    torch.save(flat(final_state(train(cfg, options))), Path(options.work_dir) / 'end')


# --- What is compared -----------------------------------------------------------------------


def final_state(runner: Runner) -> dict[str, Any]:
    """All that a run has at its end which has to be the same after it was killed and resumed."""
    folder, hub = Path(runner.work_dir), runner.message_hub
    newest = Path((folder / 'last_checkpoint').read_text()).name
    return dict(
        iter=runner.iter,
        epoch=runner.epoch,
        weights=runner.model.state_dict(),
        averages=[h.ema_model.state_dict() for h in runner.hooks if isinstance(h, EMAHook)],
        optimizer=runner.optim_wrapper.state_dict(),
        schedulers=[scheduler.state_dict() for scheduler in runner.param_schedulers],
        logged={
            name: buffer.data[0].tolist()
            for name, buffer in hub.log_scalars.items()
            if 'time' not in name and 'memory' not in name
        },
        best_score=hub.get_info('best_score'),
        counters=[counters(hook) for hook in runner.hooks if not isinstance(hook, IterTimerHook)],
        best={path.name: saved_state(path) for path in folder.glob('best_*.pth')},
        newest={newest: saved_state(folder / newest)},
    )


def counters(hook: Hook) -> dict[str, Any]:
    """The public numbers of a hook, early stopping's validations without a better one too."""
    public = {key: value for key, value in vars(hook).items() if not key.startswith('_')}
    numbers = {key: value for key, value in public.items() if isinstance(value, int | float)}
    return {type(hook).__name__: numbers}


def saved_state(path: Path) -> dict[str, Any]:
    """What a checkpoint holds that has to be the same."""
    checkpoint = load_checkpoint_file(path)
    parts = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
    state = {part: checkpoint[part] for part in parts if part in checkpoint}
    return dict(state, **{name: checkpoint['meta'][name] for name in ('epoch', 'iter')})


def flat(value: Any, name: str = '') -> dict[str, Any]:
    """The tensors and numbers of nested dicts and lists, by dotted name."""
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {name: value}
    parts = (flat(inner, f'{name}.{key}'.lstrip('.')) for key, inner in items)
    return {name: leaf for part in parts for name, leaf in part.items()}


def compared(got: dict[str, Any] | str, want: dict[str, Any] | str) -> str | None:
    """How a resumed run failed, or which values of it an undisturbed one does not share."""
    if isinstance(want, str):
        return f'left undisturbed: {want}'
    if isinstance(got, str):
        return f'resumed: {got}'
    differing = [name for name in {**want, **got} if not _equal(got.get(name), want.get(name))]
    shown = [
        name
        if torch.is_tensor(want.get(name))
        else f'{name}: {got.get(name)}, not {want.get(name)}'
        for name in differing[:5]
    ]
    return f'{len(differing)} values differ ({"; ".join(shown)})' if differing else None


def summary(problem: str | None) -> str:
    """Its first line; the others are a log."""
    return problem.splitlines()[0] if problem else ''


def _equal(one: Any, other: Any) -> bool:
    if torch.is_tensor(one) and torch.is_tensor(other):
        # Bits: zeros have signs, and NaN is NaN.
        return one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()
    return type(one) is type(other) and (one == other or (one != one and other != other))


# --- Random moments -------------------------------------------------------------------------


def random_kills(runs: Runs, count: int, seed: int) -> Iterator[str]:
    """Rows of a table of runs that were killed at random moments from their start to their end."""
    whole = runs.folder / 'whole'
    status, log = runs.train(copy.deepcopy(runs.cfg), whole, ema=True, save_best=True)
    want = f'{_ended(status)}\n{log[-3000:]}' if status else saved(whole)
    draws = random.Random(seed)
    for number in range(count):
        work_dir = runs.folder / f'random{number}'
        moment = draws.uniform(0, ITERATIONS)
        kill(runs.config, work_dir, moment)
        left = ', '.join(sorted(path.name for path in work_dir.glob('*.pth'))) or 'nothing'
        problem = compared(finish(runs.config, work_dir), want)
        yield f'| {moment:.2f} | {left} | {summary(problem) or "yes"} |'
        shutil.rmtree(work_dir)


def start(config: Path, work_dir: Path) -> subprocess.Popen:
    """tools/train.py, with a loader worker."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE'}
    options = ['--resume', '--ema', '--save-best', '--cfg-options']
    workers = ['train_dataloader.num_workers=1', 'train_dataloader.persistent_workers=True']
    command = [sys.executable, 'tools/train.py', config, '--work-dir', work_dir]
    with work_dir.with_suffix('.log').open('w') as log:
        return subprocess.Popen(
            [*command, *options, *workers],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
        )


def kill(config: Path, work_dir: Path, moment: float) -> None:
    """Starts a run, and kills it after so many iterations if it has not ended before."""
    process, log = start(config, work_dir), work_dir.with_suffix('.log')
    while process.poll() is None and log.read_text().count('(train)') < int(moment):
        time.sleep(0.001)
    time.sleep(moment % 1 * 0.3)  # seconds that an iteration takes at most
    process.kill()
    process.wait()


def finish(config: Path, work_dir: Path) -> dict[str, Any] | str:
    """Trains or resumes to the end; what is saved then, or how the run failed."""
    if status := start(config, work_dir).wait():
        return f'{_ended(status)}\n{work_dir.with_suffix(".log").read_text()[-3000:]}'
    return saved(work_dir)


def saved(work_dir: Path) -> dict[str, Any]:
    """What the last checkpoint and the best one of a run hold."""
    paths = (work_dir / f'epoch_{ITERATIONS // PERIOD}.pth', *work_dir.glob('best_*.pth'))
    return flat({path.name: saved_state(path) for path in paths})


# --- Tables ---------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--only', action='append', choices=VARIANTS, help='of the variants')
    parser.add_argument('--cases', type=int, help='so many, spread over the matrix')
    parser.add_argument('--random', type=int, default=10, help='random moments (default: 10)')
    parser.add_argument('--seed', type=int, default=0, help='of --cases and --random')
    parser.add_argument(
        '--seconds', type=float, default=120, help='after which a run hangs (default: 120)'
    )
    args = parser.parse_args()
    cases = [case for case in matrix() if case.variant in (args.only or VARIANTS)]
    if args.cases is not None:
        cases = spread(cases, args.cases, args.seed)
    import_everything()
    print('# Runs that were killed and resumed\n')
    print('By `tools/dev/kill_and_resume.py`, which says what is compared. Made with')
    print(', '.join(f'{name} {value}' for name, value in machine(torch.device('cpu')).items()))
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), args.seconds)
        problems = check_matrix(runs, cases)
        print_matrix(problems)
        return max(any(problems.values()), print_random(runs, args.random, args.seed))


def check_matrix(runs: Runs, cases: Sequence[Case]) -> dict[Case, str | None]:
    """What is wrong with each case, if anything."""
    problems = {}
    for number, case in enumerate(cases):
        began = time.monotonic()
        problems[case] = runs.check(case, workers=int(number % 4 == 0))
        took = f'{time.monotonic() - began:.1f} s'
        print(f'{number + 1}/{len(cases)} {case}, {took}: {problems[case]}', file=sys.stderr)
    return problems


def import_everything() -> None:
    """Before processes are forked, which would do it each for itself."""
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    torch.set_num_threads(1)  # sums depend on their number
    gc.collect()
    gc.freeze()  # mmengine's data sets collect garbage, which would copy all pages


def print_matrix(problems: Mapping[Case, str | None]) -> None:
    rows = dict.fromkeys((case.loop, case.variant) for case in problems)
    if not rows:
        return
    print(f'\n| loop | variant | {" | ".join(MOMENTS)} |\n|---|---{"|---" * len(MOMENTS)}|')
    for loop, variant in rows:
        cells = [_cell(problems, loop, variant, moment) for moment in MOMENTS]
        print(f'| {loop} | {variant} | {" | ".join(cells)} |')
    print()
    for case, problem in problems.items():
        if problem:
            print(f'- {case}: {summary(problem)}')


def _cell(problems: Mapping[Case, str | None], loop: str, variant: str, moment: str) -> str:
    if not has_moment(variant, moment):
        return '-'
    found = [
        p for c, p in problems.items() if (c.loop, c.variant, c.moment) == (loop, variant, moment)
    ]
    if not found:
        return ''
    answer = 'end, told' if VARIANTS[variant].inexact else 'equal'
    good = f'{found.count(None)}/{len(found)} {answer}'
    return good if not any(found) else f'**{good}**'


def print_random(runs: Runs, count: int, seed: int) -> bool:
    """Prints the second table; returns whether a run ended differently."""
    if count:
        print('\nRuns of tools/train.py with a loader worker, --ema and --save-best, SIGKILL:\n')
        print('| killed after iteration | left behind | ends equal |\n|---|---|---|')
    different = False
    for row in random_kills(runs, count, seed) if count else ():
        print(row, flush=True)
        different |= not row.endswith('| yes |')
    return different


if __name__ == '__main__':
    sys.exit(main())
