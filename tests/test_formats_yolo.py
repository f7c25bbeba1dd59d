import pytest
from exported import place
from format_cases import assert_equal_truth, found, read_damaged, read_data, written
from PIL import Image

from mmfocal.datasets.formats import yolo
from mmfocal.datasets.formats.content import Folder
from mmfocal.utils.errors import UserError

SIZE = (100, 80)  # width and height in pixels
BOX = '0 0.5 0.5 0.2 0.1\n'  # a cat of 40, 36, 20, 8
CAT = ('cat', 40, 36, 20, 8)
DOG = ('dog', 0, 0, 50, 80)
YAML = 'names: [cat, dog]\ntrain: images/train\nval: images/val\n'
FILES = {
    'data.yaml': YAML,
    'images/train/a.png': SIZE,
    'images/train/b.jpg': SIZE,
    'images/val/c.png': SIZE,
    'labels/train/a.txt': BOX + '1 0.25 0.5 0.5 1\n',
    'labels/train/b.txt': '',
    'labels/val/c.txt': BOX,
}
WHOLE = {'train': {'a.png': [CAT, DOG], 'b.jpg': []}, 'val': {'c.png': [CAT]}}


def near(expected):
    """Nested expectations with numbers that may be rounded."""
    if isinstance(expected, dict):
        return {key: near(value) for key, value in expected.items()}
    if isinstance(expected, list):
        return [near(each) for each in expected]
    return tuple(
        each if isinstance(each, str) else pytest.approx(each, abs=1e-9) for each in expected
    )


def read(root, files):
    annotated, notes = read_data(yolo, written(root, files))
    return annotated, '\n'.join(notes)


def test_boxes_are_read(tmp_path):
    annotated, notes = read(tmp_path, FILES)
    assert annotated.classes == ('cat', 'dog')
    assert found(annotated) == near(WHOLE)
    assert notes == ''


@pytest.mark.parametrize(
    'form',
    [
        'boxes/roboflow_yolo',
        'boxes/yolo_darknet_datumaro',
        'boxes/yolo_label_studio',
        'boxes/yolo_supervision',
        'boxes/yolo_ultralytics_datumaro',
    ],
)
def test_exports_of_real_tools_are_read(form, tmp_path):
    root = place(form, tmp_path)
    assert yolo.recognise(Folder(root))
    annotated, _ = read_data(yolo, root)
    assert_equal_truth(annotated, 0.01)


@pytest.mark.parametrize(
    'text',
    [
        'path: /elsewhere/sets/pets\ntrain: images/train\nval: images/val\n',
        'path: ../pets\ntrain: ./images/train\nvalid: images/val/\ntest:\n',
        'path: .\ntrain: [images/train]\nval: [images/val]\n',
        'train: /content/pets/images/train\nval: C:\\pets\\images\\val\n',
        'train: ../images/train\nval: ../images/val\ntest: ../images/test\n',
        'train: train.txt\nval: val.txt\n',
        'path: data\ntrain: train.txt\nval: /data/val.txt\n',
        'nc: 2\n',  # splits follow from the folders
    ],
)
def test_places_of_a_yaml_are_found(text, tmp_path):
    lists = {
        'train.txt': './images/train/a.png\n\n/content/sets/images/train/b.jpg\n',
        'val.txt': 'images\\val\\c.png\r\n',
    }
    files = {**FILES, **lists, 'data.yaml': f'{text}names: {{0: cat, 1: dog}}\n'}
    assert found(read(tmp_path, files)[0]) == near(WHOLE)


@pytest.mark.parametrize('place_of_train', ['../images/train', 'images/train'])
def test_a_yaml_may_lie_beside_the_images_folder(place_of_train, tmp_path):
    text = YAML.replace('images/train', place_of_train)
    files = {name: each for name, each in FILES.items() if name != 'data.yaml'}
    assert found(read(tmp_path, {**files, 'config/pets.yaml': text})[0]) == near(WHOLE)


def test_a_data_set_may_lie_deeper(tmp_path):
    files = {f'all/pets/{name}': each for name, each in FILES.items()}
    files |= {'images/train/other.png': SIZE}
    assert found(read(tmp_path, files)[0]) == near(WHOLE)


@pytest.mark.parametrize('beside', ['val/images', 'images'])
def test_another_folder_called_images_is_not_taken(beside, tmp_path):
    files = {**FILES, 'data.yaml': YAML.replace('images/val', f'/sets/{beside}')}
    annotated, notes = read(tmp_path, files)
    assert 'val' not in annotated.splits
    assert f'/sets/{beside}' in notes


@pytest.mark.parametrize(
    'moved',
    [
        {'images/train/': 'train/images/', 'labels/train/': 'train/labels/'},
        {'images/train/': 'train/', 'labels/train/': 'train/'},
        {'images/train/': 'train/', 'labels/train/': 'train/labels/'},
        {'images/train/': 'JPEGImages/train/', 'labels/train/': 'labels/train/'},
        {'images/train/': 'images/train/1/', 'labels/train/': 'labels/train/1/'},
    ],
)
def test_labels_are_found_beside_images(moved, tmp_path):
    files = {}
    for name, content in FILES.items():
        for old, new in moved.items():
            name = name.replace(old, new).replace(
                old.replace('train', 'val'), new.replace('train', 'val')
            )
        files[name] = content
    files['data.yaml'] = 'names: [cat, dog]\n'
    assert found(read(tmp_path, files)[0]) == near(WHOLE)


def test_flat_folder_of_labelimg_is_not_divided(tmp_path):
    files = {'a.png': SIZE, 'a.txt': BOX, 'b.png': SIZE, 'classes.txt': 'cat\r\ndog\r\n\r\n'}
    annotated, notes = read(tmp_path, files)
    assert annotated.classes == ('cat', 'dog')
    assert found(annotated) == near({'all': {'a.png': [CAT], 'b.png': []}})
    assert 'b.png' in notes and 'without objects' in notes


def test_darknets_files_give_names_and_lists(tmp_path):
    files = {
        'obj.data': 'classes = 2\ntrain = data/train.txt\nvalid = data/test.txt\n'
        'names = data/obj.names\nbackup = backup/\n',
        'obj.names': 'cat\ndog\n',
        'train.txt': 'data/obj_train_data/a.png\n',
        'test.txt': 'data/obj_train_data/b.png\n',
        'obj_train_data/a.png': SIZE,
        'obj_train_data/a.txt': BOX,
        'obj_train_data/b.png': SIZE,
        'obj_train_data/b.txt': BOX,
    }
    assert 'obj.data with 2' in yolo.recognise(Folder(written(tmp_path, files)))
    annotated, _ = read(tmp_path, files)
    assert found(annotated) == near({'train': {'a.png': [CAT]}, 'val': {'b.png': [CAT]}})


def test_images_turned_by_exif_are_measured_upright(tmp_path):
    root = written(tmp_path, {'classes.txt': 'cat', 'a.txt': BOX})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', SIZE[::-1]).save(root / 'a.jpg', exif=exif)
    assert found(read_data(yolo, root)[0]) == near({'all': {'a.jpg': [CAT]}})


@pytest.mark.parametrize(
    'line',
    [
        '0.0 0.5 0.5 0.2 0.1',
        '0\t0.5\t0.5\t0.2\t0.1\r',
        '  0 .5 5e-1 0.2 0.1  ',
        '\n0 0.5 0.5 0.2 0.1\n\n0 0.5 0.50 0.2 0.1',
        '\ufeff0 0.5 0.5 0.2 0.1',
    ],
)
def test_ways_to_write_a_box(line, tmp_path):
    annotated, _ = read(tmp_path, {**FILES, 'labels/val/c.txt': line})
    assert found(annotated)['val'] == near({'c.png': [CAT]})


def test_polygons_are_read(tmp_path):
    there_and_back = '1 0.1 0.1 0.2 0.1 0.2 0.2 0.8 0.8 0.9 0.8 0.9 0.9 0.8 0.8 0.2 0.2'
    files = {**FILES, 'labels/val/c.txt': f'0 0 0 0.5 0.25 1.001 1\n{there_and_back}\n'}
    annotated, notes = read(tmp_path, files)
    first, second = annotated.splits['val'][0].objects
    assert first.polygons == (pytest.approx((0, 0, 50, 20, 100.1, 80)),)
    assert first.box == pytest.approx((0, 0, 100.1, 80))
    assert len(second.polygons) == 1 and len(second.polygons[0]) == 16
    assert '2 objects are boxes and 2 are polygons' in notes


def test_points_of_exported_polygons_are_kept(tmp_path):
    annotated, _ = read_data(yolo, place('polygons/roboflow_yolo', tmp_path))
    # "ring" and "circle" have more than ten points each.
    with_masks = [
        each for one in annotated.splits['train'] for each in one.objects if each.polygons
    ]
    assert len(with_masks) > 5
    assert all(len(each.polygons) == 1 for each in with_masks)


def test_keypoints_are_left_out(tmp_path):
    files = {
        **FILES,
        'data.yaml': f'{YAML}kpt_shape: [2, 3]\n',
        'labels/val/c.txt': '0 0.5 0.5 0.2 0.1 0.5 0.5 2 0.6 0.6 0\n',
    }
    annotated, notes = read(tmp_path, files)
    assert found(annotated)['val'] == near({'c.png': [CAT]})
    assert '1 objects have keypoints' in notes


TILTED = '0 0.5 0.2 0.8 0.5 0.5 0.8 0.2 0.5\n'  # a square that stands on a corner


@pytest.mark.parametrize(
    'changes, is_refused',
    [
        ({}, True),
        ({'data.yaml': f'{YAML}task: obb\n'}, True),
        ({'data.yaml': f'{YAML}task: segment\n'}, False),
        # Without words, one other polygon or box shows that these are outlines.
        ({'labels/val/c.txt': '0 0 0 0.5 0.5 0 1'}, False),
        ({'labels/val/c.txt': BOX}, False),
        # Trapezia, and upright rectangles.
        ({'labels/train/a.txt': '0 0.2 0.2 0.8 0.2 0.6 0.9 0.4 0.9'}, False),
        ({'labels/train/a.txt': '0 0.2 0.2 0.8 0.2 0.8 0.9 0.2 0.9'}, False),
        (
            {
                'labels/train/a.txt': '0 0.2 0.2 0.8 0.2 0.8 0.9 0.2 0.9',
                'README.roboflow.txt': 'annotated in YOLOv8 Oriented Object Detection format.',
            },
            True,
        ),
    ],
)
def test_oriented_boxes_are_refused_and_outlines_are_not(changes, is_refused, tmp_path):
    files = {name: (100, 100) if each == SIZE else each for name, each in FILES.items()}
    files |= {'labels/train/a.txt': TILTED, 'labels/val/c.txt': ''} | changes
    if is_refused:
        with pytest.raises(UserError, match=r'data\.yaml.*oriented boxes.*task: segment'):
            read(tmp_path, files)
    else:
        read(tmp_path, files)


@pytest.mark.parametrize(
    'changes, told',
    [
        ({'labels/val/c.txt': BOX * 3}, ['labels/val/c.txt', 'repeats 2 line']),
        ({'labels/val/d.txt': BOX}, ['labels/val/d.txt', 'no image']),
        ({'images/val/d.png': SIZE}, ['d.png', 'without objects']),
        ({'images/val/c.png': 'nothing'}, ['c.png', 'is left out']),
        ({'data.yaml': f'{YAML}test: images/test\n'}, ['data.yaml', 'test: images/test']),
        (
            {'data.yaml': YAML.replace('images/val', '[images/val, images/train]')},
            ['a.png', 'val is in train'],
        ),
        (
            {
                'data.yaml': YAML.replace('images/val', 'v.txt'),
                'v.txt': 'images/val/c.png\nx.png\n',
            },
            ['v.txt, line 2', 'x.png'],
        ),
    ],
)
def test_what_is_left_out_is_noted(changes, told, tmp_path):
    annotated, notes = read(tmp_path, {**FILES, **changes})
    assert all(text in notes for text in told), notes
    assert found(annotated)['train'] == near(WHOLE['train'])


def test_files_outside_the_folder_are_never_read(tmp_path):
    outside = {
        'secret/images/x.png': SIZE,
        'secret/labels/x.txt': BOX,
        'secret/list.txt': 'images/x.png\n',
    }
    written(tmp_path, outside)
    for place_of_val in ('../secret/images', f'{tmp_path}/secret/images', '../secret/list.txt'):
        files = {**FILES, 'data.yaml': YAML.replace('images/val', place_of_val)}
        annotated, notes = read(tmp_path / 'inner', files)
        assert 'val' not in annotated.splits
        assert place_of_val in notes
    listed = {'v.txt': f'{tmp_path}/secret/images/x.png\n../secret/images/x.png\n'}
    files = {**FILES, **listed, 'data.yaml': YAML.replace('images/val', 'v.txt')}
    assert 'val' not in read(tmp_path / 'inner', files)[0].splits


def label(text):
    return {'labels/train/a.txt': text}


def settings(text):
    return {'data.yaml': text}


BROKEN = {
    'pixels': (label('0 50 40 20 10'), ['a.txt, line 1', 'from 0 to 1', '50.0', 'pixels?']),
    'confidence': (label(BOX + '0 .5 .5 .1 .1 .9'), ['a.txt, line 2', '5', 'confidence']),
    'too few numbers': (label('0 0.5 0.5'), ['a.txt, line 1', '4 numbers', 'got 2']),
    'odd polygon': (label('0 .1 .1 .5 .1 .5 .5 .9'), ['a.txt, line 1', 'three points', '7']),
    'unknown class': (label('7 .5 .5 .1 .1'), ['a.txt, line 1', 'data.yaml', 'from 0 to 1', '7']),
    'half a class': (label('0.5 .5 .5 .1 .1'), ['a.txt, line 1', 'got 0.5']),
    'negative class': (label('-1 .5 .5 .1 .1'), ['a.txt, line 1', 'got -1']),
    'name as class': (label('cat .5 .5 .1 .1'), ['a.txt, line 1', 'number', "'cat'"]),
    'NaN': (label('0 nan .5 .1 .1'), ['a.txt, line 1', 'finite', "'nan'"]),
    'decimal commas': (label('0 0,5 0,5 0,1 0,1'), ['a.txt, line 1', 'points', '0,5']),
    'negative width': (label('0 .5 .5 -.1 .1'), ['a.txt, line 1', 'width', '-0.1']),
    'not text': (label(b'\xff\xd8\xff\xe0\x80'), ['a.txt', 'UTF-8']),
    'yaml damaged': (settings('names: [cat, dog\ntrain: x'), ['data.yaml', 'damaged']),
    'nc and names differ': (settings(f'nc: 3\n{YAML}'), ['data.yaml', 'nc is 3', '2 names']),
    'nc no number': (settings(f'nc: many\n{YAML}'), ['data.yaml', 'nc', "'many'"]),
    'names as text': (settings('names: cat\ntrain: images'), ['data.yaml', 'list', "'cat'"]),
    'name twice': (settings(YAML.replace('dog', 'cat')), ['data.yaml', "'cat'", 'own name']),
    'name missing': (settings('names: [cat, ]\nnc: 2'), ['data.yaml', 'nc is 2', '1 names']),
    'names nested': (settings('names: [[cat]]'), ['data.yaml', 'name', 'a list']),
    'train elsewhere': (
        settings(YAML.replace('images/train', '/mnt/other')),
        ['data.yaml', 'train', '/mnt/other'],
    ),
    'train no text': (settings('names: [cat]\ntrain: {a: b}'), ['data.yaml', 'train', 'mapping']),
    'keypoints of no shape': (
        settings(f'{YAML}kpt_shape: 17'),
        ['data.yaml', 'kpt_shape', "'17'"],
    ),
    'keypoints missing': (
        settings(f'{YAML}kpt_shape: [17, 3]') | label('0 .5 .5 .1 .1 .2'),
        ['a.txt, line 1', '51', 'got 5'],
    ),
    'two yamls': (
        {'data.yml': 'names: [bird]\nnc: 1'},
        ['data.yaml', 'data.yml', 'other classes'],
    ),
}


@pytest.mark.parametrize('changes, told', BROKEN.values(), ids=BROKEN.keys())
def test_broken_data_is_told_in_a_sentence(changes, told, tmp_path):
    root = written(tmp_path, {**FILES, **changes})
    assert yolo.recognise(Folder(root))
    with pytest.raises(UserError) as caught:
        read_data(yolo, root)
    assert all(text in str(caught.value) for text in told), caught.value
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'files, told',
    [
        ({'a.png': SIZE, 'a.txt': BOX}, ['names of the classes', 'classes.txt']),
        ({'data.yaml': YAML, 'images/train/a.png': SIZE}, ['label file', 'labels']),
        (
            {'a.png': SIZE, 'a.txt': BOX, 'obj.data': 'names = x/obj.names\n'},
            ['obj.data', 'x/obj.names'],
        ),
        (
            {'a.png': SIZE, 'a.txt': BOX, 'classes.txt': 'cat\n', 'obj.names': 'dog\n'},
            ['classes.txt', 'obj.names', 'other classes'],
        ),
        ({'a.png': SIZE, 'a.txt': BOX, 'classes.txt': 'a\n\nb'}, ['classes.txt, line 2']),
    ],
)
def test_what_is_missing_is_told(files, told, tmp_path):
    with pytest.raises(UserError) as caught:
        read_data(yolo, written(tmp_path, files))
    assert all(text in str(caught.value) for text in told), caught.value


def test_names_are_texts_whatever_yaml_takes_them_for(tmp_path):
    annotated, _ = read(tmp_path, {**FILES, 'data.yaml': 'names: [no, 7, 1e3, null]\n'})
    assert annotated.classes == ('no', '7', '1e3', 'null')


def test_yaml_that_grows_is_no_danger(tmp_path):
    bomb = 'a: &a [x, x, x, x, x, x, x, x, x]\n' + ''.join(
        f'{new}: &{new} [{", ".join([f"*{old}"] * 9)}]\n'
        for old, new in zip('abcdefghijk', 'bcdefghijkl', strict=True)
    )
    for end in ('names: *l\n', 'names: [cat]\ntrain: *l\n', 'names: [cat]\nkpt_shape: *l\n'):
        with pytest.raises(UserError, match=r'data\.yaml'):
            read(tmp_path, {**FILES, 'data.yaml': bomb + end})


@pytest.mark.parametrize(
    'files',
    [
        {'a.png': SIZE},
        {'a.png': SIZE, 'README.txt': BOX},
        {'a.png': SIZE, 'a.txt': 'a cat on a mat'},
        {'a.png': SIZE, 'a.txt': 'Car 0.0 0 -1.5 10 20 30 40 1 1 1 1 1 1 1'},  # KITTI
        {'a.txt': BOX, 'classes.txt': 'cat'},
        {'data.yaml': YAML, 'annotations/a.json': '{}', 'images/a.png': SIZE},
    ],
)
def test_other_folders_are_not_recognised(files, tmp_path):
    assert yolo.recognise(Folder(written(tmp_path, files))) is None


@pytest.mark.parametrize('seed', range(40))
def test_damage_is_told_or_survived(seed, tmp_path):
    files = {**FILES, 'data.yaml': YAML.replace('images/val', 'val.txt')}
    files |= {'val.txt': 'images/val/c.png\n', 'labels/train/b.txt': '1 .1 .1 .2 .1 .2 .2\n'}
    read_damaged(yolo, tmp_path, files, seed)
