"""Boxes and polygons, written by the tools of each format."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas
from PIL import Image

from .base import (
    NO_CLASS,
    ROBOFLOW_SPLITS,
    by_image,
    copy,
    copy_all,
    datumaro_set,
    decode,
    form,
    read_coco,
    read_map,
    splits,
    write_json,
)

# supervision


def supervision_set(truth: Path, split: str):
    import supervision

    coco = read_coco(truth, split)
    return supervision.DetectionDataset.from_coco(
        str(truth / 'images' / split),
        str(truth / f'annotations/instances_{split}.json'),
        force_masks=any(ann['segmentation'] for ann in coco['annotations']),
    )


@form('coco_supervision', 'supervision', 'boxes', 'polygons')
def coco_supervision(truth: Path, out: Path) -> None:
    for split in splits(truth):
        supervision_set(truth, split).as_coco(
            str(out / split), str(out / split / '_annotations.coco.json')
        )


@form('yolo_supervision', 'supervision', 'boxes', 'polygons')
def yolo_supervision(truth: Path, out: Path) -> None:
    for split in splits(truth):
        folder = out / ROBOFLOW_SPLITS[split]
        supervision_set(truth, split).as_yolo(
            str(folder / 'images'), str(folder / 'labels'), str(out / 'data.yaml')
        )


@form('voc_supervision', 'supervision', 'boxes', 'polygons')
def voc_supervision(truth: Path, out: Path) -> None:
    for split in splits(truth):
        folder = str(out / split)  # images and XML files side by side, as Roboflow has them
        supervision_set(truth, split).as_pascal_voc(folder, folder)


@form('labelme_supervision', 'supervision', 'boxes', 'polygons')
def labelme_supervision(truth: Path, out: Path) -> None:
    for split in splits(truth):
        folder = str(out / split)
        supervision_set(truth, split).as_labelme(folder, folder)


@form('createml_supervision', 'supervision', 'boxes')
def createml_supervision(truth: Path, out: Path) -> None:
    for split in splits(truth):
        folder = out / ROBOFLOW_SPLITS[split]
        supervision_set(truth, split).as_createml(
            str(folder), str(folder / '_annotations.createml.json')
        )


# datumaro


def without_boxes(data):
    """The outlines alone: datumaro's COCO reader adds a box of its own to each of them."""
    import datumaro
    from datumaro.components.annotation import AnnotationType

    items = []
    for item in data:
        outlined = {ann.group for ann in item.annotations if ann.type != AnnotationType.bbox}
        kept = [
            ann
            for ann in item.annotations
            if ann.type != AnnotationType.bbox or ann.group not in outlined
        ]
        items.append(item.wrap(annotations=kept))
    return datumaro.Dataset.from_iterable(items, categories=data.categories())


def datumaro_form(name: str, exporter: str, *kinds: str, **options: object) -> None:
    def write(truth: Path, out: Path) -> None:
        datumaro_set(truth).export(str(out), exporter, save_media=True, **options)

    form(name, 'datumaro', *kinds)(write)


datumaro_form('coco_datumaro', 'coco_instances', 'boxes', 'polygons')
datumaro_form('yolo_darknet_datumaro', 'yolo', 'boxes')
datumaro_form('yolo_ultralytics_datumaro', 'yolo_ultralytics', 'boxes')
datumaro_form('voc_zero_based_datumaro', 'voc_detection', 'boxes')
datumaro_form(
    'voc_datumaro', 'voc_detection', 'boxes', 'polygons', coordinate_mode='voc-one-based'
)
datumaro_form('cvat_datumaro', 'cvat', 'boxes')
datumaro_form('cvat_boxes_too_datumaro', 'cvat', 'polygons')
datumaro_form('labelme_xml_datumaro', 'label_me', 'boxes')
datumaro_form('datumaro_json_datumaro', 'datumaro', 'boxes')


@form('cvat_datumaro', 'datumaro', 'polygons')
def cvat_polygons(truth: Path, out: Path) -> None:
    without_boxes(datumaro_set(truth)).export(str(out), 'cvat', save_media=True)


# Ultralytics, which needs torch: written where it is installed


@form('yolo_ultralytics', 'ultralytics', 'boxes', 'polygons')
def yolo_ultralytics(truth: Path, out: Path) -> None:
    """Parts of an object are joined into one outline by lines there and back; no crowds."""
    from ultralytics.data.converter import convert_coco

    coco = read_coco(truth, 'train')
    names = [category['name'] for category in coco['categories']]
    polygons = any(ann['segmentation'] for ann in coco['annotations'])
    made = out / 'made'
    convert_coco(str(truth / 'annotations'), str(made), polygons, cls91to80=len(names) == 80)
    (made / 'labels').rename(out / 'labels')
    shutil.rmtree(made)
    for split in splits(truth):
        copy_all(truth / 'images' / split, out / 'images' / split)
    paths = [f'{split}: images/{split}' for split in splits(truth)]
    lines = [f'  {i}: {name}' for i, name in enumerate(names)]
    (out / 'data.yaml').write_text('\n'.join(['path: .', *paths, 'names:', *lines]) + '\n')


# labelme


def save_labelme(image: Path, out: Path, shapes: list[dict], size: tuple[int, int]) -> None:
    """The image and its JSON; every second one holds the image itself too, labelme's default."""
    import labelme

    copy(image, out)
    data = labelme.LabelFile.load_image_file(str(image)) if hash_even(image.stem) else None
    labelme.LabelFile().save(
        filename=str(out / f'{image.stem}.json'),
        shapes=shapes,
        image_path=image.name,
        image_width=size[0],
        image_height=size[1],
        image_data=data,
        flags={},
    )


def hash_even(stem: str) -> bool:
    return sum(stem.encode()) % 2 == 0


def labelme_shape(name: str, points: np.ndarray, kind: str, group: int | None = None) -> dict:
    """One shape with the keys that labelme's window saves."""
    shape = {'label': name, 'points': points.astype(float).tolist(), 'group_id': group}
    return shape | {'description': '', 'shape_type': kind, 'flags': {}, 'mask': None}


def labelme_shapes(ann: dict) -> list[dict]:
    """A rectangle, polygons joined by group_id, or a mask for a crowd."""
    if isinstance(ann['segmentation'], dict):
        return [labelme_mask(ann)]
    if not ann['segmentation']:
        x, y, w, h = ann['bbox']
        return [labelme_shape(ann['name'], np.array([[x, y], [x + w, y + h]]), 'rectangle')]
    group = ann['id'] if len(ann['segmentation']) > 1 else None
    parts = [np.array(part).reshape(-1, 2) for part in ann['segmentation']]
    return [labelme_shape(ann['name'], part, 'polygon', group) for part in parts]


def labelme_mask(ann: dict) -> dict:
    """A shape of type mask: two corners, the last pixel included, and a PNG in base64."""
    mask = decode(ann['segmentation'])
    ys, xs = np.nonzero(mask)
    corners = np.array([[xs.min(), ys.min()], [xs.max(), ys.max()]])
    cut = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    file = io.BytesIO()
    Image.fromarray(cut.astype(bool)).save(file, 'PNG')
    shape = labelme_shape(ann['name'], corners, 'mask')
    return shape | {'mask': base64.b64encode(file.getvalue()).decode()}


@form('labelme', 'labelme', 'boxes', 'polygons')
def labelme_objects(truth: Path, out: Path) -> None:
    for split in splits(truth):
        for image, anns in by_image(read_coco(truth, split)):
            shapes = [shape for ann in anns for shape in labelme_shapes(ann)]
            path = truth / 'images' / split / image['file_name']
            save_labelme(path, out / split, shapes, (image['width'], image['height']))


# Label Studio


def label_studio_tasks(truth: Path, split: str, out: Path, drop: str) -> Path:
    """Tasks as the SDK's COCO importer makes them; ``drop`` is a key to leave out first.

    The importer gives an annotation with box and polygon two results, and knows no RLE.
    """
    from label_studio_sdk.converter.imports.coco import convert_coco_to_ls

    coco = read_coco(truth, split)
    coco['annotations'] = [ann for ann in coco['annotations'] if not ann['iscrowd']]
    for ann in coco['annotations']:
        del ann[drop]
    source = out / f'{split}.coco.tmp'
    write_json(source, coco)
    tasks = out / f'{split}.json'
    url = f'/data/local-files/?d=images/{split}'
    convert_coco_to_ls(str(source), str(tasks), image_root_url=url)
    source.unlink()
    return tasks


@form('label_studio', 'label-studio-sdk', 'boxes', 'polygons')
def label_studio(truth: Path, out: Path) -> None:
    has_polygons = any(ann['segmentation'] for ann in read_coco(truth, 'train')['annotations'])
    for split in splits(truth):
        label_studio_tasks(truth, split, out, 'bbox' if has_polygons else 'segmentation')
        copy_all(truth / 'images' / split, out / 'images' / split)


@form('label_studio_min', 'label-studio-sdk', 'boxes', 'polygons')
def label_studio_min(truth: Path, out: Path) -> None:
    """JSON-MIN, by the converter that Label Studio's export uses."""
    label_studio(truth, out)
    for split in splits(truth):
        label_studio_converted(out, split, 'convert_to_json_min', out / f'min_{split}')
        shutil.move(out / f'min_{split}/result.json', out / f'{split}.json')
        (out / f'min_{split}').rmdir()


def label_studio_converted(tasks: Path, split: str, method: str, out: Path, **more: object):
    from label_studio_sdk.converter import Converter

    exported = as_exported(json.loads((tasks / f'{split}.json').read_text()))
    write_json(tasks / f'{split}.json', exported)
    converter = Converter((tasks / f'{split}.label_config.xml').read_text(), str(tasks))
    getattr(converter, method)(str(tasks / f'{split}.json'), str(out), is_dir=False, **more)


def as_exported(tasks: list[dict]) -> list[dict]:
    """Tasks with the ids that a server gives them."""
    for number, task in enumerate(tasks, 1):
        task['id'] = number
        for annotation in task['annotations']:
            annotation |= {'id': number, 'completed_by': 1, 'was_cancelled': False}
            task['annotations'] = [annotation]
    return tasks


@form('label_studio_brush', 'label-studio-sdk', 'polygons', 'maps')
def label_studio_brush(truth: Path, out: Path) -> None:
    """One brush stroke (Label Studio's own RLE) for each object, or each class of a map."""
    for split in splits(truth):
        tasks = []
        for name, masks in masks_of(truth, split):
            task = {'id': 1 + len(tasks), 'data': {'image': f'/data/upload/1/0a1b2c3d-{name}'}}
            tasks.append(task | {'annotations': [brush_annotation(masks, 1 + len(tasks))]})
        write_json(out / f'{split}.json', tasks)
        copy_all(truth / 'images' / split, out / 'images' / split)


def brush_annotation(masks: list[tuple[str, np.ndarray]], number: int) -> dict:
    from label_studio_sdk.converter import brush

    results = []
    for order, (name, mask) in enumerate(masks):
        rle = brush.mask2rle(mask.astype(np.uint8) * 255)
        value = {'format': 'rle', 'rle': rle, 'brushlabels': [name]}
        size = {'original_width': mask.shape[1], 'original_height': mask.shape[0]}
        result = {'id': f'r{number}_{order}', 'type': 'brushlabels', 'value': value}
        tags = {'from_name': 'tag', 'to_name': 'image', 'origin': 'manual', 'image_rotation': 0}
        results.append(result | size | tags)
    return {'id': number, 'completed_by': 1, 'was_cancelled': False, 'result': results}


def masks_of(truth: Path, split: str) -> Iterator[tuple[str, list[tuple[str, np.ndarray]]]]:
    """File name, and (class, mask) of each object or, for label maps, of each class."""
    if not (truth / 'labels').exists():
        for image, anns in by_image(read_coco(truth, split)):
            size = image['height'], image['width']
            yield image['file_name'], [(ann['name'], mask_of(ann, size)) for ann in anns]
        return
    names = (truth / 'classes.txt').read_text().split()
    for path in sorted((truth / 'images' / split).iterdir()):
        labels = read_map(truth, split, path.stem)
        found = [i for i in np.unique(labels) if i != NO_CLASS]
        yield path.name, [(names[i], labels == i) for i in found]


def mask_of(ann: dict, size: tuple[int, int]) -> np.ndarray:
    from pycocotools import mask as coco_mask

    if isinstance(ann['segmentation'], dict):
        return decode(ann['segmentation'])
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(ann['segmentation'], *size)))


def label_studio_form(name: str, method: str) -> None:
    def write(truth: Path, out: Path) -> None:
        for split in splits(truth):
            folder = out / split
            label_studio_tasks(truth, split, folder / 'tasks', 'segmentation')
            label_studio_converted(folder / 'tasks', split, method, folder)
            shutil.rmtree(folder / 'tasks')
            copy_all(truth / 'images' / split, folder / 'images')

    form(name, 'label-studio-sdk', 'boxes')(write)


label_studio_form('coco_label_studio', 'convert_to_coco')
label_studio_form('yolo_label_studio', 'convert_to_yolo')
label_studio_form('voc_label_studio', 'convert_to_voc')


# globox and pandas


def globox_set(truth: Path, split: str):
    import globox

    return globox.AnnotationSet.from_coco(str(truth / f'annotations/instances_{split}.json'))


def globox_form(name: str, save: Callable[[object, Path], None]) -> None:
    def write(truth: Path, out: Path) -> None:
        for split in splits(truth):
            (out / split).mkdir(parents=True)
            save(globox_set(truth, split), out / split)
            copy_all(truth / 'images' / split, out / split)

    form(name, 'globox', 'boxes')(write)


globox_form('cvat_globox', lambda data, out: data.save_cvat(out / 'annotations.xml'))
globox_form('labelme_globox', lambda data, out: data.save_labelme(out))
globox_form('openimages_csv_globox', lambda data, out: data.save_openimage(out / 'boxes.csv'))
globox_form('voc_globox', lambda data, out: data.save_pascal_voc(out))


def box_rows(truth: Path, split: str) -> pandas.DataFrame:
    """One row for each box, in the columns of TensorFlow's object detection CSV."""
    rows = []
    for image, anns in by_image(read_coco(truth, split)):
        for ann in anns:
            x, y, w, h = ann['bbox']
            size = {'width': image['width'], 'height': image['height']}
            box = {'xmin': x, 'ymin': y, 'xmax': x + w, 'ymax': y + h}
            rows.append({'filename': image['file_name']} | size | {'class': ann['name']} | box)
    return pandas.DataFrame(rows)


@form('csv_pandas', 'pandas', 'boxes')
def csv_pandas(truth: Path, out: Path) -> None:
    """One CSV with a column for the split, images in one folder."""
    tables = []
    for split in splits(truth):
        tables.append(box_rows(truth, split).assign(split=split))
        copy_all(truth / 'images' / split, out / 'images')
    pandas.concat(tables).to_csv(out / 'annotations.csv', index=False)


@form('csv_keras_pandas', 'pandas', 'boxes')
def csv_keras(truth: Path, out: Path) -> None:
    """keras-retinanet's form: path,x1,y1,x2,y2,class without a header; classes.csv beside it."""
    for split in splits(truth):
        table = box_rows(truth, split)
        table['filename'] = f'images/{split}/' + table['filename']
        keys = ['filename', 'xmin', 'ymin', 'xmax', 'ymax', 'class']
        copy_all(truth / 'images' / split, out / 'images' / split)
        table[keys].to_csv(out / f'{split}.csv', index=False, header=False)
    names = [category['name'] for category in read_coco(truth, 'train')['categories']]
    with open(out / 'classes.csv', 'w', newline='') as file:
        csv.writer(file).writerows([name, i] for i, name in enumerate(names))


# Roboflow's layouts, imitated


def roboflow_name(name: str) -> str:
    stem, _, suffix = name.rpartition('.')
    return f'{stem}_{suffix}.rf.{base64.b16encode(stem.encode()).decode().lower():0>32.32}.jpg'


def roboflow_images(truth: Path, split: str, folder: Path) -> None:
    for path in sorted((truth / 'images' / split).iterdir()):
        copy(path, folder, roboflow_name(path.name))


@form('roboflow_coco', 'imitated: Roboflow', 'boxes', 'polygons')
def roboflow_coco(truth: Path, out: Path) -> None:
    """Ids from 0; category 0 carries the project's name and no object."""
    for split in splits(truth):
        coco = read_coco(truth, split)
        order = {c['id']: i for i, c in enumerate(coco['categories'], 1)}
        top = [{'id': 0, 'name': 'project', 'supercategory': 'none'}]
        rest = [
            {'id': order[c['id']], 'name': c['name'], 'supercategory': 'project'}
            for c in coco['categories']
        ]
        images = {image['id']: i for i, image in enumerate(coco['images'])}
        anns = [
            ann
            | {'id': i, 'image_id': images[ann['image_id']]}
            | {'category_id': order[ann['category_id']]}
            for i, ann in enumerate(coco['annotations'])
        ]
        for image in coco['images']:
            extra = {'name': image['file_name']}
            image |= {'id': images[image['id']], 'license': 1, 'extra': extra}
            image['file_name'] = roboflow_name(image['file_name'])
        info = {'info': {'version': '1', 'description': 'Exported from roboflow.com'}}
        parts = {'licenses': [{'id': 1, 'url': '', 'name': 'Unknown'}], 'categories': top + rest}
        folder = out / ROBOFLOW_SPLITS[split]
        roboflow_images(truth, split, folder)
        value = info | parts | {'images': coco['images'], 'annotations': anns}
        write_json(folder / '_annotations.coco.json', value)


@form('roboflow_csv', 'imitated: Roboflow', 'boxes')
def roboflow_csv(truth: Path, out: Path) -> None:
    """Whole pixels, as Roboflow rounds them."""
    for split in splits(truth):
        folder = out / ROBOFLOW_SPLITS[split]
        roboflow_images(truth, split, folder)
        table = box_rows(truth, split)
        table['filename'] = table['filename'].map(roboflow_name)
        keys = ['xmin', 'ymin', 'xmax', 'ymax']
        table[keys] = table[keys].round().astype(int)
        table.to_csv(folder / '_annotations.csv', index=False)


@form('roboflow_yolo', 'imitated: Roboflow', 'boxes', 'polygons')
def roboflow_yolo(truth: Path, out: Path) -> None:
    """``train: ../train/images`` in data.yaml, which leaves the folder if taken literally."""
    names = [category['name'] for category in read_coco(truth, 'train')['categories']]
    for split in splits(truth):
        folder = out / ROBOFLOW_SPLITS[split]
        roboflow_images(truth, split, folder / 'images')
        (folder / 'labels').mkdir()
        for image, anns in by_image(read_coco(truth, split)):
            lines = [yolo_line(ann, image, names.index(ann['name'])) for ann in anns]
            path = folder / 'labels' / roboflow_name(image['file_name'])
            path.with_suffix('.txt').write_text('\n'.join(lines))
    paths = [f'{s}: ../{ROBOFLOW_SPLITS[s]}/images' for s in splits(truth)]
    tail = f'nc: {len(names)}\nnames: {names}\n'
    (out / 'data.yaml').write_text('\n'.join(paths) + '\n\n' + tail)


def yolo_line(ann: dict, image: dict, index: int) -> str:
    """A box, or the first polygon of an object; crowds become their box."""
    size = np.array([image['width'], image['height']])
    if ann['segmentation'] and not ann['iscrowd']:
        values = np.array(ann['segmentation'][0]).reshape(-1, 2) / size
    else:
        x, y, w, h = ann['bbox']
        values = np.array([[x + w / 2, y + h / 2], [w, h]]) / size
    return ' '.join([str(index), *(f'{value:.12g}' for value in values.flat)])
