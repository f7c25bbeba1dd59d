"""Parameters and FLOPs against counting by hand."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmfocal import FocalTransformer, FocalTransformerFast
from mmfocal.ops import FLOP_HANDLES
from tools.dev.costs.complexity import (
    build_without_weights,
    count_flops,
    count_parameters,
    detector_flops,
)

WINDOWS = {FocalTransformer: dict(focal_windows=3), FocalTransformerFast: dict(top_k=40)}
CONFIGS = Path(__file__).parents[1] / 'configs/mmdet'


def small_backbone(**settings):
    arch = dict(embed_dims=4, depths=(1,), num_heads=(2,))
    return FocalTransformer(arch, out_indices=(0,), focal_stages=(0,), **settings)


def hand_count(height, width, dim=4):
    """Multiplications of ``small_backbone`` with one ring and 3 x 3 pooled cells a window.

    Args:
        height: of the map in tokens, a multiple of 7.
        width: in the same unit.
    """
    tokens, windows = height * width, height * width // 49
    keys = 49 + 120 + 9  # own, ring, and 3 x 3 cells of 7 x 7 tokens
    patches = tokens * dim * 3 * 4 * 4
    pooling = windows * dim * 49
    qkv = (tokens + windows) * dim * 3 * dim
    attention = 2 * tokens * keys * dim
    projection = tokens * dim * dim
    mlp = 2 * tokens * dim * 4 * dim
    return patches + pooling + qkv + attention + projection + mlp


@pytest.mark.parametrize('backend', ['reference', 'gather_sdpa'])
@pytest.mark.parametrize('size', [(7, 7), (14, 21)])
def test_backbone_costs_what_counting_by_hand_says(backend, size):
    model = small_backbone(focal_windows=3, attention_backend=backend).eval()
    image = torch.rand(1, 3, 4 * size[0], 4 * size[1])
    flops, (out,) = count_flops(model, image)
    assert out.shape[-2:] == size
    assert flops == hand_count(*size)
    with torch.device('meta'):
        empty = small_backbone(focal_windows=3).eval()
    assert count_flops(empty, image.to('meta'))[0] == flops


def test_layers_by_hand():
    from mmcv.ops import DeformConv2d, ModulatedDeformConv2d

    x = torch.rand(2, 6, 8, 9)
    conv = nn.Conv2d(6, 10, 3, padding=1, groups=2)
    assert count_flops(conv, x)[0] == 2 * 8 * 9 * 10 * 3 * 9
    offset, mask = torch.zeros(2, 18, 4, 5), torch.ones(2, 9, 4, 5)
    deform = DeformConv2d(6, 10, 3, stride=2, padding=1)
    assert count_flops(deform, x, offset)[0] == 2 * 4 * 5 * 10 * 6 * 9
    modulated = ModulatedDeformConv2d(6, 10, 3, stride=2, padding=1)
    assert count_flops(modulated, x, offset, mask)[0] == 2 * 4 * 5 * 10 * 6 * 9
    # Afterwards they sample again.
    torch.testing.assert_close(
        deform(x, offset + 0.5), deform(x.roll(0), offset + 0.5), rtol=0, atol=0
    )
    assert not torch.equal(deform(x, offset + 0.5), deform(x, offset))
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    tokens = torch.rand(3, 5, 8)
    expected = 3 * 5 * 8 * 8 * 4 + 2 * 3 * 5 * 5 * 8
    assert count_flops(attention, tokens, tokens, tokens)[0] == expected


def test_deformable_attention_by_hand():
    from mmcv.ops import MultiScaleDeformableAttention

    attention = MultiScaleDeformableAttention(16, num_heads=4, num_levels=2, num_points=3)
    queries, values = torch.rand(5, 2, 16), torch.rand(20, 2, 16)
    projections = 5 * 2 * 16 * (4 * 2 * 3 * (2 + 1) + 16) + 20 * 2 * 16 * 16
    weighted = 5 * 2 * 4 * 2 * 3 * (16 // 4)
    flops, out = count_flops(lambda: attention(queries, value=values))
    assert flops == projections + weighted and out.shape == queries.shape


@pytest.mark.parametrize('name', ['focal_dino_12e', 'focal_mask2former-panoptic_50e'])
def test_heads_are_counted_as_they_run(name):
    """On real tensors PyTorch sees all but the sums of samples, which mmcv makes elementwise."""
    from mmcv.ops import MultiScaleDeformableAttention
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    config = Config.fromfile(CONFIGS / f'{name}.py').model
    config.backbone.update(init_cfg=None, focal_windows=3)
    if 'dino' in name:
        config.num_queries, config.encoder.num_layers, config.decoder.num_layers = 50, 1, 2
    size, sums = (128, 192), []
    expected = sum(detector_flops(build_without_weights(config), *size).values())
    model = MODELS.build(config).eval()
    for part in model.modules():
        if isinstance(part, MultiScaleDeformableAttention):
            part.register_forward_hook(
                lambda part, _, out: sums.append(out.numel() * part.num_levels * part.num_points)
            )
    sample = DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=size))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model._forward(torch.rand(1, 3, *size), [sample])
    assert sums and counter.get_total_flops() // 2 + sum(sums) == expected


def test_counting_restores_what_it_changes_when_a_model_fails():
    from mmcv.ops import DeformConv2d

    before = DeformConv2d.forward, torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError):
        count_flops(nn.Linear(3, 4), torch.rand(2, 5))
    assert (DeformConv2d.forward, torch.backends.mha.get_fastpath_enabled()) == before


def test_parameters_by_hand():
    linear = nn.Linear(3, 4)
    linear.bias.requires_grad = False
    assert count_parameters(nn.Sequential(linear, nn.BatchNorm1d(4))) == 3 * 4 + 4 + 2 * 4


def test_regions_and_masks_of_a_cascade_by_hand():
    config = Config.fromfile(CONFIGS / 'focal_cascade-maskrcnn_shapes.py').model
    flops = detector_flops(build_without_weights(config), 128, 128)
    # Regions of 7 x 7 with 48 channels: two convolutions, one layer to 256, classes and box.
    region = 2 * 49 * 48 * 48 * 9 + 49 * 48 * 256 + 256 * (7 + 4)
    assert flops['bbox_head'] == 3 * 100 * region
    # Masks of 14 x 14: two convolutions, one up to 28 x 28, and a mask for all classes.
    mask = 2 * 196 * 48 * 48 * 9 + 196 * 48 * 48 * 4 + 784 * 48
    assert flops['mask_head'] == 3 * 50 * mask
    assert set(flops) == {'backbone', 'neck', 'rpn_head', 'bbox_head', 'mask_head'}


def test_masks_of_a_hybrid_cascade_by_hand():
    config = Config.fromfile(CONFIGS / 'focal_htcpp_shapes.py').model
    flops = detector_flops(build_without_weights(config), 128, 128)
    # As above, but one mask for any class; the second and third stage also read the features of
    # the stage before, through a convolution of one cell.
    mask = 2 * 196 * 48 * 48 * 9 + 196 * 48 * 48 * 4 + 784 * 48
    assert flops['mask_head'] == 50 * (3 * mask + 2 * 196 * 48 * 48)
    assert config.test_cfg.rcnn.max_per_img == 50 and flops['semantic_head'] > 0


@pytest.mark.parametrize('family', ['retinanet', 'reppointsv2', 'dyhead'])
def test_counting_without_weights_is_counting_with_them(family):
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    import mmfocal.detection  # noqa: F401

    init_default_scope('mmdet')
    config = Config.fromfile(CONFIGS / f'focal_{family}_shapes.py').model
    model = MODELS.build(config).eval()
    flops, _ = count_flops(model, torch.rand(1, 3, 64, 96))
    empty = build_without_weights(config)
    assert flops == sum(detector_flops(empty, 64, 96).values())
    assert count_parameters(empty) == count_parameters(model)


@pytest.mark.parametrize('kind', [FocalTransformer, FocalTransformerFast])
def test_tracing_counters_count_attention_with_our_handles(kind):
    analysis = pytest.importorskip('mmengine.analysis')
    arch = dict(embed_dims=8, depths=(2, 1), num_heads=(1, 2))
    model = kind(
        arch, out_indices=(0, 1), focal_stages=(0, 1), use_conv_embed=False, **WINDOWS[kind]
    )
    image = torch.rand(2, 3, 130, 90)
    counter = analysis.FlopAnalyzer(model.eval(), image).unsupported_ops_warnings(False)
    found = counter.set_op_handle(**FLOP_HANDLES).total()
    products = found - counter.by_operator()['layer_norm']
    assert products == pytest.approx(count_flops(model, image)[0], rel=1e-4)
    assert counter.by_operator()['focal_attention'] > 0.1 * products
