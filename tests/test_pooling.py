"""Pooling: values by hand, and the crop where sub-windows do not fill a window."""

import pytest
import torch

from mmfocal.geometry import FocalGeometry
from mmfocal.models.pooling import FocalPooling

GEOMETRY = FocalGeometry(window_size=2, expand_size=0, focal_level=2)


def pooled(method, x, geometry=GEOMETRY, level=1, **parameters):
    pool = FocalPooling(geometry, level, method, x.shape[-1])
    for name, value in parameters.items():
        getattr(pool, name).data.copy_(torch.as_tensor(value))
    grid = tuple(side // geometry.window_size for side in x.shape[1:3])
    return pool(x, grid)


def two_windows():
    """One row of two 2x2 windows with two channels: (1, 2, 4, 2)."""
    first = torch.tensor([[1.0, 2.0, 5.0, 6.0], [3.0, 4.0, 7.0, 8.0]])
    return torch.stack([first, -first], dim=-1)[None]


@pytest.mark.parametrize(
    'method, expected', [('mean', [[2.5, -2.5], [6.5, -6.5]]), ('max', [[4, -1], [8, -5]])]
)
def test_mean_and_max(method, expected):
    torch.testing.assert_close(pooled(method, two_windows())[0, 0], torch.tensor(expected).float())


def test_fc_weighs_tokens_alike_in_all_channels():
    out = pooled('fc', two_windows(), weight=[[1.0, 0.0, 0.0, 10.0]], bias=[0.5])
    torch.testing.assert_close(out[0, 0], torch.tensor([[41.5, -40.5], [85.5, -84.5]]))


@pytest.mark.parametrize('method', ['fc', 'conv'])
def test_rows_and_columns_of_a_sub_window_are_told_apart(method):
    # A map of 3 x 2 windows whose tokens hold row + 100 * column.
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(8.0), indexing='ij')
    x = (rows + 100 * columns)[None, ..., None]
    weight = torch.zeros(4, 4)
    weight[1, 2] = 1  # the token in the second row and the third column
    shape = (1, 16) if method == 'fc' else (1, 1, 4, 4)
    geometry = FocalGeometry(window_size=4, expand_size=0, focal_level=2)
    out = pooled(method, x, geometry, weight=weight.view(shape))
    torch.testing.assert_close(out[0, ..., 0], x[0, 1::4, 2::4, 0])


def test_conv_weighs_tokens_channel_by_channel():
    weight = torch.zeros(2, 1, 2, 2)
    weight[0, 0, 0, 1], weight[1, 0, 1, 0] = 1, 2
    out = pooled('conv', two_windows(), weight=weight, bias=[0.0, 1.0])
    torch.testing.assert_close(out[0, 0], torch.tensor([[2.0, -5.0], [6.0, -13.0]]))


@pytest.mark.parametrize('method', ['fc', 'conv'])
def test_learned_pooling_begins_as_the_mean(method):
    x = torch.randn(2, 14, 21, 3)
    geometry = FocalGeometry(focal_level=2)
    torch.testing.assert_close(
        pooled(method, x, geometry), pooled('mean', x, geometry), rtol=1e-4, atol=1e-5
    )


def test_second_level_pools_the_centre_of_the_map():
    # A window of 7 holds two sub-windows of 3 a side; of 14 tokens the centre 12 are pooled.
    x = torch.arange(14.0 * 14).view(1, 14, 14, 1)
    out = pooled('mean', x, FocalGeometry(focal_level=3), level=2)
    assert out.shape == (1, 4, 4, 1)
    torch.testing.assert_close(out[0, 0, 0, 0], x[0, 1:4, 1:4].mean())
    torch.testing.assert_close(out[0, 3, 2, 0], x[0, 10:13, 7:10].mean())


def test_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"pool_method must be one of .* got 'median'"):
        FocalPooling(GEOMETRY, 1, 'median', 4)
