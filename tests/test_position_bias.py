"""Position bias: the right number at the right key, and gradients in every table."""

import oracle
import torch

from mmfocal.geometry import FocalGeometry
from mmfocal.models.position_bias import FocalPositionBias, relative_position_index

GEOMETRY = FocalGeometry(window_size=4, expand_size=1, focal_level=3, focal_window=3)


def filled(num_heads=2):
    bias = FocalPositionBias(GEOMETRY, num_heads)
    with torch.no_grad():
        for parameter in bias.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return bias


def test_window_bias_depends_on_relative_position_alone():
    bias = filled()
    window = bias()[..., GEOMETRY.sources()['window']].unflatten(2, (4, 4)).unflatten(1, (4, 4))
    for row in range(4):
        for col in range(4):
            for key_row in range(4):
                for key_col in range(4):
                    entry = (row - key_row + 3) * 7 + (col - key_col + 3)
                    expected = bias.relative_position_bias_table[entry]
                    assert torch.equal(window[:, row, col, key_row, key_col], expected)


def test_ring_bias_joins_the_listings_of_each_position():
    bias = filled()
    ring = bias()[..., GEOMETRY.sources()['ring']]
    table = bias.relative_position_bias_table_to_neighbors[0]
    listed = oracle.ring_as_authors_list_it(4, 1)
    twice = 0
    for column, position in enumerate(map(tuple, GEOMETRY.ring_offsets().tolist())):
        places = [i for i, listing in enumerate(listed) if listing == position]
        twice += len(places) == 2
        expected = table[..., places].exp().sum(-1).log()
        torch.testing.assert_close(ring[..., column], expected)
    assert twice == 8


def test_two_keys_with_one_token_weigh_like_one_with_the_joint_bias():
    scores, values = torch.randn(5).double(), torch.randn(5, 3).double()
    bias = torch.randn(6).double()
    listed = torch.tensor([0, 1, 2, 3, 4, 4])
    expected = (scores[listed] + bias).softmax(0) @ values[listed]
    joint = torch.cat([bias[:4], torch.logaddexp(bias[4], bias[5])[None]])
    torch.testing.assert_close((scores + joint).softmax(0) @ values, expected)


def test_pooled_bias_depends_on_relative_position_alone():
    bias = filled()
    for level, table in enumerate(bias.relative_position_bias_table_to_windows, start=1):
        region = GEOMETRY.region_size(level)
        pooled = bias()[..., GEOMETRY.sources()[f'level{level}']]
        side = 4 + region - 1
        for query, key in ((0, 0), (5, 2), (15, region**2 - 1)):
            row = query // 4 - key // region + region - 1
            col = query % 4 - key % region + region - 1
            assert torch.equal(pooled[:, query, key], table[:, row * side + col])


def test_index_uses_every_entry_of_its_table():
    index = relative_position_index(3, 5)
    assert index.shape == (9, 25)
    assert torch.equal(index.unique(), torch.arange(7 * 7))


def test_every_table_gets_a_gradient():
    bias = FocalPositionBias(GEOMETRY, 2)
    bias().square().sum().backward()
    (bias() * torch.randn(bias().shape)).sum().backward()
    for name, parameter in bias.named_parameters():
        assert (parameter.grad != 0).all(), name


def test_tables_are_found_by_their_prefix_and_indices_are_not_saved():
    names = set(FocalPositionBias(GEOMETRY, 2).state_dict())
    assert names == {
        'relative_position_bias_table',
        'relative_position_bias_table_to_neighbors',
        'relative_position_bias_table_to_windows.0',
        'relative_position_bias_table_to_windows.1',
    }


def test_no_ring_and_one_level_have_one_table():
    bias = FocalPositionBias(FocalGeometry(expand_size=0, focal_level=1), 3)
    assert set(bias.state_dict()) == {'relative_position_bias_table'}
    assert bias().shape == (3, 49, 49)
