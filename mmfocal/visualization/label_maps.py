"""mmseg's visualizer, with names of classes in any script."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.structures import PixelData
from mmseg.visualization import SegLocalVisualizer

from .predictions import write_names


class LabelMapVisualizer(SegLocalVisualizer):
    """Writes names with matplotlib; mmseg does with OpenCV, which has ASCII only.

    Args and results are those of ``SegLocalVisualizer``.
    """

    def _draw_sem_seg(
        self,
        image: np.ndarray,
        sem_seg: PixelData,
        classes: Any,
        palette: Any,
        with_labels: bool = True,
    ) -> np.ndarray:
        coloured = super()._draw_sem_seg(image, sem_seg, classes, palette, with_labels=False)
        if with_labels:
            self.set_image(coloured)
            write_names(self, np.asarray(sem_seg.cpu().data)[0], classes)
            coloured = self.get_image()
        return coloured
