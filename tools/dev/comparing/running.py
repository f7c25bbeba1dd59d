"""Trains the runs of a comparison, each on a core or a GPU of its own, and times their steps."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from statistics import fmean
from threading import Event, Thread
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from mmfocal.datasets import prepare_shapes
from mmfocal.datasets.checks import check_data
from mmfocal.engine.curves import read_scalars
from mmfocal.engine.hooks.provenance import git_state
from mmfocal.utils.config import import_packages
from tools.dev import ROOT
from tools.dev.timing.measure import interleaved, machine

from .plan import Comparison, Run
from .results import Results

DIGITS = 5  # of metrics
NO_METRICS = {'iter', 'epoch', 'step', 'time', 'data_time', 'memory'}  # in rows of validations
VAL_INTERVAL = 1000  # mmengine's default
PR_SET_PDEATHSIG = 1  # of Linux
LIBC = ctypes.CDLL(None) if sys.platform == 'linux' else None


def prepare_data(comparison: Comparison) -> None:
    """Draws the embedded data set where it is trained on, once and not by every run.

    Raises:
        UserError: data are missing; it says where to get them.
    """
    config = comparison.config
    import_packages(config)
    if 'shapes' in str(config.train_dataloader.dataset.get('type')).lower():
        prepare_shapes()
    check_data(config, ['train', 'val', *(['test'] if comparison.tests else [])])


def train_all(
    comparison: Comparison, results: Results, work_dir: Path, jobs: int | None = None
) -> list[str]:
    """Trains what is missing in the results, and adds it.

    A training that was killed resumes from its checkpoint.

    Args:
        comparison: which runs.
        results: takes what they come to.
        work_dir: a folder for each run is made here.
        jobs: runs at a time; by default as many as there are GPUs, else cores.

    Returns:
        Names of runs that failed; their logs stay in the work folder.
    """
    missing = [run for run in comparison.runs() if not results.has(run)]
    if not missing:
        return []
    queue: SimpleQueue[Run] = SimpleQueue()
    for run in missing:
        queue.put(run)
    stopped = Event()
    gpus = _gpus()
    places = gpus or sorted(os.sched_getaffinity(0))

    def work(place: Any) -> None:
        environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
        if gpus:
            environment['CUDA_VISIBLE_DEVICES'] = place
        else:
            os.sched_setaffinity(0, {place})  # of this thread and the processes that it starts
        while not stopped.is_set():
            try:
                run = queue.get_nowait()
            except Empty:
                return
            _say(f'{run.name}: training')
            folder = work_dir / run.folder
            try:
                measured = _train(run, comparison, folder, environment)
            except Exception as error:  # whatever it is, the others go on
                _say(f'{run.name}: failed, see {folder}/log.txt: {error}')
                continue
            results.add(run, **measured)
            last = {name: curve[-1][1] for name, curve in measured['curves'].items()}
            _say(f'{run.name}: {last}')

    count = min(jobs or len(places), len(missing))
    threads = [Thread(target=work, args=(places[i % len(places)],)) for i in range(count)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        stopped.set()  # the runs were interrupted, too, and no others are to begin
        raise
    return [run.name for run in missing if not results.has(run)]


def _gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names each."""
    count = torch.cuda.device_count()
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    return visible.split(',')[:count] if visible else [str(place) for place in range(count)]


def _say(line: str) -> None:
    """Prints a line in one piece, as several threads do."""
    print(f'{line}\n', end='', flush=True)


class RunFailedError(RuntimeError):
    """A command of a run ended with an error."""


def _train(
    run: Run, comparison: Comparison, folder: Path, environment: dict[str, str]
) -> dict[str, Any]:
    """Trains and tests; returns what came of it."""
    folder.mkdir(parents=True, exist_ok=True)
    config, trained = folder / 'config.py', folder / 'run'
    run.config.dump(config)
    call = partial(_call, folder=folder, environment=environment)
    training = ['train', config, '--work-dir', trained, '--seed', run.seed, '--quiet']
    if any(trained.glob('*.pth')):
        training.append('--resume')
    # One that is complete, but was not kept, would be validated once more if it resumed.
    seconds, test = 0.0 if _is_complete(trained, run, comparison) else call(training), {}
    if comparison.tests:
        out = folder / 'test.json'
        last = trained / (trained / 'last_checkpoint').read_text().strip()
        testing = ['test', config, last, '--work-dir', folder / 'test', '--out', out, '--quiet']
        seconds += call(testing)
        metrics = json.loads(out.read_text())['metrics']
        test = {name: value_of(metrics, name) for name in comparison.metrics}
    rows = read_scalars(trained)
    where = machine(torch.device('cuda' if torch.cuda.is_available() else 'cpu'))
    return dict(
        curves={name: _curve(rows, name, run.config.train_cfg) for name in comparison.metrics},
        test=test,
        cpu_seconds=round(seconds),
        resumed='--resume' in training,
        machine={**where, 'threads': 1},  # of the training, not of this process
        commit=(git_state(ROOT) or {}).get('commit', ''),
    )


def _is_complete(trained: Path, run: Run, comparison: Comparison) -> bool:
    """Whether a work folder has all validations of a training."""
    try:
        rows = read_scalars(trained)
        for name in comparison.metrics:
            _curve(rows, name, run.config.train_cfg)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _curve(
    rows: Iterable[dict[str, float]], name: str, loop: Mapping[str, Any]
) -> list[tuple[int, float]]:
    """Iterations and values of a metric.

    The log has a validation under the last iteration that was logged before it, which is not
    always its own.

    Raises:
        ValueError: the log has more or fewer validations than the loop makes, or other metrics.
    """
    last, begin = loop['max_iters'], loop.get('val_begin', 1)
    every = loop.get('val_interval', VAL_INTERVAL)
    iterations = [i for i in range(begin, last + 1) if i % every == 0 or i == last]
    validations = [row for row in rows if 'loss' not in row]
    return [
        (iteration, value_of(row, name))
        for iteration, row in zip(iterations, validations, strict=True)
    ]


def value_of(row: Mapping[str, float], name: str) -> float:
    """A metric of an evaluation; 0 where nothing was found, of which mmdet says no AP.

    Raises:
        ValueError: there are only others.
    """
    if name not in row and (others := row.keys() - NO_METRICS):
        raise ValueError(f'expected the metric {name}; there are {", ".join(sorted(others))}')
    return round(row.get(name, 0.0), DIGITS)


def _call(arguments: list[Any], folder: Path, environment: dict[str, str]) -> float:
    """Runs a command of mmfocal; returns the seconds that its processes computed.

    Raises:
        RunFailedError: it ended with an error.
    """
    command = [sys.executable, '-m', 'mmfocal', *map(str, arguments)]
    # Else a run outlives this process when that is killed, and blocks its folder.
    ends_with_this = LIBC and partial(LIBC.prctl, PR_SET_PDEATHSIG, signal.SIGTERM)
    with (folder / 'log.txt').open('a') as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
            preexec_fn=ends_with_this,
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RunFailedError(f'mmfocal {arguments[0]} ended with status {process.returncode}')
    return used.ru_utime + used.ru_stime


# --- Time of a step -------------------------------------------------------------------------


def time_steps(comparison: Comparison, results: Results, rounds: int) -> None:
    """Times training steps of all variants in turn, in this process with one thread.

    Trainings run beside each other and whatever else there is, so that their own times say little.

    Args:
        comparison: whose variants are timed, each with the batches of its training.
        results: takes the seconds.
        rounds: steps of each variant.
    """
    torch.set_num_threads(1)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    steps, parameters = {}, {}
    for name in comparison.variants:
        config = comparison.run(name, 0).config
        init_default_scope(config.default_scope)
        torch.manual_seed(0)
        model = MODELS.build(config.model).to(device).train()
        parameters[name] = sum(each.numel() for each in model.backbone.parameters())
        steps[name] = _step(model, config)
    seconds = interleaved(steps, rounds, device)
    rounded = {name: [round(value, 4) for value in values] for name, values in seconds.items()}
    results.set_steps(rounded, parameters, machine(device))
    steps.clear()  # the models
    torch.cuda.empty_cache()


def _step(model: nn.Module, config: Config) -> Callable[[], object]:
    """A function that loads a batch and trains on it."""
    optim_wrapper = build_optim_wrapper(model, config.optim_wrapper)
    loader = dict(config.train_dataloader, num_workers=0, persistent_workers=False)
    batches = iter(Runner.build_dataloader(loader, seed=0))

    def step() -> float:
        losses = model.train_step(next(batches), optim_wrapper)
        return fmean(float(value) for value in losses.values())  # waits for a GPU

    return step
