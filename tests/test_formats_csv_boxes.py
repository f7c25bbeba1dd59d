import pytest
from exported import place
from format_cases import assert_equal_truth, found, read_damaged, read_data, written

from mmfocal.datasets.formats import csv_boxes
from mmfocal.datasets.formats.content import Folder
from mmfocal.utils.errors import UserError

SIZE = (100, 80)  # width and height in pixels
HEADER = 'filename,width,height,class,xmin,ymin,xmax,ymax\n'
CAT = ('cat', 10, 20, 20, 20)
FILES = {
    'train/a.png': SIZE,
    'train/b.jpg': SIZE,
    'valid/c.png': SIZE,
    'train/_annotations.csv': HEADER
    + 'a.png,100,80,cat,10,20,30,40\na.png,100,80,dog,0,0,100,80\nb.jpg,100,80,,,,,\n',
    'valid/_annotations.csv': HEADER + 'c.png,100,80,cat,10,20,30,40\n',
}
WHOLE = {
    'train': {'a.png': [CAT, ('dog', 0, 0, 100, 80)], 'b.jpg': []},
    'val': {'c.png': [CAT]},
}


def read(root, files):
    annotated, notes = read_data(csv_boxes, written(root, files))
    return annotated, '\n'.join(notes)


def read_one(root, text, name='boxes.csv'):
    """Objects of a.png, of which one CSV file tells."""
    assert csv_boxes.recognise(Folder(written(root, {'a.png': SIZE, name: text})))
    annotated, _ = read(root, {})
    ((_, images),) = found(annotated).items()
    return images


def test_boxes_are_read(tmp_path):
    annotated, notes = read(tmp_path, FILES)
    assert annotated.classes == ('cat', 'dog')
    assert found(annotated) == WHOLE
    assert annotated.splits['val'][0].size == SIZE
    assert notes == ''


@pytest.mark.parametrize(
    'form', ['csv_keras_pandas', 'csv_pandas', 'openimages_csv_globox', 'roboflow_csv']
)
def test_exports_of_real_tools_are_read(form, tmp_path):
    root = place(f'boxes/{form}', tmp_path)
    assert csv_boxes.recognise(Folder(root))
    annotated, _ = read_data(csv_boxes, root)
    assert_equal_truth(annotated, 0.01)


@pytest.mark.parametrize(
    'text',
    [
        'Image_Path;Label;X1;Y1;X2;Y2\nsome/a.png;cat;10,0;20;30;40\n',
        'ymax\txmax\tymin\txmin\tname\tfile\n40\t30\t20\t10\tcat\ta.png\n',
        '"image","category","left","top","right","bottom"\n"a.png","cat","10","20","30","40"\n',
        'class,img,x,y,width,height\ncat,a.png,10,20,20,20\n',
        'label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height\n'
        'cat,10,20,20,20,a.png,100,80\n',
        'filename,label,x,y,w,h,width,height\na.png,cat,10,20,20,20,100,80\n',
        'filename,label,x_center,y_center,width,height\na.png,cat,20,30,20,20\n',
        'filename,label,xmin,ymin,width,height\na.png,cat,10,20,20,20\n',
        'ImageID,LabelName,XMin,XMax,YMin,YMax\na,cat,0.1,0.3,0.25,0.5\n',
        'filename,class,xmin,ymin,xmax,ymax\na.png,cat,0.1,0.25,0.3,0.5\n',
        # Without a header: keras-retinanet, AutoML (twice), makesense.ai.
        '/data/a.png,10,20,30,40,cat\n',
        'UNASSIGNED,gs://bucket/a.png,cat,0.1,0.25,,,0.3,0.5,,\n',
        ',gs://bucket/a.png,cat,0.1,0.25,0.3,0.25,0.3,0.5,0.1,0.5\n',
        'cat,10,20,20,20,a.png,100,80\n',
        # Ends of lines, a mark of UTF-8, empty lines.
        '\ufefffilename,class,xmin,ymin,xmax,ymax\r\n\r\na.png,cat,10,20,30,40\r\n,,,,,\r\n',
        'filename,class,xmin,ymin,xmax,ymax\ra.png,cat,10,20,30,40\r',
        'filename,class,xmin,ymin,xmax,ymax\n a.png , cat ,30,40,10,20\n',
    ],
)
def test_columns_are_found(text, tmp_path):
    expected = ('cat', *(pytest.approx(value) for value in CAT[1:]))
    assert read_one(tmp_path, text) == {'a.png': [expected]}


def test_utf_16_is_read(tmp_path):
    text = 'filename\tclass\txmin\tymin\txmax\tymax\na.png\t猫\t10\t20\t30\t40\n'
    assert read_one(tmp_path, text.encode('utf-16')) == {'a.png': [('猫', *CAT[1:])]}


def test_groups_of_open_images_are_crowds(tmp_path):
    text = 'ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,cat,0,1,0,.5,1\na,cat,0,1,0,.7,0\n'
    annotated, _ = read(tmp_path, {'a.png': SIZE, 'boxes.csv': text})
    assert [each.is_crowd for each in annotated.splits['all'][0].objects] == [True, False]


@pytest.mark.parametrize(
    'text, size',
    [
        ('filename,class,x,y,width,height\na.png,cat,10,20,20,20\n', None),
        ('filename,class,x,y,w,h,width,height\na.png,cat,10,20,20,20,100,80\n', SIZE),
        ('filename,class,xmin,ymin,xmax,ymax,width,height\na.png,cat,1,2,3,4,0,0\n', None),
    ],
)
def test_sizes_of_images_are_not_those_of_boxes(text, size, tmp_path):
    annotated, _ = read(tmp_path, {'a.png': SIZE, 'boxes.csv': text})
    assert annotated.splits['all'][0].size == size


def test_a_whole_image_is_a_fraction(tmp_path):
    text = 'filename,class,xmin,ymin,xmax,ymax\na.png,cat,0,0,1,1\n'
    assert read_one(tmp_path, text) == {'a.png': [('cat', 0, 0, *SIZE)]}


ROWS = ''.join(f'{name}.png,cat,10,20,30,40\n' for name in 'abc')
SIMPLE = 'filename,class,xmin,ymin,xmax,ymax\n'
IMAGES = {f'{name}.png': SIZE for name in 'abc'}


@pytest.mark.parametrize(
    'files, splits',
    [
        ({**IMAGES, 'all.csv': SIMPLE + ROWS}, {'all': 'abc'}),
        (
            {**IMAGES, 'x.csv': 'split,filename,class,xmin,ymin,xmax,ymax\n'
             'TRAIN,a.png,cat,1,2,3,4\nvalidation,b.png,cat,1,2,3,4\ntest,c.png,cat,1,2,3,4\n'},
            {'train': 'a', 'val': 'b', 'test': 'c'},
        ),
        (
            {**IMAGES, 'x.csv': 'TRAIN,gs://x/a.png,cat,0,0,,,.5,1,,\n'
             'TEST,gs://x/b.png,cat,0,0,,,.5,1,,\nTRAIN,gs://x/c.png,,,,,,,,,\n'},
            {'train': 'ac', 'test': 'b'},
        ),
        (
            {**IMAGES, 'train_labels.csv': SIMPLE + ROWS[: ROWS.index('c.png')],
             'test_labels.csv': SIMPLE + ROWS[ROWS.index('c.png') :],
             'labels.csv': SIMPLE + ROWS},
            {'train': 'ab', 'test': 'c'},
        ),
        (
            {'train/a.png': SIZE, 'val/b.png': SIZE, 'val/c.png': SIZE, 'x.csv': SIMPLE + ROWS},
            {'train': 'a', 'val': 'bc'},
        ),
        (
            {**IMAGES, 'train.csv': SIMPLE + ROWS,
             'val.csv': SIMPLE + ROWS[ROWS.index('c.png') :]},
            {'train': 'abc'},
        ),
    ],
)  # fmt: skip
def test_splits_follow_from_columns_or_names(files, splits, tmp_path):
    annotated, _ = read(tmp_path, files)
    assert {
        split: ''.join(each.image.stem for each in samples)
        for split, samples in annotated.splits.items()
    } == splits


@pytest.mark.parametrize(
    'text, classes',
    [('dog,0\ncat,1\nbird,2\n', ('dog', 'cat', 'bird')), ('dog,0\n', ('cat', 'dog'))],
)
def test_classes_have_an_order(text, classes, tmp_path):
    files = {**FILES, 'classes.csv': text}
    assert read(tmp_path, files)[0].classes == classes


@pytest.mark.parametrize('empty', ['', 'nan', 'NULL'])
def test_rows_without_a_box_are_images_without_objects(empty, tmp_path):
    row = f'a.png,{",".join([empty] * 5)}\n'
    assert read_one(tmp_path, SIMPLE + row) == {'a.png': []}
    assert read_one(tmp_path, 'b.png,1,2,3,4,cat\n' + row, 'bare.csv') == {'a.png': []}


@pytest.mark.parametrize(
    'changes, told',
    [
        ({'x.csv': SIMPLE + ROWS}, ['x.csv', 'none of train, val and test']),
        (
            {'valid/_annotations.csv': f'{FILES["valid/_annotations.csv"]}d.png,1,1,cat,1,1,2,2'},
            ['_annotations.csv, line 3', "'d.png'"],
        ),
        (
            {'valid/_annotations.csv': f'{FILES["valid/_annotations.csv"]}'
             'c.png,100,80,cat,10,20,30,40'},
            ['_annotations.csv, line 3', 'repeats'],
        ),
        (
            {'x/d.png': SIZE, 'train.csv': 'TRAIN,a.png,cat,10,20,,,30,40,,\n'
             'TRAIN,a.png,dog,0,0,,,100,80,,\nTRAIN,b.jpg,,,,,,,,,\n'
             'UNASSIGNED,d.png,cat,1,2,,,3,4,,\n', 'train/_annotations.csv': ''},
            ['train.csv, line 4', 'd.png', 'none of train'],
        ),
        (
            {'valid/_annotations.csv': FILES['valid/_annotations.csv'] + 'a.png,1,1,cat,1,1,2,2'},
            ['a.png', 'val is in train'],
        ),
    ],
)  # fmt: skip
def test_what_is_left_out_is_noted(changes, told, tmp_path):
    annotated, notes = read(tmp_path, {**FILES, **changes})
    assert all(text in notes for text in told), notes
    assert found(annotated) == WHOLE


def test_images_outside_the_folder_are_never_read(tmp_path):
    written(tmp_path, {'secret/x.png': SIZE})
    rows = f'../secret/x.png,cat,1,2,3,4\n{tmp_path}/secret/x.png,cat,1,2,3,4\n'
    annotated, _ = read(tmp_path / 'inner', {**IMAGES, 'boxes.csv': SIMPLE + rows + ROWS})
    assert [each.image.stem for each in annotated.splits['all']] == ['a', 'b', 'c']


GOOD = 'a.png,cat,10,20,30,40\n'
BROKEN = {
    'no number': (SIMPLE + GOOD + 'a.png,cat,ten,20,30,40', ['line 3', 'xmin', "'ten'"]),
    'infinite': (SIMPLE + 'a.png,cat,10,20,30,inf', ['line 2', 'ymax', "'inf'"]),
    'half a box': (SIMPLE + 'a.png,cat,10,20,,', ['line 2', 'xmax', "''"]),
    'no class': (SIMPLE + 'a.png,,10,20,30,40', ['line 2', 'class']),
    'no image': (SIMPLE + ',cat,10,20,30,40', ['line 2', 'image']),
    'short row': (SIMPLE + 'a.png,cat,10,20', ['line 2', '6 columns', 'got 4']),
    'decimal commas': (SIMPLE + 'a.png,cat,"10,5",20,30,40', ['line 2', 'xmin', "'10,5'"]),
    'open quote': (SIMPLE + 'a.png,"cat,10,20,30,40\n' + GOOD, ['line 3', '6 columns', 'got 2']),
    'not text': (SIMPLE.encode() + b'a.png,\xff\x80,1,2,3,4', ['UTF-8']),
    'zero byte': (SIMPLE + 'a.png,cat,1\0,2,3,4', ['line 2']),
    'no column of classes': (
        'filename,xmin,ymin,xmax,ymax\na.png,1,2,3,4',
        ['class', 'filename'],
    ),
    'a corner missing': (
        'filename,class,xmin,ymin,xmax\na.png,cat,1,2,3',
        ['xmax', 'width', 'filename'],
    ),
    'negative width': (
        'filename,class,x,y,width,height\na.png,cat,1,2,-3,4',
        ['line 2', 'width', '-3'],
    ),
    "width of the image's": (
        'filename,class,x,y,width,height\na.png,cat,1,2,100,80',
        ['width', 'bbox_width', 'xmax'],
    ),
    'fractions and pixels': (
        SIMPLE + 'a.png,cat,.1,.2,.3,.4\n' * 3 + 'a.png,cat,.1,.2,30,.4',
        ['0 to 1', '30'],
    ),
    'unknown split': (
        'split,filename,class,xmin,ymin,xmax,ymax\nfold1,a.png,cat,1,2,3,4',
        ['line 2', 'train', "'fold1'"],
    ),
    'an image in two splits': (
        'split,filename,class,xmin,ymin,xmax,ymax\n'
        'train,a.png,cat,1,2,3,4\ntest,a.png,cat,1,2,3,4',
        ['line 3', 'a.png', 'train', 'test', 'line 2'],
    ),
    'no image is there': (SIMPLE + 'z.png,cat,1,2,3,4', ['boxes.csv', 'none of the images']),
}


@pytest.mark.parametrize('text, told', BROKEN.values(), ids=BROKEN.keys())
def test_broken_data_is_told_in_a_sentence(text, told, tmp_path):
    root = written(tmp_path, {'a.png': SIZE, 'boxes.csv': text})
    assert csv_boxes.recognise(Folder(root))
    with pytest.raises(UserError) as caught:
        read_data(csv_boxes, root)
    assert all(part in str(caught.value) for part in ['boxes.csv', *told]), caught.value
    assert '\n' not in str(caught.value)


def test_damaged_images_are_left_out_where_their_size_is_needed(tmp_path):
    rows = 'a.png,cat,.1,.2,.3,.4\nb.png,cat,.1,.2,.3,.4\n'
    annotated, notes = read(tmp_path, {'a.png': SIZE, 'b.png': 'x', 'x.csv': SIMPLE + rows})
    assert list(found(annotated)['all']) == ['a.png']
    assert 'b.png' in notes and 'left out' in notes


@pytest.mark.parametrize(
    'text',
    [
        '',
        'filename,cat,dog\na.png,1,0\n',  # Roboflow's _classes.csv
        'id,label\na,cat\n',
        'epoch,loss,x,y\n1,2,3,4\n',
        'frame,x,y\n1,2,3\n',
        'a.png,1,2,cat\n',
        'a.txt,1,2,3,4,cat\n',
        '"',
    ],
)
def test_other_tables_are_not_recognised(text, tmp_path):
    root = written(tmp_path, {'a.png': SIZE, 'x.csv': text})
    assert csv_boxes.recognise(Folder(root)) is None
    with pytest.raises(UserError, match='filename,class,xmin'):
        read_data(csv_boxes, root)


@pytest.mark.parametrize('seed', range(40))
def test_damage_is_told_or_survived(seed, tmp_path):
    files = {**FILES, 'classes.csv': 'dog,0\ncat,1\n'}
    read_damaged(csv_boxes, tmp_path, files, seed)
