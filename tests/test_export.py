"""Exported models against what they came from: modules, ONNX files, programs of torch.export."""

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmfocal import FocalTransformer, FocalTransformerFast
from mmfocal.engine import load_config
from mmfocal.errors import UserError
from mmfocal.export import BackboneGraph, exportable, graph_of, write_onnx, write_torch
from mmfocal.export.parity import (
    compare,
    relative_difference,
    run_onnx,
    run_torch,
    spread_scores,
)

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


def run_plain(graph):
    def run(image):
        with torch.no_grad():
            return graph(image)

    return run


def small_detector(kind: str) -> nn.Module:
    """A detector of one stage of two blocks and one of one, with something to find."""
    init_default_scope('mmdet')
    cfg = load_config(
        f'focal_{kind}_shapes',
        {
            'model.backbone.arch': dict(embed_dims=16, depths=(2, 1), num_heads=(1, 2)),
            'model.backbone.window_size': (8, 7),
            'model.backbone.expand_sizes': 3,
            'model.backbone.focal_levels': (2, 1),
            'model.backbone.focal_windows': 3,
            'model.backbone.focal_stages': (0, 1),
            'model.backbone.out_indices': (0, 1),
            'model.neck.in_channels': [16, 32],
        },
    )
    return MODELS.build(cfg.model).eval()


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
    graph = BackboneGraph(model)
    assert max(compare(graph, model, run_plain(graph)).worst.values()) < TOLERANCE


def test_one_onnx_file_serves_all_sizes_and_batches(tmp_path):
    pytest.importorskip('onnxruntime', reason='needs onnxruntime')
    import onnx

    model = small_backbone(
        use_shift=True, border='mask', downsample='merging', focal_levels=(3, 2)
    )
    graph = BackboneGraph(model)
    write_onnx(graph, tmp_path / 'backbone.onnx')
    file = onnx.load(tmp_path / 'backbone.onnx')
    onnx.checker.check_model(file, full_check=True)
    assert {each.domain: each.version for each in file.opset_import} == {'': 25}
    (image,) = file.graph.input
    dims = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert dims == ['batch', 3, 'height', 'width']
    assert [output.name for output in file.graph.output] == ['stride4', 'stride8']
    parity = compare(graph, model, run_onnx(tmp_path / 'backbone.onnx'))
    assert len(parity.rows) == 20
    assert max(parity.worst.values()) < TOLERANCE


def test_program_of_torch_export_serves_all_sizes_and_batches(tmp_path):
    model = small_backbone(use_shift=True)
    graph = BackboneGraph(model)
    write_torch(graph, tmp_path / 'backbone.pt2')
    parity = compare(graph, model, run_torch(tmp_path / 'backbone.pt2'))
    assert max(parity.worst.values()) < TOLERANCE


@pytest.mark.parametrize('kind', ['retinanet', 'maskrcnn'])
def test_detectors_as_onnx_find_what_mmdet_finds(kind, tmp_path):
    pytest.importorskip('onnxruntime', reason='needs onnxruntime')
    model = small_detector(kind)
    graph = graph_of(model)
    spread_scores(graph, model)
    write_onnx(graph, tmp_path / 'model.onnx')
    parity = compare(graph, model, run_onnx(tmp_path / 'model.onnx'))
    assert parity.detections > 100
    assert not parity.beyond(), '\n'.join(parity.lines())


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


def test_differences_see_shapes_values_and_what_is_no_number():
    assert relative_difference(np.array([1.0, 4.5]), torch.tensor([1.0, 5.0])) == 0.1
    assert relative_difference(np.array([1.0, np.nan]), torch.tensor([1.0, 5.0])) == np.inf
    with pytest.raises(ValueError, match='got'):
        relative_difference(np.zeros(2), torch.zeros(3))
