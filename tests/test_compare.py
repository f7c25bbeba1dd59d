"""Comparisons of trainings: they resume, their statistics are right, and the docs say the same."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, MODELS, DefaultScope
from scipy import stats

from mmfocal.utils.config import import_packages
from mmfocal.utils.errors import UserError
from tools.dev.compare import with_tables
from tools.dev.comparing import Comparison, Outcome, Results, prepare_data, read_comparison
from tools.dev.comparing.running import _curve, _gpus, value_of
from tools.dev.comparing.statistics import bootstrap, holm, paired

ROOT = Path(__file__).parents[1]
COMPARISONS = ROOT / 'tools/dev/comparisons'
NAMES = ['parts_maskrcnn', 'parts_upernet', 'bccd', 'camvid']
TINY = """
_base_ = {config!r}
num_images = dict(train=8, val=4)
root = {root!r}
loader = dict(
    num_workers=0,
    persistent_workers=False,
    batch_size=2,
    dataset=dict(num_images=num_images, data_root=root),
)
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
train_cfg = dict(max_iters=7, val_interval=2)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
comparison = dict(
    title='Tiny',
    variants={{'Focal': {{}}, 'shift only': {{'model.backbone': dict(
        expand_sizes=0, focal_levels=1, use_shift=True)}}}},
    against=['Focal'],
    metrics={{'mIoU': 'mIoU, %'}},
    seeds=1,
    tests=True,
)
"""


# --- From the command to the table ------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path):
    """A comparison of minutes' work in seconds, and the command that makes it."""
    path = tmp_path / 'tiny.py'
    config = str(ROOT / 'configs/mmseg/focal_upernet_shapes.py')
    path.write_text(TINY.format(config=config, root=str(tmp_path / 'shapes')))
    command = [sys.executable, '-m', 'tools.dev.compare', path, '--rounds', 2]
    return path, [*map(str, command), '--work-dir', str(tmp_path / 'runs')]


def start(command):
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )


def wait_for_the_end_of_all(process, seconds=60):
    """Whether all that a process has started ends."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    return False


def test_a_comparison_that_is_killed_goes_on_where_it_was(tiny):
    path, command = tiny
    runs = path.parent / 'runs'
    results = runs / 'results.json'
    process = start([*command, '--jobs', '1'])
    deadline = time.monotonic() + 240
    # Killed in the middle of the second run, after a checkpoint.
    while not list(runs.glob('shift-only_0*/run/iter_*.pth')):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()  # and nothing else
    process.communicate()
    assert wait_for_the_end_of_all(process), 'its trainings outlive it'
    first = json.loads(results.read_text())
    assert [(each['variant'], each['seed']) for each in first['runs']] == [('Focal', 0)]
    left = {checkpoint.stem for checkpoint in runs.glob('shift-only_0*/run/iter_*.pth')}

    process = start(command)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert 'focal_0: training' not in output and 'shift-only_0: training' in output
    # It resumed: what came before the checkpoint was not trained again.
    (folder,) = runs.glob('shift-only_0*')
    starts = sorted((folder / 'run').glob('2*/vis_data/scalars.json'))
    trained = [row['step'] for row in map(json.loads, starts[-1].open()) if 'loss' in row]
    assert len(starts) == 2 and trained[0] > max(int(name.partition('_')[2]) for name in left)
    complete = json.loads(results.read_text())
    assert complete['runs'][0] == first['runs'][0] and complete['steps'] == first['steps']
    assert [each['variant'] for each in complete['runs']] == ['Focal', 'shift only']
    for each in complete['runs']:
        assert [step for step, _ in each['curves']['mIoU']] == [2, 4, 6, 7]
        assert each['cpu_seconds'] > 0 and each['resumed'] == (each['variant'] != 'Focal')
        # As few images as are validated with, and the same: the last checkpoint was tested.
        assert each['test']['mIoU'] == each['curves']['mIoU'][-1][1] > 0
    tables = (runs / 'tables.md').read_text()
    assert '| shift only |' in tables and '1 seed each, 7 iterations of 2 images' in tables
    assert 'without what 1 had computed' in tables
    assert (runs / 'curves.png').stat().st_size > 5_000

    # Killed after a training and before its result was kept: it is only tested again.
    results.write_text(json.dumps({**complete, 'runs': complete['runs'][:1]}))
    tested = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert tested.returncode == 0, tested.stdout
    assert len(list((folder / 'run').glob('2*/vis_data/scalars.json'))) == 2
    kept = json.loads(results.read_text())['runs']
    assert [(each['curves'], each['test']) for each in kept] == [
        (each['curves'], each['test']) for each in complete['runs']
    ]
    tables = (runs / 'tables.md').read_text()

    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0 and ': training' not in again.stdout
    assert (runs / 'tables.md').read_text() == tables


def test_a_run_that_fails_is_named_and_the_others_are_kept(tiny):
    path, command = tiny
    text = path.read_text().replace('expand_sizes=0', "act_cfg=dict(type='NoSuchActivation')")
    path.write_text(text)
    # Steps are timed first, where the same error would end it.
    results = path.parent / 'runs/results.json'
    results.parent.mkdir()
    digests = {run.variant: run.digest for run in read_comparison(path).runs()}
    seconds = {name: [1.0] for name in digests}
    steps = dict(seconds=seconds, digests=digests, parameters=dict.fromkeys(digests, 1))
    results.write_text(json.dumps(dict(steps=steps, runs=[])))
    process = start(command)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and 'shift-only_0: failed' in output
    (log,) = path.parent.glob('runs/shift-only_0*/log.txt')
    assert 'NoSuchActivation' in log.read_text()
    assert [run['variant'] for run in json.loads(results.read_text())['runs']] == ['Focal']


def test_missing_data_are_told_before_anything_is_built(tiny):
    path, _ = tiny
    path.write_text(path.read_text().replace('root = ', 'found = ').replace('=root', "='none'"))
    text = path.read_text().replace(
        'num_images=num_images, ', "_delete_=True, type='CocoDataset',"
    )
    path.write_text(text)
    with pytest.raises(UserError, match='none'):
        prepare_data(read_comparison(path))


def test_every_training_has_a_gpu_that_was_given(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert _gpus() == ['0', '1']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,GPU-5f3a')
    assert _gpus() == ['2', 'GPU-5f3a']
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert _gpus() == []


def test_validations_are_counted_as_the_loop_makes_them():
    rows = [{'step': step, 'mIoU': float(step)} for step in (990, 1500)]
    curve = _curve([{'loss': 1.0, 'step': 5}, *rows], 'mIoU', {'max_iters': 1500})
    assert curve == [(1000, 990.0), (1500, 1500.0)]


def test_a_metric_that_is_not_measured_is_an_error():
    nothing_found = {'data_time': 0.1, 'time': 0.2, 'step': 4}
    assert value_of({**nothing_found, 'mIoU': 31.2345678}, 'mIoU') == 31.23457
    assert value_of(nothing_found, 'coco/bbox_mAP') == 0.0
    with pytest.raises(ValueError, match=r'mIuO.* aAcc, mIoU'):
        value_of({**nothing_found, 'mIoU': 31.2, 'aAcc': 80.0}, 'mIuO')


# --- Which runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize('name', NAMES)
def test_variants_differ_in_their_backbones_only(name):
    comparison = read_comparison(COMPARISONS / f'{name}.py')
    configs = {name: comparison.run(name, 0).config.to_dict() for name in comparison.variants}
    backbones = {name: config['model'].pop('backbone') for name, config in configs.items()}
    first = next(iter(configs.values()))
    assert all(config == first for config in configs.values())
    assert len({json.dumps(each) for each in backbones.values()}) == len(backbones) > 1
    for backbone in backbones.values():
        built = MODELS.build(dict(backbone, _scope_=first['default_scope']))
        built.eval()
        with torch.no_grad():
            maps = built(torch.rand(1, 3, 64, 64))
        assert [tuple(each.shape[1:]) for each in maps] == [
            (channels, 16 * 32 // channels, 16 * 32 // channels) for channels in (32, 64, 128, 256)
        ]


@pytest.mark.parametrize('name', NAMES)
def test_all_seeds_of_a_variant_have_one_digest(name):
    runs = list(read_comparison(COMPARISONS / f'{name}.py').runs())
    digests = {}
    for run in runs:
        digests.setdefault(run.variant, set()).add(run.digest)
    assert all(len(each) == 1 for each in digests.values())
    assert len(set.union(*digests.values())) == len(digests)
    assert len({run.name for run in runs}) == len(runs)


def test_a_changed_config_is_trained_again(tmp_path, tiny):
    path, _ = tiny
    results = Results(tmp_path / 'kept.json', read_comparison(path))
    run = results.comparison.run('Focal', 0)
    results.add(run, curves={}, test={}, cpu_seconds=1, machine={})
    assert Results(results.path, read_comparison(path)).has(run)
    path.write_text(path.read_text().replace('max_iters=7', 'max_iters=8'))
    changed = Results(results.path, read_comparison(path))
    assert not changed.has(run)
    # Nor is the other result lost by what is written now.
    changed.add(changed.comparison.run('Focal', 0), curves={}, test={}, cpu_seconds=2, machine={})
    text = path.read_text()
    path.write_text(text.replace('max_iters=8', 'max_iters=7'))
    kept = Results(results.path, read_comparison(path))
    assert [each['cpu_seconds'] for each in kept.runs] == [1]
    path.write_text(text)
    # Nor does it resume from checkpoints of the other one.
    assert changed.comparison.run('Focal', 0).folder != run.folder


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (("against=['Focal']", "against=['Swin']"), 'Swin'),
        (("against=['Focal']", "against='Focal'"), 'a list'),
        (("against=['Focal']", 'against=[]'), 'a list'),
        (('comparison = ', 'compared = '), 'comparison'),
        (('seeds=1', 'repeats=1'), 'repeats'),
        (("metrics={'mIoU': 'mIoU, %'}", 'metrics={}'), 'metrics'),
        (('seeds=1', 'seeds=0'), 'seeds'),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tiny, change, message):
    path, _ = tiny
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(UserError, match=message):
        read_comparison(path)


def test_four_images_make_one_and_their_labels_too(tmp_path):
    comparison = read_comparison(COMPARISONS / 'parts_upernet.py')
    import_packages(comparison.config)
    settings = comparison.config.val_dataloader.dataset.to_dict()
    root = tmp_path / 'shapes'
    settings.update(data_root=str(root), num_images=dict(train=1, val=9))
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(settings)
        assert len(dataset) == 2  # the ninth is left out
        sample = dataset[1]
    for name, found in (
        ('val/{}.jpg', sample['inputs'].permute(1, 2, 0).numpy()),
        ('labels/val/{}.png', sample['data_samples'].gt_sem_seg.data[0].numpy()),
    ):
        files = [root / name.format(f'{index:06}') for index in range(4, 8)]
        four = [cv2.imread(str(file), -1) for file in files]
        expected = np.vstack([np.hstack(four[:2]), np.hstack(four[2:])])
        np.testing.assert_array_equal(found, expected)
    assert sample['data_samples'].ori_shape == sample['data_samples'].img_shape == (256, 256)


# --- Statistics ---------------------------------------------------------------------------------


def test_paired_differences_are_those_of_scipy():
    ours = {0: 0.51, 1: 0.55, 2: 0.53, 3: 0.5}
    others = {1: 0.5, 0: 0.49, 3: 0.49, 2: 0.5, 4: 0.1}
    interval, p = paired(ours, others)
    pairs = [[values[seed] for seed in range(4)] for values in (ours, others)]
    expected = stats.ttest_rel(*pairs)
    bounds = expected.confidence_interval(0.95)
    assert p == pytest.approx(expected.pvalue)
    assert (interval.low, interval.high) == pytest.approx((bounds.low, bounds.high))
    assert interval.mean == pytest.approx(np.mean(np.subtract(*pairs)))


@pytest.mark.parametrize('ours', [{0: 0.5}, {0: 0.5, 1: 0.6}, {}])
def test_nothing_is_significant_without_two_seeds_that_differ(ours):
    others = {0: 0.4, 1: 0.5}
    interval, p = paired(ours, others)
    assert p == 1
    assert interval.low is None and interval.high is None


def test_differences_by_rounding_are_none():
    ours, others = {0: 0.549, 1: 0.03, 2: 0.26}, {0: 0.539, 1: 0.02, 2: 0.25}
    interval, p = paired(ours, others)
    assert p == 1 and interval.low is None and interval.mean == pytest.approx(0.01)


def test_bootstrap_covers_the_mean_and_stays_within_the_values():
    values = [0.1, 0.2, 0.4, 0.5, 0.6]
    interval = bootstrap(values)
    assert min(values) < interval.low < np.mean(values) < interval.high < max(values)
    normal = 1.96 * np.std(values) / np.sqrt(len(values))
    assert interval.high - interval.low == pytest.approx(2 * normal, rel=0.1)
    assert bootstrap([0.3]).text(2) == '0.30'


def test_holm_multiplies_the_least_probability_the_most():
    assert holm({'a': 0.04, 'b': 0.01, 'c': 0.03}) == pytest.approx(
        {'b': 0.03, 'c': 0.06, 'a': 0.06}
    )
    assert holm({'a': 0.6, 'b': 0.7}) == {'a': 1.0, 'b': 1.0}


# --- Tables and figure --------------------------------------------------------------------------


@pytest.fixture
def outcome(tiny, tmp_path):
    """Four seeds of two variants; one is ahead, and takes twice the time."""
    path, _ = tiny
    read = read_comparison(path)
    fields = dict(title=read.title, config=read.config, variants=read.variants, seeds=4)
    metrics = {'coco/bbox_mAP': 'box AP'}
    comparison = Comparison(
        **fields, against=['Focal'], metrics=metrics, tests=False, equal_time=True
    )
    results = Results(tmp_path / 'some.json', comparison)
    machine = dict(date='2026-11-29', processor='Z80', torch='2.13.0')
    for seed, noise in enumerate([0.0, 0.01, 0.02, 0.03]):
        for variant, ahead in (('Focal', 0.0), ('shift only', 0.1 + noise / 10)):
            curve = [(step, step / 200 + ahead + noise) for step in (50, 100)]
            measured = dict(curves={'coco/bbox_mAP': curve}, test={'coco/bbox_mAP': 0.5})
            run = comparison.run(variant, seed)
            results.add(run, **measured, cpu_seconds=450, machine=machine)
    seconds = {'Focal': [1.0, 2.0, 1.0], 'shift only': [2.0, 4.0, 2.2]}
    results.set_steps(seconds, {'Focal': 1_500_000, 'shift only': 1_400_000}, machine)
    return Outcome(comparison, Results(results.path, comparison))


def rows(page):
    lines = [line.strip('| ').split('|') for line in page.splitlines() if line[:1] == '|']
    return [[cell.strip() for cell in line] for line in lines]


def test_equal_steps_and_equal_time_are_told_apart(outcome):
    assert outcome.step_times() == {'Focal': 1.0, 'shift only': 2.0}
    last = outcome.last('coco/bbox_mAP')
    assert last['shift only'][0] == pytest.approx(0.6) and last['Focal'][0] == pytest.approx(0.5)
    # In the time of 100 iterations of the fast one, the slow one makes 50.
    there = outcome.at_equal_time('coco/bbox_mAP')
    assert there['shift only'][0] == pytest.approx(0.35) and there['Focal'] == last['Focal']


def test_tables_say_what_is_significant(outcome):
    page = outcome.tables()
    titles = [row[0] for row in rows(page) if 'mean' in row]
    assert titles == ['box AP, the last validation', 'box AP, equal time']
    found = [row for row in rows(page) if row[0] == 'shift only']
    assert found[0][2].startswith('+0.10') and found[1][2].startswith('-0.14')
    assert all('p = ' in row[2] and 'not significant' not in row[2] for row in found)
    assert [row[-1] for row in found] == ['2.00', '2.00'] and found[0][-2] == '1.40'
    assert '1.0 hours' in page and 'Z80' in page and '4 seeds each' in page


def test_nothing_is_read_off_before_the_first_validation(outcome):
    outcome.results.steps['seconds']['shift only'] = [9.0, 18.0, 9.0]
    last, equal_time = (row for row in rows(outcome.tables()) if row[0] == 'shift only')
    assert last[1].startswith('0.6') and equal_time[1:3] == ['-', '-']


def test_a_page_without_a_place_for_tables_is_told_before_training(tiny):
    _, command = tiny
    result = subprocess.run([*command, '--docs'], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode and 'tables of tiny' in result.stdout + result.stderr
    assert 'training' not in result.stdout


def test_a_report_of_nothing_says_so(tiny):
    _, command = tiny
    result = subprocess.run([*command, '--only-report'], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode and 'no seed yet' in result.stdout


def test_percentages_have_one_digit_even_where_the_first_has_nothing(outcome):
    outcome.results.steps['seconds']['Focal'] = [9.0, 18.0, 9.9]
    for run in outcome.runs:
        run['curves'] = {'coco/bbox_mAP': [(50, 40.0 + run['seed']), (100, 50.0)]}
    focal, shift = rows(outcome.tables())[-2:]
    assert focal[1] == '-' and shift[1] == '50.0 (50.0 to 50.0)'


def test_each_pair_is_tested_once(outcome):
    fields = {**vars(outcome.comparison), 'against': ['Focal', 'shift only']}
    tables = rows(Outcome(Comparison(**fields), outcome.results).tables())
    focal, shift = tables[2], tables[3]
    assert focal[2:4] == ['', ''] and 'p = ' in shift[2] and shift[3] == ''


def test_other_machines_and_several_commits_are_told(outcome):
    assert 'another machine' not in outcome.tables() and 'commits' not in outcome.tables()
    outcome.results.steps['machine'] = dict(date='2026-11-28', processor='6502')
    for run in outcome.runs:
        run['commit'] = f'{run["seed"] % 2}abcdef01'
    page = outcome.tables()
    assert 'another machine: processor 6502' in page and '0abcdef, 1abcdef' in page


def test_only_seeds_of_all_variants_count(outcome):
    results = outcome.results
    results.runs = [
        each for each in results.runs if (each['variant'], each['seed']) != ('Focal', 2)
    ]
    partly = Outcome(outcome.comparison, results)
    assert {each['seed'] for each in partly.runs} == {0, 1, 3}
    assert set(partly.last('coco/bbox_mAP')['shift only']) == {0, 1, 3}
    assert '3 seeds each' in partly.tables()


def test_without_times_there_is_no_table_of_equal_time(outcome):
    outcome.results.steps = {}
    assert 'equal time' not in outcome.tables()
    assert len(outcome.draw().axes) == 1


def test_the_figure_has_a_curve_and_a_band_for_each_variant(outcome):
    steps, times = outcome.draw().axes
    assert [line.get_label() for line in steps.lines] == ['Focal', 'shift only']
    assert list(steps.lines[1].get_xdata()) == [50, 100]
    assert list(times.lines[1].get_xdata()) == [100, 200]
    assert list(times.lines[0].get_xdata()) == [50, 100]
    assert len(steps.collections) == len(times.collections) == 2
    assert steps.lines[0].get_color() != steps.lines[1].get_color()


# --- What the docs say --------------------------------------------------------------------------


@pytest.mark.parametrize('name', NAMES)
def test_tables_of_the_docs_follow_from_the_results(name):
    comparison = read_comparison(COMPARISONS / f'{name}.py')
    results = Results(ROOT / f'docs/tables/compare_{name}.json', comparison)
    outcome = Outcome(comparison, results)
    assert {run['seed'] for run in outcome.runs} == set(range(comparison.seeds))
    page = (ROOT / 'docs/tables/comparisons.md').read_text()
    assert with_tables(page, name, outcome.tables()) == page
    assert f'images/compare_{name}.png' in page
