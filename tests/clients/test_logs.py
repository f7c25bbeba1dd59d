"""Runs that log to services of others, each in a process of its own, as users start them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHY = '`make clients` installs it'


@pytest.fixture
def train(options, tmp_path):
    """Trains a detector in `run` of a folder, with these variables; returns the process."""
    settings = [f'{name}={value}' for name, value in options.items()]
    command = [sys.executable, '-m', 'mmfocal', 'train', 'focal_retinanet_shapes']
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(('MLFLOW_', 'WANDB_'))
    }

    def run(service, **variables):
        return subprocess.run(
            [*command, '--work-dir', 'run', '--log-to', service, '--cfg-options', *settings],
            cwd=tmp_path,
            env={**inherited, 'PYTHONPATH': str(ROOT), **variables},
            capture_output=True,
            text=True,
        )

    return run


def losses(folder):
    (path,) = folder.glob('run/*/vis_data/scalars.json')
    found = map(json.loads, path.read_text().splitlines())
    return [each['loss'] for each in found if 'loss' in each]


@pytest.mark.parametrize('database', ['run/mlflow.db', 'mine.db'])
def test_mlflow_is_asked_where_the_user_says(train, tmp_path, database):
    mlflow = pytest.importorskip('mlflow', reason=WHY)
    address, experiment, variables = f'sqlite:///{tmp_path / database}', 'run', {}
    if database == 'mine.db':
        experiment = 'shapes'
        variables = dict(MLFLOW_TRACKING_URI=address, MLFLOW_EXPERIMENT_NAME=experiment)
    done = train('mlflow', **variables)
    assert done.returncode == 0, done.stderr
    databases = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*.db')]
    assert databases == [database]
    client = mlflow.MlflowClient(address)
    number = client.get_experiment_by_name(experiment).experiment_id
    (run,) = client.search_runs([number])
    assert run.info.status == 'FINISHED'
    assert run.data.metrics['loss'] == pytest.approx(losses(tmp_path)[-1])
    assert run.data.params['model.type'].endswith('RetinaNet')
    if not variables:  # artifacts lie in the work folder, and nothing beside it
        assert [path.name for path in tmp_path.iterdir()] == ['run']
        text = next(tmp_path.glob('run/mlartifacts/**/config.py')).read_text()
        assert 'FocalTransformer' in text


def test_mlflow_that_cannot_be_reached_is_one_sentence(train):
    pytest.importorskip('mlflow', reason=WHY)
    address = dict(MLFLOW_TRACKING_URI='http://127.0.0.1:9', MLFLOW_HTTP_REQUEST_MAX_RETRIES='0')
    done = train('mlflow', **address)
    assert done.returncode == 2
    assert 'Set MLFLOW_TRACKING_URI' in done.stderr and 'Traceback' not in done.stderr


def test_wandb_heeds_its_variables(train, tmp_path):
    pytest.importorskip('wandb', reason=WHY)
    (tmp_path / 'mine').mkdir()
    done = train('wandb', WANDB_MODE='offline', WANDB_DIR=str(tmp_path / 'mine'))
    assert done.returncode == 0, done.stderr
    (found,) = tmp_path.rglob('*.wandb')
    assert found.is_relative_to(tmp_path / 'mine')


def test_tensorboard_reads_the_losses(train, tmp_path):
    pytest.importorskip('tensorboard', reason=WHY)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = train('tensorboard')
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob('run/*/vis_data/events*')
    events = EventAccumulator(str(path))
    events.Reload()
    assert [each.value for each in events.Scalars('loss')] == pytest.approx(losses(tmp_path))
