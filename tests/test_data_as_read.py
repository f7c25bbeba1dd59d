"""Data is checked as it will be read: verdicts are those of mmdet's and pycocotools' own code."""

import json
import os
import re
import shutil
import sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import cv2
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmengine.registry import DefaultScope
from test_bad_input import (
    coco,
    coco_config,
    evaluated_config,
    first,
    in_empty_folder,
    label_map,
    replaced,
    report,
    seg_config,
    thing,
    turned,
    write_coco,
    write_image,
)

from mmfocal.datasets.checks import (
    BadDataError,
    CocoData,
    Report,
    SampleError,
    check_coco,
    check_contents,
    coco_file,
    read_coco,
)
from mmfocal.utils.errors import UserError, user_errors_without_trace
from mmfocal.utils.text import printable

NAN, INFINITY = float('nan'), float('inf')


# --- What stock mmdet does --------------------------------------------------------------------


def trains() -> bool:
    """Whether mmdet loads all samples; raises as training does."""
    settings = dict(coco_config().train_dataloader.dataset)
    settings.pop('type')
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = CocoDataset(**settings)
        return [dataset[i] for i in range(len(dataset))] != []


def trains_in_a_process_of_its_own() -> bool:
    """Whether mmdet loads all samples; pycocotools writes beyond its memory for some counts."""
    child = os.fork()
    if not child:
        status = 1
        try:
            cv2.setNumThreads(0)  # those of the parent are not here
            status = int(not trains())
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def average_precision() -> float:
    """Of predictions that are what the data set gives; raises as evaluation does."""
    metric = CocoMetric(ann_file='data/train.json', metric='bbox')
    settings = dict(coco_config(test_mode=True, pipeline=[]).train_dataloader.dataset)
    settings.pop('type')
    dataset = CocoDataset(**settings)
    metric.dataset_meta = dict(classes=('cat', 'dog'))
    for info in map(dataset.get_data_info, range(len(dataset))):
        boxes = torch.tensor([list(map(float, each['bbox'])) for each in info['instances']])
        found = dict(
            bboxes=boxes.reshape(-1, 4),
            scores=torch.ones(len(boxes)),
            labels=torch.tensor([each['bbox_label'] for each in info['instances']]).long(),
        )
        sample = dict(img_id=info['img_id'], ori_shape=(48, 64), pred_instances=found)
        metric.process({}, [sample])
    return metric.evaluate(len(dataset))['coco/bbox_mAP']


def every(key, **changes):
    """Changes all items of a list by functions of a value."""

    def change(content):
        for each in content[key]:
            each.update({name: give(each[name]) for name, give in changes.items()})

    return change


def numbered(give):
    """Other ids of images."""

    def change(content):
        every('images', id=give)(content)
        every('annotations', image_id=give)(content)

    return change


LEARNED = {
    'crowds by a boolean': thing(iscrowd=True),
    'crowds by 1.0': thing(iscrowd=1.0),
    'iscrowd that is null': thing(iscrowd=None),
    'no iscrowd': thing(iscrowd=...),
    'area as text': thing(area='200'),
    'area that is null': thing(area=None),
    'area that is true': thing(area=True),
    'infinite area': thing(area=INFINITY),
    'width as text': first('images', width='64'),
    'width that is null': first('images', width=None),
    'sizes as floats': every('images', width=float, height=float),
    'annotation ids as floats': every('annotations', id=float),
    'annotation ids as text': every('annotations', id=str),
    'annotation id that is null': thing(id=None),
    'annotation id that is a list': thing(id=[1]),
    'one id as an integer and a float': lambda content: content['annotations'][1].update(id=1.0),
    'image ids as floats': numbered(float),
    'image ids as text': numbered(str),
    'image id of another type': thing(image_id=1.0),
    'image id that is a list': thing(image_id=[1]),
    'no image id': thing(image_id=...),
    'category id of another type': thing(category_id=2.0),
    'no category id': thing(category_id=...),
    'category without a name': first('categories', name=...),
    'another category with a number for a name': lambda content: content['categories'].append(
        dict(id=3, name=3)
    ),
    'box that is null': thing(bbox=None),
    'box of five numbers': thing(bbox=[4, 6, 20, 10, 1]),
    'box with a boolean': thing(bbox=[True, 6, 20, 10]),
    'box of text': thing(bbox=['4', '6', '20', '10']),
    'ignored object without a box': thing(ignore=1, bbox=None),
    'no segmentation': thing(segmentation=...),
    'segmentation that is empty': thing(segmentation={}),
    'segmentation that is text': thing(segmentation='x'),
    'one polygon of odd length': thing(segmentation=[[4, 6, 8], [4, 6, 24, 6, 24, 16]]),
    'numbers of polygons as text': thing(segmentation=[['4', '6', '24', '6', '24', '16']]),
    'counts as floats': thing(segmentation=dict(counts=[0.0, 5.0, 3067.0], size=[48, 64])),
    'counts below 0': thing(segmentation=dict(counts=[0, -5, 3077], size=[48, 64])),
    'counts that are no code': thing(segmentation=dict(counts='!!', size=[48, 64])),
    'no info': lambda content: content.update(info=[]),
    'no annotations': replaced(annotations=[]),
    'no key annotations': lambda content: content.pop('annotations') and None,
    'no key categories': lambda content: content.pop('categories') and None,
    'no images': replaced(images=[], annotations=[]),
    'all crowds': every('annotations', iscrowd=lambda _: 1),
    'all ignored': lambda content: (
        [each.update(ignore=1) for each in content['annotations']] and None
    ),
    'file name that is a number': first('images', file_name=5),
    'byte order mark': lambda content: '\ufeff' + json.dumps(content),
    'text after the end': lambda content: json.dumps(content) + 'x',
    'a list twice': lambda content: json.dumps(content)[:-1] + ', "annotations": []}',
    'a key twice': lambda content: json.dumps(content).replace('"area"', '"area": 1, "area"'),
    'NaN in what is not read': lambda content: json.dumps(content | dict(score=NAN)),
    'a comma at the end': lambda content: json.dumps(content)[:-1] + ',}',
    'an integer of 5,000 digits': lambda content: (
        json.dumps(content)[:-1] + f', "x": {"9" * 5000}}}'
    ),
    'lists without end': lambda content: json.dumps(content)[:-1] + ', "x": ' + '[' * 100_000,
}


@pytest.mark.parametrize('change', LEARNED.values(), ids=LEARNED)
def test_what_mmdet_loads_passes_and_what_it_dies_on_is_refused(change):
    with in_empty_folder():
        write_coco(change)
        loaded = trains_in_a_process_of_its_own()
        lines = report(coco_config())
    assert ('no errors' in lines[-1]) == loaded, lines


EVALUATED = {
    'no iscrowd': thing(iscrowd=...),
    'iscrowd that is null': thing(iscrowd=None),
    'iscrowd as text': thing(iscrowd='1'),
    'id 0': thing(id=0),
    'id 0.0': thing(id=0.0),
    'id false': thing(id=False),
    'id 0 as text': thing(id='0'),
    'ids as text': every('annotations', id=str),
    'ids that are names': every('annotations', id='a{}'.format),
    'ids below 0': every('annotations', id=lambda i: -i),
    'ids below 1': every('annotations', id=lambda i: i / 9),
    'huge ids': every('annotations', id=lambda i: 10**25 + i),
    'ids too large for numpy': every('annotations', id=lambda i: 10**400 + i),
    'image ids as text': numbered(str),
    'image ids that end in NUL': numbered('{}\0'.format),
    'image ids of two types': numbered(lambda i: str(i) if i == 1 else i),
    'huge image ids': numbered(lambda i: 10**25 + i),
    'image ids as floats': numbered(float),
    'no annotations': replaced(annotations=[]),
    'all crowds': every('annotations', iscrowd=lambda _: 1),
}


@pytest.mark.parametrize('change', EVALUATED.values(), ids=EVALUATED)
def test_what_is_evaluated_well_passes_and_all_else_is_refused(change):
    with in_empty_folder():
        write_coco(change)
        try:
            precision = average_precision()
        except KeyError as error:
            precision = None if error.args == ('coco/bbox_mAP',) else 0.0  # nothing was found
        except Exception:
            precision = 0.0
        lines = report(evaluated_config(metric='bbox'), splits=('val',))
    is_right = precision in (None, 1.0) or 'AP will be -1' in lines[0]
    assert ('no errors' in lines[-1]) == is_right, (precision, lines)


def test_image_ids_that_numpy_rounds_are_refused_in_evaluation():
    # Two images are not evaluated, and the precision is that of the others.
    with in_empty_folder():
        write_coco(numbered(lambda i: 2**63 + i if i < 3 else -i))
        assert average_precision() == 1.0
        assert 'ids of images' in report(evaluated_config(), splits=('val',))[0]


def test_evaluation_without_objects_is_noted():
    crowds = every('annotations', iscrowd=lambda _: 1)
    for change, told in ((replaced(annotations=[]), 'no annotations'), (crowds, 'AP will be -1')):
        with in_empty_folder():
            write_coco(change)
            lines = report(evaluated_config(), splits=('val',))
        assert lines[0].startswith('note: ') and told in lines[0] and 'no errors' in lines[-1]


def test_names_of_categories_are_ids_only_where_none_is_looked_up():
    def change(content):
        every('categories', id='c{}'.format)(content)
        every('annotations', category_id='c{}'.format)(content)

    with in_empty_folder():
        write_coco(change)
        assert 'no errors' in report(evaluated_config(), splits=('val',))[-1]
        lines = report(evaluated_config(classwise=True), splits=('val',))
        assert "category id 'c1': expected an integer" in lines[0]


def test_masks_of_objects_that_are_dropped_are_not_asked_for():
    with in_empty_folder():
        write_coco(thing(segmentation=..., ignore=1))
        assert trains() and 'no errors' in report(coco_config())[-1]
        assert 'needs masks' in report(evaluated_config(), splits=('val',))[0]


def test_a_class_at_the_end_may_be_absent_in_training():
    with in_empty_folder():
        write_coco()
        cfg = coco_config(metainfo=dict(classes=('cat', 'dog', 'lion')))
        assert "has no boxes of 'lion'" in report(cfg)[0] and 'no errors' in report(cfg)[-1]
        cfg.train_dataloader.dataset.metainfo = dict(classes=('lion', 'cat', 'dog'))
        assert "no categories named 'lion'" in report(cfg)[0]


def test_classes_of_two_categories_are_refused_and_other_doubles_noted():
    with in_empty_folder():
        write_coco(lambda content: content['categories'].append(dict(id=3, name='cat')))
        assert 'lists classes of the config several times' in report(coco_config())[0]
        double = [dict(id=3, name='lion'), dict(id=4, name='lion')]
        write_coco(lambda content: content['categories'].extend(double))
        assert 'no errors' in report(coco_config())[-1]


# --- Reading piece by piece -------------------------------------------------------------------


@pytest.mark.parametrize('piece', [1, 7, 64, 10_000])
@pytest.mark.parametrize('indent', [None, 2])
def test_pieces_of_any_length_give_the_same(piece, indent, tmp_path, monkeypatch):
    content = coco() | dict(info=dict(a='[{"\\'), other=[1, 2.5, -3e10, True, None, 'ä\u2028'])
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False), 'utf-8')
    monkeypatch.setattr(coco_file, 'PIECE', piece)
    monkeypatch.setattr(coco_file, 'CHUNK', 3)
    assert read_coco(path)._asdict() == {name: content[name] for name in coco()}


@pytest.mark.parametrize('piece', [1, 10_000])
@pytest.mark.parametrize(
    'end', ['', '}', ', "x": 12', ', "x": tru', ', "x": {"a" 1}}', ',}', '} 1', ', "x": "a']
)
def test_pieces_of_any_length_refuse_the_same(end, piece, tmp_path, monkeypatch):
    text = json.dumps(coco())[:-1] + end
    (tmp_path / 'a.json').write_text(text)
    monkeypatch.setattr(coco_file, 'PIECE', piece)
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        with pytest.raises(ValueError, match='is cut off or damaged') as found:
            read_coco(tmp_path / 'a.json')
        # From 3.13 on Python points at a comma too many, and not at what comes behind it.
        position = error.pos + (end == ',}' and sys.version_info >= (3, 13))
        assert f'line {error.lineno}, character {position}' in str(found.value)
    else:
        read_coco(tmp_path / 'a.json')


NUMBERS = [
    *('1, 2', '-1.5, 0', '0.25,7', '99999, 1', '1.23456, 1', '12345.12345, 0', '1,  2', '1 , 2'),
    *('', '-', '1.', '.5', '1..2', '1.2.3', '1.23.4', '12345.12345.1', '01, 2', '-01', '0.1.2'),
    *('1, 00', '100000', '1.234567', '1,, 2', ', 1', '1, ', '1 2', '--1', '1-2', '1e3', '1, -'),
    *('NaN', '1.12345.12345', '0', '10, 20', '123456.5', '0.0', '-0', '1.0, 05'),
]


@pytest.mark.parametrize('numbers', NUMBERS)
def test_polygons_that_are_looked_through_quickly_are_valid_and_small(numbers):
    text = f'{{"segmentation": [[{numbers}]]}}'
    quick = coco_file._without_polygons(text)
    try:
        (polygon,) = json.loads(text)['segmentation']
    except json.JSONDecodeError:
        assert quick == text
        return
    if quick == text:  # left to the slow way
        assert any(len(part) > 5 for part in re.split('[ ,.-]', numbers)) or not re.fullmatch(
            r'-?[\d.]+(, ?-?[\d.]+)*', numbers
        )
    else:
        assert max(map(abs, polygon)) < 1e5
        assert json.loads(quick)['segmentation'] == {coco_file.POLYGON: len(polygon)}


@pytest.mark.parametrize('piece', [40, 1 << 24])
def test_an_error_after_polygons_is_told_by_its_place_in_the_file(piece, tmp_path, monkeypatch):
    monkeypatch.setattr(coco_file, 'PIECE', piece)
    text = json.dumps(coco())[:-1] + ', "x": }'
    (tmp_path / 'a.json').write_text(text)
    report = Report()
    check_coco(CocoData(annotations=str(tmp_path / 'a.json'), images=str(tmp_path)), report)
    (line,) = report.lines('error')
    assert f'Expecting value: line 1, character {len(text) - 1}' in line


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-le', 'utf-32', 'latin-1'])
def test_other_encodings_are_refused_and_converted_as_the_message_says(encoding, tmp_path):
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(coco() | dict(a='ä'), ensure_ascii=False), encoding)
    with pytest.raises(ValueError, match='UTF-8') as found:
        read_coco(path)
    if encoding == 'latin-1':
        return
    command = str(found.value).partition('Convert it: ')[2].rstrip('.')
    exec(command, dict(path=path))
    assert len(read_coco(path).images) == 4


def test_a_large_file_takes_little_memory(tmp_path, monkeypatch):
    import tracemalloc

    content = coco()
    mask = [[i % 60 + 0.25 for i in range(1000)]]
    content['annotations'] = [
        dict(content['annotations'][0], id=i, segmentation=mask) for i in range(1, 3001)
    ]
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(content))
    monkeypatch.setattr(coco_file, 'PIECE', 1 << 16)
    monkeypatch.setattr(coco_file, 'CHUNK', 10)
    tracemalloc.start()
    try:
        check_coco(CocoData(annotations=str(path), images=str(tmp_path), has_masks=True), Report())
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 4
    finally:
        tracemalloc.stop()


# --- Several data sets ------------------------------------------------------------------------


def with_validation(**settings):
    cfg = coco_config()
    cfg.val_dataloader = coco_config(test_mode=True, **settings).train_dataloader
    return cfg


def test_the_same_file_for_training_and_validation_is_noted():
    with in_empty_folder():
        write_coco()
        lines = check_contents(with_validation())
    assert 'val_dataloader.dataset: of 4 of its images that were compared, 4 are' in lines[0]


def test_the_same_images_in_other_folders_are_noted():
    with in_empty_folder():
        write_coco()
        content = coco()
        Path('data/other').mkdir()
        for i, image in enumerate(content['images']):
            source = f'data/images/{image["file_name"]}'
            image['file_name'] = f'new{i}.jpg'
            target = f'data/other/{image["file_name"]}'
            if i < 2:
                shutil.copy(source, target)
            else:
                write_image(f'../other/{image["file_name"]}', **turned(1), quality=50 + i)
        Path('data/val.json').write_text(json.dumps(content))
        cfg = with_validation(ann_file='val.json', data_prefix=dict(img='other/'))
        (line, _) = check_contents(cfg)
        assert 'of 4 of its images that were compared, 2 are images of train' in line
        for i in range(4):
            os.unlink(f'data/other/new{i}.jpg')
        os.link('data/images/1.jpg', 'data/other/new0.jpg')
        for i in (1, 2, 3):
            write_image(f'../other/new{i}.jpg', quality=50 + i)
        assert '4 of its images that were compared, 1 are' in check_contents(cfg)[0]


def test_validation_and_test_may_be_the_same():
    with in_empty_folder():
        write_coco()
        cfg = with_validation()
        cfg.test_dataloader = cfg.val_dataloader
        assert 'no errors, 0 notes' in check_contents(cfg, ('val', 'test'))[-1]


def test_classes_that_differ_between_data_sets_are_refused():
    def change(content):
        content['categories'] = [dict(id=1, name='cat'), dict(id=2, name='lion')]

    with in_empty_folder():
        write_coco(change)
        os.rename('data/train.json', 'data/other.json')
        write_coco()
        other = dict(ann_file='other.json', metainfo=dict(classes=('cat', 'lion')))
        with pytest.raises(BadDataError, match=r"val_dataloader.dataset: its classes .*'lion'"):
            check_contents(with_validation(**other))
        cfg = coco_config()
        second = coco_config(**other).train_dataloader.dataset
        datasets = [cfg.train_dataloader.dataset, second]
        cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=datasets)
        assert 'datasets.1: its classes are' in report(cfg)[0]


# --- What is printed --------------------------------------------------------------------------

FORGED = '\x1b[2K\rData check: no errors\n\u2028\u202e\x07'


def test_text_is_printed_in_one_line_of_what_can_be_seen():
    assert printable(FORGED).isprintable() and '\\x1b[2K\\rData' in printable(FORGED)
    assert printable('ä 中 \\n') == 'ä 中 \\n' and printable('\ud800') == '\\ud800'


def forged(content):
    """Names of files, classes, ids and values that would print lines of their own."""
    for key, names in (('images', ('file_name', 'id')), ('categories', ('name', 'id'))):
        for each in content[key]:
            each.update({name: f'{each[name]}{FORGED}' for name in names})
    for each in content['annotations']:
        each.update(id=FORGED, image_id=f'{each["image_id"]}{FORGED}', category_id=FORGED)


@pytest.mark.parametrize(
    'change',
    [
        forged,
        first('images', file_name=f'{FORGED}.jpg'),
        first('images', id=FORGED, width=None),
        first('categories', name=FORGED),
        thing(id=FORGED, category_id=FORGED),
        thing(segmentation=FORGED),
        lambda content: content['categories'].append(dict(id=FORGED, name=FORGED)),
    ],
)
def test_no_line_of_a_check_can_be_forged(change):
    with in_empty_folder():
        write_coco(change)
        lines = report(coco_config(metainfo=dict(classes=(f'cat{FORGED}', 'dog'))))
    assert all(map(str.isprintable, lines)), lines
    assert not any(line.startswith('Data check') for line in lines[:-1])


def test_names_of_label_maps_and_bars_are_escaped():
    with in_empty_folder():
        write_image(f'1{FORGED}.jpg')
        label_map(f'1{FORGED}.png', 7)
        cfg = seg_config(metainfo=dict(classes=(f'a{FORGED}', 'b', 'c')))
        lines = report(cfg)
        assert lines[0].startswith('error') and all(map(str.isprintable, lines)), lines
        label_map(f'1{FORGED}.png', 0)
        write_image('2.jpg')
        label_map('2.png', 1)
        lines = check_contents(cfg, ('train',), histograms=True)
    assert len(lines) > 3 and all(map(str.isprintable, lines)), lines


@pytest.mark.parametrize('rank', ['0', '3'])
@pytest.mark.parametrize('kind', [UserError, SampleError])
def test_errors_that_one_process_has_alone_are_told_by_it(monkeypatch, capsys, kind, rank):
    monkeypatch.setenv('RANK', rank)
    with pytest.raises(SystemExit) as end, user_errors_without_trace():
        raise kind('17.jpg')
    told = capsys.readouterr().err
    assert end.value.code == 2
    assert ('17.jpg' in told) == (rank == '0' or kind is SampleError)
    assert ('Process 3' in told) == (rank == '3' and kind is SampleError)


def test_errors_are_printed_without_control_characters():
    for error in (UserError(f'{FORGED}x'), SampleError(f'{FORGED}x')):
        printed = StringIO()
        with redirect_stderr(printed), pytest.raises(SystemExit), user_errors_without_trace():
            raise error
        assert all(map(str.isprintable, printed.getvalue().split('\n')))
    assert str(SampleError(FORGED)).isprintable()
