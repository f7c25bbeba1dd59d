"""``mmfocal list``: every config once, with the figures of the index."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from mmfocal.cli import list as tool
from mmfocal.engine.config import find_config
from mmfocal.utils.errors import UserError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'configs').glob('[!_]*/[!_]*.py'))


@pytest.fixture
def listed(monkeypatch, capsys):
    """What the tool prints with these arguments."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['mmfocal list', *arguments])
        tool.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def names(listed):
    """Names that the tool lists with these arguments."""
    return lambda *arguments: [
        line.partition(' ')[0] for line in listed(*arguments).splitlines()[1:]
    ]


def test_every_config_is_listed_once_by_a_name_that_tools_take(names):
    found = names()
    assert sorted(found) == sorted(path.stem for path in CONFIGS) and len(found) > 40
    assert sorted(map(find_config, found)) == CONFIGS


def test_figures_are_those_of_the_index(listed):
    models = yaml.safe_load((ROOT / 'configs/metafile.yml').read_text())['Models']
    found = json.loads(listed('--json'))
    assert [entry['name'] for entry in found] == [model['Name'] for model in models]
    for entry, model in zip(found, models, strict=True):
        assert f'configs/{entry["file"]}' == model['Config']
        assert entry['parameters'] == model['Metadata']['Parameters'] > 1e6
        metrics = [result['Metrics'] for result in model.get('Results', ())]
        assert entry['published'] == {
            key: value for each in metrics for key, value in each.items()
        }


def test_line_has_what_one_chooses_by(listed):
    title, line = listed('focal_maskrcnn_3x').splitlines()
    assert title.split() == [*tool.TITLES]
    assert ' '.join(line.split()) == (
        'focal_maskrcnn_3x detection, instance Mask R-CNN Focal-T COCO 48.7 M '
        'box AP 47.2, mask AP 42.7'
    )
    _, line = listed('focal_atss_shapes').splitlines()
    assert line.split()[-3:] == ['1.7', 'M', '-']


@pytest.mark.parametrize(
    'arguments, expected',
    [
        (('--backbone', 'fast'), {'focal-fast_maskrcnn_ms-1x', 'focal-fast_upernet_160k'}),
        (('--task', 'semantic', 'cityscapes'), {'focal_upernet_160k_cityscapes'}),
        (('--task', 'semantic', '--backbone', 'small'), {'focal-s_upernet_160k'}),
        (('SHAPES', 'Image Classification'), {'focal_shapes'}),
        (('mmseg/', 'shapes'), {'focal_upernet_shapes'}),
        (('large', 'upernet'), {'focal-l_upernet_160k'}),
        (('--task', 'panoptic'), {'focal_mask2former-panoptic_50e'}),
        (('DINO',), {'focal_dino_12e'}),
    ],
)
def test_words_and_options_choose_together(arguments, expected, names):
    assert set(names(*arguments)) == expected


def test_detectors_with_masks_are_of_two_tasks(names):
    boxes, masks = (set(names('--task', task)) for task in ('detection', 'instance'))
    assert masks < boxes and 'focal_cascade-maskrcnn_3x' in masks
    assert {'focal_rtmdet-ins_100e', 'focal_mask2former_50e'} <= masks
    assert {'focal_retinanet_3x', 'focal_sparsercnn_shapes'} <= boxes - masks


def test_nothing_found_is_said_with_what_was_asked(listed):
    with pytest.raises(UserError, match=r'all of these: quux, --task semantic\.'):
        listed('quux', '--task', 'semantic')


def test_backbones_to_choose_are_those_that_there_are():
    assert {entry.backbone for entry in tool.entries()} == set(tool.BACKBONES.values())
