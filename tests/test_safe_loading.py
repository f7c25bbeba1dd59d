"""Checkpoints are data: what mmengine writes loads, and nothing in a file is ever run."""

import http.server
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch.utils.data import Dataset

from mmfocal.engine import CheckpointError, install_safe_loading, load_checkpoint_file
from mmfocal.weights.safe_loading import load_from_weights_only


@pytest.fixture(autouse=True)
def restored_schemes():
    """Leaves mmengine's loaders as other tests know them."""
    schemes = dict(CheckpointLoader._schemes)
    yield
    CheckpointLoader._schemes = schemes


# --- What mmengine writes -----------------------------------------------------------------------


class Numbers(Dataset):
    metainfo: ClassVar = dict(classes=('a', 'b'), palette=[(1, 2, 3), (4, 5, 6)])

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return dict(x=torch.full((3,), float(i)))


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))

    def forward(self, x, mode):
        return dict(loss=self.layer(x).square().sum())


def toy_runner(work_dir, max_epochs, **kwargs):
    return Runner(
        model=Toy(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=Numbers(),
            batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=max_epochs),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=2),
            dict(type='MultiStepLR', milestones=[1, 3]),
        ],
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[dict(type='EMAHook')],
        randomness=dict(seed=0),
        experiment_name=f'{work_dir.name}_{max_epochs}',
        **kwargs,
    )


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Work folder of a run of two epochs, with schedulers, averaged weights and curves."""
    work_dir = tmp_path_factory.mktemp('run')
    toy_runner(work_dir, 2).train()
    return work_dir


def assert_same(ours, theirs):
    if isinstance(theirs, HistoryBuffer):
        assert type(ours) is HistoryBuffer and ours.max_length == theirs.max_length
        for a, b in zip(ours.data, theirs.data, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        assert ours.mean() == theirs.mean()
    elif isinstance(theirs, torch.Tensor):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    elif isinstance(theirs, dict):
        assert type(ours) is type(theirs) and list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        assert type(ours) is type(theirs) and len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    else:
        assert type(ours) is type(theirs) and ours == theirs


def test_own_files_load_with_all_their_content(run):
    path = run / 'epoch_2.pth'
    ours = load_checkpoint_file(path)
    theirs = torch.load(path, weights_only=False)  # written by this test
    assert {'state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'message_hub'} <= set(
        ours
    )
    assert ours['message_hub']['log_scalars']
    assert_same(ours, theirs)
    assert ours['state_dict']._metadata == theirs['state_dict']._metadata


def test_numpy_content_loads(tmp_path):
    content = dict(
        half=np.arange(6, dtype='f2').reshape(2, 3),
        columns=np.asfortranarray(np.arange(6).reshape(2, 3)),
        swapped=np.arange(3, dtype='>i4'),
        flags=np.array([True, False]),
        single=np.float64(0.5),
        nothing=np.zeros((0, 4)),
    )
    torch.save(content, tmp_path / 'numbers.pth')
    loaded = load_checkpoint_file(tmp_path / 'numbers.pth')
    for name, value in content.items():
        assert loaded[name].dtype == value.dtype, name
        np.testing.assert_array_equal(loaded[name], value)


def test_mmengine_resumes_own_files_through_it(run, tmp_path):
    install_safe_loading()
    runner = toy_runner(tmp_path, 3, resume=True, load_from=str(run / 'epoch_2.pth'))
    runner.train()
    assert (runner.epoch, runner.iter) == (3, 6)
    assert len(runner.message_hub.get_scalar('train/loss').data[0]) == 6
    # The curves can be copied and written again.
    assert load_checkpoint_file(tmp_path / 'epoch_3.pth')['meta']['epoch'] == 3


# --- What attackers write -----------------------------------------------------------------------


class Call:
    """Pickles as a call of a function, and as attributes set on what it returns."""

    def __init__(self, function, *args, state=None):
        self.recipe = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.recipe


def saved(path, payload, **kwargs):
    torch.save(dict(state_dict=OrderedDict(a=torch.ones(1)), meta=payload), path, **kwargs)
    return path


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('function, name', [(os.system, r'\w+\.system'), (eval, 'eval')])
def test_calls_are_refused_and_not_run(tmp_path, function, name, zipped):
    ran = tmp_path / 'ran'
    argument = f'touch {ran}' if function is os.system else f'open({str(ran)!r}, "w")'
    path = saved(
        tmp_path / 'evil.pth',
        Call(function, argument),
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(CheckpointError, match=rf'evil\.pth was refused: it asks for {name}\.'):
        load_checkpoint_file(path)
    assert not ran.exists()
    # The file is what it seems to be: without safe loading it runs.
    torch.load(path, weights_only=False)
    assert ran.exists()


@pytest.mark.parametrize(
    'payload',
    [
        Call(getattr, HistoryBuffer, '__init__'),
        Call(getattr, HistoryBuffer.min, '__globals__'),
        Call(getattr, Call(getattr, HistoryBuffer, 'min'), '__globals__'),
        Call(getattr, OrderedDict(), 'update'),
    ],
)
def test_getattr_reaches_nothing(tmp_path, payload):
    path = saved(tmp_path / 'evil.pth', payload)
    with pytest.raises(CheckpointError, match=r'it asks for builtins\.getattr'):
        load_checkpoint_file(path)


def into_message_hub(buffer):
    """What mmengine does with the curves and notes of a checkpoint on resume."""
    state = dict(log_scalars=dict(a=buffer), runtime_info=dict(b=buffer), resumed_keys={})
    MessageHub('resumed').load_state_dict(state)


def test_buffer_that_acts_when_it_is_copied_is_refused(tmp_path):
    ran = tmp_path / 'ran'
    # A copy of the buffer asks `__reduce_ex__(4)` how to make one: by calling `tofile`.
    recipes = [0, 0, 0, 0, (Call(getattr, np.ones(1), 'tofile'), (str(ran),))]
    state = dict(
        vars(HistoryBuffer([1.0], [1])), __reduce_ex__=Call(getattr, recipes, '__getitem__')
    )
    path = saved(tmp_path / 'evil.pth', Call(HistoryBuffer, state=state))
    with pytest.raises(CheckpointError, match=r'it asks for builtins\.getattr'):
        load_checkpoint_file(path)
    assert not ran.exists()

    # An allow-list of the names that mmengine's files ask for is not enough.
    names = [HistoryBuffer, getattr, bytes, np.ndarray, np.dtype, np.ones(1).__reduce__()[0]]
    types = [type(np.dtype(code)) for code in ('f8', 'i8')]
    with torch.serialization.safe_globals(names + types):
        into_message_hub(torch.load(path, weights_only=True)['meta'])
    assert ran.exists()


def test_planted_attributes_of_a_buffer_do_not_arrive(tmp_path):
    state = dict(vars(HistoryBuffer([1.0], [1])), planted=1, __deepcopy__=HistoryBuffer)
    path = saved(tmp_path / 'evil.pth', dict(buffer=Call(HistoryBuffer, state=state)))
    buffer = load_checkpoint_file(path)['meta']['buffer']
    assert set(vars(buffer)) == set(vars(HistoryBuffer([1.0], [1])))
    into_message_hub(buffer)


def test_planted_attributes_of_a_dict_do_not_arrive(tmp_path):
    payload = OrderedDict(a=1)
    payload.__deepcopy__ = [1]
    loaded = load_checkpoint_file(saved(tmp_path / 'evil.pth', dict(payload=payload)))
    assert loaded['meta']['payload'] == payload
    assert vars(loaded['meta']['payload']) == {}


@pytest.mark.parametrize(
    'payload, reason',
    [
        (np.array([object], dtype=object), 'which are no numbers'),
        (np.zeros(1, dtype=[('a', 'O')]), 'which are no numbers'),
        (
            Call(HistoryBuffer, state=dict(max_length=1, _log_history=[1.0], _count_history=[1])),
            'odd HistoryBuffer',
        ),
        (Call(np.dtype, 'O'), 'which are no numbers'),
    ],
)
def test_odd_content_is_refused(tmp_path, payload, reason):
    with pytest.raises(CheckpointError, match=reason):
        load_checkpoint_file(saved(tmp_path / 'odd.pth', payload))


def test_configs_in_a_file_are_not_run(tmp_path):
    """On resume by mmengine, and by an inferencer that has to find the config by itself."""
    marker = tmp_path / 'ran'
    code = f'open({str(marker)!r}, "w").close()\nmodel = dict()'
    payload = dict(
        state_dict={},
        meta=dict(config=code, cfg=code, epoch=3),
        message_hub=dict(runtime_info=dict(cfg=code, iter=7)),
    )
    path = tmp_path / 'code.pth'
    torch.save(payload, path)
    install_safe_loading()
    loaded = CheckpointLoader.load_checkpoint(str(path), 'cpu')
    assert loaded['meta'] == dict(epoch=3)
    assert loaded['message_hub'] == dict(runtime_info=dict(iter=7))
    with pytest.raises(ValueError, match='Cannot find the config'):
        DetInferencer(weights=str(path), device='cpu')
    assert not marker.exists()
    # The texts can be read, as text.
    assert load_checkpoint_file(path) == payload


def test_what_others_allow_is_not_allowed_here(tmp_path):
    path = saved(tmp_path / 'evil.pth', Call(getattr, 'text', 'upper'))
    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([getattr]):
        assert torch.load(path, weights_only=True)['meta']() == 'TEXT'
        with pytest.raises(CheckpointError, match=r'builtins\.getattr'):
            load_checkpoint_file(path)
        assert torch.load(path, weights_only=True)['meta']() == 'TEXT'
    assert set(torch.serialization.get_safe_globals()) == set(before)


def damaged(path, how):
    content = path.read_bytes()
    if how == 'cut off':
        return content[: len(content) // 2]
    return {
        'empty': b'',
        'text': b'<html>not found</html>',
        'pickle': pickle.dumps([1], protocol=2)[:-1],
    }[how]


@pytest.mark.parametrize('how', ['cut off', 'empty', 'text', 'pickle'])
def test_damaged_files_are_told(tmp_path, run, how):
    path = tmp_path / 'bad.pth'
    path.write_bytes(damaged(run / 'epoch_2.pth', how))
    with pytest.raises(CheckpointError, match=r'bad\.pth could not be read .* cut off or damaged'):
        load_checkpoint_file(path)


# --- Where files come from ----------------------------------------------------------------------


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder, its address on this machine, and the paths that were asked for."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    folder, requests = tmp_path / 'site', []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            requests.append(self.path)

    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(Handler, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f'http://127.0.0.1:{server.server_port}', requests
    server.shutdown()
    server.server_close()


def test_every_scheme_is_answered_here():
    install_safe_loading()
    install_safe_loading()
    assert len(CheckpointLoader._schemes) >= 10
    assert set(CheckpointLoader._schemes.values()) == {load_from_weights_only}
    assert CheckpointLoader._get_checkpoint_loader('a/b.pth') is load_from_weights_only


def test_paths_and_urls_load_alike(site):
    folder, address, requests = site
    (folder / 'other').mkdir()
    saved(folder / 'model.pth', dict(epoch=1))
    saved(folder / 'other/model.pth', dict(epoch=2))
    install_safe_loading()

    def epoch(source):
        return CheckpointLoader.load_checkpoint(source, 'cpu')['meta']['epoch']

    assert epoch(str(folder / 'model.pth')) == epoch(f'file://{folder}/model.pth') == 1
    assert epoch(f'{address}/model.pth') == epoch(f'{address}/model.pth') == 1
    assert requests == ['/model.pth']  # the second time from the cache
    assert epoch(f'{address}/other/model.pth') == 2


def test_tables_of_models_lead_to_safe_loading(site, monkeypatch):
    folder, address, _ = site
    ran = folder / 'ran'
    saved(folder / 'evil.pth', Call(os.system, f'touch {ran}'))
    for table in ('get_external_models', 'get_mmcls_models', 'get_torchvision_models'):
        monkeypatch.setattr(mmengine_checkpoint, table, lambda: dict(net=f'{address}/evil.pth'))
    install_safe_loading()
    schemes = ('open-mmlab', 'openmmlab', 'mmcls', 'torchvision', 'modelzoo')
    for source in [f'{address}/evil.pth', *(f'{scheme}://net' for scheme in schemes)]:
        with pytest.raises(CheckpointError, match=r'was refused: it asks for \w+\.system'):
            CheckpointLoader.load_checkpoint(source, 'cpu')
    assert not ran.exists()
    with pytest.raises(CheckpointError, match='knows no model of that name'):
        load_checkpoint_file('open-mmlab://nonsense')


def test_what_cannot_be_had_is_told(site, tmp_path):
    _, address, _ = site
    with pytest.raises(CheckpointError, match=f'there is no such file .*{tmp_path}/no.pth'):
        load_checkpoint_file(tmp_path / 'no.pth')
    with pytest.raises(CheckpointError, match=r'could not be downloaded: .*404'):
        load_checkpoint_file(f'{address}/no.pth')
    for source in ('s3://bucket/a.pth', 'petrel://a.pth', 'cluster:s3://a.pth', 'pavi://a'):
        with pytest.raises(CheckpointError, match='give its path instead'):
            load_checkpoint_file(source)


def test_wrong_hash_of_a_download_is_told(site):
    folder, address, _ = site
    saved(folder / 'net-00000000.pth', {})
    with pytest.raises(CheckpointError, match=r'could not be downloaded: .*hash'):
        load_checkpoint_file(f'{address}/net-00000000.pth')


def test_safetensors_load(tmp_path, run):
    safetensors = pytest.importorskip('safetensors.torch')
    weights = load_checkpoint_file(run / 'epoch_2.pth')['state_dict']
    path = tmp_path / 'net.safetensors'
    safetensors.save_file(dict(weights), path)
    loaded = load_checkpoint_file(path)
    assert loaded.keys() == weights.keys()
    for name in weights:
        assert_same(loaded[name], weights[name])
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match='no valid safetensors file'):
        load_checkpoint_file(path)


def test_pretrained_weights_of_a_model_are_loaded_safely(tmp_path):
    install_safe_loading()
    path = saved(tmp_path / 'evil.pth', Call(os.system, f'touch {tmp_path / "ran"}'))
    model = Toy()
    model.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    with pytest.raises(CheckpointError, match='was refused'):
        model.init_weights()
    assert not (tmp_path / 'ran').exists()


def test_damaged_archive_with_valid_frame_is_told(tmp_path):
    path = tmp_path / 'bad.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', b'nonsense')
        archive.writestr('archive/version', b'3\n')
    with pytest.raises(CheckpointError, match='cut off or damaged'):
        load_checkpoint_file(path)


# --- What nobody thought of ---------------------------------------------------------------------


def test_changed_files_are_read_or_refused():
    """A short run of tools/dev/fuzz_readers.py; SECURITY.md says what a long one found."""
    command = [sys.executable, '-m', 'tools.dev.fuzz_readers', '--seconds', '12']
    root = Path(__file__).parents[1]
    environment = {**os.environ, 'PYTHONPATH': str(root / 'tests')}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, cwd=root, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(' | ') for line in done.stdout.splitlines() if line.startswith('| ')]
    rows.pop(0)  # the titles
    assert len(rows) == 6 and all(int(row[1].replace(',', '')) > 0 for row in rows), done.stdout
