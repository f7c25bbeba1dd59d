"""Behaviours of focal attention, each on every backend."""

from itertools import product

import numpy as np
import oracle
import pytest
import torch
from test_geometry import names_of_tokens, outputs_of
from torch.library import opcheck
from torch.nn.functional import scaled_dot_product_attention

from mmfocal.geometry import ClosestGeometry, FocalGeometry
from mmfocal.ops import attention as attention_module
from mmfocal.ops import available_backends, focal_attention, why_not
from mmfocal.ops import gather_sdpa as gather_sdpa_module

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
HEAD_DIM = 16
# TRITON_INTERPRET=1 lets the kernels run on a CPU: test_triton.py runs this file so.
BACKENDS = [
    name for name in available_backends() if why_not(name, DEVICE, torch.float32, HEAD_DIM) is None
]
pytestmark = [pytest.mark.gpu] if DEVICE.type == 'cuda' else []  # where there is one, all use it


def finest(backend):
    """The most precise dtype that a backend takes, and the error to allow."""
    exact = why_not(backend, DEVICE, torch.float64, HEAD_DIM) is None
    return (torch.float64, 1e-12) if exact else (torch.float32, 2e-5)


GEOMETRIES = {
    'published': FocalGeometry(focal_window=3),
    'shift': FocalGeometry(window_size=4, expand_size=1, shift_size=2, focal_window=3),
    'mask': FocalGeometry(
        window_size=4, expand_size=2, shift_size=2, focal_level=3, focal_window=1, border='mask'
    ),
    # Windows whose queries may see nothing at all: only padding after the seam.
    'keyless': FocalGeometry(
        window_size=4, expand_size=0, shift_size=2, focal_level=1, border='mask'
    ),
    'local': FocalGeometry(window_size=3, expand_size=0, focal_level=1),
    # Windows differ in the bias of their keys.
    'closest': ClosestGeometry(window_size=3, top_k=13),
    'closest-shift': ClosestGeometry(window_size=4, shift_size=2, focal_level=3, top_k=70),
}


def random_case(geometry, size, batch=2, heads=3, dim=HEAD_DIM, dtype=torch.float64, seed=0):
    """Packed queries, keys and values, the keys of each window, and the bias."""
    generator = torch.Generator().manual_seed(seed)
    keys = geometry.keys(*size)
    packed = torch.randn(
        batch, keys.num_tokens, 3, heads, dim, generator=generator, dtype=torch.float64
    )
    columns = keys.num_bias_columns('cpu')
    bias = torch.randn(heads, keys.num_queries, columns, generator=generator, dtype=torch.float64)
    packed, bias = (t.to(DEVICE, dtype).requires_grad_() for t in (packed, bias))
    return packed, keys, bias


def run(packed, keys, bias, backend, **kwargs):
    return focal_attention(packed, keys, bias, backend=backend, **kwargs)


@pytest.fixture(autouse=True, params=['whole', 'chunks'])
def chunk_size(request, monkeypatch):
    """All windows and heads at once, and a few at a time with a smaller rest at the end."""
    if request.param == 'chunks':
        for name in ('CPU_CHUNK_BYTES', 'DEVICE_CHUNK_BYTES'):
            monkeypatch.setattr(gather_sdpa_module, name, 20_000)
        if 'triton' in BACKENDS:
            from mmfocal.ops.triton import backward_pass

            monkeypatch.setattr(backward_pass, 'WORKSPACE_BYTES', 20_000)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', [name for name in GEOMETRIES if 'closest' not in name])
@pytest.mark.parametrize('size', [(1, 1), (3, 11), (8, 9)])
def test_outputs_are_the_oracles(backend, name, size):
    geometry = GEOMETRIES[name]
    dtype, tolerance = finest(backend)
    packed, keys, bias = random_case(geometry, size, heads=2, dtype=dtype)
    out = run(packed, keys, bias, backend, scale=0.3).detach().cpu().numpy()

    windows = oracle.keys_of_windows(
        *size,
        geometry.window_size,
        geometry.expand_size,
        geometry.shift_size,
        geometry.focal_level,
        geometry.focal_window,
        geometry.border,
    )
    rows = {name: row for row, name in enumerate(names_of_tokens(keys))}
    arrays = (t.detach().double().cpu().numpy() for t in (*packed.unbind(2), bias))
    expected = oracle.attention(*arrays, windows=windows, rows=rows, scale=0.3)
    height, width = size
    assert out.shape == (2, height * width, 2, HEAD_DIM)
    wanted = np.full_like(out, np.nan)
    for (image, (_, row, col), head), vector in expected.items():
        if row < height and col < width:  # no output for padding
            wanted[image, row * width + col, head] = vector
    np.testing.assert_allclose(out, wanted, rtol=1e-7, atol=tolerance)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', ['published', 'shift', 'closest'])
def test_padding_asks_nothing(backend, name):
    """What padding would ask with changes no output, and it gets no gradient for it."""
    size = (5, 9)
    packed, keys, bias = random_case(GEOMETRIES[name], size, dtype=finest(backend)[0])
    on_map = torch.zeros(keys.padded_size, dtype=torch.bool, device=DEVICE)
    on_map[: size[0], : size[1]] = True
    padding = ~on_map.flatten()
    assert padding.any()
    out = run(packed, keys, bias, backend)
    changed = packed.detach().clone()
    changed[:, : keys.num_map_tokens, 0][:, padding] = 3.0
    assert torch.equal(run(changed, keys, bias, backend), out)
    (grad,) = torch.autograd.grad(out, packed, torch.randn_like(out))
    grad = grad[:, : keys.num_map_tokens, 0]
    assert (grad[:, padding] == 0).all() and (grad[:, ~padding] != 0).any()


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', [name for name in GEOMETRIES if 'closest' in name])
@pytest.mark.parametrize('size', [(1, 1), (3, 11), (8, 9)])
def test_each_window_has_the_bias_of_its_columns(backend, name, size):
    dtype, tolerance = finest(backend)
    packed, keys, bias = random_case(GEOMETRIES[name], size, dtype=dtype)
    out = run(packed, keys, bias, backend)
    tables = keys.tables(DEVICE)
    assert len(tables.columns.unique()) == bias.shape[2]
    query, key, value = (t.transpose(1, 2) for t in packed.unbind(2))  # (B, nH, L, D)
    for window in range(keys.num_windows):
        outputs, index = outputs_of(keys)[window].to(DEVICE), tables.index[window]
        queries = tables.queries[window][outputs >= 0]
        expected = scaled_dot_product_attention(
            query[:, :, queries],
            key[:, :, index],
            value[:, :, index],
            bias[None, :, :, tables.columns[window]][:, :, outputs >= 0],
        )
        got = out[:, outputs[outputs >= 0]].transpose(1, 2)
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('backend', [b for b in BACKENDS if finest(b)[0] == torch.float64])
@pytest.mark.parametrize('name', GEOMETRIES)
def test_gradients_are_those_of_finite_differences(backend, name):
    packed, keys, bias = random_case(GEOMETRIES[name], (2, 5), batch=1, heads=1, dim=2)
    assert torch.autograd.gradcheck(
        lambda p, b: run(p, keys, b, backend), (packed, bias), fast_mode=True
    )


@pytest.mark.parametrize('name', GEOMETRIES)
@pytest.mark.parametrize(
    'dtype, backend',
    [
        (dtype, backend)
        for dtype, backend in product((torch.float32, torch.bfloat16, torch.float16), BACKENDS)
        if why_not(backend, DEVICE, dtype, HEAD_DIM) is None
    ],
)
def test_lower_precision_follows_float64(backend, name, dtype):
    exact, keys, exact_bias = random_case(GEOMETRIES[name], (5, 9))
    packed = exact.detach().to(dtype).requires_grad_()
    bias = exact_bias.detach().float().requires_grad_()  # as autocast hands it over
    upstream = torch.randn(exact.shape[0], keys.num_outputs, *exact.shape[3:]).to(exact)

    expected = run(exact, keys, exact_bias, 'reference')
    expected.backward(upstream)
    out = run(packed, keys, bias, backend)
    out.backward(upstream.to(dtype))

    assert out.dtype == packed.grad.dtype == dtype and bias.grad.dtype == torch.float32
    # Of float32 on a GPU, too, where the kernels make a product of three of TensorFloat-32. Each
    # number is cut into two of 11 bits; the rest is below 2**-22 of it, and so is the product of
    # both smaller parts, which is left out. A product is off by 3 * 2**-22 = 6 eps at most then.
    tolerance = 16 * torch.finfo(dtype).eps
    for got, want in ((out, expected), (packed.grad, exact.grad), (bias.grad, exact_bias.grad)):
        assert (got.double() - want).norm() <= tolerance * want.norm()


@pytest.mark.parametrize(
    'backend',
    [name for name in BACKENDS if why_not(name, DEVICE, torch.float16, HEAD_DIM) is None],
)
def test_gradients_reach_as_far_as_float16(backend):
    """Large gradients of keys, of which sums of products are 20 times larger."""
    size = torch.tensor([64.0, 1 / 16, 1.0], device=DEVICE)[:, None, None]  # more by their queries
    packed, keys, bias = random_case(GEOMETRIES['published'], (9, 8), batch=1)
    packed, bias = (packed * size).detach().half(), bias.detach().half()
    upstream = torch.randn(1, keys.num_outputs, *packed.shape[3:], device=DEVICE)

    def gradients(dtype, upstream, backend):
        inputs = [each.to(dtype).requires_grad_() for each in (packed, bias)]
        out = run(inputs[0], keys, inputs[1], backend, scale=0.05)
        return torch.autograd.grad(out, inputs, upstream.to(dtype))[0].double()

    largest = gradients(torch.float64, upstream, 'reference')[:, :, 1].abs().max()
    upstream = (upstream * (30_000 / largest)).half()
    expected = gradients(torch.float64, upstream, 'reference')
    got = gradients(torch.float16, upstream, backend)
    assert got.isfinite().all() and got.abs().max() > 29_000
    assert (got - expected).norm() <= 4 * torch.finfo(torch.float16).eps * expected.norm()


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize(
    'geometry, head_dim',
    [
        (FocalGeometry(window_size=8, expand_size=0, focal_level=1), 8),  # 64 keys: one tile
        (FocalGeometry(window_size=8, expand_size=0, focal_window=1), 24),  # 65
        (FocalGeometry(window_size=7, expand_size=1, focal_level=1), 32),  # 81, 20 of them twice
        (FocalGeometry(window_size=12, expand_size=2, focal_window=3), 64),  # 144 queries
        (ClosestGeometry(window_size=3, top_k=58), 16),  # 58 and 6: one tile
        (ClosestGeometry(window_size=3, top_k=59), 24),  # 65
        (ClosestGeometry(window_size=9, focal_level=1, top_k=2), 8),  # 81 queries of two keys
    ],
    ids=['64x8', '65x24', '81x32', '265x64', '64x16', '65x24-closest', '2x8'],
)
def test_numbers_of_keys_and_head_dims(backend, geometry, head_dim):
    dtype, tolerance = finest(backend)
    exact, keys, exact_bias = random_case(geometry, (9, 7), batch=1, heads=1, dim=head_dim)
    packed, bias = (t.detach().to(dtype).requires_grad_() for t in (exact, exact_bias))
    expected = run(exact, keys, exact_bias, 'reference')
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (exact, exact_bias), upstream)
    out = run(packed, keys, bias, backend)
    grads = torch.autograd.grad(out, (packed, bias), upstream.to(dtype))
    for got, want in zip((out, *grads), (expected, *wanted), strict=True):
        assert (got.double() - want).norm() <= tolerance * want.norm()


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', GEOMETRIES)
def test_token_changes_only_windows_that_list_it(backend, name):
    packed, keys, bias = random_case(GEOMETRIES[name], (9, 6), batch=1, dtype=finest(backend)[0])
    tables = keys.tables(DEVICE)
    with torch.no_grad():
        before = run(packed, keys, bias, backend)
        for token in (0, 7, keys.num_tokens - 1):
            changed = packed.clone()
            changed[:, token, 1:] += 1  # key and value, not query
            after = run(changed, keys, bias, backend)
            listed = ((tables.index == token)[:, None] & tables.allowed()).any(dim=-1)
            listed = listed.expand(-1, keys.num_queries).flatten()[tables.inverse]
            differs = (after != before).flatten(2).any(dim=-1)[0]
            assert torch.equal(differs, listed)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', GEOMETRIES)
def test_values_of_one_give_one(backend, name):
    dtype, tolerance = finest(backend)
    packed, keys, bias = random_case(GEOMETRIES[name], (5, 9), dtype=dtype)
    with torch.no_grad():
        packed[:, :, 2] = 1
    out = run(packed, keys, bias, backend).detach()
    torch.testing.assert_close(out, torch.ones_like(out), rtol=0, atol=tolerance)


@pytest.mark.parametrize('backend', BACKENDS)
def test_queries_without_keys_are_padding_and_disturb_nobody(backend):
    packed, keys, bias = random_case(GEOMETRIES['keyless'], (5, 9), dtype=finest(backend)[0])
    tables = keys.tables(DEVICE)
    keyless = ~tables.allowed().any(dim=-1)
    assert keyless.any() and (outputs_of(keys).to(DEVICE)[keyless] == -1).all()
    out = run(packed, keys, bias, backend)
    grads = torch.autograd.grad(out.square().sum(), (packed, bias))
    assert all(each.isfinite().all() for each in (out, *grads))
    assert (grads[0][:, tables.queries[keyless]] == 0).all()


@pytest.mark.parametrize('backend', BACKENDS)
def test_window_over_the_whole_map_is_plain_attention(backend):
    geometry = FocalGeometry(window_size=6, expand_size=0, focal_level=1)
    dtype, tolerance = finest(backend)
    packed, keys, bias = random_case(geometry, (6, 6), dtype=dtype)
    query, key, value = (t.transpose(1, 2) for t in packed.unbind(2))
    expected = scaled_dot_product_attention(query, key, value, bias[None]).transpose(1, 2)
    out = run(packed, keys, bias, backend)
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradient_of_expanded_output(backend):
    dtype, tolerance = finest(backend)
    packed, keys, bias = random_case(GEOMETRIES['published'], (4, 9), dtype=dtype)
    out = run(packed, keys, bias, backend)
    (from_sum,) = torch.autograd.grad(out.sum(), packed, retain_graph=True)
    (from_ones,) = torch.autograd.grad(out, packed, torch.ones_like(out))
    torch.testing.assert_close(from_sum, from_ones, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('backend', [b for b in BACKENDS if b != 'reference'])
@pytest.mark.parametrize('name', GEOMETRIES)
def test_two_runs_are_equal_bit_for_bit(backend, name):
    packed, keys, bias = random_case(GEOMETRIES[name], (5, 6), dtype=torch.float32)
    upstream = torch.randn(2, keys.num_outputs, 3, HEAD_DIM, device=DEVICE)
    runs = []
    for _ in range(2):
        out = run(packed, keys, bias, backend)
        runs.append((out, *torch.autograd.grad(out, (packed, bias), upstream)))
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.skipif('triton' not in BACKENDS, reason='no kernels run here')
@pytest.mark.parametrize('name', ['shift', 'closest'])
@pytest.mark.parametrize('images', [1, 2, 3])
def test_gradients_are_the_same_for_any_number_of_programs(name, images, monkeypatch):
    """Three images of four windows: a program takes some windows, or a window of some images."""
    from mmfocal.ops.triton import backward_pass

    packed, keys, bias = random_case(GEOMETRIES[name], (5, 6), 3, heads=1, dtype=torch.float32)
    assert keys.num_windows == 4
    tiles = -(-keys.num_keys // 64)
    monkeypatch.setattr(backward_pass, 'KEY_PROGRAMS', tiles * 4 * 3 // images)
    out = run(packed, keys, bias, 'triton')
    upstream = torch.randn_like(out)
    grads = torch.autograd.grad(out, (packed, bias), upstream)
    expected = torch.autograd.grad(run(packed, keys, bias, 'reference'), (packed, bias), upstream)
    for got, want in zip(grads, expected, strict=True):
        assert (got - want).norm() <= 16 * torch.finfo(torch.float32).eps * want.norm()


@pytest.mark.parametrize('backend', [b for b in BACKENDS if b != 'reference'])
@pytest.mark.parametrize('name', ['published', 'mask', 'keyless'])
def test_scratch_memory_is_written_before_it_is_read(backend, name, monkeypatch):
    packed, keys, bias = random_case(GEOMETRIES[name], (5, 6), dtype=torch.float32)

    def out_and_grads():
        out = run(packed, keys, bias, backend)
        return out, *torch.autograd.grad(out.square().sum(), (packed, bias))

    expected = out_and_grads()
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like
    made = []

    def poisoned(make):
        def make_poisoned(*args, **kwargs):
            tensor = make(*args, **kwargs)
            made.append(tensor)
            return tensor.fill_(float('nan')) if tensor.is_floating_point() else tensor

        return make_poisoned

    monkeypatch.setattr(torch.Tensor, 'new_empty', poisoned(new_empty))
    monkeypatch.setattr(torch, 'empty_like', poisoned(empty_like))
    got = out_and_grads()
    assert len(made) >= 3
    assert all(torch.equal(first, second) for first, second in zip(got, expected, strict=True))


@pytest.mark.parametrize('backend', BACKENDS)
def test_masked_padding_may_hold_anything(backend):
    dtype, tolerance = finest(backend)
    geometry = FocalGeometry(window_size=4, expand_size=2, focal_window=3, border='mask')
    packed, keys, bias = random_case(geometry, (5, 6), dtype=dtype)
    upstream = torch.randn(2, keys.num_outputs, 3, HEAD_DIM, device=DEVICE, dtype=dtype)
    out = run(packed, keys, bias, backend)
    expected = torch.autograd.grad(out, (packed, bias), upstream)

    rows, cols = (torch.arange(8, device=DEVICE) < side for side in (5, 6))
    padding = ~(rows[:, None] & cols).flatten()
    changed = packed.detach().clone()
    changed[:, : keys.num_map_tokens, 1:][:, padding] = 1e4  # keys and values
    changed.requires_grad_()
    again = run(changed, keys, bias, backend)
    grads = torch.autograd.grad(again, (changed, bias), upstream)
    torch.testing.assert_close(again, out, rtol=tolerance, atol=tolerance)
    for grad, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('needed', ['qkv', 'bias'])
def test_gradient_of_one_argument_alone(backend, needed):
    dtype, tolerance = finest(backend)
    packed, keys, bias = random_case(GEOMETRIES['shift'], (5, 6), dtype=dtype)
    expected = torch.autograd.grad(run(packed, keys, bias, backend).sum(), (packed, bias))
    if needed == 'qkv':
        out, wanted, expected = run(packed, keys, bias.detach(), backend), packed, expected[0]
    else:
        out, wanted, expected = run(packed.detach(), keys, bias, backend), bias, expected[1]
    (grad,) = torch.autograd.grad(out.sum(), wanted)
    torch.testing.assert_close(grad, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('backend', BACKENDS)
def test_no_images_give_nothing(backend):
    packed, keys, bias = random_case(GEOMETRIES['published'], (4, 9), 0, dtype=torch.float32)
    out = run(packed, keys, bias, backend)
    assert out.shape == (0, keys.num_outputs, 3, HEAD_DIM)
    grads = torch.autograd.grad(out.sum(), (packed, bias))
    assert grads[0].shape == packed.shape and torch.equal(grads[1], torch.zeros_like(bias))


@pytest.mark.parametrize('backend', BACKENDS)
def test_scale_may_be_an_integer(backend):
    packed, keys, bias = random_case(GEOMETRIES['local'], (3, 4), dtype=torch.float32)
    for scale in (1, 0.3, 2):
        out = run(packed, keys, bias, backend, scale=scale)
        assert torch.equal(out, run(packed, keys, bias, backend, scale=float(scale)))


@pytest.mark.parametrize('backend', BACKENDS)
def test_strided_tensors_are_read_as_they_are(backend):
    dtype, tolerance = finest(backend)
    packed, keys, bias = random_case(GEOMETRIES['published'], (4, 9), dtype=dtype)
    out = run(packed, keys, bias, backend)
    strided = torch.stack([packed.detach()] * 2, dim=-1)[..., 0].requires_grad_()
    assert not strided.is_contiguous()
    again = run(strided, keys, bias.detach().mT.contiguous().mT, backend)
    torch.testing.assert_close(again, out, rtol=tolerance, atol=tolerance)
    upstream = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, packed, upstream)
    (grad,) = torch.autograd.grad(again, strided, upstream)
    torch.testing.assert_close(grad, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('backend', [b for b in BACKENDS if b != 'reference'])
def test_fused_backends_are_differentiable_once(backend):
    packed, keys, bias = random_case(GEOMETRIES['local'], (3, 4), dtype=torch.float32)
    out = run(packed, keys, bias, backend)
    (grad,) = torch.autograd.grad(out.square().sum(), packed, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiable once; .*backend='reference'"):
        grad.sum().backward()


@pytest.mark.parametrize('backend', [b for b in BACKENDS if b != 'reference'])
@pytest.mark.parametrize('name', ['published', 'shift'])
def test_registration_is_sound(backend, name):
    packed, keys, bias = random_case(GEOMETRIES[name], (5, 6), dtype=torch.float32)
    call = attention_module._as_numbers(keys, 0.25, backend)
    opcheck(torch.ops.mmfocal.focal_attention, (packed, bias, *call))


@pytest.mark.parametrize('backend', [b for b in BACKENDS if b != 'reference'])
def test_autocast_casts_all_but_the_bias(backend):
    lower = torch.float16 if DEVICE.type == 'cuda' or backend == 'triton' else torch.bfloat16
    packed, keys, bias = random_case(GEOMETRIES['published'], (3, 4), dtype=torch.float32)
    # No power of 2: over one, the kernels would round both biases alike.
    expected = run(packed.to(lower), keys, bias, backend, scale=0.3)
    with torch.autocast(DEVICE.type, dtype=lower):
        out = run(packed, keys, bias, backend, scale=0.3)
        rounded = run(packed, keys, bias.to(lower), backend, scale=0.3)
    assert out.dtype == lower
    assert torch.equal(out, expected) and not torch.equal(out, rounded)
    out.sum().backward()
    assert packed.grad.dtype == bias.grad.dtype == torch.float32


@pytest.mark.parametrize('backend', [b for b in BACKENDS if b != 'reference'])
@pytest.mark.parametrize('name', ['shift', 'closest-shift'])
def test_compiled_graph_holds_the_op_and_no_tables(backend, name):
    geometry = GEOMETRIES[name]

    def attend(packed, bias, height, width):
        return focal_attention(packed, geometry.keys(height, width), bias, backend=backend)

    graphs = []

    def record(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(attend, backend=record, fullgraph=True, dynamic=True)
    for size in ((5, 6), (9, 14)):
        packed, keys, bias = random_case(geometry, size, dtype=torch.float32)
        out = compiled(packed, bias, *size)
        assert torch.equal(out, run(packed, keys, bias, backend))
    assert len(graphs) == 1
    ops = [node.target for node in graphs[0].graph.nodes if node.op == 'call_function']
    assert torch.ops.mmfocal.focal_attention in ops
    assert not any('arange' in str(op) or 'index' in str(op) for op in ops)


def test_dropout_keeps_the_mean_and_is_off_by_default():
    packed, keys, bias = random_case(GEOMETRIES['published'], (3, 4), heads=1)
    expected = run(packed, keys, bias, 'auto')
    mean = sum(run(packed, keys, bias, 'auto', dropout_p=0.3) for _ in range(400)) / 400
    assert not torch.equal(run(packed, keys, bias, 'auto', dropout_p=0.3), expected)
    assert (mean - expected).norm() < 0.15 * expected.norm()


def test_backend_that_cannot_run_says_why():
    packed, keys, bias = random_case(GEOMETRIES['published'], (3, 4))
    with pytest.raises(ValueError, match=r"'gather_sdpa' cannot run here: .*dropout"):
        run(packed, keys, bias, 'gather_sdpa', dropout_p=0.1)
    with pytest.raises(ValueError, match=r"one of .*'auto'.* got 'flash'"):
        run(packed, keys, bias, 'flash')


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda p, b: (p[:, :-1], b), 'token axis must have'),
        (lambda p, b: (p[..., :1, :], b), r'bias must be \(nH, Wh\*Ww, N\) = \(1, '),
        (lambda p, b: (p, b[..., :-1]), r'bias must be \(nH, Wh\*Ww, N\)'),
        (lambda p, b: (p[:, :, 0], b), r'qkv must be \(B, L, 3, nH, D\)'),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    packed, keys, bias = random_case(GEOMETRIES['published'], (3, 4))
    packed, bias = change(packed, bias)
    with pytest.raises(ValueError, match=message):
        focal_attention(packed, keys, bias)


@pytest.mark.parametrize('scale', [0, -0.5, float('nan')])
def test_scale_that_is_not_positive_is_refused(scale):
    packed, keys, bias = random_case(GEOMETRIES['published'], (3, 4))
    with pytest.raises(ValueError, match=f'scale must be positive, got {scale}'):
        focal_attention(packed, keys, bias, scale=scale)


def test_bias_without_all_columns_is_refused():
    packed, keys, bias = random_case(GEOMETRIES['closest'], (3, 11))
    message = rf'bias must be \(nH, Wh\*Ww, columns\) = \(3, 9, {bias.shape[2]}\)'
    with pytest.raises(ValueError, match=message):
        focal_attention(packed, keys, bias[..., : keys.num_keys])
