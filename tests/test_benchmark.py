"""The benchmark: its arithmetic, its checks, and a first look from end to end."""

import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmfocal import FocalTransformer
from mmfocal.geometry import FocalGeometry
from mmfocal.ops import attention, focal_attention
from tools.dev.timing import serving
from tools.dev.timing.cases import ParityError, attention_calls, check_models, check_parity
from tools.dev.timing.measure import (
    GIVE_MEMORY_BACK,
    OpMeter,
    Spread,
    growth,
    interleaved,
    ratios,
)
from tools.dev.timing.parts import Report, Settings
from tools.dev.timing.performance import draw_ratios
from tools.dev.timing.tables import sizes_of_training

ROOT = Path(__file__).parents[1]
CPU = torch.device('cpu')


def test_calls_run_in_turn_after_warming_up():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in 'AB'}
    seconds = interleaved(calls, 3, CPU, shortest=0)
    assert order == ['A', 'A', 'B', 'B'] + ['A', 'B'] * 3
    assert {name: len(times) for name, times in seconds.items()} == {'A': 3, 'B': 3}


def test_short_calls_are_repeated_and_their_mean_counts():
    naps = []

    def nap():
        naps.append(time.sleep(0.01))

    ((seconds,),) = interleaved({'nap': nap}, 1, CPU, shortest=0.05).values()
    assert len(naps) > 3 and 0.01 <= seconds < 0.05


def test_interrupted_runs_are_kept():
    calls = iter(range(9))

    def call():
        if next(calls) == 4:  # in the third run, after two to warm up
            raise KeyboardInterrupt

    report = Report()
    seconds = report.runs('models', ['A'], lambda name: dict(model=name))
    with pytest.raises(KeyboardInterrupt):
        interleaved({'A': call}, 5, CPU, seconds, shortest=0)
    (row,) = report.data['models']
    assert row['model'] == 'A' and len(row['seconds']) == 2


def test_ratios_are_taken_run_by_run():
    # The machine was three times slower in the second run: ratios do not see it.
    against = ratios({'swin': [1.0, 3.0, 1.0], 'focal': [1.5, 4.5, 2.0]}, 'swin')
    assert against['focal'] == Spread(1.5, 1.5, 2.0) and against['swin'] == Spread(1, 1, 1)


def test_growth_finds_the_exponent():
    pixels = [100, 400, 1600]
    assert growth(pixels, [3 * p**1.25 for p in pixels]) == pytest.approx(1.25)


@pytest.mark.parametrize('backend', ['reference', 'gather_sdpa'])
def test_flops_of_attention_are_those_of_its_products(backend):
    keys = FocalGeometry(focal_window=3).keys(8, 15)  # padded to 2x3 windows
    qkv = torch.randn(2, keys.num_tokens, 3, 4, 8, requires_grad=True)
    bias = torch.randn(4, 49, keys.num_keys, requires_grad=True)
    product = 2 * 2 * 6 * 4 * 49 * (49 + 120 + 9) * 8  # FLOPs of one, by hand
    with FlopCounterMode(display=False) as forward:
        out = focal_attention(qkv, keys, bias, backend=backend)
    assert forward.get_total_flops() == 2 * product
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    # Backends that keep no scores compute one product anew.
    assert backward.get_total_flops() == (4 if backend == 'reference' else 5) * product


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='needs Linux')
@pytest.mark.parametrize('before', ['None', 'step()'], ids=['fresh', 'freed memory'])
def test_added_memory_is_what_a_step_holds_at_its_peak(before):
    """In a process of its own, as the benchmark measures it; what was freed before counts too."""
    code = (
        'import torch; from tools.dev.timing.measure import added_memory\n'
        'step = lambda: [torch.ones(2**20) for _ in range(50)] and None\n'  # 4 MB each
        f'torch.ones(9).sum(); {before}\n'
        'print(added_memory(step, torch.device("cpu")) / 2**20)'
    )
    environment = {**os.environ, **GIVE_MEMORY_BACK}
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert 198 < float(done.stdout) < 210, done.stderr


def test_flops_of_a_backbone_are_alike_on_every_backend():
    counts = {}
    for backend in ('reference', 'gather_sdpa'):
        model = FocalTransformer(
            arch=dict(embed_dims=8, depths=(1, 1), num_heads=(1, 2)),
            focal_levels=(2, 2),
            focal_windows=3,
            expand_sizes=(3, 3),
            focal_stages=(0, 1),
            use_shift=False,
            window_size=(7, 7),
            out_indices=(0, 1),
            attention_backend=backend,
        ).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.randn(1, 3, 56, 56))
        counts[backend] = counter.get_total_flops()
    assert counts['reference'] == counts['gather_sdpa'] > 0


def test_meter_sees_each_operator_with_its_flops_and_bytes():
    left, right = torch.randn(4, 6), torch.randn(6, 8)
    with OpMeter(CPU) as meter:
        product = (left @ right).t()
        meter.phase = 'backward'
        product.relu()
        torch.empty(3)
    groups = meter.groups  # no views, and no memory that nobody wrote
    assert set(groups) == {'linear layers, forward', 'copies, sums and the rest, backward'}
    linear = groups['linear layers, forward']
    assert linear.flops == 2 * 4 * 6 * 8
    assert linear.bytes == 4 * (4 * 6 + 6 * 8 + 4 * 8)
    assert all(group.calls == 1 and group.seconds > 0 for group in groups.values())


def test_parity_check_stops_a_wrong_backend(monkeypatch):
    check_parity(CPU, torch.float32)
    wrong = attention.FUSED['gather_sdpa']

    def off_by_a_little(*args):
        out, *kept = wrong.forward(*args)
        return out * 1.001, *kept

    monkeypatch.setitem(attention.FUSED, 'gather_sdpa', wrong._replace(forward=off_by_a_little))
    with pytest.raises(ParityError, match=r'gather_sdpa is off by .* nothing was timed'):
        check_parity(CPU, torch.float32)


def test_parity_check_stops_a_wrong_model(monkeypatch):
    def small(backend):
        arch = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))
        return FocalTransformer(arch, attention_backend=backend)

    makers = {'small': partial(small, 'gather_sdpa')}
    for dtype in (torch.float32, torch.bfloat16):
        check_models(makers, CPU, dtype)
    right = attention.FUSED['gather_sdpa']

    def too_sharp(qkv, keys, bias, scale):
        return right.forward(qkv * 2, keys, bias, scale)

    monkeypatch.setitem(attention.FUSED, 'gather_sdpa', right._replace(forward=too_sharp))
    with pytest.raises(ParityError, match=r'small: map 0 is off by .* nothing was timed'):
        check_models(makers, CPU, torch.float32)


@pytest.mark.parametrize('mode', ['inference', 'training step'])
def test_every_backend_is_timed_on_the_stages_of_the_model(mode):
    calls = attention_calls(3, (64, 96), (7, 5, 3, 1), 1, CPU, torch.float32, mode)
    assert set(calls) == {'gather_sdpa', 'reference'}
    for call in calls.values():
        call()


def test_quick_benchmark_from_end_to_end(tmp_path):
    files = {name: tmp_path / 'out' / f'report.{name}' for name in ('json', 'md', 'png')}
    command = [sys.executable, '-m', 'tools.dev.benchmark', '--quick', '--parts', 'models']
    command += ['memory', 'op', 'limits', 'tables']
    command += ['--json', files['json'], '--markdown', files['md'], '--plot', files['png']]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    data = json.loads(files['json'].read_text())
    assert data['machine']['torch'] == torch.__version__ and data['machine']['threads'] > 0
    names = {'Swin-T', 'Focal-T', 'Focal-T, detection windows', 'Focal-fast-T'}
    assert {row['model'] for row in data['models']} == names
    assert {row['model'] for row in data['memory']} == names
    assert all(len(row['seconds']) == 2 for row in data['models'] + data['op'])
    groups = {row['model']: row['groups'] for row in data['limits']['models']}
    assert groups['Focal-T']['attention, backward']['flops'] > 0
    assert groups['Focal-T']['attention, forward']['seconds'] > 0
    tables = {(row['model'], row['backend']): row for row in data['tables']}
    assert all(len(row['times']) == len(row['bytes']) == 5 for row in tables.values())
    focal = tables['Focal-T, detection windows', 'gather_sdpa']
    assert 4 * 10 < max(focal['operators']) < 4 * 40 and min(focal['bytes']) > 2**20
    for title in ('Inference', 'Training step', 'Memory of a training step', 'time and its limit'):
        assert title in files['md'].read_text() and title in done.stdout
    assert files['png'].read_bytes().startswith(b'\x89PNG')


def test_sizes_of_training_are_those_that_batches_have():
    sizes = sizes_of_training(300)
    assert len({*sizes}) == 300 and sizes == sizes_of_training(300)
    assert all(480 <= min(size) <= 800 and max(size) <= 1344 for size in sizes)
    assert all(side % 32 == 0 for size in sizes for side in size)
    assert any(h > w for h, w in sizes) and any(h < w for h, w in sizes)


def test_serving_times_runtimes_in_turn_for_each_batch(monkeypatch):
    def runtime(work):
        return lambda image: [image.pow(2).sum() for _ in range(work * len(image))]

    runtimes = {serving.EAGER: runtime(5), serving.ONNX: runtime(50)}
    monkeypatch.setattr(serving, '_runtimes', lambda folder: runtimes)
    report = Report()
    settings = Settings({}, [(64, 96)], [], 1, 3, CPU, torch.float32, memory_of=None)
    serving.time_serving(report, settings)
    rows = report.data['serving']
    assert [(row['batch'], row['runtime']) for row in rows] == [
        (batch, name) for batch in serving.BATCHES for name in runtimes
    ]
    assert all(row['size'] == (64, 96) and len(row['seconds']) == 3 for row in rows)
    cells = [line.split('|') for line in report.lines if line.startswith('| 64x96')]
    ratios = [float(line[6].split()[0]) for line in cells]
    assert ratios[0] == ratios[2] == 1 and min(ratios[1], ratios[3]) > 2
    rate, latency = float(cells[3][5]), float(cells[3][4].split()[0])
    assert rate == pytest.approx(4 / latency * 1e3, rel=0.05)


def test_plot_of_interrupted_runs_shows_what_there_is():
    rows = [
        dict(mode=mode, size=[side, side], model=model, seconds=seconds)
        for mode, side, model, seconds in (
            ('inference', 32, 'swin', [1.0, 3.0]),
            ('inference', 32, 'focal', [1.5, 4.5]),  # slow and fast runs cancel
            ('inference', 64, 'swin', [4.0]),
            ('inference', 64, 'focal', [8.0]),
            ('training step', 32, 'swin', [2.0]),  # interrupted here
        )
    ]
    figure = draw_ratios(rows, 'swin')
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]
    assert heights == [[1.5, 2], []]
    plt.close(figure)


@pytest.mark.parametrize(
    'options, message',
    [
        (['--sizes', '3y4'], "expected a side or HxW in pixels, got '3y4'"),
        (['--backends', 'flash'], "one of .*'auto'.* got 'flash'"),
        (['--runs', '0'], 'must be at least 1'),
    ],
)
def test_wrong_options_are_named(options, message):
    command = [sys.executable, '-m', 'tools.dev.benchmark', *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and re.search(message, done.stderr)
