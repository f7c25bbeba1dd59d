"""Checkpoints are data: what mmengine writes loads, and nothing in a file is ever run."""

import copy
import hashlib
import http.server
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import threading
import warnings
import zipfile
from collections import Counter, OrderedDict
from contextlib import nullcontext
from functools import partial, reduce
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
from mmengine.runner.checkpoint import CheckpointLoader, load_checkpoint
from torch.utils.data import Dataset

from mmfocal.engine import CheckpointError, install_safe_loading, load_checkpoint_file
from mmfocal.engine.checkpoints import latest_valid
from mmfocal.engine.hooks.non_finite import NonFiniteError, NonFiniteHook
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
    with torch.serialization.safe_globals([len]):  # of which we have no stand-in
        path = saved(tmp_path / 'evil.pth', Call(len, 'text'))
        assert torch.load(path, weights_only=True)['meta'] == 4
        with pytest.raises(CheckpointError, match=r'it asks for (builtins\.)?len'):
            load_checkpoint_file(path)
    assert set(torch.serialization.get_safe_globals()) == set(before)


REBUILD = torch._tensor._rebuild_from_type_v2


def planted(tensor, kind=torch.Tensor):
    """As pickles say that attributes are set on a tensor."""
    state = dict(__deepcopy__=[1], planted=1)
    function, arguments = tensor.__reduce_ex__(2)
    return Call(REBUILD, function, kind, arguments, state)


@pytest.mark.parametrize('zipped', [True, False])
def test_planted_attributes_of_a_tensor_do_not_arrive(tmp_path, zipped):
    tensor, parameter = torch.arange(3.0), torch.nn.Parameter(torch.ones(2))
    payload = dict(tensor=planted(tensor), again=tensor[1:], parameter=parameter)
    path = saved(tmp_path / 'evil.pth', payload, _use_new_zipfile_serialization=zipped)
    assert torch.load(path, weights_only=True)['meta']['tensor'].planted == 1
    loaded = load_checkpoint_file(path)['meta']
    assert vars(loaded['tensor']) == {} and torch.equal(copy.deepcopy(loaded['tensor']), tensor)
    assert type(loaded['parameter']) is torch.nn.Parameter and loaded['parameter'].requires_grad
    loaded['tensor'][1] = 7  # views of one storage stay so
    assert loaded['again'].tolist() == [7, 2]


# --- What takes more than its size --------------------------------------------------------------


def shared(make, times=60):
    value = make([1.0])
    for _ in range(times):
        value = make([value, value])
    return value


def arrays_of(data, times):
    make, dtype = np.zeros(0).__reduce__()[0], np.dtype('u1')
    state = (1, (len(data),), dtype, False, data)
    return [Call(make, np.ndarray, (0,), b'b', state=state) for _ in range(times)]


def within_limits(function):
    """Exit status of a process that may take 2 GiB and 20 seconds more."""
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        pages = int(Path('/proc/self/statm').read_text().split()[0])
        limit = pages * resource.getpagesize() + (2 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            function()
            os._exit(0)
        except CheckpointError as error:
            is_full = re.search(r'MemoryError|alloc', str(error))
            os._exit(12 if is_full else 10)
        finally:
            os._exit(11)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(sys.platform != 'linux', reason='asks Linux how much memory there is')
@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize(
    'payload, status',
    [
        (lambda: shared(list), 0),
        (lambda: shared(tuple), 0),
        (lambda: Call(set, [shared(tuple, 40)]), 10),
        (lambda: Call(OrderedDict, [[shared(tuple, 40), 1]]), 10),
        (lambda: Call(torch.Size, shared(list)), 10),
        (lambda: reduce(lambda inner, _: [inner], range(400), 1), 10),
        (lambda: reduce(lambda inner, _: (inner,), range(400), 1), 10),
        (lambda: torch.zeros(1).expand(1 << 32), 10),
        (lambda: [torch.zeros(100).expand(10, 100)] * 99, 0),
        (lambda: [torch.ones(100)[i:] for i in range(90)], 0),
        (lambda: Call(set, torch.zeros(1).expand(1 << 30)), 10),
        (lambda: Call(Counter, torch.zeros(1).expand(1 << 30)), 10),
        (lambda: Call(OrderedDict, [torch.zeros(1).expand(1 << 30)]), 10),
        (lambda: Call(OrderedDict, [['a', torch.ones(1)]]), 0),
        (lambda: Call(REBUILD, set, set, (torch.zeros(1).expand(1 << 30),), {}), 10),
        (lambda: arrays_of(bytes(50_000), times=10), 0),
        (lambda: arrays_of(bytes(50_000), times=1000), 10),
        (lambda: Call(bytearray, 1 << 20), 10),
        (lambda: Call(Counter, Call(bytearray, 1 << 33)), 10),
        (lambda: Call(torch.Tensor, 1 << 20), 10),
    ],
)
def test_reading_takes_no_more_than_the_file_does(tmp_path, payload, status, zipped):
    path = tmp_path / 'large.pth'
    write = partial(torch.save, dict(meta=payload()), path)
    try:
        write(_use_new_zipfile_serialization=zipped)
    except RecursionError:
        pytest.skip('this Python cannot write it')
    assert path.stat().st_size < 1 << 17
    assert within_limits(lambda: load_checkpoint_file(path)) == status


def with_program(path, program):
    """A checkpoint with another pickle in it."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in entries.items():
            archive.writestr(name, program if name.endswith('data.pkl') else content)
    return path


def bomb(late):
    """A list of twice the list before, 60 times, that PyTorch's reader calls, and so prints."""
    put = [b'q%c' % number for number in range(61)]
    get = [b'h%c' % number for number in range(61)]
    if late:  # each is filled after it is in the next
        program = b''.join(b']' + place for place in put)
        for inner, outer in zip(get[:-1], reversed(get[1:]), strict=True):
            program += b'0' + outer + (inner + b'a') * 2
    else:
        program = b']' + put[0]
        for inner, place in zip(get[:-1], put[1:], strict=True):
            program += b'0]' + place + (inner + b'a') * 2
    return b'\x80\x02' + program + b')R.'


def key():
    """A dictionary whose key is a tuple of twice the tuple before, 60 times."""
    twice = b''.join(b'q%ch%c\x86' % (number, number) for number in range(60))
    return b'\x80\x02}K\x01' + twice + b'K\x01s.'


@pytest.mark.skipif(sys.platform != 'linux', reason='asks Linux how much memory there is')
@pytest.mark.parametrize(
    'program',
    [bomb(False), bomb(True), key(), b'\x80\x02}K\x01' + b'\x85' * 500_000 + b'K\x01s.'],
    ids=['list', 'late', 'key', 'deep key'],
)
def test_what_would_be_visited_for_ever_is_refused(tmp_path, program):
    path = with_program(tmp_path / 'bomb.pth', program)
    assert within_limits(lambda: load_checkpoint_file(path)) == 10


def test_cycles_and_elements_that_are_not_there_are_named(tmp_path):
    cycle = dict(a=[])
    cycle['a'].append(cycle)
    with pytest.raises(CheckpointError, match=r'was refused: a part of it holds itself\.'):
        load_checkpoint_file(saved(tmp_path / 'cycle.pth', cycle))
    wide = saved(tmp_path / 'wide.pth', dict(w=torch.zeros(1).expand(3, 5000)))
    with pytest.raises(CheckpointError, match=r'was refused: with meta\.w it holds over 10 times'):
        load_checkpoint_file(wide)


def test_what_is_shared_stays_shared(tmp_path):
    both = [1.0, dict(a=torch.ones(2))]
    loaded = load_checkpoint_file(saved(tmp_path / 'shared.pth', [both, both]))['meta']
    assert loaded[0] is loaded[1] and loaded[0] is not both


# --- What is damaged ----------------------------------------------------------------------------


def damaged(path, how):
    content = path.read_bytes()
    if how == 'cut off':
        return content[: len(content) // 2]
    return {
        'empty': b'',
        'text': b'not found',
        'pickle': pickle.dumps([1], protocol=2)[:-1],
    }[how]


@pytest.mark.parametrize('how', ['cut off', 'empty', 'text', 'pickle'])
def test_damaged_files_are_told(tmp_path, run, how):
    path = tmp_path / 'bad.pth'
    path.write_bytes(damaged(run / 'epoch_2.pth', how))
    with pytest.raises(CheckpointError, match=r'bad\.pth could not be read .* cut off or damaged'):
        load_checkpoint_file(path)


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """A small checkpoint of a run."""
    path = tmp_path_factory.mktemp('small') / 'iter_3.pth'
    torch.save(dict(state_dict=dict(a=torch.ones(2)), optimizer={}, meta=dict(iter=3)), path)
    return path


def test_single_bits_cannot_change_what_is_loaded(tmp_path, small):
    """Every fifth; tools/dev/fuzz_readers.py --bit-flips tries all of a larger file."""
    path, good = tmp_path / 'iter_3.pth', small.read_bytes()
    expected, refused = load_checkpoint_file(small), 0
    for bit in range(0, 8 * len(good), 5):
        content = bytearray(good)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            loaded = load_checkpoint_file(path)
        except CheckpointError:
            refused += 1
        else:  # it lies between the entries, and nobody reads it
            assert_same(loaded, expected)
    assert refused > 8 * len(good) / 5 / 2


def test_odd_archives_are_refused(tmp_path, small):
    """Entries that are compressed, folders, there twice, or overlap."""
    path = tmp_path / 'odd.pth'
    with zipfile.ZipFile(small) as source:
        entries = {name: source.read(name) for name in source.namelist()}

    def write(kind):
        compression = zipfile.ZIP_DEFLATED if kind == 'compressed' else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, 'w', compression) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
            if kind == 'twice':
                archive.writestr(name.upper(), content)
            if kind == 'folder':
                archive.filelist[0].external_attr |= 0x10
            if kind == 'overlap':
                archive.writestr('large', bytes(1 << 20))
                archive.filelist += [copy.copy(e) for e in archive.filelist for _ in range(99)]
                for number, entry in enumerate(archive.filelist):
                    entry.filename += str(number)

    write('as it is')
    assert_same(load_checkpoint_file(path), load_checkpoint_file(small))
    for kind, reason in (
        *(('compressed', 'is compressed'), ('folder', 'is a folder')),
        *(('twice', 'a name is in it twice'), ('overlap', 'larger than the file')),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # zipfile's on names
            write(kind)
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint_file(path)


@pytest.mark.parametrize(
    'content, reason',
    [
        ([1], 'holds a list'),
        (torch.ones(1), 'holds a Tensor'),
        (dict(meta=dict(iter=3)), 'lacks the state of the optimizer'),
        (dict(optimizer=3, meta=dict(iter=3)), 'lacks the state of the optimizer'),
        (dict(optimizer={}, meta=[3]), r"meta\['iter'\]"),
        (dict(optimizer={}, meta=dict(iter='3')), r"meta\['iter'\]"),
        (dict(optimizer={}, meta=dict(iter=-3)), r"meta\['iter'\]"),
    ],
)
def test_odd_checkpoint_is_passed_over_with_its_name(tmp_path, small, content, reason):
    (tmp_path / 'iter_3.pth').write_bytes(small.read_bytes())
    torch.save(content, tmp_path / 'iter_5.pth')
    path, (note,) = latest_valid(tmp_path)
    assert path.name == 'iter_3.pth' and re.search(f'iter_5.pth is passed over: .*{reason}', note)


# --- What computes nothing ----------------------------------------------------------------------

MASK = torch.tensor([0.0, -torch.inf])


@pytest.mark.parametrize('container', ['state_dict', 'ema_state_dict', None])
@pytest.mark.parametrize(
    'name, tensor, is_fine',
    [
        ('head.weight', torch.tensor([1.0, torch.nan]), False),
        ('head.weight', torch.tensor([1.0, torch.inf]), False),
        ('head.weight', torch.tensor([1.0, -torch.inf]), False),
        ('head.weight', torch.ones(2, dtype=torch.int8), False),
        ('head.bias', torch.ones(2, dtype=torch.bool), False),
        ('attn.table.0', torch.ones(2, dtype=torch.int64), False),
        ('head.scale', torch.ones(2, dtype=torch.cfloat), False),
        ('head.weight', torch.ones(2).to_sparse(), False),
        ('head.weight', torch.ones(2, device='meta'), False),
        ('head.weight', torch.ones(2, dtype=torch.float8_e4m3fn), True),
        ('head.weight', torch.ones(2, dtype=torch.float16), True),
        ('bn.num_batches_tracked', torch.tensor(3), True),
        ('attn.relative_position_index', torch.arange(3), True),
        ('attn.mask', MASK, True),
        ('attn.mask', MASK > 0, True),
        ('head.empty', torch.ones(0), True),
    ],
)
def test_weights_of_whole_models_are_checked(tmp_path, name, tensor, is_fine, container):
    path, model = tmp_path / 'model.pth', torch.nn.Linear(2, 1)
    state = {name: tensor, 'bias': torch.tensor([3.0])}
    torch.save({container: state} if container else state, path)
    install_safe_loading()
    expected = nullcontext() if is_fine else pytest.raises(CheckpointError, match=re.escape(name))
    with expected:
        if container == 'ema_state_dict':  # which hooks take from what is loaded
            CheckpointLoader.load_checkpoint(str(path), 'cpu')
        else:
            load_checkpoint(model, str(path), 'cpu')
            assert model.bias.item() == 3


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    runner = toy_runner(tmp_path, 1)
    runner.register_hook(NonFiniteHook())
    runner.model.layer[0].weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r'layer\.0\.weight'):
        runner.save_checkpoint(
            str(tmp_path), 'iter_1.pth', save_optimizer=False, save_param_scheduler=False
        )
    assert not list(tmp_path.glob('*.pth'))


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


def test_runs_are_loaded_to_the_cpu_whatever_is_asked_for(tmp_path):
    """PyTorch leaves Adam's counters where they are loaded to."""
    install_safe_loading()
    state = {0: dict(step=torch.tensor(3.0), exp_avg=torch.ones(2))}
    torch.save(dict(state_dict={}, optimizer=dict(state=state)), tmp_path / 'run.pth')
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'run.pth'), map_location='meta')
    assert [each.device.type for each in loaded['optimizer']['state'][0].values()] == ['cpu'] * 2


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


def test_names_with_few_digits_hold_no_hash(site):
    folder, address, _ = site
    for name in ('focal-224.pth', 'focal-.pth', 'focal-1234567.pth'):
        saved(folder / name, dict(epoch=1))
        assert load_checkpoint_file(f'{address}/{name}')['meta']['epoch'] == 1


def test_each_url_has_a_file_that_is_compared_each_time(site):
    folder, address, _ = site
    saved(folder / 'net.pth', dict(epoch=1))
    digest = hashlib.sha256((folder / 'net.pth').read_bytes()).hexdigest()
    name = f'net-{digest[:8]}.pth'
    (folder / 'net.pth').rename(folder / name)
    load_checkpoint_file(f'{address}/{name}')
    (folder / 'other').mkdir()
    saved(folder / 'other' / name, dict(epoch=2))
    with pytest.raises(CheckpointError, match=r'could not be downloaded: .*hash'):
        load_checkpoint_file(f'{address}/other/{name}')
    (kept,) = (folder.parent / 'home').rglob('*.pth')
    saved(kept, dict(epoch=3))
    with pytest.raises(CheckpointError, match='not the file that was expected'):
        load_checkpoint_file(f'{address}/{name}')
    for version in (1, 2):
        saved(folder / 'net.pth', dict(epoch=version))
        loaded = load_checkpoint_file(f'{address}/net.pth?version={version}')
        assert loaded['meta']['epoch'] == version


def test_half_downloads_do_not_stay(site, monkeypatch):
    folder, address, _ = site
    saved(folder / 'net.pth', dict(epoch=1))
    length = (folder / 'net.pth').stat().st_size
    send = http.server.SimpleHTTPRequestHandler.copyfile
    half = lambda self, source, out: out.write(source.read(length // 2))  # noqa: E731
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, 'copyfile', half)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, 'protocol_version', 'HTTP/1.0')
    with pytest.raises(CheckpointError, match='could not be downloaded'):
        load_checkpoint_file(f'{address}/net.pth')
    assert not [path for path in (folder.parent / 'home').rglob('*') if path.is_file()]
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, 'copyfile', send)
    assert load_checkpoint_file(f'{address}/net.pth')['meta']['epoch'] == 1


@pytest.mark.parametrize('dtype, num_bytes', [('F4', 4), ('F8_E8M0', 8), ('F6_E2M3', 6), ('X', 8)])
def test_unknown_types_of_safetensors_are_told(tmp_path, dtype, num_bytes):
    pytest.importorskip('safetensors')
    header = json.dumps(dict(a=dict(dtype=dtype, shape=[8], data_offsets=[0, num_bytes])))
    path = tmp_path / 'odd.safetensors'
    path.write_bytes(len(header).to_bytes(8, 'little') + header.encode() + bytes(num_bytes))
    with pytest.raises(CheckpointError, match=rf'odd\.safetensors .*{dtype}'):
        load_checkpoint_file(path)


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
    assert len(rows) == 7 and all(int(row[1].replace(',', '')) > 0 for row in rows), done.stdout
