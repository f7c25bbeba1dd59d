"""The backbone in tools that count it, explain it and compute it elsewhere."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mmfocal import FocalTransformer, FocalTransformerFast
from mmfocal.export import graph_of, write_onnx
from mmfocal.export.parity import compare, relative_difference, spread_scores
from mmfocal.ops import FLOP_HANDLES
from tools.dev.costs.complexity import count_flops, count_parameters

WHY = '`make clients` installs it'
# Rounding of sums over padded windows.
ROUNDING = 1e-5


@pytest.fixture(scope='module')
def pixels():
    return torch.rand(1, 3, 224, 224)


@pytest.fixture(scope='module', params=[FocalTransformer, FocalTransformerFast])
def backbone(request):
    return request.param('tiny').eval()


@pytest.fixture(scope='module')
def counted(backbone, pixels):
    """Our count, in multiplications with addition."""
    return count_flops(backbone, pixels)[0]


def test_fvcore_counts_as_we_do_with_handles(backbone, pixels, counted):
    nn_ = pytest.importorskip('fvcore.nn', reason=WHY)
    count = nn_.FlopCountAnalysis(backbone, pixels).unsupported_ops_warnings(False)
    assert count.total() < 0.93 * counted  # as it comes, attention is missing
    count = nn_.FlopCountAnalysis(backbone, pixels).unsupported_ops_warnings(False)
    count.set_op_handle(**FLOP_HANDLES)
    products = count.total() - count.by_operator()['layer_norm']
    assert products == pytest.approx(counted, rel=ROUNDING)
    parameters = nn_.parameter_count(backbone)['']
    assert parameters == count_parameters(backbone)


def test_thop_leaves_attention_out(backbone, pixels, counted):
    thop = pytest.importorskip('thop', reason=WHY)
    found, _ = thop.profile(copy.deepcopy(backbone), (pixels,), verbose=False)
    assert 0.8 * counted < found < 0.93 * counted


def test_torchinfo_counts_weights_but_few_products(backbone, pixels, counted):
    torchinfo = pytest.importorskip('torchinfo', reason=WHY)
    found = torchinfo.summary(backbone, input_data=pixels, verbose=0)
    assert found.total_params == count_parameters(backbone)
    assert found.total_mult_adds < 0.93 * counted


class Classifier(nn.Module):
    """The mean of the last map and a linear layer, as of ImageNet models."""

    def __init__(self):
        super().__init__()
        arch = dict(embed_dims=16, depths=(1, 1), num_heads=(1, 2))
        settings = dict(focal_windows=(5, 3), focal_stages=(0, 1), out_indices=(1,))
        self.backbone = FocalTransformer(arch, **settings)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.backbone(x)[-1].mean((2, 3)))


def test_grad_cam_with_maps_as_channels_first():
    cam = pytest.importorskip('pytorch_grad_cam', reason=WHY)
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, pixels = Classifier().eval(), torch.rand(2, 3, 90, 130)
    norm = model.backbone.get_submodule(model.backbone.feature_info[-1]['module'])
    with cam.GradCAM(
        model, [norm], reshape_transform=lambda map_: map_.permute(0, 3, 1, 2)
    ) as grad_cam:
        heat = grad_cam(pixels, [ClassifierOutputTarget(3)] * 2)
    assert heat.shape == (2, 90, 130) and 0 <= heat.min() < heat.max() <= 1
    # By its definition: channels weighted by the mean of their gradients, cut off below 0.
    map_ = model.backbone(pixels)[-1]
    (gradient,) = torch.autograd.grad(
        model.head(map_.mean((2, 3)))[:, 3].sum(), map_, retain_graph=True
    )
    expected = (map_ * gradient.mean((2, 3), keepdim=True)).sum(1).relu()[0].detach().numpy()
    assert np.corrcoef(_resized(heat[0], expected.shape).ravel(), expected.ravel())[0, 1] > 0.9


def _resized(heat, size):
    return nn.functional.interpolate(torch.from_numpy(heat)[None, None], size, mode='area').numpy()


def test_captum_integrates_gradients_of_the_backbone():
    attr = pytest.importorskip('captum.attr', reason=WHY)
    model = Classifier().double().eval()
    pixels = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    found, error = attr.IntegratedGradients(model).attribute(
        pixels, target=1, n_steps=50, internal_batch_size=50, return_convergence_delta=True
    )
    change = model(pixels) - model(torch.zeros_like(pixels))
    assert found.sum().item() == pytest.approx(change[0, 1].item(), abs=0.02)
    assert abs(error.item()) < 0.02


def openvino_runner(path):
    openvino = pytest.importorskip('openvino', reason=WHY)
    core = openvino.Core()
    exact = {'INFERENCE_PRECISION_HINT': 'f32'}
    compiled = core.compile_model(core.read_model(path), 'CPU', exact)
    return lambda image: list(compiled(image.numpy()).values())


def test_openvino_computes_the_exported_backbone(tmp_path):
    model = Classifier().backbone.eval()
    graph = graph_of(model)
    write_onnx(graph, tmp_path / 'backbone.onnx')
    run = openvino_runner(tmp_path / 'backbone.onnx')
    parity = compare(graph, model, run, [(1, 64, 64), (2, 33, 47)])
    assert max(parity.worst.values()) < 1e-5


def test_openvino_finds_what_an_exported_detector_finds(run_of, tmp_path):
    from mmdet.apis import init_detector

    config, checkpoint = map(str, run_of('focal_retinanet_shapes'))
    model = init_detector(config, checkpoint, device='cpu')
    graph = graph_of(model)
    spread_scores(graph, model)
    write_onnx(graph, tmp_path / 'model.onnx')
    run = openvino_runner(tmp_path / 'model.onnx')
    parity = compare(graph, model, run, [(1, 96, 128)])
    assert parity.detections > 10
    assert not parity.beyond(), '\n'.join(parity.lines())


def test_onnxslim_keeps_what_a_file_computes(tmp_path):
    onnxslim = pytest.importorskip('onnxslim', reason=WHY)
    from mmfocal.export.parity import run_onnx

    model = Classifier().backbone.eval()
    write_onnx(graph_of(model), tmp_path / 'backbone.onnx')
    onnxslim.slim(str(tmp_path / 'backbone.onnx'), str(tmp_path / 'slim.onnx'))
    image = torch.rand(1, 3, 70, 90)
    for got, expected in zip(run_onnx(tmp_path / 'slim.onnx')(image), model(image), strict=True):
        assert relative_difference(got, expected.detach()) < 1e-5
