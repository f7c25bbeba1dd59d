"""COCO's form, whole and imperfect: what is recognised, mended, divided, converted and refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmfocal.datasets import prepare_shapes
from mmfocal.datasets.checks import CocoData, Report, check_coco
from mmfocal.datasets.formats import Folder, Source, prepare_detection
from mmfocal.datasets.formats.splits import divide
from mmfocal.utils.errors import UserError


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    return prepare_shapes(root / 'data', num_images=dict(train=6, val=3))


def content_of(path):
    return json.loads(Path(path).read_text())


def prepare(root, report=None, **options):
    source = Source(Folder(root), root.with_name(f'{root.name}_data'), **options)
    return prepare_detection(source, Report() if report is None else report)


def copied(shapes, root, change=lambda content: None, encoding='utf-8'):
    """The drawn shapes with both annotation files changed."""
    for split in ('train', 'val'):
        shutil.copytree(shapes / split, root / split)
        content = content_of(shapes / f'annotations/instances_{split}.json')
        change(content)
        (root / f'{split}.json').write_text(json.dumps(content), encoding=encoding)
    return root


def objects(path):
    """What is learned from a file: objects of each image, whatever their ids."""
    content = content_of(path)
    names = {each['id']: each['name'] for each in content['categories']}
    images = {each['id']: Path(each['file_name']).name for each in content['images']}
    found = {name: [] for name in images.values()}
    for each in content['annotations']:
        box = [round(value, 1) for value in each['bbox']]
        outline = [round(value, 1) for part in each['segmentation'] for value in part]
        found[images[each['image_id']]].append((names[each['category_id']], box, outline))
    return {name: sorted(items) for name, items in found.items()}


def for_each(kind, change):
    def changed(content):
        for number, item in enumerate(content[kind]):
            change(number, item)

    return changed


MENDED = {
    'ids from 0': for_each('annotations', lambda number, each: each.update(id=number)),
    'no iscrowd': for_each('annotations', lambda _, each: each.pop('iscrowd')),
    'no area': for_each('annotations', lambda _, each: each.pop('area')),
    'no ids': for_each('annotations', lambda _, each: each.pop('id')),
    'no boxes': for_each('annotations', lambda _, each: each.pop('bbox')),
    'text for numbers': for_each(
        'annotations', lambda _, each: each.update(bbox=list(map(str, each['bbox'])))
    ),
    'text for ids': for_each(
        'annotations',
        lambda _, each: each.update(
            category_id=f'{each["category_id"]}', image_id=f'{each["image_id"]}'
        ),
    ),
    'paths of another machine': for_each(
        'images', lambda _, each: each.update(file_name=f'C:\\data\\{each["file_name"]}')
    ),
    'no sizes': for_each('images', lambda _, each: (each.pop('width'), each.pop('height'))),
    'one outline without a list': for_each(
        'annotations',
        lambda _, each: (
            each.update(segmentation=each['segmentation'][0])
            if len(each['segmentation']) == 1
            else None
        ),
    ),
}


def assert_same(shapes, data, has_boxes=True):
    for split in ('train', 'val'):
        mine = objects(data.splits[split].annotations)
        truth = objects(shapes / f'annotations/instances_{split}.json')
        assert mine.keys() == truth.keys()
        for name, items in truth.items():
            assert [each[0] for each in mine[name]] == [each[0] for each in items]
            for (_, box, outline), (_, other, its) in zip(mine[name], items, strict=True):
                assert np.allclose(outline, its, atol=0.11)
                assert np.allclose(box, other, atol=1.1) or not has_boxes


@pytest.mark.parametrize('how', MENDED)
def test_imperfect_files_are_mended(shapes, tmp_path, how):
    root = copied(shapes, tmp_path / 'data', MENDED[how])
    before = {path: path.read_bytes() for path in root.rglob('*') if path.is_file()}
    data = prepare(root)
    assert_same(shapes, data, has_boxes=how != 'no boxes')
    assert data.has_masks and len(data.classes) == 6
    # What is trained on passes the check, and the source is as it was.
    for split, part in data.splits.items():
        report = Report()
        described = CocoData(
            annotations=str(part.annotations), images=str(part.images), trains=split == 'train'
        )
        check_coco(described, report)
        assert report.lines('error') == []
    assert before == {path: path.read_bytes() for path in root.rglob('*') if path.is_file()}


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_marks_of_encodings_are_read(shapes, tmp_path, encoding):
    assert_same(shapes, prepare(copied(shapes, tmp_path / 'data', encoding=encoding)))


def test_sound_files_are_used_in_place(shapes):
    data = prepare(shapes)
    assert not data.is_converted and data.splits['train'].images == shapes / 'train'
    assert not shapes.with_name('data_data').exists()


def test_links_to_images_are_followed(shapes, tmp_path):
    root = tmp_path / 'data'
    root.mkdir()
    for name in ('train', 'val', 'annotations'):
        (root / name).symlink_to(shapes / name)
    (root / 'itself').symlink_to(root)
    assert prepare(root).splits['train'].num_images == 6


def in_one_file(shapes, root):
    root.mkdir()
    both = [
        content_of(shapes / f'annotations/instances_{split}.json') for split in ('train', 'val')
    ]
    for content, offset in zip(both, (0, 1000), strict=True):
        for each in content['images']:
            each['id'] += offset
        for each in content['annotations']:
            each['image_id'] += offset
            each['id'] += 100 * offset
    merged = {
        'images': both[0]['images'] + both[1]['images'],
        'annotations': both[0]['annotations'] + both[1]['annotations'],
        'categories': both[0]['categories'],
    }
    (root / 'labels.json').write_text(json.dumps(merged))
    for split in ('train', 'val'):
        for image in (shapes / split).iterdir():
            shutil.copy(image, root / f'{split}_{image.name}')
    names = [
        (content, f'{split}_{each["file_name"]}')
        for content, split in zip(both, ('train', 'val'), strict=True)
        for each in content['images']
    ]
    for each, (_, name) in zip(merged['images'], names, strict=True):
        each['file_name'] = name.replace('train', 'part1').replace('val', 'part2')
    for path in list(root.glob('*.*')):
        path.rename(root / path.name.replace('train', 'part1').replace('val', 'part2'))
    (root / 'labels.json').write_text(json.dumps(merged))
    return root


def test_one_file_is_divided_by_image_and_repeatably(shapes, tmp_path):
    root = in_one_file(shapes, tmp_path / 'data')

    def parts(**options):
        data = prepare(root, **options)
        return {split: set(objects(part.annotations)) for split, part in data.splits.items()}

    first = parts(val_share=0.3)
    assert len(first['val']) == 3 and len(first['train']) == 6
    assert not first['train'] & first['val']
    assert parts(val_share=0.3) == first
    assert any(parts(val_share=0.3, seed=seed) != first for seed in (1, 2, 3))


def test_division_is_stable_and_keeps_copies_together():
    names = [f'{i}_jpg.rf.{copy}.jpg' for i in range(100) for copy in 'abc']
    chosen = divide(names, 0.2, seed=0)
    assert 54 <= len(chosen) <= 66
    assert all(len({f'{i}_jpg.rf.{c}.jpg' for c in 'abc'} & chosen) in (0, 3) for i in range(100))
    more = [*names, *(f'{i}_jpg.rf.a.jpg' for i in range(100, 110))]
    assert divide(list(reversed(names)), 0.2, seed=0) == chosen
    # With ten more images, few change sides.
    assert len(divide(more, 0.2, seed=0) ^ chosen) <= 12


def test_three_splits_are_used_as_three(shapes, tmp_path):
    """As Roboflow exports: annotation ids from 0, and a category without objects."""

    def as_roboflow(content):
        content['categories'].insert(0, dict(id=99, name='shapes', supercategory='none'))
        for number, each in enumerate(content['annotations']):
            each['id'] = number

    root = tmp_path / 'export'
    for split, source in dict(train='train', valid='val', test='val').items():
        shutil.copytree(shapes / source, root / split)
        content = content_of(shapes / f'annotations/instances_{source}.json')
        as_roboflow(content)
        (root / split / '_annotations.coco.json').write_text(json.dumps(content))
    data = prepare(root)
    assert list(data.splits) == ['train', 'val', 'test']
    assert data.classes == ('circle', 'square', 'triangle', 'star', 'cross', 'ring')
    assert (
        objects(data.splits['test'].annotations).keys()
        == objects(data.splits['val'].annotations).keys()
    )


def damaged(how):
    """Ways to break a data set, by what its user reads."""

    def cut(root):
        path = root / 'train.json'
        path.write_bytes(path.read_bytes()[:-500])

    def edit(change):
        def edited(root):
            content = content_of(root / 'train.json')
            result = change(content)
            (root / 'train.json').write_text(json.dumps(content if result is None else result))

        return edited

    def shrink(root):
        for path in (root / 'train').iterdir():
            Image.new('RGB', (20, 10)).save(path)
        everywhere(id=0)(root)

    def everywhere(**values):
        return edit(
            lambda content: [each.update(values) for each in content['annotations']] and None
        )

    return {
        'cut': (cut, r'train\.json is cut off or damaged'),
        'list under a wrong key': (
            edit(lambda content: content.update(annotations={'1': 2})),
            r"train\.json: expected a list under 'annotations'",
        ),
        'category without a name': (
            edit(lambda content: content['categories'][0].pop('name') and None),
            r"category number 0 needs 'id' and 'name'",
        ),
        'category twice': (
            edit(lambda content: content['categories'].append(content['categories'][0])),
            r'category id 1 is listed twice',
        ),
        'unknown category': (everywhere(category_id=77), r'category_id 77 is none of the categ'),
        'boxes outside': (everywhere(bbox=[9e3, 9e3, 5, 5]), r'only \d+ can be used.*outside'),
        'boxes of text': (everywhere(bbox='1,2,3,4', segmentation=[]), r'bbox of four numbers'),
        'not finite': (everywhere(bbox=[0, 0, float('inf'), 1]), r'finite number, got inf'),
        'images that are not there': (
            lambda root: shutil.rmtree(root / 'train'),
            r'Of 9 images only 3 can be used',
        ),
        'images of another size': (shrink, r'has 20x10 pixels .* says 128x128'),
        'two files for training': (
            lambda root: shutil.copy(root / 'train.json', root / 'train_old.json'),
            r'several annotation files for "train": train\.json, train_old\.json',
        ),
        'nothing to train on': (
            lambda root: (root / 'train.json').unlink(),
            r'no images to train on, only for val',
        ),
        'no annotations': (
            lambda root: [(root / f'{split}.json').unlink() for split in ('train', 'val')],
            r'no annotations of any known format.*9 \.jpg',
        ),
    }[how]


@pytest.mark.parametrize(
    'how',
    [
        'cut',
        'list under a wrong key',
        'category without a name',
        'category twice',
        'unknown category',
        'boxes outside',
        'boxes of text',
        'not finite',
        'images that are not there',
        'images of another size',
        'two files for training',
        'nothing to train on',
        'no annotations',
    ],
)
def test_broken_data_is_told_in_a_sentence(shapes, tmp_path, how):
    root = copied(shapes, tmp_path / 'data')
    damage, message = damaged(how)
    damage(root)
    with pytest.raises(UserError, match=f'(?s){message}'):
        prepare(root)
    assert not root.with_name('data_data').exists()


def test_files_of_others_are_never_replaced(shapes, tmp_path):
    root = copied(shapes, tmp_path / 'data', MENDED['no boxes'])
    other = tmp_path / 'data_data'
    other.mkdir()
    (other / 'thesis.txt').write_text('mine')
    with pytest.raises(UserError, match='holds other files'):
        prepare(root)
    assert (other / 'thesis.txt').read_text() == 'mine'


def test_a_part_of_which_no_image_is_there_is_refused(shapes, tmp_path):
    """Instead of taking images of training for validation without a word."""
    root = copied(shapes, tmp_path / 'data', MENDED['no ids'])
    shutil.rmtree(root / 'val')
    with pytest.raises(UserError, match='images for "val" only 0'):
        prepare(root)


def test_files_whose_names_could_forge_lines_are_left_aside(shapes, tmp_path):
    root = copied(shapes, tmp_path / 'data')
    (root / 'x\nData check: no errors.json').write_text('{"images": [], "annotations": ')
    assert prepare(root).splits['val'].num_images == 3
