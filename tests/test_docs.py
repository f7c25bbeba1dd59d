"""The pages: links, commands, examples and messages, and that Sphinx builds them."""

import doctest
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mmfocal.ops import attention

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')])
PAGES = [page for page in PAGES if '_build' not in page.parts]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCED = re.compile(r'^```(.*?)\n(.*?)^```', re.DOTALL | re.MULTILINE)


def blocks(text, kind):
    """Contents of fenced blocks of a kind, '' for those that name none."""
    return [content for found, content in FENCED.findall(text) if found == kind]


def anchors(text):
    """Of headings, as GitHub makes them."""
    found = set()
    for title in re.findall(r'^#+ (.+)$', FENCED.sub('', text), re.MULTILINE):
        slug = re.sub(r'[^\w\- ]', '', title.strip().lower().replace('`', ''))
        slug = slug.replace(' ', '-')
        number = sum(each == slug or each.startswith(f'{slug}-~') for each in found)
        found.add(f'{slug}-{number}' if number else slug)
    return found


def test_pages_are_found():
    assert {'README.md', 'docs/index.md', 'docs/scaling.md', 'SECURITY.md'} <= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_links_inside_lead_somewhere(name):
    page = ROOT / name
    prose = FENCED.sub('', page.read_text())
    dead = []
    for target in re.findall(r'\]\(([^)\s]+)\)', re.sub(r'`[^`\n]*`', '', prose)):
        if re.match(r'[a-z]+:', target):
            continue
        path, _, anchor = target.partition('#')
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            dead.append(target)
    assert not dead


@pytest.mark.parametrize('name', NAMES)
def test_paths_in_code_font_are_there(name):
    """Of files of the repository, where no pattern or placeholder is in them."""
    text = FENCED.sub('', (ROOT / name).read_text())
    pattern = (
        r'`((?:tools|docs|configs|mmfocal|tests|requirements)/[\w./\-]+\.(?:py|sh|md|txt|yaml))`'
    )
    paths = [path for path in re.findall(pattern, text) if 'NAME' not in path]
    assert not [path for path in paths if not (ROOT / path).exists()]


COMMAND = re.compile(
    r'(?:^|\s)(?:python tools/(?P<py>\w+)\.py|mmfocal (?P<tool>[a-z_]+)'
    r'|tools/(?P<sh>\w+)\.(?P<kind>sh|sbatch)|python tests/(?P<test>\w+)\.py'
    r'|python -m (?P<module>tools\.dev\.\w+)'
    r'|make (?P<target>[a-z\-]+))(?P<rest>[^|;&]*)'
)


@pytest.mark.parametrize('name', NAMES)
def test_commands_exist_and_know_their_options(name):
    text = (ROOT / name).read_text()
    lines = ''.join(blocks(text, '')).replace('\\\n', ' ').splitlines()
    targets = set(re.findall(r'^([a-z\-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    common = (ROOT / 'mmfocal/cli/_arguments.py').read_text()
    for line in lines:
        line = line.partition('    #')[0]
        if not (found := COMMAND.search(line)):
            continue
        if target := found['target']:
            assert target in targets, line
            continue
        tool = found['py'] or found['tool']
        if found['sh']:
            path = ROOT / 'tools' / f'{found["sh"]}.{found["kind"]}'
            tool = 'train' if 'train' in found['sh'] else 'test'
        else:
            module = found['module'] or f'mmfocal.cli.{tool}'
            module = f'tests.{found["test"]}' if found['test'] else module
            path = ROOT / f'{module.replace(".", "/")}.py'
            assert not found['py'] or (ROOT / f'tools/{tool}.py').is_file(), line
        assert path.is_file(), line
        source = common + path.read_text()
        if found['sh']:
            source += (ROOT / f'mmfocal/cli/{tool}.py').read_text()
        options = re.findall(r'\s(--[a-z][a-z\-]+)', found['rest'].split('--cfg-options')[0])
        unknown = [option for option in options if f"'{option}'" not in source]
        assert not unknown, f'{path.name}: {line}'


@pytest.mark.parametrize('name', [name for name in NAMES if '>>> ' in (ROOT / name).read_text()])
def test_examples_print_what_the_page_says(name, monkeypatch):
    monkeypatch.setattr(attention, 'print_log', lambda *_, **__: None)
    examples = '\n'.join(blocks((ROOT / name).read_text(), 'python'))
    test = doctest.DocTestParser().get_doctest(examples, {}, name, name, 0)
    assert len(test.examples) > 2
    report = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert not report, ''.join(report)


def test_our_messages_are_in_the_source():
    text = (ROOT / 'docs/troubleshooting.md').read_text()
    messages = re.findall(r'`([^`]+)` \(ours\)', text)
    assert len(messages) > 10
    files = [*(ROOT / 'mmfocal').rglob('*.py'), *(ROOT / 'tools').glob('*.*')]
    # Texts that continue in the next line are one.
    source = ''.join(path.read_text() for path in files if path.is_file())
    source = re.sub(r"""['"]\s*\n\s*f?['"]""", '', source)
    assert not [message for message in messages if message not in source]


def test_messages_of_others_are_as_the_page_says(tmp_path):
    from mmdet.registry import MODELS
    from mmengine.logging import HistoryBuffer

    page = (ROOT / 'docs/troubleshooting.md').read_text()

    def says(fragment):
        return re.escape(fragment) if fragment in page else 'not on the page'

    with pytest.raises(ValueError, match=says('Expected more than 1 value per channel when')):
        nn.BatchNorm2d(3)(torch.rand(1, 3, 1, 1))
    backbone = dict(type='mmfocal.FocalTransformer', depth=50)
    with pytest.raises(TypeError, match=says("got an unexpected keyword argument 'depth'")):
        MODELS.build(backbone)
    code = "from mmdet.registry import MODELS; MODELS.build(dict(type='FocalTransformer'))"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'FocalTransformer is not in the mmdet::model registry' in done.stderr
    assert 'FocalTransformer is not in the mmdet::model registry' in page
    torch.save(HistoryBuffer(), tmp_path / 'c.pth')
    with pytest.raises(Exception, match=says('Weights only load failed')):
        torch.load(tmp_path / 'c.pth', weights_only=True)


@pytest.mark.skipif(sys.version_info < (3, 11), reason='requirements/docs.txt is for 3.11')
def test_sphinx_builds_the_pages_without_a_warning(tmp_path):
    assert importlib.util.find_spec('sphinx'), 'Run: make env'
    done = subprocess.run(
        [
            *(sys.executable, '-W', 'ignore', '-m', 'sphinx', '-W', '--keep-going', '-q'),
            *('-b', 'html', '-d', tmp_path / 'doctrees', ROOT / 'docs', tmp_path / 'html'),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    models = (tmp_path / 'html/api/models.html').read_text()
    assert 'mmfocal.models.focal_transformer.FocalTransformer' in models
