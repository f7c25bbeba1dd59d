"""How often classes occur: what is counted is what is in the files."""

import json
import sys

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmfocal.cli import check_data
from mmfocal.datasets import prepare_shapes
from mmfocal.datasets.checks import (
    CocoData,
    Entry,
    Report,
    SegmentationData,
    check_coco,
    check_contents,
    check_segmentation,
    images,
)
from mmfocal.datasets.checks.class_counts import BAR, MAX_ROWS, ClassCounts

SHAPES = ('circle', 'square', 'triangle', 'star', 'cross', 'ring')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return prepare_shapes(
        tmp_path_factory.mktemp('counts') / 's', num_images=dict(train=12, val=2)
    )


def segmentation(data, **changes):
    entries = tuple(
        Entry(f'{path.stem}.jpg', str(path)) for path in sorted((data / 'labels/train').iterdir())
    )
    settings = dict(classes=('ground', *SHAPES)) | changes
    return SegmentationData(images=str(data / 'train'), entries=entries, **settings)


def maps(data):
    return [np.asarray(Image.open(path)) for path in sorted((data / 'labels/train').iterdir())]


def test_pixels_are_those_of_the_label_maps(data):
    counts = check_segmentation(segmentation(data), Report()).classes
    for label in range(7):
        found = [(values == label).sum() for values in maps(data)]
        assert counts.amounts[label] == sum(found)
        assert counts.images[label] == sum(map(bool, found))
    assert counts.looked_at == counts.of == 12 and counts.amounts.sum() == 12 * 128 * 128


def test_labels_that_count_from_1_leave_0_out(data):
    settings = dict(classes=SHAPES, first_label=1)
    counts = check_segmentation(segmentation(data, **settings), Report()).classes
    assert counts.without == sum((values == 0).sum() for values in maps(data))
    for label in range(1, 7):
        assert counts.amounts[label - 1] == sum((values == label).sum() for values in maps(data))


def test_labels_of_16_bits_and_unlabelled_pixels_are_counted(tmp_path):
    for folder, values in (('images', (2, 3, 3)), ('labels', (2, 3))):
        (tmp_path / folder).mkdir()
        kind = np.uint8 if len(values) == 3 else np.uint16
        pixels = np.zeros(values, kind)
        if folder == 'labels':
            pixels[0] = 1, 1, 255
        Image.fromarray(pixels).save(tmp_path / folder / '1.png')
    data = SegmentationData(
        images=str(tmp_path / 'images'),
        entries=(Entry('1.png', str(tmp_path / 'labels/1.png')),),
        classes=('a', 'b', 'c'),
        num_labels=3,
    )
    report = Report()
    counts = check_segmentation(data, report).classes
    assert counts.amounts.tolist() == [3, 2, 0] and counts.without == 1
    assert "has no pixels of 'c'. Such a class" in report.lines('note')[-1]
    assert not report.count('error')


def test_a_sample_is_the_same_each_time_and_says_so(data, monkeypatch):
    monkeypatch.setattr(images, 'MAX_LABEL_MAPS', 4)
    wanted = segmentation(data, classes=('ground', *SHAPES, 'gone'))
    first, second = (check_segmentation(wanted, Report()).classes for _ in range(2))
    assert first.looked_at == 4 and first.amounts.tolist() == second.amounts.tolist()
    assert 'pixels of 4 of 12 label maps' in first.histogram('train')[0]
    report = Report()
    check_segmentation(wanted, report)
    (line,) = report.lines('note')
    assert "'gone' in the 4 label maps looked at. --deep looks at all 12." in line
    deep = check_segmentation(wanted, Report(), deep=True).classes
    assert deep.looked_at == 12 and deep.absent == ['gone']


def test_boxes_are_those_of_the_annotations_without_crowds(data, tmp_path):
    content = json.loads((data / 'annotations/instances_train.json').read_text())
    content['annotations'][0]['iscrowd'] = 1
    objects = content['annotations'][1:]
    path = tmp_path / 'train.json'
    path.write_text(json.dumps(content))
    counts = check_coco(
        CocoData(annotations=str(path), images=str(data / 'train'), classes=SHAPES), Report()
    )
    counts = counts.classes
    for number, name in enumerate(SHAPES):
        (category,) = (c['id'] for c in content['categories'] if c['name'] == name)
        images = [each['image_id'] for each in objects if each['category_id'] == category]
        assert counts.amounts[number] == len(images)
        assert counts.images[number] == len(set(images))
    assert counts.looked_at == 12


def rows(counts):
    """Name, share in percent and length of the bar of each line after the title."""
    return [
        (line.split()[0], float(line.split()[1]), line.count('#'))
        for line in counts.histogram('train')[1:]
        if '% of images' in line
    ]


def test_bars_are_as_long_as_shares_and_tell_the_most_skewed():
    counts = ClassCounts(('few', 'many', 'none'), 'boxes')
    counts.add_boxes(np.array([1] * 60 + [0]), np.array([*range(60), 7]))
    counts.looked_at = 100
    assert rows(counts) == [('many', 98.36, BAR), ('few', 1.64, 1)]
    title, first, *_, last = counts.histogram('train')
    assert title == "train: 61 boxes in 100 images; 'many' has 60.0 times as many as 'few'"
    assert first.endswith('in  60 % of images') and last == '  1 never: none'
    assert ClassCounts(('a',), 'boxes').histogram('train') == []


def test_of_many_classes_the_ends_are_shown():
    counts = ClassCounts([f'class_{i}_of_a_very_long_name' for i in range(150)], 'pixels')
    counts.add_label_map(np.arange(150), 2 ** (np.arange(150) // 4) + np.arange(150))
    lines = counts.histogram('train')
    assert len(lines) == MAX_ROWS + 2 and '... 130 more classes' in lines[11]
    assert (
        lines[1].split()[0].startswith('class_149')
        and lines[-1].split()[0] == 'class_0_of_a_very_lo'
    )
    assert max(map(len, lines[1:])) < 80


@pytest.mark.parametrize('histograms', [False, True])
def test_the_tool_shows_them_and_training_does_not(data, monkeypatch, capsys, histograms):
    dataset = dict(
        type='CocoDataset',
        data_root=str(data),
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train'),
        metainfo=dict(classes=SHAPES),
        pipeline=[],
    )
    cfg = Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=dataset)))
    if not histograms:
        assert len(check_contents(cfg)) == 1
        return
    path = data / 'config.py'
    cfg.dump(path)
    monkeypatch.setattr(sys, 'argv', ['check_data', str(path)])
    check_data.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('Data check: train 12 images') and lines[1] == ''
    assert lines[2].startswith('train: ') and len(lines) == 3 + len(SHAPES)
