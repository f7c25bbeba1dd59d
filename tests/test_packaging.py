"""Metadata of the package, requirements, and version checks say the same."""

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
