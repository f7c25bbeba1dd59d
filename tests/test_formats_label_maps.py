"""Folders of images and label maps: found, understood, and read by mmseg as they were meant."""

import hashlib
import random
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmfocal.datasets import prepare_shapes
from mmfocal.datasets.checks import Report
from mmfocal.datasets.formats import label_maps
from mmfocal.datasets.formats.content import Folder
from mmfocal.datasets.formats.label_maps import prepare, read_names, recognise
from mmfocal.datasets.formats.label_meaning import Meaning
from mmfocal.datasets.shapes import CLASSES
from mmfocal.utils.errors import UserError

mmseg_datasets = pytest.importorskip('mmseg.datasets')

NAMES = ('ground', *CLASSES)
COLOURS = ((9, 8, 7), (200, 0, 0), (0, 200, 0), (0, 0, 200), (1, 1, 1), (200, 200, 0), (0, 99, 99))
VOID = (64, 64, 64)


@pytest.fixture(scope='session')
def truth(tmp_path_factory):
    """Images by split and name, each the file and its labels: 0 to 6, and 255 in a corner."""
    root = tmp_path_factory.mktemp('label_maps') / 'shapes'
    prepare_shapes(root, num_images={'train': 6, 'val': 2})
    found = {}
    for path in sorted(root.glob('labels/*/*.png')):
        labels = np.asarray(Image.open(path)).copy()
        labels[:5, :9] = 255
        split = path.parent.name
        image = root / split / f'{path.stem}.jpg'
        found.setdefault(split, {})[f'{split}{path.stem}'] = image, labels
    assert set(np.unique([each for part in found.values() for _, each in part.values()])) == {
        *range(7),
        255,
    }
    return found


# --- Kinds ------------------------------------------------------------------------------------


def save(pixels, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def palette_of(colours):
    flat = np.zeros((256, 3), np.uint8)
    flat[: len(colours)] = colours
    flat[255] = VOID
    return flat


def write_palette(labels, path, order=range(7)):
    """Mode P, with the colour of each label at the place that ``order`` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    places = np.full(256, 255, np.uint8)
    places[:7] = order
    image = Image.fromarray(places[labels])
    flat = palette_of(COLOURS)
    flat[list(order)] = COLOURS
    image.putpalette(flat.tobytes())
    image.save(path)


def write_gray_bits(labels, path, bits=4):
    """Gray of 4 bits a pixel, which Pillow reads and does not write."""
    height, width = labels.shape
    low = np.where(labels == 255, 15, labels).astype(np.uint8)
    rows = (low[:, ::2] << 4 | low[:, 1::2]).astype(np.uint8)
    content = b''.join(b'\0' + row.tobytes() for row in rows)
    parts = [
        (b'IHDR', struct.pack('>IIBBBBB', width, height, bits, 0, 0, 0, 0)),
        (b'IDAT', zlib.compress(content)),
        (b'IEND', b''),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    chunks = [
        struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
        for name, data in parts
    ]
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(chunks))


def rgb(labels):
    return palette_of(COLOURS)[labels]


def with_alpha(pixels):
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    return np.dstack([pixels, alpha])


TABLE = [*zip(NAMES, COLOURS, strict=True), ('void', VOID)]
CVAT = '# label:color_rgb:parts:actions\n' + ''.join(
    f'{name}:{r},{g},{b}::\n' for name, (r, g, b) in TABLE
)
CAMVID = ''.join(f'{r} {g} {b}\t{name}\n' for name, (r, g, b) in TABLE)
CSV = 'name,r,g,b\n' + ''.join(f'{name},{r},{g},{b}\n' for name, (r, g, b) in TABLE)
ROBOFLOW = 'Pixel Value, Class\n' + ''.join(f'{10 * i}, {name}\n' for i, name in enumerate(NAMES))
LIST = '\n'.join(NAMES) + '\n'

# How labels are written, files that go with them, options, and whether they are read in place,
# with label 0 reduced, or converted.
KINDS = {
    'indices': (save, {'classes.txt': LIST}, {}, 'in place'),
    'names given': (save, {}, dict(classes=NAMES), 'in place'),
    'palette': (write_palette, {'labels.txt': LIST}, {}, 'in place'),
    'counted from 1': (
        lambda labels, path: save(np.where(labels == 255, 255, labels + 1).astype(np.uint8), path),
        {'classes.txt': LIST},
        {},
        'reduced',
    ),
    '0 for others': (
        lambda labels, path: save(np.where(labels == 255, 0, labels + 1).astype(np.uint8), path),
        {'classes.txt': LIST},
        {},
        'reduced',
    ),
    'ignored 9': (
        lambda labels, path: save(np.where(labels == 255, 9, labels).astype(np.uint8), path),
        {'classes.txt': LIST},
        dict(ignored=9),
        'converted',
    ),
    'counted from 1, ignored 9': (
        lambda labels, path: save(np.where(labels == 255, 9, labels + 1).astype(np.uint8), path),
        {'classes.txt': LIST},
        dict(ignored=9),
        'converted',
    ),
    'RGB, CVAT': (
        lambda labels, path: save(rgb(labels), path),
        {'labelmap.txt': CVAT},
        {},
        'converted',
    ),
    'RGB, CamVid': (
        lambda labels, path: save(rgb(labels), path),
        {'label_colors.txt': CAMVID},
        {},
        'converted',
    ),
    'RGBA': (
        lambda labels, path: save(with_alpha(rgb(labels)), path),
        {'class_dict.csv': CSV},
        {},
        'converted',
    ),
    'palette in another order': (
        lambda labels, path: write_palette(labels, path, [6, 5, 4, 3, 0, 1, 2]),
        {'labelmap.txt': CVAT},
        {},
        'converted',
    ),
    'indices beside colours': (save, {'labelmap.txt': CVAT}, {}, 'in place'),
    'gray as RGB': (
        lambda labels, path: save(np.dstack([labels] * 3), path),
        {'classes.txt': LIST},
        {},
        'converted',
    ),
    'gray with alpha': (
        lambda labels, path: save(with_alpha(labels[..., None]), path),
        {'classes.txt': LIST},
        {},
        'converted',
    ),
    '16 bits': (
        lambda labels, path: save(labels.astype(np.uint16), path),
        {'classes.txt': LIST},
        {},
        'converted',
    ),
    '4 bits': (write_gray_bits, {'classes.txt': LIST}, dict(ignored=15), 'converted'),
    'table of values': (
        lambda labels, path: save(np.where(labels == 255, 255, labels * 10).astype('u1'), path),
        {'_classes.csv': ROBOFLOW},
        {},
        'converted',
    ),
}


def write(root, truth, kind='indices', image='images/{split}/{name}', label_map=None):
    """A data set in one of the kinds, at the places that the patterns say."""
    writer, files, options, _ = KINDS[kind]
    for split, part in truth.items():
        for name, (source, labels) in part.items():
            target = root / f'{image.format(split=split, name=name)}.jpg'
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
            place = label_map or 'masks/{split}/{name}'
            writer(labels, root / f'{place.format(split=split, name=name)}.png')
    for name, text in files.items():
        (root / name).write_text(text)
    return options


def loaded(data):
    """Labels by split and name, as mmseg loads them."""
    found = {}
    load = dict(type='mmseg.LoadAnnotations', reduce_zero_label=data.reduce_zero_label)
    for split, part in data.splits.items():
        dataset = mmseg_datasets.BaseSegDataset(
            ann_file=str(part.ann_file or ''),
            data_prefix=dict(img_path=str(part.img_path), seg_map_path=str(part.seg_map_path)),
            img_suffix=part.img_suffix,
            seg_map_suffix=part.seg_map_suffix,
            reduce_zero_label=data.reduce_zero_label,
            metainfo=dict(classes=data.classes, palette=data.palette),
            pipeline=[dict(type='LoadImageFromFile'), load],
        )
        assert len(dataset) == part.num_images
        for sample in dataset:
            name = Path(sample['img_path']).name.partition('.')[0]
            assert sample['img'].shape[:2] == sample['gt_seg_map'].shape
            found.setdefault(split, {})[name] = sample['gt_seg_map']
    return found


def assert_equal(found, truth, change=lambda labels: labels, name=lambda name: name):
    assert found.keys() == truth.keys()
    for split, part in truth.items():
        assert found[split].keys() == {name(each) for each in part}
        for each, (_, labels) in part.items():
            np.testing.assert_array_equal(found[split][name(each)], change(labels))


@pytest.mark.parametrize('kind', KINDS)
def test_each_kind_gives_the_same_labels(kind, truth, tmp_path):
    options = write(tmp_path / 'data', truth, kind)
    before = fingerprint(tmp_path / 'data')
    assert recognise(Folder(tmp_path / 'data')).startswith('8 images with label maps')
    data = prepare(Folder(tmp_path / 'data'), tmp_path / 'out', Report(), **options)
    assert data.classes == NAMES
    how = KINDS[kind][3]
    assert data.is_converted == (how == 'converted') == (tmp_path / 'out').exists()
    assert data.reduce_zero_label == (how == 'reduced')
    assert_equal(loaded(data), truth)
    assert fingerprint(tmp_path / 'data') == before
    if 'palette' in kind or 'RGB,' in kind:
        assert data.palette == [list(colour) for colour in COLOURS]
    assert len(data.palette) == 7


def fingerprint(root):
    files = sorted(path for path in root.rglob('*') if path.is_file())
    return [(path, hashlib.sha1(path.read_bytes()).hexdigest()) for path in files]


def test_files_of_32_bits(truth, tmp_path):
    write(tmp_path / 'data', truth)
    for path in (tmp_path / 'data/masks').rglob('*.png'):
        save(np.asarray(Image.open(path)).astype(np.int32), path.with_suffix('.tif'))
        path.unlink()
    data = prepare(Folder(tmp_path / 'data'), tmp_path / 'out', Report())
    assert_equal(loaded(data), truth)


@pytest.mark.parametrize(
    ('write_map', 'classes'),
    [
        (lambda is_square, path: save(is_square * np.uint8(255), path), ('square',)),
        (lambda is_square, path: save(is_square * np.uint8(255), path), ('background', 'square')),
        (lambda is_square, path: save(is_square * np.uint8(1), path), ('square',)),
        (lambda is_square, path: save(is_square * np.uint8(1), path), ('background', 'square')),
        (lambda is_square, path: save(is_square + np.uint8(1), path), ('background', 'square')),
        (lambda is_square, path: save(is_square * np.uint8(38), path), ('background', 'square')),
        (lambda is_square, path: save(is_square, path), ('square',)),
        (
            lambda is_square, path: save(np.uint8([[0, 0, 0], [255, 0, 0]])[is_square * 1], path),
            ('square',),
        ),
        (
            lambda is_square, path: save(
                np.uint8([[0, 0, 0], [255, 255, 255]])[is_square * 1], path
            ),
            ('square',),
        ),
    ],
)
def test_two_values_are_background_and_a_class(write_map, classes, truth, tmp_path):
    write(tmp_path / 'data', truth)
    (tmp_path / 'data/classes.txt').unlink()
    for split, part in truth.items():
        for name, (_, labels) in part.items():
            write_map(labels == 2, tmp_path / f'data/masks/{split}/{name}.png')
    data = prepare(Folder(tmp_path / 'data'), tmp_path / 'out', Report(), classes=classes)
    assert data.classes == ('background', 'square')
    assert_equal(loaded(data), truth, change=lambda labels: labels == 2)


def test_classes_choose_from_a_table(truth, tmp_path):
    write(tmp_path / 'data', truth, 'RGB, CVAT')
    report = Report()
    data = prepare(Folder(tmp_path / 'data'), tmp_path / 'out', report, classes=('star', 'circle'))
    assert data.classes == ('star', 'circle')
    lookup = np.full(256, 255, np.uint8)
    lookup[NAMES.index('star')], lookup[NAMES.index('circle')] = 0, 1
    assert_equal(loaded(data), truth, change=lambda labels: lookup[labels])
    assert "'ground' is not learned" in report.lines('note')[0]


def test_the_users_table_is_taken(truth, tmp_path):
    write(tmp_path / 'data', truth, 'RGB, CVAT')
    (tmp_path / 'data/labelmap.txt').unlink()
    (tmp_path / 'mine.csv').write_text(CSV)
    folder = Folder(tmp_path / 'data')
    data = prepare(folder, tmp_path / 'out', Report(), colours=tmp_path / 'mine.csv')
    assert_equal(loaded(data), truth)


@pytest.mark.parametrize(
    ('values', 'names', 'reduces', 'note'),
    [
        ((0, 1, 2), 'abc', False, None),
        ((1, 2, 3), 'abc', True, None),
        ((0, 1, 3), 'abc', True, 'label 0'),
        ((1, 2), 'abc', False, 'labels go from 1 to 2, and 3 classes'),
        ((0, 1), 'abc', False, "nothing of 'c'"),
        ((0, 2), 'abc', False, None),
        ((1, 2), 'ab', True, None),
        ((0, 1), 'ab', False, None),
    ],
)
def test_where_labels_begin(values, names, reduces, note, truth, tmp_path):
    write(tmp_path, truth)
    (tmp_path / 'classes.txt').unlink()
    for path in (tmp_path / 'masks').rglob('*.png'):
        labels = np.asarray(Image.open(path)).astype(int)
        save(np.uint8(values)[labels % len(values)], path)
    report = Report()
    data = prepare(Folder(tmp_path), tmp_path / 'out', report, classes=tuple(names))
    assert (data.reduce_zero_label, data.is_converted) == (reduces, False)
    notes = report.lines('note')
    assert len(notes) == bool(note)
    assert not note or note in notes[0]


# --- Layouts ----------------------------------------------------------------------------------

LAYOUTS = {
    'mmseg': ('img_dir/{split}/{name}', 'ann_dir/{split}/{name}'),
    'split first': ('{split}/images/{name}', '{split}/masks/{name}'),
    'SegNet': ('{split}/{name}', '{split}annot/{name}'),
    'Kaggle': ('{split}/{name}', '{split}_labels/{name}_L'),
    'suffix beside': ('{split}/{name}', '{split}/{name}_mask'),
    'same name beside': ('{split}/{name}', '{split}/{name}'),
    'Cityscapes': (
        'leftImg8bit/{split}/town/{name}_leftImg8bit',
        'gtFine/{split}/town/{name}_gtFine_labelTrainIds',
    ),
    'deeper': ('data/images/{split}/a/{name}', 'data/labels/{split}/a/{name}'),
    'other splits of folders': ('images/training/{split}/{name}', 'labels/{split}/{name}'),
}


def bare(name):
    return name.removesuffix('_leftImg8bit')


@pytest.mark.parametrize('layout', LAYOUTS)
def test_each_layout_is_read_in_place(layout, truth, tmp_path):
    write(tmp_path, truth, 'indices', *LAYOUTS[layout])
    report = Report()
    data = prepare(Folder(tmp_path), tmp_path / 'out', report)
    found = {
        split: {bare(name): labels for name, labels in part.items()}
        for split, part in loaded(data).items()
    }
    assert_equal(found, truth)
    assert not report.lines('note')
    assert data.splits['train'].seg_map_path.is_relative_to(tmp_path)


def test_only_the_labels_of_cityscapes_are_taken(truth, tmp_path):
    write(tmp_path, truth, 'indices', *LAYOUTS['Cityscapes'])
    for path in list(tmp_path.rglob('*_labelTrainIds.png')):
        other = np.full((128, 128), 33, np.uint8)
        for kind in ('labelIds', 'instanceIds', 'color'):
            save(other, path.with_name(path.name.replace('labelTrainIds', kind)))
    data = prepare(Folder(tmp_path), tmp_path / 'out', Report())
    assert_equal(loaded(data), truth, name=lambda name: f'{name}_leftImg8bit')


def test_prefixes_and_mixed_suffixes_are_converted(truth, tmp_path):
    write(tmp_path, truth, 'indices', '{split}/images/img_{name}', '{split}/masks/mask_{name}')
    first = next(iter(truth['train']))
    path = tmp_path / f'train/images/img_{first}.jpg'
    path.rename(path.with_suffix('.jpeg'))
    data = prepare(Folder(tmp_path), tmp_path / 'out', Report())
    assert data.is_converted
    assert_equal(loaded(data), truth, name=lambda name: f'img_{name}')
    assert Image.open(next((tmp_path / 'out').rglob('*.png'))).mode == 'P'


def test_folders_that_differ_are_converted(truth, tmp_path):
    write(tmp_path, truth, 'indices', 'images/{split}/{name}/{name}', 'masks/{split}/{name}')
    data = prepare(Folder(tmp_path), tmp_path / 'out', Report())
    assert data.is_converted
    assert_equal(loaded(data), truth)


@pytest.mark.parametrize('kind', ['indices', 'RGB, CVAT'])
def test_lists_of_voc_divide(kind, truth, tmp_path):
    write(tmp_path, truth, kind, 'JPEGImages/{name}', 'SegmentationClass/{name}')
    lists = tmp_path / 'ImageSets/Segmentation'
    lists.mkdir(parents=True)
    for split, part in truth.items():
        (lists / f'{split}.txt').write_text('\n'.join(part))
        for name, (image, labels) in part.items():
            save(labels, tmp_path / f'SegmentationObject/{name}.png')
            shutil.copy(image, tmp_path / f'JPEGImages/unlabelled_{name}.jpg')
    (lists / 'trainval.txt').write_text('\n'.join([*truth['train'], *truth['val']]))
    report = Report()
    data = prepare(Folder(tmp_path), tmp_path / 'out', report)
    assert_equal(loaded(data), truth)
    assert 'trainval' not in '\n'.join(report.lines('note'))
    assert data.splits['val'].ann_file == tmp_path / 'out/val.txt'


def test_roboflow_keeps_copies_of_an_image_together(truth, tmp_path):
    copies = {f'{name}_jpg.rf.{i}': each for name, each in truth['train'].items() for i in 'abc'}
    write(tmp_path, {'all': copies}, 'indices', '{name}', '{name}_mask')
    folder = Folder(tmp_path)
    data = prepare(folder, tmp_path / 'out', Report(), val_share=0.4, seed=3)
    lists = [set((tmp_path / f'out/{split}.txt').read_text().split()) for split in data.splits]
    originals = [{name.partition('.rf.')[0] for name in names} for names in lists]
    assert not originals[0] & originals[1]
    assert sum(map(len, lists)) == 18 and len(lists[1]) == 6
    assert '6 of 18 images taken for validation' in data.found
    again = prepare(folder, tmp_path / 'again', Report(), val_share=0.4, seed=3)
    assert (tmp_path / 'again/val.txt').read_text() == (tmp_path / 'out/val.txt').read_text()
    other = prepare(folder, tmp_path / 'other', Report(), val_share=0.4, seed=4)
    assert (tmp_path / 'other/val.txt').read_text() != (tmp_path / 'out/val.txt').read_text()
    assert len(loaded(again)['val']) == 2 and other.splits.keys() == {'train', 'val'}


def test_what_has_no_partner_is_left_out(truth, tmp_path):
    write(tmp_path, truth)
    (tmp_path / 'masks/train/train000001.png').unlink()
    (tmp_path / 'images/train/train000003.jpg').unlink()
    report = Report()
    data = prepare(Folder(tmp_path), tmp_path / 'out', report)
    assert data.splits['train'].num_images == 4
    assert loaded(data)['train'].keys() == truth['train'].keys() - {'train000001', 'train000003'}
    notes = '\n'.join(report.lines('note'))
    assert 'images/train/train000001.jpg: has no label map' in notes
    assert 'masks/train/train000003.png: is the label map of no image' in notes


def test_an_earlier_conversion_in_the_data_is_no_data(truth, tmp_path):
    options = write(tmp_path, truth, 'RGB, CVAT')
    for _ in range(2):
        report = Report()
        data = prepare(Folder(tmp_path), tmp_path / 'mine_data', report, **options)
        assert_equal(loaded(data), truth)
        assert report.count('note') == 1  # the class that is not learned


@pytest.mark.parametrize(
    'names',
    [
        ['images/a.jpg', 'labels/a.txt'],
        ['a.jpg', 'b.png', 'a.xml'],
        ['annotations/panoptic_val/a.png', 'images/val/a.jpg'],
        ['JPEGImages/a.jpg', 'SegmentationObject/a.png'],
        [],
    ],
)
def test_other_data_is_not_recognised(names, truth, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'x')
    assert recognise(Folder(tmp_path)) is None


def test_label_maps_without_images_do_not_hide_the_rule(tmp_path):
    names = [f'masks/a{i:02}_label.png' for i in range(12)]
    for i in range(12):
        names += [f'images/z{i:02}.jpg', f'masks/z{i:02}_label.png']
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert recognise(Folder(tmp_path)).startswith('12 images')


def test_many_files_take_no_time(tmp_path, monkeypatch):
    files = [tmp_path / f'images/train/{i}.jpg' for i in range(50_000)]
    files += [tmp_path / f'masks/train/{i}_mask.png' for i in range(50_000)]
    folder = Folder(tmp_path)
    monkeypatch.setitem(vars(folder), 'files', files)
    assert recognise(folder).startswith('50,000 images')


# --- Mistakes ---------------------------------------------------------------------------------


def corrupt(path, change):
    pixels = np.array(Image.open(path))
    change(pixels)
    save(pixels, path)


def _set(value):
    return lambda pixels: pixels.__setitem__((60, 60), value)


FIRST = 'masks/train/train000000.png'


def to_jpeg(root):
    for path in list((root / 'masks').rglob('*.png')):
        Image.open(path).convert('L').save(path.with_suffix('.jpg'))
        path.unlink()


def turned(root):
    image = Image.open(root / 'images/train/train000000.jpg').resize((128, 96))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(root / 'images/train/train000000.jpg', exif=exif)
    save(np.zeros((96, 128), np.uint8), root / FIRST)


def contradict(root):
    write_palette(np.full((128, 128), 2, np.uint8), root / FIRST, [6, 5, 4, 3, 0, 1, 2])


BROKEN = {
    'no names': (
        'indices',
        lambda root: (root / 'classes.txt').unlink(),
        ['8 values: 0 (', '255'],
    ),
    'too few names': (
        'indices',
        lambda root: (root / 'classes.txt').write_text('a\nb\nc\n'),
        ['3 classes', '6 (', 'from 0 to 2'],
    ),
    'names twice': (
        'indices',
        lambda root: (root / 'classes.txt').write_text('a\nb\na\n'),
        ['classes.txt', "'a' 2 times"],
    ),
    'lists that differ': (
        'indices',
        lambda root: (root / 'labels.txt').write_text('a\nb\n'),
        ['classes.txt', 'labels.txt'],
    ),
    'two values, many names': (
        'indices',
        lambda root: [
            save(np.eye(128, dtype=np.uint8) * 255, path) for path in root.rglob('*.png')
        ],
        ['0 (', '255 (', 'two classes at least'],
    ),
    'JPEG': ('indices', to_jpeg, ['train000000.jpg', 'JPEG']),
    'other size': (
        'indices',
        lambda root: save(np.zeros((64, 128), np.uint8), root / FIRST),
        [FIRST, '128x64', 'images/train/train000000.jpg', '128x128'],
    ),
    'turned image': ('indices', turned, [FIRST, '128x96', '96x128', 'EXIF orientation 6']),
    'cut off': (
        'indices',
        lambda root: (root / FIRST).write_bytes((root / FIRST).read_bytes()[:200]),
        [FIRST, 'cut off'],
    ),
    'no image': (
        'indices',
        lambda root: (root / 'images/train/train000000.jpg').write_text('<html>'),
        ['images/train/train000000.jpg', 'is no image'],
    ),
    'floating point numbers': (
        'indices',
        lambda root: [
            save(np.zeros((128, 128), np.float32), (root / FIRST).with_suffix('.tif')),
            (root / FIRST).unlink(),
        ],
        ['train000000.tif', 'mode F'],
    ),
    'two images of a name': (
        'indices',
        lambda root: save(
            np.zeros((128, 128, 3), np.uint8), root / 'images/train/train000000.png'
        ),
        ['train000000.jpg', 'train000000.png', FIRST],
    ),
    'colour beside the table': (
        'RGB, CVAT',
        lambda root: corrupt(root / FIRST, _set((200, 1, 0))),
        [FIRST, '(200, 1, 0)', 'labelmap.txt', "(200, 0, 0), 'circle'"],
    ),
    'no table': (
        'RGB, CVAT',
        lambda root: (root / 'labelmap.txt').unlink(),
        ['8 colours', '(9, 8, 7) (', '--colours'],
    ),
    'table of words': (
        'RGB, CVAT',
        lambda root: (root / 'labelmap.txt').write_text('a:1,2,3::\nb:::\n'),
        ['labelmap.txt: line 2', "'b:::'"],
    ),
    'colour above 255': (
        'RGB, CVAT',
        lambda root: (root / 'labelmap.txt').write_text('a:1,2,3::\nb:1,2,300::\n'),
        ['labelmap.txt: line 2', '0 to 255', 'b:1,2,300'],
    ),
    'colour twice': (
        'RGB, CVAT',
        lambda root: (root / 'labelmap.txt').write_text('a:1,2,3::\nb:1,2,3::\n'),
        ['labelmap.txt', '(1, 2, 3)', "'a' and 'b'"],
    ),
    'value beside the table': (
        'table of values',
        lambda root: corrupt(root / FIRST, _set(11)),
        [FIRST, 'value 11', '_classes.csv'],
    ),
    'palettes that differ': ('palette', contradict, ['index', '(0, 200, 0)', '--colours']),
    'table is damaged': (
        'RGB, CVAT',
        lambda root: (root / 'labelmap.txt').write_bytes(b'\xff\x00\xfa'),
        ['labelmap.txt', 'UTF-8'],
    ),
}


@pytest.mark.parametrize('name', BROKEN)
def test_one_sentence_says_what_is_wrong(name, truth, tmp_path):
    kind, damage, wanted = BROKEN[name]
    options = write(tmp_path / 'data', truth, kind)
    damage(tmp_path / 'data')
    with pytest.raises(UserError) as error:
        prepare(Folder(tmp_path / 'data'), tmp_path / 'out', Report(), **options)
    for text in wanted:
        assert text in str(error.value)
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'out').exists()


def test_labels_that_were_not_looked_at_are_checked(truth, tmp_path, monkeypatch):
    monkeypatch.setattr('mmfocal.datasets.formats.label_values.MAX_LOOKED_AT', 2)
    options = write(tmp_path, truth, '16 bits')
    path = tmp_path / 'masks/train/train000003.png'
    labels = np.asarray(Image.open(path)).copy()
    labels[50, 50] = 700
    save(labels, path)
    with pytest.raises(UserError, match=r'train000003.png holds the value 700'):
        prepare(Folder(tmp_path), tmp_path / 'out', Report(), **options)


def test_damage_gives_an_error_or_data(truth, tmp_path):
    """Whatever bytes there are."""
    write(tmp_path / 'data', {'train': truth['train']}, 'RGB, CVAT')
    files = [path for path, _ in fingerprint(tmp_path / 'data')]
    draw, refused = random.Random(0), 0
    for number in range(60):
        path = draw.choice(files)
        content = path.read_bytes()
        damaged = bytearray(content[: draw.randrange(len(content))] if number % 2 else content)
        for _ in range(3 if damaged else 0):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            prepare(Folder(tmp_path / 'data'), tmp_path / 'out', Report())
        except UserError:
            refused += 1
        path.write_bytes(content)
    assert 20 < refused < 60


# --- Output -----------------------------------------------------------------------------------


def test_a_conversion_is_whole_or_not_there(truth, tmp_path, monkeypatch):
    options = write(tmp_path / 'data', truth, 'RGB, CVAT')
    folder, out = Folder(tmp_path / 'data'), tmp_path / 'out'
    read, calls = Meaning.read, []

    def fails(self, each):
        calls.append(each)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return read(self, each)

    monkeypatch.setattr(Meaning, 'read', fails)
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, out, Report(), **options)
    assert [path.name for path in tmp_path.iterdir()] == ['data']
    prepare(folder, out, Report(), **options)
    whole = fingerprint(out)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, out, Report(), **options)
    assert fingerprint(out) == whole


def test_a_folder_of_somebody_else_is_not_replaced(truth, tmp_path):
    options = write(tmp_path / 'data', truth, 'RGB, CVAT')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/thesis.txt').write_text('mine')
    with pytest.raises(UserError, match='holds other files'):
        prepare(Folder(tmp_path / 'data'), tmp_path / 'out', Report(), **options)
    assert (tmp_path / 'out/thesis.txt').read_text() == 'mine'


def test_notes_are_kept_with_a_conversion(truth, tmp_path):
    options = write(tmp_path / 'data', truth, 'RGB, CVAT')
    (tmp_path / 'data/masks/train/train000001.png').unlink()
    prepare(Folder(tmp_path / 'data'), tmp_path / 'out', Report(), **options)
    text = (tmp_path / 'out' / label_maps.REPORT).read_text()
    assert '7 images' in text and 'train000001.jpg: has no label map' in text


def test_names_are_read_from_a_file_or_a_list(tmp_path):
    path = tmp_path / 'names.txt'
    path.write_bytes('\ufeffsky\r\n\r\n  open road \r\n'.encode())
    assert read_names(str(path)) == ('sky', 'open road')
    assert read_names('sky, open road') == ('sky', 'open road')
    with pytest.raises(UserError, match=r'nowhere\.txt'):
        read_names('nowhere.txt')
    with pytest.raises(UserError, match="'a' 2 times"):
        read_names('a,b,a')
    with pytest.raises(UserError, match='got none'):
        read_names(' , ')
