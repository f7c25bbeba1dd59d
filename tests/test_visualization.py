"""Figures and drawn predictions: they hold what they are to show."""

import importlib.util
import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from pycocotools.coco import COCO

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from mmfocal.cli import show_keys
from mmfocal.datasets import prepare_shapes
from mmfocal.engine.curves import draw_curves, read_scalars
from mmfocal.geometry import FocalGeometry
from mmfocal.utils.errors import UserError
from mmfocal.visualization.keys import (
    LEVEL_COLOURS,
    RING_COLOUR,
    WINDOW_COLOUR,
    draw_keys,
    draw_keys_on_image,
)
from mmfocal.visualization.predictions import (
    draw_classes,
    draw_coco,
    draw_detections,
    draw_instances,
    draw_label_map,
    draw_segmentations,
    palette_of,
)

ROOT = Path(__file__).parents[1]


def write_log(work_dir, start, rows):
    folder = work_dir / start / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(json.dumps(row) for row in rows))


@pytest.fixture
def work_dir(tmp_path):
    write_log(
        tmp_path,
        '20260101_000000',
        [dict(step=i, loss=9.0 - i, loss_cls=1.0, lr=0.1) for i in (1, 2, 3, 4)],
    )
    write_log(
        tmp_path,
        '20260102_000000',
        # As mmengine logs metrics of an iteration-based run: under epoch 0.
        [dict(step=3, loss=1.0, loss_cls=0.5, lr=0.1), {'step': 0, 'coco/bbox_mAP': 0.25}],
    )
    return tmp_path


def pixels(figure):
    figure.canvas.draw()
    image = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    plt.close(figure)
    return image


def test_later_start_replaces_the_steps_that_it_repeats(work_dir):
    rows = read_scalars(work_dir)
    assert [(row['step'], row.get('loss')) for row in rows] == [(1, 8), (2, 7), (3, 1), (3, None)]


def test_a_validation_that_is_made_up_for_belongs_to_where_training_was(tmp_path):
    write_log(tmp_path, '20260101_000000', [{'step': 1, 'loss': 8}, {'step': 2, 'loss': 7}])
    # Resumed from iteration 2, whose validation had not been complete.
    later = [{'step': 0, 'coco/bbox_mAP': 0.25}, {'step': 3, 'loss': 6}]
    write_log(tmp_path, '20260101_000001', later)
    rows = [(row['step'], row.get('coco/bbox_mAP')) for row in read_scalars(tmp_path)]
    assert rows == [(1, None), (2, None), (2, 0.25), (3, None)]


def test_a_row_that_was_cut_off_is_left_out(tmp_path):
    write_log(tmp_path, '20260101_000000', [{'step': 1, 'loss': 8}, {'step': 2, 'loss': 7}])
    log = tmp_path / '20260101_000000/vis_data/scalars.json'
    log.write_text(log.read_text().rstrip()[:-5])  # the disk was full
    write_log(tmp_path, '20260101_000001', [{'step': 2, 'loss': 6}, {'step': 3, 'loss': 5}])
    rows = [(row['step'], row['loss']) for row in read_scalars(tmp_path)]
    assert rows == [(1, 8), (2, 6), (3, 5)]


def test_curves_hold_the_logged_numbers(work_dir):
    figure = draw_curves(work_dir)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    assert list(lines['loss'].get_ydata()) == [8, 7, 1]
    assert list(lines['box mAP'].get_xdata()) == [3]
    assert 'learning rate' in lines
    assert pixels(figure).std() > 5


def test_a_run_too_short_for_a_logged_loss_has_empty_curves(tmp_path):
    write_log(tmp_path, '20260101_000000', [{'step': 2, 'coco/bbox_mAP': 0.25}])
    panels = {axes.get_ylabel(): axes for axes in draw_curves(tmp_path).axes}
    assert panels['loss'].get_legend() is None
    assert not panels['metric on the held-out split'].lines  # of an unknown iteration


def test_folder_without_a_log_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no log of a run'):
        draw_curves(tmp_path)


def test_detections_stand_beside_the_ground_truth(tmp_path):
    data = prepare_shapes(tmp_path / 'shapes', num_images=dict(train=1, val=2))
    annotations = data / 'annotations/instances_val.json'
    truth = json.loads(annotations.read_text())['annotations']
    found = [
        dict(image_id=a['image_id'], category_id=a['category_id'], bbox=a['bbox'], score=score)
        for a, score in zip(truth, [0.9, 0.1] * len(truth), strict=False)
    ]
    results = tmp_path / 'results.json'
    results.write_text(json.dumps(found))
    figure = draw_detections(annotations, data / 'val', results)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ['ground truth', 'predicted'] * 2 + [''] * 2
    with redirect_stdout(None):
        coco = COCO(str(annotations))
    for number, info in enumerate(coco.dataset['images']):
        image = cv2.imread(str(data / 'val' / info['file_name']))
        left, right = (axes.get_images()[0] for axes in figure.axes[2 * number : 2 * number + 2])
        expected = [each for each in truth if each['image_id'] == info['id']]
        shown = [each for each in found if each['image_id'] == info['id'] and each['score'] == 0.9]
        for panel, objects in ((left, expected), (right, shown)):
            drawn = draw_coco(image, objects, coco, palette_of(6))
            np.testing.assert_array_equal(panel.get_array(), drawn[..., ::-1])
    assert pixels(figure).std() > 5


def test_keys_are_coloured_by_their_source():
    figure = draw_keys(FocalGeometry(focal_window=3), (21, 21), [(1, 1), (0, 0)])
    assert [axes.get_title() for axes in figure.axes] == [
        'window 1, 1 of 3x3',
        'window 0, 0 of 3x3',
    ]
    squares = {
        matplotlib.colors.to_hex(c.get_facecolor()[0]).upper(): len(c.get_paths())
        for c in figure.axes[0].collections
        if len(c.get_facecolor())
    }
    assert squares[WINDOW_COLOUR] == 49
    assert squares[RING_COLOUR] == 120
    plt.close(figure)


def test_cells_of_shifted_windows_stand_where_they_pool():
    # Windows begin at token 3; the last row of them goes over the border, to the first 3 rows.
    figure = draw_keys(FocalGeometry(shift_size=3, focal_window=1), (21, 21), [(2, 0)])
    colour = matplotlib.colors.to_rgb(LEVEL_COLOURS[0])
    filled = [c for c in figure.axes[0].collections if len(c.get_facecolor())]
    (cells,) = (c for c in filled if tuple(c.get_facecolor()[0, :3]) == colour)
    boxes = [path.get_extents().bounds for path in cells.get_paths()]
    assert boxes == [(3, 17, 7, 7), (3, -4, 7, 7)]
    plt.close(figure)


@pytest.mark.parametrize('windows', [[(1, 1)], [(1, 1), (0, 0)]])
@pytest.mark.parametrize('levels', [1, 2, 4])
def test_legend_is_within_the_figure_and_below_the_panels(windows, levels):
    figure = draw_keys(FocalGeometry(focal_level=levels, focal_window=3), (21, 28), windows)
    figure.canvas.draw()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 1 + levels
    extent, page = legend.get_window_extent(), figure.bbox
    assert page.x0 <= extent.x0 and extent.x1 <= page.x1 and page.y0 <= extent.y0
    for text in legend.get_texts():
        assert text.get_window_extent().x1 <= page.x1
    assert all(axes.get_window_extent().y0 > extent.y1 for axes in figure.axes)
    plt.close(figure)


def test_window_outside_the_map_is_named():
    with pytest.raises(ValueError, match='there is no window 3 0'):
        draw_keys(FocalGeometry(), (21, 21), [(3, 0)])


def test_an_image_shows_what_each_kind_of_keys_holds():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (84, 112, 3), dtype=np.uint8)  # 21 x 28 tokens of 4 pixels
    figure = draw_keys_on_image(FocalGeometry(focal_window=3), image, (50, 40), stride=4)
    window, ring, cells = (axes.get_images()[0].get_array() for axes in figure.axes)
    titles = [axes.get_title() for axes in figure.axes]
    assert [int(re.search(r'(\d+) keys', title)[1]) for title in titles] == [49, 169, 178]
    # Token 12 of row 10 is in the window of tokens 7 to 13, in both directions.
    own, around = np.s_[28:56, 28:56], np.s_[16:68, 16:68]

    def same(shown):
        return (shown == image).all(-1)

    for shown, kept in ((window, own), (ring, around)):
        assert same(shown)[kept].all()
        outside = np.ones(image.shape[:2], bool)
        outside[kept] = False
        assert same(shown)[outside].mean() < 0.01  # faded
    assert same(cells)[around].all()
    # The cell in the corner is the mean of its 28 x 28 pixels, where no ring lies over it.
    mean = image[:28, :28].reshape(-1, 3).mean(0)
    assert np.abs(cells[:16, :28] - mean).max() <= 1
    assert same(cells)[:, 84:].mean() < 0.01
    plt.close(figure)


def test_a_ring_over_the_border_is_shown_on_the_other_side():
    image = np.zeros((56, 56, 3), np.uint8)  # 2 x 2 windows of tokens of 4 pixels
    geometries = FocalGeometry(focal_level=1), FocalGeometry(focal_level=1, border='mask')
    figures = [draw_keys_on_image(each, image, (1, 1), stride=4) for each in geometries]
    wrapped, masked = (figure.axes[1].get_images()[0].get_array()[..., 0] for figure in figures)
    assert (wrapped[:40, -12:] == 0).all() and (masked[:40, -12:] > 100).all()
    assert (wrapped[:40, :40] == 0).all() and (masked[:40, :40] == 0).all()
    for figure in figures:
        plt.close(figure)


def test_finer_cells_lie_above_coarser_ones():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (84, 84, 3), dtype=np.uint8)  # 3 x 3 windows of 7 tokens
    figure = draw_keys_on_image(FocalGeometry(focal_level=3, focal_window=5), image, (42, 42), 4)
    coarse, fine = (axes.get_images()[0].get_array() for axes in figure.axes[2:])
    # Left of the ring: one cell of 28 pixels at level 1, cells of 12 pixels in front of it.
    strip = np.s_[28:56, 8:16]
    assert len(np.unique(coarse[strip].reshape(-1, 3), axis=0)) == 1
    assert len(np.unique(fine[strip].reshape(-1, 3), axis=0)) > 1
    mean = image[28:56, 0:28].reshape(-1, 3).mean(0)
    assert np.abs(coarse[strip] - mean).max() <= 1
    plt.close(figure)


@pytest.mark.parametrize(
    'options, message',
    [
        (('--image', 'photo.png', '--window', '1', '1'), 'got --window'),
        (('--image', 'photo.png', '--map', '20', '20', '--stride', '4'), 'got --map'),
        (('--point', '1', '1', '--stride', '4'), 'got --point, --stride'),
    ],
)
def test_options_that_do_not_go_together_are_told(options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['show_keys', str(tmp_path / 'keys.png'), *options])
    with pytest.raises(UserError, match=message):
        show_keys.main()
    assert not list(tmp_path.iterdir())


def test_images_that_do_not_divide_and_points_outside():
    image = np.full((45, 61, 3), 100, np.uint8)
    figure = draw_keys_on_image(FocalGeometry(), image, (60, 44), stride=8)
    assert figure.axes[0].get_xlim() == (0, 61) and figure.axes[0].get_ylim() == (45, 0)
    plt.close(figure)
    with pytest.raises(ValueError, match=r'61x45 pixels, the point \(61, 0\)'):
        draw_keys_on_image(FocalGeometry(), image, (61, 0), stride=8)


def test_tool_draws_over_an_image(tmp_path, monkeypatch, capsys):
    cv2.imwrite(str(tmp_path / 'photo.png'), np.full((64, 96, 3), 90, np.uint8))
    command = ['show_keys', str(tmp_path / 'keys.png'), '--image', str(tmp_path / 'photo.png')]
    monkeypatch.setattr(sys, 'argv', [*command, '--stride', '4', '--point', '10', '20'])
    show_keys.main()
    assert cv2.imread(str(tmp_path / 'keys.png')).shape[1] > 1000
    (tmp_path / 'photo.png').write_bytes(b'no image')
    with pytest.raises(UserError, match='is no image'):
        show_keys.main()


@pytest.mark.parametrize('suffix', ['png', 'svg'])
def test_tool_writes_the_figure(tmp_path, suffix):
    out = tmp_path / f'keys.{suffix}'
    command = [sys.executable, ROOT / 'tools/show_keys.py', out, '--map', '14', '21']
    command += ['--window', '1', '1']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert out.stat().st_size > 5000


def test_label_maps_stand_beside_the_ground_truth(tmp_path):
    for folder in ('images', 'truth', 'predicted'):
        (tmp_path / folder).mkdir()
    image = np.full((8, 10, 3), 100, np.uint8)
    truth, predicted = np.zeros((2, 8, 10), np.uint8)
    truth[:, 5:], predicted[:, 7:], truth[0, 9] = 1, 2, 255
    cv2.imwrite(str(tmp_path / 'images/a.png'), image)
    cv2.imwrite(str(tmp_path / 'truth/a.png'), truth)
    cv2.imwrite(str(tmp_path / 'predicted/a.png'), predicted)
    folders = [tmp_path / name for name in ('images', 'truth', 'predicted')]
    palette = [(0, 0, 0), (200, 0, 0), (0, 0, 200)]
    figure = draw_segmentations(*folders, ('ground', 'red', 'blue'), palette)
    assert [axes.get_title() for axes in figure.axes][:3] == ['ground truth', 'predicted', '']
    left, right = (axes.get_images()[0].get_array() for axes in figure.axes[:2])
    assert left.shape == (8 * 48, 10 * 48, 3)
    assert left[10, 250].tolist() == [150, 50, 50] and left[10, 10].tolist() == [50] * 3
    assert left[10, 470].tolist() == [100] * 3  # not labelled
    assert right[10, 250].tolist() == [50] * 3 and right[10, 470].tolist() == [50, 50, 150]
    plt.close(figure)
    cv2.imwrite(str(tmp_path / 'predicted/b.png'), predicted)
    with pytest.raises(FileNotFoundError, match='images/b'):
        draw_segmentations(*folders, ('ground', 'red', 'blue'), palette)


def rectangle(score=None, mask=True, label=0):
    """An instance in the middle of 120x100 pixels."""
    instances = InstanceData(
        bboxes=torch.tensor([[30.0, 40, 90, 80]]), labels=torch.tensor([label])
    )
    if score is not None:
        instances.scores = torch.tensor([score])
    if mask:
        instances.masks = torch.zeros(1, 100, 120, dtype=torch.bool)
        instances.masks[0, 40:80, 30:90] = True
    return instances


@pytest.mark.parametrize('score', [0.9, None])
def test_masks_are_coloured_and_what_is_outside_stays(score):
    image = np.full((100, 120, 3), 100, np.uint8)
    drawn = draw_instances(image, rectangle(score), ['star'], [(255, 0, 0)], labels=False)
    assert (image == 100).all() and drawn.shape == image.shape and drawn.dtype == np.uint8
    np.testing.assert_allclose(drawn[60, 60], (50, 50, 177), atol=2)
    assert (drawn[:30] == 100).all() and (drawn[:, 100:] == 100).all()
    again = draw_instances(image, rectangle(score), ['star'], [(255, 0, 0)], labels=False)
    np.testing.assert_array_equal(drawn, again)  # colours that change would flicker in videos


def test_boxes_have_names_scores_and_the_colour_of_their_class():
    image = np.full((100, 120, 3), 100, np.uint8)
    args = ['circle', 'star'], [(0, 0, 255), (255, 0, 0)]
    texts = [
        draw_instances(image, rectangle(score, mask=False, label=label), *args)
        for label, score in ((1, 0.9), (1, 0.8), (1, None), (0, 0.9), (7, 0.9))
    ]
    plain = draw_instances(image, rectangle(0.9, mask=False, label=1), *args, labels=False)
    for i, drawn in enumerate(texts):
        assert all((drawn != other).any() for other in [plain, *texts[:i]])
    left = plain[60, 30].astype(int)
    assert left[2] > 200 and left[:2].max() < 60  # BGR
    assert texts[3][60, 30, 0] > 200 and np.ptp(texts[4][60, 30].astype(int)) < 10  # grey


def test_swapped_corners_are_the_same_box_and_dollars_no_formula():
    image = np.full((100, 120, 3), 100, np.uint8)
    args = ['a$b_{$c', 'b'], [(255, 0, 0)]
    swapped = rectangle(0.9)
    swapped.bboxes = torch.tensor([[90.0, 80, 30, 40]])
    drawn = draw_instances(image, rectangle(0.9), *args)
    np.testing.assert_array_equal(draw_instances(image, swapped, *args), drawn)
    named = draw_label_map(image, np.zeros((100, 120), np.uint8), *args)
    plain = draw_label_map(image, np.zeros((100, 120), np.uint8), *args, labels=False)
    assert (named != plain).any()


def test_nothing_found_leaves_the_image_and_the_best_is_on_top():
    image = np.full((100, 120, 3), 100, np.uint8)
    palette = [(255, 0, 0), (0, 0, 255)]
    nothing = draw_instances(image, rectangle(0.9)[:0], ['a', 'b'], palette)
    np.testing.assert_array_equal(nothing, image)
    for scores, expected in (((0.9, 0.5), 2), ((0.5, 0.9), 0)):
        pair = [rectangle(score, label=i) for i, score in enumerate(scores)]
        drawn = draw_instances(image, InstanceData.cat(pair), ['a', 'b'], palette, labels=False)
        assert drawn[60, 30].argmax() == drawn[60, 60].argmax() == expected


@pytest.mark.parametrize('size', [(1, 1), (9, 4000), (1200, 1600)])
def test_images_of_all_sizes_keep_theirs(size):
    image = np.full((*size, 3), 100, np.uint8)
    instances = rectangle(0.9, mask=False)
    assert draw_instances(image, instances, ['star'], [(255, 0, 0)]).shape == image.shape
    labels = np.zeros(size, np.uint8)
    assert draw_label_map(image, labels, ['grass'], [(0, 255, 0)]).shape == image.shape


@pytest.mark.parametrize('names', [('grass', 'roof'), ('Gebüsch', 'крыша')])
def test_label_maps_are_named_and_what_has_no_class_stays(names):
    image = np.full((60, 60, 3), 100, np.uint8)
    labels = np.zeros((60, 60), np.uint8)
    labels[:, 30:] = 1
    labels[:10] = 255
    palette = [(0, 255, 0), (255, 0, 0)]
    plain = draw_label_map(image, labels, names, palette, labels=False)
    assert (plain[:10] == 100).all()
    assert plain[30, 10].argmax() == 1 and plain[30, 50].argmax() == 2
    named = draw_label_map(image, labels, names, palette)
    assert (named[10:, :30] != plain[10:, :30]).any() and (
        named[10:, 40:] != plain[10:, 40:]
    ).any()
    other = draw_label_map(image, labels, ['?' * len(name) for name in names], palette)
    assert (named != other).any()


def test_classes_stand_in_the_corner(monkeypatch):
    if importlib.util.find_spec('torchvision') is None:
        monkeypatch.syspath_prepend(ROOT / 'tests/stand_ins')
    image = np.full((100, 200, 3), 100, np.uint8)
    drawn = draw_classes(image, [3, 0], [0.9, 0.1], ['circle', 'star'])
    assert drawn.shape == image.shape and (drawn[:30, :60] != 100).any()
    assert (drawn[60:] == 100).all()
    assert (drawn != draw_classes(image, [0, 3], [0.9, 0.1], ['circle', 'star'])).any()


def test_classes_without_colours_get_different_ones():
    assert len(set(palette_of(40, 'random'))) == 40
    assert palette_of(2, [[1, 2, 3], [4, 5, 6]]) == [(1, 2, 3), (4, 5, 6)]
