"""The plugin's registration, in processes of their own: imports there are what a user's are."""

import subprocess
import sys

import pytest

BUILD = """
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
{setup}
arch = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
print(type(registry.build(dict(type={type!r}, arch=arch))).__module__)
"""
IMPORT = "Config(dict(custom_imports=dict(imports=['mmfocal']))); import mmfocal"


def run(code):
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_is_light():
    loaded = run("import sys, mmfocal; print({'mmdet', 'mmseg'} & set(sys.modules))")
    assert loaded == 'set()'


@pytest.mark.parametrize('family', ['mmdet', 'mmseg'])
def test_type_resolves_in_both_families(family):
    setup = f'{IMPORT}\nfrom {family}.registry import MODELS as registry'
    built = run(BUILD.format(setup=setup, type='FocalTransformer'))
    assert built == 'mmfocal.models.focal_transformer'


def test_type_with_the_package_name_needs_no_import():
    setup = 'from mmdet.registry import MODELS as registry'
    built = run(BUILD.format(setup=setup, type='mmfocal.FocalTransformer'))
    assert built == 'mmfocal.models.focal_transformer'
