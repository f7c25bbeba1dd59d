"""What ``mmfocal new_config`` prints, refuses and leaves as it was."""

import json
import sys

import pytest
from exported import place
from PIL import Image

from mmfocal.cli import new_config
from mmfocal.utils.errors import UserError

BOXES, MASKS, PIXELS = 'focal_retinanet_shapes', 'focal_maskrcnn_shapes', 'focal_upernet_shapes'


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Runs the tool on a folder; gives the config that it wrote."""

    def run(folder, base, *options):
        out = tmp_path / 'out' / 'mine.py'
        arguments = [folder, '--base', base, '--out', out, *options]
        monkeypatch.setattr(sys, 'argv', ['mmfocal new_config', *map(str, arguments)])
        new_config.main()
        return out

    return run


def labelled(folder, names, ids=(1, 2)):
    """Two images of training and one of validation, in COCO's form."""
    for split, count in (('train', 2), ('val', 1)):
        (folder / split).mkdir(parents=True)
        images = [
            dict(id=key, file_name=f'{split}_{key}.png', width=32, height=32)
            for key in range(1, count + 1)
        ]
        for image in images:
            Image.new('RGB', (32, 32)).save(folder / split / image['file_name'])
        annotations = [
            dict(id=n, image_id=1, category_id=n, bbox=[4, 4, 9, 9], area=81, iscrowd=0)
            for n in (1, 2)
        ]
        categories = [dict(id=key, name=name) for key, name in zip(ids, names, strict=True)]
        content = dict(images=images, annotations=annotations, categories=categories)
        (folder / split / f'{split}.json').write_text(json.dumps(content))
    return folder


def test_names_of_classes_forge_no_line(write, tmp_path, capsys):
    write(labelled(tmp_path / 'data', ['a\nnote: forged', 'b\x1b[31m']), BOXES)
    printed = capsys.readouterr().out
    assert r'a\nnote: forged, b\x1b[31m' in printed
    assert '\x1b' not in printed


def test_names_of_files_forge_no_line(write, tmp_path):
    folder = labelled(tmp_path / 'data', ['a', 'b'])
    for name in ('other.json', 'a\nnote: forged.json'):  # the second is left aside
        (folder / 'train' / name).write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(UserError, match='several annotation files') as caught:
        write(folder, BOXES)
    assert 'forged' not in str(caught.value)


def test_ids_of_categories_forge_no_line(write, tmp_path):
    folder = labelled(tmp_path / 'data', ['a', 'b'], [1, '9\nnote: forged'])
    with pytest.raises(UserError, match=r'category_id 2 is none of .*9\\nnote') as caught:
        write(folder, BOXES)
    assert '\n' not in str(caught.value)


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_refusal_of_a_base_keeps_what_was_written(write, tmp_path):
    """The data of an earlier config, too, which --force would replace."""
    folder = place('boxes/voc_datumaro', tmp_path)
    out = write(folder, BOXES)
    before = files_below(out.parent)
    (folder / 'Annotations/train_0.xml').unlink()
    with pytest.raises(UserError, match='without masks: focal_retinanet_3x'):
        write(folder, MASKS, '--force')
    with pytest.raises(UserError, match='cannot be replaced'):
        write(folder, 'focal_shapes', '--force')
    assert before == files_below(out.parent)


@pytest.mark.parametrize('form', ['boxes/coco_datumaro', 'boxes/voc_datumaro', 'maps/indices'])
def test_share_of_divided_data_is_refused(write, tmp_path, form):
    base = PIXELS if form.startswith('maps') else BOXES
    with pytest.raises(UserError, match=r'divided already .*--val-share'):
        write(place(form, tmp_path), base, '--val-share', '0.5')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('base', 'option', 'value'),
    [
        (BOXES, '--classes', 'a,b'),
        (BOXES, '--colours', 'file.txt'),
        (BOXES, '--ignored-label', '0'),
        (PIXELS, '--train-json', 'train.json'),
        (PIXELS, '--val-json', 'val.json'),
    ],
)
def test_options_of_the_other_task_are_refused(write, tmp_path, base, option, value):
    form = 'maps/indices' if base == PIXELS else 'boxes/voc_datumaro'
    with pytest.raises(UserError, match=rf'{option} has no meaning.*--base, such as focal_'):
        write(place(form, tmp_path), base, option, value)
    assert not (tmp_path / 'out').exists()


def test_names_of_classes_that_outlines_bring_are_refused(write, tmp_path):
    with pytest.raises(UserError, match='Leave out --classes'):
        write(place('polygons/labelme', tmp_path), PIXELS, '--classes', 'a,b')


def test_errors_name_a_base_for_what_is_there(write, tmp_path):
    with pytest.raises(UserError, match='--base focal_upernet_160k'):
        write(place('maps/indices', tmp_path), BOXES)
    with pytest.raises(UserError, match='--base, such as focal_retinanet_3x'):
        write(place('boxes/voc_datumaro', tmp_path), PIXELS)
    with pytest.raises(UserError, match='has no files') as caught:
        (tmp_path / 'empty').mkdir()
        write(tmp_path / 'empty', PIXELS)
    assert str(caught.value).count('no files') == 1


def test_an_archive_is_to_be_unpacked(write, tmp_path):
    (tmp_path / 'data.zip').write_bytes(b'PK')
    with pytest.raises(UserError, match=r'is a file; .*Unpack it'):
        write(tmp_path / 'data.zip', BOXES)


def test_given_files_may_lie_elsewhere(write, tmp_path, capsys):
    folder = labelled(tmp_path / 'data', ['a', 'b'])
    (tmp_path / 'notes').mkdir()
    given = [(folder / split / f'{split}.json') for split in ('train', 'val')]
    given = [str(path.rename(tmp_path / 'notes' / path.name)) for path in given]
    out = write(folder, BOXES, '--train-json', given[0], '--val-json', given[1])
    assert f'annotations in {given[0]}, {given[1]}' in capsys.readouterr().out
    assert given[0] in out.read_text()


def test_a_file_given_twice_is_refused(write, tmp_path):
    path = labelled(tmp_path / 'data', ['a', 'b']) / 'train/train.json'
    with pytest.raises(UserError, match='both to train on and to validate with'):
        write(tmp_path / 'data', BOXES, '--train-json', path, '--val-json', path)
