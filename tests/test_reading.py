"""The check reads a config as a run will: by the classes, heads and transforms that it names."""

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS
from mmseg.datasets import BaseSegDataset
from PIL import Image
from test_bad_input import (
    PIPELINE,
    SEG_PIPELINE,
    SIZE,
    coco_config,
    in_empty_folder,
    label_map,
    report,
    seg_config,
    turned,
    write_coco,
    write_image,
    write_seg,
)

from mmfocal.datasets.checks import BadDataError, check_contents, check_data
from mmfocal.datasets.checks.dataset import find_datasets
from mmfocal.datasets.checks.heads import find_heads
from mmfocal.engine import load_config
from mmfocal.utils.errors import UserError


def seen(cfg, write=write_coco):
    with in_empty_folder():
        write()
        return report(cfg)


def passes(lines):
    return 'no errors, 0 notes' in lines[-1]


# --- Names of classes -------------------------------------------------------------------------


@DATASETS.register_module()
class TextDataset(CocoDataset):
    METAINFO: ClassVar = dict(classes=('cat'))


@pytest.mark.parametrize(
    'names, problem',
    [
        ('cat', "a list of names, such as ('cat',)"),
        ({'dog'}, 'expected a list or tuple'),
        (('cat', 3), 'got 3 among them'),
        ((('cat',), 'dog'), "got ('cat',) among them"),
        ((), 'at least one name'),
        (('cat', 'dog', 'cat'), "'cat' is listed twice"),
        (7, 'got a int, 7'),
    ],
    ids=str,
)
@pytest.mark.parametrize('config, write', [(coco_config, write_coco), (seg_config, write_seg)])
def test_names_of_classes_that_are_none_are_refused(names, problem, config, write):
    lines = seen(config(metainfo=dict(classes=names)), write)
    assert lines[0].startswith('error: train_dataloader.dataset'), lines
    if config is coco_config or isinstance(names, str | tuple):  # else mmseg itself refuses them
        assert problem in lines[0]


def test_names_of_a_class_are_checked_too():
    assert "such as ('cat',)" in seen(coco_config(type='TextDataset', metainfo=None))[0]


def test_names_may_be_in_a_file_or_a_list():
    with in_empty_folder():
        write_coco()
        Path('names.txt').write_text('cat\ndog\n')
        for names in ('names.txt', ['cat', 'dog']):
            assert passes(report(coco_config(metainfo=dict(classes=names))))


def test_names_under_the_former_key_are_told():
    lines = seen(seg_config(metainfo=dict(CLASSES=('ground', 'cat', 'dog'))), write_seg)
    assert "from 'classes', not from 'CLASSES'" in lines[0]


def test_palettes_that_do_not_fit_are_told():
    metainfo = dict(classes=('ground', 'cat', 'dog'), palette=[[0, 0, 0]])
    lines = seen(seg_config(metainfo=metainfo), write_seg)
    assert 'metainfo.palette: expected a colour for each of 3 classes, got 1' in lines[0]


# --- Heads ------------------------------------------------------------------------------------


CE = dict(type='CrossEntropyLoss')


def with_model(cfg, **model):
    cfg.model = dict(**model)
    return cfg


@pytest.mark.parametrize(
    'model, key',
    [
        (dict(bbox_head=dict(type='RetinaHead', num_classes=1)), 'bbox_head'),
        (dict(bbox_head=dict(type='DINOHead', num_classes=1)), 'bbox_head'),
        (dict(roi_head=dict(bbox_head=[dict(type='DIIHead', num_classes=1)])), 'bbox_head.0'),
        (dict(roi_head=dict(mask_head=dict(type='FCNMaskHead', num_classes=1))), 'mask_head'),
        (
            dict(
                panoptic_head=dict(
                    type='Mask2FormerHead', num_things_classes=1, num_stuff_classes=0, loss_cls=CE
                )
            ),
            'panoptic_head of the config num_things_classes',
        ),
        (dict(detector=dict(bbox_head=dict(type='FCOSHead', num_classes=1))), 'detector.bbox'),
        (dict(mask_head=dict(type='SOLOHead', num_classes=1)), 'model.mask_head'),
    ],
)
def test_heads_of_all_detectors_have_an_output_for_each_class(model, key):
    lines = seen(with_model(coco_config(), **model))
    assert lines[0].startswith('error: ') and key in lines[0] and '=1. Set it to 2' in lines[0]
    text = json.dumps(model).replace('classes": 1', 'classes": 2')
    assert passes(seen(with_model(coco_config(), **json.loads(text))))


@pytest.mark.parametrize(
    'model',
    [
        # Regions that may hold anything, one mask for all, another model, and more than needed.
        dict(rpn_head=dict(type='FCOSHead', num_classes=1)),
        dict(
            roi_head=dict(mask_head=dict(type='FCNMaskHead', num_classes=1, class_agnostic=True))
        ),
        dict(teacher=dict(bbox_head=dict(type='RetinaHead', num_classes=1))),
        dict(bbox_head=dict(type='RetinaHead', num_classes=80)),
        dict(roi_head=dict(bbox_head=dict(type='Shared2FCBBoxHead'))),
        dict(language_model=dict(type='BertModel'), bbox_head=dict(num_classes=1)),
    ],
    ids=str,
)
def test_heads_that_train_are_taken(model):
    assert passes(seen(with_model(coco_config(), **model)))


def test_numbers_that_a_config_leaves_out_are_those_of_the_class():
    names = tuple(map(str, range(100)))
    model = dict(roi_head=dict(bbox_head=dict(type='Shared2FCBBoxHead')))
    lines = seen(with_model(coco_config(metainfo=dict(classes=names)), **model))
    assert any('model.roi_head.bbox_head of the config num_classes=80' in line for line in lines)


def test_of_panoptic_data_only_things_are_objects():
    model = dict(panoptic_head=dict(type='MaskFormerHead'), roi_head=dict(num_classes=80))
    dataset = dict(type='CocoPanopticDataset', metainfo=None)
    lines = seen(with_model(coco_config(**dataset), **model))
    assert not any('Set it to' in line for line in lines), lines
    model['panoptic_head']['num_things_classes'] = 79
    lines = seen(with_model(coco_config(**dataset), **model))
    assert any('has 80 classes, and model.panoptic_head' in line for line in lines), lines


def test_too_few_outputs_are_noted_of_data_that_are_only_evaluated():
    cfg = with_model(coco_config(), bbox_head=dict(type='RetinaHead', num_classes=1))
    cfg.val_dataloader = cfg.pop('train_dataloader')
    with in_empty_folder():
        write_coco()
        lines = check_contents(cfg, ('val',))
    assert lines[0].startswith('note: val_dataloader.dataset: has 2 classes, and model.bbox_head')


def test_heads_are_compared_with_data_that_are_read_in_another_way():
    model = dict(bbox_head=dict(type='RetinaHead', num_classes=1))
    cfg = with_model(coco_config(type='VOCDataset', metainfo=None, ann_file='x'), **model)
    assert 'has 20 classes, and model.bbox_head' in seen(cfg)[0]


@pytest.mark.parametrize('part', ['decode_head', 'auxiliary_head'])
@pytest.mark.parametrize('wrap', [lambda head: head, lambda head: [head]])
def test_heads_of_segmenters_have_an_output_for_each_class(part, wrap):
    def cfg(number):
        head = dict(type='FCNHead', in_channels=8, channels=8, num_classes=number)
        return with_model(seg_config(), **{part: wrap(head)})

    lines = seen(cfg(2), write_seg)
    assert lines[0].startswith('error: ') and f'model.{part}' in lines[0]
    assert passes(seen(cfg(3), write_seg)) and passes(seen(cfg(9), write_seg))


def test_heads_bound_the_labels_of_classes_without_names():
    head = dict(type='FCNHead', in_channels=8, channels=8, num_classes=2)
    lines = seen(with_model(seg_config(metainfo=None), decode_head=head), write_seg)
    assert 'holds 2; labels are from 0 to 1, or 255' in lines[0]


def test_a_head_of_one_output_tells_two_labels_apart():
    """As mmseg has it, with sigmoid."""
    head = dict(
        type='FCNHead',
        in_channels=8,
        channels=8,
        num_classes=1,
        loss_decode=dict(CE, use_sigmoid=1),
    )

    for names in (('cat',), ('ground', 'cat')):
        cfg = with_model(seg_config(metainfo=dict(classes=names)), decode_head=head)
        assert passes(seen(cfg, with_labels(0, 1)))
    cfg.model.decode_head.loss_decode = CE
    assert 'num_classes=1. Set it to 2' in seen(cfg, with_labels(0, 1))[0]


@pytest.mark.parametrize(
    'name', ['focal_maskrcnn_shapes', 'focal_htcpp_shapes', 'focal_sparsercnn_shapes']
)
def test_heads_of_our_configs_are_found(name):
    heads = {head.key: head.num_classes for head in find_heads(load_config(name))}
    assert all(head.is_stock for head in find_heads(load_config(name)))
    numbers = {number for key, number in heads.items() if 'bbox_head' in key}
    assert numbers == {6}
    assert heads.get('model.roi_head.semantic_head', 7) == 7


# --- Losses -----------------------------------------------------------------------------------


def segmenter(loss, **settings):
    head = dict(type='FCNHead', in_channels=8, channels=8, num_classes=3, loss_decode=loss)
    return with_model(seg_config(), decode_head=dict(head, **settings))


def with_ignored():
    image = np.zeros(SIZE[::-1], np.uint8)
    image[0] = 255
    Image.fromarray(image).save('data/labels/1.png')


def mmseg_fails(loss, label):
    import torch
    from mmengine.registry import DefaultScope
    from mmseg.registry import MODELS

    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[0, 0, 0] = label
    with DefaultScope.overwrite_default_scope('mmseg'):  # other tests leave theirs
        built = MODELS.build(loss)
    try:
        built(torch.zeros(1, 3, 4, 4), labels, ignore_index=255)
    except IndexError:
        return True
    return False


WEIGHTED = dict(CE, class_weight=[0.5, 1.0, 1.0])


@pytest.mark.parametrize(
    'loss',
    [
        WEIGHTED,
        dict(WEIGHTED, avg_non_ignore=True),
        [dict(type='DiceLoss'), WEIGHTED],
        CE,
        dict(type='ClassWeightedCrossEntropyLoss', class_weight=[0.5, 1.0, 1.0]),
        dict(type='LovaszLoss', reduction='none'),
    ],
    ids=str,
)
def test_losses_that_end_at_ignored_pixels_are_told(loss):
    losses = loss if isinstance(loss, list) else [loss]
    fails, always = (any(mmseg_fails(each, label) for each in losses) for label in (255, 0))
    lines = seen(segmenter(loss), lambda: write_seg(with_ignored))
    assert lines[0].startswith('error: model.decode_head: CrossEntropyLoss') == fails, lines
    assert fails or passes(lines)
    lines = seen(segmenter(loss), write_seg)
    level = 'error' if always else 'note' if fails else 'Data check'  # OneDL fails in another way
    assert lines[0].startswith(f'{level}: '), lines
    assert fails or passes(lines)


@pytest.mark.parametrize(
    'model, problem',
    [
        (
            dict(bbox_head=dict(type='RetinaHead', num_classes=2, loss_cls=WEIGHTED)),
            None,
        ),
        (
            dict(
                bbox_head=dict(
                    type='RetinaHead', num_classes=2, loss_cls=dict(CE, class_weight=[1.0, 1.0])
                )
            ),
            'loss_cls.class_weight has 2 numbers, expected 3',
        ),
        (
            dict(
                panoptic_head=dict(
                    type='Mask2FormerHead',
                    num_things_classes=2,
                    num_stuff_classes=0,
                    loss_cls=dict(CE, class_weight=[1.0, 1.0, 0.1]),
                )
            ),
            None,
        ),
    ],
)
def test_weights_of_classes_fit_their_heads(model, problem):
    lines = seen(with_model(coco_config(), **model))
    assert problem in lines[0] if problem else passes(lines)


@pytest.mark.parametrize(
    'loss', [dict(CE, class_weight=[1.0, 1.0]), dict(WEIGHTED, use_sigmoid=1)]
)
def test_weights_of_classes_fit_segmenters(loss):
    """With sigmoid, mmseg takes them for those of columns."""
    lines = seen(segmenter(loss), write_seg)
    assert 'model.decode_head: CrossEntropyLoss with class_weight ends training' in lines[0]
    assert sum('CrossEntropyLoss' in line for line in lines) == 1


# --- Label maps -------------------------------------------------------------------------------


def with_labels(*labels, mode='L'):
    """All label maps hold the same labels, a row of pixels each, the last the rest."""

    def write():
        write_seg()
        values = np.full(SIZE[::-1], labels[-1], np.int32)
        for row, label in enumerate(labels):
            values[row] = label
        image = Image.fromarray(values.astype(np.uint8) if mode in 'LP' else values)
        if mode == 'P':
            image.putpalette([0, 0, 0, 200, 0, 0, 0, 0, 200])
        for i in range(1, 4):
            image.save(f'data/labels/{i}.png') if mode != 'I' else image.save(
                f'data/labels/{i}.tiff'
            )

    return write


TWO = dict(metainfo=dict(classes=('ground', 'cat')))


@pytest.mark.parametrize(
    'labels, settings, problem',
    [
        ((0, 255), TWO, "no pixel is ever 'cat'"),
        ((0, 255), {}, "no pixel is ever 'cat'"),
        ((0, 1), dict(TWO, reduce_zero_label=True), 'reduce_zero_label=True ignores 0'),
        ((1, 2), TWO, 'set reduce_zero_label=True'),
        ((1, 2, 3), {}, 'set reduce_zero_label=True'),
        ((0, 100, 200), {}, 'holds 100, 200; .*new_config'),
        ((0,), {}, 'hold 0 alone'),
        ((255,), {}, 'hold 255 alone'),
    ],
    ids=str,
)
def test_label_maps_that_cannot_be_the_classes_are_refused(labels, settings, problem):
    import re

    lines = seen(seg_config(**settings), with_labels(*labels))
    errors = [line for line in lines if line.startswith('error')]
    assert errors and re.search(problem, errors[0]), lines


@pytest.mark.parametrize(
    'labels, settings',
    [
        ((0, 1), TWO),
        ((0, 1, 255), TWO),
        ((0, 2), {}),  # a class is absent
        ((1, 2, 255), {}),
        ((0, 1, 2), dict(TWO, reduce_zero_label=True)),
        ((0, 1, 2, 3), dict(reduce_zero_label=True)),
    ],
    ids=str,
)
def test_label_maps_that_train_are_taken(labels, settings):
    assert 'no errors' in seen(seg_config(**settings), with_labels(*labels))[-1]


def test_validation_may_hold_one_class():
    cfg = seg_config()
    cfg.val_dataloader = cfg.pop('train_dataloader')
    with in_empty_folder():
        with_labels(0)()
        lines = check_contents(cfg, ('val',))
    assert lines[0].startswith('note: ') and "no pixels of 'cat', 'dog'" in lines[0]


def test_labels_below_zero_are_refused():
    lines = seen(seg_config(seg_map_suffix='.tiff'), with_labels(0, 1, -1, mode='I'))
    assert 'holds -1; labels are from 0 to 2' in lines[0]


def test_the_ignored_label_is_that_of_the_heads():
    def cfg(**settings):
        return segmenter(CE, **settings)

    assert passes(seen(cfg(ignore_index=200), with_labels(0, 1, 2, 200)))
    assert (
        'labels are from 0 to 2, or 200'
        in seen(cfg(ignore_index=200), with_labels(0, 1, 2, 255))[0]
    )
    assert 'holds 200' in seen(cfg(), with_labels(0, 1, 2, 200))[0]
    # mmseg makes 255 of 0, whatever heads ignore.
    reduced = cfg(ignore_index=200)
    reduced.train_dataloader.dataset.reduce_zero_label = True
    assert 'holds 0; labels are from 1 to 3' in seen(reduced, with_labels(0, 1, 2, 3))[0]
    assert passes(seen(reduced, with_labels(1, 2, 3, 201)))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientations_from_5_on_swap_the_sides_of_images_and_label_maps(orientation):
    def cocos():
        write_coco()
        write_image('1.jpg', **turned(orientation))

    def segments():
        write_seg()
        write_image('1.jpg', **turned(orientation))
        swapped = orientation >= 5
        label_map('1.png', 0, SIZE[::-1] if swapped else SIZE)

    assert ('turns it to 48x64' in seen(coco_config(), cocos)[0]) == (orientation >= 5)
    assert 'no errors' in seen(seg_config(), segments)[-1]


def test_palettes_are_read_as_the_decoder_reads_them():
    assert passes(seen(seg_config(), with_labels(0, 1, 2, mode='P')))
    load = dict(type='LoadAnnotations', imdecode_backend='cv2')
    pipeline = [SEG_PIPELINE[0], load, SEG_PIPELINE[2]]
    lines = seen(seg_config(pipeline=pipeline), with_labels(0, 1, 2, mode='P'))
    assert 'has a palette' in lines[0] and "Set it to 'pillow'" in lines[0]


# --- Transforms and storage -------------------------------------------------------------------


@TRANSFORMS.register_module()
class LoadArray(LoadImageFromFile):
    """Of a user, for what Pillow does not know."""


@TRANSFORMS.register_module()
class LoadLabelArray(LoadImageFromFile):
    pass


def write_arrays():
    write_coco(lambda c: [each.update(file_name=f'{each["id"]}.npy') for each in c['images']])
    for i in range(1, 5):
        np.save(f'data/images/{i}.npy', np.zeros((48, 64, 3), np.uint8))


def test_images_that_a_transform_of_the_user_reads_are_noted():
    lines = seen(coco_config(pipeline=[dict(type='LoadArray'), *PIPELINE[1:]]), write_arrays)
    assert lines[0].startswith('note: train_dataloader.dataset: files are read by LoadArray')
    assert any('LoadArray may read it' in line for line in lines) and 'no errors' in lines[-1]
    assert 'is no image' in seen(coco_config(), write_arrays)[0]


def test_label_maps_that_a_transform_of_the_user_reads_are_noted():
    pipeline = [SEG_PIPELINE[0], dict(type='LoadLabelArray'), SEG_PIPELINE[2]]
    lines = seen(seg_config(pipeline=pipeline), with_labels(0, 77))
    assert all(line.startswith('note: ') for line in lines[:-1]) and 'no errors' in lines[-1]
    assert any('holds 77' in line for line in lines)


@pytest.mark.parametrize('backend', ['cv2', 'tifffile'])
def test_floating_point_numbers_are_what_tifffile_reads(backend):
    def write():
        write_coco(lambda c: c['images'][0].update(file_name='1.tiff'))
        Image.fromarray(np.full(SIZE[::-1], 0.5, np.float32)).save('data/images/1.tiff')

    load = dict(type='LoadImageFromFile', imdecode_backend=backend)
    lines = seen(coco_config(pipeline=[load, *PIPELINE[1:]]), write)
    assert passes(lines) == (backend == 'tifffile'), lines


def test_a_local_storage_is_looked_at_and_others_are_told():
    broken = dict(ann_file='gone.json')
    for storage in (dict(backend='local'), None, {}):
        with in_empty_folder(), pytest.raises(UserError, match=r'gone\.json'):
            write_coco()
            check_data(coco_config(backend_args=storage, **broken), ('train',))
    other = dict(backend='petrel')
    for cfg in (
        coco_config(backend_args=other, **broken),
        coco_config(pipeline=[dict(PIPELINE[0], backend_args=other), *PIPELINE[1:]], **broken),
        coco_config(data_root='s3://bucket'),
    ):
        with in_empty_folder():
            check_data(cfg, ('train',))
            lines = report(cfg)
        assert lines[0].startswith('note: train_dataloader.dataset: lies in another storage')
        assert 'no errors, 1 notes' in lines[-1]


@pytest.mark.parametrize(
    'step',
    [
        dict(type='Resize', scale=96),
        dict(type='Resize', scale=96, keep_ratio=True),
        dict(type='Resize', scale_factor=0.5, keep_ratio=True),
        dict(type='RandomResize', scale=(96, 64), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type='RandomResize', scale=[(96, 64), (128, 64)], keep_ratio=True),
        dict(type='RandomChoiceResize', scales=[96, 128], keep_ratio=True),
        dict(type='RandomChoiceResize', scales=[(96, 64)], keep_ratio=True),
        dict(
            type='RandomChoiceResize',
            scales=[2, 4],
            resize_type='ResizeShortestEdge',
            max_size=99,
            keep_ratio=True,
        ),
        dict(type='RandomChoice', transforms=[[dict(type='Resize', scale=96)], []]),
        dict(type='RandomApply', transforms=dict(type='Resize', scale=96)),
        dict(type='Compose', transforms=None),
        dict(type='TestTimeAug', transforms=[[dict(type='Resize', scale=96, keep_ratio=True)]]),
    ],
    ids=str,
)
def test_scales_that_mmcv_takes_are_taken(step):
    assert passes(seen(coco_config(pipeline=[*PIPELINE[:2], step])))


@pytest.mark.parametrize(
    'step, side',
    [
        (dict(type='Resize', scale=30, keep_ratio=True), 30),
        (dict(type='RandomResize', scale=[(96, 64), (20, 30)], keep_ratio=True), 30),
        (dict(type='RandomResize', scale=40, ratio_range=(0.5, 2.0), keep_ratio=True), 20),
        (dict(type='RandomChoiceResize', scales=[25, (96, 64)], keep_ratio=True), 25),
    ],
    ids=str,
)
def test_scales_bound_the_longer_side(step, side):
    def write():
        write_coco(lambda c: c['images'][0].update(width=4000, height=40))
        write_image('1.jpg', size=(4000, 40))

    (line, *_) = seen(coco_config(pipeline=[*PIPELINE[:2], step]), write)
    assert f'resized to a longer side of {side}' in line


def test_scales_of_the_shorter_side_bound_nothing():
    def write():
        write_coco(lambda c: c['images'][0].update(width=4000, height=40))
        write_image('1.jpg', size=(4000, 40))

    step = dict(type='RandomChoiceResize', scales=[32], keep_ratio=True)
    assert 'longer side of 32' in seen(coco_config(pipeline=[*PIPELINE[:2], step]), write)[0]
    step['resize_type'] = 'ResizeShortestEdge'
    assert passes(seen(coco_config(pipeline=[*PIPELINE[:2], step]), write))


@pytest.mark.parametrize(
    'settings, key, problem',
    [
        (dict(data_prefix='train/'), 'data_prefix', r"dict\(img='train/'\), got 'train/'"),
        (dict(ann_file=['a.json', 'b.json']), 'ann_file', 'expected one path'),
        (dict(data_root=['a', 'b']), 'data_root', 'expected one path'),
        (dict(img_prefix='train/'), 'img_prefix', r'Write data_prefix=dict\(img='),
        (dict(classes=('cat',)), 'classes', r'Write metainfo=dict\(classes='),
        (
            dict(pipeline=[dict(type='Collect', keys=['img'])]),
            'pipeline',
            'Collect is .*Write PackDetInputs',
        ),
        (dict(pipeline=[dict(type='Resize', img_scale=(1, 2))]), 'pipeline', "Write 'scale'"),
        (dict(pipeline=[dict(type='RandomFlip', flip_ratio=0.5)]), 'pipeline', "Write 'prob'"),
    ],
    ids=str,
)
def test_former_and_wrong_forms_are_told(settings, key, problem):
    with in_empty_folder():
        write_coco()
        with pytest.raises(UserError, match=rf'^train_dataloader\.dataset\.{key}: .*{problem}'):
            check_data(coco_config(**settings), ('train',))


@DATASETS.register_module()
class AnyPrefixDataset(CocoDataset):
    """Takes what stock data sets refuse."""

    def __init__(self, data_prefix, classes, **kwargs):
        super().__init__(
            data_prefix=dict(img=data_prefix), metainfo=dict(classes=classes), **kwargs
        )


def test_forms_that_a_class_of_the_user_takes_are_taken():
    settings = dict(type='AnyPrefixDataset', data_prefix='images', classes=('cat', 'dog'))
    cfg = coco_config(**settings)
    del cfg.train_dataloader.dataset['metainfo']
    with in_empty_folder():
        write_coco()
        check_data(cfg, ('train',))
        assert passes(report(cfg))


def test_forms_of_a_class_of_the_user_are_not_judged():
    cfg = coco_config(type='AnyPrefixDataset', data_prefix='images', metainfo=None)
    assert seen(cfg)[0].startswith('note: train_dataloader.dataset: AnyPrefixDataset cannot be b')


@TRANSFORMS.register_module(name='Albu', force=False)
class OwnAlbu(LoadImageFromFile):
    pass


def test_transforms_of_the_user_need_no_package_of_their_namesake():
    with in_empty_folder():
        write_coco()
        scope = dict(type='mmengine.Albu')
        check_data(coco_config(pipeline=[scope, *PIPELINE[1:]]), ('train',))


# --- Data sets --------------------------------------------------------------------------------

LATE = ('cat', 'dog')


@DATASETS.register_module()
class NamesInInit(CocoDataset):
    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, 'metainfo': dict(classes=LATE)})


@DATASETS.register_module()
class NamesAsProperty(CocoDataset):
    @property
    def metainfo(self):
        return dict(super().metainfo, classes=LATE)


@DATASETS.register_module()
class NamesWhenLoaded(CocoDataset):
    def load_data_list(self):
        self._metainfo['classes'] = LATE
        return super().load_data_list()


@pytest.mark.parametrize('kind', ['NamesInInit', 'NamesAsProperty', 'NamesWhenLoaded'])
def test_names_of_classes_are_never_guessed_from_a_parent(kind):
    model = dict(bbox_head=dict(type='RetinaHead', num_classes=2))
    lines = seen(with_model(coco_config(type=kind, metainfo=None), **model))
    assert 'no errors' in lines[-1] and not any('80' in line for line in lines), lines


@DATASETS.register_module()
class RoadShapesDataset(CocoDataset):
    METAINFO: ClassVar = dict(classes=LATE)


@DATASETS.register_module()
class ShapesSegDataset(BaseSegDataset):
    """Of a user, with the name of one of ours."""


def test_data_sets_with_names_like_ours_are_checked():
    assert 'train 4 images' in seen(coco_config(type='RoadShapesDataset', metainfo=None))[-1]
    cfg = seg_config(type='mmengine.ShapesSegDataset')
    assert 'train 3 images' in seen(cfg, write_seg)[-1]
    (dataset,) = find_datasets(
        Config(dict(train_dataloader=dict(dataset=dict(type='x')))), 'train'
    )
    assert not dataset.is_drawn


def test_ours_are_not():
    for name in ('focal_retinanet_shapes', 'focal_upernet_shapes'):
        assert not list(find_datasets(load_config(name), 'train'))


@pytest.mark.parametrize('settings', [dict(no_such=1), dict(filter_cfg=3, no_such=1)])
def test_what_a_stock_data_set_refuses_is_an_error(settings):
    lines = seen(coco_config(**settings))
    assert lines[0].startswith('error: train_dataloader.dataset: CocoDataset cannot be built')
    with pytest.raises(BadDataError), in_empty_folder():
        write_coco()
        check_contents(coco_config(**settings), ('train',))
