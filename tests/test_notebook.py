"""The notebook of the docs: it runs, and shows what its last run has shown."""

import importlib.util
import json
import os
import re
from pathlib import Path

from mmfocal.datasets import prepare_shapes

ROOT = Path(__file__).parents[1]
PATH = ROOT / 'docs/quick_start.ipynb'
CELLS = [cell for cell in json.loads(PATH.read_text())['cells'] if cell['cell_type'] == 'code']
# Six images and one pass over them, in the place of 2,400 and more passes.
SHORT = "DATA = 'my_data'\nEPOCHS = 1"


def shown(cells, kind):
    """All outputs of a kind, one after the other."""
    texts = (
        output.get('data', {}).get(kind, output.get('text', '') if kind == 'text/plain' else '')
        for cell in cells
        for output in cell['outputs']
    )
    return [''.join(text) for text in texts if text]


def test_the_notebook_runs(tmp_path, monkeypatch):
    assert importlib.util.find_spec('nbclient'), 'Run: make env'
    from tools.dev.notebook import executed

    paths = filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(paths))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    prepare_shapes(tmp_path / 'my_data', num_images=dict(train=6, val=3))
    assert CELLS[0]['source'][0].startswith('DATA = ')
    notebook = executed(PATH, tmp_path, SHORT)
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    text = '\n'.join(shown(cells, 'text/plain'))
    assert 'Recognised COCO' in text and 'Iteration 2: coco/bbox_mAP' in text
    assert '(1, 768, 3, 4)' in text
    assert 'mmengine - INFO' not in text
    assert len(shown(cells, 'image/png')) == 2
    (work_dir,) = (tmp_path / 'work_dirs').iterdir()
    assert (work_dir / 'iter_2.pth').is_file() and list(work_dir.glob('best_*.pth'))


def test_what_is_shown_is_whole_small_and_of_no_machine():
    assert [cell['execution_count'] for cell in CELLS] == [*range(1, len(CELLS) + 1)]
    assert PATH.stat().st_size < 400_000
    text = '\n'.join(shown(CELLS, 'text/plain'))
    assert len(shown(CELLS, 'image/png')) == 2
    assert not re.search(r'/(tmp|home|root|usr|work)/|Warning|Traceback', text)
    found = [float(each) for each in re.findall(r'Iteration \d+: coco/bbox_mAP ([\d.]+)', text)]
    assert found and found[-1] > 0.3  # it has learned something
    assert f"'coco/bbox_mAP': {found[-1]}" in text
