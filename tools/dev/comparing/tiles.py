"""The embedded data set with four images in one, so that small batches hold many shapes."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from mmcv.transforms import Compose
from mmseg.registry import DATASETS

from mmfocal.datasets.seg_shapes import ShapesSegDataset

SIDE = 2  # images in a row and in a column


@DATASETS.register_module()
class TiledShapes(ShapesSegDataset):
    """Images of 256x256 pixels from four of the embedded data set, always the same four.

    What its pipeline gets is loaded already: ``img``, uint8 ``(256, 256, 3)``, BGR, and
    ``gt_seg_map``, uint8 ``(256, 256)``.

    Args:
        **kwargs: as for :class:`~mmfocal.datasets.seg_shapes.ShapesSegDataset`.
    """

    LOADING: ClassVar[list[dict[str, Any]]] = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
    ]

    def __init__(self, **kwargs: Any) -> None:
        self._load = Compose(self.LOADING)
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """What is known about each image, with the same about its four in ``tiles``."""
        infos, count = super().load_data_list(), SIDE**2
        starts = range(0, len(infos) - count + 1, count)
        return [dict(infos[start], tiles=infos[start : start + count]) for start in starts]

    def prepare_data(self, idx: int) -> Any:
        """What the pipeline makes of the four images."""
        info = self.get_data_info(idx)
        tiles = [self._load(tile) for tile in info.pop('tiles')]
        first = tiles[0]
        for key in ('img', 'gt_seg_map'):
            rows = [
                np.concatenate([tile[key] for tile in tiles[start : start + SIDE]], axis=1)
                for start in range(0, len(tiles), SIDE)
            ]
            first[key] = np.concatenate(rows)
        first['img_shape'] = first['ori_shape'] = first['img'].shape[:2]
        return self.pipeline(first)
