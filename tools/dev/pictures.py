"""Draws what the two small models predict on photographs, for the README and the docs.

    python -m tools.dev.pictures --detector work_dirs/focal_atss_bccd \\
        --segmenter work_dirs/focal_upernet_camvid

Writes three images: detections.png, annotated and detected boxes of three images of BCCD;
segmentations.png, annotated and predicted label maps of three of CamVid; attention_street.png,
what one query on a car attends to in each stage of the segmenter's backbone.

The images do not depend on results: both test splits are cut into thirds, in the order of their
lists, and the first image of each third is shown.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.registry import DATASETS, DefaultScope
from mmengine.structures import BaseDataElement, InstanceData
from mmseg.evaluation import IoUMetric
from PIL import Image

from mmfocal.datasets.checks import check_data
from mmfocal.engine import load_config
from mmfocal.engine.checkpoints import checkpoint_of
from mmfocal.inference import Inferencer
from mmfocal.utils.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION
from mmfocal.utils.errors import UserError, user_errors_without_trace
from mmfocal.utils.files import written_atomically
from mmfocal.visualization.attention import attention_of_blocks, draw_attention
from mmfocal.visualization.predictions import Colour, draw_instances, palette_of
from mmfocal.visualization.view import find_backbone, test_dataset, view_image
from tools.dev import ROOT

BLOOD = ('BloodImage_00007.jpg', 'BloodImage_00132.jpg', 'BloodImage_00253.jpg')
STREETS = ('0001TP_008550.jpg', 'Seq05VD_f00450.jpg', 'Seq05VD_f02790.jpg')
QUERY = ('Seq05VD_f02790.jpg', (362, 205))  # on the car: x and y in pixels

# Lengths are in pixels of the file.
WIDTH, DPI = 1710, 190
ATTENTION_DPI = 300
LABEL, GAP, MARGIN = 56, 12, 6
CAPTION, LEGEND = 42, 44  # a line below a panel, a line of the legend
FONT, SMALL_FONT = 10, 9  # points
STRIPE = 7
EXACT_SHARE = 0.001  # of an image, that a colour needs to be kept as it is
CLASSES_PER_LINE = 6
# Thin outlines on pink and violet cells, which colour-blind readers can tell apart.
OUTLINES = (BLACK, BLUE, VERMILION, GREEN, PURPLE, ORANGE)

Rows = dict[str, list[tuple[np.ndarray, str]]]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, config in (('detector', 'focal_atss_bccd'), ('segmenter', 'focal_upernet_camvid')):
        parser.add_argument(
            f'--{name}',
            type=Path,
            default=Path('work_dirs', config),
            help=f'work folder or checkpoint of {config} (default: work_dirs/{config})',
        )
    # With the default, F1 of the detector on the validation split was best.
    parser.add_argument(
        '--score-thr', type=float, default=0.25, help='of detections (default: 0.25)'
    )
    parser.add_argument(
        '--out', type=Path, default=ROOT / 'docs/images', help='folder (default: docs/images)'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    matplotlib.use('Agg')
    with user_errors_without_trace():
        detector = load(args.detector, 'mmdet/focal_atss_bccd', args.score_thr)
        segmenter = load(args.segmenter, 'mmseg/focal_upernet_camvid')
        args.out.mkdir(parents=True, exist_ok=True)
        save(draw_detections(detector, BLOOD), args.out / 'detections.png', DPI)
        save(draw_segmentations(segmenter, STREETS), args.out / 'segmentations.png', DPI)
        figure = draw_street_attention(segmenter, *QUERY)
        save(figure, args.out / 'attention_street.png', ATTENTION_DPI)


def load(source: Path, config: str, score_thr: float = 0.0) -> Inferencer:
    """The model of a work folder or checkpoint, with its own config, once its data are there.

    Args:
        source: the folder or file.
        config: below ``configs``, for the message if there is none.
        score_thr: least score of a detection, 0 to 1.

    Raises:
        UserError: there is no checkpoint, or no test data where its config looks for them.
    """
    try:
        checkpoint = checkpoint_of(str(source))
    except UserError as error:
        command = f'python tools/train.py configs/{config}.py --work-dir {source}'
        raise UserError(f'{error} To train one: {command}') from error
    # The config that a run leaves beside its checkpoints says where its data are; theirs does not.
    cfg = load_config(next(source.glob('*.py'), checkpoint))
    check_data(cfg, ['test'])
    return Inferencer(cfg, checkpoint, device='cpu', score_thr=score_thr)


def annotated(model: Inferencer, names: Sequence[str]) -> list[BaseDataElement]:
    """Samples of the test data with ground truth, in pixels of the image as it was read.

    Args:
        model: of the data.
        names: of image files, without folders.

    Raises:
        UserError: the test data have no such image.
    """
    with DefaultScope.overwrite_default_scope(model.family), redirect_stdout(None):
        dataset = DATASETS.build(test_dataset(model.cfg))
        infos = (dataset.get_data_info(index) for index in range(len(dataset)))
        places = {Path(info['img_path']).name: place for place, info in enumerate(infos)}
        if absent := [name for name in names if name not in places]:
            raise UserError(f'{", ".join(absent)}: not among the test data of {model.name}.')
        return [dataset[places[name]]['data_samples'] for name in names]


# --- Pages of images ----------------------------------------------------------------------------


def as_panel(image: np.ndarray, columns: int) -> np.ndarray:
    """An image, ``(H, W, 3)`` of uint8, or a label map, ``(H, W)``, as wide as a panel."""
    width = (WIDTH - LABEL - MARGIN - (columns - 1) * GAP) // columns
    size = width, round(width * image.shape[0] / image.shape[1])
    smooth = cv2.INTER_CUBIC if image.ndim == 3 else cv2.INTER_NEAREST
    return cv2.resize(image, size, interpolation=smooth)


def draw_page(rows: Rows, legend: Sequence[Patch]) -> Figure:
    """Rows of images above a legend, ``WIDTH`` pixels wide at ``DPI``, without resampling.

    Args:
        rows: by what they show, images, uint8 ``(H, W, 3)``, BGR, with a line below each, or ''.
        legend: of the classes.
    """
    heights = [row[0][0].shape[0] + GAP + CAPTION * bool(row[0][1]) for row in rows.values()]
    lines = -(-len(legend) // CLASSES_PER_LINE)
    height = MARGIN + sum(heights) + lines * LEGEND
    figure = plt.figure(figsize=(WIDTH / DPI, height / DPI))
    top = MARGIN
    for (label, row), row_height in zip(rows.items(), heights, strict=True):
        for column, (image, caption) in enumerate(row):
            high, wide = image.shape[:2]
            left = LABEL + column * (wide + GAP)
            place = left / WIDTH, 1 - (top + high) / height, wide / WIDTH, high / height
            axes = figure.add_axes(place, xticks=[], yticks=[], frame_on=False)
            axes.imshow(image[..., ::-1], interpolation='none', aspect='auto')
            axes.set_xlabel(caption, fontsize=SMALL_FONT, labelpad=2)
        middle = LABEL / 2 / WIDTH, 1 - (top + high / 2) / height
        figure.text(*middle, label, fontsize=FONT, rotation=90, ha='center', va='center')
        top += row_height
    style = dict(frameon=False, borderpad=0, borderaxespad=0.3, fontsize=FONT)
    spacing = dict(handlelength=1.3, handleheight=1.0, columnspacing=1.6)
    columns = -(-len(legend) // lines)
    figure.legend(handles=legend, loc='lower center', ncols=columns, **style, **spacing)
    return figure


def draw_detections(model: Inferencer, names: Sequence[str]) -> Figure:
    """Annotated boxes of images of the test data above those that a detector finds.

    Args:
        model: the detector, whose least score it is.
        names: of image files, a column each.
    """
    samples = annotated(model, names)
    classes = model.task.classes
    palette = outline_colours(len(classes))
    rows: Rows = dict(annotated=[], detected=[])
    predictions = model([sample.img_path for sample in samples])
    for truth, (image, found) in zip(samples, predictions, strict=True):
        shown = as_panel(image.pixels, len(names))
        for row, instances in zip(
            rows.values(), (truth.gt_instances, found.pred_instances), strict=True
        ):
            bboxes = torch.as_tensor(getattr(instances.bboxes, 'tensor', instances.bboxes))
            scaled = InstanceData(
                bboxes=bboxes * (shown.shape[1] / image.pixels.shape[1]), labels=instances.labels
            )
            drawn = draw_instances(shown, scaled, classes, palette, labels=False)
            counts = Counter(classes[label] for label in instances.labels.tolist())
            told = [f'{name} {counts[name]}' for name in classes if counts[name]]
            row.append((drawn, ', '.join(told) or 'nothing'))
    legend = [
        Patch(label=name, fill=False, edgecolor=np.array(colour) / 255, linewidth=1.5)
        for name, colour in zip(classes, palette, strict=True)
    ]
    return draw_page(rows, legend)


def outline_colours(classes: int) -> list[Colour]:
    """RGB of each class."""
    return palette_of(classes, [[round(255 * x) for x in to_rgb(name)] for name in OUTLINES])


def draw_segmentations(model: Inferencer, names: Sequence[str]) -> Figure:
    """Images of the test data, their annotated label maps, and those that a segmenter predicts.

    Args:
        model: the segmenter.
        names: of image files, a column each. Below it are the part of labelled pixels with the
            right class, and the mean IoU of the classes that the image has or is said to have.
    """
    samples = annotated(model, names)
    classes, palette = model.task.classes, model.task.palette
    rows: Rows = dict(image=[], annotated=[], predicted=[])
    predictions = model([sample.img_path for sample in samples])
    for sample, (image, found) in zip(samples, predictions, strict=True):
        truth, predicted = sample.gt_sem_seg.data[0], found.pred_sem_seg.data[0]
        common, union, _, areas = IoUMetric.intersect_and_union(
            predicted, truth, len(classes), ignore_index=255
        )
        right = float(common.sum() / areas.sum())
        iou = float((common / union)[union > 0].mean())
        told = f'{100 * right:.0f} % of pixels right, mean IoU {100 * iou:.0f} %'
        maps = (as_panel(each.numpy().astype(np.uint8), len(names)) for each in (truth, predicted))
        drawn = as_panel(image.pixels, len(names)), *(coloured(each, palette) for each in maps)
        for row, panel, caption in zip(rows.values(), drawn, ('', '', told), strict=True):
            row.append((panel, caption))
    legend = [
        Patch(label=name, facecolor=np.array(colour) / 255)
        for name, colour in zip(classes, palette, strict=True)
    ]
    legend.append(Patch(label='not labelled', facecolor='0.95', edgecolor='0.7', hatch='////'))
    return draw_page(rows, legend)


def coloured(label_map: np.ndarray, palette: Sequence[Colour]) -> np.ndarray:
    """``(H, W)`` class indices as ``(H, W, 3)`` of uint8, BGR; what has none is striped."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    rows, columns = np.indices(label_map.shape)
    stripes = np.where((rows + columns) // STRIPE % 2, 180, 242).astype(np.uint8)
    labelled = (label_map < len(palette))[..., None]
    return np.where(labelled, colours[label_map], stripes[..., None])[..., ::-1]


def draw_street_attention(model: Inferencer, name: str, point: tuple[float, float]) -> Figure:
    """What a query attends to in the last block of each stage.

    Args:
        model: the segmenter.
        name: of an image file of the test data.
        point: x and y in the image, in pixels.
    """
    view = view_image(model.cfg, model.model, annotated(model, [name])[0].img_path)
    stages = range(len(find_backbone(model.model).stages))
    pairs = [(stage, -1) for stage in stages]
    return draw_attention(view, attention_of_blocks(model.model, view, point, pairs))


def save(figure: Figure, path: Path, dpi: float) -> None:
    """Writes a figure as PNG of 256 colours, a third of the size, and closes it."""
    figure.set_dpi(dpi)
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert('RGB')
    plt.close(figure)
    reduced = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3)
    # Photographs move the white of the page and the colours of the legend a little.
    pixels, indices = (np.asarray(each)[::4, ::4] for each in (image, reduced))
    found, places, counts = np.unique(
        pixels.reshape(-1, 3), axis=0, return_index=True, return_counts=True
    )
    palette = np.array(reduced.getpalette()).reshape(-1, 3)
    exact = counts > EXACT_SHARE * indices.size
    palette[indices.flat[places[exact]]] = found[exact]
    reduced.putpalette(palette.ravel().tolist())
    with written_atomically(path) as file:
        reduced.save(file, 'PNG', optimize=True)
    print(
        f'Wrote {path}, {image.width}x{image.height} pixels, {path.stat().st_size / 1000:.0f} kB'
    )


if __name__ == '__main__':
    sys.exit(main())
