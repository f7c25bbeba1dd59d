"""The page of models says what the configs amount to, within reach of what was published."""

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tools.dev.costs import model_zoo

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def published():
    return model_zoo.load_published()


@pytest.fixture(scope='module')
def costs(published):
    return {name: model_zoo.measure(name, entry.get('image')) for name, entry in published.items()}


DINO = 'mmdet/focal_dino_12e.py'


@pytest.fixture(autouse=True)
def mmdet_3_3(monkeypatch):
    """Counts DINO as the page does: a layer of its decoder is twice as wide in OneDL's fork."""
    measure = model_zoo.measure

    def without_the_difference(name, image=None):
        cost = measure(name, image)
        head = _load_dino().decoder.ref_point_head.layers[0]
        extra = head.in_features - 512  # twice the 256 channels of queries
        if name != DINO or not extra:
            return cost
        parameters = extra * head.out_features
        flops = dict(cost.flops)
        flops['transformer'] -= 900 * 6 * parameters  # queries, layers
        return replace(cost, parameters=cost.parameters - parameters, flops=flops)

    monkeypatch.setattr(model_zoo, 'measure', without_the_difference)


@functools.cache
def _load_dino():
    return model_zoo._build(model_zoo._load(DINO))


def test_page_is_what_the_configs_say(published):
    assert (ROOT / 'docs/model_zoo.md').read_text() == model_zoo.page(published), (
        'The page does not agree with the configs. Run: python -m tools.dev.model_zoo'
    )


def test_metafile_is_what_configs_and_published_figures_say(published, costs):
    text = (ROOT / 'configs/metafile.yml').read_text()
    assert text == model_zoo.metafile(published), 'Run: python -m tools.dev.model_zoo'
    counted = {name: cost.parameters for name, cost in costs.items()}
    models = {model['Config']: model for model in yaml.safe_load(text)['Models']}
    model = models['configs/mmdet/focal_maskrcnn_3x.py']
    assert [result['Metrics'] for result in model['Results']] == [
        {'box AP': 47.2},
        {'mask AP': 42.7},
    ]
    assert model['Metadata']['Parameters'] == counted['mmdet/focal_maskrcnn_3x.py']
    assert {name for name, model in models.items() if 'Results' in model} == {
        f'configs/{name}' for name in published
    }
    shapes = models['configs/mmdet/focal_reppointsv2_shapes.py']['Metadata']
    assert (shapes['Method'], shapes['Training Data']) == ('RepPointsV2', 'drawn shapes')
    panoptic = models['configs/mmdet/focal_mask2former-panoptic_50e.py']['Metadata']
    assert panoptic['Method'] == 'Mask2Former'
    assert panoptic['Tasks'][-2:] == ['Instance Segmentation', 'Panoptic Segmentation']
    (index,) = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert index == 'configs/metafile.yml'


def test_sizes_are_the_published_ones(published, costs):
    checked = 0
    for name, entry in published.items():
        tolerance = entry.get('tolerance', {})
        counted = dict(parameters=costs[name].parameters / 1e6, gflops=costs[name].authors_gflops)
        for kind, percent in tolerance.items():
            assert counted[kind] == pytest.approx(entry[kind], rel=percent / 100), (name, kind)
            checked += 1
    # All of T, S and B and UPerNet with L by parameters, classifiers too; four detectors of T, in
    # five configs, by GFLOPs.
    assert checked == 16 + 6 + 4 + 5


def test_every_config_is_on_the_page_once(published):
    others = model_zoo.unpublished(published)
    leaves = {f'{path.parent.name}/{path.name}' for path in (ROOT / 'configs').glob('[!_]*/*.py')}
    assert leaves == {*published, *others}
    assert not set(published) & set(others)


def test_positions_that_the_authors_list_twice_are_counted(costs):
    # Stages of Focal-T at 800 x 1280 pixels: windows of 49 queries, 12 positions, two products.
    windows = [29 * 46, 15 * 23, 8 * 12, 4 * 6]
    blocks, channels = [2, 2, 6, 2], [96, 192, 384, 768]
    expected = sum(
        2 * 49 * 12 * count * depth * width
        for count, depth, width in zip(windows, blocks, channels, strict=True)
    )
    assert costs['mmdet/focal_maskrcnn_ms-1x.py'].listed_twice == expected


@pytest.mark.parametrize(
    'name, entry, message',
    [
        ('mmdet/none.py', {}, 'there is no config'),
        ('mmdet/here.py', {'box': [1]}, "unknown fields ['box']"),
    ],
)
def test_mistakes_in_the_data_file_are_named(tmp_path, name, entry, message):
    (tmp_path / 'mmdet').mkdir()
    (tmp_path / 'mmdet/here.py').touch()
    path = tmp_path / 'published.yaml'
    path.write_text(yaml.safe_dump({name: entry}))
    with pytest.raises(ValueError, match=r'published\.yaml: ') as raised:
        model_zoo.load_published(path)
    assert message in str(raised.value)
