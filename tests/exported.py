"""Places the exports of ``tests/exports`` as the tools wrote them, images included."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

EXPORTS = Path(__file__).with_name('exports')
PLACES: dict[str, dict[str, str]] = json.loads((EXPORTS / 'images.json').read_text())


def place(form: str, folder: Path) -> Path:
    """Copy a form, such as ``boxes/voc_datumaro``, into ``folder`` and return where it lies."""
    target = folder / form.replace('/', '_')
    if (EXPORTS / form).exists():
        shutil.copytree(EXPORTS / form, target)
    for path, image in PLACES[form].items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(EXPORTS / 'images' / image, target / path)
    return target


def truth(kind: str, split: str) -> dict:
    """The COCO JSON that all forms of ``boxes`` or ``polygons`` were made from."""
    path = EXPORTS / kind / f'truth/annotations/instances_{split}.json'
    return json.loads(path.read_text())
