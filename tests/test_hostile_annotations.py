"""What SECURITY.md promises of annotations, tried on every tool that reads them."""

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from pycocotools import mask as masks

from mmfocal import cli
from mmfocal.evaluation import analyze_detections
from mmfocal.evaluation.report import Table, text_table
from mmfocal.utils.errors import UserError

ROOT = Path(__file__).parents[1]
TOOLS = {
    'check_data': ('config.py', '--splits', 'test'),
    'test': ('config.py', 'none.pth'),
    'analyze_results': ('config.py', 'none.pth', '--predictions', 'found.json'),
    'browse': ('config.py', '--split', 'test'),
    'train': ('config.py',),
}
BOX = [4, 6, 20, 10]
POLYGON = [[4, 6, 24, 6, 24, 16, 4, 16]]


def good():
    images = [dict(id=i, file_name=f'{i}.png', width=64, height=48) for i in (1, 2)]
    annotations = [
        dict(id=i, image_id=i, category_id=1, bbox=BOX, area=200, iscrowd=0, segmentation=POLYGON)
        for i in (1, 2)
    ]
    return dict(images=images, annotations=annotations, categories=[dict(id=1, name='cat')])


@pytest.fixture
def tool(monkeypatch, capsys, tmp_path):
    """Runs a tool on the annotations in the current folder: its status, and what it prints."""
    monkeypatch.setattr(BaseDataset, 'prepare_data', BaseDataset.prepare_data)
    (tmp_path / 'data/images').mkdir(parents=True)
    monkeypatch.chdir(tmp_path / 'data')
    for i in (1, 2):
        cv2.imwrite(f'images/{i}.png', np.zeros((48, 64, 3), np.uint8))
    cv2.imwrite(str(tmp_path / 'secret.png'), np.zeros((48, 64, 3), np.uint8))
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='PackDetInputs'),
    ]
    dataset = dict(
        _delete_=True,
        type='CocoDataset',
        ann_file='truth.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('cat',)),
        pipeline=steps,
    )
    cfg = dict(_base_=str(ROOT / 'configs/mmdet/focal_maskrcnn_shapes.py'))
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'] = dict(dataset=dict(dataset, test_mode=split != 'train'))
    for split in ('val', 'test'):
        cfg[f'{split}_evaluator'] = dict(ann_file='truth.json')
    Config(cfg).dump('config.py')
    found = [dict(image_id=1, category_id=1, bbox=BOX, score=0.9)]
    Path('found.bbox.json').write_text(json.dumps(found))

    def run(name):
        monkeypatch.setattr(sys, 'argv', [name, *TOOLS[name]])
        with pytest.raises(SystemExit) as stop:
            cli.run(name)
        out, err = capsys.readouterr()
        assert 'Traceback' not in out + err
        return stop.value.code or 0, out + err

    return run


def named(name):
    return lambda truth: truth['images'][0].update(file_name=name)


def with_thing(**values):
    return lambda truth: truth['annotations'][0].update(values)


ATTACKS = {
    'parent': (named('../../secret.png'), 'leads out of'),
    'parent-inside': (named('a/../../../secret.png'), 'leads out of'),
    'absolute': (lambda truth: named(os.path.abspath('../secret.png'))(truth), 'leads out of'),
    'backslashes': (named('..\\..\\secret.png'), 'leads out of'),
    'drive': (named('C:\\secret.png'), 'leads out of'),
    'share': (named('\\\\host\\secret.png'), 'leads out of'),
    'url': (named('file:///secret.png'), 'leads out of'),
    'nul': (named('1.png\0'), 'expected a path'),
    'polygon': (with_thing(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]), '1000000000.0'),
    'polygon-nan': (with_thing(segmentation=[[0, 0, float('nan'), 0, 1, 1]]), 'nan'),
    'box': (with_thing(bbox=[0, 0, 1e300, 1]), '1e+300'),
    'rle': (with_thing(segmentation=dict(size=[10**9] * 2, counts=[10**18])), '[48, 64]'),
    'rle-sum': (with_thing(segmentation=dict(size=[48, 64], counts=[2**40])), '1099511627776'),
}


@pytest.mark.parametrize('name', TOOLS)
@pytest.mark.parametrize('attack', ATTACKS)
def test_every_tool_refuses_what_can_hurt(tool, name, attack):
    change, told = ATTACKS[attack]
    truth = good()
    change(truth)
    Path('truth.json').write_text(json.dumps(truth))
    status, text = tool(name)
    assert status == 2 and told in text and 'truth.json' in text
    assert not list(Path().glob('**/*.html')), 'a report of hostile annotations'


@pytest.mark.parametrize('name', TOOLS)
@pytest.mark.parametrize('content', ['[' * 200_000, '{"images": [', 'null', '{"images": {}}'])
def test_every_tool_refuses_what_is_no_list_of_annotations(tool, name, content):
    Path('truth.json').write_text(content)
    status, text = tool(name)
    assert status == 2 and 'truth.json' in text


@pytest.mark.parametrize('name', ['check_data', 'analyze_results', 'browse'])
def test_links_in_a_data_set_are_the_users_own(tool, name):
    Path('images/1.png').unlink()
    Path('images/1.png').symlink_to(Path('../secret.png').resolve())
    Path('truth.json').write_text(json.dumps(good()))
    Path('none.pth').touch()
    status, text = tool(name)
    assert status == 0, text


def analyzed(*detections, kind='segm', text=None):
    Path('truth.json').write_text(json.dumps(good()))
    Path('found.json').write_text(json.dumps(detections) if text is None else text)
    return analyze_detections('truth.json', 'images', {'bbox': 'found.json', kind: 'found.json'})


MASK = dict(size=[48, 64], counts='0' * 4)
DETECTION = dict(image_id=1, category_id=1, bbox=BOX, score=0.9, segmentation=MASK)


@pytest.mark.parametrize(
    'change, told',
    [
        (dict(image_id=[1]), 'image_id'),
        (dict(image_id=3), 'image_id 3'),
        (dict(category_id=None), 'category_id'),
        (dict(score=float('nan')), 'score nan'),
        (dict(score='1'), 'score'),
        (dict(bbox=[0, 0, 1e9, 1e9]), 'bbox'),
        (dict(bbox=[0, 0, 1]), 'bbox'),
        (dict(bbox=None), 'bbox'),
        (dict(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]), '[48, 64]'),
        (dict(segmentation=dict(MASK, size=[10**9] * 2)), '[48, 64]'),
        (dict(segmentation=dict(MASK, size=[0, 0])), '[48, 64]'),
        (dict(segmentation=dict(MASK, counts=[2**40])), 'RLE'),
        (dict(segmentation=dict(MASK, counts='\u7ea2')), 'RLE'),
        (dict(segmentation=dict(MASK, counts='o' * 9)), 'RLE'),
    ],
)
def test_predictions_of_others_are_checked_too(tool, change, told):
    with pytest.raises(UserError) as caught:
        analyzed(DETECTION | change)
    assert told in str(caught.value) and 'found.json: detection number 0' in str(caught.value)


def test_masks_that_do_not_fill_their_image_are_told(tool):
    larger = masks.encode(np.zeros((100, 100), np.uint8, order='F'))['counts'].decode()
    with pytest.raises(UserError, match=r'found\.json.*1\.png.*RLE'):
        analyzed(DETECTION | dict(segmentation=dict(MASK, counts=larger)))


@pytest.mark.parametrize('text', ['[' * 200_000, '{}', '[1]', '', 'no JSON'])
def test_predictions_that_are_none_are_told(tool, text):
    with pytest.raises(UserError, match=r'found\.json'):
        analyzed(text=text)


def test_names_of_classes_print_in_one_line():
    table = Table('Classes', ['class', 'number'], [['a\x1b[2Jb\nDone', 1]])
    lines = text_table(table).splitlines()
    assert len(lines) == 3 and r'a\x1b[2Jb\nDone' in lines[2]
