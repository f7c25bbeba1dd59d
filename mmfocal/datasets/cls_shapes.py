"""The embedded data set for mmpretrain: one shape an image.

Configs name its full path, since ``import mmfocal`` stays free of mmpretrain.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from mmcv.transforms import BaseTransform
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS, TRANSFORMS

from .shapes import CLASSES, prepare_shapes


@DATASETS.register_module()
class ShapesClsDataset(BaseDataset):
    """Shapes of the ``shapes`` data set, one by one; the images are drawn on first use.

    A sample has the path of an image that may hold several shapes, the ``box`` of one of them,
    and its label. :class:`CropToBox` cuts it out. Crowds are left out.

    Args:
        split: ``'train'`` or ``'val'``.
        data_root: folder of the data set, :func:`~mmfocal.datasets.shapes_root` by default.
        num_images: images of each split, as for :func:`~mmfocal.datasets.prepare_shapes`.
        min_size: pixels along the longer side of a box below which a shape is left out: small
            ones cannot be told apart.
        **kwargs: as for mmpretrain's ``BaseDataset``.
    """

    METAINFO: ClassVar[dict] = dict(classes=CLASSES)

    def __init__(
        self,
        split: str,
        data_root: str | None = None,
        num_images: dict[str, int] | None = None,
        min_size: float = 16,
        **kwargs: Any,
    ) -> None:
        root = prepare_shapes(data_root, num_images=num_images)
        self.min_size = min_size
        super().__init__(
            ann_file=f'annotations/instances_{split}.json',
            data_root=str(root),
            data_prefix=split,
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Dicts of ``img_path``, ``gt_label`` and ``box``, (x, y, width, height) in pixels."""
        with open(self.ann_file, encoding='utf-8') as file:
            content = json.load(file)
        paths = {
            image['id']: f'{self.img_prefix}/{image["file_name"]}' for image in content['images']
        }
        return [
            dict(
                img_path=paths[shape['image_id']],
                gt_label=shape['category_id'] - 1,
                box=shape['bbox'],
            )
            for shape in content['annotations']
            if not shape['iscrowd'] and max(shape['bbox'][2:]) >= self.min_size
        ]


@TRANSFORMS.register_module()
class CropToBox(BaseTransform):
    """Cuts the square around a sample's ``box`` out of its image; around all of it without one.

    Args:
        margin: part of the box's longer side that stays in sight around it; less at the border of
            the image, which the square does not leave.
    """

    def __init__(self, margin: float = 0.15) -> None:
        self.margin = margin

    def transform(self, results: dict) -> dict:
        """Replaces ``img``, uint8 ``(H, W, 3)``, and its ``img_shape``."""
        image = results['img']
        left, top, width, height = results.get('box', (0, 0, *image.shape[1::-1]))
        side = round(max(width, height) * (1 + 2 * self.margin))
        side = max(min(side, *image.shape[:2]), 1)
        x, y = (
            min(max(round(start + size / 2 - side / 2), 0), limit - side)
            for start, size, limit in zip(
                (left, top), (width, height), image.shape[1::-1], strict=True
            )
        )
        results['img'] = image[y : y + side, x : x + side]
        results['img_shape'] = results['img'].shape[:2]
        return results
