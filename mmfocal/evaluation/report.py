"""The report: one HTML file that needs nothing else, and the same numbers as JSON."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmfocal.datasets.checks import why_unreadable
from mmfocal.utils.errors import UserError
from mmfocal.utils.files import written_atomically
from mmfocal.utils.pages import data_uri, render
from mmfocal.visualization.predictions import SIDE


@dataclass
class Table:
    """A table of the report.

    Attributes:
        title: what it shows.
        header: of the columns; the first column names the row.
        rows: str, int for counts, float for shares from 0 to 1, None for what does not exist.
        bars: columns of shares that are drawn as bars, too.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    bars: Sequence[str] = ()


@dataclass
class Confusion:
    """Which class is taken for which.

    Attributes:
        labels: of rows, which are true, and of columns, which are predicted.
        counts: by row and column.
        note: what is counted.
    """

    labels: Sequence[str]
    counts: Sequence[Sequence[int]]
    note: str

    def shares(self) -> list[list[float]]:
        """Of each row, 0 where it is empty."""
        return [[count / max(sum(row), 1) for count in row] for row in self.counts]


@dataclass
class Example:
    """An image with the truth and with what was predicted.

    Attributes:
        name: of the file.
        score: from 0 to 1, by which images are ranked.
        text: what the score comes from.
        truth: with ground truth, ``(H, W, 3)`` of uint8, BGR.
        found: with predictions, ``(H, W, 3)`` of uint8, BGR.
    """

    name: str
    score: float
    text: str
    truth: np.ndarray
    found: np.ndarray


@dataclass
class Report:
    """What is known of a model's predictions on a test set.

    Attributes:
        summary: names and values.
        tables: all tables.
        confusion: of classes.
        measure: by which images are ranked.
        worst: images, the worst first.
        best: images, the best first.
        facts: where it comes from, names and values.
        curves: path of an image of the run's curves; None for none.
    """

    summary: list[tuple[str, str]]
    tables: list[Table]
    confusion: Confusion
    measure: str
    worst: list[Example] = field(default_factory=list)
    best: list[Example] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    curves: Path | None = None

    def as_numbers(self) -> dict[str, Any]:
        """All but the images, for JSON."""

        def ranked(examples: Sequence[Example]) -> list[dict]:
            return [dict(name=each.name, score=each.score, text=each.text) for each in examples]

        return dict(
            facts=dict(self.facts),
            summary=dict(self.summary),
            tables={
                each.title: [dict(zip(each.header, row, strict=True)) for row in each.rows]
                for each in self.tables
            },
            confusion=dict(labels=list(self.confusion.labels), counts=self.confusion.counts),
            measure=self.measure,
            worst=ranked(self.worst),
            best=ranked(self.best),
        )


def percent(value: float) -> str:
    """0.1234 as '12.3 %'."""
    return f'{100 * value:.1f} %'


def read_image(path: Path) -> np.ndarray:
    """An image to show, ``(H, W, 3)`` of uint8, BGR."""
    if problem := why_unreadable(str(path)):
        raise UserError(f'{path} {problem} It is among the images to show.')
    return cv2.imread(str(path), cv2.IMREAD_COLOR)


def write_report(report: Report, folder: str | Path, title: str) -> Path:
    """Writes ``report.html`` and ``report.json``.

    Args:
        report: what to write.
        folder: made if it is not there.
        title: of the page.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    page = render(
        Path(__file__).with_name('report.html.jinja'),
        dict(cell=_cell, key=_key, image=_image, file=_file),
        report=report,
        title=title,
    )
    path = folder / 'report.html'
    numbers = json.dumps(report.as_numbers(), indent=1, default=float)
    for target, content in ((path, page), (folder / 'report.json', f'{numbers}\n'.encode())):
        with written_atomically(target) as file:
            file.write(content)
    return path


def text_table(table: Table) -> str:
    """A table for the terminal."""
    cells = [list(table.header), *([_cell(value) for value in row] for row in table.rows)]
    # Names of others could move the cursor, or begin lines.
    cells = [[''.join(map(_visible, cell)) for cell in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        first, *others = zip(row, widths, strict=True)
        line = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        lines.append('  '.join(line).rstrip())
    return '\n'.join([html.unescape(table.title), *lines])


def _visible(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return '–'
    if isinstance(value, (float, np.floating)):
        return f'{100 * value:.1f}'
    return f'{value:,}' if isinstance(value, (int, np.integer)) else str(value)


def _key(value: Any) -> str:
    """By which a cell is sorted; what does not exist comes last."""
    return '-1' if value is None else str(value)


def _image(image: np.ndarray) -> str:
    scale = min(1.0, SIDE / max(image.shape[:2]))
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return data_uri(data.tobytes(), 'image/jpeg')


def _file(path: Path) -> str:
    return data_uri(path.read_bytes(), 'image/png')
