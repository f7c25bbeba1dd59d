"""Translation of the authors' settings and weights, and equality with their model."""

import json
import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmfocal import FocalTransformer, FocalTransformerFast
from mmfocal.geometry import FocalGeometry
from mmfocal.models.pooling import FocalPooling
from mmfocal.ops import available_backends, why_not
from mmfocal.weights.authors import authors_version, from_authors

SMALL_GOLDEN = sorted(Path(__file__).with_name('golden').glob('*.npz'))
GOLDEN = list(SMALL_GOLDEN)
if folder := os.environ.get('MMFOCAL_GOLDEN'):
    full = sorted(Path(folder).glob('*.npz'))
    assert full, f'MMFOCAL_GOLDEN={folder} holds no golden case (*.npz)'
    GOLDEN += full
CASE_IDS = [path.stem + (' (small)' if path in SMALL_GOLDEN else '') for path in GOLDEN]
MODELS = {1: FocalTransformer, 2: FocalTransformerFast}
TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-4}


def device_of(backend):
    """The kernels run on a GPU where there is one; all else is compared on the CPU."""
    on_gpu = backend == 'triton' and torch.cuda.is_available()
    return torch.device('cuda' if on_gpu else 'cpu')


# With TRITON_INTERPRET=1 the kernels are there without a GPU, in float32: test_triton.py does so.
RUNNABLE = [
    (dtype, backend)
    for dtype, backend in product(TOLERANCES, available_backends())
    if not why_not(backend, device_of(backend), dtype, head_dim=8)
]


class GoldenCase:
    """One file, see tests/golden/README.md."""

    def __init__(self, path, dtype=torch.float64):
        self.arrays, self.dtype = np.load(path), dtype
        self.config = json.loads(str(self.arrays['config']))

    def tensors(self, prefix):
        """Entries by the rest of their names."""
        names = [name for name in self.arrays.files if name.startswith(prefix)]
        return {name[len(prefix) :]: torch.from_numpy(self.arrays[name]) for name in names}

    def tensor(self, name):
        return torch.from_numpy(self.arrays[name]).to(self.dtype)

    def error(self, name, got):
        """Relative L2 error of ``got`` against an entry; absolute where the entry is zero."""
        want = self.tensor(name).flatten()
        step = self.arrays[f'step.{name}'] if f'step.{name}' in self.arrays.files else 1
        difference = (got.detach().cpu().flatten()[:: int(step)] - want).norm()
        return float(difference / want.norm()) if want.norm() > 0 else float(difference)


def golden_errors(path, dtype, backend):
    """Runs a case forward and backward; relative errors by entry."""
    case = GoldenCase(path, dtype)
    state = case.tensors('state.')
    version = authors_version(state)
    kwargs, weights = from_authors(case.config, state, version)
    model = MODELS[version](**kwargs, attention_backend=backend).to(dtype).eval()
    model.load_state_dict(weights)

    device = device_of(backend)
    image = case.tensor('input').requires_grad_()
    outputs = model.to(device)(image.to(device))
    features = [out.cpu().flatten(2).transpose(1, 2) for out in outputs]
    weight, bias = case.tensor('state.norm.weight'), case.tensor('state.norm.bias')
    pooled = F.layer_norm(features[-1], weight.shape, weight, bias).mean(dim=1)
    logits = F.linear(pooled, case.tensor('state.head.weight'), case.tensor('state.head.bias'))
    score = 0.01 * logits.sum()
    for i, feature in enumerate(features):
        score = score + (feature * case.tensor(f'cotangent.{i}')).sum()
    score.backward()

    errors = {f'feature.{i}': case.error(f'feature.{i}', f) for i, f in enumerate(features)}
    errors['logits'] = case.error('logits', logits)
    errors['grad.input'] = case.error('grad.input', image.grad)
    ours = dict(model.named_parameters())
    for name in case.tensors('grad.param.'):
        entry = f'grad.param.{name}'
        if name.startswith(('norm.', 'head.')):
            continue
        (renamed,) = from_authors(case.config, {name: case.tensor(f'state.{name}')}, version)[1]
        parameter = ours.pop(renamed)
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if renamed == 'absolute_pos_embed':
            grad = grad.flatten(2).transpose(1, 2)
        errors[entry] = case.error(entry, grad)
    assert not ours, f'no golden gradient for {sorted(ours)}'
    return errors


@pytest.mark.parametrize('path', GOLDEN, ids=CASE_IDS)
@pytest.mark.parametrize(
    'dtype, backend',
    [
        pytest.param(*run, marks=[pytest.mark.gpu] if device_of(run[1]).type == 'cuda' else [])
        for run in RUNNABLE
    ],
)
def test_golden_case(path, dtype, backend, record_property):
    errors = golden_errors(path, dtype, backend)
    worst = max(errors, key=errors.get)
    record_property('worst', f'{worst}: {errors[worst]:.1e}')
    assert errors[worst] < TOLERANCES[dtype], f'{worst}: relative error {errors[worst]:.1e}'


def authors_state(**config):
    """A state dict with the authors' names for a small model, made from ours and a rename."""
    kwargs, _ = from_authors(config, {})
    state = {}
    for name, value in FocalTransformer(**kwargs).state_dict().items():
        name = name.replace('stages.', 'layers.').replace('attn.pools', 'pool_layers')
        state[name.replace('attn.position_bias.', 'attn.')] = value
    return state


SMALL = dict(embed_dim=8, depths=[1, 1], num_heads=[1, 2], focal_levels=[2, 2], img_size=64)
SMALL |= dict(focal_windows=[3, 3], expand_sizes=[1, 1])


def test_every_key_is_used():
    state = authors_state(**SMALL)
    kwargs, weights = from_authors(SMALL, state)
    assert len(weights) == len(state)
    FocalTransformer(**kwargs).load_state_dict(weights)  # strict


@pytest.mark.parametrize(
    'name',
    [
        'head.weight',
        'norm.bias',
        'layers.0.blocks.1.attn_mask',
        'layers.0.blocks.1.attn.relative_position_index',
        'layers.0.blocks.1.attn.relative_position_index_1',
        'layers.0.blocks.1.attn.valid_ind_rolled',
        'layers.0.blocks.1.attn.valid_ind_unfold_1',
    ],
)
def test_buffers_and_classifier_are_dropped_by_name(name):
    assert from_authors(SMALL, {name: torch.zeros(1)})[1] == {}


def test_unknown_key_is_an_error():
    with pytest.raises(ValueError, match=r'layers\.0\.blocks\.0\.attn\.coord2rpb'):
        from_authors(SMALL, {'layers.0.blocks.0.attn.coord2rpb': torch.zeros(1)})


def test_unknown_argument_is_an_error():
    with pytest.raises(ValueError, match="'focal_topK': no argument of the authors'"):
        from_authors(dict(focal_topK=32), {})


def test_stage_no_larger_than_a_window_loses_ring_and_shift_as_the_authors_do():
    kwargs, _ = from_authors(dict(img_size=[160, 224], use_shift=True), {})
    assert kwargs['window_size'] == (7, 7, 7, 5)
    assert kwargs['expand_sizes'] == (3, 3, 3, 0)
    assert kwargs['use_shift'] == (True, True, True, False)


@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize(
    'settings',
    [
        dict(window_size=7, use_shift=True),
        dict(window_size=14),
        dict(window_size=7, use_shift=True, img_size=[160, 224]),
    ],
    ids=['shift', '14', 'oblong'],
)
def test_clamped_windows_are_those_of_the_authors(settings, version):
    settings = dict(settings, embed_dim=8, depths=[1, 2, 2, 2], num_heads=[1, 1, 2, 2])
    settings |= dict(focal_levels=[2, 2, 2, 2], mlp_ratio=1.0)
    if version == 2:
        settings |= dict(focal_topK=20)
    theirs, _ = from_authors(settings, {}, version)
    clamped = dict(
        arch=theirs['arch'],
        window_size=settings['window_size'],
        use_shift=settings.get('use_shift', False),
        mlp_ratio=1.0,
        use_conv_embed=False,
        out_norm=False,
        pretrain_img_size=theirs['pretrain_img_size'],
        clamp_windows=True,
    )
    if version == 2:
        clamped |= dict(top_k=20)
    torch.manual_seed(0)
    model, expected = MODELS[version](**clamped).eval(), MODELS[version](**theirs).eval()
    expected.load_state_dict(model.state_dict())  # strict: rings and tables are the same
    image = torch.rand(1, 3, *theirs['pretrain_img_size'])
    for got, want in zip(model(image), expected(image), strict=True):
        assert torch.equal(got, want)


def test_without_clamping_maps_of_one_window_have_ring_and_shift():
    geometries = [
        [stage.blocks[1].attn.geometry for stage in FocalTransformer(**kwargs).stages]
        for kwargs in (dict(use_shift=True), dict(use_shift=True, clamp_windows=True))
    ]
    free, clamped = geometries
    assert [(g.shift_size, g.expand_size) for g in free] == [(3, 3)] * 4
    assert [(g.shift_size, g.expand_size) for g in clamped] == [(3, 3)] * 3 + [(0, 0)]


def test_stage_of_level_0_has_no_other_keys_than_its_windows_as_the_authors():
    """Their ``WindowAttention`` has a ring if ``focal_level > 0``, pooled keys if it is > 1."""
    config = dict(SMALL, focal_levels=[0, 1])
    kwargs, weights = from_authors(config, authors_state(**config))
    assert kwargs['expand_sizes'] == (0, 1)
    assert not any(
        part in n for n in weights for part in ('stages.0.blocks.0.attn.pools', '_to_windows')
    )
    tables = [name for name in weights if name.endswith('_to_neighbors')]
    assert [name.split('.')[1] for name in tables] == ['1']
    model = FocalTransformer(**kwargs).eval()
    model.load_state_dict(weights)
    image = torch.rand(1, 3, 64, 64)
    moved = image.clone()
    moved[..., 24:28, 24:28] += 1.0  # the last token of the first window
    changed = (model(image)[0] != model(moved)[0])[0].any(0)
    assert changed[:7, :7].all() and not changed[7:].any() and not changed[:, 7:].any()


@pytest.mark.parametrize(
    'arch, count', [('tiny', 28_880_380), ('small', 51_141_940), ('base', 89_815_400)]
)
def test_parameters_of_the_published_classifiers(arch, count):
    model = FocalTransformer(arch, expand_sizes=(3, 3, 3, 0), out_indices=(3,))
    head = 1000 * (model.norm3.normalized_shape[0] + 1)
    assert sum(p.numel() for p in model.parameters()) + head == count


def authors_fast_state(config):
    """The same for the second version, with the tables of keys that follow from the settings."""
    kwargs, _ = from_authors(config, {}, version=2)
    state = {}
    for name, value in FocalTransformerFast(**kwargs).state_dict().items():
        name = name.replace('stages.', 'layers.').replace('attn.pools', 'pool_layers')
        state[name.replace('attn.position_bias.mlps.', 'attn.coord2rpb_all.')] = value
    side = config['img_size'] // config['patch_size']
    for stage, window in enumerate(kwargs['window_size']):
        along = side // 2**stage // window
        query = torch.cartesian_prod(*[torch.arange(window) - window // 2] * 2)
        for level, places in ((0, along * window), (1, along)):
            factor = places // along
            centre = torch.cartesian_prod(*[torch.arange(along) * factor + factor // 2] * 2)
            offsets = centre[:, None] - torch.cartesian_prod(*[torch.arange(places)] * 2)
            count = min(config['focal_topK'], places**2)
            indices = (-offsets.square().sum(-1).float().sqrt()).topk(count, dim=1).indices
            offsets = offsets.take_along_dim(indices[..., None], dim=1) * window ** min(level, 1)
            prefix = f'layers.{stage}.blocks.0.attn.topk_cloest'
            state[f'{prefix}_indice_{level}'] = indices
            state[f'{prefix}_coords_{level}'] = (offsets[:, None] + query[:, None]).float()
        state[f'layers.{stage}.blocks.0.attn.window_coords'] = query.view(window, window, 2)
    return state


# Maps of 20 and 10 tokens: the authors' code takes only such of whole windows.
FAST = dict(embed_dim=8, depths=[1, 1], num_heads=[1, 2], focal_levels=[2, 2], img_size=80)
FAST |= dict(focal_windows=[3, 3], expand_sizes=[1, 1], focal_topK=20, patch_size=4, window_size=5)


def test_every_key_of_the_second_version_is_used_and_its_tables_are_recomputed():
    state = authors_fast_state(FAST)
    assert authors_version(state) == 2 and authors_version(authors_state(**SMALL)) == 1
    kwargs, weights = from_authors(FAST, state, version=2)
    assert kwargs['top_k'] == 20 and 'stored_map_sizes' not in kwargs
    assert len(weights) == len(state) - 2 * 5
    FocalTransformerFast(**kwargs).load_state_dict(weights)  # strict


def test_other_positions_of_the_second_version_are_kept_and_computed_with():
    state = authors_fast_state(FAST)
    image = torch.rand(1, 3, 80, 80)

    def outputs():
        kwargs, weights = from_authors(FAST, state, version=2)
        model = FocalTransformerFast(**kwargs).eval()
        model.load_state_dict(weights)
        return kwargs, model(image), model(torch.nn.functional.pad(image, (0, 20)))

    coordinates = state['layers.1.blocks.0.attn.topk_cloest_coords_0']
    for mlp in (0, 2):  # whose first values are small
        state[f'layers.1.blocks.0.attn.coord2rpb_all.0.{mlp}.weight'] *= 20
    _, before, before_elsewhere = outputs()
    coordinates += torch.randn_like(coordinates)
    kwargs, after, after_elsewhere = outputs()
    assert kwargs['stored_map_sizes'] == (None, (10, 10))
    assert torch.equal(after[0], before[0]) and not torch.allclose(after[1], before[1])
    torch.testing.assert_close(after_elsewhere, before_elsewhere)


def test_other_keys_than_are_chosen_here_are_reported(monkeypatch):
    reports = []
    report = 'mmfocal.weights.authors.print_log'
    monkeypatch.setattr(report, lambda text, **_: reports.append(text))
    state = authors_fast_state(FAST)
    state['layers.0.blocks.0.attn.topk_cloest_indice_0'][3, 7] = 399
    kwargs, _ = from_authors(FAST, state, version=2)
    assert 'stored_map_sizes' not in kwargs
    assert len(reports) == 1 and 'layers.0.blocks.0.attn.topk_cloest_indice_0' in reports[0]


def test_weights_of_the_second_version_need_its_number():
    with pytest.raises(ValueError, match=r'coord2rpb_all\.0\.0\.weight.*; they are of version 2'):
        from_authors(SMALL, authors_fast_state(FAST))
    with pytest.raises(ValueError, match=r'focal_transformer_v2\.py\) does not have'):
        from_authors(FAST, {'layers.0.blocks.0.attn.unknown': torch.zeros(1)}, version=2)
    with pytest.raises(ValueError, match=r'version must be one of \(1, 2\), got 3'):
        from_authors(FAST, {}, version=3)


@pytest.mark.parametrize('method', ['fc', 'conv'])
def test_pooling_weighs_rows_before_columns(method):
    pool = FocalPooling(FocalGeometry(), level=1, method=method, embed_dims=2)
    side = pool.geometry.sub_window_size(1)
    weight = torch.arange(float(side * side))
    with torch.no_grad():
        pool.weight.copy_(weight.view(pool.weight.shape[1:]))  # of each channel
    for row, column in ((1, 0), (0, 1), (side - 1, 2)):
        window = torch.zeros(1, side, side, 2)
        window[0, row, column] = 1
        assert pool(window, grid=(1, 1)).flatten().tolist() == [row * side + column] * 2


def print_table():
    """Errors of all golden cases in both precisions, worst entry of each kind."""
    kinds = ('feature.', 'logits', 'grad.input', 'grad.param.')
    print('| case | backend | dtype | features | logits | input gradient | parameter gradients |')
    print('|---|---|---|---|---|---|---|')
    for path, case in zip(GOLDEN, CASE_IDS, strict=True):
        for dtype, backend in sorted(RUNNABLE, key=lambda run: run[1]):
            errors = golden_errors(path, dtype, backend)
            worst = [max(e for n, e in errors.items() if n.startswith(k)) for k in kinds]
            cells = ' | '.join(f'{error:.1e}' for error in worst)
            print(f'| {case} | {backend} | {str(dtype)[6:]} | {cells} |', flush=True)


if __name__ == '__main__':
    print_table()
