"""Metadata of the package, requirements, and version checks say the same."""

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

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


PACKAGE = ROOT / 'mmfocal'
# Modules that are imported only where their package is there, or by configs of its family.
OPTIONAL = {
    'triton': ('ops/triton/',),
    'mmdet': ('detection/', 'datasets/coco_shapes.py'),
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
def environment(tmp_path_factory):
    """A new environment with a wheel of this checkout, and the packages of this one for the rest.

    They are on its path by a .pth file. Those of the folder that it names are not read, which
    keeps out an editable mmfocal.
    """
    folder = tmp_path_factory.mktemp('wheel')
    environment = folder / 'environment'
    for command in (
        f'setup.py -q egg_info -e {folder} build -b {folder}/build bdist_wheel -d {folder}',
        f'-m venv --without-pip {environment}',
        f'-m pip -q --python {environment}/bin/python install --no-deps --no-index -f {folder} '
        'mmfocal',
    ):
        done = subprocess.run(
            [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    (site_packages,) = environment.glob('lib/python*/site-packages')
    paths = sysconfig.get_paths()
    (site_packages / 'rest.pth').write_text(f'{paths["purelib"]}\n{paths["platlib"]}\n')
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


def test_wheel_carries_configs_and_tools(installed):
    for kind in ('configs', 'tools'):
        ours = {path.relative_to(ROOT / kind) for path in (ROOT / kind).rglob('*.[psy]*')}
        # What tools/dev holds is for those who work on mmfocal, in a checkout.
        ours = {path for path in ours if not {'__pycache__', 'dev'} & {*path.parts}}
        carried = installed / '.mim' / kind
        assert ours == {
            path.relative_to(carried)
            for path in carried.rglob('*')
            if path.is_file() and '__pycache__' not in path.parts
        }
    assert (installed / '.mim/model-index.yml').is_file()
    assert not list(installed.parent.glob('tests*'))


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
