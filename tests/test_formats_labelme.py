"""LabelMe's JSON: every shape and layout that its versions and relatives write; clear refusals."""

import base64
import copy
import io
import json
import math

import drawn_shapes
import numpy as np
import pytest
from drawn_shapes import bitmap, blob, found, known, read, refusal, single
from PIL import Image

from mmfocal.datasets.formats import labelme
from mmfocal.datasets.formats.content import Folder


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return drawn_shapes.draw(tmp_path_factory.mktemp('drawn'))


def points_of(polygon):
    return [list(point) for point in zip(polygon[::2], polygon[1::2], strict=True)]


def shape(label, points, kind='polygon', **more):
    return dict(label=label, points=points, group_id=None, shape_type=kind, flags={}, **more)


def content_of(picture, name=None):
    """A picture in LabelMe's form; several polygons of an object are a group."""
    shapes = [
        shape(each.label, points_of(polygon)) | dict(group_id=group)
        for group, each in enumerate(picture.shapes)
        for polygon in each.polygons
    ]
    return dict(
        version='5.4.1',
        flags={},
        shapes=shapes,
        imagePath=name or picture.path.name,
        imageData=None,
        imageHeight=picture.height,
        imageWidth=picture.width,
    )


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))


def write_all(pictures, root, images='{split}', files='{split}', name='{name}'):
    for each in pictures:
        values = dict(split=each.split, name=each.path.name)
        each.copy(root / images.format(**values))
        path = root / files.format(**values) / f'{each.path.stem}.json'
        write(path, content_of(each, name.format(**values)))
    return root


@pytest.fixture
def one(pictures, tmp_path):
    """Writes a folder of one image with these shapes."""

    def write_one(*shapes, **more):
        pictures[0].copy(tmp_path)
        content = content_of(pictures[0]) | dict(shapes=list(shapes)) | more
        write(tmp_path / '000000.json', content)
        return tmp_path

    return write_one


@pytest.mark.parametrize(
    'layout',
    [
        dict(),
        dict(images='images/{split}', files='labels/{split}', name='../../images/{split}/{name}'),
        dict(
            images='images/{split}', files='labels/{split}', name='..\\..\\images\\{split}\\{name}'
        ),
        dict(images='images/{split}', files='labels/{split}'),
        dict(images='{split}/images', files='{split}/json', name='C:\\Users\\me\\{name}'),
        dict(files='json/{split}', name='/elsewhere/{split}/{name}'),
    ],
    ids=['beside', 'relative', 'windows', 'base_name', 'other_machine', 'folder_name'],
)
def test_layouts_give_the_known_objects(pictures, tmp_path, layout):
    annotated, notes = read(labelme, write_all(pictures, tmp_path, **layout))
    assert found(annotated) == known(pictures)
    assert annotated.classes == tuple(
        sorted({shape.label for each in pictures for shape in each.shapes})
    )
    assert notes == ''


def test_folders_of_images_divide_too(pictures, tmp_path):
    root = write_all(pictures[2:3], tmp_path, images='images/{split}', files='json')
    assert found(read(labelme, root)[0]) == known(pictures[2:3])


def test_image_beside_its_file_comes_before_copies(pictures, tmp_path):
    root = write_all(pictures[:1], tmp_path)
    pictures[0].copy(root / 'train/copies/train')
    annotated, _ = read(labelme, root)
    assert [sample.image for sample in annotated.splits['train']] == [root / 'train/000000.jpg']


def test_folder_of_a_file_tells_images_of_one_name_apart(pictures, tmp_path):
    root = write_all(pictures, tmp_path, images='images/{split}', files='labels/{split}')
    for path in sorted((root / 'labels').rglob('*.json')):
        path.rename(path.with_stem(f'{path.stem}_shapes'))
    assert found(read(labelme, root)[0]) == known(pictures)


def test_one_folder_is_not_divided(pictures, tmp_path):
    root = write_all(pictures[:3], tmp_path, images='', files='')
    assert found(read(labelme, root)[0]) == known(pictures[:3], 'all')


def test_recognises_only_its_own_form(pictures, tmp_path):
    root = write_all(pictures, tmp_path / 'own')
    assert '5 JSON files' in labelme.recognise(Folder(root))
    coco = tmp_path / 'coco'
    write(coco / 'train.json', dict(images=[], annotations=[], categories=[]))
    write(coco / 'tasks.json', [dict(data=dict(image='a.jpg'), annotations=[])])
    assert labelme.recognise(Folder(coco)) is None


def test_recognises_a_file_that_begins_with_its_image(pictures, tmp_path):
    content = content_of(pictures[0]) | dict(imageData='A' * 10**6)
    (tmp_path / '000000.json').write_text(json.dumps(content, sort_keys=True))
    assert labelme.recognise(Folder(tmp_path))


def test_damaged_file_is_still_recognised(pictures, tmp_path):
    pictures[0].copy(tmp_path)
    text = json.dumps(content_of(pictures[0]))
    (tmp_path / '000000.json').write_text(text[:-9])
    assert labelme.recognise(Folder(tmp_path))


@pytest.mark.parametrize(
    'points',
    [[[10, 20], [50, 40]], [[50, 40], [10, 20]], [[10, 40], [50, 20]]],
    ids=['usual', 'backwards', 'upwards'],
)
def test_rectangle_is_a_box_whichever_corner_comes_first(one, points):
    each, _ = single(labelme, one(shape('cat', points, 'rectangle')))
    assert (each.label, each.box, each.has_mask) == ('cat', (10, 20, 40, 20), False)


def test_rectangle_of_four_points_is_a_box(one):
    points = [[10, 20], [50, 20], [50, 40], [10, 40]]
    assert single(labelme, one(shape('cat', points, 'rectangle')))[0].box == (10, 20, 40, 20)


@pytest.mark.parametrize('kind', [None, ''])
def test_shape_without_a_type_is_a_polygon(one, kind):
    old = dict(label='cat', points=[[1, 2], [30, 2], [30, 40]], line_color=None)
    if kind is not None:
        old['shape_type'] = kind
    each, _ = single(labelme, one(old))
    assert each.polygons == ((1, 2, 30, 2, 30, 40),)
    assert each.box == (1, 2, 29, 38)


def test_circle_is_a_polygon_around_its_centre(one):
    each, _ = single(labelme, one(shape('cat', [[60, 50], [90, 90]], 'circle')))
    assert each.box == pytest.approx((10, 0, 100, 100))
    distances = [math.dist((60, 50), point) for point in points_of(each.polygons[0])]
    assert distances == pytest.approx([50] * len(distances))
    # Nowhere is a side more than a quarter of a pixel inside of the circle.
    half = math.pi / len(distances)
    assert 50 * (1 - math.cos(half)) <= 0.25


@pytest.mark.parametrize('kind', ['rotation', 'oriented_rectangle', 'quadrilateral'])
def test_turned_rectangle_is_kept_as_polygon_with_a_note(one, kind):
    points = [[20, 10], [40, 30], [30, 40], [10, 20]]
    each, notes = single(labelme, one(shape('cat', points, kind, direction=0.7)))
    assert each.polygons == ((20, 10, 40, 30, 30, 40, 10, 20),)
    assert f'is a {kind}' in notes


def png(mask):
    file = io.BytesIO()
    Image.fromarray(mask).save(file, 'PNG')
    return base64.b64encode(file.getvalue()).decode()


def mask_shape(mask, **more):
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    part = mask[top : bottom + 1, left : right + 1]
    points = np.array([[left, top], [right, bottom]], float).tolist()
    return shape('cat', points, 'mask', mask=png(part)) | more


@pytest.mark.parametrize('kind', [bool, np.uint8])
def test_mask_has_the_same_pixels(one, kind):
    each, _ = single(labelme, one(mask_shape(blob().astype(kind))))
    assert np.array_equal(bitmap(each), blob())
    assert each.box == (20, 10, 40, 60)
    assert each.rle['size'] == [128, 128]


def test_group_is_one_object(one):
    first = shape('cat', [[1, 2], [30, 2], [30, 40]]) | dict(group_id=7)
    second = shape('cat', [[60, 2], [80, 2], [80, 20]]) | dict(group_id=7)
    each, _ = single(labelme, one(first, second))
    assert each.polygons == ((1, 2, 30, 2, 30, 40), (60, 2, 80, 2, 80, 20))
    assert each.box == (1, 2, 79, 38)


def test_same_group_of_another_label_is_another_object(one):
    group = dict(group_id=0)
    root = one(
        shape('cat', [[1, 2], [30, 2], [30, 40]]) | group,
        shape('dog', [[1, 2], [30, 2], [30, 40]]) | group,
    )
    ((sample,),) = read(labelme, root)[0].splits.values()
    assert [each.label for each in sample.objects] == ['cat', 'dog']


def test_group_of_rectangles_is_the_box_around_them(one):
    first = shape('cat', [[1, 2], [30, 20]], 'rectangle') | dict(group_id=1)
    second = shape('cat', [[60, 5], [80, 90]], 'rectangle') | dict(group_id=1)
    each, _ = single(labelme, one(first, second))
    assert (each.box, each.has_mask) == ((1, 2, 79, 88), False)


def test_group_of_a_mask_and_a_polygon_is_drawn(one):
    square = shape('cat', [[100, 100], [120, 100], [120, 120], [100, 120]]) | dict(group_id=1)
    each, _ = single(labelme, one(mask_shape(blob(), group_id=1), square))
    expected = blob()
    expected[100:120, 100:120] = True
    assert np.array_equal(bitmap(each), expected)


@pytest.mark.parametrize(
    'left_out, why',
    [
        (shape('cat', [[1, 2], [3, 4]], 'line'), 'a line, which covers no area'),
        (shape('cat', [[1, 2], [3, 4], [5, 9]], 'linestrip'), 'a linestrip'),
        (shape('cat', [[1, 2]], 'point'), 'a point,'),
        (shape('cat', [[1, 2], [3, 9]], 'points'), 'a points,'),
        (shape('cat', [[1, 2], [3, 4]]), 'a polygon of 2 points'),
        (shape('cat', [[1, 2], [1, 2]], 'circle'), 'an ellipse of radius 0'),
        (shape('cat', [[1, 2]] * 8, 'cuboid'), 'a cuboid'),
        (shape('__ignore__', [[1, 2], [9, 2], [9, 9]]), '__ignore__'),
        (shape('_background_', [[1, 2], [9, 2], [9, 9]]), '_background_'),
    ],
    ids=lambda value: '' if isinstance(value, dict) else value.split(',')[0],
)
def test_what_is_no_object_is_left_out_with_a_note(one, left_out, why):
    box = shape('cat', [[1, 2], [30, 20]], 'rectangle')
    each, notes = single(labelme, one(left_out, box))
    assert each.box == (1, 2, 29, 18)
    assert why in notes
    assert '000000.json: shape 0' in notes


def test_image_without_shapes_is_kept(one):
    ((sample,),) = read(labelme, one())[0].splits.values()
    assert sample.objects == ()


def test_labels_file_orders_the_classes(pictures, tmp_path):
    root = write_all(pictures, tmp_path)
    names = ['triangle', 'unused', 'circle', 'star', 'ring', 'square']
    (root / 'labels.txt').write_text('\n'.join(['__ignore__', '_background_', *names]))
    annotated, notes = read(labelme, root)
    assert annotated.classes == ('triangle', 'circle', 'star', 'ring', 'square', 'cross')
    assert "the class 'cross' is not listed" in notes


def test_image_without_a_file_is_left_out_with_a_note(pictures, tmp_path):
    root = write_all(pictures, tmp_path)
    (root / 'train/000001.json').unlink()
    annotated, notes = read(labelme, root)
    assert [sample.image.name for sample in annotated.splits['train']] == [
        '000000.jpg',
        '000002.jpg',
    ]
    assert f'{root}/train/000001.jpg: has no JSON file' in notes


def test_missing_image_is_left_out_with_a_note(pictures, tmp_path):
    root = write_all(pictures, tmp_path)
    (root / 'train/000001.jpg').unlink()
    annotated, notes = read(labelme, root)
    # The one of the same name in the other folder is not taken for it.
    assert len(annotated.splits['train']) == 2
    assert "names the image '000001.jpg'" in notes


def test_image_within_the_file_is_told(pictures, tmp_path):
    root = write_all(pictures, tmp_path)
    (root / 'train/000002.jpg').unlink()
    inside = dict(imageData=base64.b64encode(pictures[2].path.read_bytes()).decode())
    write(root / 'train/000002.json', content_of(pictures[2]) | inside)
    assert "holds the image '000002.jpg' itself, as imageData" in read(labelme, root)[1]


def test_renamed_image_is_found_by_the_name_of_its_file(one, tmp_path):
    root = one(shape('cat', [[1, 2], [30, 20]], 'rectangle'), imagePath='DSC_0815.JPG')
    assert single(labelme, root)[0].box == (1, 2, 29, 18)


def test_image_elsewhere_is_never_read(pictures, tmp_path):
    pictures[0].copy(tmp_path)
    root = tmp_path / 'data'
    pictures[1].copy(root)
    write(root / 'a.json', content_of(pictures[0], '../000000.jpg'))
    write(root / '000001.json', content_of(pictures[1]))
    annotated, notes = read(labelme, root)
    assert [sample.image for sample in annotated.splits['all']] == [root / '000001.jpg']
    assert "names the image '../000000.jpg'" in notes


@pytest.mark.parametrize('content', [['cat'], dict(cat=1)])
def test_other_json_file_is_noted(one, content):
    root = one(shape('cat', [[1, 2], [30, 20]], 'rectangle'))
    write(root / 'categories.json', content)
    assert "categories.json: is not in LabelMe's form" in read(labelme, root)[1]


def test_part_without_a_split_is_trained_on_only_if_nothing_else_is(pictures, tmp_path):
    root = write_all(pictures, tmp_path)
    pictures[0].copy(root / 'more')
    write(root / 'more/000000.json', content_of(pictures[0]))
    annotated, notes = read(labelme, root)
    assert {split: len(samples) for split, samples in annotated.splits.items()} == dict(
        train=3, val=2
    )
    assert f'{root}/more/000000.json: belongs to none of train, val' in notes
    (root / 'train').rename(root / 'rest')
    annotated, _ = read(labelme, root)
    assert {split: len(samples) for split, samples in annotated.splits.items()} == dict(
        train=4, val=2
    )


def set_in(content, *path, value):
    *path, last = path
    for key in path:
        content = content[key]
    content[last] = value


BROKEN = {
    'cut_off': (lambda text: text[: len(text) // 2], ['cut off or damaged']),
    'no_shapes': (dict(shapes=None), ["'shapes'", 'list', 'None']),
    'shapes_of_text': (dict(shapes='none'), ["'shapes'", "'none'"]),
    'no_path': (dict(imagePath=7), ["'imagePath'", '7']),
    'wide': (dict(imageWidth='wide'), ['imageWidth', 'number', "'wide'"]),
    'infinite': (dict(imageHeight=float('inf')), ['imageHeight', 'finite', 'inf']),
    'shape_of_text': (dict(shapes=['cat']), ['shape 0', "'cat'"]),
    'no_label': (shape(None, [[1, 2], [3, 4], [5, 6]]), ['shape 0', 'label', 'None']),
    'empty_label': (shape(' ', [[1, 2], [3, 4], [5, 6]]), ['shape 0', 'label', "' '"]),
    'half_a_letter': (shape('\ud83d', [[1, 2], [3, 4], [5, 6]]), ['label', "'\\ud83d'"]),
    'no_points': (shape('cat', None), ['shape 0', 'points', 'None']),
    'flat_points': (shape('cat', [1, 2, 3, 4]), ['shape 0', 'x and y', 'got 1']),
    'three_dimensions': (shape('cat', [[1, 2, 3]]), ['x and y', '[1, 2, 3]']),
    'points_of_text': (shape('cat', [['a', 2], [3, 4], [5, 6]]), ['number', "'a'"]),
    'not_a_number': (shape('cat', [[math.nan, 2], [3, 4], [5, 6]]), ['finite', 'nan']),
    'unknown_type': (shape('cat', [[1, 2]], 'banana'), ['shape_type', "'banana'", 'polygon']),
    'type_of_list': (shape('cat', [[1, 2]], ['polygon']), ['shape_type', "['polygon']"]),
    'rectangle': (shape('cat', [[1, 2]], 'rectangle'), ['two points', 'rectangle', 'got 1']),
    'circle': (shape('cat', [[1, 2]] * 4, 'circle'), ['two points', 'circle', 'got 4']),
    'no_mask': (shape('cat', [[1, 2], [3, 4]], 'mask'), ['base64', "'mask'", 'None']),
    'no_png': (shape('cat', [[1, 2], [3, 4]], 'mask', mask='R0lGOD'), ['PNG', "'R0lGOD'"]),
    'no_base64': (shape('cat', [[1, 2], [3, 4]], 'mask', mask='x'), ['base64', "'x'"]),
    'not_ascii': (shape('cat', [[1, 2], [3, 4]], 'mask', mask='ä'), ['base64', "'ä'"]),
    'large_mask': (
        shape('cat', [[1, 2], [3, 4]], 'mask', mask=png(blob())),
        ['3x3', '128x128'],
    ),
    'mask_of_huge_image': (
        dict(imageWidth=10**6, imageHeight=10**6, shapes=[mask_shape(blob())]),
        ['1000000x1000000 pixels'],
    ),
    'mask_without_size': (
        dict(imageWidth=None, shapes=[mask_shape(blob())]),
        ['imageWidth', 'got none'],
    ),
    'group': (
        shape('cat', [[1, 2], [3, 4], [5, 6]]) | dict(group_id=[1]),
        ['group_id', '[1]'],
    ),
}


@pytest.mark.parametrize('change, words', BROKEN.values(), ids=BROKEN)
def test_broken_file_is_refused_in_a_sentence(one, change, words):
    root = one(shape('cat', [[1, 2], [30, 20]], 'rectangle'))
    path = root / '000000.json'
    content = json.loads(path.read_text())
    if callable(change):
        path.write_text(change(path.read_text()))
    else:
        write(path, content | (dict(shapes=[change]) if 'points' in change else change))
    message = refusal(labelme, root)
    assert [word for word in [str(path), *words] if word not in message] == []
    assert '\n' not in message
    assert message.endswith('.')


def test_image_that_two_files_describe_is_refused(one):
    root = one(shape('cat', [[1, 2], [30, 20]], 'rectangle'))
    (root / 'copy.json').write_bytes((root / '000000.json').read_bytes())
    message = refusal(labelme, root)
    assert '000000.json' in message and 'copy.json' in message and '000000.jpg' in message


def test_folder_without_any_image_is_refused_with_the_reason(one):
    root = one(shape('cat', [[1, 2], [30, 20]], 'rectangle'))
    (root / '000000.jpg').unlink()
    message = refusal(labelme, root)
    assert 'no image that can be used' in message and "'000000.jpg'" in message


def test_lists_in_lists_are_refused(one):
    path = one() / '000000.json'
    text = path.read_text()
    for depth in range(600, 1000, 3):
        nested = f'"shapes": {"[" * depth}{"]" * depth}'
        path.write_text(text.replace('"shapes": []', nested))
        assert str(path) in refusal(labelme, path.parent)


def test_random_damage_is_refused_or_read(one, pictures):
    shapes = copy.deepcopy(content_of(pictures[0])['shapes'][:4])
    circle = shape('cat', [[60, 50], [90, 90]], 'circle')
    root = one(*shapes, mask_shape(blob()), circle)
    count = drawn_shapes.count_refused(labelme, root, root / '000000.json', 300)
    assert 75 < count < 300
