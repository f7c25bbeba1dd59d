"""Where runs log, with stand-ins for the services; `make clients` asks the real ones."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from mmengine.config import Config

from mmfocal.engine import settings
from mmfocal.engine.log_backends import MLflowBackend, WandbBackend
from mmfocal.utils.errors import UserError


class RefusedError(Exception):
    pass


@pytest.fixture
def mlflow(monkeypatch):
    """What is asked of MLflow, by name; it refuses what begins with `http`."""
    asked = SimpleNamespace(address=None, experiment=None, location=None, metrics=[])
    module = ModuleType('mlflow')

    def set_experiment(name):
        if asked.address.startswith('http'):
            raise RefusedError('no answer\nsecond line')
        asked.experiment = name

    def create(name, artifact_location):
        asked.location = artifact_location

    module.MlflowException = RefusedError
    module.tracking = SimpleNamespace(is_tracking_uri_set=lambda: asked.address is not None)
    module.get_tracking_uri = lambda: asked.address
    module.set_tracking_uri = lambda address: setattr(asked, 'address', address)
    module.get_experiment_by_name = lambda name: None
    module.create_experiment = create
    module.set_experiment = set_experiment
    module.log_metrics = lambda metrics, step: asked.metrics.append(metrics)
    monkeypatch.setitem(sys.modules, 'mlflow', module)
    for name in ('EXPERIMENT_NAME', 'EXPERIMENT_ID'):
        monkeypatch.delenv(f'MLFLOW_{name}', raising=False)
    monkeypatch.setattr(MLflowBackend, '_own_address', None)
    asked.module = module
    return asked


def test_mlflow_without_an_address_is_a_database_in_the_work_folder(mlflow, tmp_path):
    for name in ('first', 'second'):  # the address of the first is not one of the user
        folder = tmp_path / name
        MLflowBackend(str(folder / '2026/vis_data')).add_scalars({'loss': 1.0}, 3)
        assert mlflow.address == f'sqlite:///{folder}/mlflow.db'
        assert mlflow.experiment == name
        assert mlflow.location == (folder / 'mlartifacts').as_uri()
    assert mlflow.metrics == [{'loss': 1.0}] * 2


def test_address_and_experiment_of_the_user_win(mlflow, tmp_path, monkeypatch):
    mlflow.address = 'sqlite:///mine.db'
    MLflowBackend(str(tmp_path / 'run/2026/vis_data')).add_scalars({'loss': 1.0}, 3)
    assert (mlflow.address, mlflow.experiment) == ('sqlite:///mine.db', 'Default')
    monkeypatch.setenv('MLFLOW_EXPERIMENT_NAME', 'shapes')
    MLflowBackend(str(tmp_path), tracking_uri='sqlite:///other.db').add_scalars({}, 3)
    assert (mlflow.address, mlflow.experiment) == ('sqlite:///other.db', 'shapes')


def test_mlflow_may_fail_later_but_not_at_the_beginning(mlflow, tmp_path, capfd):
    mlflow.address = 'http://nobody'
    with pytest.raises(UserError, match=r'no answer\).*MLFLOW_TRACKING_URI'):
        MLflowBackend(str(tmp_path)).add_scalars({'loss': 1.0}, 3)
    mlflow.address = 'sqlite:///mine.db'
    backend = MLflowBackend(str(tmp_path))
    backend.add_scalars({'loss': 1.0}, 3)

    def refuse(metrics, step):
        raise RefusedError('gone')

    mlflow.module.log_metrics = refuse
    backend.add_scalars({'loss': 2.0}, 4)
    assert mlflow.metrics == [{'loss': 1.0}]


@pytest.mark.parametrize('there', [True, False])
def test_wandb_gets_no_folder_where_the_user_has_set_one(tmp_path, monkeypatch, there):
    module, calls = ModuleType('wandb'), []
    module.Error, module.init = RefusedError, lambda **settings: calls.append(settings)
    monkeypatch.setitem(sys.modules, 'wandb', module)
    monkeypatch.delenv('WANDB_DIR', raising=False)
    if there:
        monkeypatch.setenv('WANDB_DIR', str(tmp_path))
    assert WandbBackend(str(tmp_path / 'run')).experiment is module
    assert calls == [{'dir': None if there else str(tmp_path / 'run')}]

    def refuse(**settings):
        raise RefusedError('No API key')

    module.init = refuse
    with pytest.raises(UserError, match='WANDB_MODE=offline'):
        _ = WandbBackend(str(tmp_path / 'run')).experiment


def test_backends_of_a_config_heed_the_environment_too(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mlflow', ModuleType('mlflow'))
    monkeypatch.setattr(settings.importlib.util, 'find_spec', lambda name: True)
    backends = [
        dict(type='LocalVisBackend'),
        dict(type='mmengine.MLflowVisBackend', exp_name='mine'),
        dict(type='elsewhere.WandbVisBackend'),
    ]
    cfg = Config(dict(visualizer=dict(type='Visualizer', vis_backends=backends)))
    for _ in range(2):  # a dumped config says the same again
        settings.set_logs(cfg, ['mlflow', 'wandb'])
        kinds = [backend['type'] for backend in cfg.visualizer.vis_backends]
        assert kinds == [
            'LocalVisBackend',
            'MLflowBackend',
            'elsewhere.WandbVisBackend',
            'WandbBackend',
        ]
    assert cfg.visualizer.vis_backends[1].exp_name == 'mine'
