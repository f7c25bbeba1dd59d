"""What holds for every geometry, map and image: hypothesis looks for one where it does not.

``MMFOCAL_EXAMPLES=5000 python -m pytest tests/test_properties.py`` looks longer, see conftest.py.
"""

from dataclasses import replace

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from test_focal_attention import random_case, run
from test_geometry import assert_as_oracle

from mmfocal import FocalTransformer, FocalTransformerFast
from mmfocal.geometry import ClosestGeometry, FocalGeometry

sides = st.integers(1, 13)
sizes = st.tuples(sides, sides)
seeds = st.integers(0, 2**16)


@st.composite
def windows(draw, largest=6):
    """Settings that every geometry has."""
    window = draw(st.integers(1, largest))
    levels = min(window.bit_length() + 1, 3)
    return dict(
        window_size=window,
        shift_size=draw(st.integers(0, window - 1)),
        focal_level=draw(st.integers(1, levels)),
    )


@st.composite
def focal_geometries(draw):
    shared = draw(windows())
    return FocalGeometry(
        **shared,
        expand_size=draw(st.integers(0, shared['window_size'])),
        focal_window=draw(st.sampled_from([1, 3, 5])),
        border=draw(st.sampled_from(['wrap', 'mask'])),
    )


@st.composite
def closest_geometries(draw):
    return ClosestGeometry(**draw(windows()), top_k=draw(st.integers(1, 40)))


geometries = st.one_of(focal_geometries(), closest_geometries())


# --- Keys -----------------------------------------------------------------------------------


@given(focal_geometries(), sizes)
def test_keys_are_the_oracles(geometry, size):
    assert_as_oracle(geometry, *size)


@given(geometries, sizes)
def test_tables_are_sound(geometry, size):
    keys = geometry.keys(*size)
    tables = keys.tables()
    assert tables.index.min() >= 0 and tables.index.max() < keys.num_tokens
    # Every token of the padded map asks once, and the output goes back to where it came from.
    queries = tables.queries.flatten()
    assert torch.equal(queries.sort().values, torch.arange(keys.num_map_tokens))
    rows, cols = (torch.arange(side) for side in size)
    on_map = (rows[:, None] * keys.padded_size[1] + cols).flatten()
    assert torch.equal(queries[tables.inverse], on_map)
    assert keys.padded_size[0] - size[0] < geometry.window_size
    assert keys.padded_size[1] - size[1] < geometry.window_size
    if getattr(geometry, 'border', None) == 'wrap':
        return  # on small maps the ring comes back to the same tokens from the other side
    # What a window may see is listed for it once.
    allowed = tables.allowed().any(dim=1)
    for index, seen in zip(tables.index, allowed, strict=True):
        assert len(set(index[seen].tolist())) == seen.sum()


@given(focal_geometries(), sizes)
def test_masked_border_hides_keys_and_changes_none(geometry, size):
    wrap, mask = (
        replace(geometry, border=border).keys(*size).tables() for border in ('wrap', 'mask')
    )
    assert not (mask.allowed() & ~wrap.allowed()).any()
    seen = mask.allowed().any(dim=1)
    assert torch.equal(mask.index[seen], wrap.index[seen])


# --- The op ---------------------------------------------------------------------------------


@given(geometries, sizes, seeds)
def test_backends_agree_in_outputs_and_gradients(geometry, size, seed):
    results = []
    for backend in ('reference', 'gather_sdpa'):
        packed, keys, bias = random_case(geometry, size, heads=2, seed=seed)
        out = run(packed, keys, bias, backend)
        out.square().sum().backward()
        results.append((out, packed.grad, bias.grad))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@given(geometries, sizes, seeds)
def test_outputs_lie_between_values(geometry, size, seed):
    """An output is a mean of values, or 0 for a query without keys."""
    packed, keys, bias = random_case(geometry, size, heads=2, seed=seed)
    out, values = run(packed, keys, bias, 'gather_sdpa'), packed[:, :, 2]
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    assert (out >= low.clamp(max=0) - 1e-9).all() and (out <= high.clamp(min=0) + 1e-9).all()


@given(geometries, sizes, seeds, st.floats(-50, 50))
def test_constant_on_all_scores_of_a_query_changes_nothing(geometry, size, seed, constant):
    packed, keys, bias = random_case(geometry, size, heads=2, seed=seed)
    moved = bias + constant * torch.randn(*bias.shape[:2], 1, dtype=bias.dtype)
    out, other = (run(packed, keys, table, 'gather_sdpa') for table in (bias, moved))
    torch.testing.assert_close(out, other, rtol=1e-9, atol=1e-9)


@given(geometries, sizes, seeds)
def test_images_of_a_batch_do_not_see_each_other(geometry, size, seed):
    packed, keys, bias = random_case(geometry, size, batch=3, heads=2, seed=seed)
    together = run(packed, keys, bias, 'gather_sdpa')
    alone = torch.cat([run(packed[i : i + 1], keys, bias, 'gather_sdpa') for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


@given(focal_geometries(), sizes, seeds)
def test_order_of_heads_does_not_matter(geometry, size, seed):
    packed, keys, bias = random_case(geometry, size, heads=3, seed=seed)
    order = [2, 0, 1]
    out = run(packed, keys, bias, 'gather_sdpa')[:, :, order]
    other = run(packed[:, :, :, order], keys, bias[order], 'gather_sdpa')
    torch.testing.assert_close(out, other, rtol=1e-9, atol=1e-9)


# --- Backbones ------------------------------------------------------------------------------


@st.composite
def backbones(draw):
    """A narrow model with settings of its own for each stage."""
    depths = draw(st.tuples(*[st.integers(1, 2)] * 4))
    shared = dict(
        arch=dict(embed_dims=4, depths=depths, num_heads=(1, 1, 2, 2)),
        patch_size=draw(st.sampled_from([2, 4])),
        use_conv_embed=draw(st.booleans()),
        use_shift=draw(st.booleans()),
        out_indices=tuple(sorted(draw(st.sets(st.integers(0, 3), min_size=1)))),
    )
    per_stage = [draw(windows(5)) for _ in range(4)]
    shared['window_size'] = tuple(each['window_size'] for each in per_stage)
    shared['focal_levels'] = tuple(each['focal_level'] for each in per_stage)
    torch.manual_seed(draw(seeds))
    if draw(st.booleans()):
        return FocalTransformerFast(**shared, top_k=draw(st.integers(1, 20)))
    expand = tuple(draw(st.integers(0, each['window_size'])) for each in per_stage)
    focal = tuple(draw(st.sampled_from([1, 3, 5])) for _ in range(4))
    border = draw(st.sampled_from(['wrap', 'mask']))
    return FocalTransformer(**shared, expand_sizes=expand, focal_windows=focal, border=border)


@given(backbones(), st.integers(1, 50), st.integers(1, 50), seeds)
@example(FocalTransformer(arch='tiny'), 1, 1, 0)
def test_maps_of_any_image_have_their_strides(model, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)
    model = model.double().eval()
    with torch.no_grad():
        maps = model(images)
        alone = model(images[1:])
    assert len(maps) == len(model.out_indices)
    for stage, together, single in zip(model.out_indices, maps, alone, strict=True):
        stride = model.patch_embed.proj.stride[0] * 2**stage
        assert together.shape[2:] == (-(-height // stride), -(-width // stride))
        assert together.isfinite().all()
        # What an image gives does not depend on its batch.
        torch.testing.assert_close(together[1:], single, rtol=1e-9, atol=1e-9)
