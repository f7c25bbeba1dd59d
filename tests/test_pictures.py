"""Images for the README: drawn photographs in the layouts of BCCD and CamVid, untrained models."""

import json
import re
import shutil
import sys

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from mmfocal.engine import load_config
from mmfocal.utils.config import import_packages
from mmfocal.utils.errors import UserError
from tools.dev import pictures

SIDES = 480, 360  # width and height in pixels
BOX, LABEL = (120, 90, 240, 180), 1  # left, top, width and height; RBC
CAR, SKY, UNLABELLED = 8, 0, 255


def write_photographs(folder, names):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        coarse = rng.integers(60, 200, (6, 8, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / name), cv2.resize(coarse, SIDES))


def write_bccd(root):
    """One red cell in each image."""
    write_photographs(root / 'JPEGImages', pictures.BLOOD)
    content = dict(
        images=[
            dict(id=i, file_name=f'JPEGImages/{name}', width=SIDES[0], height=SIDES[1])
            for i, name in enumerate(pictures.BLOOD, 1)
        ],
        annotations=[
            dict(id=i, image_id=i, category_id=LABEL + 1, bbox=BOX, area=43200, iscrowd=0)
            for i in range(1, 4)
        ],
        categories=[dict(id=i, name=n) for i, n in enumerate(('Platelets', 'RBC', 'WBC'), 1)],
    )
    (root / 'coco').mkdir()
    (root / 'coco/test.json').write_text(json.dumps(content))


def write_camvid(root):
    """A car on the left, sky on the right, and nothing labelled in the lowest third."""
    write_photographs(root / 'img_dir/test', pictures.STREETS)
    (root / 'label_maps/test').mkdir(parents=True)
    label_map = np.full(SIDES[::-1], SKY, np.uint8)
    label_map[:, : SIDES[0] // 2] = CAR
    label_map[SIDES[1] * 2 // 3 :] = UNLABELLED
    image = Image.fromarray(label_map, 'P')
    image.putpalette([7 * i % 256 for i in range(768)])  # indices count, not colours
    for name in pictures.STREETS:
        image.save(root / f'label_maps/test/{name}.png')
    (root / 'test.txt').write_text('\n'.join(pictures.STREETS))


def write_run(folder, config, root):
    """A work folder with the untrained model of a config as its best checkpoint."""
    cfg = load_config(config, {'test_dataloader.dataset.data_root': f'{root}/'})
    import_packages(cfg)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    folder.mkdir()
    cfg.dump(folder / f'{config}.py')
    torch.save(dict(state_dict=model.state_dict(), meta=dict(iter=1)), folder / 'best_iter_1.pth')
    return folder


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Work folders of a detector and a segmenter, whose data are there."""
    folder = tmp_path_factory.mktemp('pictures')
    write_bccd(folder / 'bccd')
    write_camvid(folder / 'camvid')
    return (
        write_run(folder / 'detector', 'focal_atss_bccd', folder / 'bccd'),
        write_run(folder / 'segmenter', 'focal_upernet_camvid', folder / 'camvid'),
    )


@pytest.fixture(scope='module')
def segmenter(runs):
    return pictures.load(runs[1], 'mmseg/focal_upernet_camvid')


def panels(figure):
    """Images of a page, ``(H, W, 3)``, RGB, row by row; and the captions below them."""
    plt.close(figure)
    axes = [each for each in figure.axes if each.get_images()]
    return [np.asarray(each.get_images()[0].get_array()) for each in axes], [
        each.get_xlabel() for each in axes
    ]


def test_annotated_boxes_have_the_colour_of_their_class_and_detections_their_own_panel(runs):
    # Of a detector that is never sure.
    detector = pictures.load(runs[0], 'mmdet/focal_atss_bccd', score_thr=1.0)
    figure = pictures.draw_detections(detector, pictures.BLOOD)
    images, captions = panels(figure)
    assert captions == ['RBC 1'] * 3 + ['nothing'] * 3
    scale = images[0].shape[1] / SIDES[0]
    left, top, width, height = (round(side * scale) for side in BOX)
    blue = pictures.outline_colours(3)[LABEL]
    for above, below in zip(images[:3], images[3:], strict=True):
        changed = (above != below).any(axis=2)
        rows, columns = np.nonzero((np.abs(above.astype(int) - blue) < 40).all(axis=2) & changed)
        corners = columns.min(), rows.min(), columns.max(), rows.max()
        np.testing.assert_allclose(corners, (left, top, left + width, top + height), atol=2)
        assert not changed[top + 5 : top + height - 5, left + 5 : left + width - 5].any()
    assert [text.get_text() for text in figure.legends[0].texts] == ['Platelets', 'RBC', 'WBC']


def test_label_maps_have_the_colours_of_their_classes_and_stripes_where_there_are_none(segmenter):
    figure = pictures.draw_segmentations(segmenter, pictures.STREETS)
    images, captions = panels(figure)
    palette = segmenter.task.palette
    height, width = images[3].shape[:2]
    for annotated, predicted in zip(images[3:6], images[6:], strict=True):
        upper = annotated[: height * 2 // 3 - 1]
        assert (upper[:, : width // 2 - 1] == palette[CAR]).all()
        assert (upper[:, width // 2 + 1 :] == palette[SKY]).all()
        lower = annotated[height * 2 // 3 + 1 :]
        assert len(np.unique(lower)) == 2 and (np.ptp(lower, axis=2) == 0).all()
        found = {tuple(colour) for colour in np.unique(predicted.reshape(-1, 3), axis=0).tolist()}
        assert found <= set(palette) and not np.array_equal(predicted, annotated)
    # Unlabelled pixels do not count; a pixel of the file is about one of the panel.
    right = [
        100 * (before == after).all(axis=2)[: height * 2 // 3].mean()
        for before, after in zip(images[3:6], images[6:], strict=True)
    ]
    told = [
        float(re.match(r'(\d+) % of pixels right, mean IoU \d+ %$', c)[1]) for c in captions[6:]
    ]
    np.testing.assert_allclose(told, right, atol=1)
    names = [text.get_text() for text in figure.legends[0].texts]
    assert names == [*segmenter.task.classes, 'not labelled']


def test_tool_writes_three_images_that_a_page_has_room_for(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures, 'WIDTH', 570)  # the time goes into the choice of colours
    monkeypatch.setattr(pictures, 'DPI', pictures.DPI / 3)
    monkeypatch.setattr(pictures, 'ATTENTION_DPI', pictures.ATTENTION_DPI / 3)
    out = tmp_path / 'new/images'
    args = ['--detector', runs[0], '--segmenter', runs[1], '--out', out]
    monkeypatch.setattr(sys, 'argv', ['pictures', *map(str, args)])
    pictures.main()
    widths = {'attention_street.png': 335, 'detections.png': 570, 'segmentations.png': 570}
    assert sorted(path.name for path in out.iterdir()) == sorted(widths)
    told = capsys.readouterr().out
    for name, width in widths.items():
        with Image.open(out / name) as image:
            assert abs(image.width - width) <= 1 and image.mode == 'P'
            assert image.convert('RGB').getpixel((1, 1)) == (255, 255, 255)
        assert (out / name).stat().st_size < 700_000 / 9
        assert f'Wrote {out / name}' in told


def test_what_is_missing_is_named_with_what_to_run(runs, segmenter, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['pictures'])
    with pytest.raises(SystemExit) as stop:
        pictures.main()
    assert stop.value.code == 2
    assert re.search(
        r'no checkpoint work_dirs/focal_atss_bccd.* python tools/train.py '
        r'configs/mmdet/focal_atss_bccd.py --work-dir work_dirs/focal_atss_bccd$',
        capsys.readouterr().err.strip(),
    )
    run = shutil.copytree(runs[1], tmp_path / 'run')
    (config,) = run.glob('*.py')
    config.write_text(re.sub("data_root='.*'", "data_root='data/camvid'", config.read_text()))
    with pytest.raises(UserError, match=r'To get CamVid: .*prepare_dataset\.py camvid'):
        pictures.load(run, 'mmseg/focal_upernet_camvid')
    with pytest.raises(UserError, match=r'absent\.jpg: not among the test data'):
        pictures.annotated(segmenter, ['absent.jpg'])
