"""Operators that --deterministic replaces on GPUs. The CPU stands for one where there is none."""

import importlib
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import deform_conv2d, modulated_deform_conv2d, roi_align, roi_pool
from mmengine.config import Config

from mmfocal.engine import determinism, settings
from mmfocal.engine.bfloat16 import _install_float32_operators
from mmfocal.engine.determinism import deform_conv_gradient, roi_align_gradient
from mmfocal.utils.errors import UserError

# Overlapping, small, empty, across the border and outside.
BOXES = [
    [0, 3, 2, 40, 60],
    [0, 5, 4, 38, 57],
    [1, 3.3, 2.2, 5.1, 3.9],
    [1, 20, 20, 20, 30],
    [0, -30, -20, 15, 12],
    [1, 70, 50, 400, 90],
    [0, 500, 500, 600, 600],
]


@pytest.fixture
def deterministic(monkeypatch, request):
    """Replaced operators in use, on the CPU too; gives what is logged."""
    lines = []
    monkeypatch.setattr(determinism, 'print_log', lambda text, logger: lines.append(text))
    monkeypatch.setattr(determinism, '_is_on_gpu', lambda tensor: True)
    torch.use_deterministic_algorithms(True)
    determinism.install_determinism()
    yield lines
    determinism.remove_determinism()
    torch.use_deterministic_algorithms(False)


def boxes(**options):
    return torch.tensor(BOXES, **options)


def deformable(modulated, groups=1, deform_groups=1, more=0, device='cpu', **options):
    """A deformable convolution of a kernel that is not square, and its inputs.

    With ``more``, offsets and masks are larger than the output, as in DyHead.
    """
    channels, outputs, kernel = 4, 6, (3, 2)
    settings = dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2))
    inputs = torch.randn(2, channels, 9, 11, device=device, **options)
    weight = torch.randn(outputs, channels // groups, *kernel, device=device, **options)
    size = F.conv2d(inputs, weight, groups=groups, **settings).shape[-2:]
    size = [each + more for each in size]
    taps = deform_groups * kernel[0] * kernel[1]
    offset = 4 * torch.randn(2, 2 * taps, *size, device=device, **options)
    positional = (*settings.values(), groups, deform_groups)
    if not modulated:
        return [inputs, offset, weight], lambda *args: deform_conv2d(*args, *positional)
    mask = torch.rand(2, taps, *size, device=device, **options)
    bias = torch.randn(outputs, device=device, **options)
    given = [inputs, offset, mask, weight, bias]
    return given, lambda *args: modulated_deform_conv2d(*args, *positional)


def run(function, inputs, seed=0):
    """The output, and the gradient of each input for a random one of the output."""
    inputs = [each.detach().requires_grad_() for each in inputs]
    output = function(*inputs)
    torch.manual_seed(seed)
    output.backward(torch.randn(output.shape).to(output))  # the same ones in all formats
    return [output.detach(), *(each.grad for each in inputs)]


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 1, 3])
@pytest.mark.parametrize('size', [1, (3, 5)])
def test_gradient_of_roi_align_is_that_of_mmcv(aligned, sampling_ratio, size, monkeypatch):
    monkeypatch.setattr(determinism, 'MAX_ELEMENTS', 500)  # a few boxes at a time
    rois = boxes(dtype=torch.float64)
    x = torch.randn(2, 3, 17, 23, dtype=torch.float64, requires_grad=True)
    output = roi_align(x, rois, size, 0.375, sampling_ratio, 'avg', aligned)
    grad = torch.randn_like(output)
    output.backward(grad)
    found = roi_align_gradient(grad, rois, x.shape, 0.375, sampling_ratio, aligned)
    torch.testing.assert_close(found, x.grad)


@pytest.mark.parametrize(
    'box', [[], [0, 30, 30, 10, 20], [0, 0, 0, float('nan'), 9], [0, 0, float('-inf'), 9, 9]]
)
def test_boxes_that_are_none_get_no_gradient(box):
    rois = torch.tensor(box).view(-1, 5)
    grad = torch.ones(len(rois), 3, 7, 7)
    found = roi_align_gradient(grad, rois, (2, 3, 8, 9), 1.0, 0, aligned=True)
    assert found.shape == (2, 3, 8, 9) and not found.any()


@pytest.mark.parametrize('groups, deform_groups', [(1, 1), (2, 1), (1, 2), (2, 4)])
@pytest.mark.parametrize('modulated, more', [(False, 0), (True, 0), (True, 3)])
def test_gradient_of_deformable_convolutions_is_that_of_mmcv(
    modulated, more, groups, deform_groups
):
    inputs, function = deformable(modulated, groups, deform_groups, more, dtype=torch.float64)
    output, expected, *_ = run(function, inputs)
    torch.manual_seed(0)
    found = deform_conv_gradient(
        torch.randn(output.shape).to(output),
        inputs[1],
        inputs[2] if modulated else None,
        inputs[3 if modulated else 2],
        inputs[0].shape,
        *((2, 1), (1, 2), (1, 2)),
        groups,
        deform_groups,
    )
    torch.testing.assert_close(found, expected)


CASES = {
    'RoIAlign': ([torch.randn(2, 3, 17, 23)], lambda x: roi_align(x, boxes().to(x), 7, 0.375)),
    'DeformConv2d': deformable(modulated=False, deform_groups=2),
    'ModulatedDeformConv2d': deformable(modulated=True, groups=2),
    'adaptive_avg_pool2d': (
        [torch.randn(2, 3, 14, 11)],
        torch.nn.AdaptiveAvgPool2d((6, 3)),
    ),
    'bicubic interpolation': (
        [torch.randn(1, 3, 14, 11)],
        lambda x: F.interpolate(input=x, size=(9, 20), mode='bicubic', align_corners=False),
    ),
}


@pytest.mark.parametrize('name', CASES)
def test_replaced_operators_give_the_same_and_one_line_in_the_log(deterministic, name):
    inputs, function = CASES[name]
    found = [run(function, inputs), run(function, inputs)]
    determinism.remove_determinism()
    expected = run(function, inputs)
    torch.testing.assert_close(found[0], expected)
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)
    (line,) = deterministic
    assert line.startswith(f'--deterministic: {name} ')


@pytest.mark.parametrize('name', ['RoIAlign', 'DeformConv2d', 'ModulatedDeformConv2d'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_gradients_of_half_precision(deterministic, name, dtype):
    """Under autocast, with weights in float32, as --precision fp16 and bf16 train."""
    inputs, function = CASES[name]
    few = [each.to(dtype) if number < 2 else each for number, each in enumerate(inputs)]
    expected = run(function, [each.float() for each in few])
    if dtype == torch.bfloat16:  # which mmcv's operators do not know
        determinism.remove_determinism()
        _install_float32_operators()
        determinism.install_determinism()
    with torch.autocast('cpu', dtype=dtype):
        found = run(function, few)
    assert [each.dtype for each in found[1:]] == [each.dtype for each in few]
    for each, want in zip(found, expected, strict=True):
        scale = want.abs().max()
        assert (each.float() - want).abs().max() < 0.02 * scale
    assert any(name in line for line in deterministic)


def test_single_mean_and_other_modes_stay_on_the_gpu(deterministic):
    x = torch.randn(1, 3, 4, 5, requires_grad=True)
    torch.nn.AdaptiveAvgPool2d(1)(x), F.adaptive_avg_pool2d(x, (1, 1))
    F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)
    F.adaptive_avg_pool2d(x.detach(), 2)
    with torch.no_grad():
        F.adaptive_avg_pool2d(x, 2)
    assert deterministic == []


def test_counts_of_classes(deterministic):
    labels = torch.tensor([0.0, 3, 3, 1])
    assert torch.histc(labels, bins=4, min=0, max=3).tolist() == [1, 1, 0, 2]
    assert deterministic == ['--deterministic: histc runs on the CPU.']


@pytest.mark.parametrize(
    'name, function',
    [
        ('RoIPool', lambda x: roi_pool(x, boxes(), 7, 0.375)),
        ('RoIAlign with', lambda x: roi_align(x, boxes(), 7, 0.375, 2, 'max')),
    ],
)
def test_other_operators_end_with_their_name(deterministic, monkeypatch, name, function):
    # Its forward pass is deterministic, and not there on a CPU.
    extension = SimpleNamespace(roi_pool_forward=lambda *args, **kwargs: None)
    module = importlib.import_module('mmcv.ops.roi_pool')
    monkeypatch.setattr(module, 'ext_module', extension)
    output = function(torch.randn(2, 3, 17, 23, requires_grad=True))
    with pytest.raises(UserError, match=f"mmcv's {name}.* has no deterministic gradient on CUDA"):
        output.sum().backward()


def replaced():
    names = [*determinism.REFUSED.items(), ('roi_align', 'RoIAlignFunction')]
    owners = [getattr(importlib.import_module(f'mmcv.ops.{at}'), name) for at, name in names]
    return [
        *(vars(owner)['backward'] for owner in owners),
        *(F.adaptive_avg_pool2d, F.interpolate, torch.histc),
    ]


def test_all_is_as_before_after_removal():
    before = replaced()
    determinism.install_determinism()
    determinism.install_determinism()
    assert not any(each is other for each, other in zip(before, replaced(), strict=True))
    determinism.remove_determinism()
    assert all(each is other for each, other in zip(before, replaced(), strict=True))


@pytest.mark.parametrize('asked', [True, False])
@pytest.mark.parametrize('gpu', [True, False])
def test_operators_are_replaced_on_request_and_a_gpu(monkeypatch, asked, gpu):
    """Replaced ones do as before on a CPU, and without deterministic algorithms."""
    installed = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    monkeypatch.setattr(settings, 'install_determinism', lambda: installed.append(1))
    monkeypatch.setattr(settings, 'import_packages', lambda cfg: None)
    runner = SimpleNamespace(register_hook=lambda hook: None, model=None)
    monkeypatch.setattr(settings.Runner, 'from_cfg', lambda cfg: runner)
    cfg = Config(dict())
    settings.set_seed(cfg, seed=1, deterministic=asked)
    settings.build_runner(cfg)
    assert installed == [1] * (asked and gpu)


@pytest.mark.parametrize('enabled, on_gpu', [(True, False), (False, True)])
def test_replaced_operators_need_both(deterministic, monkeypatch, enabled, on_gpu):
    monkeypatch.setattr(determinism, '_is_on_gpu', lambda tensor: on_gpu)
    torch.use_deterministic_algorithms(enabled)
    for name in ('RoIAlign', 'adaptive_avg_pool2d'):
        inputs, function = CASES[name]
        run(function, inputs)
    assert deterministic == []


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('name', ['RoIAlign', 'DeformConv2d', 'ModulatedDeformConv2d'])
def test_gradients_on_a_gpu_are_the_same_in_every_run(name, dtype, monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    if name == 'RoIAlign':
        corners = 20 * torch.rand(512, 2, device='cuda')
        rois = torch.cat([torch.zeros(512, 1, device='cuda'), corners, corners + 100], 1)
        rois = rois.to(dtype)
        inputs = [torch.randn(1, 64, 64, 64, device='cuda', dtype=dtype)]

        def function(x):
            return roi_align(x, rois.to(x), 7, 0.5)
    else:
        inputs, function = deformable(name != 'DeformConv2d', device='cuda', dtype=dtype)
    # In float16, mmcv itself rounds positions and adds up to a thousand numbers one by one.
    plain = run(function, [each.float() for each in inputs])
    torch.use_deterministic_algorithms(True)
    determinism.install_determinism()
    try:
        with torch.autocast('cuda', dtype=torch.float16, enabled=dtype == torch.float16):
            first, *others = (run(function, inputs) for _ in range(5))
    finally:
        determinism.remove_determinism()
        torch.use_deterministic_algorithms(False)
    for other in others:
        assert all(map(torch.equal, first, other))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    for found, expected in zip(first, plain, strict=True):
        assert (found.float() - expected).abs().max() < tolerance * expected.abs().max()
