"""The figures of docs/how_it_works.md: what they count, and that they show it."""

import matplotlib.pyplot as plt
import pytest

from mmfocal import FocalTransformer
from tools.dev import diagrams
from tools.dev.diagrams import ALL, FOCAL, FOCAL_WIDE, SIDES, SWIN


def test_keys_of_each_stage():
    assert diagrams.keys_of_stages() == {
        SWIN: [49, 49, 49, 49],
        FOCAL: [218, 194, 178, 170],
        FOCAL_WIDE: [394, 338, 250, 218],
        ALL: [200 * 336, 100 * 168, 50 * 84, 25 * 42],  # of 800x1344 pixels
    }


def test_costs_grow_with_the_pixels_and_for_all_tokens_faster():
    gflops = diagrams.gflops_by_side()
    for name in (SWIN, FOCAL, FOCAL_WIDE):
        assert gflops[name][1] / gflops[name][0] == pytest.approx((SIDES[1] / SIDES[0]) ** 2)
    assert gflops[ALL][-1] / gflops[ALL][-2] > 1.5 * (SIDES[-1] / SIDES[-2]) ** 2
    order = [name for name, _ in sorted(gflops.items(), key=lambda item: item[1][-1])]
    assert order == [SWIN, FOCAL, FOCAL_WIDE, ALL]
    assert gflops[SWIN][0] == pytest.approx(4.5, rel=0.02)  # as Swin Transformer's authors say


def test_all_tokens_cost_what_one_window_of_the_whole_map_does():
    """A map that is one window has nothing to add, and a window that is the map costs as much."""
    side, arch = 112, dict(embed_dims=8, depths=(1,), num_heads=(1,))
    windows = dict(focal_levels=1, focal_windows=1, expand_sizes=0)
    small, whole = (
        FocalTransformer(arch, **windows, focal_stages=(), out_indices=(0,), window_size=size)
        .to('meta')
        .eval()
        for size in (7, 28)
    )
    by_count = diagrams.count(whole, side) - diagrams.count(small, side)
    assert diagrams.extra_of_all_tokens(small, side)[0] == pytest.approx(by_count, rel=1e-6)


def test_figures_show_the_numbers(tmp_path):
    keys, gflops = {SWIN: [49] * 4, ALL: [1000] * 4}, {SWIN: [1, 2, 3, 4, 5], ALL: [9] * 5}
    figure = diagrams.draw_costs(keys, gflops)
    bars, lines = figure.axes
    assert [text.get_text() for text in bars.texts] == ['49'] * 4 + ['1,000'] * 4
    assert [list(line.get_ydata()) for line in lines.lines] == list(gflops.values())
    kernel = diagrams.draw_kernel()
    words = ' '.join(text.get_text() for axes in kernel.axes for text in axes.texts)
    assert 'online softmax' in words and 'all scores' in words
    kernel.canvas.draw()
    for axes in kernel.axes:  # nothing sticks out of the page
        for text in axes.texts:
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= kernel.bbox.x1
    for each in (figure, kernel):
        plt.close(each)
