"""Metadata of the package, requirements, and version checks say the same."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
import yaml

from mmfocal import __version__
from mmfocal.utils.compat import PYTHON, STACKS, TORCH

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
    assert yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version'] == __version__
    status = metadata.metadata.get_all('Classifier')[0]
    assert status.endswith('Beta' if 'rc' in __version__ else 'Stable')


RELATIVE_LINK = re.compile(r'\[[^\]]*\]\((?!https?://)[^)]*\)')


def test_description_has_no_links_that_an_index_cannot_follow(metadata, tmp_path):
    assert RELATIVE_LINK.search((ROOT / 'README.md').read_text())
    text = metadata.metadata['Description'] or metadata.metadata.get_payload()
    assert 'Focal Transformer](https://' in text and 'Quick start in a notebook' in text
    assert '![' not in text and not RELATIVE_LINK.search(text)

    # As it will be when the repository has an address.
    source = copy_of_source(tmp_path / 'source')
    setup = (source / 'setup.py').read_text()
    assert "URL = ''" in setup
    address = 'https://host/owner/mmfocal'
    (source / 'setup.py').write_text(setup.replace("URL = ''", f'URL = {address!r}'))
    subprocess.run([sys.executable, 'setup.py', '-q', 'egg_info'], cwd=source, check=True)
    text = (source / 'mmfocal.egg-info/PKG-INFO').read_text()
    assert f'Home-page: {address}\n' in text
    assert f']({address}/raw/v{__version__}/docs/images/keys.png)' in text
    assert f'[Quick start]({address}/blob/v{__version__}/docs/quick_start.ipynb)' in text
    assert not RELATIVE_LINK.search(text)


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


def test_all_is_everything_but_the_forks(metadata):
    everything = requires(metadata, 'all')
    for extra in ('mmdet', 'mmseg', 'mmpretrain', 'safetensors', 'export'):
        assert requires(metadata, extra) <= everything, extra
    forks = {package.distribution for package in STACKS['onedl'].values()}
    assert not names_of(everything) & forks


PACKAGE = ROOT / 'mmfocal'
# Modules that are imported only where their package is there, or by configs of its family.
OPTIONAL = {
    'triton': ('ops/triton/',),
    'mmdet': ('detection/', 'datasets/coco_shapes.py'),
    'scipy': ('detection/',),  # which mmdet requires
    'mmseg': ('datasets/seg_shapes.py', 'visualization/label_maps.py'),
    'mmpretrain': ('datasets/cls_shapes.py',),
}


def imports_of(node, in_function=False):
    """Top-level names of the packages that code imports, and whether that is in a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and 'TYPE_CHECKING' in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom) and not child.level:
            names = [child.module]
        else:
            names = []
        yield from ((name.partition('.')[0], in_function) for name in names)
        yield from imports_of(child, in_function or isinstance(child, ast.FunctionDef))


def names_of(requirements):
    return {re.match(r'[\w-]+', requirement)[0].lower() for requirement in requirements}


def test_requirements_cover_every_import(metadata):
    distributions = dict(PIL='pillow', cv2='opencv-python', mmseg='mmsegmentation', yaml='pyyaml')
    needed = {'mmengine', 'mmcv', *names_of(requires(metadata))}  # two for either stack
    extras = [requires(metadata, extra) for extra in metadata.metadata.get_all('Provides-Extra')]
    optional = set().union(*map(names_of, extras))
    assert {'mmdet', 'mmpretrain', 'onnxscript', 'safetensors'} <= optional - needed
    for path in PACKAGE.rglob('*.py'):
        place = path.relative_to(PACKAGE).as_posix()
        for name, in_function in imports_of(ast.parse(path.read_text())):
            if name in sys.stdlib_module_names or name == 'mmfocal' or '.mim' in path.parts:
                continue
            may_lack = in_function or place.startswith(OPTIONAL.get(name, '-'))
            declared = needed | optional if may_lack else needed
            assert distributions.get(name, name).lower() in declared, f'{place} imports {name}'


def test_commands_start_without_what_is_optional():
    code = (
        'import importlib, pkgutil, sys\n'
        f'for name in {[*OPTIONAL, "onnx", "onnxscript", "onnxruntime", "safetensors"]}:\n'
        '    sys.modules[name] = None\n'
        'import mmfocal.cli\n'
        'for module in pkgutil.iter_modules(mmfocal.cli.__path__):\n'
        '    importlib.import_module(f"mmfocal.cli.{module.name}")\n'
    )
    command = [sys.executable, '-W', 'ignore', '-c', code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


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
    old, new = 'python_version < "3.14"', 'python_version >= "3.14"'
    for name, markers in lines_by_name.items():
        assert sorted(markers) in ([''], [old, new]), name


def test_files_of_requirements_apply_the_constraints():
    for path in REQUIREMENTS:
        if path.name != 'constraints.txt':
            assert '-c constraints.txt' in path.read_text().splitlines(), path.name


# --- mmcv ---------------------------------------------------------------------------------

# The first is mmcv 2.1.0's, and fails everywhere as that does from Python 3.13 on.
SETUPS = {
    'locals': """
def get_version():
    with open(version_file) as file:
        exec(file.read())
    if 'run_' 'path' not in pathlib.Path(__file__).read_text():
        raise KeyError('__version__')
    return locals()['__version__']
""",
    'own scope': """
def get_version():
    scope = {}
    exec(pathlib.Path(version_file).read_text(), scope)
    if 'run_' 'path' in pathlib.Path(__file__).read_text():
        raise ValueError('changed without need')
    return scope['__version__']
""",
}


def mmcv_wheel(setup, folder, torch=(2, 13, 0)):
    """Lets the script build a source with this ``setup.py`` beside this version of PyTorch."""
    source = folder / 'mmcv-2.1.0'
    source.mkdir()
    (source / 'version.py').write_text("__version__ = '2.1.0'\n")
    (source / 'PKG-INFO').write_text('Metadata-Version: 2.1\nName: mmcv\nVersion: 2.1.0\n')
    (source / 'setup.py').write_text(
        "import pathlib\nfrom setuptools import setup\nversion_file = 'version.py'\n"
        f"{setup}\nsetup(name='mmcv', version=get_version(), packages=[])\n"
    )
    shutil.make_archive(str(source), 'gztar', folder, source.name)
    (folder / 'torch.py').write_text(f'__version__ = {torch}\n')
    done = subprocess.run(
        [ROOT / 'requirements/mmcv_wheel.sh', sys.executable, 'mmcv==2.1.0', folder / 'wheels'],
        env={
            **os.environ,
            'PIP_NO_INDEX': '1',
            'PIP_FIND_LINKS': str(folder),
            'PYTHONPATH': str(folder),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (folder / 'wheels').iterdir()
    return wheel.name


@pytest.mark.parametrize('name', SETUPS)
def test_source_of_mmcv_is_repaired_where_it_has_to_be(name, tmp_path):
    wheel = mmcv_wheel(SETUPS[name], tmp_path)
    assert wheel.startswith('mmcv-2.1.0-') and wheel.endswith('.whl')


@pytest.mark.parametrize('torch, standard', [((2, 13, 0), 17), ((2, 14, 1), 20)])
def test_mmcv_is_compiled_by_the_standard_of_pytorch(torch, standard, tmp_path):
    check = f"""
cxx = '-std=c++17'
if cxx[-2:] != '{standard}':
    raise ValueError(cxx)
"""
    assert mmcv_wheel(SETUPS['locals'] + check, tmp_path, torch)


def test_mmcv_without_a_source_ends_in_a_sentence(tmp_path):
    done = subprocess.run(
        [ROOT / 'requirements/mmcv_wheel.sh', sys.executable, 'mmcv==2.1.0', tmp_path],
        env={**os.environ, 'PIP_NO_INDEX': '1', 'PIP_FIND_LINKS': ''},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.endswith('mmfocal: the source of mmcv==2.1.0 cannot be had, see above.\n')
    assert not list(tmp_path.iterdir())


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


def copy_of_source(folder):
    """What a checkout has for the package, where a build may leave what it likes."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith('.'):
            shutil.copy(path, folder)
    rubbish = shutil.ignore_patterns('__pycache__')
    for name in ('mmfocal', 'configs', 'tools', 'requirements'):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=rubbish)
    return folder


def run(python, *arguments, cwd=ROOT):
    """Runs an interpreter that sees what is installed in its environment, and nothing else."""
    variables = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    return subprocess.run(
        [python, *map(str, arguments)], cwd=cwd, env=variables, capture_output=True, text=True
    )


def build_wheel(python, folder):
    """The wheel that an interpreter's setuptools makes of the source archive that it makes."""

    def build(what, source):
        code = f'from setuptools import build_meta; build_meta.build_{what}({str(folder)!r})'
        done = run(python, '-c', code, cwd=source)
        assert done.returncode == 0, done.stderr

    build('sdist', copy_of_source(folder / 'source'))
    (archive,) = folder.glob('*.tar.gz')
    with tarfile.open(archive) as file:
        file.extractall(folder / 'unpacked', filter='data')
    build('wheel', folder / 'unpacked' / archive.name.removesuffix('.tar.gz'))
    (wheel,) = folder.glob('*.whl')
    return wheel


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """A wheel of this checkout by the setuptools that is installed here."""
    return build_wheel(sys.executable, tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='module')
def wheel_of_oldest_setuptools(tmp_path_factory):
    """The same by the oldest that pyproject.toml allows, which comes from an index."""
    folder = tmp_path_factory.mktemp('oldest')
    python = folder / 'environment/bin/python'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', python.parents[1]], check=True)
    command = (
        f'-m pip -q --python {python} install --retries 0 --timeout 20 '
        f'-c {ROOT}/requirements/dist.txt setuptools wheel'
    )
    done = run(sys.executable, *command.split())
    if done.returncode:
        pytest.skip(f'no index has the oldest setuptools: {done.stderr.strip()[-200:]}')
    return build_wheel(python, folder)


@pytest.fixture(scope='module')
def environment(request, tmp_path_factory):
    """A new environment with a wheel of this checkout, and the packages of this one for the rest.

    They are on its path by a .pth file. Those of the folder that it names are not read, which
    keeps out an editable mmfocal.
    """
    try:
        wheel = request.getfixturevalue('wheel_of_oldest_setuptools')
    except pytest.skip.Exception:
        wheel = request.getfixturevalue('wheel')
    environment = tmp_path_factory.mktemp('installed') / 'environment'
    for command in (
        f'-m venv --without-pip {environment}',
        f'-m pip -q --python {environment}/bin/python install --no-deps --no-index {wheel}',
    ):
        done = run(sys.executable, *command.split())
        assert done.returncode == 0, done.stderr
    (site_packages,) = environment.glob('lib/python*/site-packages')
    paths = sysconfig.get_paths()
    (site_packages / 'rest.pth').write_text(
        f'{paths["purelib"]}\n{paths["platlib"]}\n'
        # As setuptools' own .pth file: mmengine imports distutils, which left Python in 3.12.
        'import _distutils_hack; _distutils_hack.add_shim()\n'
    )
    return environment


@pytest.fixture(scope='module')
def installed(environment):
    """Folder of the installed package."""
    (folder,) = environment.glob('lib/python*/site-packages/mmfocal')
    return folder


def in_other_folder(folder, environment, program, *arguments):
    """Runs a program of the environment; the status, and what it says."""
    variables = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(
        [environment / 'bin' / program, *map(str, arguments)],
        cwd=folder,
        env={**variables, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def files_of_package():
    """What the wheel should hold: all of mmfocal/, and what its links lead to."""
    found = set()
    for folder, _, names in os.walk(PACKAGE, followlinks=True):
        place = Path(folder).relative_to(ROOT)
        # What tools/dev holds is for those who work on mmfocal, in a checkout.
        if '__pycache__' not in place.parts and place.parts[1:4] != ('.mim', 'tools', 'dev'):
            found |= {(place / name).as_posix() for name in names}
    return found


@pytest.mark.parametrize('built', ['wheel', 'wheel_of_oldest_setuptools'])
def test_wheel_has_every_file_of_the_package(built, request):
    names = zipfile.ZipFile(request.getfixturevalue(built)).namelist()
    ours = {name for name in names if not name.startswith(f'mmfocal-{__version__}.dist-info/')}
    assert ours == files_of_package()
    configs = {path.relative_to(ROOT) for path in (ROOT / 'configs').rglob('*.py')}
    assert len(configs) > 70 and {f'mmfocal/.mim/{path}' for path in configs} <= ours
    assert {'mmfocal/.mim/model-index.yml', 'mmfocal/.mim/tools/dist_train.sh'} <= ours


def test_oldest_setuptools_is_what_a_release_is_built_with():
    (oldest,) = re.findall(r'"setuptools>=([\d.]+)"', (ROOT / 'pyproject.toml').read_text())
    pins = requirement_lines(ROOT / 'requirements/dist.txt')
    assert f'setuptools=={oldest}.0; python_version < "3.12"' in pins


def test_mim_finds_one_file_by_the_name_of_a_config(installed):
    """It looks through the whole package for a file of that name."""
    index = yaml.safe_load((installed / '.mim/model-index.yml').read_text())
    models = yaml.safe_load((installed / '.mim' / index['Import'][0]).read_text())['Models']
    assert len(models) > 40
    for model in models:
        (file,) = installed.rglob(Path(model['Config']).name)
        assert file == installed / '.mim' / model['Config']


IMPORT = """
import mmfocal
from mmengine.registry import MODELS
from mmfocal.engine import load_config
print(mmfocal.__file__, load_config('focal_maskrcnn_3x').filename, sep='\\n')
assert MODELS.get('FocalTransformer') is mmfocal.FocalTransformer
"""


def test_wheel_is_imported_and_its_configs_are_found_by_name(environment, installed, tmp_path):
    status, text = in_other_folder(tmp_path, environment, 'python', '-c', IMPORT)
    assert status == 0, text
    assert text.splitlines()[-2:] == [
        str(installed / '__init__.py'),
        str(installed / '.mim/configs/mmdet/focal_maskrcnn_3x.py'),
    ]


def test_wheel_trains_and_predicts_from_another_folder(environment, tmp_path):
    (tmp_path / 'mine.py').write_text(USER_CONFIG)
    status, text = in_other_folder(
        *(tmp_path, environment, 'mmfocal', 'train', 'mine.py', '--work-dir', 'run')
    )
    assert status == 0, text
    assert 'registry tree' not in text  # no scope that mmengine does not know
    log = (tmp_path / 'run/mine.py').read_text()
    assert "type='FocalTransformer'" in log
    (scalars,) = tmp_path.glob('run/*/vis_data/scalars.json')
    assert '"coco/bbox_mAP": ' in scalars.read_text()
    status, text = in_other_folder(
        *(tmp_path, environment, 'mmfocal', 'infer', 'mine.py', 'run', 'shapes/val'),
        *('--out', 'predictions', '--score-thr', '0'),
    )
    assert status == 0, text
    predictions = json.loads((tmp_path / 'predictions/predictions.json').read_text())
    assert len(predictions['images']) == 2 and predictions['annotations']
    assert len(list((tmp_path / 'predictions/pictures').rglob('*.jpg'))) == 2


def test_tools_are_named_by_the_command(environment, tmp_path):
    status, text = in_other_folder(tmp_path, environment, 'mmfocal')
    assert status == 0
    assert {line.split()[0] for line in text.splitlines() if line.startswith('  ')} == {
        path.stem for path in (ROOT / 'tools').glob('[!_]*.py')
    }
    status, text = in_other_folder(tmp_path, environment, 'mmfocal', 'nonsense')
    assert status == 2 and "there is no tool 'nonsense'" in text
