"""Predictions for images, videos and cameras: what is found, read, drawn and written."""

import importlib.util
import io
import json
import os
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.structures import BaseDataElement, InstanceData
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from test_files import listener, pipe
from test_tools import run_tool

import mmfocal
from mmfocal import cli
from mmfocal.datasets.checks import images as images_module
from mmfocal.datasets.shapes import CLASSES, draw_scene
from mmfocal.engine import install_safe_loading, load_config
from mmfocal.inference import Inferencer, Layout, Skipped, UnreadableError, find_inputs, run
from mmfocal.inference import inferencer as inferencer_module
from mmfocal.inference import inputs as inputs_module
from mmfocal.inference import running as running_module
from mmfocal.inference import writers as writers_module
from mmfocal.inference.tasks import Detection
from mmfocal.utils.config import import_packages
from mmfocal.utils.errors import UserError
from mmfocal.visualization.predictions import as_shown

ROOT = Path(__file__).parents[1]
DETECTOR = ROOT / 'configs/mmdet/focal_maskrcnn_shapes.py'
SEGMENTER = ROOT / 'configs/mmseg/focal_upernet_shapes.py'
CLASSIFIER = ROOT / 'configs/mmpretrain/focal_shapes.py'


@pytest.fixture(autouse=True)
def restored_schemes():
    """Leaves mmengine's loaders as other tests know them."""
    schemes = dict(CheckpointLoader._schemes)
    yield
    CheckpointLoader._schemes = schemes


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('inference')


def untrained(config, path, **meta):
    """Writes a checkpoint of a config as mmengine does, without training."""
    torch.manual_seed(0)
    cfg = load_config(config)
    import_packages(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return path


@pytest.fixture(scope='module')
def detector_file(folder):
    meta = dict(classes=CLASSES, palette=[(i * 40, 200, 255 - i * 40) for i in range(6)])
    return untrained(DETECTOR, folder / 'detector.pth', dataset_meta=meta)


@pytest.fixture(scope='module')
def detector(detector_file):
    return Inferencer(DETECTOR, detector_file, device='cpu', score_thr=0.0)


@pytest.fixture(scope='module')
def segmenter(folder):
    # Without names: those of the config's data set are taken.
    return Inferencer(SEGMENTER, untrained(SEGMENTER, folder / 'segmenter.pth'), device='cpu')


def scene(index):
    """A drawn image, BGR."""
    return np.ascontiguousarray(draw_scene(0, 'val', index).image[..., ::-1])


def write_scene(path, index=0, size=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = scene(index) if size is None else cv2.resize(scene(index), size)
    assert cv2.imwrite(str(path), image)
    return path


def write_video(path, frames=6, rate=8, size=(64, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), rate, size)
    for index in range(frames):
        writer.write(cv2.resize(scene(index), size))
    writer.release()
    return path


def video_facts(path):
    """Frames, width, height and frames in a second."""
    capture = cv2.VideoCapture(str(path))
    facts = [
        capture.get(key)
        for key in (
            cv2.CAP_PROP_FRAME_COUNT,
            cv2.CAP_PROP_FRAME_WIDTH,
            cv2.CAP_PROP_FRAME_HEIGHT,
            cv2.CAP_PROP_FPS,
        )
    ]
    capture.release()
    return facts


def load_coco(path):
    with redirect_stdout(io.StringIO()):
        return COCO(str(path))


def names(inputs):
    return [given.name for given in inputs]


# --- Finding ------------------------------------------------------------------------------------


def test_folders_are_searched_at_all_depths_in_order(tmp_path):
    for name in ('b.JPG', 'a.png', 'sub/deep/c.webp', 'sub/clip.avi'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ('notes.txt', '.hidden.jpg', 'sub/labels.json'):
        (tmp_path / name).touch()
    (tmp_path / '.thumbnails').mkdir()
    (tmp_path / '.thumbnails/d.jpg').touch()
    (tmp_path / 'sub/loop').symlink_to(tmp_path)
    found = find_inputs(tmp_path)
    assert names(found) == ['a.png', 'b.JPG', 'sub/clip.avi', 'sub/deep/c.webp']
    assert [given.kind for given in found] == ['image', 'image', 'video', 'image']
    assert find_inputs(tmp_path, exclude=tmp_path / 'sub') == found[:2]


def test_patterns_name_files_by_what_they_leave_open(tmp_path):
    for name in ('x/1.jpg', 'x/y/2.jpg', 'x/y/3.txt', 'z/4.jpg', 'z/5.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names(find_inputs(f'{tmp_path}/x/**/*.jpg')) == ['1.jpg', 'y/2.jpg']
    assert names(find_inputs(f'{tmp_path}/?')) == ['x/1.jpg', 'x/y/2.jpg', 'z/4.jpg', 'z/5.png']
    # No name leads out of the folder of results.
    assert names(find_inputs(f'{tmp_path}/x/*/../../z/4.jpg')) == ['4.jpg']
    bracket = tmp_path / 'a[1].jpg'  # a pattern that matches a1.jpg, and a file
    bracket.touch()
    assert names(find_inputs(bracket)) == ['a[1].jpg']


def test_equal_names_get_numbers_and_equal_files_are_taken_once(tmp_path):
    for name in ('a/x.jpg', 'b/x.jpg', 'b/X.png', 'b/x-2.jpg', 'b/x.mp4', 'c/x.mp4', 'c/x.gif'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    given = [tmp_path / 'a', tmp_path / 'b', tmp_path / 'c', tmp_path / 'a/x.jpg', f'{tmp_path}/*']
    found = find_inputs(given)
    layout = Layout(Path('out'))
    assert len(found) == 7
    assert names(found)[:4] == ['x.jpg', 'X.png', 'x-2.jpg', 'x-3.jpg']
    images = [
        inputs_module.LoadedImage(each, np.zeros((1, 1, 3), np.uint8))
        for each in found
        if each.kind == 'image'
    ]
    videos = [
        inputs_module.LoadedImage(each, np.zeros((1, 1, 3), np.uint8), frame)
        for each in found
        for frame in range(2)
        if each.kind == 'video'
    ]
    label_maps = [str(layout.label_map(each)).lower() for each in images + videos]
    assert len(set(label_maps)) == len(label_maps)
    assert len({str(layout.image(each)).lower() for each in images}) == len(images)
    assert len({layout.video(each) for each in videos}) == 2
    assert layout.image(images[0]) == Path('out/pictures/x.jpg')


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ('nothing.jpg', 'no such file or folder'),
        ('*.jpg', 'no image or video has such a name'),
        ('empty', 'no image or video in this folder'),
    ],
)
def test_inputs_that_are_not_there_are_named(tmp_path, given, message):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=message):
        find_inputs(tmp_path / given)


def test_numbers_are_cameras_and_arrays_are_images():
    camera, image = find_inputs(['0', scene(0)])
    assert (camera.path, camera.kind, camera.name) == ('0', 'camera', 'camera-0')
    assert image.kind == 'image'
    with pytest.raises(UserError, match=r'got shape \(4, 4\) and dtype float64'):
        find_inputs(np.zeros((4, 4)))


# --- Reading ------------------------------------------------------------------------------------


def tilted(path):
    """An image whose left half is red as it is to be seen, stored on its side."""
    upright = np.full((20, 40, 3), 255, np.uint8)
    upright[:, :20] = 200, 30, 30
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright)).save(path, exif=exif, quality=95)
    return upright


def read_one(path, detector):
    skipped = []
    predictions = list(detector(path, skipped=skipped))
    return predictions[0].image.pixels[..., ::-1] if predictions else skipped[0].reason


def test_unusual_images_are_read_as_they_look(tmp_path, detector):
    upright = tilted(tmp_path / 'exif.jpg')
    Image.fromarray(upright).convert('CMYK').save(tmp_path / 'cmyk.jpg', quality=95)
    Image.fromarray(upright).quantize(4).save(tmp_path / 'palette.gif')
    Image.fromarray(upright).convert('RGBA').save(tmp_path / 'alpha.png')
    for name in ('exif.jpg', 'cmyk.jpg', 'palette.gif', 'alpha.png'):
        if name == 'palette.gif' and not cv2.haveImageReader(str(tmp_path / name)):
            assert "uses 'cv2'" in read_one(tmp_path / name, detector)  # OpenCV before 4.12
            continue
        image = read_one(tmp_path / name, detector)
        assert image.shape == (20, 40, 3), name
        difference = np.abs(image[5:-5].astype(int) - upright[5:-5])
        assert difference[:, [5, 35]].max() < 40, name
    deep = np.linspace(0, 65535, 20 * 40).reshape(20, 40).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / 'deep.png')
    np.testing.assert_allclose(
        read_one(tmp_path / 'deep.png', detector)[..., 0], deep // 256, atol=1
    )


def break_images(folder):
    """Files that are no whole images, and what is said of them."""
    whole = write_scene(folder / 'whole.jpg').read_bytes()
    png = write_scene(folder / 'whole.png').read_bytes()
    (folder / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
    (folder / 'cut.png').write_bytes(png[: len(png) // 2])
    for kind in ('bmp', 'gif', 'tiff', 'webp'):
        path = folder / f'cut.{kind}'
        Image.fromarray(scene(0)).save(path)
        os.truncate(path, path.stat().st_size * 9 // 10)
    (folder / 'damaged.png').write_bytes(png[:200] + bytes(50) + png[250:])
    (folder / 'empty.jpg').touch()
    (folder / 'text.jpg').write_text('<html>404</html>')
    Image.fromarray(np.zeros((8, 8), np.float32)).save(folder / 'float.tiff')
    Image.new('RGB', (1, 4000)).save(folder / 'narrow.png')
    return {
        'cut.jpg': 'cut off',
        'cut.png': 'cut off',
        'cut.bmp': 'cut off',
        'cut.gif': 'cut off',
        'cut.tiff': 'cut off',
        'cut.webp': 'cut off',
        'damaged.png': 'damaged',
        'empty.jpg': '0 bytes',
        'text.jpg': 'is no ',
        'float.tiff': 'floating point',
        'narrow.png': 'cannot be used',
    }


def test_broken_files_are_skipped_with_reasons(tmp_path, detector):
    expected = break_images(tmp_path)
    (tmp_path / 'no.mp4').write_bytes(b'nothing')
    (tmp_path / 'empty.mp4').touch()
    expected.update({'no.mp4': 'no video', 'empty.mp4': '0 bytes'})
    skipped = []
    found = [image.name for image, _ in detector(tmp_path, batch_size=2, skipped=skipped)]
    assert found == ['whole.jpg', 'whole.png']
    assert {Path(path).name for path, _ in skipped} == set(expected)
    for path, reason in skipped:
        assert expected[Path(path).name] in reason, (path, reason)
    with pytest.raises(UnreadableError, match=r'cut\.bmp: is cut off'):
        list(detector(tmp_path))


def test_inputs_that_would_block_or_fill_the_memory_are_skipped(tmp_path, detector, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    folder = Path('in')
    write_scene(folder / 'a.jpg')
    for name in ('pipe.mp4', 'pipe.jpg'):
        pipe(folder / name)
    listener(folder / 'socket.avi')
    Path(folder / 'zero.png').symlink_to('/dev/zero')
    Path(folder / 'full.mkv').symlink_to('/dev/full')
    Path(folder / 'dangling.mov').symlink_to('nowhere')
    Path(folder / 'circle.png').symlink_to('circle.png')
    Path(folder / 'again').symlink_to('.')
    (folder / 'folder.jpg').mkdir()
    video = write_video(Path('video.avi'))
    # FFmpeg waits for more of the first, and would take the second for 600 frames.
    segment = f'#EXTINF:1,\n{video.resolve()}\n'
    (folder / 'live.mp4').write_text(f'#EXTM3U\n#EXT-X-TARGETDURATION:9\n{segment}')
    listed = f"file '{video.resolve()}'\n" * 100
    (folder / 'list.mp4').write_text(f'ffconcat version 1.0\n{listed}')
    # Without its limit of pixels, OpenCV would decode it.
    Image.new('1', (20_000, 20_000)).save(folder / 'vast.png')
    found = find_inputs(folder)
    assert inputs_module.count_images(found) == 5  # images; none of the videos can be opened
    skipped = []
    assert [image.name for image, _ in detector(found, skipped=skipped)] == ['a.jpg']
    reasons = {
        'circle.png': 'Too many levels',
        'dangling.mov': 'is a link to what is missing',
        'full.mkv': 'is a device',
        'list.mp4': 'is a list of other files',
        'live.mp4': 'is a list of other files',
        'pipe.jpg': 'is a named pipe',
        'pipe.mp4': 'is a named pipe',
        'socket.avi': 'is a socket',
        'vast.png': 'has 20000x20000 pixels',
        'zero.png': 'is a device',
    }
    assert [Path(path).name for path, _ in skipped] == sorted(reasons)
    for path, reason in skipped:
        assert reasons[Path(path).name] in reason, (path, reason)
    for name in ('pipe.mp4', 'zero.png', 'vast.png'):
        with pytest.raises(UnreadableError, match=rf'{name}: (is|has 20000x)'):
            list(detector(folder / name))


def test_frames_of_too_many_pixels_are_not_decoded(tmp_path, detector, monkeypatch):
    video = write_video(tmp_path / 'a.avi')
    monkeypatch.setattr(images_module, 'MAX_PIXELS', 64 * 48 - 1)
    skipped = []
    assert list(detector(video, skipped=skipped)) == []
    assert 'has 64x48 pixels' in skipped[0].reason
    monkeypatch.setattr(images_module, 'MAX_PIXELS', 64 * 48)
    assert len(list(detector(video))) == 6


def test_a_video_that_ends_early_gives_what_it_has(tmp_path, detector):
    whole = write_video(tmp_path / 'whole.avi', frames=20).read_bytes()
    cut = tmp_path / 'cut.avi'
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    skipped = []
    frames = [image.frame for image, _ in detector(cut, every=4, skipped=skipped)]
    assert frames and frames == list(range(0, frames[-1] + 1, 4))
    assert [path for path, _ in skipped] == [str(cut)]
    assert 'cut off or damaged' in skipped[0].reason


# --- Predicting ---------------------------------------------------------------------------------


def test_size_and_neighbours_of_a_batch_do_not_change_results(detector, segmenter):
    # Sizes in a mixed order, which a batch does not have.
    images = [cv2.resize(scene(i), (128, 96 + 16 * (i % 3))) for i in range(7)]
    for model in (detector, segmenter):
        single = list(model(images))
        batched = list(model(images, batch_size=4))
        assert [one.image.name for one in batched] == [one.image.name for one in single]
        for one, other, image in zip(single, batched, images, strict=True):
            np.testing.assert_array_equal(one.image.pixels, image)
            if model is segmenter:
                agree = one.sample.pred_sem_seg.data == other.sample.pred_sem_seg.data
                assert agree.shape == (1, *image.shape[:2]) and agree.float().mean() > 0.999
            else:
                a, b = one.sample.pred_instances, other.sample.pred_instances
                assert len(a) > 0
                torch.testing.assert_close(a.scores, b.scores, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(a.bboxes, b.bboxes, rtol=1e-3, atol=1e-2)


def test_equal_to_the_inferencer_of_mmdet(tmp_path, detector, detector_file):
    from mmdet.apis import DetInferencer

    install_safe_loading()
    theirs = DetInferencer(str(DETECTOR), str(detector_file), device='cpu', show_progress=False)
    path = write_scene(tmp_path / 'a.jpg', 3, (150, 90))
    expected = theirs(str(path))['predictions'][0]
    found = next(detector(path)).sample.pred_instances
    assert len(found) > 0 and found.labels.tolist() == expected['labels']
    np.testing.assert_allclose(found.scores, expected['scores'], rtol=1e-5)
    np.testing.assert_allclose(found.bboxes, expected['bboxes'], atol=1e-3)
    for mask, encoded in zip(found.masks.numpy(), expected['masks'], strict=True):
        np.testing.assert_array_equal(mask, rle.decode(encoded))


def test_equal_to_mmseg(tmp_path, segmenter):
    from mmseg.apis import inference_model

    path = write_scene(tmp_path / 'a.jpg', 3, (150, 90))
    segmenter.model.cfg = load_config(SEGMENTER)
    with DefaultScope.overwrite_default_scope('mmseg'):
        expected = inference_model(segmenter.model, str(path)).pred_sem_seg.data
    assert torch.equal(next(segmenter(path)).sample.pred_sem_seg.data, expected)


def test_too_little_memory_leaves_out_what_needs_more(monkeypatch, detector):
    forward, sizes = detector.model.test_step, []

    def fails_above(data):
        sizes.append(len(data['inputs']))
        if sizes[-1] > 1 or data['data_samples'][0].ori_shape == (100, 100):
            raise torch.OutOfMemoryError('CUDA out of memory.')
        return forward(data)

    monkeypatch.setattr(detector.model, 'test_step', fails_above)
    images, skipped = [scene(0), cv2.resize(scene(1), (100, 100)), scene(2)], []
    found = [image.name for image, _ in detector(images, batch_size=3, skipped=skipped)]
    assert sizes == [3, 1, 1, 1] and found == ['000000.png', '000002.png']
    ((path, reason),) = skipped
    assert path == 'image 1 in memory' and 'more memory than cpu has, at 100x100' in reason


def test_other_errors_of_a_model_are_not_hidden(monkeypatch, detector):
    def fails(data):
        raise RuntimeError('shapes do not match')

    monkeypatch.setattr(detector.model, 'test_step', fails)
    with pytest.raises(RuntimeError, match='shapes do not match'):
        list(detector(scene(0), skipped=[]))


def test_images_in_memory_are_taken_as_the_config_loads_files(tmp_path, detector_file, detector):
    path = write_scene(tmp_path / 'a.png')
    options = {'test_dataloader.dataset.pipeline.0.to_float32': True}
    model = Inferencer(DETECTOR, detector_file, device='cpu', cfg_options=options, score_thr=0.0)
    expected = next(detector(path)).sample.pred_instances.scores
    for given in (path, scene(0)):
        prediction = next(model(given))
        assert prediction.image.pixels.dtype == np.float32
        torch.testing.assert_close(prediction.sample.pred_instances.scores, expected)
        assert model.draw(prediction).dtype == np.uint8


def test_masks_that_lack_rows_or_columns_are_filled_up():
    instances = InstanceData(
        masks=torch.ones(2, 9, 12, dtype=torch.bool), scores=torch.ones(2), bboxes=torch.ones(2, 4)
    )
    sample = BaseDataElement(metainfo=dict(ori_shape=(10, 11)), pred_instances=instances)
    masks = Detection(('a',), None, 0.0).kept(sample).pred_instances.masks
    assert masks.shape == (2, 10, 11) and masks.dtype == torch.bool
    assert masks[:, :9].all() and not masks[:, 9].any()


def test_logits_of_pixels_are_not_kept(segmenter):
    (prediction,) = segmenter(scene(0))
    assert prediction.sample.keys() == ['pred_sem_seg']
    assert not [name for name in vars(prediction.sample) if 'logits' in name]


def test_panoptic_models_give_instances_and_segments(tmp_path, monkeypatch):
    """Without panopticapi, which only their annotations need."""
    monkeypatch.setitem(sys.modules, 'panopticapi', None)
    cfg = load_config('focal_mask2former-panoptic_50e')
    cfg.model.backbone.update(
        init_cfg=None,
        arch=dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)),
        focal_windows=3,
    )
    head = cfg.model.panoptic_head
    head.update(num_queries=5, in_channels=[8, 16, 32, 64])
    head.pixel_decoder.encoder.num_layers = head.transformer_decoder.num_layers = 1
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = (64, 64)
    path = tmp_path / 'panoptic.py'
    cfg.dump(path)
    told = []
    monkeypatch.setattr(inferencer_module, 'print_log', lambda line, *_: told.append(line))
    model = Inferencer(path, untrained(path, tmp_path / 'a.pth'), device='cpu', score_thr=0.0)
    assert len(told) == 1 and 'pred_panoptic_seg' in told[0]
    (prediction,) = model(scene(0))
    segments = prediction.sample.pred_panoptic_seg.sem_seg
    assert segments.shape[1:] == prediction.image.pixels.shape[:2]
    assert model.draw(prediction).shape == prediction.image.pixels.shape
    assert len(model.task.classes) == 133


def test_boxes_of_models_without_them_are_those_of_masks():
    masks = torch.zeros(2, 40, 50, dtype=torch.bool)
    masks[0, 10:20, 5:30] = masks[1, 30:, :10] = True
    instances = InstanceData(masks=masks, scores=torch.ones(2), labels=torch.tensor([1, 0]))
    expected = [[5, 10, 25, 10], [0, 30, 10, 10]]
    for boxes in (None, torch.zeros(2, 4)):
        if boxes is not None:
            instances.bboxes = boxes
        sample = BaseDataElement(pred_instances=instances)
        annotations = Detection(('a', 'b'), None, 0.0).annotations(None, sample)
        assert [annotation['bbox'] for annotation in annotations] == expected
        assert [annotation['area'] for annotation in annotations] == [250, 100]


@pytest.mark.parametrize(
    'image',
    [
        np.full((4, 5), 255, np.uint8),
        np.full((4, 5, 1), 300.0, np.float32),
        np.full((4, 5, 3), 65535, np.uint16),
        np.full((4, 5, 4), 255, np.uint8),
    ],
    ids=['gray', 'float', '16-bit', 'alpha'],
)
def test_whatever_is_loaded_can_be_drawn_on(image):
    shown = as_shown(image)
    assert shown.shape == (4, 5, 3) and shown.dtype == np.uint8 and (shown == 255).all()


@pytest.mark.parametrize('name', ['batch_size', 'every'])
def test_numbers_below_1_are_refused(detector, name):
    with pytest.raises(UserError, match=f'{name} must be at least 1, got 0'):
        next(detector(scene(0), **{name: 0}))


def test_scores_below_the_threshold_are_left_out(detector_file, detector):
    ((_, everything),) = detector(scene(0))
    middle = float(everything.pred_instances.scores.median())
    model = Inferencer(DETECTOR, detector_file, device='cpu', score_thr=middle)
    ((_, some),) = model(scene(0))
    expected = everything.pred_instances.scores
    assert some.pred_instances.scores.tolist() == expected[expected >= middle].tolist()
    assert 0 < len(some.pred_instances) < len(expected)


def test_the_class_is_offered_by_the_package():
    assert mmfocal.Inferencer is Inferencer


# --- Checkpoints --------------------------------------------------------------------------------


class Harmful:
    """Makes a folder when it is unpickled as Python does it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save(dict(state_dict={}, meta=Harmful(str(tmp_path / 'ran'))), tmp_path / 'bad.pth')
    with pytest.raises(UserError, match='was refused'):
        Inferencer(DETECTOR, tmp_path / 'bad.pth')
    assert not (tmp_path / 'ran').exists()


def test_a_checkpoint_of_another_model_is_refused(tmp_path, detector_file):
    with pytest.raises(UserError, match='does not fit the model') as refusal:
        Inferencer(SEGMENTER, detector_file)
    assert 'auxiliary_head.conv_seg.weight is missing.' in str(refusal.value)
    checkpoint = torch.load(detector_file, weights_only=True)
    key = next(iter(checkpoint['state_dict']))
    checkpoint['state_dict'][key] = checkpoint['state_dict'][key][:1]
    torch.save(checkpoint, tmp_path / 'other.pth')
    with pytest.raises(UserError, match=f'size mismatch for {key}'):
        Inferencer(DETECTOR, tmp_path / 'other.pth')


def test_names_and_colours_of_classes(detector, segmenter):
    assert detector.task.classes == CLASSES
    assert segmenter.task.classes == ('ground', *CLASSES)
    assert segmenter.task.palette[0] == (0, 0, 0)
    assert detector.task.name(99) == 'class 99'


def test_classes_without_names_get_numbers(tmp_path, detector_file):
    path = tmp_path / 'config.py'
    path.write_text(f"""
_base_ = '{DETECTOR}'
test_dataloader = dict(dataset=dict(type='BaseDetDataset'))
""")
    state = torch.load(detector_file, weights_only=True)['state_dict']
    torch.save(state, tmp_path / 'bare.pth')
    task = Inferencer(path, tmp_path / 'bare.pth', device='cpu').task
    assert task.classes == tuple(f'class {i}' for i in range(6)) and len(set(task.palette)) == 6


@pytest.mark.parametrize('device', ['cuda:77', 'gpu'])
def test_a_device_that_is_not_there_is_named(device, detector_file):
    with pytest.raises(UserError, match=f"The device '{device}' cannot be used"):
        Inferencer(DETECTOR, detector_file, device=device)


# --- Writing ------------------------------------------------------------------------------------


def run_in_process(monkeypatch, capsys, *args):
    """Runs `mmfocal infer`; returns its status and what it writes to both streams."""
    monkeypatch.setattr(sys, 'argv', ['infer', *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        cli.run('infer')
    return stop.value.code, capsys.readouterr()


def test_the_tool_writes_what_detectors_see(tmp_path, detector_file):
    write_scene(tmp_path / 'a/1.jpg', 0)
    write_scene(tmp_path / 'a/sub/2.png', 1, (90, 120))
    write_scene(tmp_path / 'b/1.jpg', 2)
    break_images(tmp_path / 'b/c')
    write_video(tmp_path / 'clip.avi')
    told = run_tool(
        *('infer.py', DETECTOR, detector_file, 'a', 'b/*.jpg', 'b/c/[ce]*.jpg', 'clip.avi'),
        *('--score-thr', 0, '--batch-size', 2, '--every', 2, '--device', 'cpu'),
        cwd=tmp_path,
        status=1,
    )
    assert re.search(r'\b6 \w+ and frames', told) and 'Predicting' not in told
    assert 'Skipped: 2' in told
    assert 'b/c/cut.jpg: is cut off' in told and 'b/c/empty.jpg: is empty' in told

    out = tmp_path / 'inference'
    files = {path.relative_to(out).as_posix() for path in out.rglob('*') if path.is_file()}
    assert files == {
        'pictures/1.jpg',
        'pictures/sub/2.png',
        'pictures/1-2.jpg',
        'videos/clip.mp4',
        'predictions.json',
    }
    assert video_facts(out / 'videos/clip.mp4') == [3, 64, 48, 4]
    coco = load_coco(out / 'predictions.json')
    sizes = {image['file_name']: (image['width'], image['height']) for image in coco.imgs.values()}
    frames = {f'clip.avi/{i:06}': (64, 48) for i in (0, 2, 4)}
    assert sizes == {
        '1.jpg': (128, 128), 'sub/2.png': (90, 120), '1-2.jpg': (128, 128), **frames
    }  # fmt: skip
    assert [image['source'] for image in coco.loadImgs([1, 3])] == ['a/1.jpg', 'b/1.jpg']
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    for image in coco.imgs.values():
        annotations = coco.imgToAnns[image['id']]
        assert annotations
        for annotation in annotations:
            x, y, width, height = annotation['bbox']
            assert min(x, y, width, height) >= 0
            assert x + width <= image['width'] + 0.01 and y + height <= image['height'] + 0.01
            assert 0 <= annotation['score'] <= 1
            mask = coco.annToMask(annotation)
            assert mask.shape == (image['height'], image['width'])
            assert mask.sum() == annotation['area']
    drawn = cv2.imread(str(out / 'pictures/sub/2.png'))
    assert drawn.shape == (120, 90, 3)
    assert (drawn != cv2.imread(str(tmp_path / 'a/sub/2.png'))).any()


def test_earlier_results_are_kept_unless_forced(tmp_path, monkeypatch, capsys, detector_file):
    write_scene(tmp_path / 'photos/1.jpg')
    out = tmp_path / 'out'
    args = (DETECTOR, detector_file, tmp_path / 'photos', '--out', out, '--device', 'cpu')
    status, told = run_in_process(monkeypatch, capsys, *args, '--no-pictures')
    assert status == 0 and not (out / 'pictures').exists(), told.err
    (out / 'predictions.json').write_text('mine')
    status, told = run_in_process(monkeypatch, capsys, *args)
    assert status == 2 and 'holds earlier results (predictions.json)' in told.err
    assert (out / 'predictions.json').read_text() == 'mine'
    assert run_in_process(monkeypatch, capsys, *args, '--force')[0] == 0
    assert len(load_coco(out / 'predictions.json').imgs) == 1
    assert (out / 'pictures/1.jpg').exists()


def test_wrong_arguments_end_with_status_2(tmp_path, monkeypatch, capsys, detector_file):
    image = write_scene(tmp_path / '1.jpg')
    for args, message in (
        ((DETECTOR, detector_file, tmp_path / 'no.jpg'), 'no such file'),
        ((DETECTOR, tmp_path / 'no.pth', image), 'There is no checkpoint'),
        (('no_config', detector_file, image), 'There is no config'),
        ((DETECTOR, detector_file, image, '--out', image), 'is a file'),
        ((DETECTOR, detector_file, image, '--batch-size', 0), 'expected a whole number from 1'),
        (
            (DETECTOR, detector_file, image, '--score-thr', 'nan'),
            'expected a number from 0 to 1',
        ),
    ):
        out = () if '--out' in args else ('--out', tmp_path / 'out')
        status, told = run_in_process(monkeypatch, capsys, *args, *out)
        assert status == 2 and message in told.err, (args, told.err)
        assert 'Traceback' not in told.err


def test_label_maps_hold_what_segmenters_see(tmp_path, segmenter):
    write_scene(tmp_path / 'in/a.jpg', 0, (100, 80))
    write_scene(tmp_path / 'in/a.png', 1)
    write_video(tmp_path / 'in/a.avi')
    inputs, layout = find_inputs(tmp_path / 'in'), Layout(tmp_path / 'out')
    outcome = run(segmenter, inputs, layout, batch_size=2, every=3, labels=False)
    assert outcome.predicted == 4 and not outcome.skipped
    expected = {'a.avi/000000.png', 'a.avi/000003.png', 'a.png', 'a-2.png'}
    written = {path.relative_to(layout.label_maps).as_posix(): path
               for path in layout.label_maps.rglob('*.png')}  # fmt: skip
    assert set(written) == expected
    for image, sample in segmenter(inputs, every=3):
        with Image.open(layout.label_map(image)) as stored:
            assert stored.mode == 'L'
            labels = np.asarray(stored)
        agree = labels == sample.pred_sem_seg.data[0].numpy()
        assert agree.shape == image.pixels.shape[:2] and agree.mean() > 0.999
    classes = json.loads(layout.classes.read_text())
    assert [each['name'] for each in classes['classes']] == ['ground', *CLASSES]
    assert classes['unlabelled'] == 255
    assert video_facts(layout.root / 'videos/a.mp4')[0] == 2


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(
    tmp_path, monkeypatch, capsys, segmenter
):
    for index in range(3):
        write_scene(tmp_path / f'in/{index}.png', index)
    inputs = find_inputs(tmp_path / 'in')
    run(segmenter, inputs, Layout(tmp_path / 'quick'), draw=False)
    assert 'Predicting' not in capsys.readouterr().err
    monkeypatch.setattr(running_module, 'SECONDS_BETWEEN_LINES', 0.0)
    outcome = run(segmenter, inputs, Layout(tmp_path / 'slow'), draw=False)
    told = capsys.readouterr().err
    lines = [line for line in told.splitlines() if line.startswith('Predicting: ')]
    assert outcome.seconds > 0 and len(lines) == 3 and '3/3' in lines[2]
    assert '\r' not in told and '\x1b' not in told


def test_classifiers_name_the_most_probable_classes(tmp_path, monkeypatch):
    if importlib.util.find_spec('torchvision') is None:
        monkeypatch.syspath_prepend(ROOT / 'tests/stand_ins')
    model = Inferencer(CLASSIFIER, untrained(CLASSIFIER, tmp_path / 'a.pth'), device='cpu')
    write_scene(tmp_path / 'in/a.jpg')
    layout = Layout(tmp_path / 'out')
    run(model, find_inputs(tmp_path / 'in'), layout)
    coco = load_coco(layout.predictions)
    scores = [annotation['score'] for annotation in coco.anns.values()]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True) and sum(scores) <= 1
    assert cv2.imread(str(layout.root / 'pictures/a.jpg')).shape == (128, 128, 3)


def test_results_so_far_stay_when_interrupted(tmp_path, monkeypatch, detector):
    write_video(tmp_path / 'in/clip.avi')
    write_scene(tmp_path / 'in/a.jpg')
    monkeypatch.setattr(writers_module, 'SECONDS_BETWEEN_SAVES', -1.0)
    monkeypatch.setattr(writers_module, 'MAX_SHARE_OF_SAVING', float('inf'))
    layout, seen, forward = Layout(tmp_path / 'out'), [], detector.model.test_step

    def interrupted(data):
        seen.append(data)
        if len(seen) == 4:
            # Saved on the way, without the end that an interruption still allows.
            assert len(load_coco(layout.predictions).imgs) == 3
            raise KeyboardInterrupt
        return forward(data)

    monkeypatch.setattr(detector.model, 'test_step', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(detector, find_inputs(tmp_path / 'in'), layout)
    assert len(load_coco(layout.predictions).imgs) == 3
    assert video_facts(layout.root / 'videos/clip.mp4')[0] == 2
    assert not list(tmp_path.rglob('.*'))


def test_a_video_that_is_not_whole_on_the_disk_is_told(tmp_path, monkeypatch, detector):
    write_video(tmp_path / 'in/clip.avi')
    monkeypatch.setattr(writers_module, 'count_frames', lambda path: 5)
    with pytest.raises(UserError, match=r'videos/clip\.mp4 could not be written whole'):
        run(detector, find_inputs(tmp_path / 'in'), Layout(tmp_path / 'out'))
    assert not list((tmp_path / 'out/videos').iterdir())
    assert len(load_coco(tmp_path / 'out/predictions.json').imgs) == 6


def test_a_camera_is_stopped_by_ctrl_c_and_keeps_its_speed(tmp_path, monkeypatch, detector):
    video = write_video(tmp_path / 'film.avi', frames=4)
    real, clock = cv2.VideoCapture, iter(range(100))
    monkeypatch.setattr(
        cv2, 'VideoCapture', lambda address: real(str(video) if address == 0 else address)
    )
    monkeypatch.setattr(inputs_module.time, 'monotonic', lambda: next(clock) * 0.2)
    layout, draw = Layout(tmp_path / 'out'), detector.draw

    def stopped(prediction, labels):
        if prediction.image.frame == 3:
            raise KeyboardInterrupt
        return draw(prediction, labels)

    monkeypatch.setattr(detector, 'draw', stopped)
    outcome = run(detector, find_inputs('0'), layout)
    assert outcome.predicted == 3 and not outcome.skipped
    frames, *_, rate = video_facts(layout.root / 'videos/camera-0.mp4')
    assert frames / rate >= 0.4  # as long as it took


def test_a_camera_that_is_not_there_is_skipped(tmp_path, monkeypatch, detector):
    closed = cv2.VideoCapture()
    monkeypatch.setattr(cv2, 'VideoCapture', lambda address: closed)
    skipped = []
    assert not list(detector(7, skipped=skipped))
    assert skipped == [Skipped('7', 'is no camera that can be opened.')]
