"""Our detectors and their predictions in the hands of others."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector

CONFIGS = ['focal_retinanet_shapes', 'focal_maskrcnn_shapes']
CLASSES = ('circle', 'square', 'triangle', 'star', 'cross', 'ring')


def predicted(run, image):
    """What mmdet itself finds."""
    config, checkpoint = run
    return inference_detector(init_detector(str(config), str(checkpoint), device='cpu'), image)


@pytest.mark.parametrize('name', CONFIGS)
def test_mmdet_inferencer_finds_what_its_functions_find(name, run_of, image):
    expected = predicted(run_of(name), image).pred_instances
    config, checkpoint = map(str, run_of(name))
    inferencer = DetInferencer(config, checkpoint, device='cpu', show_progress=False)
    (found,) = inferencer(image)['predictions']
    assert len(found['labels']) == len(expected.labels) > 0
    np.testing.assert_allclose(found['bboxes'], expected.bboxes, atol=1e-3)
    np.testing.assert_allclose(found['scores'], expected.scores, atol=1e-5)
    assert ('masks' in found) == ('masks' in expected)


def test_mmdet_inferencer_finds_the_config_in_a_checkpoint(run_of):
    _, checkpoint = run_of('focal_retinanet_shapes')
    # In a process without our loader, which leaves configs of a checkpoint out.
    code = (
        'import sys; from mmdet.apis import DetInferencer; '
        "model = DetInferencer(None, sys.argv[1], device='cpu').model; "
        'print(model.backbone.num_features, model.dataset_meta["classes"])'
    )
    command = [sys.executable, '-W', 'ignore', '-c', code, str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(CLASSES) in done.stdout


@pytest.mark.parametrize('name', CONFIGS)
def test_sahi_predicts_on_a_whole_image_and_on_slices(name, run_of, image):
    pytest.importorskip('sahi', reason='`make clients` installs it')
    from sahi import AutoDetectionModel
    from sahi.predict import get_prediction, get_sliced_prediction

    config, checkpoint = map(str, run_of(name))
    model = AutoDetectionModel.from_pretrained(
        model_type='mmdet',
        model_path=checkpoint,
        config_path=config,
        confidence_threshold=0.01,
        device='cpu',
    )
    assert model.category_names == CLASSES and model.num_categories == 6
    assert model.has_mask == ('maskrcnn' in name)
    whole = get_prediction(image[..., ::-1].copy(), model).object_prediction_list
    expected = predicted(run_of(name), image).pred_instances
    # sahi leaves out boxes below its threshold or without area, and rounds.
    scores = {round(score, 4) for score in expected.scores.tolist()}
    assert whole and {round(each.score.value, 4) for each in whole} <= scores
    sliced = get_sliced_prediction(image, model, 64, 64, verbose=0)
    found = sliced.to_coco_annotations()
    assert found and all(0 <= each['bbox'][0] <= 160 for each in found)
    assert any(each['bbox'][0] > 96 for each in found)  # in the last slice, moved to its place
    assert any(each['segmentation'] for each in found) == ('maskrcnn' in name)


@pytest.mark.parametrize('name', CONFIGS)
def test_supervision_takes_detections(name, run_of, image):
    supervision = pytest.importorskip('supervision', reason='`make clients` installs it')
    sample = predicted(run_of(name), image)
    found = supervision.Detections.from_mmdetection(sample)
    np.testing.assert_array_equal(found.xyxy, sample.pred_instances.bboxes)
    np.testing.assert_array_equal(found.class_id, sample.pred_instances.labels)
    assert (found.mask is None) == ('maskrcnn' not in name)
    drawn = supervision.BoxAnnotator().annotate(image.copy(), found)
    assert (drawn != image).any()
    assert len(found.with_nms(0.5)) <= len(found)


@pytest.fixture(scope='module')
def coco(run_of, image, tmp_path_factory):
    """Folder of an image and of what `mmfocal infer` wrote about it."""
    folder = tmp_path_factory.mktemp('coco')
    cv2.imwrite(str(folder / 'image.png'), image)
    arguments = [*run_of('focal_maskrcnn_shapes'), 'image.png', '--score-thr', '0.01']
    command = [sys.executable, '-m', 'mmfocal', 'infer', *map(str, arguments), '--out', 'out']
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_pycocotools_evaluates_predictions_against_themselves(coco):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    (path,) = (coco / 'out').glob('*.json')
    content = json.loads(path.read_text())
    for kind in ('bbox', 'segm'):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(content['annotations']), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1)


def test_supervision_reads_predictions_as_a_data_set(coco):
    supervision = pytest.importorskip('supervision', reason='`make clients` installs it')
    (path,) = (coco / 'out').glob('*.json')
    data = supervision.DetectionDataset.from_coco(str(coco), str(path), force_masks=True)
    assert data.classes == list(CLASSES) and len(data) == 1
    (name, image, found), content = next(iter(data)), json.loads(path.read_text())
    assert name.endswith('image.png') and image.shape == (120, 160, 3)
    assert len(found) == len(content['annotations']) > 0
    boxes = np.array([each['bbox'] for each in content['annotations']])
    np.testing.assert_allclose(found.xyxy[:, :2], boxes[:, :2], atol=1e-4)
    assert found.mask.shape == (len(found), 120, 160) and found.mask.any()


def test_captum_attributes_a_score_to_pixels_and_to_a_layer(run_of, image):
    attr = pytest.importorskip('captum.attr', reason='`make clients` installs it')
    config, checkpoint = map(str, run_of('focal_retinanet_shapes'))
    model = init_detector(config, checkpoint, device='cpu')
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255

    def best_scores(pixels):
        """``(B, classes)``: the largest logit of each class on the coarsest map."""
        logits = model(pixels, mode='tensor')[0][-1]
        return logits.unflatten(1, (-1, 6)).amax((1, 3, 4))

    integrated = attr.IntegratedGradients(best_scores)
    found, error = integrated.attribute(
        pixels, target=3, n_steps=32, internal_batch_size=8, return_convergence_delta=True
    )
    assert found.shape == pixels.shape and found.abs().sum() > 0
    with torch.no_grad():
        change = (best_scores(pixels) - best_scores(torch.zeros_like(pixels)))[0, 3]
    assert abs(error.item()) < 0.1 * abs(change.item()) + 0.05
    # Norms of outputs see maps as (B, H, W, C); the neck's convolutions see (B, C, H, W).
    cam = attr.LayerGradCam(best_scores, model.neck.lateral_convs[-1])
    heat = cam.attribute(pixels, target=3)
    assert heat.shape[-2:] == model.backbone(pixels)[-1].shape[-2:] and heat.abs().sum() > 0
