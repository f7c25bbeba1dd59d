"""Losses on the validation set: those of the same samples by hand, and nothing else changes."""

import copy
import json
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.hooks import EMAHook
from mmengine.registry import TRANSFORMS, init_default_scope

from mmfocal.datasets import prepare_shapes
from mmfocal.engine import install_safe_loading, load_config, settings
from mmfocal.engine.curves import draw_curves
from mmfocal.engine.hooks import validation_loss
from mmfocal.engine.hooks.validation_loss import ValidationLossHook, loss_dataloader
from mmfocal.utils.errors import UserError

NUM_IMAGES = dict(train=6, val=5)
SIDE = 96  # pixels of validation; the images have 128
RESIZE = dict(type='Resize', scale=(SIDE, SIDE), keep_ratio=True)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('validation_loss') / 'shapes'
    root = prepare_shapes(folder, num_images=NUM_IMAGES)
    # One image without any object.
    path = root / 'annotations/instances_val.json'
    content = json.loads(path.read_text())
    empty = content['images'][3]['id']
    kept = [each for each in content['annotations'] if each['image_id'] != empty]
    path.write_text(json.dumps(content | dict(annotations=kept)))
    return root


def shapes_config(data, work_dir, name, **options):
    """A config of the embedded data set on a few images, which are made smaller."""
    cfg = load_config(name, options)
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=str(data), num_images=NUM_IMAGES)
    steps = cfg.val_dataloader.dataset.pipeline
    if cfg.default_scope == 'mmdet':
        steps[1] = RESIZE
        cfg.val_evaluator.ann_file = f'{data}/annotations/instances_val.json'
    else:
        steps.insert(1, RESIZE)
    cfg.work_dir = str(work_dir)
    cfg.launcher = 'none'
    # Of the same name, mmengine would mix the logs of two runs in one process.
    cfg.experiment_name = cfg.visualizer.name = f'{name} {work_dir.name}'
    settings.set_reliability(cfg)
    return cfg


DETECTOR, SEGMENTER = 'focal_maskrcnn_shapes', 'focal_upernet_shapes'


def built(cfg):
    """The runner of a config and its hook, ready for a validation."""
    settings.set_validation_loss(cfg)
    runner = settings.build_runner(cfg)
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, ValidationLossHook))
    hook.before_train(runner)
    return runner, hook


def samples(dataset, steps):
    """All samples of a data set by other transforms than its own."""
    init_default_scope({'Det': 'mmdet', 'Seg': 'mmseg'}[steps[-1]['type'][4:7]])
    steps = [TRANSFORMS.build(step) for step in steps]
    for index in range(len(dataset)):
        sample = copy.deepcopy(dataset.get_data_info(index))
        for step in steps:
            sample = step(sample)
        yield sample


def by_hand(model, dataset, steps):
    """Mean over the images, in batches of two, of a model that predicts."""
    model.eval()
    pads = steps[-1]['type'] == 'PackDetInputs'  # masks; mmseg's images keep their size
    sums, found = {}, list(samples(dataset, steps))
    for start in range(0, len(found), 2):
        batch = found[start : start + 2]
        data = model.data_preprocessor(pseudo_collate(batch), pads)
        with torch.no_grad():
            losses = model.loss(data['inputs'], data['data_samples'])
        for name, value in losses.items():
            values = value if isinstance(value, list) else [value]
            mean = sum(each.mean().item() for each in values)
            sums[name] = sums.get(name, 0) + mean * len(batch)
    means = {name: value / len(found) for name, value in sums.items()}
    return means | dict(loss=sum(value for name, value in means.items() if 'loss' in name))


@pytest.mark.parametrize(
    'name, steps',
    [
        (
            DETECTOR,
            [
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                RESIZE,
                dict(type='PackDetInputs'),
            ],
        ),
        (
            SEGMENTER,
            [
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations'),
                RESIZE,
                dict(type='PackSegInputs'),
            ],
        ),
    ],
)
def test_losses_are_those_of_the_same_samples_by_hand(data, tmp_path, name, steps):
    cfg = shapes_config(data, tmp_path, name)
    cfg.model.backbone.update(drop_path_rate=0.5, drop_rate=0.5, attn_drop_rate=0.5)
    if name == DETECTOR:  # all regions, so that none are drawn
        for part in (cfg.model.train_cfg.rpn, cfg.model.train_cfg.rcnn):
            part.sampler.update(num=100_000, pos_fraction=1.0, neg_pos_ub=-1)
    runner, hook = built(cfg)
    runner.model.train()
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    got = hook.mean_losses(runner)
    assert all(module.training for module in runner.model.modules())
    for key, value in runner.model.state_dict().items():
        assert torch.equal(value, before[key]), key  # statistics of batch norm too
    want = by_hand(runner.model, hook.loader.dataset, steps)
    assert len(want) >= 4 and got.keys() == want.keys()
    for key, value in want.items():
        assert got[key] == pytest.approx(value, rel=1e-5), key


def test_truth_is_resized_with_the_image(data, tmp_path):
    """Where pipelines of validation leave it as it was."""
    cfg = shapes_config(data, tmp_path, DETECTOR)
    runner, hook = built(cfg)
    validated = runner.val_dataloader.dataset[0]['data_samples'].gt_instances.bboxes.tensor
    truth = hook.loader.dataset[0]['data_samples'].gt_instances
    torch.testing.assert_close(truth.bboxes.tensor, validated * SIDE / 128)
    assert truth.masks.masks.shape[1:] == (SIDE, SIDE) and len(truth) == len(validated) > 0
    assert not any('Flip' in repr(step) for step in hook.loader.dataset.pipeline.transforms)

    runner, hook = built(shapes_config(data, tmp_path, SEGMENTER))
    assert hook.loader.dataset[0]['data_samples'].gt_sem_seg.shape == (SIDE, SIDE)
    assert runner.val_dataloader.dataset[0]['data_samples'].gt_sem_seg.shape == (128, 128)


@pytest.mark.parametrize('name', [DETECTOR, 'focal_reppointsv2_shapes', SEGMENTER])
def test_equal_weights_give_equal_losses_and_random_numbers_go_on(data, tmp_path, name):
    """RPN and RoI samples of detectors, and drop path, are drawn by chance in training."""
    cfg = shapes_config(data, tmp_path, name)
    runner, hook = built(cfg)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = hook.mean_losses(runner)
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    torch.manual_seed(2)
    assert hook.mean_losses(runner) == first
    assert all(np.isfinite(value) for value in first.values()) and first['loss'] > 0


def test_images_of_other_processes_count(data, tmp_path, monkeypatch):
    runner, hook = built(shapes_config(data, tmp_path, SEGMENTER))
    single = hook.mean_losses(runner)
    # Another process with three images whose losses are all 1.
    monkeypatch.setattr(validation_loss, 'all_reduce', lambda totals: totals.add_(3.0))
    together = hook.mean_losses(runner)
    for key, value in single.items():
        assert together[key] == pytest.approx((5 * value + 3) / 8)


def test_losses_fall_are_logged_and_drawn(data, tmp_path, monkeypatch):
    """And the metric says which checkpoint is best."""
    mean_losses, computed = ValidationLossHook.mean_losses, []

    def spy(self, runner):
        computed.append(mean_losses(self, runner))
        return computed[-1]

    monkeypatch.setattr(ValidationLossHook, 'mean_losses', spy)
    cfg = shapes_config(data, tmp_path, SEGMENTER)
    cfg.merge_from_dict(
        {
            'train_cfg.max_iters': 24,
            'train_cfg.val_interval': 12,
            'param_scheduler': [],
            'default_hooks.logger.interval': 4,
            'default_hooks.visualization.draw': False,
        }
    )
    settings.set_validation_loss(cfg)
    settings.set_stopping(cfg, save_best=True, early_stop=None)
    settings.set_logs(cfg, [])
    install_safe_loading()
    runner = settings.build_runner(cfg)
    runner.train()
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    rows = [row for row in map(json.loads, log.read_text().splitlines()) if 'mIoU' in row]
    for row, losses in zip(rows, computed, strict=True):
        assert {f'val/{name}': value for name, value in losses.items()}.items() <= row.items()
    first, second = (row['val/loss'] for row in rows)
    assert second < 0.95 * first
    parts = [value for key, value in rows[0].items() if 'loss_' in key]
    assert len(parts) == 3 and sum(parts) == pytest.approx(first, rel=1e-5)
    text = next(tmp_path.glob('*/*.log')).read_text()
    assert f'val/loss: {first:.4f}' in text.split('Iter(val)')[1]
    assert any('mIoU' in path.name for path in tmp_path.glob('best_*.pth'))
    lines = {line.get_label(): line for line in draw_curves(tmp_path).axes[0].lines}
    assert list(lines['held-out loss'].get_xdata()) == [12, 24]
    assert list(lines['held-out loss'].get_ydata()) == [first, second]
    assert (tmp_path / 'curves.png').is_file()


def test_averaged_weights_are_those_that_count(data, tmp_path, monkeypatch):
    """As in validation, in families without an average of their own too."""
    cfg = shapes_config(data, tmp_path, SEGMENTER)
    cfg.merge_from_dict({'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2})
    settings.set_ema(cfg)
    settings.set_validation_loss(cfg)
    seen = []

    def mean_losses(self, runner):
        seen.append(runner.model.backbone.patch_embed.proj.weight.clone())
        return dict(loss=1.0)

    monkeypatch.setattr(ValidationLossHook, 'mean_losses', mean_losses)
    runner = settings.build_runner(cfg)
    runner.train()
    (average,) = (hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook))
    assert torch.equal(seen[0], average.backbone.patch_embed.proj.weight)
    assert not torch.equal(seen[0], runner.model.backbone.patch_embed.proj.weight)


@pytest.mark.parametrize(
    'name, change, message',
    [
        (DETECTOR, lambda cfg: cfg.pop('val_dataloader'), 'no validation'),
        (DETECTOR, lambda cfg: cfg.pop('default_scope'), 'none of mmdet, mmseg'),
        (
            DETECTOR,
            lambda cfg: cfg.val_dataloader.dataset.pipeline.pop(0),
            r'LoadImage.*got Resize, LoadAnnotations, PackDetInputs',
        ),
        (
            'focal-l_htcpp_3x',
            lambda cfg: None,
            r'label maps.*val_dataloader\.dataset\.data_prefix\.seg=FOLDER',
        ),
    ],
)
def test_configs_without_what_losses_need_are_told(name, change, message):
    cfg = load_config(name)
    change(cfg)
    with pytest.raises(UserError, match=message):
        settings.set_validation_loss(cfg)


@pytest.mark.parametrize(
    'name',
    [
        'focal_maskrcnn_3x',
        'focal-l_dyhead_2x',
        'focal_sparsercnn_3x',
        'focal_upernet_160k',
        'focal_upernet_160k_cityscapes',
        'focal_in1k',
    ],
)
def test_images_come_as_in_validation_with_the_truth_of_training(name):
    cfg = load_config(name)
    steps = loss_dataloader(cfg)['dataset']['pipeline']
    kinds = [step['type'] for step in steps]
    assert not any(kind.startswith('Random') for kind in kinds)
    given = cfg.val_dataloader.dataset.pipeline
    resizes = [step for step in given if 'Resize' in step.type or 'Crop' in step.type]
    assert [
        step for step in steps if 'Resize' in step['type'] or 'Crop' in step['type']
    ] == resizes
    if cfg.default_scope != 'mmpretrain':
        assert kinds[:2] == ['LoadImageFromFile', 'LoadAnnotations'] and len(kinds) == 4
    assert 'meta_keys' not in steps[-1] and kinds[-1].startswith('Pack')
