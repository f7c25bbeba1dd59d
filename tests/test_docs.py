"""The pages: links, commands, examples and messages, and that Sphinx builds them."""

import argparse
import ast
import doctest
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mmfocal.engine import load_config
from mmfocal.ops import attention
from mmfocal.weights.safe_loading import names_weights

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')])
PAGES = [page for page in PAGES if '_build' not in page.parts]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# With the notebooks, of which the cells with prose count.
NOTEBOOKS = [str(page.relative_to(ROOT)) for page in sorted((ROOT / 'docs').glob('*.ipynb'))]
PROSE = [*NAMES, *NOTEBOOKS]
OWN_CONFIGS = (
    'mine.py',
    'streets.py',
    'bccd.py',
    'camvid.py',
)  # that a command before has written
FENCED = re.compile(r'^```(.*?)\n(.*?)^```', re.DOTALL | re.MULTILINE)


def blocks(text, kind):
    """Contents of fenced blocks of a kind, '' for those that name none."""
    return [content for found, content in FENCED.findall(text) if found == kind]


def page_text(name):
    """A page as Markdown."""
    text = (ROOT / name).read_text()
    if not name.endswith('.ipynb'):
        return text
    cells = json.loads(text)['cells']
    prose = (cell['source'] for cell in cells if cell['cell_type'] == 'markdown')
    return '\n\n'.join(''.join(source) for source in prose) + '\n'


def anchors(text):
    """Of headings, as GitHub makes them."""
    found = set()
    for title in re.findall(r'^#+ (.+)$', FENCED.sub('', text), re.MULTILINE):
        slug = re.sub(r'[^\w\- ]', '', title.strip().lower().replace('`', ''))
        slug = slug.replace(' ', '-')
        number = sum(each == slug or each.startswith(f'{slug}-~') for each in found)
        found.add(f'{slug}-{number}' if number else slug)
    return found


# One question each, from the first command or picture to where to go next.
CHAPTERS = [
    'docs/quick_start.ipynb',
    *(
        f'docs/{name}.md'
        for name in (
            *('training', 'configs', 'weights', 'inference', 'evaluation', 'deployment'),
            *('how_it_works', 'reliability', 'performance', 'extending'),
        )
    ),
]
REFERENCE = ['docs/model_zoo.md', 'docs/troubleshooting.md']  # and docs/api, docs/tables


def prose_lines(name):
    """Lines of a page that are not rows of a table."""
    lines = page_text(name).rstrip('\n').splitlines()
    return [line for line in lines if not line.startswith('|')]


def test_there_are_these_pages_and_they_stay_short():
    found = {name for name in PROSE if str(Path(name).parent) == 'docs'}
    assert found == {*CHAPTERS, *REFERENCE, 'docs/index.md'}
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 130
    assert sum(len(prose_lines(name)) for name in ['README.md', *found]) <= 1600


@pytest.mark.parametrize('name', CHAPTERS)
def test_chapters_begin_with_a_command_or_a_picture_and_lead_on(name):
    lines = page_text(name).rstrip('\n').splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(('```', '![')))
    assert first < 10
    last = page_text(name).rstrip('\n').rpartition('\n\n')[2]
    assert last.startswith('**Next:**') or '## Next' in lines, last
    assert '](' in last


# Not measured at some time, but read by a test with every change.
UNDATED = ('index', 'recipes', 'ablations', 'bad_input')


@pytest.mark.parametrize('path', sorted((ROOT / 'docs/tables').glob('*.md')), ids=lambda p: p.stem)
def test_tables_say_when_they_were_made(path):
    dated = re.search(r'\b20\d\d-\d\d-\d\d\b|\b\d+ [A-Z]\w+ 20\d\d\b', path.read_text())
    assert bool(dated) != (path.stem in UNDATED)


def test_images_of_the_pages_are_there_and_all_are_shown():
    shown = {
        (ROOT / name).parent / target
        for name in PROSE
        for target in re.findall(r'!\[[^\]]*\]\(([^)]+)\)', page_text(name))
    }
    assert {path.resolve() for path in shown} == {*(ROOT / 'docs/images').iterdir()}


def test_pages_are_found():
    assert {'README.md', 'docs/index.md', 'docs/tables/scaling.md', 'SECURITY.md'} <= set(NAMES)


@pytest.mark.parametrize('name', PROSE)
def test_links_inside_lead_somewhere(name):
    page = ROOT / name
    prose = FENCED.sub('', page_text(name))
    dead = []
    for target in re.findall(r'\]\(([^)\s]+)\)', re.sub(r'`[^`\n]*`', '', prose)):
        if re.match(r'[a-z]+:', target):
            continue
        path, _, anchor = target.partition('#')
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (
            anchor and anchor not in anchors(page_text(str(file.relative_to(ROOT))))
        ):
            dead.append(target)
    assert not dead


@pytest.mark.parametrize('name', PROSE)
def test_paths_in_code_font_are_there(name):
    """Of files of the repository, where no pattern or placeholder is in them."""
    text = FENCED.sub('', page_text(name))
    pattern = (
        r'`((?:tools|docs|configs|mmfocal|tests|requirements)/[\w./\-]+\.(?:py|sh|md|txt|yaml))`'
    )
    paths = [path for path in re.findall(pattern, text) if 'NAME' not in path]
    assert not [path for path in paths if not (ROOT / path).exists()]


TARGETS = set(re.findall(r'^([a-z\-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
# Of a line with a command of ours, maybe after variables; others show files, or install something.
STARTS = re.compile(r'([A-Z_]+=\S+ )*(mmfocal |python |tools/\w|make |sbatch )')
# A command inside a sentence, with its arguments.
INLINE = re.compile(r'(python tools/\S+ .|python -m tools|mmfocal \w+ .|tools/\w+\.sh .|make .)')
# What pages write for something of the reader's, where a parser wants a number.
NUMBERS = {'X': '12', 'Y': '34'}


class Parsed(Exception):  # noqa: N818  no error
    """Carries what a tool's own parser made of its arguments."""


def commands(name):
    """Commands of a page's blocks, and those that stand in its prose with their arguments."""
    text = page_text(name)
    yield from commands_of(''.join(blocks(text, '') + blocks(text, 'bash')))
    if name == 'CHANGELOG.md':  # names options without what they need
        return
    prose = '\n'.join(line for line in FENCED.sub('', text).splitlines() if line[:1] != '|')
    for code in re.findall(r'`([^`]+)`', prose):
        command = ' '.join(code.split())
        if INLINE.match(command) and not re.search(r'TOOL|\.\.\.| \|', command):
            yield from commands_of(command)


def commands_of(text):
    """Words of each line of a block of commands, without what introduces or follows a command."""
    for line in text.replace('\\\n', ' ').splitlines():
        for part in re.split(r'&&|[;|]', re.sub(r'\s#.*', '', line)):
            if not STARTS.match(part.strip()):
                continue
            words = shlex.split(part)
            while words and re.fullmatch(r'[A-Z_]+=\S*', words[0]):
                del words[0]
            yield words


def module_and_arguments(words):
    """Of a command with a tool of ours; None for other programs.

    Launchers of several processes pass on what follows the number of GPUs, or the work folder.
    """
    first, *rest = words
    if first == 'mmfocal':
        return f'mmfocal.cli.{rest[0]}', rest[1:]
    if first.startswith('python') and rest[0] == '-m':
        return rest[1], rest[2:]
    if first.startswith('python'):
        folder = 'mmfocal.cli' if rest[0].startswith('tools/') else 'tests'
        assert (ROOT / rest[0]).is_file(), words
        return f'{folder}.{Path(rest[0]).stem}', rest[1:]
    launcher = next((word for word in words if re.match(r'tools/\w+\.(sh|sbatch)$', word)), None)
    if launcher is None:
        return None
    assert (ROOT / launcher).is_file(), words
    rest = words[words.index(launcher) + 1 :]
    if 'slurm_train.sh' in launcher:
        rest = rest[2:]  # PARTITION JOB
    if 'slurm' in launcher:
        return 'mmfocal.cli.train', [rest[0], '--work-dir', *rest[1:]]
    if 'test' in launcher:  # CONFIG CHECKPOINT GPUS ...
        return 'mmfocal.cli.test', [*rest[:2], *rest[3:]]
    return 'mmfocal.cli.train', [rest[0], *rest[2:]]


def parsed(module, arguments, monkeypatch):
    """The arguments as the tool's own parser reads them."""
    original = argparse.ArgumentParser.parse_known_args

    def stop(parser, args=None, namespace=None):
        found, unknown = original(parser, args, namespace)
        assert not unknown, unknown
        raise Parsed(found)

    monkeypatch.setattr(sys, 'argv', [module, *(NUMBERS.get(each, each) for each in arguments)])
    with monkeypatch.context() as patch, pytest.raises(Parsed) as caught:
        patch.setattr(argparse.ArgumentParser, 'parse_known_args', stop)
        importlib.import_module(module).main()
    return caught.value.args[0]


@pytest.mark.parametrize('name', PROSE)
def test_commands_are_read_by_their_tools(name, monkeypatch):
    """With the configs that they name, and values of these that are there to be changed."""
    for words in commands(name):
        if words[0] == 'make':
            assert {each for each in words[1:] if '=' not in each} <= TARGETS, words
            continue
        if (found := module_and_arguments(words)) is None or found[0].startswith('tests.'):
            continue
        args = vars(parsed(*found, monkeypatch))
        for config in (args.get('config'), args.get('base')):
            is_own = config in OWN_CONFIGS or names_weights(config or '')  # of the reader
            if config and not (config.isupper() or is_own):
                load_config(config, args.get('cfg_options'))


def test_commands_are_found():
    found = [module_and_arguments(words) for name in PROSE for words in commands(name)]
    tools = {module for module, _ in filter(None, found)}
    assert len(found) > 60
    assert {'mmfocal.cli.train', 'mmfocal.cli.show_attention', 'tools.dev.benchmark'} <= tools


@pytest.mark.parametrize(
    'words',
    [
        'mmfocal show_attention mine.py work_dirs/mine photo.jpg --point 200',
        'mmfocal train mine.py --save-bset',
        'tools/dist_train.sh configs/mmdet/focal_maskrcnn_3x.py 8 --epoch 3',
    ],
)
def test_a_wrong_command_is_noticed(words, monkeypatch, capsys):
    with pytest.raises((SystemExit, AssertionError, pytest.fail.Exception)):
        parsed(*module_and_arguments(shlex.split(words)), monkeypatch)


def examples(name):
    """Blocks of Python that are no dialogue, which doctest runs."""
    return [each for each in blocks(page_text(name), 'python') if '>>> ' not in each]


def is_config(example):
    """Whether it has nothing but values."""
    nodes = list(ast.walk(ast.parse(example)))
    calls = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    return calls <= {'dict'} and not any(isinstance(node, ast.ImportFrom) for node in nodes)


@pytest.mark.parametrize('name', [name for name in PROSE if any(map(is_config, examples(name)))])
def test_examples_of_configs_load(name, tmp_path):
    for number, example in enumerate(examples(name)):
        if not is_config(example):
            continue
        path = tmp_path / f'example_{number}.py'
        base = '' if '_base_' in example else "_base_ = 'mmfocal::mmdet/focal_maskrcnn_3x.py'\n"
        path.write_text(base + example)
        cfg = load_config(path)
        assert cfg.train_dataloader.batch_size and 'Focal' in cfg.model.backbone.type


@pytest.mark.parametrize('name', [name for name in PROSE if examples(name)])
def test_examples_import_what_is_there(name):
    """Those that need a trained model are run where there is one: tests/test_own_data.py."""
    for example in examples(name):
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith('mmfocal'):
                module = importlib.import_module(node.module)
                assert [each.name for each in node.names if not hasattr(module, each.name)] == []


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


def test_table_of_clients_has_their_versions_and_tests():
    table = (ROOT / 'docs/tables/clients.md').read_text()
    rows = re.findall(r'^\| ([\w-]+) \| (\d\S+) \| .* \| `(\w+\.py)::(\w+)` \|$', table, re.M)
    direct = (ROOT / 'requirements/clients.txt').read_text().partition('# What they bring')[0]
    pinned = dict(re.findall(r'^([\w-]+)==(\S+)$', direct, re.M))
    stack = {}
    for name in ('official', 'constraints'):
        text = (ROOT / f'requirements/{name}.txt').read_text()
        stack |= dict(re.findall(r'^([\w-]+)==([^\s;]+)', text, re.M))
    assert set(pinned) <= {name for name, *_ in rows}
    for name, version, path, test in rows:
        assert version == {**stack, **pinned}[name], name
        assert f'def {test}(' in (ROOT / 'tests/clients' / path).read_text()
