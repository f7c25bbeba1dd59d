"""The fused tokens against PyTorch's, in outputs, gradients and places where they are not used.

The kernels need a GPU, or Triton's interpreter, in which ``test_interpreted_kernels_pass`` of
test_triton.py runs this file.
"""

import copy
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mmfocal.geometry import ClosestGeometry, FocalGeometry
from mmfocal.models import focal_self_attention as attention_module
from mmfocal.models.focal_self_attention import FocalSelfAttention
from mmfocal.ops import focal_tokens, pools_whole_windows, serves

ROOT = Path(__file__).parents[1]
DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
HAS_KERNELS = serves('auto', DEVICE, torch.float32)
# On a GPU they are for it.
needs_kernels = (
    pytest.mark.gpu
    if HAS_KERNELS and DEVICE.type == 'cuda'
    else pytest.mark.skipif(
        not HAS_KERNELS,
        reason='the kernels run on a GPU, and in an interpreter that another test starts',
    )
)
BFLOAT16 = pytest.param(torch.bfloat16, marks=pytest.mark.gpu)  # the interpreter cuts digits off


def layer_of(geometry=None, channels=16, **settings):
    """An attention layer whose pooling is no mean."""
    geometry = geometry or FocalGeometry(focal_window=3)
    layer = FocalSelfAttention(geometry, channels, num_heads=2, **settings)
    for parameter in layer.pools.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return layer.to(DEVICE)


def case(size, channels=16, window=7, batch=2, dtype=torch.float32, **settings):
    """A layer, a map, its keys, and a gradient of its tokens; none with a mean of 0."""
    geometry = FocalGeometry(window_size=window, expand_size=0, focal_window=3)
    layer, keys = layer_of(geometry, channels, **settings), geometry.keys(*size)
    x = torch.randn(batch, *size, channels, device=DEVICE) + 1
    upstream = torch.randn(batch, keys.num_tokens, channels, device=DEVICE) + 1
    return layer, x.to(dtype).requires_grad_(), keys, upstream


def fused(layer, x, keys):
    (pool,) = layer.pools
    return focal_tokens(x, keys, pool.weight, pool.bias)


def tokens_and_grads(layer, x, keys, upstream, tokens=fused):
    """The tokens, and the gradients of map, weight and bias."""
    (pool,) = layer.pools
    out = tokens(layer, x, keys)
    return out.detach(), *torch.autograd.grad(
        out, (x, pool.weight, pool.bias), upstream.to(out.dtype)
    )


def exact(layer, x, keys, upstream):
    """The same as the module computes it in PyTorch, in float64."""
    layer, x = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    assert not serves('auto', DEVICE, x.dtype)
    return tokens_and_grads(layer, x, keys, upstream.double(), FocalSelfAttention._tokens)


def check(got, expected, dtype):
    """Sums of float32, rounded once to ``dtype`` where that is what is stored."""
    assert [value.dtype for value in got] == [dtype, dtype, torch.float32, torch.float32]
    for value, want in zip(got, expected, strict=True):
        tolerance = max(torch.finfo(value.dtype).eps, 1e-6)
        assert (value.double() - want).norm() <= tolerance * want.norm()


@needs_kernels
@pytest.mark.parametrize(
    'size, window, channels, batch',
    [
        ((8, 15), 7, 16, 3),  # padded along both sides
        ((3, 2), 7, 24, 1),  # less than a window, and channels that no block divides
        ((14, 7), 7, 96, 1),  # whole windows, three blocks of channels
        ((9, 5), 4, 160, 1),
        ((13, 12), 12, 16, 2),
        ((3, 4), 1, 20, 2),
    ],
    ids=['padded', 'small map', 'whole windows', 'window of 4', 'window of 12', 'window of 1'],
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, BFLOAT16], ids=str)
def test_tokens_and_gradients_are_those_of_pytorch(size, window, channels, batch, dtype):
    layer, x, keys, upstream = case(size, channels, window, batch, dtype)
    upstream = upstream.to(dtype)
    got = tokens_and_grads(layer, x, keys, upstream)
    check(got, exact(layer, x, keys, upstream), dtype)


@needs_kernels
def test_map_and_gradient_may_have_any_strides():
    layer, x, keys, _ = case((5, 9))
    x = x.detach().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1).requires_grad_()
    upstream = (torch.randn(2, keys.num_tokens, 1, device=DEVICE) + 1).expand(-1, -1, 16)
    assert not x.is_contiguous()
    got = tokens_and_grads(layer, x, keys, upstream)
    check(got, exact(layer, x, keys, upstream), torch.float32)


@needs_kernels
def test_everything_new_is_written(monkeypatch):
    """New memory may hold anything; here it holds what would spread."""
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor,
        'new_empty',
        lambda *args, **kwargs: new_empty(*args, **kwargs).fill_(torch.nan),
    )
    layer, x, keys, upstream = case((8, 6), channels=24)
    got = tokens_and_grads(layer, x, keys, upstream)
    monkeypatch.undo()
    check(got, exact(layer, x, keys, upstream), torch.float32)


@needs_kernels
def test_runs_are_equal(monkeypatch):
    from mmfocal.ops.triton import tokens_pass

    monkeypatch.setattr(tokens_pass, 'BACKWARD_PROGRAMS', 4)  # runs of several windows
    tokens_pass.plan_of.cache_clear()
    layer, x, keys, upstream = case((15, 16), channels=32)
    assert tokens_pass.plan_of(2, 15, 16, 32, 7).runs == 4
    first, second = (tokens_and_grads(layer, x, keys, upstream) for _ in range(2))
    tokens_pass.plan_of.cache_clear()
    assert all(map(torch.equal, first, second))
    check(first, exact(layer, x, keys, upstream), torch.float32)


@needs_kernels
@pytest.mark.parametrize('dtype', [torch.float16, BFLOAT16], ids=str)
def test_tokens_have_the_dtype_of_autocast(dtype):
    layer, x, keys, upstream = case((6, 8))
    upstream = upstream.to(dtype)
    with torch.autocast(DEVICE.type, dtype=dtype):
        out = fused(layer, x, keys)
        with torch.autocast(DEVICE.type, enabled=False):
            assert fused(layer, x, keys).dtype == torch.float32
    grads = torch.autograd.grad(out, (x, *layer.pools.parameters()), upstream)
    expected = exact(layer, x, keys, upstream)
    assert out.dtype == dtype and all(grad.dtype == torch.float32 for grad in grads)
    # The map has not been rounded before it is pooled, and not for its own gradient.
    tolerances = (torch.finfo(dtype).eps / 2, 1e-6, torch.finfo(dtype).eps, 1e-6)
    for got, want, tolerance in zip((out, *grads), expected, tolerances, strict=True):
        assert (got.double() - want).norm() <= tolerance * want.norm()


@needs_kernels
def test_only_what_needs_a_gradient_has_one():
    layer, x, keys, upstream = case((6, 8))
    (pool,) = layer.pools
    _, grad_x, grad_weight, grad_bias = tokens_and_grads(layer, x, keys, upstream)

    pool.requires_grad_(False)
    assert torch.equal(torch.autograd.grad(fused(layer, x, keys), x, upstream)[0], grad_x)
    pool.weight.requires_grad_()
    fused(layer, x.detach(), keys).backward(upstream)
    assert torch.equal(pool.weight.grad, grad_weight) and pool.bias.grad is None
    pool.weight.requires_grad_(False)
    pool.bias.requires_grad_()
    fused(layer, x.detach(), keys).backward(upstream)
    assert torch.equal(pool.bias.grad, grad_bias)
    pool.requires_grad_(False)
    assert not fused(layer, x.detach(), keys).requires_grad


@needs_kernels
def test_no_images_give_no_tokens():
    layer, x, keys, upstream = case((6, 8), batch=0)
    out, grad_x, grad_weight, grad_bias = tokens_and_grads(layer, x, keys, upstream)
    assert out.shape == (0, keys.num_tokens, 16) and grad_x.shape == x.shape
    assert (grad_weight == 0).all() and (grad_bias == 0).all()


@needs_kernels
def test_there_are_three_launches(monkeypatch):
    from mmfocal.ops.triton import tokens_pass

    launched, launch = [], tokens_pass.launch
    monkeypatch.setattr(
        tokens_pass,
        'launch',
        lambda function, *args: (launched.append(function), launch(function, *args)),
    )
    layer, x, keys, upstream = case((6, 8))
    tokens_and_grads(layer, x, keys, upstream, partial(FocalSelfAttention._tokens, fused=True))
    kernels = 'tokens_kernel', 'tokens_grad_kernel', 'sum_partials_kernel'
    assert launched == [getattr(tokens_pass, name) for name in kernels]


@needs_kernels
def test_activation_checkpointing_gives_the_same():
    layer, x, keys, upstream = case((6, 8))

    def recomputed(layer, x, keys):
        return checkpoint(fused, layer, x, keys, use_reentrant=False)

    expected = tokens_and_grads(layer, x, keys, upstream)
    got = tokens_and_grads(layer, x, keys, upstream, recomputed)
    assert all(map(torch.equal, got, expected))


class Operators(TorchDispatchMode):
    """Names of what runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@needs_kernels
def test_tools_that_watch_operators_see_it():
    layer, x, keys, upstream = case((6, 8))
    expected = tokens_and_grads(layer, x, keys, upstream)
    with Operators() as operators:
        got = tokens_and_grads(layer, x, keys, upstream)
    assert all(map(torch.equal, got, expected))
    names = [name for name in operators.names if name.startswith('mmfocal')]
    assert names == [
        'mmfocal.focal_tokens.default',
        'mmfocal.focal_tokens_backward.default',
    ]
    with FlopCounterMode(display=False) as counter:
        tokens_and_grads(layer, x, keys, upstream)
    assert counter.get_total_flops() == 3 * 2 * (2 * 2 * 49 * 16)


@needs_kernels
def test_registered_operators_are_sound():
    layer, x, keys, _ = case((6, 8))
    (pool,) = layer.pools
    opcheck(torch.ops.mmfocal.focal_tokens, (x, pool.weight, pool.bias, 7, torch.float16))
    tokens = fused(layer, x, keys).detach()
    for needed in ((True, True), (True, False), (False, True)):
        call = (tokens, tokens, pool.weight.detach(), 6, 8, 7, torch.float32, *needed)
        opcheck(torch.ops.mmfocal.focal_tokens_backward, call)


@needs_kernels
def test_gradients_of_gradients_are_refused():
    layer, x, keys, _ = case((6, 8))
    (grad,) = torch.autograd.grad(fused(layer, x, keys).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiable once; .*backend='reference'"):
        grad.sum().backward()


@pytest.mark.parametrize('size, places', [((7, 8), 49), ((8, 7), 49), ((7, 7), 16)])
def test_what_does_not_fit_the_keys_is_refused(size, places):
    x, weight = torch.zeros(1, *size, 4, device=DEVICE), torch.zeros(1, places, device=DEVICE)
    with pytest.raises(ValueError, match=r'a map \(B, H, W, C\) with \(H, W\) = \(7, 7\) needs'):
        focal_tokens(x, FocalGeometry().keys(7, 7), weight, torch.zeros(1, device=DEVICE))


def refuse(*args):
    raise AssertionError('the fused tokens were asked for')


def fusable(monkeypatch):
    """As if the kernels could run everywhere; who calls them fails."""
    named = ('auto', 'triton')
    monkeypatch.setattr(attention_module, 'serves', lambda backend, *of_map: backend in named)
    monkeypatch.setattr(attention_module, 'focal_tokens', refuse)


@pytest.mark.parametrize(
    'geometry, settings',
    [
        (None, dict(pool_method='conv')),
        (None, dict(pool_method='mean')),
        (None, dict(pool_method='max')),
        (None, dict(backend='gather_sdpa')),
        (None, dict(backend='reference')),
        (FocalGeometry(focal_window=3, shift_size=3), {}),
        (FocalGeometry(focal_window=3, focal_level=3), {}),
        (FocalGeometry(focal_level=1), {}),
        (FocalGeometry(window_size=17, expand_size=0, focal_window=1), {}),
        (ClosestGeometry(focal_level=3, top_k=4), {}),
    ],
    ids=str,
)
def test_everything_else_is_computed_in_pytorch(geometry, settings, monkeypatch):
    layer = layer_of(geometry, **settings)
    x, keys = torch.randn(1, 9, 8, 16, device=DEVICE), layer.geometry.keys(9, 8)
    expected = layer._tokens(x, keys)
    fusable(monkeypatch)
    fused = attention_module.serves(layer.backend)
    assert torch.equal(layer._tokens(x, keys, fused), expected)
    assert expected.shape == (1, keys.num_tokens, 16)


@pytest.mark.parametrize('geometry', [None, ClosestGeometry(top_k=4)], ids=str)
def test_layer_asks_for_fused_tokens(geometry, monkeypatch):
    layer = layer_of(geometry)
    assert pools_whole_windows(layer.geometry)
    x, keys = torch.randn(1, 9, 8, 16, device=DEVICE), layer.geometry.keys(9, 8)
    fusable(monkeypatch)
    with pytest.raises(AssertionError, match='were asked for'):
        layer(x, keys)


def test_hooks_of_the_pooling_are_called(monkeypatch):
    layer = layer_of()
    x, keys, seen = torch.randn(1, 9, 8, 16, device=DEVICE), layer.geometry.keys(9, 8), []
    layer.pools[0].register_forward_hook(lambda module, args, out: seen.append(out))
    fusable(monkeypatch)
    out = layer._tokens(x, keys, fused=True)
    assert torch.equal(seen[0].flatten(1, 2), out[:, keys.num_map_tokens :])


@needs_kernels
def test_layer_is_the_same_with_fused_tokens(monkeypatch):
    layer = layer_of()
    x, keys = torch.randn(2, 9, 8, 16, device=DEVICE), layer.geometry.keys(9, 8)
    out = layer(x, keys)
    monkeypatch.setattr(attention_module, 'serves', lambda *of_map: False)
    torch.testing.assert_close(out, layer(x, keys), rtol=1e-4, atol=1e-5)


def test_maps_that_the_kernels_do_not_take():
    assert not serves('auto', DEVICE, torch.float64)
    assert not serves('reference', DEVICE, torch.float32)
    if not INTERPRETED:  # which takes them for tensors of a GPU
        assert not serves('auto', torch.device('meta'), torch.float32)
        assert not serves('auto', torch.device('cpu'), torch.float32)


def test_compiled_layers_hold_the_op_whole():
    layer = layer_of()
    x, keys = torch.randn(2, 9, 8, 16, device=DEVICE), layer.geometry.keys(9, 8)
    expected = layer._tokens(x, keys)
    targets = []

    def record(graph, example_inputs):
        targets.extend(node.target for node in graph.graph.nodes)
        return graph.forward if HAS_KERNELS else lambda *inputs: (expected,)

    compiled = torch.compile(layer._tokens, backend=record, fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(x, keys, fused=True), expected)
    assert targets.count(torch.ops.mmfocal.focal_tokens) == 1
    assert torch.nn.functional.pad not in targets and torch.cat not in targets
