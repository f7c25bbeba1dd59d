"""Objects drawn into label maps."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from mmfocal.datasets import prepare_shapes
from mmfocal.datasets.checks import Report
from mmfocal.datasets.formats import coco
from mmfocal.datasets.formats.content import Annotated, Folder, Object, Sample
from mmfocal.datasets.formats.drawing import draw
from mmfocal.datasets.formats.segmentation import Source, prepare_segmentation
from mmfocal.datasets.shapes import CLASSES
from mmfocal.utils.errors import UserError

SIZE = (40, 30)


def square(label, x, y, side, **options):
    corners = (x, y, x + side, y, x + side, y + side, x, y + side)
    return Object(label, (x, y, side, side), (corners,), **options)


def code(mask, label='a', compressed=True):
    rle = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = rle['counts'].decode()
    if not compressed:
        flat = mask.ravel(order='F')
        changes = np.flatnonzero(np.diff(flat.astype(int), prepend=0))
        counts = np.diff(changes, prepend=0, append=flat.size).tolist()
    return Object(label, (0, 0, 1, 1), rle=dict(size=list(mask.shape), counts=counts))


@pytest.fixture
def drawn(tmp_path):
    """Draws objects of one image; gives what is said of the data set, and its labels."""
    Image.new('RGB', SIZE).save(tmp_path / 'one.png')

    def draw_them(*objects, report=None, classes=('a', 'b'), **options):
        samples = [Sample(tmp_path / 'one.png', objects, 'file.json: image 1', SIZE)]
        annotated = Annotated(classes, {'train': samples, 'val': samples})
        report = report or Report()
        data = draw(annotated, Folder(tmp_path), tmp_path / 'out', report, **options)
        part = data.splits['val']
        (name,) = part.ann_file.read_text().split()
        assert Path(part.img_path, name).is_file()
        return data, np.asarray(Image.open(part.seg_map_path / f'{name}.png'))

    return draw_them


def test_pixels_are_those_of_mmdets_masks(drawn):
    triangle = Object('b', (2, 2, 20, 20), ((2.3, 2.7, 22.1, 4.4, 9.5, 21.8),))
    data, labels = drawn(triangle)
    (rle,) = mask_api.frPyObjects([list(triangle.polygons[0])], SIZE[1], SIZE[0])
    np.testing.assert_array_equal(labels, 2 * mask_api.decode(rle))
    assert data.classes == ('background', 'a', 'b')
    assert (data.reduce_zero_label, data.is_converted) == (False, True)
    assert len(data.palette) == 3


def test_smaller_objects_lie_on_larger_ones(drawn):
    small, large = square('a', 10, 10, 5), square('b', 5, 5, 20)
    for objects in ((small, large), (large, small)):
        labels = drawn(*objects)[1]
        assert labels[12, 12] == 1 and labels[7, 7] == 2 and labels[0, 0] == 0


def test_of_equal_objects_the_later_one_is_on_top(drawn):
    first, second = square('a', 5, 5, 10), square('b', 8, 8, 10)
    assert drawn(first, second)[1][10, 10] == 2
    assert drawn(second, first)[1][10, 10] == 1


def test_crowds_have_their_class_and_lie_below(drawn):
    crowd, large = square('a', 10, 10, 5, is_crowd=True), square('b', 5, 5, 8)
    labels = drawn(large, crowd)[1]
    assert labels[11, 11] == 2 and labels[14, 14] == 1


@pytest.mark.parametrize('compressed', [True, False])
def test_run_length_code_is_exact(compressed, drawn):
    mask = np.random.default_rng(0).random(SIZE[::-1]) < 0.3
    np.testing.assert_array_equal(drawn(code(mask, compressed=compressed))[1], mask)


def test_unlabelled_pixels_can_be_ignored(drawn):
    data, labels = drawn(square('b', 5, 5, 10), background=None)
    assert data.classes == ('a', 'b')
    assert set(np.unique(labels)) == {1, 255}


def test_a_class_of_the_name_is_the_background(drawn):
    data, labels = drawn(square('a', 5, 5, 10), classes=('a', 'background'))
    assert data.classes == ('a', 'background')
    assert labels[0, 0] == 1 and labels[8, 8] == 0


def test_boxes_are_noted(drawn):
    report = Report()
    _, labels = drawn(square('a', 5, 5, 10), Object('b', (20, 20, 5, 5)), report=report)
    assert labels[22, 22] == 0
    (line,) = report.lines('note')[:1]
    assert line.startswith('note: file.json: image 1') and "'b'" in line


def test_only_boxes_are_an_error(drawn, tmp_path):
    with pytest.raises(UserError, match='only boxes'):
        drawn(Object('b', (20, 20, 5, 5)))
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'rle',
    [
        dict(size=[40, 30], counts=[1200]),
        dict(size=[30, 40], counts=[1300]),
        dict(size=[30, 40], counts=[-100, 1300]),
        dict(size=[30, 40], counts=[1200.5]),
        dict(size=[30, 40], counts='PPPPPPPPPPPPPPPPPPP0'),
        dict(size=[30, 40], counts='é'),
        dict(size=[30, 40]),
        dict(counts=[1200]),
        dict(size=7, counts=[1200]),
    ],
)
def test_damaged_code_is_told(rle, drawn):
    with pytest.raises(UserError, match=r'file\.json: image 1: expected run-length code.*40x30'):
        drawn(Object('a', (0, 0, 1, 1), rle=rle))


def test_far_coordinates_do_not_end_the_process(drawn):
    far = Object('a', (0, 0, 9, 9), ((-1e12, 5.0, 1e12, 5.0, 1e12, 20.0, -1e12, 20.0),))
    assert drawn(far)[1][10].tolist() == [1] * 40


def test_shapes_are_drawn_as_their_label_maps_are(tmp_path):
    """COCO's polygons of the embedded data set; borders differ by their rounding."""
    root = prepare_shapes(tmp_path / 'shapes', num_images={'train': 6, 'val': 2})
    source = Source(Folder(root), tmp_path / 'out', format='COCO')
    data = prepare_segmentation(source, Report())
    assert set(data.classes) == {'background', *CLASSES}
    assert data.classes[0] == 'background'
    order = [0, *(1 + CLASSES.index(name) for name in data.classes[1:])]
    for split, count in {'train': 6, 'val': 2}.items():
        part = data.splits[split]
        assert part.num_images == count
        for path in sorted(root.glob(f'labels/{split}/*.png')):
            found = np.array(order)[
                np.asarray(Image.open(part.seg_map_path / f'{path.stem}.jpg.png'))
            ]
            assert np.mean(found != np.asarray(Image.open(path))) < 0.02


def test_what_is_not_divided_is_divided(tmp_path):
    root = prepare_shapes(tmp_path / 'shapes', num_images={'train': 6, 'val': 2})
    (root / 'annotations/instances_val.json').unlink()
    shutil.rmtree(root / 'val')
    (root / 'annotations/instances_train.json').rename(root / 'annotations/all.json')
    assert coco.recognise(Folder(root))
    source = Source(Folder(root), tmp_path / 'out', format='COCO', val_share=0.5)
    data = prepare_segmentation(source, Report())
    assert {split: part.num_images for split, part in data.splits.items()} == {
        'train': 3,
        'val': 3,
    }
