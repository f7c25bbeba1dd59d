"""Data sets are laid out from archives or folders, and what is wrong with them is told."""

import importlib
import json
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmfocal.cli import prepare_dataset
from mmfocal.datasets import preparation, prepare_shapes
from mmfocal.datasets.preparation import check, prepare
from mmfocal.datasets.published import DATASETS
from mmfocal.utils.errors import UserError

COCO = {'train2017': 3, 'val2017': 2}
ADE20K = {'training': 3, 'validation': 2}


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
