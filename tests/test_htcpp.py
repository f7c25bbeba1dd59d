"""HTC++ as it ships, made small: it learns with InstaBoost, and is tested with its views.

Of photographs where there are some: COCO's label maps are made of the objects.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from pycocotools.coco import COCO

import mmfocal  # noqa: F401  with it, mmengine finds the bases of either stack
from mmfocal.datasets.shapes import prepare_shapes

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS = ROOT.parent / 'shared/data/tiny_coco'
WIDTH = 32  # channels of neck and heads
NUM_IMAGES = dict(train=20, val=2)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A data set in COCO's place: ``data/coco`` with masks and label maps."""
    folder = tmp_path_factory.mktemp('htcpp')
    root = folder / 'data/coco'
    (root / 'annotations').mkdir(parents=True)
    source = PHOTOGRAPHS
    if not source.is_dir():
        source = prepare_shapes(folder / 'shapes', num_images=NUM_IMAGES)
    for split, count in NUM_IMAGES.items():
        images = f'{split}2017' if source == PHOTOGRAPHS else split
        (root / f'{split}2017').symlink_to(source / images)
        content = json.loads((source / f'annotations/instances_{images}.json').read_text())
        # Those with several parts, and crowds, are among the first ones.
        content['images'] = content['images'][:count]
        ids = {image['id'] for image in content['images']}
        content['annotations'] = [a for a in content['annotations'] if a['image_id'] in ids]
        path = root / f'annotations/instances_{split}2017.json'
        path.write_text(json.dumps(content))
        draw_label_maps(COCO(path), root / f'stuffthingmaps/{split}2017')
    return folder


def draw_label_maps(coco, folder):
    folder.mkdir(parents=True)
    for image in coco.dataset['images']:
        labels = np.full((image['height'], image['width']), 182, np.uint8)
        for each in coco.imgToAnns[image['id']]:
            labels[coco.annToMask(each) > 0] = each['category_id'] - 1
        labels[:8] = 255
        Image.fromarray(labels).save(folder / Path(image['file_name']).with_suffix('.png').name)


def small(classes):
    """The config that ships, with narrow layers and small images."""
    config = Config.fromfile(ROOT / 'configs/mmdet/focal-l_htcpp_3x.py')
    model = config.model
    model.backbone.update(
        arch=dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)), init_cfg=None
    )
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=WIDTH)
    model.rpn_head.update(in_channels=WIDTH, feat_channels=WIDTH)
    heads = model.roi_head
    for name in ('bbox_roi_extractor', 'mask_roi_extractor', 'semantic_roi_extractor'):
        heads[name].out_channels = WIDTH
    for head in (*heads.bbox_head, *heads.mask_head, heads.semantic_head):
        head.update(in_channels=WIDTH, conv_out_channels=WIDTH)
    for head in (*heads.bbox_head, *heads.mask_head):
        head.num_classes = len(classes)
    for head in heads.bbox_head:
        head.fc_out_channels = 4 * WIDTH
    steps = config.train_dataloader.dataset.pipeline
    steps[1].aug_ratio = 1.0
    steps[3].scale = [(192, 96), (192, 160)]
    model.train_cfg.rpn_proposal.update(nms_pre=200, max_per_img=100)
    for stage in model.train_cfg.rcnn:
        stage.sampler.num = 64
    model.test_cfg.rpn.update(nms_pre=100, max_per_img=50)
    for view, short_side in zip(
        config.tta_pipeline[1].transforms[0], (64, 80, 96, 112, 128, 160), strict=True
    ):
        view.scale = (2 * short_side, short_side)
    config.tta_model.tta_cfg.max_per_img = 20
    for split in ('train', 'val', 'test'):
        loader = config[f'{split}_dataloader']
        loader.update(num_workers=0 if split != 'train' else 1, persistent_workers=False)
        loader.dataset.metainfo = dict(classes=classes)
        if split != 'train':
            loader.dataset.pipeline[1].scale = (192, 160)
    config.optim_wrapper.optimizer.lr = 1e-3
    config.param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=5)]
    config.default_hooks.logger.interval = 1
    config.train_cfg.max_epochs = 1
    return config


def run(*arguments, cwd):
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'mmfocal', *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-3000:]
    return output


def losses(work_dir):
    """Of each iteration, by name."""
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines = [line for line in lines if 'loss' in line]
    return {key: [line[key] for line in lines] for key in lines[0] if 'loss' in key}


def test_htcpp_learns_with_instaboost_and_is_tested_with_its_views(folder):
    file = folder / 'data/coco/annotations/instances_train2017.json'
    classes = tuple(each['name'] for each in json.loads(file.read_text())['categories'])
    small(classes).dump(folder / 'htcpp.py')
    output = run('train', 'htcpp.py', '--work-dir', 'work', '--seed', 0, cwd=folder)
    assert 'no errors' in output
    found = losses(folder / 'work')
    assert {'loss_rpn_cls', 'loss_semantic_seg', 's0.loss_cls', 's2.loss_mask'} <= set(found)
    for name, values in found.items():
        assert len(values) == 20 and np.isfinite(values).all(), name
    assert np.mean(found['loss'][-5:]) < np.mean(found['loss'][:5])
    out = folder / 'views.json'
    output = run('test', 'htcpp.py', 'work/epoch_1.pth', '--tta', '--out', out, cwd=folder)
    assert 'InstanceTTAModel' in output
    metrics = json.loads(out.read_text())['metrics']
    assert 0 <= metrics['coco/bbox_mAP'] <= 1 and 0 <= metrics['coco/segm_mAP'] <= 1
    for kind, key in (('bbox', 'bbox'), ('segm', 'segmentation')):
        boxes = json.loads(out.with_suffix(f'.{kind}.json').read_text())
        assert len({each['image_id'] for each in boxes}) == NUM_IMAGES['val']
        assert all(each['score'] > 0 and each[key] for each in boxes)
