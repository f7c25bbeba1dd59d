"""Metadata of the package, requirements, and version checks say the same."""

import os
import re
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from mmfocal import __version__
from mmfocal.compat import PYTHON, STACKS, TORCH

ROOT = Path(__file__).parents[1]
REQUIREMENTS = sorted((ROOT / 'requirements').glob('*.txt'))


def requirement_lines(path):
    lines = (line.partition('#')[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith('-')]


@pytest.fixture(scope='module')
def metadata(tmp_path_factory):
    """What setup.py says of the package, as setuptools writes it."""
    folder = tmp_path_factory.mktemp('metadata')
    command = [sys.executable, 'setup.py', '-q', 'egg_info', '--egg-base', str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return PathDistribution(folder / 'mmfocal.egg-info')


def requires(metadata, extra=None):
    """Requirements of an extra, or those that always hold."""
    pairs = (line.partition(';')[::2] for line in metadata.requires)
    wanted = f'extra == "{extra}"' if extra else ''
    return {requirement.strip() for requirement, marker in pairs if marker.strip() == wanted}


def test_version_and_licence(metadata):
    assert metadata.version == __version__
    assert metadata.metadata['License'] == 'MIT'
    assert (ROOT / 'LICENSE').read_text().startswith('MIT License')


def test_python_versions_are_those_of_the_check(metadata):
    assert metadata.metadata['Requires-Python'] == f'>={PYTHON.at_least},<{PYTHON.below}'


def test_core_requirements_name_no_stack(metadata):
    core = requires(metadata)
    assert f'torch>={TORCH.at_least}' in core
    names = {re.match(r'[\w-]+', requirement)[0] for requirement in core}
    assert not names & {p.distribution for packages in STACKS.values() for p in packages.values()}


@pytest.mark.parametrize('stack', STACKS)
def test_tested_versions_are_the_pinned_ones(stack, metadata):
    pins = requirement_lines(ROOT / f'requirements/{stack}.txt')
    tested = {f'{p.distribution}=={p.tested}' for p in STACKS[stack].values()}
    assert tested <= set(pins)
    extras = ('onedl',) if stack == 'onedl' else ('mmdet', 'mmseg', 'mmpretrain')
    assert tested <= set.union(*(requires(metadata, extra) for extra in extras))
    for package in STACKS[stack].values():
        assert package.accepts(package.tested)


def test_tested_torch_is_the_pinned_one():
    assert requirement_lines(ROOT / 'requirements/torch.txt') == [f'torch=={TORCH.tested}']
    assert TORCH.accepts(TORCH.tested)


def test_every_requirement_is_pinned_once_for_every_python():
    """By its own file, or by the constraints, with one line for each Python where they differ."""
    constraints = requirement_lines(ROOT / 'requirements/constraints.txt')
    constrained = {line.partition('==')[0] for line in constraints}
    for path in REQUIREMENTS:
        for line in requirement_lines(path):
            assert '==' in line or line in constrained, f'{path.name}: {line}'

    lines_by_name = {}
    for line in constraints:
        name, _, marker = line.partition('==')[0], *line.partition('; ')[1:]
        lines_by_name.setdefault(name.lower(), []).append(marker)
    old, new = 'python_version < "3.11"', 'python_version >= "3.11"'
    for name, markers in lines_by_name.items():
        assert sorted(markers) in ([''], [old], [old, new]), name


def test_files_of_requirements_apply_the_constraints():
    for path in REQUIREMENTS:
        if path.name != 'constraints.txt':
            assert '-c constraints.txt' in path.read_text().splitlines(), path.name


# --- The wheel ------------------------------------------------------------------------------

USER_CONFIG = """
_base_ = 'mmfocal::mmdet/focal_maskrcnn_shapes.py'
num_images = dict(train=4, val=2)
dataset = dict(data_root='shapes/', num_images=num_images)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='shapes/annotations/instances_val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_iters=2, val_interval=2)
"""


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """Folder with what a wheel of this checkout holds."""
    folder = tmp_path_factory.mktemp('wheel')
    for command in (
        f'setup.py -q egg_info -e {folder} build -b {folder}/build bdist_wheel -d {folder}',
        f'-m pip install -q --no-deps --no-index -t {folder}/site -f {folder} mmfocal',
    ):
        done = subprocess.run(
            [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    return folder / 'site'


def in_other_folder(folder, installed, *arguments):
    command = [sys.executable, '-W', 'ignore', '-m', 'mmfocal', *map(str, arguments)]
    environment = {**os.environ, 'PYTHONPATH': str(installed), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_wheel_carries_configs_and_tools(installed):
    for kind in ('configs', 'tools'):
        ours = {path.relative_to(ROOT / kind) for path in (ROOT / kind).rglob('*.[psy]*')}
        ours = {path for path in ours if '__pycache__' not in path.parts}
        carried = installed / 'mmfocal/.mim' / kind
        assert ours == {
            path.relative_to(carried)
            for path in carried.rglob('*')
            if path.is_file() and '__pycache__' not in path.parts
        }
    assert (installed / 'mmfocal/.mim/model-index.yml').is_file()
    assert not list(installed.glob('tests*'))


def test_wheel_trains_and_tests_from_another_folder(installed, tmp_path):
    (tmp_path / 'mine.py').write_text(USER_CONFIG)
    status, text = in_other_folder(tmp_path, installed, 'train', 'mine.py', '--work-dir', 'run')
    assert status == 0, text
    assert 'registry tree' not in text  # no scope that mmengine does not know
    log = (tmp_path / 'run/mine.py').read_text()
    assert "type='FocalTransformer'" in log
    status, text = in_other_folder(
        tmp_path, installed, 'test', 'mine.py', 'run/iter_2.pth', '--out', 'metrics.json'
    )
    assert status == 0 and 'coco/bbox_mAP' in (tmp_path / 'metrics.json').read_text(), text


def test_tools_are_named_by_the_command(installed, tmp_path):
    status, text = in_other_folder(tmp_path, installed)
    assert status == 0
    assert {line.split()[0] for line in text.splitlines() if line.startswith('  ')} == {
        path.stem for path in (ROOT / 'tools').glob('[!_]*.py')
    }
    status, text = in_other_folder(tmp_path, installed, 'nonsense')
    assert status == 2 and "there is no tool 'nonsense'" in text
