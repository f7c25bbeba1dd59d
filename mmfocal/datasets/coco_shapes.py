"""The embedded data set for mmdet.

Configs name its full path, since ``import mmfocal`` stays free of mmdet.
"""

from __future__ import annotations

from typing import Any, ClassVar

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

from .shapes import CLASSES, PALETTE, prepare_shapes


@DATASETS.register_module()
class ShapesDataset(CocoDataset):
    """COCO form of the ``shapes`` data set, drawn on first use.

    Args:
        data_root: folder of the data set, :func:`~mmfocal.datasets.shapes_root` by default.
        num_images: images of each split, as for :func:`~mmfocal.datasets.prepare_shapes`.
        *args: as for mmdet's ``CocoDataset``.
        **kwargs: as for mmdet's ``CocoDataset``.
    """

    METAINFO: ClassVar[dict] = dict(classes=CLASSES, palette=list(PALETTE))

    def __init__(
        self,
        *args: Any,
        data_root: str | None = None,
        num_images: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        root = prepare_shapes(data_root, num_images=num_images)
        super().__init__(*args, data_root=str(root), **kwargs)
