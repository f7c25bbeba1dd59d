"""What ``mmfocal new_config`` prints, refuses and leaves as it was."""

import json
import sys
from pathlib import Path

import mmseg.datasets  # noqa: F401  registers itself
import pytest
from exported import place
from mmengine.registry import DATASETS
from PIL import Image

from mmfocal.cli import new_config
from mmfocal.engine import load_config
from mmfocal.utils.errors import UserError

BOXES, MASKS, PIXELS = 'focal_retinanet_shapes', 'focal_maskrcnn_shapes', 'focal_upernet_shapes'
UPERNET = Path(__file__).parents[1] / 'configs/mmseg/focal_upernet_160k.py'


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


# --- Three splits ---------------------------------------------------------------------------

SPLITS = ('train', 'valid', 'test')
SIZE = 40, 32  # pixels, width and height


def coco(split, name):
    content = dict(
        images=[dict(id=1, file_name=f'{name}.png', width=SIZE[0], height=SIZE[1])],
        annotations=[dict(id=1, image_id=1, category_id=1, bbox=[4, 4, 9, 9], area=81, iscrowd=0)],
        categories=[dict(id=1, name='cat')],
    )
    return {f'{split}/{name}.png': SIZE, f'{split}/_annotations.coco.json': json.dumps(content)}


def voc(split, name):
    return {
        f'{split}/{name}.png': SIZE,
        f'{split}/{name}.xml': f'<annotation><filename>{name}.png</filename><size>'
        '<width>40</width><height>32</height><depth>3</depth></size><object><name>cat</name>'
        '<bndbox><xmin>4</xmin><ymin>4</ymin><xmax>13</xmax><ymax>13</ymax></bndbox></object>'
        '</annotation>',
    }


def yolo(split, name):
    lines = [f'{"val" if each == "valid" else each}: ../{each}/images' for each in SPLITS]
    return {
        'data.yaml': '\n'.join([*lines, 'nc: 1', "names: ['cat']"]),
        f'{split}/images/{name}.png': SIZE,
        f'{split}/labels/{name}.txt': '0 0.5 0.5 0.25 0.25\n',
    }


def csv(split, name):
    return {
        f'{split}/{name}.png': SIZE,
        f'{split}/_annotations.csv': 'filename,width,height,class,xmin,ymin,xmax,ymax\n'
        f'{name}.png,40,32,cat,4,4,13,13\n',
    }


def labelme(split, name):
    shape = dict(label='cat', points=[[4, 4], [13, 13]], shape_type='rectangle')
    content = dict(
        version='5.5.0',
        flags={},
        shapes=[shape],
        imagePath=f'{name}.png',
        imageData=None,
        imageWidth=SIZE[0],
        imageHeight=SIZE[1],
    )
    return {f'{split}/{name}.png': SIZE, f'{split}/{name}.json': json.dumps(content)}


def cvat(split, name):
    images = ''.join(
        f'<image id="{number}" name="{each}/{each}_image.png" width="40" height="32">'
        '<box label="cat" xtl="4" ytl="4" xbr="13" ybr="13" occluded="0"/></image>'
        for number, each in enumerate(SPLITS)
    )
    head = '<version>1.1</version><meta><task><labels><label><name>cat</name></label></labels>'
    return {
        f'{split}/{name}.png': SIZE,
        'annotations.xml': f'<annotations>{head}</task></meta>{images}</annotations>',
    }


def label_studio(split, name):
    value = dict(x=10, y=10, width=25, height=25, rotation=0, rectanglelabels=['cat'])
    tasks = [
        dict(
            id=number,
            data=dict(image=f'/data/local-files/?d={each}/{each}_image.png'),
            annotations=[
                dict(
                    result=[
                        dict(
                            type='rectanglelabels',
                            from_name='label',
                            to_name='image',
                            original_width=SIZE[0],
                            original_height=SIZE[1],
                            value=value,
                        )
                    ]
                )
            ],
        )
        for number, each in enumerate(SPLITS, start=1)
    ]
    return {f'{split}/{name}.png': SIZE, 'project.json': json.dumps(tasks)}


def three_splits(root, form):
    for split in SPLITS:
        for path, content in form(split, f'{split}_image').items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, tuple):
                Image.new('RGB', content).save(root / path)
            else:
                (root / path).write_text(content)
    return root


@pytest.mark.parametrize('form', [coco, voc, yolo, csv, labelme, cvat, label_studio])
def test_three_splits_are_three(write, tmp_path, capsys, form):
    cfg = load_config(write(three_splits(tmp_path / 'data', form), BOXES))
    assert 'test: 1 images' in capsys.readouterr().out
    for split, folder in (('train', 'train'), ('val', 'valid'), ('test', 'test')):
        dataset = cfg[f'{split}_dataloader'].dataset
        file = Path(dataset.data_root, dataset.ann_file)
        content = json.loads(file.read_text())
        (image,) = content['images']
        assert Path(image['file_name']).name == f'{folder}_image.png'
        assert Path(dataset.data_root, dataset.data_prefix.img, image['file_name']).is_file()
        if split != 'train':
            assert Path(cfg[f'{split}_evaluator'].ann_file) == file


@pytest.mark.parametrize(
    'images, labels',
    [
        ('{}/images/{}.png', '{}/masks/{}.png'),
        ('images/{}/{}.png', 'annotations/{}/{}.png'),
        ('{}/{}.png', '{}/{}_mask.png'),
    ],
)
def test_three_splits_of_label_maps_are_three(write, tmp_path, images, labels):
    root = tmp_path / 'data'
    for number, split in enumerate(SPLITS):
        for name in ('a', 'b'):
            for path, mode in ((images, 'RGB'), (labels, 'L')):
                path = root / path.format(split, f'{split}_{name}')
                path.parent.mkdir(parents=True, exist_ok=True)
                image = Image.new(mode, (32 + number, 32))
                image.paste(1 if mode == 'L' else (9, 9, 9), (0, 0, 16, 16))
                image.save(path)
    cfg = load_config(write(root, PIXELS, '--classes', 'sky,road'))
    for number, split in enumerate(('train', 'val', 'test')):
        config = cfg[f'{split}_dataloader'].dataset
        with DATASETS.switch_scope_and_registry('mmseg') as registry:
            dataset = registry.build(dict(config, pipeline=[]))
        found = [dataset.get_data_info(i) for i in range(len(dataset))]
        assert len(found) == 2
        for each in found:
            assert Path(each['img_path']).name.startswith(f'{SPLITS[number]}_')
            assert Image.open(each['seg_map_path']).size == (32 + number, 32)


@pytest.mark.parametrize('base', ['focal_upernet_160k', 'focal-l_upernet_160k'])
def test_views_of_own_label_maps_are_of_the_test_scale(write, tmp_path, base):
    cfg = load_config(write(place('maps/indices', tmp_path), base))
    (test,) = [step for step in cfg.test_dataloader.dataset.pipeline if step.type == 'Resize']
    scales = [step.scale for step in cfg.tta_pipeline[1].transforms[0]]
    assert scales == [
        tuple(int(side * ratio) for side in test.scale)
        for ratio in (0.5, 0.75, 1, 1.25, 1.5, 1.75)
    ]


@pytest.mark.parametrize('base', ['focal_mask2former_50e', 'focal_rtmdet-ins_100e'])
def test_heads_of_today_get_the_number_of_classes_and_a_schedule_that_fits(write, base, tmp_path):
    folder = place('polygons/coco_datumaro', tmp_path)
    cfg = load_config(write(folder, base))
    number = len(cfg.classes)
    if 'panoptic_head' in cfg.model:
        for head in (cfg.model.panoptic_head, cfg.model.panoptic_fusion_head):
            assert (head.num_things_classes, head.num_stuff_classes) == (number, 0)
        assert cfg.model.panoptic_head.loss_cls.class_weight == [1.0] * number + [0.1]
        iterations = cfg.train_cfg.max_iters
        assert iterations == 3000 and not cfg.train_cfg.dynamic_intervals
        assert cfg.param_scheduler.end == iterations > max(cfg.param_scheduler.milestones)
    else:
        assert cfg.model.bbox_head.num_classes == number
        # The last ten epochs are without Mosaic, as in the recipe.
        (switch,) = (hook.switch_epoch for hook in cfg.custom_hooks if 'switch_epoch' in hook)
        assert (switch, cfg.train_cfg.max_epochs) == (90, 100)
    assert cfg.auto_scale_lr.enable


def test_weights_of_two_classes_are_not_those_of_one_and_none(write, tmp_path):
    base = tmp_path / 'two.py'
    head = dict(num_classes=2, loss_decode=dict(class_weight=[1.0, 2.0]))
    base.write_text(f'_base_ = {str(UPERNET)!r}\nmodel = dict(decode_head={head})\n')
    cfg = load_config(write(place('maps/indices', tmp_path), str(base)))
    assert cfg.model.decode_head.loss_decode.class_weight is None


def test_weights_of_classes_of_segmenters_keep_that_of_none(write, tmp_path):
    cfg = load_config(write(place('maps/indices', tmp_path), 'focal_mask2former_160k'))
    head, number = cfg.model.decode_head, len(cfg.classes)
    assert head.num_classes == number
    assert head.loss_cls.class_weight == [1.0] * number + [0.1]
