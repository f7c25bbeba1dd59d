import pytest
from exported import place
from format_cases import assert_equal_truth, found, read_damaged, read_data, written

from mmfocal.datasets.formats import voc
from mmfocal.datasets.formats.content import Folder
from mmfocal.utils.errors import UserError

SIZE = (100, 80)  # width and height in pixels


def box(name='cat', corners=(11, 21, 30, 40), more=''):
    sides = zip(('xmin', 'ymin', 'xmax', 'ymax'), corners, strict=True)
    inner = ''.join(f'<{side}>{value}</{side}>' for side, value in sides)
    return f'<object><name>{name}</name>{more}<bndbox>{inner}</bndbox></object>\n'


CAT = ('cat', 10, 20, 20, 20)


def xml(objects='', filename='', size=SIZE):
    width, height = size
    return (
        f'<?xml version="1.0"?>\n<annotation>\n<folder>x</folder><filename>{filename}</filename>\n'
        f'<size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n'
        f'{objects}</annotation>\n'
    )


FILES = {
    'JPEGImages/a.png': SIZE,
    'JPEGImages/b.jpg': SIZE,
    'JPEGImages/c.png': SIZE,
    'Annotations/a.xml': xml(box() + box('dog', (1, 1, 100, 80)), 'a.png'),
    'Annotations/b.xml': xml('', 'b.jpg'),
    'Annotations/c.xml': xml(box(), 'c.png'),
    'ImageSets/Main/train.txt': 'a\nb\n',
    'ImageSets/Main/val.txt': 'c\n',
    'ImageSets/Main/trainval.txt': 'a\nb\nc\n',
    'ImageSets/Main/cat_train.txt': 'a  1\nb -1\nc  1\n',
}
WHOLE = {
    'train': {'a.png': [CAT, ('dog', 0, 0, 100, 80)], 'b.jpg': []},
    'val': {'c.png': [CAT]},
}


def read(root, files):
    annotated, notes = read_data(voc, written(root, files))
    return annotated, '\n'.join(notes)


def without_lists(**renamed):
    """FILES without lists, with folders of other names."""
    files = {}
    for name, content in FILES.items():
        if not name.startswith('ImageSets'):
            for old, new in renamed.items():
                name = name.replace(f'{old}/', new)
            files[name] = content
    return files


def test_boxes_are_read(tmp_path):
    annotated, notes = read(tmp_path, FILES)
    assert annotated.classes == ('cat', 'dog')
    assert found(annotated) == WHOLE
    assert annotated.splits['val'][0].size == SIZE
    assert notes == ''
    assert 'ImageSets/Main' in voc.recognise(Folder(tmp_path))


@pytest.mark.parametrize(
    'form, tolerance',
    [
        ('boxes/voc_datumaro', 1e-6),
        ('boxes/voc_globox', 1e-6),
        ('boxes/voc_label_studio', 1),  # cuts decimals off
        ('boxes/voc_supervision', 1e-6),
        ('boxes/voc_zero_based_datumaro', 1e-6),
    ],
)
def test_exports_of_real_tools_are_read(form, tolerance, tmp_path):
    root = place(form, tmp_path)
    assert voc.recognise(Folder(root))
    annotated, _ = read_data(voc, root)
    assert_equal_truth(annotated, tolerance)


@pytest.mark.parametrize(
    'corner, read_as',
    [('1', CAT), ('0', ('cat', 11, 21, 19, 19)), ('0.5', ('cat', 11, 21, 19, 19))],
)
def test_a_zero_anywhere_says_that_corners_count_from_zero(corner, read_as, tmp_path):
    files = {**FILES, 'Annotations/b.xml': xml(box('dog', (5, corner, 50, 60)))}
    assert found(read(tmp_path, files)[0])['val'] == {'c.png': [read_as]}


@pytest.mark.parametrize(
    'files',
    [
        without_lists(JPEGImages='', Annotations=''),
        without_lists(JPEGImages='images/', Annotations='xml/'),
        {f'VOCdevkit/VOC2007/{name}': each for name, each in without_lists().items()},
    ],
)
def test_without_lists_and_named_folders_it_is_not_divided(files, tmp_path):
    annotated, _ = read(tmp_path, files)
    assert found(annotated) == {'all': WHOLE['train'] | WHOLE['val']}


@pytest.mark.parametrize(
    'images, annotations',
    [
        ('{}', '{}'),  # Roboflow
        ('{}/images', '{}/annotations'),
        ('JPEGImages/{}', 'Annotations/{}'),
        ('images/{}', 'labels/{}'),
    ],
)
def test_folders_divide_and_keep_equal_names_apart(images, annotations, tmp_path):
    files = {}
    for split in ('train', 'valid', 'test'):
        files[f'{images.format(split)}/1.png'] = SIZE
        files[f'{annotations.format(split)}/1.xml'] = xml(box(split), 'IMG_77.png')
    annotated, notes = read(tmp_path, files)
    assert found(annotated) == {
        split: {'1.png': [(name, *CAT[1:])]}
        for split, name in (('train', 'train'), ('val', 'valid'), ('test', 'test'))
    }
    assert all(split in str(each[0].image) for split, each in annotated.splits.items())
    assert notes == ''


@pytest.mark.parametrize(
    'lists, splits',
    [
        ({'Main/trainval.txt': 'a\nb\n', 'Main/test.txt': 'c'}, {'train': 'ab', 'test': 'c'}),
        ({'Main/trainval.txt': 'a\nb\nc', 'Main/val.txt': 'c'}, {'train': 'ab', 'val': 'c'}),
        ({'Main/train.txt': 'a  1\nb -1\n', 'Main/val.txt': 'c 0'}, {'train': 'ab', 'val': 'c'}),
        ({'train.txt': 'a.png\r\nb.jpg\r\n', 'val.txt': 'c.png'}, {'train': 'ab', 'val': 'c'}),
        (
            {
                '../train_list.txt': 'JPEGImages/a.png Annotations/a.xml\n',
                '../val_list.txt': 'JPEGImages/c.png Annotations/c.xml\n',
            },
            {'train': 'a', 'val': 'c'},
        ),
        ({'Main/default.txt': 'a\nb\nc'}, {'all': 'abc'}),
        ({'Segmentation/train.txt': 'a'}, {'all': 'abc'}),
        ({'Main/cat_train.txt': 'a 1'}, {'all': 'abc'}),
    ],
)
def test_lists_divide(lists, splits, tmp_path):
    files = without_lists()
    for name, content in lists.items():
        files[f'ImageSets/{name}'.replace('ImageSets/../', '')] = content
    annotated, _ = read(tmp_path, files)
    got = {
        s: ''.join(each.image.stem for each in samples) for s, samples in annotated.splits.items()
    }
    assert got == splits


def test_two_years_stay_apart(tmp_path):
    files = {f'VOC2007/{name}': each for name, each in FILES.items()}
    files |= {f'VOC2012/{name}': each for name, each in FILES.items()}
    files['VOC2012/Annotations/c.xml'] = xml(box('bird'), 'c.png')
    annotated, _ = read(tmp_path, files)
    assert [
        (each.image.relative_to(tmp_path).as_posix(), each.objects[0].label)
        for each in annotated.splits['val']
    ] == [('VOC2007/JPEGImages/c.png', 'cat'), ('VOC2012/JPEGImages/c.png', 'bird')]


@pytest.mark.parametrize(
    'filename, size, declared',
    [
        ('c', SIZE, SIZE),
        ('', (0, 0), None),
        ('C:\\data\\c.png', ('', ''), None),
        ('/elsewhere/pets/c.png', (200, 160), (200, 160)),  # for whoever compares it with the file
        ('old_name.png', SIZE, SIZE),
    ],
)
def test_images_are_found_by_their_names_or_by_the_files(filename, size, declared, tmp_path):
    files = {**FILES, 'Annotations/c.xml': xml(box(), filename, size)}
    annotated, notes = read(tmp_path, files)
    assert found(annotated) == WHOLE
    assert annotated.splits['val'][0].size == declared
    assert notes == ''


def test_images_are_found_by_what_files_say(tmp_path):
    files = without_lists(Annotations='xml/ann_')
    assert found(read(tmp_path, files)[0]) == {'all': WHOLE['train'] | WHOLE['val']}


def test_the_files_own_name_wins_over_one_left_from_a_copy(tmp_path):
    files = {**FILES, 'Annotations/c.xml': xml(box(), 'a.png')}
    annotated, notes = read(tmp_path, files)
    assert found(annotated) == WHOLE
    assert 'a.png' in notes and 'c.png' in notes


def test_parts_are_no_objects(tmp_path):
    part = box('head', (1, 1, 5, 5)).replace('object', 'part')
    files = {**FILES, 'Annotations/c.xml': xml(box(more=part), 'c.png')}
    assert found(read(tmp_path, files)[0]) == WHOLE


@pytest.mark.parametrize(
    'polygon',
    [
        '<x1>11</x1><y1>21</y1><x2>30</x2><y2>21</y2><x3>30</x3><y3>40.5</y3>',
        '<pt><x>11</x><y>21</y></pt><pt><x>30</x><y>21</y></pt><pt><x>30</x><y>40.5</y></pt>',
    ],
)
@pytest.mark.parametrize('has_box', [True, False])
def test_polygons_are_read(polygon, has_box, tmp_path):
    text = box(more=f'<polygon>{polygon}</polygon>')
    if not has_box:
        text = text[: text.index('<bndbox>')] + '</object>'
    annotated, _ = read(tmp_path, {**FILES, 'Annotations/c.xml': xml(text, 'c.png')})
    (each,) = annotated.splits['val'][0].objects
    assert each.polygons == ((10, 20, 29, 20, 29, 39.5),)


@pytest.mark.parametrize(
    'text, classes',
    [
        ({}, ('cat', 'dog')),
        (
            {'labelmap.txt': '# label:color_rgb:parts:actions\nbackground:0,0,0::\ndog:1,2,3::\n'
             'cat:4,5,6::\nbird:7,8,9:a,b:\n'},
            ('dog', 'cat', 'bird'),
        ),
        ({'labels.txt': 'dog\ncat\n'}, ('dog', 'cat')),
        ({'classes.txt': 'dog\nbird\n'}, ('cat', 'dog')),  # of something else: cat is missing
    ],
)  # fmt: skip
def test_classes_have_an_order(text, classes, tmp_path):
    assert read(tmp_path, {**FILES, **text})[0].classes == classes


@pytest.mark.parametrize(
    'changes, told',
    [
        ({'ImageSets/Main/val.txt': 'c\nd\n'}, ['val.txt, line 2', "'d'"]),
        ({'ImageSets/Main/val.txt': 'c\na\n'}, ['a.xml', 'val is in train']),
        ({'ImageSets/Main/train.txt': 'a\n'}, ['b.xml', 'no list']),
        ({'JPEGImages/d.png': SIZE}, ['d.png', 'no XML']),
        ({'Annotations/b.xml': xml('', 'x.png'), 'JPEGImages/b.jpg': 'x'}, []),
        ({'Annotations/d.xml': xml(), 'ImageSets/Main/val.txt': 'c\nd'}, ['d.xml', "'d'"]),
        ({'Annotations/c.xml': xml(box(corners=(30, 21, 11, 40)))}, ['c.xml, object 1', 'order']),
        ({'Annotations/c.xml': xml(box(more='<difficult>1</difficult>'))}, ['c.xml', 'difficult']),
        ({'Annotations/b.xml': '<other/>'}, ['b.xml', "'other'"]),
    ],
)
def test_what_is_left_out_is_noted(changes, told, tmp_path):
    annotated, notes = read(tmp_path, {**FILES, **changes})
    assert all(text in notes for text in told), notes
    assert bool(notes) == bool(told)
    assert found(annotated)['val'] == WHOLE['val']


def test_files_outside_the_folder_are_never_read(tmp_path):
    written(tmp_path, {'secret/x.png': SIZE, 'secret/x.xml': xml(box('secret'))})
    changes = {
        'Annotations/x.xml': xml(box(), '../secret/x.png'),
        'ImageSets/Main/val.txt': 'c\n../../../secret/x\nx\n',
    }
    annotated, _ = read(tmp_path / 'inner', {**FILES, **changes})
    assert found(annotated) == WHOLE


def changed(text):
    return {'Annotations/c.xml': text}


BROKEN = {
    'cut off': (changed(xml(box())[:-20]), ['c.xml', 'cut off']),
    'empty': (changed(''), ['c.xml', 'empty']),
    'no text': (changed(b'\xff\xfe\x00\xd8'), ['c.xml']),
    'entities': (changed('<!DOCTYPE x [<!ENTITY y "z">]>' + xml()), ['c.xml', 'DOCTYPE']),
    'no name': (changed(xml(box(''))), ['c.xml, object 1', '<name>']),
    'no box': (changed(xml(box() + '<object><name>dog</name></object>')), ['object 2', '0 <bnd']),
    'two boxes': (
        changed(xml('<object><name>cat</name><bndbox/><bndbox/></object>')),
        ['c.xml, object 1', '2 <bndbox>'],
    ),
    'oriented box': (
        changed(xml('<object><name>cat</name><robndbox><cx>3</cx></robndbox></object>')),
        ['c.xml, object 1', 'oriented'],
    ),
    'corner missing': (
        changed(xml(box().replace('xmax', 'right'))),
        ['c.xml, object 1', 'xmax', "''"],
    ),
    'corner no number': (changed(xml(box(corners=(1, 2, '3,5', 4)))), ['xmax', "'3,5'"]),
    'corner infinite': (changed(xml(box(corners=(1, 2, 3, 'inf')))), ['ymax', 'finite', "'inf'"]),
    'polygon no numbers': (
        changed(xml(box(more='<polygon><x1>1</x1><y1>many</y1></polygon>'))),
        ['c.xml, object 1', 'polygon', "'many'"],
    ),
    'list no text': ({'ImageSets/Main/val.txt': b'c\n\x80\x81'}, ['val.txt', 'UTF-8']),
}


@pytest.mark.parametrize('changes, told', BROKEN.values(), ids=BROKEN.keys())
def test_broken_data_is_told_in_a_sentence(changes, told, tmp_path):
    root = written(tmp_path, {**FILES, **changes})
    assert voc.recognise(Folder(root))
    with pytest.raises(UserError) as caught:
        read_data(voc, root)
    assert all(text in str(caught.value) for text in told), caught.value
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'files', [without_lists(JPEGImages='../outside/'), {'a.xml': '<other/>', 'a.png': SIZE}]
)
def test_nothing_that_can_be_read_is_told(files, tmp_path):
    with pytest.raises(UserError, match='<annotation>'):
        read_data(voc, written(tmp_path / 'inner', files))


@pytest.mark.parametrize('encoding', ['gbk', 'unknown', 'iso-8859-1'])
def test_declared_encodings_do_not_matter(encoding, tmp_path):
    text = xml(box('猫'), 'c.png').replace('?>', f' encoding="{encoding}"?>')
    assert read(tmp_path, {**FILES, 'Annotations/c.xml': text})[0].classes == ('cat', 'dog', '猫')


@pytest.mark.parametrize(
    'text',
    [
        '<annotations><image name="a.png"><box label="cat"/></image></annotations>',  # CVAT
        '<annotation><object><name>a</name><polygon><pt/></polygon></object></annotation>',
        '<settings/>',
    ],
)
def test_other_xml_is_not_recognised(text, tmp_path):
    assert voc.recognise(Folder(written(tmp_path, {'a.xml': text, 'a.png': SIZE}))) is None


@pytest.mark.parametrize('seed', range(40))
def test_damage_is_told_or_survived(seed, tmp_path):
    read_damaged(voc, tmp_path, {**FILES, 'labelmap.txt': 'cat:1,2,3::\ndog:1,2,3::\n'}, seed)
