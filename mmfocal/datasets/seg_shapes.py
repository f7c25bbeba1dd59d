"""The embedded data set for mmseg.

Configs name its full path, since ``import mmfocal`` stays free of mmseg.
"""

from __future__ import annotations

from typing import Any, ClassVar

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from .shapes import CLASSES, PALETTE, prepare_shapes


@DATASETS.register_module()
class ShapesSegDataset(BaseSegDataset):
    """Label maps of the ``shapes`` data set, drawn on first use. Class 0 is the ground.

    Args:
        data_root: folder of the data set, :func:`~mmfocal.datasets.shapes_root` by default.
        num_images: images of each split, as for :func:`~mmfocal.datasets.prepare_shapes`.
        **kwargs: as for mmseg's ``BaseSegDataset``.
    """

    METAINFO: ClassVar[dict] = dict(
        classes=('ground', *CLASSES), palette=[[0, 0, 0], *map(list, PALETTE)]
    )

    def __init__(
        self,
        data_root: str | None = None,
        num_images: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        root = prepare_shapes(data_root, num_images=num_images)
        super().__init__(data_root=str(root), img_suffix='.jpg', seg_map_suffix='.png', **kwargs)
