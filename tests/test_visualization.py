"""Pictures: they hold what they are to show."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from mmfocal.datasets import prepare_shapes
from mmfocal.engine.curves import draw_comparison, draw_curves, read_scalars
from mmfocal.geometry import FocalGeometry
from mmfocal.visualization.detections import draw_detections
from mmfocal.visualization.keys import LEVEL_COLOURS, RING_COLOUR, WINDOW_COLOUR, draw_keys
from mmfocal.visualization.segmentations import draw_segmentations

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


@pytest.mark.parametrize('num_models', [1, 5])
def test_comparison_has_a_loss_and_a_metric_for_each_model(work_dir, num_models):
    rows = read_scalars(work_dir)
    names = [f'model {i}' for i in range(num_models)]
    # The second one has two seeds of one backbone, and none of the other.
    runs = {name: dict(focal=[rows], swin=[rows]) for name in names}
    if num_models > 1:
        runs['model 1'] = dict(focal=[rows, rows])
    figure = draw_comparison(runs)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == 2 * num_models
    assert [axes.get_title() for axes in shown if axes.get_title()] == names
    metrics = [axes for axes in shown if axes.get_ylabel() == 'box mAP']
    assert [len(axes.lines) for axes in metrics] == [2] * num_models
    legend = [text.get_text() for text in metrics[0].get_legend().get_texts()]
    assert legend == ['Focal', 'Swin']
    metric = metrics[0]
    assert list(metric.lines[0].get_ydata()) == [0.25]
    assert metric.lines[0].get_color() != metric.lines[1].get_color()
    assert pixels(figure).std() > 0


def test_curves_hold_the_logged_numbers(work_dir):
    figure = draw_curves(work_dir)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    assert list(lines['loss'].get_ydata()) == [8, 7, 1]
    assert list(lines['box mAP'].get_xdata()) == [3]
    assert 'learning rate' in lines
    assert pixels(figure).std() > 5


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
    figure = draw_detections(annotations, data / 'val', results, columns=2)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ['ground truth', 'detected'] * 2
    labels = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert len(labels[0]) + len(labels[2]) == len(truth)
    shown = labels[1] + labels[3]
    assert len(shown) == sum(entry['score'] == 0.9 for entry in found)
    assert all(text.endswith(' 0.90') for text in shown)
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
def test_legend_is_within_the_picture_and_below_the_panels(windows, levels):
    figure = draw_keys(FocalGeometry(focal_level=levels, focal_window=3), (21, 28), windows)
    figure.canvas.draw()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 1 + levels
    extent, picture = legend.get_window_extent(), figure.bbox
    assert picture.x0 <= extent.x0 and extent.x1 <= picture.x1 and picture.y0 <= extent.y0
    for text in legend.get_texts():
        assert text.get_window_extent().x1 <= picture.x1
    assert all(axes.get_window_extent().y0 > extent.y1 for axes in figure.axes)
    plt.close(figure)


def test_window_outside_the_map_is_named():
    with pytest.raises(ValueError, match='there is no window 3 0'):
        draw_keys(FocalGeometry(), (21, 21), [(3, 0)])


@pytest.mark.parametrize('suffix', ['png', 'svg'])
def test_tool_writes_the_picture(tmp_path, suffix):
    out = tmp_path / f'keys.{suffix}'
    command = [sys.executable, ROOT / 'tools/show_keys.py', out, '--map', '14', '21']
    command += ['--window', '1', '1']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert out.stat().st_size > 5000


def test_label_maps_are_painted_over_their_pictures(tmp_path):
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
    figure = draw_segmentations(*folders, ('ground', 'red', 'blue'), palette, columns=1)
    left, right = (axes.get_images()[0].get_array() for axes in figure.axes)
    red = 0.35 * 100 / 255 + 0.65 * np.array(palette[1]) / 255
    np.testing.assert_allclose(left[3, 6], red, atol=1e-6)
    np.testing.assert_allclose(left[3, 4], 100 / 255, atol=1e-6)
    np.testing.assert_allclose(left[0, 9], 100 / 255, atol=1e-6)  # not labelled
    np.testing.assert_allclose(right[3, 6], 100 / 255, atol=1e-6)
    assert right[3, 8, 2] > right[3, 8, 0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['red', 'blue']
    plt.close(figure)
    with pytest.raises(FileNotFoundError, match=r'no picture .*images/b'):
        draw_segmentations(*folders, ('ground', 'red', 'blue'), palette, names=['b'])
