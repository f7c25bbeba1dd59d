"""A selection of the kill matrix, and the script that makes it."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools.dev.kill_and_resume import (
    LOOPS,
    MOMENTS,
    SIGNALS,
    VARIANTS,
    compared,
    flat,
    matrix,
    spread,
)

ROOT = Path(__file__).parents[1]
CASES = 8


def rows(table):
    return [[cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines()[2:]]


@pytest.mark.parametrize('seed', range(5))
def test_selection_covers_the_matrix(seed):
    """The suite takes seed 0."""
    cases = matrix()
    assert len(set(cases)) == len(cases) == 2 * (8 * 5 + 1) * 3
    selection = spread(cases, CASES, seed)
    assert len(set(selection)) == CASES
    assert {case.loop for case in selection} == set(LOOPS)
    assert {case.variant for case in selection} == set(VARIANTS)
    assert {case.moment for case in selection} == set(MOMENTS)
    assert {case.number for case in selection} == set(SIGNALS)


def test_real_runs_are_killed_and_end_equal():
    """A short version of the script, which kills hundreds of runs."""
    command = [sys.executable, '-m', 'tools.dev.kill_and_resume']
    options = ['--cases', str(CASES), '--random', '1']
    result = subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    _, killed, at_random = result.stdout.split('\n\n| ')
    cells = [cell for row in rows(killed) for cell in row if cell]
    assert sum(cell == '1/1 equal' or cell == '1/1 end, told' for cell in cells) == CASES
    ((_, _, answer),) = rows(at_random)
    assert answer == 'yes'


BROKEN = """
import signal, tempfile
from pathlib import Path
from mmfocal.engine import loops
from tools.dev import kill_and_resume as script

script.import_everything()
case = script.Case('epochs', 'plain', 'training', signal.SIGTERM)
with tempfile.TemporaryDirectory() as folder:
    runs = script.Runs(Path(folder), seconds=120)
    loops.seed_generators = lambda seed: None
    print('FOUND', script.summary(runs.check(case, workers=0)))
    script.SignalHook._send = lambda self: None
    print('FOUND', script.summary(runs.check(case, workers=0)))
    runs.seconds = 0.2
    print('FOUND', script.summary(runs.check(case, workers=0)))
"""


def test_what_is_wrong_is_told():
    """Random numbers that do not follow from the iteration, no signal, and a run that hangs."""
    command = [sys.executable, '-c', BROKEN]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    found = [line for line in result.stdout.splitlines() if line.startswith('FOUND')]
    assert len(found) == 3, result.stdout + result.stderr
    assert 'values differ (weights.' in found[0]
    assert found[1].endswith('ends with status 0, not 143')
    assert found[2].endswith('hangs, not 143')


@pytest.mark.parametrize(
    'change, name',
    [
        (dict(iter=11), 'iter: 11, not 12'),
        (dict(counters=[{'EarlyStoppingHook': {'wait_count': 0}}]), 'counters.0.EarlyStop'),
        (dict(weights={'w': torch.tensor([0.0, -0.0])}), 'weights.w'),
        (dict(weights={'w': torch.tensor([0.0, 0.0], dtype=torch.float64)}), 'weights.w'),
        (dict(weights={}), 'weights.w'),
        (dict(logged={'loss': [1.0]}), 'logged.loss.1'),
        (dict(best={'best_2.pth': 1}), 'best.best_1.pth'),
        ({}, None),
    ],
)
def test_states_are_compared_bit_for_bit(change, name):
    state = dict(
        iter=12,
        counters=[{'EarlyStoppingHook': {'wait_count': 1}}],
        weights={'w': torch.zeros(2)},
        logged={'loss': [1.0, math.nan]},
        best={'best_1.pth': 1},
    )
    problem = compared(flat({**state, **change}), flat(state))
    assert problem is None if name is None else name in problem
