"""CVAT for images 1.1: exports of tasks and projects, every shape, clear refusals."""

import math
from xml.sax.saxutils import quoteattr

import drawn_shapes
import numpy as np
import pytest
from drawn_shapes import bitmap, blob, found, known, read, refusal, single

from mmfocal.datasets.formats import cvat
from mmfocal.datasets.formats.content import Folder
from mmfocal.datasets.shapes import CLASSES

BOX = '<box label="cat" source="manual" occluded="0" xtl="10.5" ytl="20" xbr="50" ybr="40.25"/>'


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return drawn_shapes.draw(tmp_path_factory.mktemp('drawn'))


def element(tag, text='', **attributes):
    attributes = ''.join(f' {key}={quoteattr(str(value))}' for key, value in attributes.items())
    return f'<{tag}{attributes}>{text}</{tag}>\n'


def points_of(polygon):
    pairs = zip(polygon[::2], polygon[1::2], strict=True)
    return ';'.join(f'{x:.3f},{y:.3f}' for x, y in pairs)


def polygon(label, points, **more):
    common = dict(source='manual', occluded=0, z_order=0)
    return element('polygon', label=label, points=points, **common, **more)


def image(picture, shapes=None, name=None, **more):
    """A picture as CVAT writes it; several polygons of an object are a group."""
    if shapes is None:
        shapes = ''.join(
            polygon(each.label, points_of(one), group_id=group)
            for group, each in enumerate(picture.shapes, 1)
            for one in each.polygons
        )
    size = dict(width=picture.width, height=picture.height)
    return element('image', shapes, id=0, name=name or picture.path.name, **more, **size)


def meta(names, kind='task'):
    labels = ''.join(
        element('label', element('name', name) + '<color>#fa3253</color><type>any</type>')
        for name in names
    )
    return element('meta', element(kind, '<id>1</id>' + element('labels', labels)))


def write(path, *images, head=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = meta(CLASSES) if head is None else head
    body = element('annotations', f'<version>1.1</version>{head}{"".join(images)}')
    path.write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{body}', encoding='utf-8')


@pytest.fixture
def one(pictures, tmp_path):
    """Writes a folder of one image with these shapes."""

    def write_one(*shapes, **more):
        pictures[0].copy(tmp_path / 'images')
        write(tmp_path / 'annotations.xml', image(pictures[0], ''.join(shapes)), head='', **more)
        return tmp_path

    return write_one


def write_project(pictures, root):
    """An export of a project: one file, images in folders of subsets."""
    subsets = dict(train='Train', val='Validation')
    for each in pictures:
        each.copy(root / 'images' / subsets[each.split])
    images = [image(each, subset=subsets[each.split], task_id=3) for each in pictures]
    write(root / 'annotations.xml', *images, head=meta(CLASSES, 'project'))


def write_tasks(pictures, root):
    """Exports of two tasks, unpacked beside each other."""
    for split in ('train', 'val'):
        mine = [each for each in pictures if each.split == split]
        for each in mine:
            each.copy(root / f'task_{split}' / 'images')
        write(root / f'task_{split}' / 'annotations.xml', *map(image, mine))


def write_files(pictures, root):
    """A file for each split, images apart."""
    for split in ('train', 'val'):
        mine = [each for each in pictures if each.split == split]
        for each in mine:
            each.copy(root / 'images' / split)
        write(root / f'{split}.xml', *(image(each, subset=split) for each in mine), head='')


def write_paths(pictures, root):
    """A task whose images were uploaded with their folders."""
    for each in pictures:
        each.copy(root / 'images' / each.split)
    names = [f'{each.split}/{each.path.name}' for each in pictures]
    images = [image(each, name=name) for each, name in zip(pictures, names, strict=True)]
    write(root / 'annotations.xml', *images)


@pytest.mark.parametrize('layout', [write_project, write_tasks, write_files, write_paths])
def test_layouts_give_the_known_objects(pictures, tmp_path, layout):
    layout(pictures, tmp_path)
    annotated, notes = read(cvat, tmp_path)
    assert found(annotated) == known(pictures)
    assert notes == ''


def test_task_without_subsets_is_not_divided(pictures, tmp_path):
    for each in pictures[:3]:
        each.copy(tmp_path / 'images')
    write(tmp_path / 'annotations.xml', *map(image, pictures[:3]))
    assert found(read(cvat, tmp_path)[0]) == known(pictures[:3], 'all')


@pytest.mark.parametrize('kind', ['task', 'project', 'job'])
def test_classes_come_in_the_order_of_the_labels(pictures, tmp_path, kind):
    write_project(pictures, tmp_path)
    names = ['unused', *reversed(CLASSES)]
    path = tmp_path / 'annotations.xml'
    path.write_text(path.read_text().replace(meta(CLASSES, 'project'), meta(names, kind)))
    assert read(cvat, tmp_path)[0].classes == tuple(reversed(CLASSES))


def test_classes_without_labels_come_by_name(pictures, tmp_path):
    write_files(pictures, tmp_path)
    annotated, notes = read(cvat, tmp_path)
    assert annotated.classes == tuple(sorted(CLASSES))
    assert notes == ''


def test_class_that_no_label_names_comes_last_with_a_note(pictures, tmp_path):
    write_project(pictures, tmp_path)
    path = tmp_path / 'annotations.xml'
    path.write_text(path.read_text().replace('<name>circle</name>', '<name>disc</name>'))
    annotated, notes = read(cvat, tmp_path)
    assert annotated.classes[-1] == 'circle'
    assert "the class 'circle' is not listed" in notes


def test_parts_of_skeletons_are_not_classes(pictures, tmp_path):
    """A class that is a part of a skeleton only is not listed, as the note says."""
    write_project(pictures, tmp_path)
    path = tmp_path / 'annotations.xml'
    part = '<name>circle</name><parent>body</parent>'
    path.write_text(path.read_text().replace('<name>circle</name>', part))
    assert "the class 'circle' is not listed" in read(cvat, tmp_path)[1]


def test_recognises_only_its_own_form(pictures, tmp_path):
    write_files(pictures, tmp_path / 'own')
    assert 'train.xml, val.xml' in cvat.recognise(Folder(tmp_path / 'own'))
    voc = tmp_path / 'voc'
    voc.mkdir()
    (voc / 'annotations.xml').write_text(element('annotation', '<filename>1.jpg</filename>'))
    (voc / '2.xml').write_text(element('annotation', '<image>2.jpg</image>'))
    assert cvat.recognise(Folder(voc)) is None


def test_is_recognised_among_other_xml_files(pictures, tmp_path):
    write_project(pictures, tmp_path)
    for number in range(9):
        (tmp_path / f'{number}.xml').write_text('<project/>')
    assert 'annotations.xml' in cvat.recognise(Folder(tmp_path))


def test_box(one):
    each, notes = single(cvat, one(BOX))
    assert (each.label, each.box, each.has_mask) == ('cat', (10.5, 20, 39.5, 20.25), False)
    assert notes == ''


def test_box_with_attributes_is_one_object(one):
    attribute = element('attribute', 'red', name='colour')
    each, _ = single(cvat, one(BOX.replace('/>', f'>{attribute}</box>')))
    assert each.label == 'cat'


def turned_box(degrees):
    return BOX.replace('/>', f' rotation="{degrees}"/>').replace('10.5', '10').replace('.25', '')


def test_turned_box_is_kept_as_polygon_with_a_note(one):
    """Clockwise around its centre, as the picture is looked at."""
    each, notes = single(cvat, one(turned_box(30)))
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    upper_left = (30 - 20 * cos + 10 * sin, 30 - 20 * sin - 10 * cos)
    upper_right = (30 + 20 * cos + 10 * sin, 30 + 20 * sin - 10 * cos)
    assert each.polygons[0][:4] == pytest.approx((*upper_left, *upper_right))
    assert each.box[3] == pytest.approx(2 * (20 * sin + 10 * cos))
    assert 'is turned' in notes


@pytest.mark.parametrize(
    'degrees, box', [(0, (10, 20, 40, 20)), (180, (10, 20, 40, 20)), (270, (20, 10, 20, 40))]
)
def test_upright_box_stays_a_box(one, degrees, box):
    each, notes = single(cvat, one(turned_box(degrees)))
    assert each.box == pytest.approx(box)
    assert not each.has_mask and notes == ''


def mask_of(bitmap, left, top, **more):
    height, width = bitmap.shape
    flat = bitmap.ravel().astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    runs = [0, *runs] if flat[0] else runs
    place = dict(left=left, top=top, width=width, height=height)
    values = dict(label='cat', source='semi-auto', rle=', '.join(map(str, runs)))
    return element('mask', **values | place | more)


def test_mask_has_the_same_pixels(one):
    each, _ = single(cvat, one(mask_of(blob()[10:70, 20:60], 20, 10)))
    assert np.array_equal(bitmap(each), blob())
    assert each.box == (20, 10, 40, 60)
    assert each.rle['size'] == [128, 128]


def test_mask_that_begins_outside_has_the_same_pixels(one):
    each, _ = single(cvat, one(mask_of(blob()[5:80, 10:90], 10, 5)))
    assert np.array_equal(bitmap(each), blob())


@pytest.mark.parametrize('left, top', [(100, 100), (-10, -5)])
def test_mask_is_cut_to_its_image(one, left, top):
    each, _ = single(cvat, one(mask_of(blob()[10:70, 20:60], left, top)))
    whole = np.zeros((328, 328), bool)
    whole[100 + top : 160 + top, 100 + left : 140 + left] = blob()[10:70, 20:60]
    assert np.array_equal(bitmap(each), whole[100:228, 100:228])


def test_ellipse_is_a_polygon_that_is_turned_around_its_centre(one):
    shape = element('ellipse', label='cat', cx=60, cy=50, rx=40, ry=10, rotation=90)
    each, _ = single(cvat, one(shape))
    assert each.box == pytest.approx((50, 10, 20, 80))
    x, y = np.reshape(each.polygons[0], (-1, 2)).T
    assert ((x - 60) / 10) ** 2 + ((y - 50) / 40) ** 2 == pytest.approx(1)


@pytest.mark.parametrize('rotation', [30, 330])
def test_ellipse_turns_clockwise(one, rotation):
    shape = element('ellipse', label='cat', cx=60, cy=60, rx=40, ry=10, rotation=rotation)
    each, _ = single(cvat, one(shape))
    points = np.reshape(each.polygons[0], (-1, 2))
    right = points[points[:, 0].argmax()]
    assert (right[1] > 60) == (rotation == 30)


def test_group_is_one_object(one):
    parts = [
        polygon('cat', '1,2;30,2;30,40', group_id=4),
        polygon('cat', '60,2;80,2;80,20', group_id=4),
    ]
    each, _ = single(cvat, one(*parts))
    assert each.polygons == ((1, 2, 30, 2, 30, 40), (60, 2, 80, 2, 80, 20))


def test_group_of_a_mask_and_a_polygon_is_drawn(one):
    square = polygon('cat', '100,100;120,100;120,120;100,120', group_id=4)
    each, _ = single(cvat, one(mask_of(blob(), 0, 0, group_id=4), square))
    expected = blob()
    expected[100:120, 100:120] = True
    assert np.array_equal(bitmap(each), expected)


def test_box_in_the_group_of_a_polygon_is_that_of_the_object(one):
    box = BOX.replace('/>', ' group_id="4"/>')
    each, _ = single(cvat, one(polygon('cat', '11,21;49,21;49,40', group_id=4), box))
    assert each.box == (10.5, 20, 39.5, 20.25)
    assert each.polygons == ((11, 21, 49, 21, 49, 40),)


def test_boxes_of_a_group_stay_apart(one):
    root = one(*[BOX.replace('/>', ' group_id="4"/>')] * 2)
    ((sample,),) = read(cvat, root)[0].splits.values()
    assert [each.box for each in sample.objects] == [(10.5, 20, 39.5, 20.25)] * 2


def test_shapes_without_a_group_stay_apart(one):
    root = one(polygon('cat', '1,2;30,2;30,40', group_id=0), polygon('cat', '1,2;30,2;30,40'))
    ((sample,),) = read(cvat, root)[0].splits.values()
    assert len(sample.objects) == 2


@pytest.mark.parametrize(
    'shape, why',
    [
        (element('polyline', label='cat', points='1,2;3,4'), 'a polyline, which covers no area'),
        (element('points', label='cat', points='1,2'), 'a points,'),
        (element('cuboid', label='cat', xtl1=1, ytl1=2), "a 'cuboid', expected box"),
        (element('skeleton', element('points', label='nose'), label='cat'), "a 'skeleton'"),
        (element('tag', label='night', source='manual'), "a 'tag'"),
        (polygon('cat', '1,2;3,4'), 'a polygon of 2 points'),
        (element('ellipse', label='cat', cx=60, cy=50, rx=40, ry=0), 'an ellipse of radius 0'),
        (mask_of(np.zeros((4, 5), bool), 3, 3), 'a mask without a pixel'),
        (mask_of(np.ones((4, 5), bool), 200, 3), 'a mask without a pixel in the image'),
    ],
    ids=['line', 'points', 'cuboid', 'skeleton', 'tag', 'two', 'flat', 'empty', 'outside'],
)
def test_what_is_no_object_is_left_out_with_a_note(one, shape, why):
    each, notes = single(cvat, one(shape, BOX))
    assert each.box == (10.5, 20, 39.5, 20.25)
    assert why in notes
    assert "annotations.xml: image '000000.jpg', " in notes


def test_image_without_shapes_is_kept(one):
    ((sample,),) = read(cvat, one())[0].splits.values()
    assert sample.objects == ()


def test_missing_image_is_left_out_with_a_note(pictures, tmp_path):
    write_project(pictures, tmp_path)
    (tmp_path / 'images/Train/000001.jpg').unlink()
    annotated, notes = read(cvat, tmp_path)
    assert len(annotated.splits['train']) == 2
    # The one of the same name in the other subset is not taken for it.
    assert "names the image '000001.jpg'" in notes


BROKEN = {
    'cut_off': (BOX, lambda text: text[: len(text) // 2], ['cut off or damaged']),
    'entity': (BOX, lambda text: text.replace('<anno', '<!DOCTYPE a><anno', 1), ['DOCTYPE']),
    'video': ('', lambda text: text.replace('image ', 'track ').replace('image>', 'track>'), [
        'tracks of a video', 'CVAT for images 1.1']),
    'no_name': (BOX, lambda text: text.replace(' name=', ' title='), ['needs a name']),
    'no_width': (BOX, lambda text: text.replace(' width=', ' wide='), ['width', 'None']),
    'no_label': (BOX.replace('label', 'name'), None, ['box 0', 'label', 'None']),
    'empty_label': (BOX.replace('cat', ''), None, ['box 0', 'label', "''"]),
    'no_corner': (BOX.replace('xbr', 'right'), None, ['box 0', 'xbr', 'None']),
    'corner': (BOX.replace('10.5', '10,5'), None, ['xtl', 'number', "'10,5'"]),
    'infinite': (BOX.replace('10.5', 'inf'), None, ['xtl', 'finite', "'inf'"]),
    'rotation': (BOX.replace('/>', ' rotation="left"/>'), None, ['number', "'left'"]),
    'point': (polygon('cat', '1,2;3,4;5'), None, ['polygon 0', 'x and y', "['5']"]),
    'point_of_text': (polygon('cat', '1,2;3,4;5,x'), None, ['number', "'x'"]),
    'radius': (
        element('ellipse', label='cat', cx=60, cy=50, rx=40, ry=-1),
        None,
        ['ellipse 0', 'at least 0', '-1'],
    ),
    'runs_of_text': (mask_of(blob(), 0, 0, rle='eNpr'), None, ['mask 0', 'rle', "'eNpr'"]),
    'short_runs': (mask_of(blob(), 0, 0, rle='3, 5'), None, ['16384', 'got 8']),
    'negative_run': (mask_of(blob(), 0, 0, rle='-3, 16387'), None, ['16384 pixels']),
    'wide_mask': (mask_of(np.ones((4, 200), bool), 0, 0), None, ['128x128', '200x4']),
    'no_place': (mask_of(blob(), 'x', 0), None, ['left', 'number', "'x'"]),
    'huge': (
        mask_of(blob(), 0, 0),
        lambda text: text.replace('image id="0" name="000000.jpg" width="128"',
                                  'image id="0" name="000000.jpg" width="99999999"'),
        ['99999999x128 pixels'],
    ),
}  # fmt: skip


@pytest.mark.parametrize('shape, change, words', BROKEN.values(), ids=BROKEN)
def test_broken_file_is_refused_in_a_sentence(one, shape, change, words):
    root = one(shape)
    path = root / 'annotations.xml'
    if change is not None:
        path.write_text(change(path.read_text()))
    message = refusal(cvat, root)
    assert [word for word in [str(path), *words] if word not in message] == []
    assert '\n' not in message
    assert message.endswith('.')


def test_image_that_two_files_describe_is_refused(one):
    root = one(BOX)
    (root / 'annotations_old.xml').write_bytes((root / 'annotations.xml').read_bytes())
    message = refusal(cvat, root)
    assert 'annotations.xml' in message and 'annotations_old.xml' in message
    assert '000000.jpg' in message


def test_random_damage_is_refused_or_read(one):
    ellipse = element('ellipse', label='cat', cx=60, cy=50, rx=40, ry=10, rotation=90)
    root = one(
        BOX, polygon('cat', '1,2;30,2;30,40'), mask_of(blob()[10:70, 20:60], 20, 10), ellipse
    )
    count = drawn_shapes.count_refused(cvat, root, root / 'annotations.xml', 300)
    assert 75 < count < 300
