"""How runs start: what they resume, what they move out of the way, and one at a time."""

import errno
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmfocal.datasets import prepare_shapes
from mmfocal.engine import TestOptions, TrainOptions, load_config, settings, train
from mmfocal.engine import test as evaluate
from mmfocal.engine.checkpoints import CheckpointFolders, archive, checkpoint_of
from mmfocal.engine.lock import NAME, fcntl, owned
from mmfocal.engine.start import begun, decide
from mmfocal.utils.errors import UserError
from mmfocal.utils.files import written_atomically

FORK = multiprocessing.get_context('fork')
EPOCH = 5  # iterations


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The folder to which the paths of a test are relative; ``run`` in it is the work folder."""
    monkeypatch.chdir(tmp_path)
    Path('run').mkdir()
    return tmp_path


def write(*paths):
    """Checkpoints of the iterations that their names say; best ones lack the optimizer."""
    for path in map(Path, paths):
        number = int(re.findall(r'\d+', path.name)[-1])
        iteration = number * EPOCH if 'epoch' in path.name else number
        content = dict(meta=dict(iter=iteration, seed=3), state_dict={})
        if not path.name.startswith('best_'):
            content['optimizer'] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)


def damage(path):
    Path(path).write_bytes(Path(path).read_bytes()[:-50])


def config(hook=None, **options):
    return Config(
        dict(work_dir='run', default_hooks=dict(checkpoint=hook or {}), train_cfg={}, **options)
    )


def relative(paths):
    return sorted(os.path.relpath(path) for path in paths)


# --- Decisions ------------------------------------------------------------------------------

OLD = ['run/epoch_1.pth', 'run/epoch_2.pth', 'run/iter_12.pth']
BEST = 'run/best_score_epoch_1.pth'
OUTER = 'other/epoch_1.pth'
ERROR = UserError


# Rows of the table in decide's docstring, in its order: option, config, checkpoints there; then
# what is resumed, which weights are loaded, and what is archived, or the error.
@pytest.mark.parametrize(
    'option, said, present, resumed, weights, archived',
    [
        (None, {}, [], None, None, []),
        (None, {}, [*OLD, BEST], None, None, [*OLD, BEST]),
        (None, dict(resume=False, load_from=OUTER), OLD, None, OUTER, OLD),
        (None, dict(load_from='http://a/b.pth'), OLD, None, 'http://a/b.pth', OLD),
        (None, dict(load_from='no.pth'), OLD, ERROR, None, 'load_from: there is no file no.pth'),
        (None, dict(resume=True), [*OLD, BEST], OLD[2], None, []),
        (None, dict(resume='auto'), OLD, OLD[2], None, []),
        (None, dict(auto_resume=True), OLD, OLD[2], None, []),
        (None, dict(resume=True), [], None, None, []),
        (None, dict(resume=True, load_from=OUTER), OLD, OUTER, None, OLD),
        (None, dict(resume=True, load_from=f'file://{OUTER}'), OLD, OUTER, None, OLD),
        (None, dict(resume=OUTER), OLD, OUTER, None, OLD),
        (None, dict(resume_from=OUTER), OLD, OUTER, None, OLD),
        ('auto', {}, [*OLD, BEST], OLD[2], None, []),
        ('auto', dict(load_from=OUTER), OLD, OLD[2], None, []),
        ('auto', dict(resume=True, load_from=OUTER), OLD, OLD[2], None, []),
        ('auto', {}, ['run/epoch_1.pth damaged'], ERROR, None, 'no checkpoint that is whole'),
        ('auto', {}, [*OLD, 'run/iter_14.pth damaged'], OLD[2], None, []),
        ('auto', {}, ['last/step_7.pth', 'last/step_5.pth'], 'last/step_7.pth', None, []),
        ('auto', {}, ['last/step_5.pth', OLD[0]], OLD[0], None, []),
        ('auto', {}, [], None, None, []),
        ('auto', dict(load_from=OUTER), [BEST], None, OUTER, [BEST]),
        ('auto', dict(resume=True, load_from=OUTER), [BEST], OUTER, None, [BEST]),
        ('auto', dict(load_from='no.pth'), [], ERROR, None, 'load_from: there is no file no.pth'),
        (OLD[0], {}, [*OLD, BEST], OLD[0], None, OLD[1:]),
        (OLD[1], {}, [*OLD, 'run/best_score_iter_11.pth'], OLD[1], None, [
            OLD[2], 'run/best_score_iter_11.pth'
        ]),
        (OLD[2], dict(resume=True, load_from=OUTER), [*OLD, BEST], OLD[2], None, []),
        (OUTER, {}, OLD, OUTER, None, OLD),
        (Path(OUTER), {}, OLD, OUTER, None, OLD),
        (f'file://{OUTER}', {}, OLD, OUTER, None, OLD),
        ('http://a/b.pth', {}, OLD, 'http://a/b.pth', None, OLD),
        ('no.pth', {}, OLD, ERROR, None, 'resume: there is no file no.pth'),
    ],
)  # fmt: skip
def test_table_of_decisions(option, said, present, resumed, weights, archived):
    write(OUTER)
    for path in present:
        write(path.split()[0])
        if path.endswith('damaged'):
            damage(path.split()[0])
        if path.startswith('last'):
            Path('run/last_checkpoint').write_text(path)
    cfg = config(**said)
    before = cfg.to_dict()
    if resumed is ERROR:
        with pytest.raises(UserError, match=archived):
            decide(cfg, option)
    else:
        start = decide(cfg, option)
        path = start.resume_from
        assert (path if path is None or '://' in path else os.path.relpath(path)) == resumed
        assert start.load_from == weights
        assert relative(start.archived) == sorted(archived)
    assert cfg.to_dict() == before


def test_damaged_checkpoints_are_named():
    write('run/iter_4.pth', 'run/iter_8.pth')
    damage('run/iter_8.pth')
    assert 'iter_8.pth is passed over' in ''.join(decide(config(), 'auto').notes)


def test_new_run_moves_checkpoints_of_an_earlier_one_aside():
    write(*OLD, BEST)
    Path('run/last_checkpoint').write_text(OLD[2])
    Path('run/other.pth').touch()
    before = {Path(path).name: Path(path).read_bytes() for path in (*OLD, BEST)}
    with begun(config(), None) as start:
        (aside,) = Path('run').glob('earlier_*')
        assert str(aside.absolute()) in ''.join(start.notes)
    assert {path.name: path.read_bytes() for path in aside.glob('*.pth')} == before
    assert (aside / 'last_checkpoint').is_file()
    assert relative(Path('run').glob('*.*')) == ['run/other.pth', f'run/{NAME}']


@pytest.mark.parametrize(
    'said',
    [
        dict(load_from='run/epoch_1.pth'),
        dict(model=dict(teacher=[dict(init_cfg=dict(checkpoint='file://run/epoch_1.pth'))])),
        dict(model=dict(pretrained='link.pth')),
        dict(model=dict(weights=('x', './run/../run/epoch_1.pth'))),
    ],
)
def test_files_that_the_config_names_stay(said):
    write(*OLD)
    Path('link.pth').symlink_to('run/epoch_1.pth')
    content = Path(OLD[0]).read_bytes()
    with begun(config(**said), None):
        (aside,) = Path('run').glob('earlier_*')
    assert relative(Path('run').glob('*.pth')) == [OLD[0]]
    with open(OLD[0], 'r+b') as file:
        file.write(b'another run that writes in place')
    assert (aside / 'epoch_1.pth').read_bytes() == content
    assert {path.name for path in aside.iterdir()} == {'epoch_1.pth', 'epoch_2.pth', 'iter_12.pth'}


def test_named_file_is_no_checkpoint_of_the_run_until_that_writes_one():
    write(*OLD)
    cfg = config(load_from=OLD[0])
    with begun(cfg, None):
        pass
    for option in ('auto', None):  # killed before its first checkpoint
        start = decide(cfg, option)
        assert (start.resume_from, start.load_from, start.archived) == (None, OLD[0], ())
    torch.save(dict(meta=dict(iter=5), optimizer={}, state_dict={}), OLD[0])
    assert decide(cfg, 'auto').resume_from == os.path.abspath(OLD[0])


def test_starts_within_a_second_archive_into_folders_of_their_own(monkeypatch):
    monkeypatch.setattr(time, 'strftime', lambda *_: 'earlier_now')
    for name in ('epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth'):
        write(f'run/{name}')
        with begun(config(), None):
            pass
    assert relative(Path('run').glob('earlier*')) == [
        'run/earlier_now', 'run/earlier_now_2', 'run/earlier_now_3'
    ]  # fmt: skip


def test_what_cannot_be_archived_stays(monkeypatch):
    write(*OLD)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr('shutil.copyfileobj', full)
    with pytest.raises(UserError, match='No space left'):
        archive([Path(path) for path in OLD], also_in_place=[Path(OLD[1])])
    assert all(map(os.path.exists, OLD)) and not list(Path('run').glob('earlier_*/*'))


# --- Where checkpoints are ------------------------------------------------------------------


@pytest.mark.parametrize(
    'cfg, where, names',
    [
        (config(dict(out_dir='out')), 'out/run', ['epoch_1.pth', 'iter_7.pth']),
        (config(dict(filename_tmpl='step_{:04d}.pth')), 'run', ['step_0004.pth', 'step_0012.pth']),
        (config(dict(filename_tmpl='{}.ckpt')), 'run', ['9.ckpt', '10.ckpt']),
        (
            config(custom_hooks=[dict(type='mmengine.CheckpointHook', out_dir='out')]),
            'out/run',
            ['iter_8.pth'],
        ),
    ],
    ids=['out_dir', 'template', 'other ending', 'second hook'],
)
def test_checkpoints_are_found_where_hooks_write_them(cfg, where, names):
    best = [f'{where}/best_coco_bbox_mAP_{name}' for name in names[:1]]
    paths = [f'{where}/{name}' for name in names]
    write(*paths, *best)
    found = decide(cfg, 'auto').resume_from
    assert os.path.relpath(found) == paths[-1]
    with begun(cfg, None):
        assert not [path for path in (*paths, *best) if os.path.exists(path)]
    (aside,) = Path(where).glob('earlier_*')
    assert {path.name for path in aside.iterdir()} == {Path(path).name for path in paths + best}


def test_out_dir_that_is_the_work_folder_is_used_as_it_is(here):
    for out_dir in (str(here / 'run'), None):
        folders = CheckpointFolders.of(config(dict(out_dir=out_dir)))
        assert folders.paths == (here / 'run',)


def test_other_storage_is_told_and_followed_by_what_the_run_noted():
    cfg = config(dict(out_dir='s3://bucket/a'))
    start = decide(cfg, 'auto')
    assert start.resume_from is None and 's3://bucket/a/run' in ''.join(start.notes)
    Path('run/last_checkpoint').write_text('s3://bucket/a/run/epoch_3.pth')
    assert decide(cfg, 'auto').resume_from == 's3://bucket/a/run/epoch_3.pth'
    assert relative(decide(cfg, None).archived) == ['run/last_checkpoint']
    assert checkpoint_of('run') == 's3://bucket/a/run/epoch_3.pth'


def test_checkpoint_of_a_work_folder():
    with pytest.raises(UserError, match='no checkpoint in run'):
        checkpoint_of('run')
    write('elsewhere/run/step_9.pth', 'elsewhere/run/step_10.pth')
    Path('run/last_checkpoint').write_text('elsewhere/run/step_9.pth')
    assert os.path.relpath(checkpoint_of('run')) == 'elsewhere/run/step_10.pth'
    write('elsewhere/run/best_score_step_9.pth')
    assert os.path.relpath(checkpoint_of('run')) == 'elsewhere/run/best_score_step_9.pth'
    write('run/epoch_1.pth')
    assert os.path.relpath(checkpoint_of('run')) == 'run/epoch_1.pth'
    assert checkpoint_of(OLD[0]) == OLD[0]


def test_folder_that_is_reached_in_two_ways_is_one():
    Path('link').symlink_to('.', target_is_directory=True)
    cfg = config(dict(out_dir=os.path.abspath('link')))
    assert CheckpointFolders.of(cfg).paths == (Path('run').absolute(),)
    write('run/epoch_1.pth')
    with begun(cfg, None) as start:
        assert not [note for note in start.notes if 'taken over' in note]
    assert len(list(Path('run').glob('earlier_*/epoch_1.pth'))) == 1


# --- Leftovers ------------------------------------------------------------------------------


def write_slowly(path):
    with written_atomically(path) as file:
        file.write(b'a part of it')
        file.flush()
        time.sleep(60)


def wait_for(folder, pattern):
    deadline = time.monotonic() + 60
    while not any(Path(folder).glob(pattern)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_leftovers_of_killed_writes_are_removed():
    cfg = config(dict(out_dir='out', filename_tmpl='step_{}.pth'))
    Path('out/run').mkdir(parents=True)
    for path in map(
        Path, ('out/run/step_5.pth', 'out/run/best_a_step_5.pth', 'run/last_checkpoint')
    ):
        writer = FORK.Process(target=write_slowly, args=(path,))
        writer.start()
        wait_for(path.parent, f'.{path.name}.*')
        writer.kill()
        writer.join()
    older = ['run/.iter_3.pth.0123abcd', 'out/run/.epoch_3.pth.0123abcd']
    others = ['run/.hidden', 'run/.notes.pth.0123abcd', 'run/.iter_3.pth.0123abcdef', 'run/.x.swp']
    for path in (*older, *others):
        Path(path).touch()
    with begun(cfg, 'auto') as start:
        left = [*Path('run').glob('.*'), *Path('out/run').glob('.*')]
    assert relative(left) == sorted(others)
    assert '.iter_3.pth.0123abcd' in ''.join(start.notes)


# --- One at a time --------------------------------------------------------------------------

needs_locks = pytest.mark.skipif(fcntl is None, reason='no POSIX record locks')


def hold(folder, told, has_child=False):
    with owned(Path(folder)):
        child = FORK.Process(target=time.sleep, args=(60,))
        if has_child:
            child.start()
        told.put(child.pid if has_child else None)
        time.sleep(60)


@pytest.fixture
def holder():
    """Starts a process that holds a folder; gives it and what it has told."""
    started = []

    def start(folder, **options):
        told = FORK.Queue()
        process = FORK.Process(target=hold, args=(folder, told), kwargs=options)
        process.start()
        started.append(process)
        return process, told.get(timeout=60)

    yield start
    for process in started:
        process.kill()
        process.join()


@needs_locks
@pytest.mark.parametrize('held, hook', [('run', {}), ('out/run', dict(out_dir='out'))])
def test_folder_of_a_running_process_is_refused(holder, held, hook):
    process, _ = holder(held)
    write('run/epoch_1.pth')
    Path('run/.epoch_1.pth.0123abcd').touch()
    with pytest.raises(UserError) as refused, begun(config(hook), None):
        raise AssertionError('it was got')
    content = json.loads(Path(held, NAME).read_text())
    for part in (f'process {process.pid} ', content['host'], content['since'], held):
        assert part in str(refused.value)
    assert content['process'] == process.pid and sys.executable in content['command']
    assert Path('run/epoch_1.pth').exists() and Path('run/.epoch_1.pth.0123abcd').exists()


@needs_locks
def test_folder_of_a_killed_process_is_taken_over(holder):
    process, child = holder('run', has_child=True)
    process.kill()
    process.join()
    try:
        os.kill(child, 0)  # a loader worker that still lives has no part in the lock
        for expected in (True, False):  # the second start has nobody to take over from
            with begun(config(), None) as start:
                told = [note for note in start.notes if 'taken over' in note]
                assert bool(told) == expected
                assert not told or f'process {process.pid} ' in told[0]
    finally:
        os.kill(child, signal.SIGKILL)
    assert Path('run', NAME).read_bytes() == b''


@needs_locks
@pytest.mark.parametrize('content', [b'{"process": 1', b'[]', b'process 1', b'\xff\xfe'])
def test_lock_file_with_odd_content_is_taken_over(content):
    Path('run', NAME).write_bytes(content)
    with owned(Path('run')) as note:
        assert 'taken over' in note
    with owned(Path('run')) as note:
        assert note is None


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, None])
def test_file_systems_without_locks_are_told(monkeypatch, number):
    def lockf(*_):
        raise OSError(number, os.strerror(number))

    if number is None:
        monkeypatch.setattr('mmfocal.engine.lock.fcntl', None)  # as on Windows
    elif fcntl is not None:
        monkeypatch.setattr(fcntl, 'lockf', lockf)
    with begun(config(), None) as start:
        assert 'could not be locked' in ''.join(start.notes)


@needs_locks
def test_one_process_has_a_folder_once():
    Path('link').symlink_to('run', target_is_directory=True)
    for folder in ('run', 'link'):
        with owned(Path('run')):
            with (
                pytest.raises(UserError, match='another run of this process'),
                owned(Path(folder)),
            ):
                raise AssertionError('it was got')
            assert Path('run', NAME).read_bytes()  # still locked
    with owned(Path('run')) as note:
        assert note is None


@needs_locks
def test_lock_that_is_a_link_leaves_the_other_file():
    Path('other').write_text('content')
    Path('run', NAME).symlink_to('../other')
    with pytest.raises(UserError, match='could not be written'), owned(Path('run')):
        raise AssertionError('it was got')
    assert Path('other').read_text() == 'content'


@needs_locks
def test_full_disk_is_told_by_the_lock(monkeypatch):
    def pwrite(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr('os.pwrite', pwrite)
    with pytest.raises(UserError, match='No space left'), owned(Path('run')):
        raise AssertionError('it was got')


@needs_locks
def test_others_who_may_write_into_the_folder_may_lock_it():
    for mode in (0o775, 0o755):
        folder = Path(f'run/{mode}')
        folder.mkdir()
        folder.chmod(mode)
        with owned(folder):
            pass
        assert (folder / NAME).stat().st_mode & 0o777 == mode & 0o666


def test_problems_with_earlier_checkpoints_are_told(monkeypatch):
    def fail(*_):
        raise PermissionError(errno.EACCES, 'Permission denied')

    write('run/epoch_1.pth')
    monkeypatch.setattr('mmfocal.engine.start.decide', fail)
    with pytest.raises(UserError, match='Permission denied'), begun(config(), None):
        raise AssertionError('it was got')
    assert Path('run/epoch_1.pth').exists()


def test_folder_that_cannot_be_made_is_told():
    Path('file').touch()
    with pytest.raises(UserError, match='can be no folder'), owned(Path('file/run')):
        raise AssertionError('it was got')


@needs_locks
def test_the_lock_ends_with_an_error():
    with pytest.raises(ZeroDivisionError), owned(Path('run')):
        raise ZeroDivisionError
    assert Path('run', NAME).read_bytes() == b''


def decide_together(rank, results, option):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{os.getcwd()}/store', rank=rank, world_size=2
    )
    if rank == 0:
        time.sleep(0.5)  # the other one would see what is there before
    try:
        with begun(config(), option) as start:
            results.put((start.resume_from, start.load_from, len(start.archived)))
            torch.distributed.barrier()
    except UserError as error:
        results.put(str(error).splitlines()[0])


@pytest.mark.parametrize('option', [None, 'auto', 'no.pth'])
def test_first_process_decides_for_all(option):
    write('run/iter_4.pth', 'run/iter_8.pth')
    results = FORK.Queue()
    processes = [
        FORK.Process(target=decide_together, args=(rank, results, option)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    first, second = (results.get(timeout=100) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert first == second
    newest = os.path.abspath('run/iter_8.pth')
    assert first == {None: (None, None, 2), 'auto': (newest, None, 0)}.get(option, first)
    assert option != 'no.pth' or 'no file no.pth' in first


# --- Whole runs -----------------------------------------------------------------------------

TOYS = """
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS

@DATASETS.register_module(force=True)
class StartDataset(BaseDataset):
    METAINFO = dict(classes=('a',))
    def load_data_list(self):
        return [dict(number=number) for number in range(4)]
    def prepare_data(self, idx):
        return dict(inputs=torch.full((2,), float(idx)))

@MODELS.register_module(force=True)
class StartModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
    def forward(self, inputs, mode='tensor'):
        out = self.layer(torch.stack(inputs))
        return dict(loss=out.square().mean()) if mode == 'loss' else list(out)

@METRICS.register_module(force=True)
class StartMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += data_samples
    def compute_metrics(self, results):
        return dict(score=1.0)
"""
TOY_CONFIG = """
custom_imports = dict(imports={imports})
work_dir = 'run'
model = dict(type='StartModel')
loader = dict(batch_size=2, num_workers=0, dataset=dict(type='StartDataset'))
train_dataloader = dict(sampler=dict(type='DefaultSampler', shuffle=True), **loader)
val_dataloader = dict(sampler=dict(type='DefaultSampler', shuffle=False), **loader)
test_dataloader = val_dataloader
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
val_cfg = test_cfg = dict()
val_evaluator = test_evaluator = dict(type='StartMetric')
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
stop = dict(monitor='score', rule='greater', patience=9)
custom_hooks = [dict(type='EMAHook'), dict(type='EarlyStoppingHook', **stop)]
"""


@pytest.fixture
def toy(here, monkeypatch):
    """Path of a config of the kind that users of mmengine write."""
    Path('start_toys.py').write_text(TOYS)
    Path('toy.py').write_text(TOY_CONFIG.format(imports="['start_toys']"))
    monkeypatch.syspath_prepend(here)
    return 'toy.py'


LAZY_CONFIG = """
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop
from start_toys import StartDataset, StartModel

work_dir = 'run'
default_scope = 'mmengine'
model = dict(type=StartModel)
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler'),
    dataset=dict(type=StartDataset))
train_cfg = dict(type=IterBasedTrainLoop, max_iters=2)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(checkpoint=dict(type=CheckpointHook, by_epoch=False, interval=1))
custom_hooks = [dict(type=EMAHook)]
"""
DETECTOR_CONFIG = """
_base_ = 'mmfocal::mmdet/focal_retinanet_shapes.py'
work_dir = 'run'
loader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(data_root='shapes', num_images=dict(train=2, val=1)))
train_dataloader = dict(batch_size=1, **loader)
val_dataloader = dict(**loader)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='shapes/annotations/instances_val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_iters=2, val_interval=2)
model = dict(test_cfg=dict(score_thr=0.5))
default_hooks = dict(checkpoint=dict(interval=1))
"""
STOCK = """
import sys
import mmfocal
from mmengine.config import Config
from mmengine.runner import Runner

for path in sys.argv[1:]:
    runner = Runner.from_cfg(Config.fromfile(path))
    runner.train()
    print('trained', runner.iter, 'of', type(runner.train_loop).__name__)
"""


def hooks_of(cfg):
    return sorted(hook['type'] for hook in cfg.custom_hooks)


def test_written_config_is_that_of_a_new_run(toy):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    options = TrainOptions(ema=True, log_to=())
    train(load_config(toy), options)
    runner = train(load_config(toy, {'train_cfg.max_epochs': 3}), TrainOptions('run', 'auto'))
    assert (runner.epoch, runner._resume) == (3, True)
    dumped = Config.fromfile('run/toy.py')
    assert not dumped.get('resume') and not dumped.get('load_from')
    # The same process may own the folder again, and leaves signals as they were.
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before
    again = train(load_config('run/toy.py'), options)
    assert again.epoch == 3 and not again._resume
    assert hooks_of(again.cfg) == hooks_of(dumped)
    (aside,) = Path('run').glob('earlier_*')
    assert {'epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth'} <= {path.name for path in aside.iterdir()}
    log = ''.join(path.read_text() for path in Path('run').glob('*/*.log'))
    assert str(aside.absolute()) in log and 'may not continue exactly' not in log


def test_config_that_says_resume_keeps_saying_it(toy):
    train(load_config(toy))
    cfg = load_config(toy, {'resume': True, 'load_from': 'run/epoch_1.pth'})
    runner = train(cfg)
    assert runner.iter == 4 and Path('run/epoch_1.pth').exists()
    dumped = Config.fromfile('run/toy.py')
    assert (dumped.resume, dumped.load_from) == (True, 'run/epoch_1.pth')


def test_tested_checkpoint_is_not_written_into_the_config(toy):
    train(load_config(toy))
    assert evaluate(load_config(toy), TestOptions('run')) == dict(score=1.0)
    assert not Config.fromfile('run/toy.py').get('load_from')


def test_written_configs_are_trained_again_here_and_by_mmengine(toy):
    prepare_shapes('shapes', num_images=dict(train=2, val=1))
    configs = {
        'stock': (TOY_CONFIG.format(imports="'start_toys'"), {}),
        'classes': (LAZY_CONFIG, {}),
        'ours': (DETECTOR_CONFIG, dict(ema=True, val_loss=True, early_stop=2)),
    }
    expected = []
    for name, (text, options) in configs.items():
        Path(f'{name}.py').write_text(text)
        options = TrainOptions(f'run/{name}', log_to=(), data_check=False, **options)
        first = train(load_config(f'{name}.py'), options)
        second = train(load_config(f'run/{name}/{name}.py'), options)
        for key in ('custom_hooks', 'default_hooks', 'train_cfg', 'custom_imports'):
            assert second.cfg.to_dict()[key] == first.cfg.to_dict()[key], name
        kinds = [type(hook).__name__ for hook in second.hooks]
        assert len(kinds) == len(set(kinds)) and 'RunStateHook' in kinds, name
        loop = type(first.train_loop).__name__
        assert loop.startswith('Resumable') and type(second.train_loop).__name__ == loop, name
        expected.append(f'trained {first.iter} of {loop}')

    command = [sys.executable, '-c', STOCK, *(f'run/{name}/{name}.py' for name in configs)]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.getcwd()])
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': path}
    )
    assert result.returncode == 0, result.stderr[-3000:]
    trained = [line for line in result.stdout.splitlines() if line.startswith('trained')]
    assert trained == expected


@pytest.mark.parametrize(
    'given, expected',
    [
        (None, ['mmfocal.engine']),
        (dict(imports='own'), ['own', 'mmfocal.engine']),
        (dict(imports=('own', 'mmfocal')), ['own', 'mmfocal', 'mmfocal.engine']),
        (dict(imports=None), ['mmfocal.engine']),
        (dict(imports=['mmfocal.engine', 'own']), ['mmfocal.engine', 'own']),
    ],
    ids=str,
)
def test_written_config_names_what_it_needs(given, expected):
    cfg = config()
    if given is not None:
        cfg.custom_imports = dict(given, allow_failed_imports=False)
    for _ in range(2):
        settings.set_reliability(cfg)
        assert cfg.custom_imports.imports == expected
    assert given is None or cfg.custom_imports.allow_failed_imports is False


def test_options_take_the_place_of_equal_hooks():
    cfg = config(
        default_scope='mmseg',
        val_dataloader=dict(dataset=dict(type='ShapesDataset')),
        val_evaluator=dict(type='IoUMetric'),
        custom_hooks=[dict(type='EarlyStoppingHook', monitor='own'), dict(type='MyHook')],
    )
    for patience in (3, 5):
        settings.set_stopping(cfg, save_best=False, early_stop=patience)
    stopping = [hook for hook in cfg.custom_hooks if hook.type == 'EarlyStoppingHook']
    assert [(hook.monitor, hook.get('patience')) for hook in stopping] == [
        ('own', None), ('mIoU', 5)
    ]  # fmt: skip
    assert dict(type='MyHook') in cfg.custom_hooks


def test_run_that_fails_leaves_signals_and_the_folder(toy, monkeypatch):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]

    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr('mmengine.hooks.EMAHook.after_train_iter', fail)
    with pytest.raises(ZeroDivisionError):
        train(load_config(toy))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before
    assert Path('run', NAME).read_bytes() == b''


def test_processes_of_mpi_have_the_gpu_of_their_number(monkeypatch):
    joined = []
    monkeypatch.setattr(settings, 'init_dist', lambda launcher, **_: joined.append(launcher))
    monkeypatch.setenv('MASTER_ADDR', 'localhost')
    monkeypatch.setenv('LOCAL_RANK', '0')  # as without torchrun
    monkeypatch.delenv('OMPI_COMM_WORLD_LOCAL_RANK', raising=False)
    with pytest.raises(UserError, match='OMPI_COMM_WORLD_LOCAL_RANK'):
        settings.set_launcher(Config(), 'mpi')
    monkeypatch.setenv('OMPI_COMM_WORLD_LOCAL_RANK', '3')
    settings.set_launcher(Config(), 'mpi')
    assert joined == ['mpi'] and os.environ['LOCAL_RANK'] == '3'


def test_config_without_a_file_needs_a_work_folder():
    with pytest.raises(UserError, match='work_dir'):
        settings.set_work_dir(Config(dict()), None)
