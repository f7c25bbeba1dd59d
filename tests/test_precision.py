"""What --amp and --precision make of a config, with and without a GPU for it."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmfocal import FocalTransformer
from mmfocal.engine import load_config, settings
from mmfocal.engine.bfloat16 import prepare_bfloat16
from mmfocal.utils.errors import UserError

PLAIN = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01))
MIXED = dict(PLAIN, type='AmpOptimWrapper', loss_scale=512.0)
HALF = dict(type='AmpOptimWrapper', dtype='float16')
BRAIN = dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(enabled=False))


@pytest.fixture
def gpu(monkeypatch):
    """As if there were one, which has bfloat16 if the test sets that."""
    supported = dict(value=True)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(
        torch.cuda,
        'is_bf16_supported',
        lambda including_emulation=True: supported['value'] or including_emulation,
    )
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'Tesla V100')
    return supported


@pytest.mark.parametrize(
    'given, options, expected',
    [
        (PLAIN, dict(), PLAIN),
        (MIXED, dict(), MIXED),
        (PLAIN, dict(amp=True), PLAIN | dict(type='AmpOptimWrapper', loss_scale='dynamic')),
        (MIXED, dict(amp=True), MIXED),
        (PLAIN, dict(precision='fp32'), PLAIN),
        (MIXED, dict(precision='fp32'), PLAIN),
        (PLAIN | BRAIN, dict(precision='fp32'), PLAIN),
        (PLAIN, dict(precision='fp16'), PLAIN | HALF | dict(loss_scale='dynamic')),
        (MIXED, dict(precision='fp16'), MIXED | HALF),
        (PLAIN | BRAIN, dict(precision='fp16'), PLAIN | HALF | dict(loss_scale='dynamic')),
        (PLAIN, dict(precision='bf16'), PLAIN | BRAIN),
        (MIXED, dict(precision='bf16'), PLAIN | BRAIN),
        (dict(optimizer=PLAIN['optimizer']), dict(precision='bf16'), PLAIN | BRAIN),
    ],
)
def test_precision_is_the_one_that_is_asked_for(gpu, given, options, expected):
    cfg = Config(dict(optim_wrapper=given))
    assert settings.set_precision(cfg, **options) is None
    assert cfg.optim_wrapper.to_dict() == expected


@pytest.mark.parametrize(
    'options', [dict(amp=True), dict(precision='fp16'), dict(precision='bf16')]
)
def test_16_bits_without_a_gpu_are_told(monkeypatch, options):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    option = '--amp' if 'amp' in options else f'--precision {options["precision"]}'
    with pytest.raises(UserError, match=f'{option} needs a GPU.*train in float32'):
        settings.set_precision(Config(dict(optim_wrapper=PLAIN)), **options)


def test_without_a_gpu_everything_is_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    for options, note in ((dict(), 'No GPU'), (dict(precision='fp32'), None)):
        cfg = Config(dict(optim_wrapper=MIXED))
        told = settings.set_precision(cfg, **options)
        assert told is note or note in told
        assert cfg.optim_wrapper.to_dict() == PLAIN


def test_gpus_without_bfloat16_and_other_wrappers_are_told(gpu):
    gpu['value'] = False
    with pytest.raises(UserError, match=r'got Tesla V100\. Take --precision fp16'):
        settings.set_precision(Config(dict(optim_wrapper=PLAIN)), precision='bf16')
    cfg = Config(dict(optim_wrapper=dict(type='DeepSpeedOptimWrapper')))
    assert settings.set_precision(cfg) is None
    with pytest.raises(UserError, match='got DeepSpeedOptimWrapper'):
        settings.set_precision(cfg, precision='fp32')


class Mean(nn.Module):
    """A backbone whose features are to become small."""

    def __init__(self):
        super().__init__()
        arch = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))
        self.backbone = FocalTransformer(arch=arch, out_indices=(2,))
        self.head = nn.Linear(32, 1)

    def forward(self, images):
        (features,) = self.backbone(images)
        return self.head(features.flatten(2).mean(-1))


def test_bfloat16_trains_without_a_loss_scale(monkeypatch):
    """On a CPU, too, which mmengine's wrapper refuses and its autocast does not."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model, images = Mean().to(device), torch.rand(2, 3, 56, 56, device=device)
    wrapper = build_optim_wrapper(model, PLAIN | BRAIN)
    losses = []
    for _ in range(5):
        with wrapper.optim_context(model):
            values = model(images)
            loss = (values.float() - 1).square().mean()
        assert values.dtype == torch.bfloat16
        wrapper.update_params(loss)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not wrapper.loss_scaler.is_enabled()
    wrapper.load_state_dict(wrapper.state_dict())


@pytest.mark.parametrize('name', ['focal_maskrcnn_shapes', 'focal_dyhead_shapes'])
def test_detectors_learn_in_bfloat16_with_coordinates_in_float32(name):
    """mmcv's RoIAlign and deformable convolution have no bfloat16; regions of mmdet had it."""
    init_default_scope('mmdet')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = MODELS.build(load_config(name).model).to(device)
    model.init_weights()
    prepare_bfloat16(model)
    prepare_bfloat16(model)  # may be called again
    batch = demo_mm_inputs(2, [(3, 96, 128)] * 2, num_items=[3, 2], num_classes=6, with_mask=True)
    head = model.rpn_head if name == 'focal_maskrcnn_shapes' else model.bbox_head
    outputs, seen = [], {}
    model.backbone.register_forward_hook(lambda *args: seen.update(features=args[-1][0]))
    head.register_forward_hook(lambda *args: outputs.extend(args[-1][0]))
    if hasattr(model, 'roi_head'):
        extractor = model.roi_head.bbox_roi_extractor
        extractor.register_forward_pre_hook(lambda _, args: seen.update(regions=args[1]))

    def loss(is_mixed):
        torch.manual_seed(0)  # regions to learn from are drawn
        with torch.autocast(device, dtype=torch.bfloat16, enabled=is_mixed):
            data = model.data_preprocessor(copy.deepcopy(batch), True)
            return model.parse_losses(model._run_forward(data, mode='loss'))[0]

    exact, mixed = loss(False), loss(True)
    assert mixed.item() == pytest.approx(exact.item(), rel=0.02) and mixed != exact
    mixed.backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), key
    assert seen['features'].dtype == torch.bfloat16
    assert {each.dtype for each in outputs} == {torch.float32}  # the format of anchors, too
    if 'regions' in seen:
        regions = seen['regions']
        assert regions.dtype == torch.float32
        assert not torch.equal(regions, regions.bfloat16().float())


def test_detectors_are_prepared_for_bfloat16_alone(monkeypatch):
    prepared = []
    monkeypatch.setattr(settings, 'prepare_bfloat16', prepared.append)
    monkeypatch.setattr(settings, 'import_packages', lambda cfg: None)
    runner = SimpleNamespace(model='model', register_hook=lambda hook: None)
    monkeypatch.setattr(settings.Runner, 'from_cfg', lambda cfg: runner)
    for scope, wrapper in (('mmdet', PLAIN), ('mmdet', MIXED | HALF), ('mmseg', PLAIN | BRAIN)):
        settings.build_runner(Config(dict(default_scope=scope, optim_wrapper=wrapper)))
    assert not prepared
    settings.build_runner(Config(dict(default_scope='mmdet', optim_wrapper=PLAIN | BRAIN)))
    assert prepared == ['model']
