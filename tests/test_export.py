"""Exported models against what they came from: modules, ONNX files, programs of torch.export."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from torch import nn

from mmfocal import FocalTransformer, FocalTransformerFast
from mmfocal.engine import load_config
from mmfocal.export import (
    BackboneGraph,
    exportable,
    graph_of,
    paste_masks,
    write_onnx,
    write_torch,
)
from mmfocal.export.parity import (
    SIZES,
    compare,
    relative_difference,
    resized_image,
    run_onnx,
    run_torch,
    spread_scores,
)
from mmfocal.utils.errors import UserError
from tools.dev.costs.complexity import build_without_weights

ROOT = Path(__file__).parents[1]
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


def small_config(folder: Path, kind: str) -> Path:
    """A config of a detector whose backbone has two stages of one block."""
    path = folder / f'{kind}.py'
    path.write_text(
        f"""
_base_ = '{ROOT}/configs/mmdet/focal_{kind}_shapes.py'
model = dict(
    backbone=dict(
        arch=dict(embed_dims=16, depths=(1, 1), num_heads=(1, 2)),
        window_size=(8, 7), expand_sizes=3, focal_levels=(2, 1), focal_windows=3,
        focal_stages=(0, 1), out_indices=(0, 1)),
    neck=dict(in_channels=[16, 32]))
"""
    )
    return path


def small_detector(folder: Path, kind: str) -> nn.Module:
    init_default_scope('mmdet')
    return MODELS.build(load_config(small_config(folder, kind)).model).eval()


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
    write_onnx(graph, tmp_path / 'backbone.onnx', opset=25)
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


@pytest.mark.parametrize('kind', ['retinanet', 'atss', 'maskrcnn'])
def test_graphs_of_detectors_find_what_mmdet_finds(kind, tmp_path):
    model = small_detector(tmp_path, kind)
    graph = graph_of(model)
    spread_scores(graph, model)
    parity = compare(graph, model, run_plain(graph), SIZES[5:])
    assert parity.detections > 100
    assert not parity.beyond(), '\n'.join(parity.lines())


def test_graph_of_a_segmenter_gives_its_logits(tmp_path):
    init_default_scope('mmseg')
    config = tmp_path / 'upernet.py'
    config.write_text(f"""
_base_ = '{ROOT}/configs/mmseg/focal_upernet_shapes.py'
model = dict(
    backbone=dict(
        arch=dict(embed_dims=16, depths=(1, 1), num_heads=(1, 2)),
        window_size=(8, 7), expand_sizes=3, focal_levels=(2, 1), focal_windows=3,
        focal_stages=(0, 1), out_indices=(0, 1)),
    decode_head=dict(in_channels=[16, 32], in_index=[0, 1]),
    auxiliary_head=None)
""")
    model = MODELS.build(load_config(config).model).eval()
    graph = graph_of(model)
    assert compare(graph, model, run_plain(graph), SIZES[5:]).worst['logits'] < TOLERANCE
    model.test_cfg.mode = 'slide'
    with pytest.raises(UserError, match='mode=whole'):
        graph_of(model)


def test_mask_rcnn_as_onnx_finds_what_mmdet_finds(tmp_path):
    pytest.importorskip('onnxruntime', reason='needs onnxruntime')
    model = small_detector(tmp_path, 'maskrcnn')
    graph = graph_of(model)
    spread_scores(graph, model)
    with pytest.raises(UserError, match='must be one of 20 to 21, got 22'):
        write_onnx(graph, tmp_path / 'model.onnx', opset=22)
    write_onnx(graph, tmp_path / 'model.onnx')
    parity = compare(graph, model, run_onnx(tmp_path / 'model.onnx'))
    assert parity.detections > 100
    assert not parity.beyond(), '\n'.join(parity.lines())
    # Nothing to find is no error.
    nothing = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    model.test_cfg.rcnn.score_thr = graph.regions.score_thr = 1.0
    with torch.no_grad():
        outputs = graph(nothing)
    assert [tuple(output.shape) for output in outputs] == [(0, 4), (0,), (0,), (0,), (0, 28, 28)]


def test_tool_writes_files_and_reports_their_parity(tmp_path):
    pytest.importorskip('onnxruntime', reason='needs onnxruntime')
    command = [sys.executable, ROOT / 'tools/export.py', small_config(tmp_path, 'retinanet')]
    command += ['none', '--out', tmp_path / 'out/model.onnx', '--int8']
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert done.stdout.count('| worst |') == 2
    assert done.stdout.count(' x ') == 40
    assert 'Equal up to rounding.' in done.stdout
    sizes = [
        (tmp_path / 'out' / name).stat().st_size for name in ('model.onnx', 'model.int8.onnx')
    ]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
    'options, message',
    [
        (['none', '--out', 'model.pt2', '--format', 'onnx'], r'must end in \.onnx'),
        (['none', '--out', 'model.pt2', '--int8'], '--int8 and --opset are for ONNX'),
    ],
)
def test_tool_refuses_what_does_not_fit(options, message, tmp_path):
    command = [sys.executable, ROOT / 'tools/export.py', small_config(tmp_path, 'maskrcnn')]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert 'Traceback' not in done.stderr


def with_nan(outputs, number):
    """Outputs of which one has a single NaN."""
    outputs = [output.clone() for output in outputs]
    outputs[number].view(-1)[-1] = torch.nan
    return outputs


def test_differences_beyond_rounding_are_found(tmp_path):
    model = small_detector(tmp_path, 'retinanet')
    graph = graph_of(model)
    spread_scores(graph, model)

    def run_with(change):
        def run(image):
            with torch.no_grad():
                return change(*graph(image))

        return compare(graph, model, run, [(2, 64, 96)]).beyond()

    assert run_with(lambda *outputs: outputs) == []
    moved = run_with(lambda boxes, *others: (boxes + 0.1, *others))
    assert len(moved) == 1 and moved[0].startswith('boxes: 1.0e-01')
    for change in (
        lambda boxes, scores, labels, images: (boxes, scores, labels + 1, images),
        lambda boxes, scores, labels, images: (boxes, scores, labels, 1 - images),
        lambda *outputs: [output[:-10] for output in outputs],
    ):
        assert 'have no counterpart' in run_with(change)[-1]
    for number in range(2):  # one value of some hundred
        wrong = run_with(lambda *outputs, number=number: with_nan(outputs, number))
        assert len(wrong) == 1 and wrong[0].startswith(f'{("boxes", "scores")[number]}: inf')
    graph.head.score_thr = model.test_cfg.score_thr = 1.0
    assert 'nothing was detected' in run_with(lambda *outputs: outputs)[-1]


def test_parity_on_an_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    graph = BackboneGraph(small_backbone())
    assert resized_image(tmp_path / 'image.png', graph)(2, 31, 47).dtype == torch.float32
    graph.dtype = torch.uint8
    images = resized_image(tmp_path / 'image.png', graph)(3, 50, 70)
    assert torch.equal(images[0], torch.from_numpy(pixels).permute(2, 0, 1))
    assert torch.equal(images[1], images[0].flip(2)) and torch.equal(images[2], images[0].flip(1))
    with pytest.raises(UserError, match=r'absent\.png'):
        resized_image(tmp_path / 'absent.png', graph)


def test_masks_are_pasted_as_mmdet_pastes_them():
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    masks = torch.rand(6, 28, 28)
    boxes = torch.tensor(
        [
            [3.2, 5.7, 40.1, 30.9],
            [0.0, 0.0, 64.0, 48.0],
            [60.0, 44.0, 64.0, 48.0],
            [10.5, 10.5, 11.0, 40.0],
            [5.0, 5.0, 5.0, 5.0],
            [1.0, 2.0, 29.0, 30.0],
        ]
    )
    pasted = _do_paste_mask(masks[:, None], boxes, 48, 64, skip_empty=False)[0] >= 0.5
    ours = paste_masks(masks.numpy(), boxes.numpy(), 48, 64)
    assert ours.shape == (6, 48, 64) and ours.any(axis=(1, 2))[:3].all()
    assert (ours != pasted.numpy()).mean() < 1e-4


def test_nan_in_the_last_of_several_images_is_found():
    model = small_backbone()
    graph = BackboneGraph(model)
    seen = []

    def run(image):
        seen.append(image)
        with torch.no_grad():
            outputs = graph(image)
        return with_nan(outputs, 1) if len(seen) == 3 else outputs

    sizes = [(1, 64, 64), (1, 32, 96), (2, 40, 40)]
    wrong = compare(graph, model, run, sizes).beyond()
    assert len(wrong) == 1 and wrong[0].startswith('stride8: inf')


def test_what_cannot_be_exported_says_why(tmp_path):
    with pytest.raises(UserError, match='use_abs_pos_embed'):
        exportable(small_backbone(use_abs_pos_embed=True))
    with pytest.raises(UserError, match=r'CascadeRCNN is not among .*Mask R-CNN'):
        graph_of(small_detector(tmp_path, 'cascade-maskrcnn'))
    for name in ('mmdet/focal_mask2former_50e', 'mmseg/focal_mask2former_160k'):
        config = load_config(f'{ROOT}/configs/{name}.py')
        model = build_without_weights(config.model, config.default_scope)
        with pytest.raises(UserError, match=r'is not among .*--what backbone'):
            graph_of(model)
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
    for wrong in (np.nan, np.inf):
        assert relative_difference(np.array([1.0, wrong]), torch.tensor([1.0, 5.0])) == np.inf
        assert relative_difference(np.array([1.0, 5.0]), torch.tensor([1.0, wrong])) == np.inf
        assert relative_difference(np.array([wrong]), torch.tensor([wrong])) == np.inf
    with pytest.raises(ValueError, match='got'):
        relative_difference(np.zeros(2), torch.zeros(3))
