"""What readers of labelling tools' exports do alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from mmfocal.utils.errors import UserError
from mmfocal.utils.files import why_no_file

from ..checks import Report
from ..checks.report import short
from .content import WHOLE, Annotated, Folder, Object, Sample, number, split_of

GLANCE = 2**14  # bytes at the beginning and the end of a file that tell its format


def glance(path: Path) -> str:
    """The beginning and the end of a file; nothing if it cannot be read."""
    if why_no_file(path):
        return ''
    try:
        with path.open('rb') as file:
            text = file.read(GLANCE)
            file.seek(max(GLANCE, path.stat().st_size - GLANCE))
            text += file.read()
    except OSError:
        return ''
    return text.replace(b'\0', b'').decode(errors='replace')  # UTF-16 too


@contextmanager
def located(where: object) -> Iterator[None]:
    """Makes UserErrors of ValueErrors, with the file and the item in it before them."""
    try:
        yield
    except ValueError as error:
        raise UserError(f'{where}: {error}.') from error


def entry(item: Any, key: str, kind: type | tuple[type, ...], what: str) -> Any:
    """A value of a dict.

    Raises:
        ValueError: it is missing or of another type; as part of a sentence.
    """
    if not isinstance(item, dict):
        raise ValueError(f'expected names with values, {key!r} among them, got {short(item)}')
    value = item.get(key)
    if not isinstance(value, kind):
        raise ValueError(f'expected {what} under {key!r}, got {short(value)}')
    return value


def number_of(values: Mapping | Element, key: str, default: float | None = None) -> float:
    """A number among values; raises ValueError, as part of a sentence, if it is none."""
    value = values.get(key)
    try:
        return number(default if value is None else value)
    except ValueError as error:
        raise ValueError(f'{key}: {error}') from None


def label_of(value: Any) -> str:
    """The name of a class; raises ValueError, as part of a sentence, if there is none."""
    is_text = isinstance(value, str) and value == value.encode(errors='ignore').decode()
    if not is_text or not value.strip():
        raise ValueError(f'expected the name of a class as label, got {short(value)}')
    return value.strip()


class LeftOutError(Exception):
    """A shape is right, but no object that is learned.

    Args:
        problem: a sentence with ``{names}`` of values, see :class:`~..checks.Report`.
        values: of the names.
    """

    def __init__(self, problem: str, **values: Any) -> None:
        super().__init__(problem.format(**values))
        self.problem, self.values = problem, values


class NoAreaError(LeftOutError):
    """It is a point, a line, or has no extent; takes what it is, in words."""

    def __init__(self, what: str) -> None:
        super().__init__('is {what}, which covers no area; it is left out.', what=what)


def converted(convert: Callable[..., Object], *args: Any, where: str, report: Report) -> Any:
    """The object that a function makes of a shape; None, with a note, of what is left out.

    Raises:
        UserError: the function raised a ValueError, a part of a sentence.
    """
    try:
        with located(where):
            return convert(*args)
    except LeftOutError as reason:
        report.note(where, reason.problem, **reason.values)
        return None


def polygon(label: str, points: Sequence[tuple[float, float]]) -> Object:
    """An object within points x, y; raises NoAreaError of less than three."""
    if len(points) < 3:
        raise NoAreaError(f'a polygon of {len(points)} points')
    return Object.of_polygons(label, [[value for point in points for value in point]])


def points_of(values: Any) -> list[tuple[float, float]]:
    """Points from a list of pairs; raises ValueError, as part of a sentence, if it is none."""
    for pair in values if isinstance(values, list) else [values]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f'expected points of x and y, got {short(pair)}')
    return [(number(x), number(y)) for x, y in values]


def folder_split(folder: Folder, path: Path) -> str | None:
    """The split that the folders of a file name, see :func:`~.content.split_of`.

    Its own name does not count: a picture ``train_7.jpg`` may well show a train.
    """
    return split_of(folder.relative(path.parent))


def gathered(
    found: Iterable[tuple[str | None, Sample]],
    declared: Sequence[str],
    folder: Folder,
    report: Report,
) -> Annotated:
    """Images of a folder as a data set.

    Classes come in the order in which the source declares them, then others by name; those
    without an object are left out. If some images belong to a split, so must the others: they are
    for training if nothing else is, and left out with a note otherwise.

    Args:
        found: images, each with the split that it belongs to.
        declared: names of classes.
        folder: the data's.
        report: takes the notes.

    Raises:
        UserError: an image is described twice, or there is none.
    """
    by_split: dict[str, list[Sample]] = {}
    seen: dict[Path, str] = {}
    for split, sample in found:
        if sample.image in seen:
            raise UserError(
                f'{sample.where} and {seen[sample.image]} both describe the image {sample.image}; '
                'expected it once. Take one of them out, or correct its name.'
            )
        seen[sample.image] = sample.where
        by_split.setdefault(split or WHOLE, []).append(sample)
    if not seen:
        reasons = report.lines('note')
        raise UserError('\n'.join([f'{folder.root} has no image that can be used.', *reasons]))
    if len(by_split) > 1 and (rest := by_split.pop(WHOLE, None)):
        if 'train' not in by_split:
            by_split['train'] = rest
        else:
            for sample in rest:
                problem = 'belongs to none of {splits}, as others do; it is left out.'
                report.note(sample.where, problem, splits=', '.join(by_split))
    return Annotated(_classes(by_split, declared, folder, report), by_split)


def _classes(
    splits: dict[str, list[Sample]], declared: Sequence[str], folder: Folder, report: Report
) -> tuple[str, ...]:
    samples = [sample for samples in splits.values() for sample in samples]
    used = {each.label for sample in samples for each in sample.objects}
    others = sorted(used.difference(declared))
    if declared:
        for label in others:
            problem = 'the class {label} is not listed where classes are; it comes after them.'
            report.note(str(folder.root), problem, label=repr(label))
    return (*(name for name in dict.fromkeys(declared) if name in used), *others)
