"""Our segmenters in mmseg's own tools."""

import subprocess
import sys
from pathlib import Path

import mmseg
import numpy as np
import pytest
from mmseg.apis import MMSegInferencer, inference_model, init_model

TOOLS = Path(mmseg.__file__).parent / '.mim/tools'


@pytest.fixture(scope='module')
def run(run_of):
    config, checkpoint = run_of('focal_upernet_shapes')
    return str(config), str(checkpoint)


def test_mmseg_inferencer_gives_what_its_functions_give(run, image):
    model = init_model(*run, device='cpu')
    expected = inference_model(model, image).pred_sem_seg.data[0].numpy()
    classes, palette = (model.dataset_meta[key] for key in ('classes', 'palette'))
    inferencer = MMSegInferencer(*run, classes=classes, palette=palette, device='cpu')
    np.testing.assert_array_equal(inferencer(image)['predictions'], expected)


def test_mmseg_tools_evaluate_and_publish(run):
    config, checkpoint = run
    folder = Path(config).parent
    for command in (
        [TOOLS / 'test.py', config, checkpoint, '--work-dir', 'tested', '--out', 'maps'],
        [TOOLS / 'misc/publish_model.py', checkpoint, 'published.pth'],
    ):
        done = subprocess.run(
            [sys.executable, *map(str, command)], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert len(list((folder / 'maps').glob('*.png'))) == 2
