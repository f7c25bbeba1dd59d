"""Names in any script are drawn with a font that has them, or as escapes that can be read."""

import importlib.util
import logging
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from mmengine.config import Config
from mmengine.registry import VISUALIZERS, DefaultScope
from mmengine.structures import InstanceData, PixelData

matplotlib.use('Agg')
from matplotlib.font_manager import fontManager

from mmfocal.engine.results import set_visualization
from mmfocal.utils import fonts
from mmfocal.utils.fonts import drawable
from mmfocal.visualization.predictions import draw_classes, draw_instances, draw_label_map

ROOT = Path(__file__).parents[1]
RED, BLUE = '红', '蓝'
PALETTE = [(90, 90, 90)] * 2


def write_font(path, family, characters):
    """A font whose characters are full squares."""
    names = {ord(character): f'c{i}' for i, character in enumerate(characters)}
    pen = TTGlyphPen(None)
    for i, point in enumerate([(50, -100), (50, 900), (950, 900), (950, -100)]):
        (pen.lineTo if i else pen.moveTo)(point)
    pen.closePath()
    square = pen.glyph()
    order = ['.notdef', *names.values()]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(names)
    builder.setupGlyf(dict.fromkeys(order, square) | {'.notdef': TTGlyphPen(None).glyph()})
    builder.setupHorizontalMetrics(dict.fromkeys(order, (1000, 50)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable(dict(familyName=family, styleName='Regular'))
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Without other fonts than matplotlib's own, of which none has the characters."""
    own = str(Path(matplotlib.get_data_path()))
    monkeypatch.setattr(
        fontManager, 'ttflist', [each for each in fontManager.ttflist if own in each.fname]
    )
    monkeypatch.setattr(fonts, 'findSystemFonts', list)
    monkeypatch.setattr(fonts, '_told', set())
    fonts._families_for.cache_clear()
    yield
    fonts._families_for.cache_clear()
    fontManager._findfont_cached.cache_clear()


@pytest.fixture
def red_font(tmp_path, monkeypatch):
    write_font(tmp_path / 'red.ttf', 'Red Squares', RED)
    monkeypatch.setattr(fonts, 'findSystemFonts', lambda: [str(tmp_path / 'red.ttf')])
    fontManager._findfont_cached.cache_clear()


def test_the_font_that_has_a_character_is_asked_after_the_usual_one(red_font):
    assert drawable([f'a {RED}']) == ([f'a {RED}'], ['sans-serif', 'Red Squares'])
    assert drawable(['Straße крыша']) == (['Straße крыша'], ['sans-serif'])


def test_several_fonts_share_what_one_does_not_have(tmp_path, monkeypatch):
    paths = []
    for family, characters in (('One', RED), ('Two', BLUE), ('Both', f'{RED}{BLUE}'), ('Ka', 'क')):
        paths.append(str(tmp_path / f'{family}.ttf'))
        write_font(paths[-1], family, characters)
    monkeypatch.setattr(fonts, 'findSystemFonts', lambda: [*paths, str(tmp_path / 'none.ttf')])
    texts = [f'{RED}{BLUE}', 'क']
    assert drawable(texts) == (texts, ['sans-serif', 'Both', 'Ka'])


def test_what_no_font_has_is_escaped_and_told_once(monkeypatch):
    told = []
    monkeypatch.setattr(fonts, 'print_log', lambda text, logger, level: told.append((text, level)))
    texts = [f'{RED} cell', '한', 'クラス', 'क', 'plain', f'{RED}']
    shown, families = drawable(texts)
    assert shown == [
        *(r'\u7ea2 cell', r'\ud55c', r'\u30af\u30e9\u30b9', r'\u0915', 'plain', r'\u7ea2'),
    ]
    assert families == ['sans-serif']
    drawable(texts)
    [(text, level)] = told
    assert level == logging.WARNING and '(U+7EA2)' in text and 'fonts-noto-cjk' in text
    drawable([BLUE])
    assert len(told) == 2 and '(U+84DD)' in told[1][0] and 'U+7EA2' not in told[1][0]


@pytest.mark.parametrize(
    'text, shown',
    [
        ('a\x1b[31mb', r'a\x1b[31mb'),
        ('two\nlines', 'two\nlines'),
        ('\ud800', r'\ud800'),
        ('\u202eevil', r'\u202eevil'),
        ('wide\u3000space', 'wide space'),
        ('☺\ufe0f', '☺'),
    ],
)
def test_what_has_no_outline_is_escaped_or_left_out(text, shown):
    assert drawable([text])[0] == [shown]


def squares(image):
    """Rows and columns of the largest square of light text, in pixels."""
    light = (image > 190).all(axis=-1)
    return int(light.sum(axis=0).max()), int(light.sum(axis=1).max())


def boxes(names):
    instances = InstanceData(bboxes=torch.tensor([[20.0, 20, 280, 280]]), labels=torch.tensor([0]))
    return draw_instances(np.zeros((300, 300, 3), np.uint8), instances, names, PALETTE)


def label_map(names):
    image = np.zeros((300, 300, 3), np.uint8)
    return draw_label_map(image, np.zeros((300, 300), np.uint8), names, PALETTE)


def classes(names):
    return draw_classes(np.zeros((300, 300, 3), np.uint8), [0], [1.0], names)


@pytest.mark.parametrize('draw', [boxes, label_map, classes])
def test_all_that_draws_names_has_the_font_or_escapes(draw, red_font, monkeypatch):
    if importlib.util.find_spec('torchvision') is None:
        monkeypatch.syspath_prepend(ROOT / 'tests/stand_ins')
    # Glyphs are full squares, of five times the height of a stroke at least.
    height, width = squares(draw([RED]))
    assert height >= 8 and width >= 8
    monkeypatch.setattr(fonts, 'print_log', lambda *_: None)
    np.testing.assert_array_equal(draw([BLUE]), draw([r'\u84dd']))


@pytest.mark.parametrize('family', ['mmdet', 'mmseg', 'mmpretrain'])
def test_a_test_draws_names_with_the_font(family, red_font, monkeypatch, tmp_path):
    if importlib.util.find_spec('torchvision') is None:
        monkeypatch.syspath_prepend(ROOT / 'tests/stand_ins')
    module = importlib.import_module(f'{family}.visualization')
    kinds = dict(
        mmdet='DetLocalVisualizer', mmseg='SegLocalVisualizer', mmpretrain='UniversalVisualizer'
    )
    cfg = Config(
        dict(
            default_scope=family,
            default_hooks=dict(visualization=dict(type='VisualizationHook')),
            visualizer=dict(type=kinds[family], name=f'{family}-{tmp_path.name}'),
        )
    )
    set_visualization(cfg, False, str(tmp_path))
    with DefaultScope.overwrite_default_scope(family):
        visualizer = VISUALIZERS.build(cfg.visualizer)
    assert isinstance(visualizer, getattr(module, kinds[family]))
    visualizer.dataset_meta = dict(classes=[RED], palette=PALETTE[:1])
    image = np.zeros((300, 300, 3), np.uint8)
    structures = importlib.import_module(f'{family}.structures')
    if family == 'mmdet':
        things = InstanceData(bboxes=torch.tensor([[20.0, 20, 280, 280]]))
        things.labels, things.scores = torch.tensor([0]), torch.tensor([0.9])
        sample = structures.DetDataSample(pred_instances=things)
    elif family == 'mmseg':
        data = torch.zeros(1, 300, 300, dtype=torch.long)
        sample = structures.SegDataSample(pred_sem_seg=PixelData(data=data))
    else:
        sample = structures.DataSample().set_pred_label(0).set_pred_score(torch.ones(1))
        visualizer.visualize_cls(image, sample, [RED])
    if family != 'mmpretrain':
        visualizer.add_datasample('', image, sample, draw_gt=False)
    height, width = squares(visualizer.get_image())
    assert height >= 8 and width >= 8
