"""Every config loads, builds, learns from a batch and detects; so does a user's own."""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

import mmfocal  # noqa: F401  with it, mmengine finds the bases of either stack
from mmfocal.engine.misspelt import items_of
from mmfocal.models.settings import ARCH_SETTINGS
from mmfocal.utils.config import family_of
from tools.dev.costs.complexity import build_without_weights

CONFIGS = Path(__file__).parents[1] / 'configs'
LEAVES = sorted(CONFIGS.glob('[!_]*/*.py'))

USER_CONFIG = """
_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
custom_imports = dict(imports=['mmfocal'])
model = dict(
    backbone=dict(
        _delete_=True,
        type='FocalTransformer',
        arch=dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)),
        out_indices=(1, 2, 3),
    ),
    neck=dict(in_channels=[16, 32, 64], start_level=0),
)
"""


@cache
def _read(path):
    return Config.fromfile(path)


def read(path):
    """A config, of which a test may change its own copy."""
    return copy.deepcopy(_read(path))


def shallow(config):
    """The config with two blocks a stage, which are wired as eighteen are."""
    backbone = config.model.backbone
    if isinstance(backbone.get('arch', 'tiny'), str):
        backbone.arch = dict(ARCH_SETTINGS[backbone.get('arch', 'tiny')], depths=(2, 2, 2, 2))
    return config


def small(config):
    """The config with few blocks, layers and queries, and no image filled up to a large one."""
    fewer = dict(num_queries=10, num_layers=3)  # Mask2Former's layers look at three maps in turn
    for _, settings in [('', shallow(config).model), *items_of(config.model)]:
        if isinstance(settings, dict):
            settings.update({name: fewer[name] for name in fewer.keys() & settings.keys()})
            if 'oversample_ratio' in settings:
                settings.num_points = 112
            if settings.get('type') == 'BatchFixedSizePad':
                settings.size = (96, 96)
    return config


def build_detector(config):
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    # Fewer regions than on COCO.
    train, test = config.model.get('train_cfg'), config.model.get('test_cfg')
    if train and train.get('rpn_proposal'):
        train.rpn_proposal.max_per_img = test.rpn.max_per_img = 50
        for stage in train.rcnn if isinstance(train.rcnn, list) else [train.rcnn]:
            stage.sampler.num = 16
    model = MODELS.build(config.model)
    if hasattr(model, 'rpn_head'):  # Sparse R-CNN's proposals are boxes only then
        model.rpn_head.init_weights()
    return model


def assert_learns_and_detects(model):
    """One training step and one inference on two noise images with random objects."""
    from mmdet.testing import demo_mm_inputs

    torch.manual_seed(0)
    stuff = getattr(model, 'num_stuff_classes', 0)
    # RTMDet-Ins stacks masks, which have one size in its recipe.
    stacks = 'RTMDetIns' in type(getattr(model, 'bbox_head', None)).__name__
    inputs = demo_mm_inputs(
        2,
        [(3, 64, 96)] * 2 if stacks else [(3, 70, 96), (3, 96, 61)],
        num_items=[3, 0],
        num_classes=3,
        with_mask=True,
        with_semantic=stuff or getattr(getattr(model, 'roi_head', None), 'with_semantic', False),
    )
    for sample in inputs['data_samples']:
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))  # as their shapes say
        if stuff:  # behind the things
            sample.gt_sem_seg.sem_seg += model.num_things_classes
    model.train()
    losses = model(**model.data_preprocessor(inputs, training=True), mode='loss')
    loss, _ = model.parse_losses(losses)
    assert loss.isfinite()
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name

    model.eval()
    with torch.no_grad():
        results = model(**model.data_preprocessor(inputs, training=False), mode='predict')
    assert len(results) == 2
    for result in results:
        found = result.pred_instances
        assert found.bboxes.isfinite().all()
        if stacks or hasattr(model, 'panoptic_head'):
            assert found.masks.shape == (len(found.labels), *result.ori_shape)
            assert len(found) and found.masks.dtype == torch.bool
        if stuff:
            segments = result.pred_panoptic_seg.sem_seg
            assert segments.shape == (1, *result.ori_shape)
            # The class and, after the thousands, the number of the segment; or the last, for none.
            assert ((segments % 1000) <= model.num_classes).all()


def assert_learns_and_segments(model):
    """One training step on two noise images, and inference on one of odd size, whole and slid."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    torch.manual_seed(0)
    num_classes = model.decode_head.num_classes

    def batch(count, height, width):
        samples = []
        for _ in range(count):
            labels = torch.randint(0, num_classes, (1, height, width))
            sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
            sample.set_metainfo(dict(ori_shape=(height, width), img_shape=(height, width)))
            samples.append(sample)
        images = [torch.randint(0, 256, (3, height, width), dtype=torch.uint8)] * count
        return dict(inputs=images, data_samples=samples)

    model.data_preprocessor.size = (64, 64)
    model.train()
    losses = model(**model.data_preprocessor(batch(2, 64, 64), training=True), mode='loss')
    loss, _ = model.parse_losses(losses)
    assert loss.isfinite()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name

    model.eval()
    # mmseg's Mask2Former gives label maps of whole images only.
    modes = ('whole', 'slide') if hasattr(model.decode_head, 'conv_seg') else ('whole',)
    for mode in modes:
        model.test_cfg.update(mode=mode, crop_size=(48, 48), stride=(32, 32))
        with torch.no_grad():
            (result,) = model.test_step(batch(1, 61, 83))
        assert result.pred_sem_seg.data.shape == (1, 61, 83)
        assert result.seg_logits.data.isfinite().all()


def by_model(family):
    """One config of each different model, and all that are its equals."""
    groups = {}
    for path in (path for path in LEAVES if path.parent.name == family):
        groups.setdefault(str(read(path).model), []).append(path)
    return list(groups.values())


def names(paths):
    return '='.join(path.stem for path in paths)


@pytest.mark.parametrize('paths', by_model('mmdet') + by_model('mmseg'), ids=names)
def test_config_survives_being_written_and_read(paths):
    config = read(paths[0])
    assert Config.fromstring(config.pretty_text, '.py')._cfg_dict == config._cfg_dict


@pytest.mark.parametrize('paths', by_model('mmdet'), ids=names)
def test_detector_of_configs_learns_and_detects(paths):
    assert_learns_and_detects(build_detector(small(read(paths[0]))))


@pytest.mark.parametrize('paths', by_model('mmseg'), ids=names)
def test_segmenter_of_configs_learns_and_segments(paths):
    from mmengine.model import revert_sync_batchnorm
    from mmseg.registry import MODELS

    init_default_scope('mmseg')
    model = MODELS.build(small(read(paths[0])).model)
    assert_learns_and_segments(revert_sync_batchnorm(model))


@pytest.mark.parametrize(
    'paths',
    [paths for paths in by_model('mmseg') if 'loss_decode' in read(paths[0]).model.decode_head],
    ids=names,
)
def test_losses_of_segmenters_leave_out_ignored_pixels(paths):
    from mmseg.registry import MODELS

    init_default_scope('mmseg')
    model = read(paths[0]).model
    for head in (model.decode_head, model.auxiliary_head):
        logits = torch.randn(1, head.num_classes, 4, 4)
        labels = torch.randint(head.num_classes, (1, 4, 4))
        labels[0, 0] = 255
        losses = head.loss_decode
        for settings in losses if isinstance(losses, list) else [losses]:
            if settings.type == 'DiceLoss':  # of the whole image
                continue
            loss = MODELS.build(settings)
            changed = logits.clone()
            changed[:, :, 0] += torch.randn(head.num_classes, 1)
            values = [float(loss(each, labels, ignore_index=255)) for each in (logits, changed)]
            assert values[0] == values[1] > 0


def test_weighted_loss_is_that_of_mmseg_where_no_pixel_is_ignored():
    from mmseg.models import CrossEntropyLoss

    from mmfocal.models import ClassWeightedCrossEntropyLoss

    logits, labels = torch.randn(2, 3, 5, 5), torch.randint(3, (2, 5, 5))
    settings = dict(class_weight=[0.4, 1.0, 2.0], loss_weight=1.5)
    ours, theirs = ClassWeightedCrossEntropyLoss(**settings), CrossEntropyLoss(**settings)
    for weight in (None, torch.rand(2, 5, 5)):
        given = dict(weight=weight, ignore_index=255)
        torch.testing.assert_close(ours(logits, labels, **given), theirs(logits, labels, **given))
    equal = ClassWeightedCrossEntropyLoss()(logits, labels)
    torch.testing.assert_close(equal, CrossEntropyLoss()(logits, labels))
    nothing = ours(logits, torch.full_like(labels, 255))
    assert nothing == 0 and not ours.state_dict() and ours.loss_name == theirs.loss_name


def every(value, name):
    """Values of a key, wherever it is in a config."""
    return [item for path, item in items_of(value) if path.rpartition('.')[2] == name]


@pytest.mark.parametrize('path', LEAVES, ids=lambda path: path.stem)
def test_models_load_masks_if_they_have_a_head_for_them(path):
    config = read(path)
    heads = ('mask_head', 'panoptic_head', 'loss_mask')
    has_masks = family_of(config) == 'mmdet' and any(every(config.model, head) for head in heads)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader', 'tta_pipeline'):
        settings = config.get(name, [])
        loads = any(every(settings, 'with_mask')) or 'LoadPanopticAnnotations' in str(settings)
        assert loads == has_masks or (name == 'tta_pipeline' and not settings), name
    for name in ('val_evaluator', 'test_evaluator'):
        metrics = [metric for metric in every({name: config[name]}, 'metric') if metric]
        assert any('segm' in metric for metric in metrics) == has_masks


@pytest.mark.parametrize('name', ['focal_maskrcnn_ms-1x', 'focal_reppointsv2_3x', 'focal_atss_3x'])
def test_norms_and_position_biases_are_free_of_weight_decay(name):
    config = read(CONFIGS / f'mmdet/{name}.py')
    model = build_detector(config)
    config.optim_wrapper.type = 'OptimWrapper'
    wrapper = Runner.build_optim_wrapper(
        type('Builder', (), dict(model=model)), config.optim_wrapper
    )
    free = {id(p) for g in wrapper.param_groups if g['weight_decay'] == 0 for p in g['params']}
    names = {name for name, p in model.named_parameters() if id(p) in free}
    assert len(names) == sum('norm' in n or 'bias_table' in n for n, _ in model.named_parameters())
    assert {name.split('.')[0] for name in names} == {'backbone'}
    tables = {n.split('attn.')[1] for n in names if 'bias_table' in n}
    assert len({table.split('.')[1] for table in tables}) == 3  # own window, ring, pooled levels


# Of recipes that are mmdet's and mmseg's: the factor of the backbone's learning rate, and what the
# head has without weight decay, besides norms of Mask2Former and RTMDet-Ins.
TODAY = {
    'mmdet/focal_dino_12e': (0.1, ()),
    'mmdet/focal_mask2former_50e': (0.1, ('query_embed', 'query_feat', 'level_embed')),
    'mmdet/focal_mask2former-panoptic_50e': (0.1, ('query_embed', 'query_feat', 'level_embed')),
    'mmdet/focal_rtmdet-ins_100e': (1.0, ('bias',)),
    'mmseg/focal_mask2former_160k': (0.1, ('query_embed', 'query_feat', 'level_embed')),
}
POSITIONS = ('relative_position_bias_table', 'absolute_pos_embed')


@pytest.mark.parametrize('arch', ['tiny', 'base'])
@pytest.mark.parametrize('name', TODAY)
def test_each_parameter_has_the_rate_and_the_decay_that_are_meant(name, arch):
    config = read(CONFIGS / f'{name}.py')
    channels = (96, 192, 384, 768) if arch == 'tiny' else (128, 256, 512, 1024)
    config.model.backbone.update(arch=arch, use_abs_pos_embed=True)
    with_channels = config.model.get('neck') or config.model.get('panoptic_head')
    with_channels = with_channels or config.model.decode_head
    with_channels.in_channels = list(channels[-len(with_channels.in_channels) :])
    model = build_without_weights(config.model, config.default_scope)
    wrapper = Runner.build_optim_wrapper(
        type('Builder', (), dict(model=model)), config.optim_wrapper
    )
    groups = {id(group['params'][0]): group for group in wrapper.param_groups}
    rate, undecayed = TODAY[name]
    norms = {
        f'{prefix}.{key}'
        for prefix, part in model.named_modules()
        if isinstance(part, torch.nn.LayerNorm | torch.nn.GroupNorm)
        for key, _ in part.named_parameters()
    }
    base = config.optim_wrapper.optimizer
    for key, parameter in model.named_parameters():
        is_of_backbone = key.startswith('backbone.')
        is_free = any(each in key.split('.') for each in undecayed)
        if is_of_backbone and undecayed != ('bias',):
            is_free = False
        is_free |= key in norms and (is_of_backbone or name != 'mmdet/focal_dino_12e')
        is_free |= is_of_backbone and any(each in key for each in POSITIONS)
        group = groups[id(parameter)]
        assert group['lr'] == pytest.approx(base.lr * (rate if is_of_backbone else 1.0)), key
        assert group['weight_decay'] == (0.0 if is_free else base.weight_decay), key
    keys = config.optim_wrapper.paramwise_cfg.custom_keys
    names = [key for key, _ in model.named_parameters()]
    assert not [key for key in keys if not any(key in each for each in names)]


def test_users_config_of_ten_lines_for_a_detector_of_theirs(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(USER_CONFIG)
    assert_learns_and_detects(build_detector(read(path)))
