"""Files for GitHub and pre-commit: they can be read, and do what the Makefile does."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TEMPLATES = sorted((ROOT / '.github/ISSUE_TEMPLATE').glob('*.yml'))
WORKFLOWS = sorted((ROOT / '.github/workflows').glob('*.yml'))


class NoDuplicates(yaml.SafeLoader):
    """Refuses what GitHub refuses, and PyYAML takes without a word."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f'{node.start_mark}: a key is there twice'
        return super().construct_mapping(node, deep)


def read(path):
    return yaml.load(path.read_text(), NoDuplicates)


def recipe(target):
    makefile = (ROOT / 'Makefile').read_text()
    return re.search(rf'^{target}:.*\n((?:\t.*\n)+)', makefile, re.MULTILINE)[1]


def test_hooks_before_commits_are_what_make_lint_runs():
    (repo,) = read(ROOT / '.pre-commit-config.yaml')['repos']
    lint = recipe('lint').replace('$(PY) -m ', '').replace('$(VENV)/bin/', '')
    commands = [line.strip().removeprefix('@') for line in lint.splitlines()]
    assert [hook['entry'] for hook in repo['hooks']] == commands
    assert not any(hook['pass_filenames'] for hook in repo['hooks'])


def test_hooks_have_the_versions_of_the_environment():
    (repo,) = read(ROOT / '.pre-commit-config.yaml')['repos']
    requirements = (ROOT / 'requirements/dev.txt').read_text()
    pins = {line.partition(';')[0].strip() for line in requirements.splitlines()}
    for hook in repo['hooks']:
        (pin,) = hook['additional_dependencies']
        assert pin in pins, hook['id']


@pytest.mark.parametrize('path', WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_is_pinned_and_ends(path):
    workflow = read(path)
    assert workflow[True].keys() == {'push', 'pull_request'}  # `on`, as YAML reads it
    assert workflow['permissions'] == {'contents': 'read'}
    for job in workflow['jobs'].values():
        assert 0 < job['timeout-minutes'] <= 360
        uses = [step['uses'] for step in job['steps'] if 'uses' in step]
        assert uses and all(re.fullmatch(r'actions/[\w-]+@[0-9a-f]{40}', each) for each in uses)


def test_workflow_runs_the_whole_check_on_pythons_that_are_supported():
    (job,) = read(ROOT / '.github/workflows/ci.yml')['jobs'].values()
    assert job['steps'][-1] == {'run': '.ci/run'} and (ROOT / '.ci/run').stat().st_mode & 0o111
    pythons = set(job['strategy']['matrix']['python'])
    setup = (ROOT / 'requirements/install.sh').read_text()
    assert pythons and all(f'python{python}' in setup for python in pythons)
    (cache,) = (step['with'] for step in job['steps'] if 'cache' in step.get('uses', ''))
    assert job['env']['MMFOCAL_CACHE'].endswith(cache['path'].removesuffix('/wheels'))
    files = re.findall(r"'([\w/.]+)'", cache['key'])
    assert files and all((ROOT / file).is_file() for file in files)


@pytest.mark.parametrize('path', TEMPLATES, ids=lambda path: path.stem)
def test_issue_forms_ask_for_the_doctor(path):
    form = read(path)
    assert form['name'] and form['description']
    ids = [field['id'] for field in form['body']]
    assert len(ids) == len(set(ids))
    for field in form['body']:
        assert field['type'] in {'textarea', 'input', 'dropdown', 'checkboxes'}
        assert field['attributes']['label']
    doctor = form['body'][ids.index('doctor')]
    assert '`mmfocal doctor`' in doctor['attributes']['label']
    assert path.stem != 'bug' or doctor['validations']['required']


def test_there_are_forms_and_a_workflow():
    assert [path.stem for path in TEMPLATES] == ['bug', 'request']
    assert [path.stem for path in WORKFLOWS] == ['ci']
