"""Exported models against what they came from: modules, ONNX files, programs of torch.export."""

import numpy as np
import pytest
import torch
from torch import nn

from mmfocal import FocalTransformer, FocalTransformerFast
from mmfocal.errors import UserError
from mmfocal.export import BackboneGraph, exportable, write_onnx, write_torch
from mmfocal.export.parity import SIZES, Difference, onnx_session

# Rounding of float32 through a few blocks, relative to the largest value of a map.
TOLERANCE = 5e-6


def small_backbone(**settings) -> FocalTransformer:
    """Two stages with weights that make every part of the attention count."""
    arch = dict(embed_dims=16, depths=(2, 1), num_heads=(1, 2))
    settings = dict(focal_windows=(5, 3), out_indices=(0, 1), focal_stages=(0, 1), **settings)
    model = FocalTransformer(arch, **settings).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def worst_difference(model: nn.Module, run, sizes) -> float:
    worst = 0.0
    for size in sizes:
        image = BackboneGraph.image(BackboneGraph, *size)
        with torch.no_grad():
            maps = model(image)
        for got, expected in zip(run(image), maps, strict=True):
            worst = max(worst, Difference.between(got, expected).relative)
    return worst


def run_onnx(path):
    session = onnx_session(path)
    return lambda image: session.run(None, {'image': image.numpy()})


@pytest.mark.parametrize(
    'settings',
    [
        dict(),
        dict(focal_levels=(3, 2), use_conv_embed=True, use_pre_norm=True, qkv_bias=False),
        dict(border='mask', focal_levels=(2, 3), layer_scale_init_value=0.5),
        dict(use_shift=True, pool_method='conv', qk_scale=0.3),
        dict(use_shift=True, border='mask', downsample='merging', pool_method='max'),
        dict(expand_layer='even', window_size=(5, 6), pool_method='mean', focal_levels=3),
        dict(pool_method='none', expand_sizes=0, with_cp=True),
    ],
    ids=lambda settings: ','.join(settings) or 'defaults',
)
def test_plain_operations_equal_the_backbone_at_all_sizes(settings):
    model = small_backbone(**settings)
    plain = exportable(model)
    run = lambda image: [out.numpy() for out in plain(image)]  # noqa: E731
    assert worst_difference(model, run, SIZES) < TOLERANCE


def test_one_onnx_file_serves_all_sizes_and_batches(tmp_path):
    pytest.importorskip('onnxruntime', reason='needs onnxruntime')
    import onnx

    model = small_backbone(
        use_shift=True, border='mask', downsample='merging', focal_levels=(3, 2)
    )
    write_onnx(BackboneGraph(model), tmp_path / 'backbone.onnx')
    file = onnx.load(tmp_path / 'backbone.onnx')
    onnx.checker.check_model(file, full_check=True)
    assert {each.domain: each.version for each in file.opset_import} == {'': 25}
    (image,) = file.graph.input
    dims = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert dims == ['batch', 3, 'height', 'width']
    assert [output.name for output in file.graph.output] == ['stride4', 'stride8']
    assert len(SIZES) == 20
    assert worst_difference(model, run_onnx(tmp_path / 'backbone.onnx'), SIZES) < TOLERANCE


def test_program_of_torch_export_serves_sizes_of_several_windows(tmp_path):
    model = small_backbone(use_shift=True)
    write_torch(BackboneGraph(model), tmp_path / 'backbone.pt2')
    program = torch.export.load(tmp_path / 'backbone.pt2').module()
    sizes = [size for size in SIZES if min(size[1:]) > 56]
    run = lambda image: [out.detach().numpy() for out in program(image)]  # noqa: E731
    assert len(sizes) > 12
    assert worst_difference(model, run, sizes) < TOLERANCE
    with pytest.raises(AssertionError, match='Guard failed'):
        program(torch.rand(1, 3, 56, 200))


def test_what_cannot_be_exported_says_why():
    with pytest.raises(UserError, match=r'use_abs_pos_embed'):
        exportable(small_backbone(use_abs_pos_embed=True))
    fast = FocalTransformerFast(
        dict(embed_dims=16, depths=(1,), num_heads=(1,)), out_indices=(0,), focal_stages=(0,)
    )
    with pytest.raises(UserError, match='FocalTransformerFast'):
        exportable(fast)


def test_exporting_leaves_the_model_as_it_is():
    model = small_backbone().train()
    before = {name: type(module) for name, module in model.named_modules()}
    exportable(model)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_differences_see_shapes_and_values():
    assert Difference.between(np.array([1.0, 4.5]), torch.tensor([1.0, 5.0])) == (0.5, 0.1)
    with pytest.raises(ValueError, match='shape'):
        Difference.between(np.zeros(2), torch.zeros(3))
