"""Several processes: equal to one, ended when one dies, and resumed by another number of them."""

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import torch

from mmfocal.engine import load_checkpoint_file
from tools.dev.equal_processes import (
    ONE,
    Run,
    command,
    differences,
    environment,
    train,
    write_config,
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('processes')


@pytest.fixture(scope='module')
def one(folder):
    return train(folder, ONE)


@pytest.mark.parametrize('run', [Run(2), Run(4)], ids=lambda run: str(run.processes))
def test_processes_train_as_one_does(folder, one, run):
    of_losses, of_weights = differences(train(folder, run), one)
    assert of_losses < 1e-5 and of_weights < 1e-5
    assert one[0][-1] < one[0][0] - 0.1, 'and something was learned'


def test_accumulated_gradients_train_as_larger_batches_do(folder, one):
    of_losses, of_weights = differences(train(folder, Run(accumulated=2)), one)
    assert of_losses < 1e-5 and of_weights < 1e-5


def test_job_of_a_dead_process_ends_and_others_resume_it(folder, one):
    config = write_config(folder, Run(2))
    work_dir = folder / 'killed'
    job = subprocess.Popen(
        command(
            config, Run(2), '--work-dir', work_dir, '--cfg-options', 'train_cfg.max_iters=900'
        ),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    lines = []
    try:
        for line in job.stdout:
            lines.append(line)
            if '[  5/900]' in line:
                second = process_of_rank(1, job.pid)
                second.kill()
                break
        rest, _ = job.communicate(timeout=90)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode != 0, ''.join(lines)[-3000:]
    # What PyTorch says of the process, and what we say of the job.
    assert 'rank      : 1' in rest and 'SIGKILL' in rest, rest[-3000:]
    assert rest.rstrip().endswith('--resume'), rest[-3000:]
    assert 'ended early' in rest

    for run in (ONE, Run(4)):
        config = write_config(folder, run)
        resumed = folder / f'resumed_{run.processes}'
        options = ('--work-dir', resumed, '--resume', work_dir / 'iter_4.pth')
        done = subprocess.run(
            command(config, run, *options),
            cwd=folder,
            capture_output=True,
            text=True,
            env=environment(),
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        assert f'number of processes (2, now {run.processes})' in done.stdout
        assert 'Iter(train) [5/6]' in done.stdout and 'Iter(train) [4/6]' not in done.stdout
        # The same images in a step, so the same run but for rounding.
        found = load_checkpoint_file(resumed / 'iter_6.pth')
        assert found['meta']['iter'] == 6
        for name, expected in one[1].items():
            torch.testing.assert_close(found['state_dict'][name], expected, rtol=1e-4, atol=1e-5)


def process_of_rank(rank, launcher):
    """Of a job, by the environment that torchrun gives its processes."""
    for process in psutil.Process(launcher).children(recursive=True):
        if process.environ().get('RANK') == str(rank):
            return process
    raise AssertionError(f'there is no process of rank {rank}')


def test_slurm_job_that_was_saved_queues_again(tmp_path):
    script = Path(__file__).parents[1] / 'tools/slurm_train.sbatch'
    for name, body in (
        ('srun', 'echo "$@" > called; exit $STATUS'),
        ('scontrol', 'echo "$@" > queued'),
    ):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\n{body}\n')
        path.chmod(0o755)

    def job(status, submitted_from):
        variables = dict(STATUS=str(status), SLURM_SUBMIT_DIR=submitted_from, SLURM_JOB_ID='7')
        return subprocess.run(
            ['bash', str(script), 'config.py', 'folder', '--seed', '1'],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, **variables, 'PATH': f'{tmp_path}:{os.environ["PATH"]}'},
        )

    root = str(script.parents[1])
    assert job(0, root).returncode == 0
    called = (tmp_path / 'called').read_text()
    assert 'config.py --work-dir folder --launcher slurm --resume --seed 1' in called
    assert job(1, root).returncode == 1
    assert not (tmp_path / 'queued').exists(), 'what fails is not repeated'
    assert job(143, root).returncode == 143
    assert (tmp_path / 'queued').read_text() == 'requeue 7\n'
    wrong = job(0, str(tmp_path))
    assert wrong.returncode == 2 and 'Run sbatch in the folder of mmfocal' in wrong.stderr
