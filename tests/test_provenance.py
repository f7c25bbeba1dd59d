"""What checkpoints say of where they come from."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmfocal.engine.hooks import provenance
from mmfocal.version import __version__
from mmfocal.weights.safe_loading import load_checkpoint_file


def git(folder, *args):
    who = ('-c', 'user.name=A', '-c', 'user.email=a@example.org')
    subprocess.run(['git', '-C', folder, *who, *args], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / 'mine'
    (folder / 'configs').mkdir(parents=True)
    (folder / 'configs/a.py').write_text('a = 1')
    (folder / '.gitignore').write_text('packages/')
    git(folder, 'init', '-q')
    git(folder, 'add', '.')
    git(folder, 'commit', '-qm', 'First')
    return folder


def test_commit_and_changes_are_named(repository):
    state = provenance.git_state(repository / 'configs')
    head = (repository / '.git/HEAD').read_text().split()[-1]
    assert state == dict(
        folder=str(repository.resolve()),
        commit=(repository / '.git' / head).read_text().strip(),
        changed=[],
        more=0,
    )
    (repository / 'configs/a.py').write_text('a = 2')
    for i in range(provenance.LISTED + 2):
        (repository / f'new_{i:02}.py').touch()
    changed = provenance.git_state(repository)
    assert changed['commit'] == state['commit']
    assert changed['changed'][:2] == [' M configs/a.py', '?? new_00.py']
    assert (len(changed['changed']), changed['more']) == (provenance.LISTED, 3)


def test_folders_outside_of_repositories_have_no_state(repository, monkeypatch):
    assert provenance.git_state(repository.parent) is None
    packages = repository / 'packages/site'
    packages.mkdir(parents=True)
    assert provenance.git_state(packages) is None, 'ignored by the repository around it'
    empty = repository.parent / 'empty'
    empty.mkdir()
    git(empty, 'init', '-q')
    assert provenance.git_state(empty)['commit'] == ''
    monkeypatch.setenv('PATH', str(repository))
    assert provenance.git_state(repository) is None, 'there is no git'


def test_provenance_says_what_repeats_a_run(repository, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'argv', ['tools/train.py', 'a b.py', '--seed', '3'])
    found = provenance.provenance(str(repository / 'configs/a.py'))
    assert found['command'].endswith(" tools/train.py 'a b.py' --seed 3")
    assert found['versions']['mmfocal'] == __version__
    assert found['versions']['torch'] == torch.__version__
    assert any('mmcv' in name for name in found['versions'])
    assert found['machine']['gpus'] == [
        torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
    ]
    assert str(repository.resolve()) in [state['folder'] for state in found['code']]
    # As data, it comes back from a checkpoint that is loaded safely.
    torch.save({provenance.KEY: found}, tmp_path / 'c.pth')
    assert load_checkpoint_file(tmp_path / 'c.pth')[provenance.KEY] == found
    text = provenance._text(found)
    assert 'Command: ' in text and f'Code: {repository.resolve()} at ' in text


def test_repository_of_both_is_named_once(monkeypatch):
    here = Path(__file__).parent
    found = provenance.provenance(str(here / 'conftest.py'))
    assert len(found['code']) == len({state['folder'] for state in found['code']})
