"""Numbers at the ends of what formats hold: everything stays finite and near float64.

Tolerances are multiples of ``eps``, the distance of 1 to the next number of the format, since all
backends sum in float32: what is left is the rounding of weights, outputs and gradients.
"""

import pytest
import torch
from test_focal_attention import BACKENDS, DEVICE, GEOMETRIES, HEAD_DIM, finest, run

from mmfocal import FocalTransformer, FocalTransformerFast
from mmfocal.geometry import FocalGeometry
from mmfocal.ops import focal_attention, why_not

LOW = [torch.float16, torch.bfloat16]
TINY = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))
CASES = (
    'large scores',
    'one score far above',
    'large values',
    'hidden keys',
    'zeros',
    'constants',
)


def extremes(case, keys, heads, dtype, seed=0):
    """Packed queries, keys and values, which ``dtype`` can tell, and bias, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def integers(*shape, top):
        return torch.randint(-top, top + 1, shape, generator=generator).double()

    qkv = torch.stack(
        [integers(2, keys.num_tokens, heads, HEAD_DIM, top=2) for _ in range(3)], dim=2
    )
    bias = integers(heads, keys.num_queries, keys.num_bias_columns('cpu'), top=3)
    if case == 'large scores':
        # Products of a query and a key up to 16 * 200 ** 2, ten times what float16 holds. They are
        # integers below 2 ** 24, which float32 sums without error.
        qkv[:, :, :2] *= 100
    elif case == 'one score far above':
        bias[:, :, 0] = 3e4
        bias[:, :, 1:] = -3e4
    elif case == 'large values':
        qkv[:, :, 2] *= 0.45 * torch.finfo(torch.float16).max // 32 * 32
    elif case == 'hidden keys':
        bias[:, :, 1:] = -4e4  # of which softmax leaves nothing, where others are seen
    elif case == 'zeros':
        qkv.zero_()
        bias.zero_()
    elif case == 'constants':
        qkv.fill_(1.0)
        bias.fill_(-2.0)
    return qkv.to(dtype).double(), bias


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', LOW)
@pytest.mark.parametrize('name', ['shift', 'keyless', 'closest'])
@pytest.mark.parametrize('case', CASES)
def test_extremes_follow_float64(backend, dtype, name, case):
    if why_not(backend, DEVICE, dtype, HEAD_DIM):
        pytest.skip(why_not(backend, DEVICE, dtype, HEAD_DIM))
    keys = GEOMETRIES[name].keys(5, 6)
    exact_qkv, exact_bias = (t.to(DEVICE) for t in extremes(case, keys, 2, dtype))
    qkv, bias = exact_qkv.to(dtype).requires_grad_(), exact_bias.float().requires_grad_()
    exact_qkv.requires_grad_()
    exact_bias.requires_grad_()

    out = run(qkv, keys, bias, backend)
    expected = run(exact_qkv, keys, exact_bias, 'reference')
    # Gradients of moderate size, which tell keys and values apart.
    upstream = torch.randn(out.shape, device=DEVICE).sign() * 2.0**-6
    out.backward(upstream.to(dtype))
    expected.backward(upstream.double())

    largest = exact_qkv.detach().abs().amax((0, 1, 3, 4))
    # Of a score by its weight, a value and the upstream gradient; then by a query or a key.
    of_scores = (2.0**-6 * HEAD_DIM * largest[2]).clamp(min=1e-3)
    magnitudes = {
        'out': (out, expected, largest[2]),
        'bias': (bias.grad, exact_bias.grad, of_scores * keys.num_windows),
        'query': (qkv.grad[:, :, 0], exact_qkv.grad[:, :, 0], of_scores * largest[1]),
        'key': (qkv.grad[:, :, 1], exact_qkv.grad[:, :, 1], of_scores * largest[0]),
        'value': (qkv.grad[:, :, 2], exact_qkv.grad[:, :, 2], torch.ones(()) * keys.num_queries),
    }
    for what, (got, want, magnitude) in magnitudes.items():
        if what in ('query', 'key') and case == 'large values':
            magnitude = magnitude.clamp(max=torch.finfo(dtype).max)
        assert got.isfinite().all(), what
        error = (got.double() - want).abs().max()
        assert error <= 4 * torch.finfo(dtype).eps * magnitude.clamp(min=1e-3), (what, error)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', LOW)
@pytest.mark.parametrize('scale', [2.0**-10, 2.0**-6, 1.0, 2.0**10])
def test_bias_counts_the_same_whatever_the_scale(backend, dtype, scale):
    """A bias of 70 to 76, which over a small scale float16 cannot hold, nor tell over a large."""
    if why_not(backend, DEVICE, dtype, HEAD_DIM):
        pytest.skip(why_not(backend, DEVICE, dtype, HEAD_DIM))
    keys = GEOMETRIES['closest'].keys(5, 6)
    qkv, bias = (t.to(DEVICE) for t in extremes('moderate', keys, 2, dtype))
    qkv[:, :, :2] = (qkv[:, :, :2] / scale).clamp(-1, 1) * (scale <= 1)
    bias += 73
    out = run(qkv.to(dtype), keys, bias.float(), backend, scale=scale)
    expected = run(qkv, keys, bias, 'reference', scale=scale)
    assert (out.double() - expected).abs().max() <= 8 * torch.finfo(dtype).eps
    assert expected.std(dim=1).min() > 0.1


@pytest.mark.parametrize('backend', BACKENDS)
def test_single_key_gives_its_value(backend):
    """A map of one token, without ring: whatever the score, the only weight is 1."""
    dtype, _ = finest(backend)
    keys = FocalGeometry(window_size=1, expand_size=0, focal_level=1).keys(1, 1)
    qkv = torch.full((1, 1, 3, 1, HEAD_DIM), 1e4, device=DEVICE, dtype=dtype)
    qkv[:, :, 2] = torch.arange(HEAD_DIM)
    for bias in (-1e30, 0.0, 1e30):
        table = torch.full((1, 1, 1), bias, device=DEVICE, dtype=dtype)
        out = focal_attention(qkv, keys, table, backend=backend)
        torch.testing.assert_close(out[0, 0, 0], qkv[0, 0, 2, 0], rtol=0, atol=0)


@pytest.mark.parametrize('model', [FocalTransformer, FocalTransformerFast])
@pytest.mark.parametrize('size', [(1, 1), (4, 4), (33, 7)])
@pytest.mark.parametrize('content', [0.0, 1.0, 255.0, -1e4])
def test_flat_images_have_finite_maps_and_gradients(model, size, content):
    """Channels of one value, whose variance is 0, on maps of one token and more."""
    torch.manual_seed(0)
    net = model(arch=TINY)
    maps = net(torch.full((1, 3, *size), content))
    sum(each.square().sum() for each in maps).backward()
    assert all(each.isfinite().all() for each in maps)
    for name, parameter in net.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize('model', [FocalTransformer, FocalTransformerFast])
@pytest.mark.parametrize('attention_backend', ['reference', 'gather_sdpa'])
@pytest.mark.parametrize('dtype', LOW)
def test_mixed_precision_follows_float64(model, attention_backend, dtype):
    """Maps are normalised, so that their error is relative to 1; a dozen layers add theirs."""
    torch.manual_seed(0)
    net = model(arch=TINY, attention_backend=attention_backend).eval()
    image = torch.randn(2, 3, 50, 61) * 3
    with torch.autocast('cpu', dtype=dtype):
        maps = net(image)
    with torch.no_grad():
        expected = net.double()(image.double())
    for got, want in zip(maps, expected, strict=True):
        assert got.isfinite().all()
        error = (got.double() - want).square().mean().sqrt()
        assert error < 8 * torch.finfo(dtype).eps * want.square().mean().sqrt()


# --- Products of float32 on a GPU --------------------------------------------------------------


def as_tf32(x):
    """Rounded to the 11 bits of TensorFloat-32, halves away from zero, as ``cvt.rna.tf32.f32``."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def one_of_tf32(left, right):
    return as_tf32(left) @ as_tf32(right)


def three_of_tf32(left, right):
    """As Triton's tf32x3: without the product of what both roundings left over."""
    (large_left, large_right) = (as_tf32(each) for each in (left, right))
    rest_left, rest_right = as_tf32(left - large_left), as_tf32(right - large_right)
    return large_left @ large_right + large_left @ rest_right + rest_left @ large_right


def attention_of_windows(qkv, keys, bias, upstream_of, multiply):
    """Output of each window and gradients of qkv and bias, with ``multiply`` for all products.

    As the kernels go about it: weights from the scores, and dS = P * (dP - rowsum(dO * O)).
    """
    tables, scale = keys.tables(), HEAD_DIM**-0.5
    query, key, value = (each.transpose(1, 2) for each in qkv.unbind(2))  # (B, nH, L, D)
    q, k, v = query[:, :, tables.queries], key[:, :, tables.index], value[:, :, tables.index]
    columns = torch.arange(keys.num_keys) if tables.columns is None else tables.columns
    of_window = bias[:, :, columns].movedim(1, -2)  # (nH, [nW,] Wh * Ww, N)
    of_window = of_window[:, None] if tables.columns is None else of_window
    scores = multiply(q, k.mT) * scale + of_window
    weights = scores.masked_fill(~tables.allowed(), -torch.inf).softmax(-1).nan_to_num(0.0)
    out = multiply(weights, v)
    grad_out = upstream_of(out)
    grad_scores = weights * (multiply(grad_out, v.mT) - (grad_out * out).sum(-1, keepdim=True))
    grads = torch.zeros_like(qkv).permute(2, 0, 3, 1, 4)  # (3, B, nH, L, D)
    for grad, places, rows in (
        (grads[0], tables.queries, multiply(grad_scores, k) * scale),
        (grads[1], tables.index, multiply(grad_scores.mT, q) * scale),
        (grads[2], tables.index, multiply(weights.mT, grad_out)),
    ):
        grad.index_add_(2, places.flatten(), rows.flatten(2, 3))
    return out, grads, grad_scores.sum(0)


@pytest.mark.parametrize('name', GEOMETRIES)
def test_three_products_of_tf32_keep_to_the_tolerance_of_float32(name):
    """And one does not: test_lower_precision_follows_float64 finds it out on a GPU.

    A factor is cut into a large and a small part, which is at most 2 ** -11 of it and rounded by
    as much of itself. A product is then off by 2 ** -22 for each of both roundings, and by as much
    for the product of the small parts: 6 eps at most. Scores are off by that times the sum of
    ``scale * |q k|``, weights by twice as much as scores. Outputs and gradients sum over hundreds
    of them, whose signs are a matter of chance, so that of their norm some eps are off: here up to
    3, on an H200 up to 4, where 16 are allowed.
    """
    geometry = GEOMETRIES[name]
    keys = geometry.keys(2 * geometry.window_size, 3 * geometry.window_size)
    exact = torch.randn(2, keys.num_tokens, 3, 3, HEAD_DIM).double()
    bias = torch.randn(3, keys.num_queries, keys.num_bias_columns('cpu')).double()
    upstream = []

    def upstream_of(out):
        upstream.extend([] if upstream else [torch.randn(out.shape)])
        return upstream[0].to(out.dtype)

    wanted = attention_of_windows(exact, keys, bias, upstream_of, torch.matmul)
    by_op = run(exact, keys, bias, 'reference')  # that this is focal attention at all
    windows = by_op[:, keys.tables().queries].movedim(-2, 1)
    torch.testing.assert_close(wanted[0], windows, rtol=1e-12, atol=1e-12)

    eps = torch.finfo(torch.float32).eps
    inputs = exact.float(), keys, bias.float(), upstream_of

    def worst(multiply):
        found = attention_of_windows(*inputs, multiply)
        pairs = zip(found, wanted, strict=True)
        return max(float((a.double() - b).norm() / b.norm()) for a, b in pairs)

    assert worst(three_of_tf32) <= 8 * eps
    assert worst(one_of_tf32) > 16 * eps
