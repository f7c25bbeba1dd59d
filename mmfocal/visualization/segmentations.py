"""Predicted label maps beside the ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_segmentations(
    image_folder: str | Path,
    truth_folder: str | Path,
    predicted_folder: str | Path,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    names: Sequence[str] | None = None,
    columns: int = 3,
) -> Figure:
    """Draws images twice, under their true and under their predicted label maps.

    Args:
        image_folder: folder of images.
        truth_folder: folder of label maps, ``.png`` files with one class index for each pixel.
        predicted_folder: likewise, of what was predicted.
        classes: names of all classes; the first is the ground and not painted.
        palette: RGB, 0 to 255, of each class.
        names: file names of images without suffix, the first twelve that were predicted by
            default.
        columns: pairs in a row.

    Returns:
        The figure; the caller saves and closes it.

    Raises:
        FileNotFoundError: an image or a label map is not there.
    """
    if names is None:
        names = sorted(path.stem for path in Path(predicted_folder).glob('*.png'))[:12]
    images = {path.stem: path for path in Path(image_folder).iterdir()}
    rows = -(-len(names) // columns)
    figure, panels = plt.subplots(
        rows,
        2 * columns,
        figsize=(4.2 * columns, 2.25 * rows),
        squeeze=False,
        layout='constrained',
    )
    for axes in panels.flat:
        axes.axis('off')
    for i, name in enumerate(names):
        image = _read(images.get(name, Path(image_folder) / name), cv2.IMREAD_COLOR)[..., ::-1]
        left, right = panels[i // columns, 2 * (i % columns) : 2 * (i % columns) + 2]
        for axes, folder, title in (
            (left, truth_folder, 'ground truth'),
            (right, predicted_folder, 'predicted'),
        ):
            labels = _read(Path(folder) / f'{name}.png', cv2.IMREAD_GRAYSCALE)
            _draw(axes, image, labels, palette, title)
    painted = zip(classes[1:], palette[1:], strict=True)
    figure.legend(
        handles=[Patch(color=np.array(colour) / 255, label=name) for name, colour in painted],
        loc='outside lower center',
        ncols=len(classes) - 1,
        fontsize=8,
        frameon=False,
    )
    return figure


def _read(path: Path, mode: int) -> np.ndarray:
    image = cv2.imread(str(path), mode)
    if image is None:
        raise FileNotFoundError(f'There is no picture {path}, or it cannot be read.')
    return image


def _draw(
    axes: Axes, image: np.ndarray, labels: np.ndarray, palette: Sequence[Sequence[int]], title: str
) -> None:
    """The image under half transparent classes, the ground aside; 255 is not labelled."""
    shown = image.astype(np.float32) / 255
    for label, colour in enumerate(palette[1:], 1):
        painted = labels == label
        shown[painted] = 0.35 * shown[painted] + 0.65 * np.array(colour) / 255
    axes.imshow(shown)
    axes.set_title(title, fontsize=8, pad=2)
