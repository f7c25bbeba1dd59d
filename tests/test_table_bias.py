"""The position bias by kernels: on a GPU, or on a CPU in Triton's interpreter.

Without either, test_interpreted_kernels_pass of test_triton.py runs this file in a process where
there is one.
"""

import math

import pytest
import torch
from torch.library import opcheck

from mmfocal.geometry import FocalGeometry
from mmfocal.models.position_bias import FocalPositionBias
from mmfocal.ops import serves, table_bias
from mmfocal.ops.table_bias import listings_of

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
pytestmark = [
    pytest.mark.skipif(
        not serves('auto', DEVICE, torch.float32), reason='needs a GPU or TRITON_INTERPRET=1'
    ),
    *([pytest.mark.gpu] if DEVICE.type == 'cuda' else []),
]

GEOMETRIES = {
    'published': FocalGeometry(focal_window=5),
    'three levels': FocalGeometry(window_size=4, expand_size=1, focal_level=3, focal_window=3),
    'no ring': FocalGeometry(window_size=3, expand_size=0, focal_window=3),
    'local': FocalGeometry(window_size=3, expand_size=0, focal_level=1),
    'shifted': FocalGeometry(window_size=4, expand_size=2, shift_size=2, focal_window=1),
}


def bias_of(geometry, dtype=torch.float32, num_heads=3):
    torch.manual_seed(0)
    bias = FocalPositionBias(geometry, num_heads)
    for table in bias.parameters():
        torch.nn.init.normal_(table)
    return bias.to(DEVICE, dtype)


@pytest.mark.parametrize('name', GEOMETRIES)
def test_bias_and_gradients_are_those_of_pytorch(name):
    ours, plain = bias_of(GEOMETRIES[name]), bias_of(GEOMETRIES[name]).double()
    got, expected = ours(fused=True), plain()
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)
    upstream = torch.randn(got.shape, device=DEVICE)
    grads = torch.autograd.grad(got, [*ours.parameters()], upstream)
    exact = torch.autograd.grad(expected, [*plain.parameters()], upstream.double())
    for grad, right in zip(grads, exact, strict=True):
        torch.testing.assert_close(grad.double(), right, rtol=1e-5, atol=1e-5)


def test_a_number_that_is_alone_in_its_place_is_taken_bit_for_bit():
    bias = bias_of(GEOMETRIES['published'])
    once = listings_of(GEOMETRIES['published'], 3, DEVICE).second < 0
    assert 0 < (~once).sum() < once.sum()
    assert torch.equal(bias(fused=True)[once], bias()[once])


def test_two_runs_give_the_same_bits():
    bias = bias_of(GEOMETRIES['published'])
    upstream = torch.randn(bias().shape, device=DEVICE)
    runs = [
        torch.autograd.grad(bias(fused=True), [*bias.parameters()], upstream) for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_compiled_runs_give_the_bits_of_eager_ones():
    """Where PyTorch's own gradient of indexing would add in no order at all on a GPU."""
    bias = bias_of(GEOMETRIES['published'])
    upstream = torch.randn(bias().shape, device=DEVICE)
    backend = 'inductor' if DEVICE.type == 'cuda' else 'aot_eager'
    compiled = torch.compile(lambda: bias(fused=True), backend=backend, fullgraph=True)
    runs = [
        (out, *torch.autograd.grad(out, [*bias.parameters()], upstream))
        for out in (bias(fused=True), compiled(), compiled())
    ]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_give_what_they_do_in_pytorch(value):
    bias = bias_of(GEOMETRIES['published'])
    with torch.no_grad():
        bias.relative_position_bias_table_to_neighbors[0, 0, 0] = value
    got, expected = bias(fused=True), bias()
    assert not expected[0, 0].isfinite().all() and expected[1:].isfinite().all()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_half_precision_tables():
    bias = bias_of(GEOMETRIES['published'], torch.float16)
    got = bias(fused=True)
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.float(), bias.float()(), rtol=2e-3, atol=2e-3)


def test_it_is_differentiable_once():
    bias = bias_of(GEOMETRIES['local'])
    table = bias.relative_position_bias_table
    (grad,) = torch.autograd.grad(bias(fused=True).square().sum(), table, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiable once; .*backend='reference'"):
        grad.sum().backward()


def test_registration_is_sound():
    geometry = GEOMETRIES['published']
    *numbers, border = geometry.values()
    size = len(listings_of(geometry, 3, DEVICE).offsets) - 1
    table = torch.randn(size, device=DEVICE, requires_grad=True)
    opcheck(torch.ops.mmfocal.table_bias, (table, numbers, border, 3))


def test_both_ways_in_give_the_same():
    bias = bias_of(GEOMETRIES['published'])
    flat = torch.cat([table.flatten() for table in bias.parameters()])
    *numbers, border = GEOMETRIES['published'].values()
    through_dispatcher = torch.ops.mmfocal.table_bias(flat, numbers, border, 3)
    assert torch.equal(table_bias([*bias.parameters()], bias.geometry), through_dispatcher)
