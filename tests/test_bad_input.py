"""What a user sees on bad input: broken data, wrong arguments, values that are not finite.

``python tests/test_bad_input.py`` prints docs/tables/bad_input.md.
"""

from __future__ import annotations

import copy
import json
import math
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hooks import CheckpointHook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmseg.datasets import BaseSegDataset
from PIL import Image, ImageOps
from test_files import pipe
from torch import nn
from torch.utils.data import DataLoader

from mmfocal import FocalTransformer, FocalTransformerFast, cli
from mmfocal.datasets import checks
from mmfocal.datasets.checks import (
    BadDataError,
    SampleError,
    check_contents,
    install_sample_errors,
    leaves_folder,
    read_image,
)
from mmfocal.engine import load_checkpoint_file
from mmfocal.engine.data_loader import prepare_workers
from mmfocal.engine.hooks.non_finite import NonFiniteError, NonFiniteHook
from mmfocal.utils.errors import UserError

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs/tables/bad_input.md'
SIZE = (64, 48)  # width, height
NAN, INFINITY = math.nan, math.inf


# --- Data of four images ------------------------------------------------------------------


def write_image(name: str, mode: str = 'RGB', size: tuple[int, int] = SIZE, **kwargs: Any) -> None:
    """Writes an image with content that does not compress to nothing."""
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    path = Path('data/images', name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).convert(mode).save(path, **kwargs)


def turned(orientation: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[checks.images.ORIENTATION] = orientation
    return dict(exif=exif)


def cut(name: str, part: float) -> None:
    path = Path('data/images', name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])


def damage(name: str, part: float, start: int = 0) -> None:
    """Overwrites 20 bytes."""
    path = Path('data/images', name)
    content = bytearray(path.read_bytes())
    start += int(len(content) * part)
    content[start : start + 20] = b'\1' * 20
    path.write_bytes(content)


def coco() -> dict[str, Any]:
    """Annotations of a good data set."""
    images = [dict(id=i, file_name=f'{i}.jpg', width=64, height=48) for i in range(1, 5)]
    objects = [
        dict(
            id=i,
            image_id=i,
            category_id=1 + i % 2,
            bbox=[4, 6, 20, 10],
            area=200,
            iscrowd=0,
            segmentation=[[4, 6, 24, 6, 24, 16, 4, 16]],
        )
        for i in range(1, 5)
    ]
    categories = [dict(id=1, name='cat'), dict(id=2, name='dog')]
    return dict(images=images, annotations=objects, categories=categories)


@contextmanager
def in_empty_folder() -> Iterator[None]:
    """Inside a new folder, so that messages have the same paths everywhere."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def write_coco(change: Callable[[dict], Any] | None = None) -> None:
    """Writes images and annotations; ``change`` breaks something."""
    for i in range(1, 5):
        write_image(f'{i}.jpg')
    content = coco()
    text = change(content) if change else None
    Path('data/train.json').write_text(text if isinstance(text, str) else json.dumps(content))


PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='PackDetInputs'),
]


def coco_config(**settings: Any) -> Config:
    dataset = dict(
        type='CocoDataset',
        data_root='data',
        ann_file='train.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('cat', 'dog')),
        pipeline=PIPELINE,
    )
    return Config(
        dict(default_scope='mmdet', train_dataloader=dict(dataset={**dataset, **settings}))
    )


SEG_PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]


def seg_config(**settings: Any) -> Config:
    dataset = dict(
        type='BaseSegDataset',
        data_root='data',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=('ground', 'cat', 'dog')),
        pipeline=SEG_PIPELINE,
    )
    return Config(
        dict(default_scope='mmseg', train_dataloader=dict(dataset={**dataset, **settings}))
    )


def label_map(name: str, value: int = 1, size: tuple[int, int] = SIZE, mode: str = 'L') -> None:
    path = Path('data/labels', name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value,) * 3 if mode == 'RGB' else value).save(path)


def write_seg(change: Callable[[], Any] | None = None) -> None:
    for i in range(1, 4):
        write_image(f'{i}.jpg')
        label_map(f'{i}.png', i - 1)
    if change:
        change()


def report(cfg: Config, deep: bool = False, splits: tuple[str, ...] = ('train',)) -> list[str]:
    """What the check prints: findings, and the line that sums up."""
    try:
        return check_contents(cfg, splits, deep)
    except BadDataError as error:
        return str(error).splitlines()


# --- The table ------------------------------------------------------------------------------


class Case(NamedTuple):
    """Something wrong with data.

    Attributes:
        title: what it is.
        change: makes it, from annotations or, for mmseg, in the files.
        expected: what has to be in the first line.
        settings: of the data set's config.
        deep: whether the deep check is needed.
    """

    title: str
    change: Callable[..., Any]
    expected: str
    settings: dict[str, Any] | None = None
    deep: bool = False


def first(key: str, **values: Any) -> Callable[[dict], None]:
    """Changes the first image or annotation; ``...`` removes a value."""

    def change(content: dict) -> None:
        for name, value in values.items():
            if value is ...:
                del content[key][0][name]
            else:
                content[key][0][name] = value

    return change


def thing(**values: Any) -> Callable[[dict], None]:
    return first('annotations', **values)


def replaced(**lists: Any) -> Callable[[dict], None]:
    return lambda content: content.update(lists)


def twice(key: str) -> Callable[[dict], None]:
    return lambda content: content[key].append(dict(content[key][0], file_name='4.jpg'))


def file(write: Callable[[], Any]) -> Callable[..., None]:
    """Only changes files."""
    return lambda *_: write() and None


def raw(name: str, content: bytes) -> Callable[..., None]:
    return lambda *_: Path('data/images', name).write_bytes(content) and None


def emptied(*_: Any) -> None:
    Path('data/images/1.jpg').write_bytes(b'')


def removed(*_: Any) -> None:
    Path('data/images/1.jpg').unlink()


def resized(width: int, height: int) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        write_image('1.jpg', size=(width, height))
        content['images'][0].update(width=width, height=height)
        content['annotations'][0].update(
            bbox=[0, 0, width, height], segmentation=[[0, 0, width, 0, width, height]]
        )

    return change


def animated(*_: Any) -> None:
    frames = [Image.new('RGB', SIZE, (80 * i,) * 3) for i in range(3)]
    frames[0].save('data/images/1.gif', save_all=True, append_images=frames[1:])


def other_form(name: str, write: Callable[[], Any]) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        write()
        content['images'][0]['file_name'] = name

    return change


def sixteen_bit() -> None:
    Image.fromarray(np.full(SIZE[::-1], 999, np.uint16)).save('data/images/1.png')


def floating() -> None:
    Image.fromarray(np.full(SIZE[::-1], 0.5, np.float32)).save('data/images/1.tiff')


def vast(folder: str = 'images', width: int = 20_000, height: int = 20_000) -> None:
    """A PNG of few bytes whose header promises many pixels."""
    header = b'IHDR' + struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
    chunks = b'\x89PNG\r\n\x1a\n'
    for chunk in (header, b'IDAT' + zlib.compress(bytes(100)), b'IEND'):
        chunks += struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk))
    Path('data', folder, '1.png').write_bytes(chunks)


def piped(path: str) -> None:
    Path(path).unlink(missing_ok=True)
    pipe(path)


def other_ids(key: str, reference: str) -> Callable[[dict], None]:
    """The id 1 becomes text, wherever it is."""

    def change(content: dict) -> None:
        for each in content[key]:
            each['id'] = '1' if each['id'] == 1 else each['id']
        for each in content['annotations']:
            each[reference] = '1' if each[reference] == 1 else each[reference]

    return change


def one_category(content: dict) -> None:
    content['categories'].pop()
    for each in content['annotations']:
        each['category_id'] = 1


CROWD = dict(counts=[0, 5, 3067], size=[48, 64])

ERRORS = (
    Case('annotation file cut off', lambda c: json.dumps(c)[:700], 'is cut off or damaged'),
    Case('annotation file is a list', lambda c: '[1, 2]', 'expected a JSON object'),
    Case('no key `categories`', lambda c: c.pop('categories') and None, "'categories', got no"),
    Case('`annotations` that is no list', replaced(annotations=None), "'annotations', got None"),
    Case('byte order mark', lambda c: '\ufeff' + json.dumps(c), 'UTF-8-SIG, which pycocotools'),
    Case('text after the end', lambda c: json.dumps(c) + '}', 'Extra data'),
    Case('no images', replaced(images=[], annotations=[]), 'lists no images at all'),
    Case(
        'no annotations, and images without are filtered out',
        replaced(annotations=[]),
        'no image is left .* 4 have no annotations .*filter_empty_gt',
        dict(filter_cfg=dict(filter_empty_gt=True)),
    ),
    Case(
        'images below `min_size`',
        None,
        'no image is left .* 4 have a side below 49 pixels',
        dict(filter_cfg=dict(min_size=49)),
    ),
    Case('image without a width', first('images', width=...), "image 1: .*'width', got no such"),
    Case('image of negative height', first('images', height=-48), "'height', got -48"),
    Case('image id listed twice', twice('images'), 'image id 1 .* listed twice'),
    Case('annotation id listed twice', twice('annotations'), 'annotation id 1: is listed twice'),
    Case('category that is not in the file', thing(category_id=9), 'category_id 9 is none'),
    Case('class names that do not match', first('categories', name='lion'), "named 'cat'"),
    Case(
        'class names in another order',
        lambda c: c['categories'].reverse(),
        "another order .*'dog', 'cat', not 'cat', 'dog'",
    ),
    Case('annotation without `area`', thing(area=...), "annotation 1 of image 1: .*'area'"),
    Case('`iscrowd` as text', thing(iscrowd='0'), "0 or 1 under 'iscrowd', got '0'"),
    Case('box of strings', thing(bbox=['4', '6', '20', '10']), "'bbox', got \\['4'"),
    Case('box of three numbers', thing(bbox=[4, 6, 20]), 'expected four .*numbers'),
    Case('box with NaN', thing(bbox=[NAN, 6, 20, 10]), r"finite .*'bbox', got \[nan, 6, 20"),
    Case(
        'box with infinity', thing(bbox=[4, 6, INFINITY, 10]), r"finite .*'bbox', got \[4, 6, inf"
    ),
    Case(
        'huge box',
        thing(bbox=[4, 6, 1e9, 10]),
        r"within 100,000 pixels under 'bbox', got \[4, 6, 1000",
    ),
    Case('box of negative size', thing(bbox=[4, 6, -20, 10]), 'has a negative size'),
    Case('boxes without area, more than 1 %', thing(bbox=[4, 6, 0, 10]), 'less than a pixel'),
    Case('boxes outside, more than 1 %', thing(bbox=[70, 6, 20, 10]), 'is outside its image'),
    Case('corners for boxes, more than 1 %', thing(bbox=[40, 30, 60, 40]), 'sticks out .*corners'),
    Case('annotations of missing images, more than 1 %', thing(image_id=9), 'no image 9'),
    Case('polygon with NaN', thing(segmentation=[[NAN] * 6]), 'of finite numbers .*, got nan'),
    Case(
        'polygon with infinity',
        thing(segmentation=[[4, 6, INFINITY] * 2]),
        'of finite numbers .*, got inf',
    ),
    Case(
        'huge polygon',
        thing(segmentation=[[4, 6, 1e8] * 2]),
        'within 100,000 pixels .*, got 100000000.0',
    ),
    Case('polygon of text', thing(segmentation=[['a'] * 6]), 'expected polygons .*, got .a. in'),
    Case('polygon without brackets', thing(segmentation=[4, 6, 8, 9, 4, 2]), 'expected polygons'),
    Case('polygon of one point', thing(segmentation=[[4, 6]]), 'got 2 numbers'),
    Case('polygon of two points', thing(segmentation=[[4, 6, 8, 9]]), 'got 4 numbers'),
    Case('polygon of odd length', thing(segmentation=[[4, 6, 8, 9, 4, 2, 1]]), 'got 7 numbers'),
    Case(
        'no polygons where masks are needed', thing(segmentation=[]), 'needs masks; .*got \\[\\]'
    ),
    Case('`null` where masks are needed', thing(segmentation=None), 'needs masks; .*got None'),
    Case('no mask where masks are needed', thing(segmentation=...), 'got no such key'),
    Case('RLE of another size', thing(segmentation=dict(CROWD, size=[64, 48])), 'RLE of size'),
    Case(
        'RLE whose counts overflow',
        thing(segmentation=dict(CROWD, counts=[0, 5, 9999])),
        'of sum 3072, got 10004',
    ),
    Case(
        'compressed RLE whose counts overflow (`--deep`)',
        thing(segmentation=dict(CROWD, counts='0R`W3')),
        'of sum 3072',
        deep=True,
    ),
    Case('`file_name` with `..`', first('images', file_name='../1.jpg'), 'leads out of data/im'),
    Case('absolute `file_name`', first('images', file_name='/etc/1.jpg'), 'leads out of data/im'),
    Case('image that is missing', removed, 'data/images/1.jpg: is missing'),
    Case('empty image', emptied, 'data/images/1.jpg: is empty'),
    Case('text named .jpg', raw('1.jpg', b'<html>404</html>'), "begins with b'<html>404"),
    Case('JPEG cut off', file(lambda: cut('1.jpg', 0.6)), 'data/images/1.jpg: is cut off'),
    Case(
        'PNG cut off',
        other_form('1.png', lambda: write_image('1.png') or cut('1.png', 0.9)),
        'data/images/1.png: is cut off',
    ),
    Case(
        'PNG damaged inside (`--deep`)',
        other_form('1.png', lambda: write_image('1.png') or damage('1.png', 0.5)),
        'data/images/1.png: is cut off or damaged',
        deep=True,
    ),
    Case(
        'TIFF cut off (`--deep`)',
        other_form('1.tiff', lambda: write_image('1.tiff') or cut('1.tiff', 0.9)),
        'data/images/1.tiff: is cut off',
        deep=True,
    ),
    Case(
        'PNG without a header',
        other_form('1.png', lambda: write_image('1.png') or damage('1.png', 0.0, start=8)),
        'data/images/1.png: is damaged: it begins as an image',
    ),
    Case(
        'declared width and height that are wrong',
        first('images', width=640, height=480),
        'has 64x48 pixels .*say 640x480',
    ),
    Case(
        'EXIF-rotated image with unrotated boxes',
        file(lambda: write_image('1.jpg', **turned(6))),
        'turns it to 48x64 .*boxes would be misplaced',
    ),
    Case(
        'more pixels than are decoded',
        other_form('1.png', vast),
        'has 20000x20000 .* OPENCV_IO_MAX_IMAGE_PIXELS=400000000 .* annotations say 64x48',
    ),
    Case(
        'a line of pixels',
        other_form('1.png', lambda: vast(height=3)),
        'has 20000x3 .* none is more than 5,000 times',
    ),
    Case('named pipe', file(lambda: piped('data/images/1.jpg')), '1.jpg: is a named pipe'),
    Case('1x4000 pixels', resized(1, 4000), 'would have a side of 0 pixels'),
    Case('floating point pixels', other_form('1.tiff', floating), 'floating point numbers'),
    Case(
        '16-bit gray with the pillow backend',
        other_form('1.png', sixteen_bit),
        'clips to white',
        dict(pipeline=[dict(PIPELINE[0], imdecode_backend='pillow'), *PIPELINE[1:]]),
    ),
)

NOTES = (
    Case('CMYK', file(lambda: write_image('1.jpg', 'CMYK')), 'is CMYK'),
    Case('gray', file(lambda: write_image('1.jpg', 'L')), 'is gray'),
    Case('with alpha', other_form('1.png', lambda: write_image('1.png', 'RGBA')), 'is with alpha'),
    Case('16-bit gray', other_form('1.png', sixteen_bit), 'is 16-bit gray'),
    Case('animated', other_form('1.gif', animated), 'is animated; its first frame'),
    Case('1x1 pixel', resized(1, 1), 'has 1x1 pixels'),
    Case(
        'EXIF orientation that keeps the size',
        file(lambda: write_image('1.jpg', **turned(3))),
        r'is turned by its EXIF orientation \(3\)',
    ),
    Case(
        'no annotations',
        replaced(annotations=[]),
        'lists no annotations at all; a model learns',
    ),
    Case(
        'category that the config leaves out',
        lambda c: c['categories'].append(dict(id=3, name='lion')),
        "'lion' is no class of the config",
    ),
    Case(
        'class that never occurs',
        lambda c: [each.update(category_id=2) for each in c['annotations']],
        "has no boxes of 'cat'. Such a class is neither learned",
    ),
)

# Of a file that CocoMetric reads.
EVALUATION_ERRORS = (
    Case('annotation without `iscrowd`', thing(iscrowd=...), "under 'iscrowd', got no such key"),
    Case('`iscrowd` of `null`', thing(iscrowd=None), "0 or 1 under 'iscrowd', got None"),
    Case('annotation id 0', thing(id=0), 'annotation id 0: evaluation takes 0 for an object that'),
    Case('annotation id that is a name', thing(id='a'), "id 'a': evaluation needs a number"),
    Case('infinite `area`', thing(area=INFINITY), "finite number .*'area', got inf"),
    Case(
        'ids of images of several kinds',
        other_ids('images', 'image_id'),
        'sorts the ids of images with numpy',
    ),
    Case(
        'ids of categories of several kinds',
        other_ids('categories', 'category_id'),
        'sorts the ids of categories with numpy',
    ),
    Case(
        'polygon of two points before others',
        thing(segmentation=[[4, 6, 24, 16], [4, 6, 24, 6, 24, 16]]),
        'got 4 numbers; evaluation would end on it',
    ),
    Case(
        'class without a category',
        one_category,
        "no categories named 'dog', .* evaluation ends when",
    ),
)

SEG_ERRORS = (
    Case('no images', dict, 'lists no images', dict(img_suffix='.webp')),
    Case('label map that is missing', lambda: Path('data/labels/1.png').unlink(), 'is missing'),
    Case('label map cut off', lambda: os.truncate('data/labels/1.png', 50), 'is cut off'),
    Case('label map of too many pixels', lambda: vast('labels'), 'labels/1.png: has 20000x20000'),
    Case(
        'label map that is a named pipe', lambda: piped('data/labels/1.png'), '1.png: is a named p'
    ),
    Case('label map of another size', lambda: label_map('1.png', 1, (32, 48)), 'has 32x48 pixels'),
    Case(
        'label outside the classes',
        lambda: label_map('1.png', 3),
        'holds 3; labels are from 0 to 2',
    ),
    Case('colours for labels', lambda: label_map('1.png', mode='RGB'), 'got 3'),
    Case(
        'masks of 0 and 255',
        lambda: [label_map(f'{i}.png', 255 * (i % 2)) for i in range(1, 4)] and None,
        "hold 0, 255, and 255 is ignored: no pixel is ever 'cat'",
    ),
    Case(
        'palette that does not fit the classes',
        dict,
        'metainfo.palette: expected a colour for each of 3 classes, got 1',
        dict(metainfo=dict(classes=('ground', 'cat', 'dog'), palette=[[0, 0, 0]])),
    ),
    Case(
        'list that leaves the data root',
        lambda: Path('data/list.txt').write_text('1\n../2\n'),
        "list.txt: '../2.jpg' leads out of data/images",
        dict(ann_file='list.txt'),
    ),
)


def evaluated_config(**evaluator: Any) -> Config:
    """A config that only evaluates, with the annotations of the file."""
    cfg = coco_config(test_mode=True)
    cfg.val_dataloader = cfg.pop('train_dataloader')
    evaluator = dict(type='CocoMetric', ann_file='data/train.json', metric=['bbox', 'segm']) | (
        evaluator
    )
    cfg.val_evaluator = evaluator
    return cfg


def seen(case: Case, segments: bool = False, evaluated: bool = False) -> list[str]:
    """What the check prints on a case."""
    with in_empty_folder():
        if evaluated:
            write_coco(case.change)
            return report(evaluated_config(), splits=('val',))
        if segments:
            write_seg(case.change)
            return report(seg_config(**(case.settings or {})), case.deep)
        write_coco(case.change)
        return report(coco_config(**(case.settings or {})), case.deep)


@pytest.mark.parametrize('case', ERRORS, ids=lambda case: case.title)
def test_broken_data_is_refused(case):
    lines = seen(case)
    assert lines[0].startswith('error: ') and re.search(case.expected, lines[0]), lines
    assert re.match(r'Data check: train \d+ images .* errors, .* s\.$', lines[-1])


@pytest.mark.parametrize('case', EVALUATION_ERRORS, ids=lambda case: case.title)
def test_what_evaluation_ends_on_or_misreads_is_refused_only_there(case):
    lines = seen(case, evaluated=True)
    assert lines[0].startswith('error: ') and re.search(case.expected, lines[0]), lines
    assert 'no errors' in seen(case)[-1]


@pytest.mark.parametrize('case', NOTES, ids=lambda case: case.title)
def test_odd_data_is_noted(case):
    lines = seen(case)
    assert lines[0].startswith('note: ') and re.search(case.expected, lines[0]), lines
    assert 'no errors' in lines[-1]


@pytest.mark.parametrize('case', SEG_ERRORS, ids=lambda case: case.title)
def test_broken_label_maps_are_refused(case):
    lines = seen(case, segments=True)
    assert lines[0].startswith('error: ') and re.search(case.expected, lines[0]), lines


def test_annotations_that_would_block_or_fill_the_memory_are_not_read(monkeypatch):
    with in_empty_folder():
        write_coco()
        size = Path('data/train.json').stat().st_size
        monkeypatch.setattr(checks.coco_file, '_memory', lambda: 3 * size)
        assert 'GB of JSON' in report(coco_config())[0]
        monkeypatch.setattr(checks.coco_file, '_memory', lambda: None)
        assert 'no errors' in report(coco_config())[-1]
        piped('data/train.json')
        assert report(coco_config())[0].startswith('error: data/train.json: is a named pipe')
    monkeypatch.undo()
    assert checks.coco_file._memory() > 1e8


def test_names_of_classes_are_not_read_from_what_blocks():
    with in_empty_folder():
        write_coco()
        piped('names')
        with pytest.raises(UserError, match="classes='names' is a named pipe"):
            check_contents(coco_config(metainfo=dict(classes='names')), ('train',))
        Path('names').unlink()
        Path('names').write_text('cat\ndog\n')
        assert 'no errors' in report(coco_config(metainfo=dict(classes='names')))[-1]


def test_the_limit_of_pixels_is_raised_as_it_says(monkeypatch):
    with in_empty_folder():
        write_coco(other_form('1.png', vast))
        name, value = re.search(r'(\w+)=(\d+) in the env', report(coco_config())[0]).groups()
        monkeypatch.setenv(name, value)
        # What is next: the size, which the annotations do not have.
        assert 'has 20000x20000 pixels (width x height), its ann' in report(coco_config())[0]
        monkeypatch.setenv(name, str(int(value) - 1))
        assert 'more than the 399,999,999 that' in report(coco_config())[0]


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'gif', 'tiff', 'webp', 'bmp', 'ppm'])
def test_images_of_all_kinds_are_measured_before_they_are_decoded(suffix, tmp_path, monkeypatch):
    path = str(tmp_path / f'1.{suffix}')
    Image.new('RGB', SIZE).save(path)
    monkeypatch.setattr(checks.images, 'MAX_PIXELS', 64 * 48)
    assert read_image(path, deep=True).pixels.shape[:2] == (48, 64)
    monkeypatch.setattr(checks.images, 'MAX_PIXELS', 64 * 48 - 1)
    monkeypatch.setattr(Image.Image, 'load', lambda self: pytest.fail('decoded'))
    for read in (checks.refuse_large, lambda path: read_image(path, deep=True)):
        with pytest.raises(ValueError, match=r'has 64x48 pixels .*, more than the 3,071'):
            read(path)


def test_postscript_is_no_image():
    with in_empty_folder():
        write_image('1.eps')
        os.rename('data/images/1.eps', 'data/images/1.jpg')
        with pytest.raises(ValueError, match=r'is no image; it begins with .*PS-Adobe'):
            read_image('data/images/1.jpg', deep=True)


def test_good_data_passes_in_one_line():
    for write, config in ((write_coco, coco_config), (write_seg, seg_config)):
        with in_empty_folder():
            write()
            (line,) = report(config(), deep=True)
            assert re.match(r'Data check: train \d images \(\d opened\) and \d .*: no err', line)


def test_many_errors_are_counted_and_few_shown():
    def change(content):
        content['annotations'] = [dict(content['annotations'][0], id=i) for i in range(2000)]
        for each in content['annotations'][50:]:
            each['bbox'] = [NAN, 0, 1, 1]

    with in_empty_folder():
        write_coco(change)
        lines = report(coco_config())
    assert len(lines) == checks.report.MAX_LINES + 2 and '1,950 errors' in lines[-1]
    assert lines[-2].startswith('error: 1,940 more')


def test_an_error_of_another_kind_is_shown_beside_many():
    def change(content):
        content['annotations'] = [dict(content['annotations'][0], id=i) for i in range(20)]
        for each in content['annotations'][:18]:
            del each['area']
        content['annotations'][18]['bbox'] = [NAN, 0, 1, 1]

    with in_empty_folder():
        write_coco(change)
        lines = report(coco_config())
    assert any('annotation 18 ' in line and "'bbox'" in line for line in lines)


def test_two_thousand_objects_and_a_rare_empty_box_are_fine():
    def change(content):
        content['annotations'] = [dict(content['annotations'][i % 2], id=i) for i in range(2000)]
        content['annotations'][7]['bbox'] = [4, 6, 0, 0]

    with in_empty_folder():
        write_coco(change)
        lines = report(coco_config())
    assert lines[0].startswith('note: data/train.json: annotation 7 of image 2: bbox [4, 6, 0, 0]')
    assert 'no errors, 1 notes' in lines[1]


def test_masks_are_looked_at_only_where_they_are_used():
    boxes = [dict(type='LoadAnnotations', with_bbox=True)]
    with in_empty_folder():
        write_coco(thing(segmentation=...))
        (line,) = report(coco_config(pipeline=boxes))
        assert 'no errors' in line
        cfg = coco_config(pipeline=boxes)
        cfg.val_dataloader = cfg.pop('train_dataloader')
        cfg.val_evaluator = dict(type='CocoMetric', metric=['bbox', 'segm'])
        with pytest.raises(BadDataError, match='needs masks'):
            check_contents(cfg, ('train', 'val'))
        # Coordinates that end the process are refused in any case.
        write_coco(thing(segmentation=[[NAN] * 6]))
        assert 'got nan' in report(coco_config(pipeline=boxes))[0]


def test_compressed_masks_are_measured_as_pycocotools_does():
    from pycocotools import mask

    pixels = np.random.default_rng(0).random((48, 64)) > 0.7
    code = mask.encode(np.asfortranarray(pixels))['counts'].decode()
    assert checks.coco.rle_pixels(code) == pixels.size
    assert checks.coco.rle_pixels(code[:-1]) != pixels.size
    assert checks.coco.rle_pixels('!') is checks.coco.rle_pixels([1, -1]) is None


def test_ignored_orientation_compares_pixels_as_they_are_stored():
    load = dict(type='LoadImageFromFile', color_type='color_ignore_orientation')
    with in_empty_folder():
        write_coco(file(lambda: write_image('1.jpg', **turned(6))))
        (line,) = report(coco_config(pipeline=[load, *PIPELINE[1:]]))
    assert 'no errors' in line


def test_only_a_sample_is_opened_in_time(monkeypatch):
    monkeypatch.setattr(checks.images, 'MAX_HEADERS', 2)
    with in_empty_folder():
        write_coco()
        assert '4 images (2 opened)' in report(coco_config())[-1]
        assert '4 images (4 opened)' in report(coco_config(), deep=True)[-1]
        monkeypatch.setattr(checks.images, 'MAX_SECONDS', 0.0)
        assert '4 images (1 opened)' in report(coco_config())[-1]


def test_heads_have_as_many_classes_as_the_data():
    cfg = coco_config()
    cfg.model = dict(roi_head=dict(bbox_head=[dict(num_classes=2), dict(num_classes=1)]))
    with in_empty_folder():
        write_coco()
        assert 'model.roi_head.bbox_head.1 of the config num_classes=1' in report(cfg)[0]


NAMES = tuple(f'class {i}' for i in range(3))


@DATASETS.register_module()
class ComputedDataset(BaseSegDataset):
    """Its classes are no literals, and its suffixes are in no signature."""

    METAINFO: ClassVar = dict(zip(['classes'], [NAMES], strict=True))

    def __init__(self, **kwargs):
        super().__init__(img_suffix='.jpg', seg_map_suffix='_labels.png', **kwargs)


@DATASETS.register_module()
class ComputedCocoDataset(CocoDataset):
    METAINFO: ClassVar = dict(zip(['classes'], [('cat', 'dog')], strict=True))


@DATASETS.register_module()
class OwnReaderDataset(CocoDataset):
    def parse_data_info(self, raw_data_info):
        return super().parse_data_info(raw_data_info)


@DATASETS.register_module()
class StrictDataset(BaseSegDataset):
    def __init__(self, needed, **kwargs):
        super().__init__(**kwargs)


@pytest.mark.parametrize(
    'kind', ['ComputedDataset', 'mmengine.ComputedDataset', ComputedDataset], ids=str
)
def test_data_sets_are_asked_for_classes_and_suffixes(kind):
    with in_empty_folder():
        for i in range(1, 4):
            write_image(f'{i}.jpg')
            label_map(f'{i}_labels.png', i)
        cfg = seg_config(type=kind, metainfo=None)
        lines = report(cfg)
        assert re.search(r'3_labels\.png: holds 3; labels are from 0 to 2', lines[0]), lines
        cfg.train_dataloader.dataset.reduce_zero_label = True
        assert 'no errors' in report(cfg)[-1]


def test_classes_of_a_data_set_are_never_those_of_its_parent():
    with in_empty_folder():
        write_coco()
        assert 'no errors' in report(coco_config(type='ComputedCocoDataset', metainfo=None))[-1]
        assert "named 'person'" in report(coco_config(type='CocoDataset', metainfo=None))[0]


@pytest.mark.parametrize(
    'kind, reason',
    [
        ('NoSuchDataset', 'is not registered'),
        ('no.such.module.NoSuchDataset', 'is not registered'),
        ('VOCDataset', 'is read in a way of its own'),
        ('LVISV1Dataset', 'is read in a way of its own'),
        ('OwnReaderDataset', 'is read in a way of its own'),
        ('StrictDataset', r"cannot be built \(TypeError: .*'needed'"),
    ],
)
def test_what_a_data_set_reads_is_unknown_if_it_cannot_be_asked(kind, reason):
    with in_empty_folder():
        write_coco()
        lines = report(coco_config(type=kind))
    name = kind.rpartition('.')[2]
    assert re.match(f'note: train_dataloader.dataset: {name} {reason}', lines[0]), lines
    assert 'nothing looked at: no errors, 1 notes' in lines[1]


def test_stock_data_sets_are_asked_in_the_scope_of_the_config():
    from mmfocal.datasets.checks.dataset import find_datasets
    from mmfocal.datasets.checks.reading import describe

    with in_empty_folder():
        city = dict(type='mmseg.CityscapesDataset', metainfo=None)
        write_image('a_leftImg8bit.png')
        (dataset,) = find_datasets(Config(dict(coco_config(**city))), 'train')
        assert dataset.built.img_suffix == '_leftImg8bit.png'
        cfg = seg_config(type='ADE20KDataset', metainfo=None)
        write_image('1.jpg')
        (dataset,) = find_datasets(cfg, 'train')
        data = describe(cfg, 'train', dataset, [])
    assert len(data.classes) == 150 and (data.first_label, data.num_labels) == (1, 151)
    assert [(entry.name, entry.label_map) for entry in data.entries] == [
        ('1.jpg', 'data/labels/1.png')
    ]


def test_custom_imports_are_imported_first(monkeypatch):
    with in_empty_folder():
        monkeypatch.syspath_prepend(os.getcwd())
        write_coco()
        Path('roads_for_a_test.py').write_text(
            'from mmdet.datasets import CocoDataset\n'
            'from mmengine.registry import DATASETS\n'
            '@DATASETS.register_module()\n'
            'class RoadsDataset(CocoDataset):\n'
            "    METAINFO = dict(classes=('dog', 'cat'))\n"
        )
        cfg = coco_config(type='RoadsDataset', metainfo=None)
        cfg.custom_imports = dict(imports=['roads_for_a_test'])
        assert 'another order' in report(cfg)[0]
        cfg.custom_imports = dict(imports=['no_such_module'])
        with pytest.raises(UserError, match=r'custom_imports.*no_such_module'):
            report(cfg)


@pytest.mark.parametrize(
    'name', ['..', 'a/../../b', '/a', '\\a', 'a\\..\\..\\b', 'C:\\a', 'http://a/b']
)
def test_paths_that_leave_their_folder(name):
    assert leaves_folder(name)
    assert not leaves_folder('a/b..c') and not leaves_folder('a.b/c:d')


@pytest.mark.parametrize('orientation', range(1, 9))
def test_sides_are_swapped_by_the_orientations_that_do_so(orientation):
    with in_empty_folder():
        write_image('1.jpg', **turned(orientation))
        image = read_image('data/images/1.jpg', deep=False)
        loaded = np.asarray(ImageOps.exif_transpose(Image.open('data/images/1.jpg')))
    assert image.loaded_size(turns=True) == loaded.shape[1::-1]
    assert image.loaded_size(turns=False) == SIZE


ODD_VALUES = (
    *(None, True, 0, -1, 1e308, -1e308, NAN, INFINITY, 2**200, '', 'x', '\0', '../x', '\ud800'),
    *([], [[]], [None], [[None]], [[NAN] * 6], [['x'] * 6], [[1] * 7], [1] * 4, ['x'] * 4),
    *({}, {'id': 1}, {'counts': [], 'size': []}, {'counts': 'x', 'size': [48, 64]}),
    *({'counts': [NAN], 'size': [48, 64]}, {'counts': [[1]], 'size': [48, 64]}),
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in nested lists and dicts: the container, and the key or index in it."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def with_odd_values(draw: random.Random) -> dict[str, Any]:
    """Annotations with up to three odd values in random places."""
    content = coco()
    for _ in range(draw.randint(1, 3)):
        container, key = draw.choice(list(places(content)))
        container[key] = copy.deepcopy(draw.choice(ODD_VALUES))
    return content


# --- The tools ------------------------------------------------------------------------------


def run_tool(monkeypatch: Any, capsys: Any, tool: str, *args: str) -> tuple[int, str]:
    """Runs a tool that ends before training, in this process: its status, and what it prints."""
    monkeypatch.setattr(sys, 'argv', [tool, *args])
    with pytest.raises(SystemExit) as stop:
        cli.run(Path(tool).stem)
    out, err = capsys.readouterr()
    return stop.value.code or 0, out + err


CONFIG = """
_base_ = '{root}/configs/mmdet/focal_maskrcnn_shapes.py'
train_dataloader = dict(dataset={dataset})
val_dataloader = train_dataloader
val_evaluator = dict(ann_file='data/train.json')
"""


def write_config() -> None:
    dataset = dict(coco_config().train_dataloader.dataset.to_dict(), _delete_=True)
    Path('config.py').write_text(CONFIG.format(root=ROOT, dataset=dataset))


def test_tools_refuse_bad_data_without_a_trace(monkeypatch, capsys):
    with in_empty_folder():
        write_coco(thing(segmentation=[[NAN] * 6]))
        write_config()
        for tool in ('check_data.py', 'train.py'):
            status, text = run_tool(monkeypatch, capsys, tool, 'config.py')
            assert status == 2 and 'Traceback' not in text
            assert text.strip().startswith('error: data/train.json: annotation 1 of image 1: ')
            assert 'of finite numbers' in text
        # The next thing that ends it.
        arguments = ('config.py', '--no-data-check', '--resume', 'gone.pth')
        assert 'no file gone.pth' in run_tool(monkeypatch, capsys, 'train.py', *arguments)[1]
        write_image('1.jpg', 'L')
        write_coco(first('images', file_name='gray.jpg'))
        write_image('gray.jpg', 'L')
        status, text = run_tool(monkeypatch, capsys, 'check_data.py', 'config.py', '--deep')
        assert status == 0 and text.startswith('note: data/images/gray.jpg: is gray')
        assert 'Data check: train 4 images (4 opened)' in text


def test_tools_neither_wait_for_nor_replace_what_is_no_file(monkeypatch, capsys):
    with in_empty_folder():
        write_coco()
        write_config()
        piped('pipe')
        piped('pipe.png')
        Path('file').touch()
        for tool, *arguments in (
            ('train.py', 'config.py', '--work-dir', 'file'),
            ('test.py', 'config.py', 'none.pth', '--work-dir', 'file'),
            ('train.py', 'config.py', '--no-data-check', '--resume', 'pipe'),
            ('train.py', 'pipe'),
            ('new_config.py', 'data', '--train-json', 'pipe', '--val-json', 'pipe'),
            ('show_keys.py', 'pipe.png'),
            ('show_keys.py', 'file.xyz'),
            ('show_keys.py', 'file/keys.png'),
            ('convert_checkpoint.py', 'pipe', 'out.pth'),
        ):
            status, text = run_tool(monkeypatch, capsys, tool, *arguments)
            assert status == 2 and 'Traceback' not in text, text
            assert re.search('pipe|file', text), text


# --- Samples that fail in the middle of training --------------------------------------------


@pytest.fixture
def named_errors(monkeypatch):
    from mmengine.dataset import BaseDataset

    monkeypatch.setattr(BaseDataset, 'prepare_data', BaseDataset.prepare_data)
    return install_sample_errors


def build(cfg: Config) -> Any:
    """The data set of a config."""
    from mmengine.registry import init_default_scope

    init_default_scope(cfg.default_scope)
    __import__(f'{cfg.default_scope}.datasets')
    return DATASETS.build(cfg.train_dataloader.dataset)


SAMPLES = (
    Case('empty image', emptied, 'data/images/1.jpg: is empty'),
    Case('image that vanished', removed, 'data/images/1.jpg: is missing'),
    Case('JPEG cut off', file(lambda: cut('1.jpg', 0.6)), '1.jpg: is cut off or damaged'),
    Case('text named .jpg', raw('1.jpg', b'<html>'), '1.jpg: is no image'),
    Case('more pixels than are decoded', other_form('1.png', vast), '1.png: has 20000x20000'),
    Case('named pipe', file(lambda: piped('data/images/1.jpg')), '1.jpg: is a named pipe'),
    Case(
        '1x4000 pixels',
        file(lambda: write_image('1.jpg', size=(1, 4000))),
        'cannot be used: error',
    ),
    Case('`file_name` with `..`', first('images', file_name='../../1.jpg'), 'leads out of the da'),
)


def sample_error(case: Case) -> str:
    with in_empty_folder():
        write_coco(case.change)
        with pytest.raises(SampleError) as error:
            build(coco_config())[0]
    return str(error.value)


@pytest.mark.parametrize('case', SAMPLES, ids=lambda case: case.title)
def test_bad_samples_are_named(named_errors, case):
    named_errors()
    assert re.search(case.expected, sample_error(case))


def test_images_that_opencv_does_not_read_are_named_so(named_errors):
    named_errors()
    image = Image.new('RGB', (64, 48))
    case = Case('TGA', file(lambda: image.save('data/images/1.jpg', 'TGA')), '')
    assert re.search(
        r'1\.jpg: cannot be used: .* OpenCV [\d.]+ does not read files of its kind',
        sample_error(case),
    )


@pytest.mark.parametrize('name', ['..\\1.jpg', 'a\\..\\..\\1.jpg', '\\1.jpg', 'C:\\1.jpg'])
def test_backslashes_lead_out_of_the_data_root_as_slashes_do(named_errors, name):
    with in_empty_folder():
        write_coco(first('images', file_name=name))
        assert 'leads out of data/images' in report(coco_config())[0]
        named_errors()
        with pytest.raises(SampleError, match='leads out of the data root'):
            build(coco_config(data_prefix=dict(img='')))[0]


def test_samples_that_would_block_or_fill_the_memory_are_not_loaded(named_errors):
    named_errors()
    with in_empty_folder():
        for change, reason in (
            (other_form('1.png', vast), 'has 20000x20000'),
            (file(lambda: piped('data/images/1.jpg')), 'is a named pipe'),
        ):
            write_coco(change)
            dataset = build(coco_config())
            dataset.pipeline = lambda info: pytest.fail('loaded')
            with pytest.raises(SampleError, match=reason):
                dataset[0]
        Path('data/images/1.jpg').unlink()
        # Files of a kind of their own are left to the loader that a config has for them.
        write_coco(raw('1.jpg', b'numbers'))
        dataset = build(coco_config())
        dataset.pipeline = lambda info: info['img_path']
        assert dataset[0] == 'data/images/1.jpg'
        write_seg(lambda: vast('labels'))
        dataset = build(seg_config())
        dataset.pipeline = lambda info: pytest.fail('loaded')
        with pytest.raises(SampleError, match=r'labels/1\.png: has 20000x20000'):
            dataset[0]


def test_bad_label_maps_are_named(named_errors):
    named_errors()
    with in_empty_folder():
        write_seg(lambda: os.truncate('data/labels/1.png', 50))
        with pytest.raises(SampleError, match=r'data/labels/1\.png: is cut off'):
            build(seg_config())[0]


@pytest.mark.parametrize('method', ['fork', 'forkserver'])
def test_bad_samples_of_worker_processes_are_named_without_a_trace(method, named_errors):
    named_errors()
    with in_empty_folder():
        write_coco(emptied)
        loader = DataLoader(
            build(coco_config()),
            num_workers=1,
            collate_fn=pseudo_collate,
            multiprocessing_context=method,
        )
        prepare_workers(loader)
        with pytest.raises(SampleError) as error:
            list(loader)
    assert str(error.value).startswith(('data/images/1.jpg: is empty', os.sep))
    assert 'Traceback' not in str(error.value)


def test_bad_samples_are_skipped_on_request_in_training_only(named_errors, monkeypatch):
    logged = []
    monkeypatch.setattr(
        'mmfocal.datasets.checks.samples.print_log', lambda text, *_: logged.append(text)
    )
    named_errors(skip=True)
    with in_empty_folder():
        write_coco(emptied)
        sample = build(coco_config())[0]
        assert sample['data_samples'].img_path != 'data/images/1.jpg'
        assert logged[0].startswith('Skipped: data/images/1.jpg: is empty')
        with pytest.raises(SampleError, match='is empty'):
            build(coco_config(test_mode=True))[0]


# --- Wrong arguments of the backbone --------------------------------------------------------

SMALL = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))


def arch(**settings: Any) -> dict:
    return {**dict(embed_dims=8, depths=(1,), num_heads=(1,)), **settings}


NO_COUNT = (0, -1, '3', 3.0, True, None, NAN)  # for an int of at least 1
NO_FLAG = ('yes', 2, None, NAN)
NO_RATE = (-0.1, 1, '0', True, None, NAN, INFINITY)
NO_CHOICE = ('other', None, 5, True, [])
NO_STAGES = ('01', 5, None, True, (4,), (-1,), (1, 0), (0, 0), (0.0,), (True,), ('0',), (NAN,))

WRONG = {
    'arch': (
        *('huge', 5, None, True, [], {}, dict(embed_dims=8), dict(SMALL, extra=1)),
        *(arch(embed_dims=value) for value in NO_COUNT),
        *(arch(depths=(value,)) for value in NO_COUNT),
        *(arch(num_heads=(value,)) for value in NO_COUNT),
        *(arch(depths=value) for value in (1, '1', None, ())),
        *(arch(num_heads=value) for value in (1, '1', None, (), (1, 1), (3,))),
    ),
    'in_channels': NO_COUNT,
    'patch_size': (*NO_COUNT, (4, 4)),
    'window_size': (*NO_COUNT, (7, 7), (7, 7, 7, '7'), (7, 7, 7, 0), (7, 7, 7, True)),
    'focal_levels': (*NO_COUNT, (2, 2), (2, 2, 2, 9), (2, 2, 2, True)),
    'focal_windows': (*NO_COUNT, 4, (7, 5, 3), (7, 5, 4, 1), (7, 5, 3, True)),
    'focal_stages': NO_STAGES,
    'pool_method': NO_CHOICE,
    'expand_sizes': (-1, 8, '3', 3.0, True, None, NAN, (3, 3), (3, 3, 3, -1)),
    'expand_layer': NO_CHOICE,
    'border': NO_CHOICE,
    'use_shift': (*NO_FLAG, (True, False), (True, True, True, 2), ('a',) * 4),
    'mlp_ratio': (0, -1, '4', True, None, NAN, INFINITY, 0.01, (4,)),
    'qkv_bias': NO_FLAG,
    'qk_scale': ('1', -1, 0, True, NAN, INFINITY, (1,)),
    'drop_rate': NO_RATE,
    'attn_drop_rate': NO_RATE,
    'drop_path_rate': NO_RATE,
    'use_abs_pos_embed': NO_FLAG,
    'pretrain_img_size': (*NO_COUNT, (224,), (1, 2, 3), (224, '224'), (224, True)),
    'clamp_windows': NO_FLAG,
    'patch_norm': NO_FLAG,
    'use_conv_embed': NO_FLAG,
    'use_pre_norm': NO_FLAG,
    'downsample': NO_CHOICE,
    'layer_scale_init_value': ('0.1', NAN, INFINITY, True, (1,)),
    'out_indices': ((), *NO_STAGES),
    'out_norm': NO_FLAG,
    'frozen_stages': (-2, 5, '1', 1.0, True, None, NAN),
    'with_cp': NO_FLAG,
    'norm_cfg': (
        *('LN', 5, [], {}, dict(type='BN'), dict(type='GN', num_groups=2), dict(type='None')),
        *(dict(eps=1e-5), dict(type='LN', epsilon=1), dict(type=5)),
    ),
    'act_cfg': ('GELU', 5, [], {}, dict(type='None'), dict(type='GELU', x=1), dict(type='GLU')),
    'attention_backend': NO_CHOICE,
    'compile_blocks': NO_FLAG,
    'init_cfg': ('file.pth', 5, [5], dict(type='None'), dict(checkpoint='file.pth')),
    'top_k': (*NO_COUNT, (1,)),
    'stored_map_sizes': (
        *('a', 5, True, (1,)),
        *(((value, 2),) * 4 for value in NO_COUNT),
        ((1,),) * 4,
    ),
}
OF_FAST = ('top_k', 'stored_map_sizes')
NOT_OF_FAST = ('focal_windows', 'expand_sizes', 'expand_layer', 'border')


def argument_error(model: type, name: str, value: Any, **settings: Any) -> str:
    settings |= {'arch': SMALL, name: value}
    if name == 'pretrain_img_size':
        settings['use_abs_pos_embed'] = True
    with pytest.raises((TypeError, ValueError)) as error:
        model(**settings)
    return str(error.value)


@pytest.mark.parametrize(
    'model, name',
    [
        *((FocalTransformer, name) for name in WRONG if name not in OF_FAST),
        *((FocalTransformerFast, name) for name in WRONG if name not in NOT_OF_FAST),
    ],
)
def test_wrong_arguments_are_named(model, name):
    for value in WRONG[name]:
        text = argument_error(model, name, value)
        assert name in text and 'got' in text and ('must' in text or 'need' in text), (value, text)


@pytest.mark.parametrize('name', ['window_size', 'expand_sizes', 'use_shift', 'pretrain_img_size'])
def test_wrong_arguments_are_named_when_windows_are_clamped(name):
    for value in WRONG[name]:
        text = argument_error(FocalTransformer, name, value, clamp_windows=True)
        assert name in text and 'got' in text and 'must' in text, (value, text)


def test_every_argument_is_in_the_table():
    import inspect

    arguments = {
        name
        for model in (FocalTransformer, FocalTransformerFast)
        for name in inspect.signature(model).parameters
    }
    assert arguments - {'settings'} == set(WRONG)


def test_arguments_that_do_not_exist_are_named():
    for model in (FocalTransformer, FocalTransformerFast):
        with pytest.raises(TypeError, match='window_sise'):
            model(arch=SMALL, window_sise=7)


# --- Values that are not finite -------------------------------------------------------------


class Logarithm(nn.Module):
    """NaN for negative inputs."""

    def forward(self, x):
        return x.log()


class Regressor(BaseModel):
    """A backbone and a linear layer, with a bad layer in between where images are negative."""

    def __init__(
        self, bad_loss: bool = False, bad_gradient: bool = False, bad_input: bool = False
    ):
        super().__init__()
        self.backbone = FocalTransformer(arch=SMALL)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 1))
        self.score = Logarithm()
        self.bad_loss, self.bad_gradient, self.bad_input = bad_loss, bad_gradient, bad_input

    def forward(self, inputs, data_samples=None, mode='loss'):
        inputs = torch.stack(inputs)
        sign = inputs.mean(dim=(1, 2, 3))
        pooled = self.backbone(inputs)[-1].mean(dim=(2, 3))
        if self.bad_input:
            pooled = pooled / (sign > 0)
        out = self.head(pooled).square()
        if self.bad_gradient:  # the root of 0 has an infinite slope
            return dict(loss=(out * (sign > 0)).sum().sqrt())
        if self.bad_loss:
            return dict(loss=out.mean() / (sign > 0).all())
        return dict(loss=out.mean() + 0 * self.score(sign).mean())


def batches(bad_at: int = 3, value: float = -1.0) -> DataLoader:
    """Images, one a batch; one of them is bad."""
    samples = [
        dict(
            inputs=torch.full((3, 16, 16), value if i == bad_at else 1.0),
            data_samples=BaseDataElement(metainfo=dict(img_path=f'{i}.jpg')),
        )
        for i in range(1, 6)
    ]
    return DataLoader(samples, batch_size=1, collate_fn=pseudo_collate)


def train(
    folder: Path,
    model: BaseModel,
    wrapper: OptimWrapper | None = None,
    epochs: int | None = None,
    **bad: Any,
) -> None:
    loop = dict(by_epoch=True, max_epochs=epochs) if epochs else dict(by_epoch=False, max_iters=5)
    runner = Runner(
        model=model,
        work_dir=str(folder),
        train_dataloader=batches(**bad),
        train_cfg=loop,
        optim_wrapper=wrapper or OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3)),
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', interval=1, by_epoch=bool(epochs), max_keep_ckpts=1
            )
        ),
        experiment_name=f'{folder.name}_{len(list(folder.glob("*")))}',
        log_level='ERROR',
        randomness=dict(seed=0),
    )
    runner.register_hook(NonFiniteHook())
    runner.train()


def stopped(folder: Path, model: BaseModel, **bad: Any) -> str:
    with pytest.raises(NonFiniteError) as error:
        train(folder, model, **bad)
    return str(error.value)


def test_first_layer_that_is_not_finite_is_named(tmp_path):
    text = stopped(tmp_path, Regressor())
    assert 'in iteration 3: the loss is nan. The first layer whose output is not' in text
    assert 'is score (Logarithm): 1 of 1 values of float32; the layer before it, head, ' in text
    assert 'Files of the batch: 3.jpg.' in text
    (kept,) = tmp_path.glob('*.pth')
    weights = load_checkpoint_file(kept)['state_dict']
    assert kept.name == 'iter_2.pth' and all(x.isfinite().all() for x in weights.values())


@pytest.mark.parametrize(
    'model, value, expected',
    [
        (dict(), NAN, 'that the model gets are not finite themselves'),
        (dict(), 3e38, r'is backbone\.patch_embed\.proj \(Conv2d\): .* before it, data_prep'),
        (dict(bad_input=True), -1.0, r'computed in the model .*, for the input of its layer head'),
        (dict(bad_loss=True), -1.0, 'All layers give finite values; .* is not: loss'),
    ],
)
def test_other_origins_are_named(tmp_path, model, value, expected):
    model = Regressor(**model)
    model.backbone.patch_embed.proj.weight.data.fill_(10.0)
    assert re.search(expected, stopped(tmp_path, model, value=value))


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    text = stopped(tmp_path, Regressor(bad_gradient=True))
    assert 'in iteration 3: weights are not finite: backbone.patch_embed.proj.weight' in text
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_2.pth']


def test_the_last_good_checkpoint_stays_when_an_epoch_ends_badly(tmp_path):
    class TurnsBad(Regressor):
        def train_step(self, data, optim_wrapper):
            self.steps = getattr(self, 'steps', 0) + 1
            if self.steps == 10:  # the last of the second epoch
                self.bad_gradient = True
                data['inputs'] = [-image for image in data['inputs']]
            return super().train_step(data, optim_wrapper)

    text = stopped(tmp_path, TurnsBad(), epochs=3, value=1.0)
    assert 'weights are not finite: backbone.patch_embed.proj.weight' in text
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_1.pth']


class SkippingWrapper(OptimWrapper):
    """Leaves out steps of infinite gradients, as loss scaling does."""

    def step(self, **kwargs):
        grads = [p.grad for g in self.param_groups for p in g['params'] if p.grad is not None]
        if all(grad.isfinite().all() for grad in grads):
            super().step(**kwargs)


def test_infinite_gradients_that_scaling_leaves_out_are_no_error(tmp_path):
    model = Regressor(bad_gradient=True)
    train(tmp_path, model, SkippingWrapper(torch.optim.SGD(model.parameters(), lr=1e-3)))
    assert (tmp_path / 'iter_5.pth').is_file()


def test_layers_are_named_in_compiled_blocks_too(tmp_path):
    model = Regressor()
    block = model.backbone.stages[1].blocks[0]
    block.mlp.act = Logarithm()
    block.compile(backend='eager')
    text = stopped(tmp_path, model)
    assert 'in iteration 1: ' in text and 'is backbone.stages.1.blocks.0.mlp.act (Loga' in text


TWO_PROCESSES = """
import os, sys, torch
from pathlib import Path
from mmengine.dist import all_reduce
from mmfocal.utils.errors import user_errors_without_trace
from test_bad_input import Regressor, train

class Averaging(Regressor):
    def forward(self, inputs, data_samples=None, mode='loss'):
        losses = super().forward(inputs, data_samples, mode)
        count = torch.ones(())
        all_reduce(count)  # as detectors count their samples; hangs if only one process comes
        return {name: loss / count for name, loss in losses.items()}

torch.distributed.init_process_group('gloo')
rank = torch.distributed.get_rank()
from mmengine.model import MMDistributedDataParallel
with user_errors_without_trace():
    wrapped = MMDistributedDataParallel(Averaging(), find_unused_parameters=True)
    train(Path(sys.argv[1]), wrapped, value=-1.0 if rank == 1 else 1.0)
"""


def test_all_processes_stop_at_the_loss_of_one(tmp_path):
    script = tmp_path / 'run.py'
    script.write_text(TWO_PROCESSES)
    result = subprocess.run(
        [
            *(sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2'),
            *('--master_port=0', '--standalone', str(script), str(tmp_path / 'work')),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tests"}',
            'OMP_NUM_THREADS': '1',
        },
    )
    assert 'is score (Logarithm)' in result.stderr, result.stderr[-3000:]
    assert result.stderr.count('Training stopped in iteration 3') == 1
    assert [path.name for path in (tmp_path / 'work').glob('*.pth')] == ['iter_2.pth']


def test_a_bad_loss_of_another_process_stops_this_one(tmp_path, monkeypatch):
    from mmfocal.engine.hooks import non_finite

    flags = []

    def all_reduce(flag, operation):
        flags.append((flag.item(), operation))
        if len(flags) == 3:
            flag.fill_(1)

    monkeypatch.setattr(non_finite, 'all_reduce', all_reduce)
    monkeypatch.setattr(non_finite, 'all_gather_object', lambda mine: [mine, 'told by another'])
    assert stopped(tmp_path, Regressor(), value=1.0) == 'told by another'
    assert flags == [(0.0, 'max')] * 3


def test_every_run_has_the_hook(tmp_path):
    from mmfocal.engine.settings import build_runner

    cfg = Config(
        dict(
            default_scope='mmdet',
            model=dict(type='mmdet.RetinaNet', backbone=None),
            work_dir=str(tmp_path),
        )
    )
    import mmfocal.engine.settings as settings

    class Made:
        def __init__(self):
            self.hooks = []

        def register_hook(self, hook):
            self.hooks.append(hook)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings.Runner, 'from_cfg', lambda cfg: Made())
        assert isinstance(build_runner(cfg).hooks[0], NonFiniteHook)
    assert issubclass(NonFiniteError, UserError) and NonFiniteHook.priority == 'VERY_HIGH'
    assert CheckpointHook.priority == 'VERY_LOW'


# --- The page -------------------------------------------------------------------------------

ARGUMENTS = (
    ('heads that do not divide the channels', 'arch', arch(num_heads=(3,))),
    ('lists of different lengths', 'arch', arch(num_heads=(1, 1))),
    ('unknown keys', 'arch', dict(SMALL, extra=1)),
    ('unknown name', 'arch', 'huge'),
    ('list of the wrong length', 'focal_windows', (7, 5, 3)),
    ('even focal window', 'focal_windows', (7, 5, 4, 1)),
    ('unknown pooling', 'pool_method', 'median'),
    ('negative size', 'window_size', -1),
    ('zero', 'patch_size', 0),
    ('string for a number', 'in_channels', '3'),
    ('bool for a number', 'expand_sizes', True),
    ('NaN', 'drop_path_rate', NAN),
    ('number for a bool', 'use_shift', 2),
    ('norm over another axis', 'norm_cfg', dict(type='BN')),
)

INTRODUCTION = """\
# Bad input: what the user sees

The first line of each message, printed by `python tests/test_bad_input.py`; its tests compare this
page with what the code says.

`mmfocal check_data CONFIG` reads all annotations of a config, looks for every file, and opens the
headers of up to {headers:,} images and all pixels of up to {maps} label maps per data set, for at
most {seconds:.0f} seconds each; `--deep` decodes everything. `mmfocal train` runs the same check
before it builds a model, unless `--no-data-check` is given. Whatever would stop a run or teach it
something wrong is an error, and the tool ends with status 2. What a run copes with is a note. At
most {lines} errors of a kind are listed, the rest are counted, and one line sums up:

```
{summary}
```

Errors that say "more than {share:.0%}" are only notes up to that share. Not checked, with a note:
files in other storage (`backend_args`), data sets that cannot be built, and those that read
annotations differently from `CocoDataset` and `BaseSegDataset`. Class names, suffixes and paths
are those of the data set that training will build.
"""


def table(head: str, rows: Iterator[tuple[str, str]]) -> Iterator[str]:
    yield from ('', f'## {head}', '', '| case | what the user sees |', '|---|---|')
    for title, text in rows:
        yield f'| {title} | `{text.splitlines()[0].replace("|", chr(92) + "|")}` |'


def page(folder: Path) -> str:
    """docs/tables/bad_input.md, from messages of this moment.

    Args:
        folder: an empty one, for training runs.
    """
    with in_empty_folder():
        write_coco()
        (summary,) = report(coco_config())
    lines = INTRODUCTION.format(
        headers=checks.images.MAX_HEADERS,
        maps=checks.images.MAX_LABEL_MAPS,
        seconds=checks.images.MAX_SECONDS,
        lines=checks.report.MAX_LINES,
        share=checks.report.MAX_SHARE,
        summary=re.sub(r'[\d.]+ s\.$', '0.0 s.', summary),
    ).splitlines()
    lines += table('Detection data', ((case.title, seen(case)[0]) for case in ERRORS))
    lines += table(
        'Detection data that is evaluated',
        ((case.title, seen(case, evaluated=True)[0]) for case in EVALUATION_ERRORS),
    )
    lines += table('Detection data: notes', ((case.title, seen(case)[0]) for case in NOTES))
    lines += table(
        'Segmentation data', ((case.title, seen(case, segments=True)[0]) for case in SEG_ERRORS)
    )
    lines += table(
        'Samples that fail in the middle of training',
        ((case.title, sample_error(case)) for case in SAMPLES),
    )
    lines += [
        '',
        'With `--skip-bad-samples`, training takes another sample and writes a line to the log.',
    ]
    lines += table(
        'Arguments of the backbone',
        (
            (f'{title}: `{name}={value!r}`', argument_error(FocalTransformer, name, value))
            for title, name, value in ARGUMENTS
        ),
    )
    runs = {
        'a layer gives NaN': (dict(), dict()),
        'values between layers are infinite': (dict(bad_input=True), dict()),
        'an image is NaN': (dict(), dict(value=NAN)),
        'the loss alone is infinite': (dict(bad_loss=True), dict()),
        'the weights, before a checkpoint': (dict(bad_gradient=True), dict()),
    }
    lines += table(
        'Values that are not finite, in training',
        (
            (title, stopped(folder / str(i), Regressor(**model), **bad))
            for i, (title, (model, bad)) in enumerate(runs.items())
        ),
    )
    return '\n'.join(lines) + '\n'


def versions_aside(text: str) -> str:
    """Without random numbers, and what third parties say, in brackets or after a colon."""
    brackets = r'\([^()]*(\([^()]*\)[^()]*)*\)'
    return re.sub(rf'{brackets}|cannot be used: .*|values up to .*', '', text)


def test_page_is_up_to_date(named_errors, tmp_path):
    named_errors()
    assert versions_aside(PAGE.read_text()) == versions_aside(page(tmp_path)), (
        'Run: python tests/test_bad_input.py > docs/tables/bad_input.md'
    )


if __name__ == '__main__':
    install_sample_errors()
    # pycocotools prints what it does.
    with tempfile.TemporaryDirectory() as temporary, redirect_stdout(sys.stderr):
        text = page(Path(temporary))
    sys.stdout.write(text)
