"""Drawn data in the forms that the data sets of mmdet and mmseg read.

The images and annotations are those of :func:`mmfocal.datasets.prepare_shapes`. Each data set of a
config gets a folder of its own, with files where its own ``ann_file`` and ``data_prefix`` look for
them, and the class names of its own ``METAINFO``.
"""

from __future__ import annotations

import inspect
import json
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mmfocal.utils.config import type_name

NUM_IMAGES = dict(train=8, val=4)
SIDE = 128  # pixels of a drawn image
FRAMES = 4  # of a video
STUFF = 200  # the category of the ground in panoptic annotations


def stand_in_for_panopticapi() -> None:
    """Lets mmdet read panoptic maps without the package panopticapi."""
    utils = types.ModuleType('panopticapi.utils')
    utils.rgb2id = lambda colours: colours.astype(np.int32) @ np.int32((1, 256, 256**2))
    package = types.ModuleType('panopticapi')
    package.utils = utils
    sys.modules.update({'panopticapi': package, 'panopticapi.utils': utils})


def lay_out(dataset: dict[str, Any], kind: type, split: str, root: Path) -> None:
    """Writes the files of a data set, and points its settings there.

    Args:
        dataset: settings of a data set that is no wrapper, changed in place.
        kind: its class.
        split: ``'train'`` or ``'val'``.
        root: folder of all drawn data; ``<root>/shapes`` is there.

    Raises:
        KeyError: nothing is known of such data sets.
    """
    folder = root / type_name(dataset) / split
    dataset['data_root'] = f'{folder}/'
    write = next(WRITERS[base.__name__] for base in kind.__mro__ if base.__name__ in WRITERS)
    write(dataset, kind, _Drawn(root / 'shapes', split), folder)


class _Drawn:
    """A drawn split.

    Args:
        root: of the drawn data set.
        split: its name.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.coco = json.loads((root / f'annotations/instances_{split}.json').read_text())
        self.images, self.labels = root / split, root / 'labels' / split

    def annotations(self) -> Iterator[tuple[dict, list[dict]]]:
        """Each image with its annotations."""
        for image in self.coco['images']:
            own = [a for a in self.coco['annotations'] if a['image_id'] == image['id']]
            yield image, own

    def copy_images(self, folder: Path, suffix: str = '.jpg') -> None:
        _convert(self.images, folder, suffix)

    def copy_labels(self, folder: Path, suffix: str, values: int) -> None:
        """Label maps whose values are below ``values``."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.labels.iterdir()):
            labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(int) % values
            cv2.imwrite(str(folder / f'{path.stem}{suffix}'), labels.astype(np.uint8))


def _convert(source: Path, folder: Path, suffix: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        target = folder / f'{path.stem}{suffix}'
        if path.suffix == target.suffix:
            shutil.copyfile(path, target)
        else:
            cv2.imwrite(str(target), cv2.imread(str(path)))


def _written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _names(dataset: dict[str, Any], kind: type) -> list[str]:
    metainfo = dict(kind.METAINFO, **dataset.get('metainfo', {}))
    return list(metainfo['classes'])


# --- Detection ------------------------------------------------------------------------------


def _coco(dataset: dict, kind: type, drawn: _Drawn, folder: Path) -> None:
    names = _names(dataset, kind)
    coco = drawn.coco
    for annotation in coco['annotations']:
        annotation['category_id'] = (annotation['category_id'] - 1) % len(names) + 1
    coco['categories'] = [dict(id=i, name=name) for i, name in enumerate(names, start=1)]
    _written(folder / dataset['ann_file'], json.dumps(coco))
    drawn.copy_images(folder / dataset['data_prefix']['img'])
    if 'seg' in dataset['data_prefix']:
        drawn.copy_labels(folder / dataset['data_prefix']['seg'], '.png', values=256)


def _panoptic(dataset: dict, kind: type, drawn: _Drawn, folder: Path) -> None:
    things, stuff = kind.METAINFO['thing_classes'], kind.METAINFO['stuff_classes']
    categories = [dict(id=i, name=name, isthing=1) for i, name in enumerate(things, start=1)]
    categories += [dict(id=i, name=name, isthing=0) for i, name in enumerate(stuff, start=STUFF)]
    maps = folder / dataset['data_prefix']['seg']
    maps.mkdir(parents=True, exist_ok=True)
    annotations = []
    for image, own in drawn.annotations():
        segments = np.full((SIDE, SIDE), 1000, np.uint32)
        infos = [dict(id=1000, category_id=STUFF, bbox=[0, 0, SIDE, SIDE], area=1.0, iscrowd=0)]
        for annotation in own:
            segments[_mask(annotation)] = annotation['id']
            keys = ('id', 'category_id', 'bbox', 'area', 'iscrowd')
            infos.append({key: annotation[key] for key in keys})
        name = Path(image['file_name']).with_suffix('.png').name
        annotations.append(dict(image_id=image['id'], file_name=name, segments_info=infos))
        colours = [segments // 256**power % 256 for power in (2, 1, 0)]  # blue comes first
        cv2.imwrite(str(maps / name), np.stack(colours, axis=-1).astype(np.uint8))
    coco = dict(images=drawn.coco['images'], annotations=annotations, categories=categories)
    _written(folder / dataset['ann_file'], json.dumps(coco))
    drawn.copy_images(folder / dataset['data_prefix']['img'])


def _mask(annotation: dict) -> np.ndarray:
    """The pixels of an annotation, bool."""
    mask = annotation['segmentation']
    if isinstance(mask, list):
        mask = coco_mask.merge(coco_mask.frPyObjects(mask, SIDE, SIDE))
    return coco_mask.decode(mask).astype(bool)


def _voc(dataset: dict, kind: type, drawn: _Drawn, folder: Path) -> None:
    names = _names(dataset, kind)
    root = folder / dataset['data_prefix'].get('sub_data_root', '')
    for image, own in drawn.annotations():
        objects = []
        for annotation in own:
            x, y, width, height = annotation['bbox']
            corners = dict(xmin=x + 1, ymin=y + 1, xmax=x + width, ymax=y + height)
            box = ''.join(f'<{key}>{int(value)}</{key}>' for key, value in corners.items())
            name = names[(annotation['category_id'] - 1) % len(names)]
            objects.append(
                f'<object><name>{name}</name><difficult>{annotation["iscrowd"]}</difficult>'
                f'<bndbox>{box}</bndbox></object>'
            )
        size = f'<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>'
        path = root / 'Annotations' / Path(image['file_name']).with_suffix('.xml').name
        _written(path, f'<annotation>{size}{"".join(objects)}</annotation>')
    drawn.copy_images(root / 'JPEGImages')
    _list(drawn, folder / dataset['ann_file'])


def _list(drawn: _Drawn, path: Path) -> None:
    """The names of the images, one a line, as VOC has them."""
    names = [Path(image['file_name']).stem for image in drawn.coco['images']]
    _written(path, '\n'.join(names) + '\n')


def _video(dataset: dict, kind: type, drawn: _Drawn, folder: Path) -> None:
    """Videos of four images, whose objects of a class are taken for the same."""
    if 'dataset_version' in dataset:
        kind.set_dataset_classes(dataset['dataset_version'])
    names, coco = _names(dataset, kind), drawn.coco
    videos = []
    for number, image in enumerate(coco['images']):
        video = number // FRAMES + 1
        image.update(video_id=video, frame_id=number % FRAMES, mot_frame_id=number % FRAMES + 1)
        if number % FRAMES == 0:
            size = dict(width=SIDE, height=SIDE)
            videos.append(dict(id=video, name=f'video{video}', fps=5, **size))
    video_of = {image['id']: image['video_id'] for image in coco['images']}
    for annotation in coco['annotations']:
        category, video = annotation['category_id'], video_of[annotation['image_id']]
        annotation['category_id'] = (category - 1) % len(names) + 1
        annotation['instance_id'] = 100 * video + category
        annotation.update(video_id=video, visibility=1.0, mot_conf=1.0, iscrowd=0)
    coco['categories'] = [dict(id=i, name=name) for i, name in enumerate(names, start=1)]
    coco['videos'] = videos
    _written(folder / dataset['ann_file'], json.dumps(coco))
    drawn.copy_images(folder / dataset['data_prefix']['img_path'])


# --- Segmentation -----------------------------------------------------------------------------


def _segmentation(dataset: dict, kind: type, drawn: _Drawn, folder: Path) -> None:
    def setting(name: str) -> Any:
        if name in dataset:
            return dataset[name]
        for base in kind.__mro__:  # some leave it to what they inherit from
            parameter = inspect.signature(base.__init__).parameters.get(name)
            if parameter is not None:
                return parameter.default
        raise KeyError(name)

    prefix = dataset['data_prefix']
    values = len(_names(dataset, kind)) + bool(setting('reduce_zero_label'))
    drawn.copy_images(folder / prefix['img_path'], setting('img_suffix'))
    drawn.copy_labels(folder / prefix['seg_map_path'], setting('seg_map_suffix'), values)
    if dataset.get('ann_file'):
        _list(drawn, folder / dataset['ann_file'])


WRITERS: dict[str, Callable[[dict, type, _Drawn, Path], None]] = dict(
    CocoDataset=_coco,
    CocoPanopticDataset=_panoptic,
    XMLDataset=_voc,
    BaseVideoDataset=_video,
    BaseSegDataset=_segmentation,
)
