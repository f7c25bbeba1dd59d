"""What published data sets, and the embedded one, hold when they are complete."""

from __future__ import annotations

from dataclasses import dataclass

from .shapes import CLASSES, NUM_IMAGES, shapes_root


@dataclass(frozen=True)
class Archive:
    """A zip file as its publisher offers it.

    Attributes:
        url: where it is offered; its last part is the name of the file.
        parts: top folders of the data set that it holds.
        prefix: leading folder of its members that the data set does not have.
        into: folder of the data set that its members go to; ``''`` is the data set's own.
        optional: some configs need it, most do not.
    """

    url: str
    parts: tuple[str, ...]
    prefix: str = ''
    into: str = ''
    optional: bool = False

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.url.rpartition('/')[2]


@dataclass(frozen=True)
class Split:
    """Images and what is known about them.

    Attributes:
        images: folder.
        num_images: how many there are in the published data set.
        annotations: COCO's JSON file.
        num_objects: annotations in it.
        label_maps: folder with a PNG file for each image, of the same name.
        num_labels: values in label maps are below this, or 255, which is ignored.
        label_maps_optional: the folder may be absent.
    """

    images: str
    num_images: int
    annotations: str | None = None
    num_objects: int | None = None
    label_maps: str | None = None
    num_labels: int = 0
    label_maps_optional: bool = False


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
    """

    key: str
    title: str
    root: str
    splits: tuple[Split, ...]
    config: str
    archives: tuple[Archive, ...] = ()

    def how_to_get(self, optional: bool = False) -> str:
        """What to download and run, for messages; ``optional``: that of what few configs need."""
        wanted = [archive.url for archive in self.archives if archive.optional == optional]
        return (
            f'Download {" and ".join(wanted)} into one FOLDER and run: '
            f'python tools/prepare_dataset.py {self.key} FOLDER'
        )


_COCO = 'http://images.cocodataset.org'

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
            Archive(f'{_COCO}/zips/train2017.zip', ('train2017',)),
            Archive(f'{_COCO}/zips/val2017.zip', ('val2017',)),
            Archive(f'{_COCO}/annotations/annotations_trainval2017.zip', ('annotations',)),
            Archive(
                'http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/'
                'stuffthingmaps_trainval2017.zip',
                ('stuffthingmaps',),
                into='stuffthingmaps',
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
                'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
                ('images', 'annotations'),
                prefix='ADEChallengeData2016',
            ),
        ),
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
