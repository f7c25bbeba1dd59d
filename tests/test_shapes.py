"""The embedded data set: the same from the same seed, true to its annotations, never half made."""

import json
import multiprocessing
import os
import time

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from mmfocal.datasets import prepare_shapes, shapes, shapes_root

FEW = dict(train=12, val=6)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return prepare_shapes(tmp_path_factory.mktemp('data') / 'shapes', num_images=FEW)


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def many_scenes(count=150):
    return [shapes.draw_scene(1, 'train', i) for i in range(count)]


def test_same_seed_gives_the_same_bytes(root, tmp_path):
    assert content(prepare_shapes(tmp_path / 'again', num_images=FEW)) == content(root)


def test_other_seed_and_other_split_give_other_images(root, tmp_path):
    other = content(prepare_shapes(tmp_path / 'other', seed=1, num_images=FEW))
    mine = content(root)
    assert all(other[name] != mine[name] for name in mine if name.endswith('.jpg'))
    assert mine['train/000000.jpg'] != mine['val/000000.jpg']


def test_image_does_not_depend_on_what_was_drawn_before():
    first = shapes.draw_scene(0, 'val', 3)
    shapes.draw_scene(0, 'val', 4)
    assert np.array_equal(shapes.draw_scene(0, 'val', 3).image, first.image)


@pytest.mark.parametrize('split', FEW)
def test_files_and_annotations_belong_together(root, split):
    coco = COCO(str(root / f'annotations/instances_{split}.json'))
    assert [category['name'] for category in coco.dataset['categories']] == list(shapes.CLASSES)
    assert len(coco.imgs) == FEW[split]
    for info in coco.dataset['images']:
        image = cv2.imread(str(root / split / info['file_name']))
        assert image.shape == (info['height'], info['width'], 3)
    for annotation in coco.dataset['annotations']:
        x, y, width, height = annotation['bbox']
        assert min(x, y) >= 0 and min(width, height) > 0
        assert max(x + width, y + height) <= shapes.IMAGE_SIZE
        assert 0 < annotation['area'] <= width * height


@pytest.mark.parametrize('split', FEW)
def test_masks_boxes_and_label_maps_agree(root, split):
    coco = COCO(str(root / f'annotations/instances_{split}.json'))
    for info in coco.dataset['images']:
        name = info['file_name'].replace('.jpg', '.png')
        labels = cv2.imread(str(root / 'labels' / split / name), cv2.IMREAD_UNCHANGED)
        drawn = np.zeros_like(labels)
        for annotation in coco.loadAnns(coco.getAnnIds(info['id'])):
            mask = coco.annToMask(annotation).astype(bool)
            drawn[mask] = annotation['category_id']
            rows, cols = np.nonzero(mask)
            x, y, width, height = annotation['bbox']
            assert cols.min() >= x - 1 and cols.max() <= x + width
            assert rows.min() >= y - 1 and rows.max() <= y + height
            if not annotation['iscrowd']:
                assert mask.sum() == pytest.approx(annotation['area'], rel=0.1, abs=8)
        assert (drawn == labels).mean() > 0.98


def test_images_hold_what_makes_detection_hard():
    scenes = many_scenes()
    instances = [instance for scene in scenes for instance in scene.instances]
    counts = np.bincount([instance.label for instance in instances])
    assert len(counts) == 6 and counts.min() > 0.6 * counts.mean()
    single = [instance for instance in instances if not instance.crowd]
    assert len(single) < len(instances)  # crowds
    sides = np.array([np.sqrt(instance.mask.sum()) / 4 for instance in single])
    assert sides.min() < 10 and sides.max() > 50  # pixels: tiny and large
    assert np.mean([len(scene.instances) for scene in scenes]) > 3
    hulls = [cv2.boundingRect(instance.mask.astype(np.uint8)) for instance in single]
    overlaps = sum(
        a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
        for i, a in enumerate(hulls)
        for b in hulls[i + 1 : i + 3]
    )
    assert overlaps > 30  # neighbours in drawing order that touch or hide each other


def test_hole_and_parts_survive_as_polygons():
    mask = np.zeros((512, 512), bool)
    cv2_mask = mask.astype(np.uint8)
    cv2.circle(cv2_mask, (200, 200), 100, 1, -1)
    cv2.circle(cv2_mask, (200, 200), 50, 0, -1)
    cv2.rectangle(cv2_mask, (400, 400), (480, 460), 1, -1)
    polygons = shapes._polygons(cv2_mask.astype(bool))
    assert len(polygons) == 2
    coco = COCO()
    coco.imgs = {1: dict(id=1, height=128, width=128)}
    mask = coco.annToMask(dict(image_id=1, segmentation=polygons))
    assert mask[50, 50] == 0 and mask[50, 70] == 1 and mask[107, 110] == 1
    assert mask.sum() == pytest.approx(cv2_mask.sum() / 16, rel=0.02)


def test_second_call_draws_nothing(root, monkeypatch):
    monkeypatch.setattr(shapes, 'draw_scene', None)
    assert prepare_shapes(root, num_images=FEW) == root


def test_crash_leaves_nothing_behind(tmp_path, monkeypatch):
    target = tmp_path / 'shapes'
    draw = shapes.draw_scene

    def crash(seed, split, index):
        if split == 'val':
            raise KeyboardInterrupt
        return draw(seed, split, index)

    with monkeypatch.context() as patch:
        patch.setattr(shapes, 'draw_scene', crash)
        with pytest.raises(KeyboardInterrupt):
            prepare_shapes(target, num_images=FEW)
    assert list(tmp_path.iterdir()) == []
    assert prepare_shapes(target, num_images=FEW).is_dir()


def test_litter_of_a_killed_run_is_removed(tmp_path):
    litter = tmp_path / '.shapes-killed'
    litter.mkdir()
    fresh = tmp_path / '.shapes-running'
    fresh.mkdir()
    day_ago = time.time() - 86400
    os.utime(litter, (day_ago, day_ago))
    prepare_shapes(tmp_path / 'shapes', num_images=dict(train=1, val=1))
    assert not litter.exists() and fresh.exists()


def test_two_processes_at_once_make_one_whole_folder(tmp_path):
    target = tmp_path / 'shapes'
    context = multiprocessing.get_context('fork')
    processes = [context.Process(target=prepare_shapes, args=(target, 0, FEW)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ['shapes']
    assert json.loads((target / 'manifest.json').read_text())['num_images'] == FEW


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / 'mine.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='does not hold the shapes data set'):
        prepare_shapes(tmp_path, num_images=FEW)
    assert (tmp_path / 'mine.txt').read_text() == 'mine'


def test_other_settings_are_not_taken_for_these(root):
    with pytest.raises(FileExistsError, match='Remove the folder, or choose another one'):
        prepare_shapes(root, num_images=dict(train=13, val=6))


def test_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv('MMFOCAL_CACHE', str(tmp_path / 'mine'))
    assert shapes_root() == str(tmp_path / f'mine/shapes-v{shapes.VERSION}')
    monkeypatch.delenv('MMFOCAL_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert shapes_root() == str(tmp_path / f'mmfocal/shapes-v{shapes.VERSION}')
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert shapes_root() == str(tmp_path / f'.cache/mmfocal/shapes-v{shapes.VERSION}')


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match=r"split must be one of .*, got 'test'"):
        shapes.draw_scene(0, 'test', 0)


def test_segmentation_data_set_gives_label_maps(tmp_path):
    """The data set of the small UPerNet, drawn on first use, through its own pipeline."""
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    import mmfocal.datasets.seg_shapes  # noqa: F401  registers it
    from mmfocal.engine import load_config

    cfg = load_config('focal_upernet_shapes')
    init_default_scope('mmseg')
    settings = dict(
        cfg.train_dataloader.dataset,
        data_root=str(tmp_path / 'shapes'),
        num_images=dict(train=3, val=2),
    )
    dataset = DATASETS.build(settings)
    assert len(dataset) == 3 and dataset.metainfo['classes'] == ('ground', *shapes.CLASSES)
    labels = [dataset[i]['data_samples'].gt_sem_seg.data for i in range(3)]
    assert all(each.shape == (1, 128, 128) for each in labels)
    assert set().union(*(each.unique().tolist() for each in labels)) <= set(range(7))
    assert all((each > 0).any() for each in labels)
