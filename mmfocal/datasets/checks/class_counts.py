"""How often each class occurs in a data set: which ones a model cannot learn, or will neglect."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from mmfocal.utils.text import printable

from .report import Report, some

BAR = 24  # characters of the longest one
MAX_ROWS = 20  # of a histogram; of more classes, the most and the least frequent ones


class ClassCounts:
    """Boxes, or pixels, of each class, and the images that hold any.

    Args:
        names: of the classes, in the order of labels.
        unit: what is counted, ``'boxes'`` or ``'pixels'``.

    Attributes:
        amounts: int64 ``(classes,)``, boxes or pixels.
        images: int64 ``(classes,)``, images with any of them.
        without: pixels without a class.
        values: that label maps hold, as they are stored.
        looked_at: images.
        of: images that there are.
    """

    def __init__(self, names: Sequence[str], unit: str) -> None:
        self.names, self.unit = tuple(map(printable, names)), unit
        self.amounts = np.zeros(len(names), np.int64)
        self.images = np.zeros(len(names), np.int64)
        self.without = self.looked_at = self.of = 0
        self.values: set[int] = set()

    def add_boxes(self, labels: np.ndarray, images: np.ndarray) -> None:
        """Counts boxes.

        Args:
            labels: int ``(N,)``, numbers of their classes.
            images: int ``(N,)``, a number of the image of each.
        """
        self.amounts += np.bincount(labels, minlength=len(self.names))
        pairs = np.unique(images * len(self.names) + labels)
        self.images += np.bincount(pairs % len(self.names), minlength=len(self.names))

    def add_label_map(self, labels: np.ndarray, pixels: np.ndarray) -> None:
        """Counts the pixels of a label map.

        Args:
            labels: int ``(L,)``, all different; those that are no class are counted as such.
            pixels: int ``(L,)``, how many have each label.
        """
        is_class = (labels >= 0) & (labels < len(self.names))
        self.amounts[labels[is_class]] += pixels[is_class]
        self.images[labels[is_class]] += pixels[is_class] > 0
        self.without += int(pixels[~is_class].sum())
        self.looked_at += 1

    @property
    def absent(self) -> list[str]:
        """Classes that never occur."""
        return [name for name, amount in zip(self.names, self.amounts, strict=True) if not amount]

    def note_absent(self, where: str, report: Report) -> None:
        """Notes the classes that a data set, read from ``where``, has nothing of."""
        if not self.absent or len(self.absent) == len(self.names):
            return
        sample, hint = '', 'Such a class is neither learned nor evaluated.'
        if self.looked_at < self.of:
            sample = f' in the {self.looked_at:,} label maps looked at'
            hint = f'--deep looks at all {self.of:,}.'
        report.note(
            where,
            f'has no {self.unit} of {{absent}}{sample}. {hint}',
            absent=some(map(repr, self.absent)),
        )

    def histogram(self, title: str) -> list[str]:
        """Bars for a terminal: the share of each class, and of the images that hold it."""
        total = int(self.amounts.sum())
        if not total:
            return []
        order = [int(i) for i in np.argsort(-self.amounts, kind='stable') if self.amounts[i]]
        half = MAX_ROWS // 2
        cut = len(order) > MAX_ROWS
        shown = [*order[:half], *order[-half:]] if cut else order
        width = min(max(len(self.names[i]) for i in shown), 20)
        lines = [f'{title}: {self._sum(order)}']
        for row, i in enumerate(shown):
            if cut and row == half:
                lines.append(f'  ... {len(order) - MAX_ROWS} more classes')
            share = 100 * self.amounts[i] / total
            filled = -(-BAR * int(self.amounts[i]) // int(self.amounts.max()))  # one for a little
            in_images = 100 * self.images[i] / max(self.looked_at, 1)
            lines.append(
                f'  {self.names[i][:width]:{width}} {share:6.2f} %  {"#" * filled:{BAR}}  '
                f'in {in_images:3.0f} % of images'
            )
        if self.absent:
            text = f'{len(self.absent)} never: {", ".join(self.absent)}'
            lines += textwrap.wrap(text, 79, initial_indent='  ', subsequent_indent='    ')
        if self.without:
            of_all = 100 * self.without / (self.without + total)
            lines.append(f'  {of_all:.2f} % of all pixels have no class.')
        return lines

    def _sum(self, order: Sequence[int]) -> str:
        """What was counted, and how uneven it is, from classes in the order of their amounts."""
        if self.unit == 'boxes':
            text = f'{int(self.amounts.sum()):,} boxes in {self.looked_at:,} images'
        else:
            part = f' of {self.of:,}' if self.looked_at < self.of else ''
            text = f'pixels of {self.looked_at:,}{part} label maps'
        most, least = order[0], order[-1]
        if most == least:
            return text
        ratio = self.amounts[most] / self.amounts[least]
        return (
            f'{text}; {self.names[most]!r} has {ratio:,.1f} times as many as {self.names[least]!r}'
        )
