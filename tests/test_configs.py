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
    inputs = demo_mm_inputs(
        2,
        [(3, 70, 96), (3, 96, 61)],
        num_items=[3, 0],
        num_classes=3,
        with_mask=True,
        with_semantic=getattr(getattr(model, 'roi_head', None), 'with_semantic', False),
    )
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
        assert result.pred_instances.bboxes.isfinite().all()


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
    for mode in ('whole', 'slide'):
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
    assert_learns_and_detects(build_detector(shallow(read(paths[0]))))


@pytest.mark.parametrize('paths', by_model('mmseg'), ids=names)
def test_segmenter_of_configs_learns_and_segments(paths):
    from mmengine.model import revert_sync_batchnorm
    from mmseg.registry import MODELS

    init_default_scope('mmseg')
    model = MODELS.build(shallow(read(paths[0])).model)
    assert_learns_and_segments(revert_sync_batchnorm(model))


@pytest.mark.parametrize('paths', by_model('mmseg'), ids=names)
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
    has_masks = bool(every(config.model, 'mask_head'))
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader', 'tta_pipeline'):
        loads = any(every(config.get(name, []), 'with_mask'))
        assert loads == has_masks or (name == 'tta_pipeline' and name not in config), name
    for name in ('val_evaluator', 'test_evaluator'):
        assert ('segm' in config[name].get('metric', ())) == has_masks


SEGMENTATION = {
    'focal_upernet_160k': ('tiny', 512, (2048, 512)),
    'focal-s_upernet_160k': ('small', 512, (2048, 512)),
    'focal-b_upernet_160k': ('base', 512, (2048, 512)),
    'focal-l_upernet_160k': ('large', 640, (2560, 640)),
}


@pytest.mark.parametrize('name', SEGMENTATION)
def test_recipe_of_upernet_is_the_published_one(name):
    config = read(CONFIGS / f'mmseg/{name}.py')
    arch, crop, scale = SEGMENTATION[name]
    backbone, optimizer = config.model.backbone, config.optim_wrapper.optimizer
    assert (backbone.arch, backbone.drop_path_rate) == (arch, 0.3)
    assert config.model.data_preprocessor.size == config.crop_size == (crop, crop)
    steps = {step.type: step for step in config.train_dataloader.dataset.pipeline}
    assert steps['RandomResize'].scale == scale and steps['RandomCrop'].crop_size == (crop, crop)
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 6e-5, 0.01)
    assert config.optim_wrapper.type == 'OptimWrapper'
    warm_up, decay = config.param_scheduler
    assert (warm_up.type, warm_up.start_factor, warm_up.end) == ('LinearLR', 1e-6, 1500)
    assert (decay.type, decay.power, decay.eta_min, decay.end) == ('PolyLR', 1.0, 0.0, 160000)
    assert config.train_cfg.max_iters == 160000
    assert config.auto_scale_lr.base_batch_size == 8 * config.train_dataloader.batch_size == 16
    views = config.tta_pipeline[1].transforms
    ratios = [step.scale_factor for step in views[0]]
    assert ratios == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75] and len(views[1]) == 2
    assert config.model.decode_head.num_classes == config.model.auxiliary_head.num_classes == 150


# Of every published recipe: epochs, milestones, learning rate, weight decay, clipping, precision,
# drop path, training images.
MS_CROP, MS, RANGE = 'RandomChoice', 'RandomChoiceResize', 'RandomResize'
RECIPES = {
    'focal_maskrcnn_ms-1x': (12, [8, 11], 1e-4, 0.05, None, 'amp', 0.2, MS_CROP),
    'focal-b_maskrcnn_3x': (36, [27, 33], 1e-4, 0.05, None, 'amp', 0.3, MS_CROP),
    'focal_retinanet_ms-1x': (12, [8, 11], 1e-4, 0.05, None, 'amp', 0.2, MS_CROP),
    'focal-s_retinanet_3x': (36, [27, 33], 1e-4, 0.05, None, 'amp', 0.2, MS_CROP),
    'focal-b_retinanet_3x': (36, [27, 33], 1e-4, 0.05, None, 'amp', 0.3, MS_CROP),
    'focal_cascade-maskrcnn_3x': (36, [27, 33], 1e-4, 0.05, None, 'amp', 0.2, MS_CROP),
    'focal_atss_3x': (36, [27, 33], 1e-4, 0.05, None, 'amp', 0.2, MS_CROP),
    'focal_reppointsv2_3x': (36, [27, 33], 1e-4, 0.05, None, 'amp', 0.2, MS),
    'focal_sparsercnn_3x': (36, [27, 33], 2.5e-5, 1e-4, 1, 'fp32', 0.2, MS_CROP),
    'focal-l_htcpp_3x': (36, [27, 33], 1e-4, 0.05, None, 'amp', 0.3, RANGE),
    'focal-l_dyhead_2x': (12, [8, 11], 5e-5, 0.05, None, 'fp32', 0.2, RANGE),
}


@pytest.mark.parametrize('name', RECIPES)
def test_recipe_is_the_published_one(name):
    config = read(CONFIGS / f'mmdet/{name}.py')
    warm_up, steps = config.param_scheduler
    assert (warm_up.type, warm_up.end, warm_up.by_epoch) == ('LinearLR', 500, False)
    assert (warm_up.start_factor, steps.type, steps.gamma) == (0.001, 'MultiStepLR', 0.1)
    wrapper, dataset = config.optim_wrapper, config.train_dataloader.dataset
    assert wrapper.optimizer.type == 'AdamW'
    found = (
        config.train_cfg.max_epochs,
        steps.milestones,
        wrapper.optimizer.lr,
        wrapper.optimizer.weight_decay,
        (wrapper.get('clip_grad') or {}).get('max_norm'),
        {'AmpOptimWrapper': 'amp', 'OptimWrapper': 'fp32'}[wrapper.type],
        config.model.backbone.drop_path_rate,
    )
    assert found == RECIPES[name][:-1]
    assert steps.end == config.train_cfg.max_epochs
    transforms = [step.type for step in dataset.get('dataset', dataset).pipeline]
    assert RECIPES[name][-1] in transforms and 'RandomFlip' in transforms
    gpus = 16 if 'htcpp' in name else 8
    assert config.auto_scale_lr.base_batch_size == gpus * config.train_dataloader.batch_size == 16
    assert config.model.backbone.focal_windows == (15, 13, 9, 7)


def test_training_images_have_the_published_scales():
    def steps(name):
        dataset = read(CONFIGS / f'mmdet/{name}.py').train_dataloader.dataset
        return {step.type: step for step in dataset.get('dataset', dataset).pipeline}

    crop = steps('focal_maskrcnn_3x')['RandomChoice'].transforms
    assert crop[0][0].scales == crop[1][2].scales == [(1333, s) for s in range(480, 801, 32)]
    assert [scale[1] for scale in crop[1][0].scales] == [400, 500, 600]
    assert crop[1][1].crop_size == (384, 600)
    scales = steps('focal_reppointsv2_3x')['RandomChoiceResize'].scales
    assert scales == [(1333, s) for s in range(480, 961, 32)]
    assert steps('focal-l_htcpp_3x')['RandomResize'].scale == [(1600, 400), (1600, 1400)]
    assert steps('focal-l_dyhead_2x')['RandomResize'].scale == [(2000, 480), (2000, 1200)]
    dyhead = read(CONFIGS / 'mmdet/focal-l_dyhead_2x.py')
    assert dyhead.train_dataloader.dataset.times == 2
    for name in ('maskrcnn', 'retinanet'):  # 1x is what it is in MMDetection
        assert 'RandomChoice' in steps(f'focal_{name}_ms-1x')
        assert 'RandomChoice' not in steps(f'focal_{name}_1x')


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


def test_users_config_of_ten_lines_for_a_detector_of_theirs(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(USER_CONFIG)
    assert_learns_and_detects(build_detector(read(path)))
