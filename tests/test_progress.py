"""Progress: a line at the bottom of a terminal that log lines go above, and nothing elsewhere."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MMLogger

from mmfocal.engine.live_progress import live_progress
from mmfocal.utils import progress
from mmfocal.utils.progress import Line, Pace, Progress, clock, told

ROOT = Path(__file__).parents[1]
COLUMNS = 90


class Terminal:
    """One end of a pseudo terminal; what is written to the other, and what a user sees of it."""

    def __init__(self):
        self.master, self.slave = pty.openpty()
        size = struct.pack('HHHH', 24, COLUMNS, 0, 0)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, size)
        self.file = os.fdopen(self.slave, 'w')
        self.written = b''
        self.reader = threading.Thread(target=self._read)
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
        lines, shown = [''], []
        for token in re.findall(r'\r\n|\r|\x1b\[[\d;]*\w|[^\r\n\x1b]+', self.written.decode()):
            if token == '\r\n':
                lines.append('')
            elif token == '\x1b[2K':
                lines[-1] = ''
            elif token[0] not in '\r\x1b':  # carriage returns come with erasing; colours
                lines[-1] += token
                shown.append(lines[-1])
        return lines, shown


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.delenv('CI', raising=False)
    monkeypatch.setenv('TERM', 'xterm')
    return Terminal()


def test_predictions_are_lines_where_there_is_no_terminal():
    file = io.StringIO()
    with Progress(40, file) as counted:
        for _ in range(40):
            counted.advance()
    lines = file.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0].startswith('Predicting: 4 of 40, ') and lines[0].endswith(' left')
    assert lines[-1].startswith('Predicting: 40 of 40, ')
    assert '\x1b' not in file.getvalue() and '\r' not in file.getvalue()


@pytest.mark.parametrize('total', [3, None])
def test_predictions_are_a_line_in_a_terminal(terminal, monkeypatch, total):
    monkeypatch.setattr(progress, 'SECONDS_BETWEEN_DRAWINGS', 0.0)
    with Progress(total, terminal.file) as counted:
        for _ in range(3):
            counted.advance()
    lines, shown = terminal.close()
    assert lines == [''] and len(shown) == 3  # nothing stays
    begin = ['[####        ] 1 of 3, ', '[########    ] 2 of 3, ', '[############] 3 of 3, ']
    for text, bar, number in zip(shown, begin, (1, 2, 3), strict=True):
        assert text.startswith(f'Predicting {bar}' if total else f'Predicting: {number}, ')
    assert shown[0].endswith(' left') == bool(total) and not shown[-1].endswith(' left')


def test_line_is_as_long_as_the_terminal_is_wide(terminal):
    Line(terminal.file).show('x' * 200)
    _, shown = terminal.close()
    assert shown == ['x' * (COLUMNS - 1)]


@pytest.mark.parametrize('name, value', [('TERM', 'dumb'), ('CI', 'true')])
def test_there_is_no_line_where_nobody_looks(terminal, monkeypatch, name, value):
    assert Line(terminal.file).is_live and not Line(io.StringIO()).is_live
    monkeypatch.setenv(name, value)
    assert not Line(terminal.file).is_live
    terminal.close()


def test_pace_leaves_out_what_was_between(monkeypatch):
    now = iter([0.0, 0.5, 1.0, 100.0, 100.5, 101.0])
    monkeypatch.setattr(progress.time, 'monotonic', lambda: next(now))
    pace = Pace()
    pace.begin()
    assert pace.rate is None
    pace.step(), pace.step()
    pace.begin()  # after a validation
    pace.step(), pace.step()
    assert pace.rate == pytest.approx(2)
    assert told('Training', 4, 10, pace.rate) == 'Training: 4 of 10, 2.0 per s, 0:03 left'
    assert [clock(seconds) for seconds in (5, 65, 3665)] == ['0:05', '1:05', '1:01:05']


def test_epochs_and_tests_are_told_and_time_between_them_is_not(terminal, monkeypatch):
    monkeypatch.setattr(progress, 'SECONDS_BETWEEN_DRAWINGS', 0.0)
    monkeypatch.setattr('mmfocal.engine.live_progress._log_is_piped', lambda: False)
    logger = MMLogger('progress')
    runner = SimpleNamespace(
        epoch=2, max_epochs=12, iter=44, max_iters=240, test_dataloader=[0] * 3, logger=logger
    )
    runner.register_hook = lambda hook: setattr(runner, 'hook', hook)
    handlers = list(logger.handlers)
    with pytest.raises(ZeroDivisionError), live_progress(runner, terminal.file):
        runner.hook.before_train_epoch(runner)
        runner.hook.after_train_iter(runner, 4, outputs=dict(loss=torch.tensor(1.25)))
        runner.hook.before_test_epoch(runner)
        for number in range(2):
            runner.hook.after_test_iter(runner, number)
        raise ZeroDivisionError
    assert logger.handlers == handlers
    lines, shown = terminal.close()
    assert shown[0].startswith('Epoch 3 of 12 [##          ] 45 of 240, ')
    assert ', loss 1.25, ' in shown[0]
    assert [text.split(',')[0] for text in shown[1:]] == [
        'Testing [####        ] 1 of 3',
        'Testing [########    ] 2 of 3',
    ]
    assert lines == ['']  # errors are printed on an empty line


def test_other_processes_and_files_get_no_line(terminal, monkeypatch):
    runner = SimpleNamespace()  # nothing of it is touched
    with live_progress(runner, io.StringIO()):
        pass
    piped = 'mmfocal.engine.live_progress._log_is_piped'
    monkeypatch.setattr(piped, lambda: True)  # into tee, which writes on the terminal, too
    with live_progress(runner, terminal.file):
        pass
    monkeypatch.setattr(piped, lambda: False)
    monkeypatch.setattr('mmfocal.engine.live_progress.is_main_process', lambda: False)
    with live_progress(runner, terminal.file):
        pass
    assert terminal.close() == ([''], [])


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
import runpy, sys
sys.path.insert(0, {tools!r})
sys.argv[:] = ['train.py', 'mine.py', '--no-data-check', '--work-dir', 'run', '--val-loss']
sys.path.insert(1, {root!r})
import mmfocal.utils.progress
mmfocal.utils.progress.SECONDS_BETWEEN_DRAWINGS = 0.0
runpy.run_path({tools!r} + '/train.py', run_name='__main__')
"""


def test_training_shows_a_line_below_its_log(terminal, tmp_path):
    (tmp_path / 'mine.py').write_text(CONFIG)
    code = TOOL.format(tools=str(ROOT / 'tools'), root=str(ROOT))
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        cwd=tmp_path,
        stdout=terminal.file,
        stderr=terminal.file,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    lines, shown = terminal.close()
    text = '\n'.join(lines)
    assert done.returncode == 0, text[-3000:]
    steps = [line for line in shown if line.startswith('Training [')]
    assert {int(line.split('] ')[1].split()[0]) for line in steps} == {1, 2, 3, 4, 5, 6}
    pattern = (
        r'Training \[#### {8}\] 2 of 6, [\d.]+ per s, \d+:\d\d left, loss \d\.\d+, \d+\.\d GB'
    )
    assert any(re.fullmatch(pattern, line) for line in steps), steps
    for evaluation in ('Validating', 'Losses'):
        told_steps = [line for line in shown if line.startswith(f'{evaluation} [')]
        assert len({line.split(',')[0] for line in told_steps}) == 3  # the last one is erased
    # Each line of the log stands alone, and nothing of the other is left.
    assert 'Training [' not in text and 'Validating [' not in text
    assert 'Losses [' not in text and lines[-1] == ''
    (log,) = tmp_path.glob('run/*/*.log')
    wanted = [line.partition('INFO - ')[2] for line in log.read_text().splitlines()]
    wanted = [line for line in wanted if line.startswith('Iter(')]
    assert len(wanted) == 6  # behind 2 iterations of training or validation each, and metrics
    for line in wanted:
        assert any(
            re.fullmatch(rf'\d\d/\d\d \S+ - mmengine - INFO - {re.escape(line)}', each)
            for each in lines
        ), line
    assert '\x1b' not in log.read_text()
