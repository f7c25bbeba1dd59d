"""Behaviours of focal attention, each on every backend."""

import numpy as np
import oracle
import pytest
import torch
from test_geometry import names_of_tokens
from torch.nn.functional import scaled_dot_product_attention

from mmfocal.geometry import FocalGeometry
from mmfocal.ops import available_backends, focal_attention
from mmfocal.ops import gather_sdpa as gather_sdpa_module

BACKENDS = available_backends()
GEOMETRIES = {
    'published': FocalGeometry(focal_window=3),
    'shift': FocalGeometry(window_size=4, expand_size=1, shift_size=2, focal_window=3),
    'mask': FocalGeometry(
        window_size=4, expand_size=2, shift_size=2, focal_level=3, focal_window=1, border='mask'
    ),
    # Windows whose queries may see nothing at all: padding alone behind the seam.
    'keyless': FocalGeometry(
        window_size=4, expand_size=0, shift_size=2, focal_level=1, border='mask'
    ),
    'local': FocalGeometry(window_size=3, expand_size=0, focal_level=1),
}


def random_case(geometry, size, batch=2, heads=3, dim=4, dtype=torch.float64, seed=0):
    """Query, key, value as views of a packed tensor, keys and bias."""
    generator = torch.Generator().manual_seed(seed)
    keys = geometry.keys(*size)
    packed = torch.randn(
        batch, keys.num_tokens, 3, heads, dim, generator=generator, dtype=torch.float64
    )
    bias = torch.randn(
        heads, keys.num_queries, keys.num_keys, generator=generator, dtype=torch.float64
    )
    return packed.to(dtype).requires_grad_(), keys, bias.to(dtype).requires_grad_()


def run(packed, keys, bias, backend, **kwargs):
    return focal_attention(*packed.unbind(2), keys, bias, backend=backend, **kwargs)


@pytest.fixture(autouse=True, params=['whole', 'chunks'])
def chunk_size(request, monkeypatch):
    """All windows at once, and a few at a time with a smaller rest at the end."""
    if request.param == 'chunks':
        monkeypatch.setattr(gather_sdpa_module, 'CPU_CHUNK_BYTES', 20_000)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', GEOMETRIES)
@pytest.mark.parametrize('size', [(1, 1), (3, 11), (8, 9)])
def test_outputs_are_the_oracles(backend, name, size):
    geometry = GEOMETRIES[name]
    packed, keys, bias = random_case(geometry, size, heads=2)
    out = run(packed, keys, bias, backend, scale=0.3).detach().numpy()

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
    arrays = (t.detach().numpy() for t in packed.unbind(2))
    expected = oracle.attention(*arrays, windows, rows, bias.detach().numpy(), 0.3)
    assert len(expected) == out.shape[0] * out.shape[1] * out.shape[2]
    for (image, name_, head), vector in expected.items():
        np.testing.assert_allclose(out[image, rows[name_], head], vector, atol=1e-12)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', GEOMETRIES)
def test_gradients_are_those_of_finite_differences(backend, name):
    packed, keys, bias = random_case(GEOMETRIES[name], (2, 5), batch=1, heads=1, dim=2)
    assert torch.autograd.gradcheck(
        lambda p, b: run(p, keys, b, backend), (packed, bias), fast_mode=True
    )


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', GEOMETRIES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_follows_float64(backend, name, dtype):
    exact, keys, exact_bias = random_case(GEOMETRIES[name], (9, 10), heads=5, dim=16)
    packed = exact.detach().to(dtype).requires_grad_()
    bias = exact_bias.detach().float().requires_grad_()  # as autocast hands it over
    upstream = torch.randn(exact.shape[0], keys.inverse.shape[0], 5, 16, dtype=torch.float64)

    expected = run(exact, keys, exact_bias, 'reference')
    expected.backward(upstream)
    out = run(packed, keys, bias, backend)
    out.backward(upstream.to(dtype))

    assert out.dtype == packed.grad.dtype == dtype and bias.grad.dtype == torch.float32
    tolerance = 16 * torch.finfo(dtype).eps
    for got, want in ((out, expected), (packed.grad, exact.grad), (bias.grad, exact_bias.grad)):
        assert (got.double() - want).norm() <= tolerance * want.norm()


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', GEOMETRIES)
def test_token_changes_only_windows_that_list_it(backend, name):
    packed, keys, bias = random_case(GEOMETRIES[name], (9, 6), batch=1)
    with torch.no_grad():
        before = run(packed, keys, bias, backend)
        for token in (0, 7, keys.num_tokens - 1):
            changed = packed.clone()
            changed[:, token, 1:] += 1  # key and value, not query
            after = run(changed, keys, bias, backend)
            listed = ((keys.index == token)[:, None] & keys.allowed()).any(dim=-1)
            listed = listed.expand(-1, keys.num_queries).flatten()[keys.inverse]
            differs = (after != before).flatten(2).any(dim=-1)[0]
            assert torch.equal(differs, listed)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', GEOMETRIES)
def test_values_of_one_give_one(backend, name):
    packed, keys, bias = random_case(GEOMETRIES[name], (5, 9))
    values = torch.ones_like(packed[:, :, 2])
    out = focal_attention(packed[:, :, 0], packed[:, :, 1], values, keys, bias, backend=backend)
    sees_any = keys.allowed().any(dim=-1).expand(-1, keys.num_queries).flatten()[keys.inverse]
    expected = sees_any[None, :, None, None].expand_as(out).double()
    torch.testing.assert_close(out.detach(), expected)


@pytest.mark.parametrize('backend', BACKENDS)
def test_queries_without_keys_give_zero_and_no_gradient(backend):
    packed, keys, bias = random_case(GEOMETRIES['keyless'], (5, 9))
    keyless = ~keys.allowed().any(dim=-1).flatten()[keys.inverse]
    assert keyless.any()
    out = run(packed, keys, bias, backend)
    assert (out[:, keyless] == 0).all()
    out[:, keyless].sum().backward()
    assert (packed.grad == 0).all() and (bias.grad == 0).all()


@pytest.mark.parametrize('backend', BACKENDS)
def test_window_over_the_whole_map_is_plain_attention(backend):
    geometry = FocalGeometry(window_size=6, expand_size=0, focal_level=1)
    packed, keys, bias = random_case(geometry, (6, 6))
    query, key, value = (t.transpose(1, 2) for t in packed.unbind(2))
    expected = scaled_dot_product_attention(query, key, value, bias[None]).transpose(1, 2)
    torch.testing.assert_close(run(packed, keys, bias, backend), expected)


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradient_of_expanded_output(backend):
    packed, keys, bias = random_case(GEOMETRIES['published'], (4, 9))
    out = run(packed, keys, bias, backend)
    (from_sum,) = torch.autograd.grad(out.sum(), packed, retain_graph=True)
    (from_ones,) = torch.autograd.grad(out, packed, torch.ones_like(out))
    torch.testing.assert_close(from_sum, from_ones)


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
    with pytest.raises(ValueError, match=r"one of 'auto', .*got 'flash'"):
        run(packed, keys, bias, 'flash')


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda p, b: (p[:, :-1], b), 'token axis must have'),
        (lambda p, b: (p[:, :, :, :1], b), r'bias must be \(nH, Wh\*Ww, N\) = \(1, '),
        (lambda p, b: (p, b[..., :-1]), r'bias must be \(nH, Wh\*Ww, N\)'),
        (lambda p, b: (p[0], b), r'one shape \(B, L, nH, D\)'),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    packed, keys, bias = random_case(GEOMETRIES['published'], (3, 4))
    packed, bias = change(packed, bias)
    with pytest.raises(ValueError, match=message):
        focal_attention(*packed.unbind(-3), keys, bias)
