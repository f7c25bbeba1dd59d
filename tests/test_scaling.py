"""What is counted of training steps, against steps that are computed and against arithmetic."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mmfocal import FocalTransformer
from mmfocal.engine.config import load_config
from mmfocal.utils.config import import_packages
from tools.dev.costs import scaling
from tools.dev.costs.training_cost import (
    Operation,
    StepCost,
    StepMeter,
    backbone_cost,
    cost_of_step,
    model_cost,
)

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs/tables/scaling.md'
SMALL = dict(
    arch=dict(embed_dims=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8)), focal_windows=(3,) * 4
)


def test_meter_counts_bytes_that_are_there():
    x = torch.zeros(256, dtype=torch.float32)  # 1 KiB, from before
    with StepMeter() as meter:
        y = x + 1
        y[:4].mul_(2)  # a view and a change in place make nothing
        assert meter.live == meter.peak == 1024
        z = y.double()
        assert meter.live == 1024 + 2048
        del y
        assert (meter.live, meter.peak) == (2048, 3072)
        del z
    assert (meter.live, meter.peak) == (0, 3072)
    moved = [each.bytes for each in meter.operations]
    assert moved[0] == 2048 and moved[-1] == 3072
    assert not any(each.flops or each.narrow for each in meter.operations)


def test_step_of_a_linear_layer_by_hand():
    layer = nn.Linear(8, 4, bias=False)
    x = torch.rand(16, 8)
    step = cost_of_step(layer, lambda: layer(x).exp().sum(), 'fp32')
    assert (step.weights, step.trained, step.optimizer) == (128, 128, 256)
    # The result of exp, which its gradient needs, and the sum; the layer needs what was there.
    assert step.kept == 16 * 4 * 4 + 4
    products = [each.flops for each in step.forward if each.flops]
    assert products == [2 * 16 * 8 * 4]
    assert [each.flops for each in step.backward if each.flops] == [2 * 16 * 8 * 4]
    assert step.memory(8) - step.memory(1) == 128


@pytest.mark.parametrize('with_cp', [False, True])
def test_fake_backbone_costs_what_a_real_one_does(with_cp):
    settings = dict(SMALL, with_cp=with_cp, drop_path_rate=0.0)
    model = FocalTransformer(**settings).train()
    images = torch.rand(1, 3, 96, 128)

    def loss():
        return torch.stack([out.float().exp().sum() for out in model(images)]).sum()

    loss()  # tables of keys are made once and kept
    real = cost_of_step(model, loss, 'fp32')
    fake = backbone_cost(settings, 96, 128)
    assert fake.weights == real.weights and fake.trained == real.trained
    assert fake.kept == pytest.approx(real.kept, rel=0.01)
    # Nothing counts that only fake tensors do, such as being asked for their device.
    assert len(fake.forward) == len(real.forward) and len(fake.backward) == len(real.backward)
    # Attention's own work space is inside of an operator that fake tensors do not enter.
    assert fake.peak == pytest.approx(real.peak, rel=0.15)


def test_mixed_precision_and_checkpoints_keep_less():
    plain, amp, both = (
        backbone_cost(dict(SMALL, with_cp=with_cp), 128, 128, precision=precision)
        for precision, with_cp in (('fp32', False), ('amp', False), ('amp', True))
    )
    copies = amp.trained / 2  # of weights, in 16 bit
    assert 0.5 * plain.kept < amp.kept - copies < 0.75 * plain.kept
    assert both.kept - copies < 0.5 * (amp.kept - copies)
    assert any(each.narrow for each in amp.forward)
    assert not any(each.narrow for each in plain.forward)
    count = [sum(each.flops for each in step.backward) for step in (amp, both)]
    forward = sum(each.flops for each in amp.forward)
    # Attention's tokens are computed again, its products with the keys are not counted twice over.
    assert count[1] == pytest.approx(count[0] + forward, rel=0.1)


def real_step(config, height, width):
    """A training step of a whole model that is computed, with seven objects in each image."""
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, DefaultScope

    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = revert_sync_batchnorm(MODELS.build(config.model)).train()
    if config.default_scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        shapes = [(3, height, width)] * 2
        data = demo_mm_inputs(2, shapes, num_items=[7, 7], num_classes=6, with_mask=True)
        data = model.data_preprocessor(data, training=True)
        images, samples = data['inputs'], data['data_samples']
    else:
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        images = torch.rand(2, 3, height, width)
        labels = torch.randint(model.decode_head.num_classes, (2, 1, height, width))
        samples = [SegDataSample(gt_sem_seg=PixelData(data=each)) for each in labels]

    def loss():
        return model.parse_losses(model.loss(images, samples))[0]

    return cost_of_step(model, loss, 'fp32')


@pytest.mark.parametrize(
    'name', ['mmdet/focal_maskrcnn_shapes.py', 'mmseg/focal_upernet_shapes.py']
)
def test_whole_model_costs_about_what_a_real_step_does(name):
    config = load_config(ROOT / 'configs' / name)
    import_packages(config)
    real = real_step(config, 192, 256)
    fake = model_cost(config, 192, 256, batch=2)
    assert fake.weights == real.weights
    assert fake.kept == pytest.approx(real.kept, rel=0.2)
    assert fake.memory() == pytest.approx(real.memory(), rel=0.2)


def test_time_and_exchange_by_hand():
    gpu = scaling.Gpu(flops=100.0, bandwidth=10.0, memory=1000.0, link=4.0)
    step = StepCost(
        weights=40,
        trained=40,
        kept=0,
        peak=0,
        forward=(Operation(300, 10, True), Operation(0, 50, False)),  # 3 and 5 seconds
        backward=(Operation(100, 20, False),),  # 8: not in 16 bit
    )
    assumed = scaling.Assumptions(over_least=2.0, network=1.0, hidden=0.5)
    alone = scaling.predict(step, 3, gpu, 1, assumed)
    assert (alone.seconds, alone.exchange) == (32.0, 0.0)
    assert alone.images_per_second == 3 / 32
    # 2 * 7 / 8 * 40 bytes at 4 a second are hidden, at 1 a second they are not.
    together = scaling.predict(step, 3, gpu, 8, assumed)
    assert together.exchange == 17.5 and together.seconds == 32.0 + 17.5 - 8.0
    assert scaling.predict(step, 3, gpu, 16, assumed).exchange == 75.0


def test_largest_batch_grows_with_memory_and_smaller_steps():
    name, size = 'configs/mmdet/focal_retinanet_shapes.py', (96, 96)
    reserved = scaling.ASSUMED.reserved
    small, large = (
        {mode: scaling.largest_batch(name, size, reserved + room, mode) for mode in scaling.MODES}
        for room in (100 * 2**20, 200 * 2**20)
    )
    for mode in scaling.MODES:
        assert 0 < small[mode] < large[mode]
    assert small['float32'] < small['AMP'] < small['AMP, `with_cp`']
    for mode, batch in small.items():
        usable, held = 0.8 * 100 * 2**20, scaling.cost(name, size, batch, **scaling.MODES[mode])
        assert 0.9 * usable < held.memory() <= usable
    assert scaling.largest_batch(name, size, 2**20, 'AMP') == 0


def test_page_has_every_table_as_it_is_counted(monkeypatch):
    text = PAGE.read_text()
    marks = scaling.MARK.findall(text)
    assert [name for _, name, _ in marks] == list(dict.fromkeys(name for _, name, _ in marks))
    assert {name for _, name, _ in marks} == set(scaling.TABLES)
    # All rows take minutes. The first of those below have to be on the page as they are.
    monkeypatch.setattr(scaling, 'PUBLISHED', dict(list(scaling.PUBLISHED.items())[:1]))
    upernet = 'configs/mmseg/focal_upernet_160k.py'
    monkeypatch.setattr(scaling, 'MODELS', {upernet: scaling.MODELS[upernet]})
    for name in ('check', 'models', 'one_gpu'):
        *_, row = scaling.TABLES[name]().splitlines()
        assert row in text.splitlines(), 'Run: python -m tools.dev.scaling'


def test_unknown_mark_is_an_error():
    with pytest.raises(KeyError, match='prices'):
        scaling.page('<!-- table: prices -->\n<!-- end -->')
