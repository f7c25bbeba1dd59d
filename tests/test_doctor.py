"""The doctor and the checks that it shares with `import mmfocal`, here and in broken environments.

Broken environments have stand-ins for what is installed: for only the metadata where versions
are compared; for modules too, in processes of their own, where something is run.
"""

import importlib
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from mmfocal.datasets.checks import check_data
from mmfocal.utils import compat
from mmfocal.utils.config import import_packages
from mmfocal.utils.errors import UserError

ROOT = Path(__file__).parents[1]
OFFICIAL = {
    'torch': '2.13.0+cpu',
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmdet': '3.3.0',
    'mmsegmentation': '1.2.2',
}
ONEDL = {
    'torch': '2.13.0',
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmsegmentation': '1.4.2',
}

# Python runs this first. Versions of None and the named modules are not there.
SITECUSTOMIZE = """
import importlib.metadata
from importlib.machinery import PathFinder

versions, modules = {versions!r}, {modules!r}
real_version, real_find_spec = importlib.metadata.version, PathFinder.find_spec

def version(name):
    found = versions[name] if name in versions else real_version(name)
    if found is None:
        raise importlib.metadata.PackageNotFoundError(name)
    return found

def find_spec(name, path=None, target=None):
    return None if name in modules else real_find_spec(name, path, target)

importlib.metadata.version = version
PathFinder.find_spec = find_spec
"""


@pytest.fixture
def install(monkeypatch):
    """Makes ``compat`` see this Python and these versions by distribution, and nothing else."""

    def set_versions(versions, pkg_resources=True, python=(3, 12, 0)):
        def version(name):
            if name not in versions:
                raise PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(compat, 'version', version)
        util = SimpleNamespace(find_spec=lambda name: object() if pkg_resources else None)
        library = SimpleNamespace(util=util, import_module=importlib.import_module)
        monkeypatch.setattr(compat, 'importlib', library)
        interpreter = SimpleNamespace(executable=sys.executable, version_info=python)
        monkeypatch.setattr(compat, 'sys', interpreter)

    return set_versions


@pytest.fixture
def run_broken(tmp_path):
    """Runs Python where versions, by distribution, and modules are replaced or not there."""

    def run(arguments, versions=(), modules=(), stand_ins=()):
        code = SITECUSTOMIZE.format(versions=dict(versions), modules=list(modules))
        for name, text in {'sitecustomize': code, **dict(stand_ins)}.items():
            (tmp_path / f'{name}.py').write_text(text)
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, 'PYTHONPATH': path},
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture
def doctor(run_broken):
    """Status and report of the doctor, which has to write nothing else."""

    def run(**broken):
        result = run_broken([ROOT / 'tools/doctor.py'], **broken)
        assert result.stderr == '' and 'Traceback' not in result.stdout
        return result.returncode, result.stdout

    return run


def distribution(name):
    return compat.stack_requirements()[name].distribution


# The report.


def test_here_training_would_work(doctor):
    status, report = doctor()
    assert status == 0, report
    assert 'Everything fits: training will work.' in report
    for line in ('Python', 'torch', 'GPU', 'mmcv operators', 'mmfocal', 'Cache', 'Triton'):
        assert any(found.startswith(line) for found in report.splitlines()), line
    assert f'Stack                {compat.detect_stack()}' in report


@pytest.mark.parametrize(
    'versions, line',
    [
        ({'opencv-python-headless': '4.11.0.86'}, 'opencv-python-headless 4.11.0.86'),
        ({'opencv-contrib-python': '4.10.0.84'}, 'opencv-contrib-python 4.10.0.84'),
        (
            {'opencv-python': '4.12.0.88', 'opencv-python-headless': '4.11.0.86'},
            'opencv-python 4.12.0.88, opencv-python-headless 4.11.0.86',
        ),
        ({}, 'not installed'),
    ],
)
def test_opencv_is_told_by_the_distribution_that_provides_it(run_broken, versions, line):
    names = ('python', 'python-headless', 'contrib-python', 'contrib-python-headless')
    code = 'from mmfocal.cli import doctor; '
    code += 'print(*("|".join(line) for line in doctor.versions()), sep="\\n")'
    result = run_broken(
        ['-c', code],
        versions=dict.fromkeys(f'opencv-{name}' for name in names) | versions,
    )
    assert f'OpenCV|{line}' in result.stdout.splitlines(), result.stderr
    assert 'opencv-python|' not in result.stdout


def test_without_torch(doctor):
    status, report = doctor(versions={'torch': None}, modules=['torch'])
    assert status == 1
    assert 'torch is not installed, 2.6 or newer' in report
    assert f'-m pip install torch=={compat.TORCH.tested}' in report


def test_without_anything(doctor):
    names = [p.distribution for packages in compat.STACKS.values() for p in packages.values()]
    modules = ['torch', 'mmcv', 'mmengine', 'mmdet', 'mmseg', 'numpy', 'cv2', 'pkg_resources']
    status, report = doctor(versions=dict.fromkeys(['torch', *names]), modules=modules)
    assert status == 1
    assert 'Stack                none' in report
    for name in ('torch', 'mmengine', 'mmcv', 'mmdet'):
        assert f'- {name} is not installed' in report


def test_mmcv_without_operators(doctor):
    status, report = doctor(modules=['mmcv._ext'])
    assert status == 1
    assert 'mmcv lacks its operators, or has them for another PyTorch' in report
    assert '--force-reinstall --no-deps --no-build-isolation' in report
    assert f'{distribution("mmcv")}=={compat.stack_requirements()["mmcv"].tested}' in report


def test_package_that_its_dependents_forgot(doctor):
    status, report = doctor(modules=['pycocotools'])
    assert status == 1
    assert 'mmdet.models imports pycocotools, which is not installed.' in report
    assert '-m pip install pycocotools' in report


def test_crash_of_python(doctor):
    status, report = doctor(stand_ins={'torch': 'import os; os.abort()'})
    assert status == 1
    assert 'GPU: Python crashes (exit code -6).' in report
    assert f'--force-reinstall --no-deps torch=={compat.TORCH.tested}' in report


def test_command_says_what_the_file_says_where_mmfocal_cannot_be_imported(doctor, run_broken):
    broken = {'mmcv': 'raise ImportError("no such library")'}
    status, report = doctor(stand_ins=broken)
    assert status == 1 and 'no such library' in report
    command = run_broken(['-m', 'mmfocal', 'doctor'], stand_ins=broken)
    assert (command.returncode, command.stdout) == (status, report)


def test_only_one_family_is_needed(doctor):
    status, report = doctor(versions={distribution('mmseg'): None}, modules=['mmseg'])
    assert status == 0, report
    assert f'For configs of mmseg, run: {sys.executable} -m pip install' in report


def test_import_ends_in_the_sentence_of_the_doctor(run_broken, doctor):
    versions = {distribution('mmcv'): '2.9.0'}
    result = run_broken(['-c', 'import mmfocal'], versions=versions)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    prefix = 'ImportError: mmfocal cannot be used here: '
    assert last.startswith(f'{prefix}{distribution("mmcv")} 2.9.0 does not fit')
    text, command = last.removeprefix(prefix).split(' Run: ')
    assert f'- {text}\n  Run: {command}\n' in doctor(versions=versions)[1]


# The command, where there is nothing but PyTorch, as after `pip install mmfocal`.

NO_STACK = {p.distribution: None for packages in compat.STACKS.values() for p in packages.values()}
MODULES = ['mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain']


@pytest.fixture
def without_stack(run_broken):
    return lambda *arguments: run_broken(arguments, versions=NO_STACK, modules=MODULES)


def test_import_without_a_stack_says_what_to_install(without_stack):
    result = without_stack('-c', 'import mmfocal')
    assert result.returncode == 1
    (line,) = (line for line in result.stderr.splitlines() if line.startswith('ImportError: '))
    assert 'neither is installed' in line
    assert re.search(r'--no-build-isolation mmcv==2\.1\.0( --find-links wheels)? && ', line)
    assert line.endswith("-m pip install 'mmfocal[mmdet]'")


def test_tools_without_a_stack_say_it_in_a_line(without_stack):
    result = without_stack('-m', 'mmfocal', 'train', 'focal_maskrcnn_3x')
    assert result.returncode == 2 and result.stdout == ''
    (line,) = result.stderr.splitlines()
    assert line.endswith("-m pip install 'mmfocal[mmdet]'")


@pytest.mark.parametrize(
    'arguments, status, text',
    [
        ((), 0, '  doctor  '),
        (('--help',), 0, '  list  '),
        (('list', 'drawn', 'upernet'), 0, 'focal_upernet_shapes'),
        (('doctor',), 1, 'mmengine is not installed'),
        (('nonsense',), 2, ''),
    ],
)
def test_tools_that_work_without_a_stack(arguments, status, text, without_stack):
    result = without_stack('-m', 'mmfocal', *arguments)
    assert result.returncode == status, result.stderr
    assert text in result.stdout and 'Traceback' not in result.stderr


def test_several_problems_are_counted(install):
    install({**OFFICIAL, 'mmcv': '2.2.0', 'mmdet': '2.28.0'})
    with pytest.raises(ImportError, match='for 2 reasons, which `mmfocal doctor` lists') as error:
        compat.check_versions()
    assert str(error.value).endswith(compat.find_problems()[0].command)


# Versions.


@pytest.mark.parametrize('versions, stack', [(OFFICIAL, 'official'), (ONEDL, 'onedl')])
def test_tested_versions_fit(install, versions, stack):
    # OneDL's forks do without pkg_resources.
    install(versions, pkg_resources=stack == 'official')
    assert compat.detect_stack() == stack
    assert compat.find_problems(('mmengine', 'mmcv', 'mmdet', 'mmseg')) == []
    compat.check_versions()


@pytest.mark.parametrize(
    'changes, text, command',
    [
        ({'torch': '2.5.1'}, 'torch 2.5.1 does not fit, 2.6 or newer', 'install torch==2.13.0'),
        ({'mmcv': '2.2.0'}, 'mmcv 2.2.0 does not fit, 2.1.0 or newer, below 2.2.0', 'mmcv==2.1.0'),
        ({'mmcv': None}, 'mmcv is not installed', 'install --no-build-isolation mmcv==2.1.0'),
        ({'mmengine': None}, 'mmengine is not installed', 'install mmengine==0.10.7'),
        ({'mmdet': '2.28.0'}, 'mmdet 2.28.0 does not fit', 'install mmdet==3.3.0'),
    ],
)
def test_version_that_does_not_fit(install, changes, text, command):
    versions = {name: version for name, version in (OFFICIAL | changes).items() if version}
    install(versions)
    (problem,) = compat.find_problems()
    assert text in problem.text and problem.command.endswith(command)
    with pytest.raises(ImportError) as error:
        compat.check_versions()
    assert str(error.value).endswith(f'Run: {problem.command}')


def test_setuptools_without_pkg_resources(install):
    install({**OFFICIAL, 'setuptools': '84.0.0'}, pkg_resources=False)
    (problem,) = compat.find_problems()
    assert 'pkg_resources' in problem.text and '84.0.0 is installed' in problem.text
    assert problem.command.endswith("-m pip install 'setuptools<81'")


@pytest.mark.parametrize('version, fits', [((3, 10, 18), False), ((3, 11, 0), True)])
def test_python(install, version, fits):
    install(OFFICIAL, python=version)
    problems = compat.find_problems()
    assert (problems == []) == fits
    if not fits:
        assert 'Python 3.10.18 is used, 3.11 or newer, below 3.15 is needed.' in problems[0].text


@pytest.mark.parametrize(
    'stack, python, torch, own_script',
    [
        (OFFICIAL, (3, 12, 0), '2.13.0', False),
        (OFFICIAL, (3, 13, 0), '2.13.0', True),
        (OFFICIAL, (3, 12, 0), '2.14.1+cu130', True),
        (ONEDL, (3, 13, 0), '2.13.0', False),
        (ONEDL, (3, 12, 0), '2.14.1', True),
    ],
)
def test_mmcv_that_only_a_repaired_setup_builds(install, stack, python, torch, own_script):
    (mmcv,) = (name for name in stack if name.endswith('mmcv'))
    install(
        {name: stack[name] for name in stack if name != mmcv} | {'torch': torch}, python=python
    )
    (problem,) = compat.find_problems()
    script, _, installation = problem.command.rpartition(' && ')
    assert script.startswith('requirements/mmcv_wheel.sh ') == own_script
    pin = f'{mmcv}=={stack[mmcv]}'
    assert (f' {pin} ' in script) == own_script
    assert installation.startswith(f'{sys.executable} -m pip install --no-build-isolation {pin}')
    folder = script.rpartition(' ')[2]
    assert installation.endswith(f' --find-links {folder}') == own_script


def test_families_are_needed_on_request_only(install):
    install({name: version for name, version in OFFICIAL.items() if name != 'mmdet'})
    assert compat.find_problems() == []
    (problem,) = compat.find_problems((*compat.CORE, 'mmdet'))
    assert problem.text.startswith('mmdet is not installed')


@pytest.mark.parametrize(
    'base, stray, text, repair',
    [
        (
            OFFICIAL,
            {'onedl-mmcv': '2.3.6'},
            'onedl-mmcv and packages of the official',
            'mmcv==2.1.0',
        ),
        (ONEDL, {'mmdet': '3.3.0'}, 'mmdet and packages of the onedl', 'onedl-mmdetection==3.5.1'),
    ],
)
def test_two_stacks_in_one_environment(install, base, stray, text, repair):
    install(base | stray)
    (problem,) = compat.find_problems()
    assert text in problem.text
    removal, installation = problem.command.split(' && ')
    assert removal.endswith(f'-m pip uninstall -y {next(iter(stray))}')
    assert '--force-reinstall --no-deps' in installation and installation.endswith(f' {repair}')


def test_without_a_stack(install):
    install({'torch': '2.13.0'})
    assert compat.detect_stack() is None
    assert [problem.text.split()[0] for problem in compat.find_problems()] == list(compat.CORE)


@pytest.mark.parametrize(
    'found, fits',
    [
        ('2.1', True),
        ('2.1.0', True),
        ('2.1.7+cu130', True),
        ('2.10', True),
        ('2.0.99', False),
        ('2.12rc1', False),
        ('3.0.0', False),
        ('unknown', False),
    ],
)
def test_version_windows(found, fits):
    assert compat.Requirement('package', '2.1.0', '2.12', '2.1.0').accepts(found) == fits


# Imports that fail.


def failing_import(broken, error):
    def import_module(name):
        if name == broken:
            raise error

    return import_module


def test_opencv_without_desktop_libraries(install, monkeypatch):
    install(OFFICIAL)
    error = ImportError('libGL.so.1: cannot open shared object file: No such file or directory')
    monkeypatch.setattr(compat.importlib, 'import_module', failing_import('mmcv', error))
    problem = compat.import_problem('mmcv')
    assert 'OpenCV' in problem.text and 'libGL.so.1' in problem.text
    assert problem.command.endswith('opencv-python-headless')


@pytest.mark.parametrize('part', ['models', 'datasets'])
def test_package_that_only_a_part_of_a_family_imports(install, monkeypatch, part):
    install(OFFICIAL, pkg_resources=False)
    error = ModuleNotFoundError("No module named 'skimage'", name='skimage')
    monkeypatch.setattr(compat.importlib, 'import_module', failing_import(f'mmdet.{part}', error))
    problem = compat.family_problem('mmdet')
    assert problem.text == f'mmdet.{part} imports skimage, which is not installed.'
    assert problem.command.endswith('pip install scikit-image')
    assert compat.family_problem('mmseg') is None


@pytest.mark.parametrize('ask', [import_packages, check_data])
def test_a_family_that_is_not_whole_is_told_before_its_data(monkeypatch, ask):
    problem = compat.Problem('mmdet.datasets imports skimage.', 'pip install scikit-image')
    monkeypatch.setattr(
        compat, 'import_problem', lambda name: problem if name == 'mmdet.datasets' else None
    )
    with pytest.raises(UserError, match=r'mmdet\.datasets.*scikit-image'):
        ask(Config(dict(default_scope='mmdet')))
    ask(Config(dict(default_scope='mmseg')))


def test_operators_for_another_torch(install, monkeypatch):
    install(OFFICIAL)
    error = ImportError('/lib/mmcv/_ext.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZN')
    monkeypatch.setattr(compat.importlib, 'import_module', failing_import('mmcv.ops', error))
    with pytest.raises(ImportError, match=r'undefined symbol.*another PyTorch.*mmcv==2'):
        compat.require_mmcv_ops()


def test_operators_without_cuda_beside_a_gpu(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('mmcv.ops.get_compiling_cuda_version', lambda: 'not available')
    problem = compat.mmcv_ops_problem()
    assert problem.text == 'There is a GPU, and mmcv was built without CUDA.'
    assert problem.command.startswith('FORCE_CUDA=1 ')
