"""``mmfocal browse``: images after augmentation, with what belongs to them, where it belongs."""

import copy
import html.parser
import importlib.util
import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmfocal import cli
from mmfocal.engine.data_loader import ResumableDataLoader
from mmfocal.utils.errors import UserError
from mmfocal.visualization.browse import IGNORED, SIDE, make_sheet, write_sheet

ROOT = Path(__file__).parents[1]
RED, GREEN, BLUE = (230, 20, 20), (20, 200, 20), (20, 20, 230)
CLASSES = ('cat', '<b>dog</b>', 'unseen')
HOSTILE = '<script>alert(1)<b>.png'
WIDTH, HEIGHT = 120, 60
SCALE = SIDE / WIDTH
CAT, DOG, CROWD = [10, 20, 30, 24], [80, 6, 20, 40], [50, 5, 20, 20]


@pytest.fixture
def folder(tmp_path):
    """Five grey images: one with two objects and a crowd, one without, and three with a cat."""
    annotations = [
        dict(image_id=1, category_id=1, bbox=CAT),
        dict(image_id=1, category_id=2, bbox=DOG),
        dict(image_id=1, category_id=1, bbox=CROWD, iscrowd=1),
        *(dict(image_id=i, category_id=1, bbox=CAT) for i in (3, 4, 5)),
    ]
    for i, each in enumerate(annotations, 1):
        x, y, w, h = each['bbox']
        each.update(id=i, area=w * h, iscrowd=each.get('iscrowd', 0))
        each['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    names = [HOSTILE, *(f'{i}.png' for i in range(2, 6))]
    for folder in ('images', 'labels'):
        (tmp_path / folder).mkdir()
    for i, name in enumerate(names, 1):
        cv2.imwrite(
            str(tmp_path / f'images/{name}'), np.full((HEIGHT, WIDTH, 3), 20 * i, np.uint8)
        )
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        labels[:, 60:] = 1
        labels[:10] = 255
        cv2.imwrite(str(tmp_path / f'labels/{name}'), labels)
    images = [
        dict(id=i, file_name=name, width=WIDTH, height=HEIGHT) for i, name in enumerate(names, 1)
    ]
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (tmp_path / 'train.json').write_text(json.dumps(content))
    return tmp_path


LOAD = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
]
FLIP = dict(type='RandomFlip', prob=1.0)


def detection(folder, *steps, load=LOAD, wrap=lambda dataset: dataset, shuffle=False, masks=True):
    """The config of a run on the images."""
    load = copy.deepcopy(load)
    for step in load:
        if 'with_mask' in step:
            step['with_mask'] = masks
    dataset = dict(
        type='CocoDataset',
        data_root=str(folder),
        ann_file='train.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=CLASSES, palette=[RED, GREEN, BLUE]),
        pipeline=[*load, *steps, dict(type='PackDetInputs')],
    )
    return config('mmdet', wrap(dataset), shuffle)


def segmentation(folder, *steps, load=(LOAD[0], dict(type='LoadAnnotations'))):
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(folder),
        img_suffix='.png',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=CLASSES, palette=[RED, GREEN, BLUE]),
        pipeline=[*load, *steps, dict(type='PackSegInputs')],
    )
    return config('mmseg', dataset)


class Unclipped(CocoDataset):
    """Gives boxes as they are; mmdet leaves out and cuts those that leave the image."""

    def parse_data_info(self, raw):
        info = super().parse_data_info(raw)
        for thing, given in zip(info['instances'], raw['raw_ann_info'], strict=True):
            x, y, w, h = given['bbox']
            thing['bbox'] = [x, y, x + w, y + h]
        return info


def config(family, dataset, shuffle=False):
    loader = dict(
        batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=shuffle)
    )
    return Config(dict(default_scope=family, train_dataloader=dict(loader, dataset=dataset)))


def tiles(cfg, **options):
    return make_sheet(cfg, 'train', options.pop('seed', 0), **options).tiles


def rgb(tile, x, y):
    """Pixel of a tile at a place of the image."""
    return tile.image[int(y * SCALE), int(x * SCALE), ::-1].astype(int)


def has_colour(tile, colour, x, y):
    """Whether a line of that colour is at a place of the image, a pixel more or less."""
    row, column = round(y * SCALE), round(x * SCALE)
    around = tile.image[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3, ::-1]
    return (abs(around.astype(int) - colour).max(axis=-1) < 60).any()


def test_boxes_are_where_the_objects_are_in_the_colours_of_their_classes(folder):
    first, second, *others = tiles(detection(folder, masks=False))
    assert first.image.shape == (SIDE // 2, SIDE, 3) and first.name == HOSTILE
    for (x, y, w, h), colour in ((CAT, RED), (DOG, GREEN), (CROWD, IGNORED)):
        for place in ((x + w, y + h / 2), (x + w / 2, y + h), (x, y + h - 2)):
            assert has_colour(first, colour, *place), (colour, place)
        assert rgb(first, x + w / 2, y + 0.75 * h).tolist() == [20, 20, 20], 'inside is no mask'
    assert first.text == '120x60, 2 objects, 1 ignored'
    assert first.counts == {0: 1, 1: 1, -1: 1}
    assert second.text == '120x60, 0 objects' and (second.image == 40).all()
    assert [each.text for each in others] == ['120x60, 1 object'] * 3


def test_masks_are_blended_in_the_colours_of_their_classes(folder):
    [tile] = tiles(detection(folder), number=1)
    for (x, y, w, h), colour in ((CAT, RED), (DOG, GREEN), (CROWD, IGNORED)):
        expected = (np.array(colour) + 20) / 2
        np.testing.assert_allclose(rgb(tile, x + w / 2, y + 0.75 * h), expected, atol=2)


def test_flipped_images_have_flipped_boxes(folder):
    [tile] = tiles(detection(folder, FLIP, masks=False), number=1)
    x, y, w, h = CAT
    right = WIDTH - x
    assert has_colour(tile, RED, right, y + h / 2) and has_colour(tile, RED, right - w, y + h - 2)
    assert not has_colour(tile, RED, x, y + h / 2)


def test_resized_images_are_of_the_size_that_they_say(folder):
    resize = dict(type='Resize', scale=(60, 60), keep_ratio=False)
    [tile] = tiles(detection(folder, resize), number=1)
    assert tile.text.startswith('60x60,') and tile.image.shape == (SIDE, SIDE, 3)


def test_annotations_loaded_after_resizing_are_on_the_image_as_it_was(folder):
    resize = [
        dict(type='Resize', scale=(60, 60), keep_ratio=True),
        dict(type='Pad', size=(99, 99)),
    ]
    pack = dict(meta_keys=('img_path', 'ori_shape', 'scale_factor'))
    cfg = detection(folder, load=[LOAD[0], *resize, LOAD[1]], masks=False)
    cfg.train_dataloader.dataset.pipeline[-1].update(pack)
    sheet = make_sheet(cfg, 'train', 0, number=1)
    [tile] = sheet.tiles
    assert (
        tile.image.shape == (SIDE // 2, SIDE, 3) and 'before they were resized' in sheet.facts[0]
    )
    x, y, w, h = CAT
    assert has_colour(tile, RED, x + w, y + h / 2) and has_colour(tile, RED, x, y + h - 2)
    load = [LOAD[0], resize[0], dict(type='LoadAnnotations')]
    [tile] = tiles(segmentation(folder, load=load), number=1)
    assert tile.image.shape == (SIDE // 2, SIDE, 3)
    assert rgb(tile, 30, 50).argmax() == 0 and rgb(tile, 90, 50).argmax() == 1


def test_boxes_that_leave_the_image_are_named_and_end_at_its_border(folder):
    content = json.loads((folder / 'train.json').read_text())
    content['annotations'][0]['bbox'] = [-20, 20, 60, 60]
    (folder / 'train.json').write_text(json.dumps(content))
    cfg = detection(folder, masks=False)
    cfg.train_dataloader.dataset.type = Unclipped
    [tile] = tiles(cfg, number=1)
    assert tile.text == '120x60, 2 objects, 1 ignored, 1 leaving the image'
    assert has_colour(tile, RED, 0, 40) and has_colour(tile, RED, 40, 40)
    assert has_colour(tile, RED, 20, HEIGHT - 0.5)


def test_label_maps_have_the_colours_of_their_classes_and_stripes_where_ignored(folder):
    *_, first = tiles(segmentation(folder))  # by name
    assert first.name == HOSTILE
    np.testing.assert_allclose(rgb(first, 50, 55), (np.array(RED) + 20) / 2, atol=2)
    np.testing.assert_allclose(rgb(first, 110, 55), (np.array(GREEN) + 20) / 2, atol=2)
    ignored = first.image[: int(9 * SCALE)].reshape(-1, 3)
    assert set(map(tuple, ignored)) == {IGNORED, (20, 20, 20)}
    assert first.counts == {0: 50 * 60, 1: 50 * 60, -1: 10 * 120}
    assert first.text == '120x60, 2 classes, 16.7 % ignored'
    [flipped] = tiles(segmentation(folder, FLIP), number=1)
    assert rgb(flipped, 10, 55).argmax() == 1 and rgb(flipped, 110, 55).argmax() == 0


def test_the_legend_counts_what_is_on_the_sheet(folder):
    sheet = make_sheet(detection(folder), 'train', 0)
    assert [tuple(item) for item in sheet.legend] == [
        ('cat', RED, '4'),
        ('<b>dog</b>', GREEN, '1'),
        ('ignored', IGNORED, '1'),
    ]
    assert sheet.facts[1] == 'Not in these images: unseen.'
    shares = [item.count for item in make_sheet(segmentation(folder), 'train', 0).legend]
    assert shares == ['41.7 %', '41.7 %', '16.7 %']


def mosaic(dataset):
    steps = dataset.pop('pipeline')
    return dict(
        type='MultiImageMixDataset',
        dataset=dict(dataset, pipeline=steps[:2]),
        pipeline=[dict(type='Mosaic', img_scale=(60, 60), pad_val=114.0), steps[-1]],
    )


WRAPS = dict(
    balanced=lambda dataset: dict(
        type='ClassBalancedDataset', oversample_thr=0.9, dataset=dataset
    ),
    joined=lambda dataset: dict(type='ConcatDataset', datasets=[dataset, dataset]),
    repeated=lambda dataset: dict(type='RepeatDataset', times=2, dataset=dataset),
    mosaic=mosaic,
)


@pytest.mark.parametrize('name', WRAPS)
def test_wrapped_data_sets_give_what_training_gets(folder, name):
    cfg = detection(folder, wrap=WRAPS[name], masks=False)
    # The second image has no objects, which ClassBalancedDataset cannot take.
    inner = cfg.train_dataloader.dataset
    while 'ann_file' not in inner:
        inner = inner.get('dataset') or inner.datasets[0]
    inner.filter_cfg = dict(filter_empty_gt=True)
    shown = tiles(cfg, number=4)
    assert len(shown) == 4 and all(each.counts[0] for each in shown[:1])
    if name == 'mosaic':
        assert shown[0].text.startswith('120x120, ')
        again = tiles(cfg, number=4)
        assert all((a.image == b.image).all() for a, b in zip(shown, again, strict=True))
        other = tiles(cfg, number=4, seed=1)
        assert any((a.image != b.image).any() for a, b in zip(shown, other, strict=True))


def test_a_sheet_shows_what_a_run_of_its_seed_trains_on(folder):
    """In order and pixel by pixel, by the loader of the run itself."""
    cfg = detection(
        folder,
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
        shuffle=True,
    )
    sheet = make_sheet(cfg, 'train', 7)
    with DefaultScope.overwrite_default_scope('mmdet'):
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=7)
    batches = ResumableDataLoader(loader, 7, 0)
    trained = [pair for batch in batches for pair in zip(*batch.values(), strict=True)]
    assert [each.name for each in sheet.tiles] == [
        Path(sample.img_path).name for _, sample in trained
    ]
    empty = next(i for i, each in enumerate(sheet.tiles) if not each.counts[0])
    pixel = trained[empty][0].permute(1, 2, 0).numpy()[0, 0]
    np.testing.assert_allclose(sheet.tiles[empty].image[0, 0], pixel, atol=1)
    start = make_sheet(cfg, 'train', 7, start=2, number=2)
    assert [each.name for each in start.tiles] == [each.name for each in sheet.tiles[2:4]]


@pytest.mark.parametrize('suffix', ['png', 'html'])
def test_equal_seeds_give_equal_files(folder, suffix):
    cfg = detection(folder, dict(type='PhotoMetricDistortion'), shuffle=True)
    contents = []
    for number, seed in enumerate((3, 3, 4)):
        path = folder / f'{number}.{suffix}'
        write_sheet(make_sheet(cfg, 'train', seed), path)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] != contents[2]


class Page(html.parser.HTMLParser):
    """Texts, images and tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.images, self.tags = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == 'img':
            self.images.append(dict(attributes))

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_the_page_holds_its_images_and_names_are_text(folder):
    write_sheet(make_sheet(detection(folder), 'train', 0), folder / 'sheet.html')
    page = Page((folder / 'sheet.html').read_text())
    assert {HOSTILE, '<b>dog</b>', 'Not in these images: unseen.'} <= set(page.texts)
    assert not {'script', 'b', 'link'} & page.tags and len(page.images) == 5
    assert all(each['src'].startswith('data:image/png;base64,') for each in page.images)


def test_the_png_has_every_image_and_the_legend(folder):
    sheet = make_sheet(detection(folder), 'train', 0)
    write_sheet(sheet, folder / 'sheet.png')
    written = cv2.imread(str(folder / 'sheet.png'))
    for tile in sheet.tiles:
        row, column = divmod(
            cv2.matchTemplate(written, tile.image, cv2.TM_SQDIFF).argmin(),
            written.shape[1] - tile.image.shape[1] + 1,
        )
        height, width = tile.image.shape[:2]
        assert (written[row : row + height, column : column + width] == tile.image).all()
    for item in sheet.legend:
        swatch = (written[..., ::-1] == item.colour).all(axis=-1)
        assert swatch[:140].sum() >= 100, item


def test_pipelines_that_normalise_or_give_no_single_images(folder):
    normalize = dict(type='Normalize', mean=[9.0, 8, 7], std=[3.0, 2, 1], to_rgb=True)
    [tile] = tiles(detection(folder, normalize), number=1)
    assert (tile.image == tiles(detection(folder), number=1)[0].image).all()
    gray = dict(type='LoadImageFromFile', color_type='grayscale', to_float32=True)
    [tile] = tiles(segmentation(folder, load=[gray, dict(type='LoadAnnotations')]), number=1)
    assert tile.image.shape == (SIDE // 2, SIDE, 3)
    cfg = detection(folder)
    cfg.train_dataloader.dataset.pipeline = LOAD[:1]
    with pytest.raises(UserError, match='PackDetInputs'):
        tiles(cfg)


def test_classes_of_images_are_named(monkeypatch, tmp_path):
    if importlib.util.find_spec('torchvision') is None:
        monkeypatch.syspath_prepend(ROOT / 'tests/stand_ins')
    for name in ('cat', 'dog'):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / f'{name}/1.png'), np.zeros((40, 40, 3), np.uint8))
    dataset = dict(
        type='CustomDataset',
        data_root=str(tmp_path),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    )
    sheet = make_sheet(config('mmpretrain', dataset), 'train', 0)
    assert [each.text for each in sheet.tiles] == ['40x40, cat', '40x40, dog']
    assert [item.count for item in sheet.legend] == ['1', '1']


# --- The tool ---------------------------------------------------------------------------------


@pytest.fixture
def browse(monkeypatch, capsys, tmp_path):
    """Runs the tool in this process; gives its status, and what it prints."""
    monkeypatch.setattr(BaseDataset, 'prepare_data', BaseDataset.prepare_data)
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['browse', *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.run('browse')
        out, err = capsys.readouterr()
        assert 'Traceback' not in out + err
        return stop.value.code or 0, out + err

    return run


@pytest.mark.parametrize('name', ['focal_maskrcnn_shapes', 'focal_upernet_shapes'])
@pytest.mark.parametrize('split', ['train', 'val'])
def test_shapes_are_shown(browse, name, split):
    status, text = browse(name, '--num', 3, '--out', 'out/sheet.png', '--split', split)
    assert status == 0 and 'Wrote out/sheet.png: 3 images, seed 0' in text
    sheet = cv2.imread('out/sheet.png')
    assert sheet.shape[1] > 3 * SIDE and sheet[-SIDE // 2, SIDE // 2].tolist() != [255] * 3
    before = Path('out/sheet.png').read_bytes()
    browse(name, '--num', 3, '--out', 'out/sheet.png', '--split', split)
    assert Path('out/sheet.png').read_bytes() == before and os.listdir('out') == ['sheet.png']


@pytest.mark.parametrize(
    'arguments, told',
    [
        (('--split', 'valid'), "'valid'"),
        (('--num', '0'), 'expected a whole number from 1'),
        (('--num', '401'), 'expected up to 400'),
        (('--start', '6'), '--start: expected up to 5 images, got 6'),
        (('--seed', '-1'), '--seed: expected a whole number'),
        (('--out', 'sheet.jpg'), '.html or .png, got sheet.jpg'),
        (('--out', 'images'), 'must end in .html or .png, got images'),
        (('--out', 'folder.png'), 'folder.png cannot be written: it is a folder'),
        (('--out', 'train.json/sheet.png'), 'train.json'),
        (('--split', 'val'), 'has no val_dataloader; it has train_dataloader'),
        (('--cfg-options', 'train_dataloader.dataset.data_root=gone'), 'gone'),
    ],
)
def test_wrong_arguments_are_one_sentence(browse, folder, arguments, told):
    (folder / 'folder.png').mkdir()
    detection(folder, masks=False).dump('cfg.py')
    status, text = browse('cfg.py', *arguments)
    assert status == 2 and told in text
    assert not Path('browse.html').exists()


def test_bad_data_is_told_before_it_is_drawn(browse, folder):
    content = json.loads((folder / 'train.json').read_text())
    content['images'][0]['file_name'] = '../../secret.png'
    content['annotations'][0]['segmentation'] = [[0, 0, 1e9, 0, 1e9, 1e9]]
    (folder / 'train.json').write_text(json.dumps(content))
    detection(folder).dump('cfg.py')
    status, text = browse('cfg.py')
    assert status == 2 and 'leads out of' in text and 'inside pycocotools' in text
    assert not Path('browse.html').exists()
