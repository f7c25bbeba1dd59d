"""Images of a data set as training gets them, with their annotations, on one sheet."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor
from torch.utils.data import Dataset

from mmfocal.engine.build_errors import told_settings
from mmfocal.engine.data_loader import ResumableDataLoader, SeededDataset
from mmfocal.utils.config import import_packages
from mmfocal.utils.errors import UserError
from mmfocal.utils.files import written_atomically
from mmfocal.utils.fonts import drawable
from mmfocal.utils.pages import data_uri, render

from .predictions import Colour, as_shown, class_name, draw_instances, draw_label_map, palette_of

SIDE = 420  # pixels, of the longer side of an image on a sheet
GAP, LINE, MARGIN = 16, 18, 24  # pixels on a sheet
COLUMNS = 4
MAX_IMAGES = 400
IGNORED: Colour = (128, 128, 128)
SHEETS = ('.html', '.png')


class Item(NamedTuple):
    """A class in the legend.

    Attributes:
        name: of the class.
        colour: in which it is drawn.
        count: how often it is on the sheet, in words.
    """

    name: str
    colour: Colour
    count: str


class Tile(NamedTuple):
    """An image on a sheet.

    Attributes:
        image: with what belongs to it, ``(H, W, 3)`` of uint8, BGR, of :data:`SIDE` at most.
        name: of the file.
        text: what is drawn, in words.
        counts: objects, pixels or images by class; by -1 what is ignored.
    """

    image: np.ndarray
    name: str
    text: str
    counts: Counter


@dataclass
class Sheet:
    """Images with their annotations.

    Attributes:
        title: where they come from.
        facts: about all of them, a sentence each.
        tiles: the images.
        legend: of classes that are on them.
    """

    title: str
    facts: list[str]
    tiles: list[Tile] = field(default_factory=list)
    legend: list[Item] = field(default_factory=list)


# --- Loading ----------------------------------------------------------------------------------


class Samples:
    """A data set of a config, as a run of a seed gets it: its first pass, in its order.

    Args:
        cfg: the config.
        split: ``'train'``, ``'val'`` or ``'test'``.
        seed: of the run.

    Attributes:
        dataset: as it was built, with its wrappers.

    Raises:
        UserError: the config has no such data set, or one that has no order.
    """

    def __init__(self, cfg: Config, split: str, seed: int) -> None:
        settings = cfg.get(f'{split}_dataloader')
        if not settings:
            there = [key for key in cfg if key.endswith('_dataloader') and cfg[key]]
            raise UserError(
                f'{cfg.filename} has no {split}_dataloader; it has {", ".join(there) or "none"}.'
            )
        import_packages(cfg)
        self._scope = cfg.get('default_scope')
        with DefaultScope.overwrite_default_scope(self._scope), told_settings(cfg):
            loader = Runner.build_dataloader(settings, seed=seed)
        if not ResumableDataLoader.fits(loader):
            raise UserError(
                f'{split}_dataloader reads {type(loader.dataset).__name__}, whose images have no '
                'numbers; expected a data set that is read by index.'
            )
        self.dataset: Dataset = loader.dataset
        loader = ResumableDataLoader(loader, seed, rank=0)
        in_batches = loader.order.in_batches
        self._order = chain.from_iterable(loader.order) if in_batches else iter(loader.order)

    def take(self, start: int, number: int) -> Iterator[Any]:
        """``number`` samples after the first ``start``; fewer where there are no more.

        Raises:
            UserError: there are not so many.
        """
        length = len(self.dataset)
        if start >= length:
            raise UserError(f'--start: expected up to {length:,} images, got {start + 1:,}.')
        seeded = SeededDataset(self.dataset)
        for index in islice(self._order, start, min(start + number, length)):
            with DefaultScope.overwrite_default_scope(self._scope):
                yield seeded[index]


def _transforms(dataset: Any) -> list:
    """Of a data set and those that it wraps, in their order; of several, of the first."""
    steps = getattr(dataset, 'pipeline', ())
    inner = next(iter(getattr(dataset, 'datasets', ())), getattr(dataset, 'dataset', None))
    before = [] if inner is None else _transforms(inner)
    return [*before, *getattr(steps, 'transforms', steps)]


def _annotates_original(steps: Sequence[Any]) -> bool:
    """Whether annotations are loaded after the image was changed, as test pipelines do.

    Evaluation compares with the annotations of the image as it was.
    """
    names = [type(each).__name__ for each in steps]
    place = next((i for i, name in enumerate(names) if name.endswith('LoadAnnotations')), 0)
    return any(not name.startswith('Load') for name in names[:place])


# --- Drawing ----------------------------------------------------------------------------------


def make_sheet(cfg: Config, split: str, seed: int, start: int = 0, number: int = 16) -> Sheet:
    """Draws images of a data set.

    Args:
        cfg: the config.
        split: ``'train'``, ``'val'`` or ``'test'``.
        seed: of the run whose images these are.
        start: images of the run before the first one.
        number: of images.

    Raises:
        UserError: see :class:`Samples`; or samples are no images with annotations.
    """
    samples = Samples(cfg, split, seed)
    meta = getattr(samples.dataset, 'metainfo', {})
    names = tuple(meta.get('classes') or ())
    palette = palette_of(len(names), meta.get('palette'))
    steps = _transforms(samples.dataset)
    original = _annotates_original(steps)
    normalize = next((each for each in steps if type(each).__name__ == 'Normalize'), None)
    tiles = []
    for sample in samples.take(start, number):
        image, truth = _unpacked(sample, normalize, original)
        drawn, text, counts = _drawn(image, truth, names, palette)
        height, width = sample['inputs'].shape[1:]
        name = Path(str(truth.get('img_path') or '')).name
        tiles.append(Tile(drawn, name, f'{width}x{height}, {text}', counts))
    many = f'{len(samples.dataset):,}'
    sheet = Sheet(
        f'{Path(cfg.filename or "config").stem}: {split}',
        [
            f'Images {start + 1:,} to {start + len(tiles):,} of {many} in the order of a run with '
            f'seed {seed}' + (', as they were before they were resized.' if original else '.')
        ],
        tiles,
    )
    counts = sum((tile.counts for tile in tiles), Counter())
    sheet.legend = _legend(counts, names, palette, cfg.get('default_scope') == 'mmseg')
    absent = [name for i, name in enumerate(names) if not counts[i]]
    if absent:
        more = f' and {len(absent) - 12} more' if len(absent) > 12 else ''
        sheet.facts.append(f'Not in these images: {", ".join(absent[:12])}{more}.')
    return sheet


def _legend(
    counts: Counter, names: Sequence[str], palette: Sequence[Colour], in_pixels: bool
) -> list[Item]:
    total = max(1, sum(counts.values()))
    colours = [*palette, *[IGNORED] * (max(counts, default=0) + 1 - len(palette)), IGNORED]
    return [
        Item(
            'ignored' if label < 0 else class_name(names, label),
            colours[label],
            f'{100 * count / total:.1f} %' if in_pixels else f'{count:,}',
        )
        for label, count in sorted(counts.items(), key=lambda each: (each[0] < 0, each[0]))
        if count
    ]


def _unpacked(sample: Any, normalize: Any, original: bool) -> tuple[np.ndarray, BaseDataElement]:
    """The image of a sample, BGR, and its truth.

    Args:
        sample: as pipelines pack it.
        normalize: the transform that has normalised it, None if none has.
        original: whether the truth is that of the image before it was resized and padded.
    """
    inputs = sample.get('inputs') if isinstance(sample, Mapping) else None
    if not isinstance(inputs, Tensor) or inputs.dim() != 3:
        raise UserError(
            'The pipeline gives no single images: expected samples with inputs of (channels, '
            'height, width) and data_samples, as PackDetInputs, PackSegInputs and PackInputs of '
            f'mmpretrain make them, got {_described(sample)}.'
        )
    truth, pixels = sample['data_samples'], inputs.permute(1, 2, 0).numpy()
    if normalize is not None:
        pixels = (pixels * normalize.std + normalize.mean)[..., :: -1 if normalize.to_rgb else 1]
        pixels = pixels.round()
    image, size = as_shown(pixels), truth.get('ori_shape')
    if original and size is not None:
        across, down = truth.get('scale_factor', (1, 1))
        height, width = size[:2]
        image = image[: max(1, round(height * down)), : max(1, round(width * across))]
        image = _resized(image, (width, height))
    return image, truth


def _described(sample: Any) -> str:
    if not isinstance(sample, Mapping):
        return type(sample).__name__
    inputs = sample.get('inputs')
    shape = f'of {tuple(inputs.shape)}' if isinstance(inputs, Tensor) else type(inputs).__name__
    return f'inputs {shape}'


def _resized(array: np.ndarray, size: tuple[int, int], exact: bool = False) -> np.ndarray:
    """An image, or with ``exact`` a map, in another size (width, height)."""
    smooth = cv2.INTER_AREA if size[0] < array.shape[1] else cv2.INTER_LINEAR
    return cv2.resize(array, size, interpolation=cv2.INTER_NEAREST if exact else smooth)


def _drawn(
    image: np.ndarray, truth: BaseDataElement, names: Sequence[str], palette: Sequence[Colour]
) -> tuple[np.ndarray, str, Counter]:
    """The image as large as on a sheet, with its truth; what that is; how often classes occur."""
    scale = SIDE / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    shown = _resized(image, size)
    if 'gt_instances' in truth:
        return _with_objects(shown, truth, scale, names, palette)
    if 'gt_sem_seg' in truth:
        label_map = np.asarray(truth.gt_sem_seg.data).squeeze()
        return _with_labels(shown, label_map, names, palette)
    if 'gt_label' in truth:
        labels = torch.as_tensor(truth.gt_label).flatten().tolist()
        text = ', '.join(class_name(names, label) for label in labels)
        return shown, text, Counter(labels)
    return shown, 'no annotations', Counter()


def _with_objects(
    image: np.ndarray,
    truth: BaseDataElement,
    scale: float,
    names: Sequence[str],
    palette: Sequence[Colour],
) -> tuple[np.ndarray, str, Counter]:
    height, width = image.shape[:2]
    learned = truth.gt_instances
    ignored = truth.get('ignored_instances')
    groups = [learned, *([ignored] if ignored is not None and len(ignored) else [])]
    labels = torch.cat([torch.as_tensor(group.labels) for group in groups])
    boxes = torch.cat([_boxes(group) for group in groups]) * scale
    bounds = boxes.new_tensor([width, height, width, height])
    leaves = ((boxes < -scale) | (boxes > bounds + scale)).any(dim=1)
    is_ignored = torch.arange(len(labels)) >= len(learned)
    ends = (
        ' (ignored)' if ignores else ' (leaves)' if leaving else ''
        for ignores, leaving in zip(is_ignored.tolist(), leaves.tolist(), strict=True)
    )
    drawn = InstanceData(
        bboxes=boxes.clamp(min=0).minimum(bounds - 1),
        # Grey are those that have no colour.
        labels=torch.where(is_ignored, len(palette), labels),
        label_names=[
            class_name(names, label) + end
            for label, end in zip(labels.tolist(), ends, strict=True)
        ],
    )
    if all('masks' in group for group in groups):
        masks = chain.from_iterable(_masks(group) for group in groups)
        masks = [_resized(mask.astype(np.uint8), (width, height), exact=True) for mask in masks]
        drawn.masks = np.array(masks, np.uint8).reshape(-1, height, width)
    counts = Counter(labels[~is_ignored].tolist())
    counts[-1] = int(is_ignored.sum())
    parts = [f'{len(learned)} objects' if len(learned) != 1 else '1 object']
    parts += [f'{counts[-1]} ignored'] if counts[-1] else []
    parts += [f'{leaves.sum()} leaving the image'] if leaves.any() else []
    return draw_instances(image, drawn, (), palette), ', '.join(parts), counts


def _boxes(instances: InstanceData) -> Tensor:
    """``(N, 4)``, left, top, right and bottom, out of mmdet's classes of boxes."""
    boxes = instances.bboxes
    if hasattr(boxes, 'convert_to'):
        boxes = boxes.convert_to('hbox').tensor
    return torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def _masks(instances: InstanceData) -> np.ndarray:
    masks = instances.masks
    return masks.to_ndarray() if hasattr(masks, 'to_ndarray') else np.asarray(masks)


def _with_labels(
    image: np.ndarray, label_map: np.ndarray, names: Sequence[str], palette: Sequence[Colour]
) -> tuple[np.ndarray, str, Counter]:
    labels, pixels = np.unique(label_map, return_counts=True)
    counts = Counter()
    for label, count in zip(labels.tolist(), pixels.tolist(), strict=True):
        counts[label if 0 <= label < len(names) else -1] += count
    small = np.where((label_map >= 0) & (label_map < len(names)), label_map, 255).astype(np.uint8)
    small = _resized(small, image.shape[1::-1], exact=True)
    drawn = draw_label_map(image, small, names, palette)
    rows, columns = np.indices(small.shape)
    stripes = (small == 255) & ((rows + columns) % 12 < 3)
    drawn[stripes] = IGNORED
    share = counts[-1] / label_map.size
    classes = sum(label >= 0 for label in counts)
    text = f'{classes} classes' if classes != 1 else '1 class'
    return drawn, text + (f', {100 * share:.1f} % ignored' if share else ''), counts


# --- Writing ----------------------------------------------------------------------------------


def write_sheet(sheet: Sheet, path: Path) -> None:
    """Writes a sheet as the path's suffix says, one of :data:`SHEETS`; equal ones are equal files.

    Raises:
        UserError: the file cannot be written.
    """
    if not is_main_process():
        return
    with written_atomically(path) as file:
        if path.suffix == '.png':
            _figure(sheet).savefig(file, format='png', dpi=100, metadata=dict(Software=None))
        else:
            file.write(_page(sheet))


def _page(sheet: Sheet) -> bytes:
    def uri(image: np.ndarray) -> str:
        return data_uri(cv2.imencode('.png', image)[1].tobytes(), 'image/png')

    template = Path(__file__).with_name('browse.html.jinja')
    return render(template, dict(uri=uri), sheet=sheet)


@mpl.rc_context({'text.parse_math': False})
def _figure(sheet: Sheet) -> Figure:
    """The sheet at 100 pixels an inch: title and facts, legend, and images in rows."""
    columns = min(COLUMNS, len(sheet.tiles))
    columns = max(columns, 2)
    width = columns * (SIDE + GAP) - GAP + 2 * MARGIN
    rows = [sheet.tiles[i : i + columns] for i in range(0, len(sheet.tiles), columns)]
    heights = [max(tile.image.shape[0] for tile in row) + 2 * LINE + GAP for row in rows]
    items = width // 220  # in a line of the legend
    lines = -(-len(sheet.legend) // items)
    facts = [part for fact in sheet.facts for part in textwrap.wrap(fact, width // 7)]
    head = MARGIN + 2 * LINE + len(facts) * LINE + GAP + lines * LINE + GAP
    height = head + sum(heights) + MARGIN
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor='white')

    def write(x: float, y: float, text: str, size: float = 9, **style: Any) -> None:
        [text], families = drawable([text.replace('\n', ' ')])
        place = x / width, 1 - y / height
        figure.text(*place, text, fontsize=size, family=families, va='top', **style)

    write(MARGIN, MARGIN, _cut(sheet.title, width // 12), 15)
    for i, fact in enumerate(facts):
        write(MARGIN, MARGIN + (2 + i) * LINE, fact, color='0.35')
    top = head - GAP - lines * LINE
    for i, item in enumerate(sheet.legend):
        x, y = MARGIN + i % items * 220, top + i // items * LINE
        colour = tuple(value / 255 for value in item.colour)
        swatch = Rectangle(
            (x / width, 1 - (y + 13) / height),
            13 / width,
            13 / height,
            transform=figure.transFigure,
            facecolor=colour,
            edgecolor='0.3',
            linewidth=0.5,
        )
        figure.patches.append(swatch)
        write(x + 19, y, f'{_cut(item.name, 20)}  {item.count}')
    y = head
    for row, row_height in zip(rows, heights, strict=True):
        for i, tile in enumerate(row):
            x = MARGIN + i * (SIDE + GAP)
            below = y + tile.image.shape[0]
            figure.figimage(tile.image[..., ::-1], x, height - below, origin='upper')
            write(x, below + 3, _cut(tile.name, SIDE // 8))
            write(x, below + 3 + LINE, _cut(tile.text, SIDE // 7), color='0.35')
        y += row_height
    return figure


def _cut(text: str, length: int) -> str:
    """A text of at most so many characters; of file names the end says most."""
    return text if len(text) <= length else f'…{text[1 - length :]}'
