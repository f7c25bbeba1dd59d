"""What a run writes is plain data, and what it wrote before still loads."""

import collections
import enum
from pathlib import Path

import numpy as np
import pytest
import test_exact_resume as toy
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader, load_from_local

from mmfocal.engine.hooks.plain_checkpoint import PlainCheckpointHook, plain
from mmfocal.weights.safe_loading import load_checkpoint_file


@pytest.fixture(autouse=True)
def nothing_allowed():
    """PyTorch as it is, whatever packages have added to its list."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.add_safe_globals(others)


class Colour(enum.IntEnum):
    RED = 3


@HOOKS.register_module()
class Talkative(Hook):
    """Saves what a third-party hook may save."""

    def before_save_checkpoint(self, runner, checkpoint):
        checkpoint['extra'] = dict(
            numbers=np.arange(3.0),
            score=np.float32(0.5),
            names=collections.deque(['a']),
            folder=Path('a/b'),
            colour=Colour.RED,
            pair=(1, np.int64(2)),
            counts=collections.Counter('aab'),
            by_class=collections.defaultdict(list, {0: [np.bool_(True)]}),
            runner=runner,
        )
        runner.message_hub.update_info('array', np.ones(2))


def test_checkpoint_loads_with_nothing_but_torch(tmp_path):
    cfg = toy.config(tmp_path, False)
    cfg.custom_hooks.append(dict(type='Talkative'))
    cfg.default_hooks.checkpoint.update(save_best='score', rule='greater')
    toy.train(cfg)
    paths = sorted(tmp_path.glob('*.pth'))
    assert len(paths) >= 6
    for path in paths:
        loaded = torch.load(path, weights_only=True)
        assert loaded['extra'] == dict(
            numbers=[0.0, 1.0, 2.0],
            score=0.5,
            names=['a'],
            folder='a/b',
            colour=3,
            pair=(1, 2),
            counts=dict(a=2, b=1),
            by_class={0: [True]},
            runner=None,
        )
        assert type(loaded['extra']['colour']) is int
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert log.count('extra.runner (Runner)') == 1
    assert loaded['message_hub']['runtime_info']['last_ckpt'].endswith('.pth')


def test_metadata_of_state_dicts_stay():
    state = torch.nn.Sequential(torch.nn.BatchNorm1d(2)).state_dict()
    left_out = []
    got = plain(state, 'state_dict', left_out)
    assert type(got) is collections.OrderedDict and got._metadata == dict(state._metadata)
    assert got['0.weight'] is state['0.weight'] and not left_out


def test_stock_runner_resumes_what_is_written(tmp_path, monkeypatch):
    """As mmdet's ``tools/train.py --resume`` does on PyTorch 2.6 and newer."""
    with pytest.raises(toy.Killed):
        toy.train(toy.config(tmp_path, False, killer=('train', 13)))
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    cfg = toy.config(tmp_path, False)
    cfg.update(resume=True, load_from=str(tmp_path / 'iter_12.pth'))
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 20


def test_checkpoints_of_before_are_resumed(tmp_path, monkeypatch):
    """With the history as mmengine's objects, and less about the state of the run."""
    toy.train(toy.config(tmp_path / 'whole', True))
    with monkeypatch.context() as patch, pytest.raises(toy.Killed):
        patch.setattr(PlainCheckpointHook, 'before_save_checkpoint', lambda *_, **__: None)
        toy.train(toy.config(tmp_path / 'killed', True, killer=('train', 12)))
    path = tmp_path / 'killed/epoch_2.pth'
    old = load_checkpoint_file(path)
    assert 'train/loss' in old['message_hub']['log_scalars'] and 'mmfocal_log_history' not in old
    old['mmfocal_run'] = dict(world_size=1, num_batches=5, gradients={})
    torch.save(old, path)
    toy.train(toy.config(tmp_path / 'killed', True), resume=True)
    got, want = toy.final(tmp_path / 'killed'), toy.final(tmp_path / 'whole')
    toy.assert_equal(got, want)
