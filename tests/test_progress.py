"""Progress: a bar at the bottom of a terminal that log lines go above, and nothing elsewhere."""

import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MMLogger

from mmfocal.engine.hooks.progress import live_progress
from mmfocal.utils.progress import ProgressBar, is_live_terminal, progress_bar

COLUMNS = 90


class Terminal:
    """One end of a pseudo terminal; what is written to the other, and what a user sees of it."""

    def __init__(self):
        self.master, self.slave = pty.openpty()
        size = struct.pack('HHHH', 24, COLUMNS, 0, 0)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, size)
        self.file = os.fdopen(self.slave, 'w')
        self.written = b''
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        while True:
            try:
                part = os.read(self.master, 1 << 16)
            except OSError:  # the other end is closed everywhere
                break
            if not part:
                break
            self.written += part

    def close(self):
        """Returns lines as they stand at the end, and all texts that the last one ever had."""
        self.file.close()
        self.reader.join()
        os.close(self.master)
        lines, shown, column = [''], [], 0
        for token in re.findall(r'\r\n|\r|\x1b\[[\d;]*\w|[^\r\n\x1b]+', self.written.decode()):
            if token == '\r\n':
                lines.append('')
            elif token[0] not in '\r\x1b':  # colours
                lines[-1] = lines[-1][:column] + token + lines[-1][column + len(token) :]
                shown.append(lines[-1].rstrip())
            column = (
                column + len(token) if token[0] not in '\r\x1b' else column * (token[0] != '\r')
            )
        return [line.rstrip() for line in lines], shown


@pytest.fixture
def terminal(monkeypatch):
    """A terminal that is standard error."""
    terminal = Terminal()
    monkeypatch.delenv('CI', raising=False)
    monkeypatch.setenv('TERM', 'xterm')
    # pytest sets those of sys for each phase.
    streams = SimpleNamespace(stderr=terminal.file, modules={})
    monkeypatch.setattr('mmfocal.utils.progress.sys', streams)
    monkeypatch.setattr('mmfocal.engine.hooks.progress._log_is_piped', lambda: False)
    return terminal


@pytest.fixture
def every_step(monkeypatch):
    """Each step is worth a drawing."""
    init = ProgressBar.__init__
    monkeypatch.setattr(
        ProgressBar, '__init__', lambda self, **kw: init(self, **{**kw, 'mininterval': 0})
    )


@pytest.mark.parametrize('total', [3, None])
def test_bars_disappear_and_start_no_thread(terminal, every_step, total):
    threads = threading.active_count()
    with progress_bar('Drawing', total, 'image') as bar:
        for _ in range(3):
            bar.update()
        assert threading.active_count() == threads  # forked processes would not have it
    lines, shown = terminal.close()
    assert lines == ['']
    assert any(text.startswith('Drawing: 100%|' if total else 'Drawing: 3image') for text in shown)
    assert any('3/3 [' in text for text in shown) == bool(total)
    assert max(map(len, shown)) <= COLUMNS


@pytest.mark.parametrize('name, value', [('TERM', 'dumb'), ('CI', 'true'), (None, None)])
def test_there_is_no_bar_where_nobody_looks(terminal, monkeypatch, name, value):
    assert is_live_terminal()
    if name is None:
        streams = SimpleNamespace(stderr=io.StringIO(), modules={})
        monkeypatch.setattr('mmfocal.utils.progress.sys', streams)
    else:
        monkeypatch.setenv(name, value)
    assert not is_live_terminal()
    with progress_bar('Drawing', 3) as bar:
        bar.update()
    with live_progress(SimpleNamespace()):  # nothing of the runner is touched
        pass
    assert terminal.close() == ([''], [])


@pytest.mark.parametrize('is_kernel', [True, False])
def test_notebooks_have_a_bar_without_a_terminal(monkeypatch, every_step, is_kernel):
    config = {'IPKernelApp': {}} if is_kernel else {'TerminalIPythonApp': {}}
    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(config=config))
    streams = SimpleNamespace(stderr=io.StringIO(), modules={'IPython': ipython})
    monkeypatch.setattr('mmfocal.utils.progress.sys', streams)
    monkeypatch.setattr('mmfocal.utils.progress.IProgress', None)  # without ipywidgets
    runner = training_runner()
    runner.register_hook(None)
    with live_progress(runner):
        if is_kernel:
            runner.hook.after_train_iter(runner, 4, outputs=dict(loss=torch.tensor(1.25)))
        assert (runner.hook is not None) == is_kernel
    assert ('Epoch 3 of 12' in streams.stderr.getvalue()) == is_kernel


@pytest.mark.parametrize('name, value', [('_log_is_piped', True), ('is_main_process', False)])
def test_other_processes_and_piped_logs_get_no_bar(terminal, monkeypatch, name, value):
    monkeypatch.setattr(f'mmfocal.engine.hooks.progress.{name}', lambda: value)
    with live_progress(SimpleNamespace()):
        pass
    assert terminal.close() == ([''], [])


def training_runner():
    logger = MMLogger('progress')
    runner = SimpleNamespace(epoch=2, max_epochs=12, iter=44, max_iters=240, logger=logger)
    runner.test_dataloader = [0] * 3
    runner.register_hook = lambda hook: setattr(runner, 'hook', hook)
    return runner


def test_epochs_and_tests_are_told_and_time_between_them_is_not(terminal, every_step):
    runner = training_runner()
    handlers = list(runner.logger.handlers)
    with pytest.raises(ZeroDivisionError), live_progress(runner):
        for _ in range(2):
            runner.hook.after_train_iter(runner, 4, outputs=dict(loss=torch.tensor(1.25)))
            runner.iter += 1
        for number in range(3):
            runner.hook.after_test_iter(runner, number)
        runner.hook.after_train_iter(
            runner, 6, outputs=dict(loss=torch.tensor(1.5, requires_grad=True))
        )
        raise ZeroDivisionError
    assert runner.logger.handlers == handlers
    lines, shown = terminal.close()
    steps = [text for text in shown if text.startswith('Epoch 3 of 12: ')]
    assert '45/240 [' in steps[0] and '?it/s' in steps[0]  # nothing is known of its first step
    assert any(re.search(r'46/240 \[.*\dit/s, loss 1\.25, \d+\.\d GB\]', text) for text in steps)
    assert re.search(r'47/240 \[.*\?it/s, loss 1\.5, ', steps[-1])
    tests = [re.search(r'(\d)/3 ', text)[1] for text in shown if text.startswith('Test: ')]
    assert set(tests) == {'1', '2'}  # the last one removes the bar
    assert lines == ['']  # errors are printed on an empty line


class Loss:
    """Counts how often it is read, which waits for the GPU."""

    reads = 0

    def detach(self):
        return self

    def __float__(self):
        self.reads += 1
        return 1.25


def test_the_loss_is_read_only_when_it_is_shown(terminal, monkeypatch):
    runner, loss = training_runner(), Loss()
    with live_progress(runner):
        for _ in range(50):
            runner.hook.after_train_iter(runner, 4, outputs=dict(loss=loss))
            runner.iter += 1
            runner.hook.bar.last_print_t += 1000  # no time passes
    assert loss.reads == 1
    terminal.close()


def test_log_lines_go_above_the_bar_at_the_level_of_the_terminal(terminal, monkeypatch):
    monkeypatch.setattr(sys, 'stdout', terminal.file)
    runner = training_runner()
    runner.logger = MMLogger('progress in a terminal')
    with live_progress(runner):
        runner.hook.after_train_iter(runner, 4)
        runner.logger.info('told')
        runner.logger.log(logging.DEBUG, 'not told')
    lines, _ = terminal.close()
    assert len(lines) == 2 and lines[0].endswith('INFO - told') and lines[1] == ''


CONFIG = """
_base_ = 'mmfocal::mmseg/focal_upernet_shapes.py'
num_images = dict(train=4, val=4)
dataset = dict(data_root='shapes', num_images=num_images)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False, dataset=dataset)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=6, val_interval=6)
default_hooks = dict(logger=dict(interval=2), checkpoint=dict(interval=6))
"""
# Each step is worth a drawing.
TOOL = """
import sys
sys.argv[:] = ['train', 'mine.py', '--no-data-check', '--work-dir', 'run', '--val-loss']
from mmfocal.cli import run
from mmfocal.utils.progress import ProgressBar
init = ProgressBar.__init__
ProgressBar.__init__ = lambda self, **options: init(self, **dict(options, mininterval=0))
run('train')
"""


def test_training_shows_a_bar_below_its_log(terminal, tmp_path):
    (tmp_path / 'mine.py').write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', TOOL],
        cwd=tmp_path,
        stdout=terminal.file,
        stderr=terminal.file,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    lines, shown = terminal.close()
    text = '\n'.join(lines)
    assert done.returncode == 0, text[-3000:]
    steps = [line for line in shown if line.startswith('Training: ')]
    assert {int(re.search(r' (\d)/6 \[', line)[1]) for line in steps} == {1, 2, 3, 4, 5, 6}
    pattern = r'Training: +33%\|.*\| 2/6 \[.*it.*, loss \d\.\d+, \d+\.\d GB\]'
    assert any(re.fullmatch(pattern, line) for line in steps), steps
    for evaluation in ('Validation', 'Validation loss'):
        bars = [line for line in shown if line.startswith(f'{evaluation}: ')]
        assert len({re.search(r' \d/4 \[', line)[0] for line in bars}) == 3  # the last is erased
    # Each line of the log stands by itself, and nothing of the bars is left.
    assert not re.search(r'(Training|Validation|Validation loss): ', text) and lines[-1] == ''
    (log,) = tmp_path.glob('run/*/*.log')
    wanted = [line.partition('INFO - ')[2] for line in log.read_text().splitlines()]
    wanted = [line.rstrip() for line in wanted if line.startswith('Iter(')]
    assert len(wanted) == 6  # after 2 iterations of training or validation each, and metrics
    for line in wanted:
        assert any(
            re.fullmatch(rf'\d\d/\d\d \S+ - mmengine - INFO - {re.escape(line)}', each)
            for each in lines
        ), line
    assert '\x1b' not in log.read_text()
