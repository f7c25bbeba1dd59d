"""Have a Label Studio server export what was drawn in it, as its users do.

The SDK's converter is what the server writes COCO, YOLO and VOC with, but names of files, ids
and the JSON itself come from the server. It needs an environment of its own::

    pip install label-studio==1.23.2
    LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN=true label-studio start --no-browser --port 8123 \\
        --username a@example.org --password ... --user-token TOKEN
    PYTHONPATH=tools/dev python -m exports.label_studio_server boxes tests/exports TOKEN
    PYTHONPATH=tools/dev python -m exports.label_studio_server polygons tests/exports TOKEN

The second argument is the folder of the fixtures, which gets ``server/KIND_FORM``. Crowds are
left out, for Label Studio has none.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import zipfile
from pathlib import Path

import requests

from .base import by_image, read_coco
from .fixtures import IMAGE_SUFFIXES

ADDRESS = 'http://127.0.0.1:8123/api'
TAGS = {'boxes': 'RectangleLabels', 'polygons': 'PolygonLabels'}
FORMS = {
    'boxes': ['JSON', 'JSON_MIN', 'CSV', 'COCO_WITH_IMAGES', 'COCO', 'YOLO_WITH_IMAGES', 'VOC'],
    'polygons': ['JSON', 'JSON_MIN', 'COCO_WITH_IMAGES', 'YOLO_WITH_IMAGES'],
}


class Server:
    def __init__(self, token: str) -> None:
        self.session = requests.Session()
        self.session.headers['Authorization'] = f'Token {token}'
        self.session.trust_env = False  # no proxy on the way to this machine

    def ask(self, method: str, path: str, **options) -> requests.Response:
        reply = self.session.request(method, f'{ADDRESS}/{path}', timeout=120, **options)
        reply.raise_for_status()
        return reply

    def project(self, kind: str, names: list[str]) -> int:
        labels = ''.join(f'<Label value="{name}"/>' for name in names)
        tag = f'<{TAGS[kind]} name="label" toName="image">{labels}</{TAGS[kind]}>'
        config = f'<View><Image name="image" value="$image"/>{tag}</View>'
        settings = {'title': kind, 'label_config': config}
        return self.ask('POST', 'projects', json=settings).json()['id']

    def fill(self, project: int, coco: dict, images: Path) -> None:
        """Upload the images, and annotate the tasks that the server made of them."""
        results = {}
        for image, anns in by_image(coco):
            results[image['file_name']] = [r for ann in anns for r in label_results(ann, image)]
            file = (image['file_name'], (images / image['file_name']).read_bytes(), 'image/jpeg')
            self.ask('POST', f'projects/{project}/import', files={'file': file})
        query = {'project': project, 'page_size': 1000, 'fields': 'all'}
        for task in self.ask('GET', 'tasks', params=query).json()['tasks']:
            name = task['data']['image'].rsplit('/', 1)[1].split('-', 1)[1]  # behind the hash
            path = f'tasks/{task["id"]}/annotations'
            self.ask('POST', path, json={'result': results[name], 'lead_time': 1.0})

    def export(self, project: int, form: str, out: Path) -> None:
        query = {'exportType': form, 'download_all_tasks': 'true'}
        reply = self.ask('GET', f'projects/{project}/export', params=query)
        out.mkdir(parents=True)
        if reply.content.startswith(b'PK'):
            zipfile.ZipFile(io.BytesIO(reply.content)).extractall(out)
        else:
            suffix = 'csv' if form == 'CSV' else 'json'
            (out / f'project-{project}-at-2026-11-28.{suffix}').write_bytes(reply.content)


def label_results(ann: dict, image: dict) -> list[dict]:
    """One result for a box, or one for each part of an object; percent of the image's sides."""
    size = {'original_width': image['width'], 'original_height': image['height']}
    base = size | {'image_rotation': 0, 'to_name': 'image', 'from_name': 'label'}
    sides = image['width'], image['height']
    if isinstance(ann['segmentation'], dict):
        return []
    if not ann['segmentation']:
        keys = ('x', 'y', 'width', 'height')
        value = {key: ann['bbox'][i] / sides[i % 2] * 100 for i, key in enumerate(keys)}
        value |= {'rotation': 0, 'rectanglelabels': [ann['name']]}
        return [base | {'id': f'b{ann["id"]}', 'type': 'rectanglelabels', 'value': value}]
    results = []
    for order, part in enumerate(ann['segmentation']):
        shares = [x / sides[i % 2] * 100 for i, x in enumerate(part)]
        points = [list(pair) for pair in zip(shares[::2], shares[1::2], strict=True)]
        value = {'points': points, 'closed': True, 'polygonlabels': [ann['name']]}
        name = f'p{ann["id"]}_{order}'
        results.append(base | {'id': name, 'type': 'polygonlabels', 'value': value})
    return results


def take_out_images(form: Path, names: list[str]) -> dict[str, str]:
    """Where the form has which shared image; those that the server did not send lie in images/."""
    places = {}
    for path in sorted(form.rglob('*')):
        if path.suffix in IMAGE_SUFFIXES:
            places[str(path.relative_to(form))] = path.name.split('-', 1)[1]
            path.unlink()
    for name in names:
        split = name.split('_')[0]
        if name not in places.values():
            places[f'{split}/images/{name}'] = name
    return places


def main(kind: str, fixtures: Path, token: str) -> None:
    server = Server(token)
    placed = json.loads((fixtures / 'images.json').read_text())
    for old in fixtures.glob(f'server/{kind}_*'):
        shutil.rmtree(old)
    names = sorted(path.name for path in (fixtures / 'images').iterdir())
    for split in ('train', 'val'):
        coco = read_coco(fixtures / kind / 'truth', split)
        project = server.project(kind, [category['name'] for category in coco['categories']])
        server.fill(project, coco, fixtures / 'images')
        for form in FORMS[kind]:
            server.export(project, form, fixtures / f'server/{kind}_{form.lower()}' / split)
    for form in FORMS[kind]:
        folder = fixtures / f'server/{kind}_{form.lower()}'
        placed[f'server/{folder.name}'] = take_out_images(folder, names)
    (fixtures / 'images.json').write_text(json.dumps(placed, indent=0) + '\n')


if __name__ == '__main__':
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
