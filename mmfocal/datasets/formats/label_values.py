"""Label maps as files have them: indices, or colours, and how often each occurs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmfocal.utils.errors import UserError
from mmfocal.utils.progress import progress_bar

from ..checks import read_image
from .label_tables import Colour
from .pairing import Pair

MAX_LOOKED_AT = 2000  # label maps from which the meaning of their values is taken
LOSSY = frozenset(['.jpg', '.jpeg', '.jpe'])
GRAY = 0x010101  # a shade of gray for its brightness
NO_COLOUR = 2**24  # of an index that is ignored


def code_of(colour: Iterable[int]) -> int:
    """A colour as one number."""
    red, green, blue = map(int, colour)
    return red << 16 | green << 8 | blue


def colour_of(code: int) -> Colour:
    """Red, green and blue of :func:`code_of`."""
    return code >> 16, code >> 8 & 255, code & 255


class Runs(NamedTuple):
    """Values of a label map, of which neighbours are mostly alike.

    Attributes:
        values: int ``(L,)``, all that occur.
        numbers: which of them each run is of, int ``(R,)``.
        lengths: of the runs in pixels, int ``(R,)``.
    """

    values: np.ndarray
    numbers: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, label_map: np.ndarray) -> Runs:
        """Those of a label map, row by row."""
        flat = label_map.ravel()
        starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
        values, numbers = np.unique(flat[starts], return_inverse=True)
        return cls(values, numbers, np.diff(starts, append=flat.size))

    def counts(self) -> dict[int, int]:
        """Pixels of each value."""
        pixels = np.bincount(self.numbers, weights=self.lengths).astype(np.int64)
        return dict(zip(self.values.tolist(), pixels.tolist(), strict=True))


class LabelMap(NamedTuple):
    """A label map as it is stored.

    Attributes:
        path: of the file.
        values: ``(H, W)``, indices or colours.
        is_colour: whether they are colours, as :func:`code_of` gives them.
        palette: colours of indices, int32 ``(256,)``, of mode P.
        is_plain: whether mmseg reads the same values.
    """

    path: Path
    values: np.ndarray
    is_colour: bool
    palette: np.ndarray | None
    is_plain: bool

    def indices(self) -> np.ndarray:
        """Indices ``(H, W)``, also of colours that are shades of gray."""
        if not self.is_colour:
            return self.values
        blue = self.values & 255
        if not np.array_equal(blue * GRAY, self.values):
            raise UserError(
                f'{self.path} has colours, other label maps have indices; expected the same of '
                'all. Export them anew.'
            )
        return blue

    def colours(self, ignored: int, known: Iterable[int]) -> np.ndarray:
        """Colours ``(H, W)``, also of indices, which are shades of gray without a palette.

        Args:
            ignored: index that is :data:`NO_COLOUR` unless it has a known colour.
            known: colours.
        """
        if self.is_colour:
            return self.values
        if self.values.min() < 0 or self.values.max() > 255:
            raise UserError(
                f'{self.path} holds indices up to {self.values.max()}, other label maps have '
                'colours; expected the same of all. Export them anew.'
            )
        palette = np.arange(256) * GRAY if self.palette is None else self.palette.copy()
        if 0 <= ignored < 256 and int(palette[ignored]) not in known:
            palette[ignored] = NO_COLOUR
        return palette[self.values]


def read_label_map(each: Pair) -> LabelMap:
    """Reads a label map, and compares its size with that of its image.

    Raises:
        UserError: it or its image cannot be read, is of a kind that is none of labels, or they
            differ in size.
    """
    path = each.label_map
    if path.suffix.lower() in LOSSY:
        raise UserError(
            f'{path} is a JPEG file, which smears labels at the borders of objects; expected PNG. '
            'Export the label maps as PNG.'
        )
    try:
        found = read_image(str(path), deep=True)
    except ValueError as error:
        raise UserError(f'{path} {error}') from error
    _check_size(each, found.size)
    pixels, mode = found.pixels, found.mode
    if mode in ('RGB', 'RGBA'):
        red, green, blue = np.moveaxis(pixels[..., :3].astype(np.int32), 2, 0)
        return LabelMap(path, red << 16 | green << 8 | blue, True, None, False)
    if mode not in ('1', 'L', 'LA', 'P', 'PA') and not mode.startswith('I'):
        raise UserError(
            f'{path} has pixels of mode {mode}; expected indices of 8 or 16 bits, or colours of '
            'red, green and blue. Export it as PNG.'
        )
    if mode in ('LA', 'PA'):
        pixels = pixels[..., 0]
    if mode == '1':
        pixels = pixels.astype(np.uint8)
    bits = _gray_bits(path) if mode == 'L' else 8
    if bits < 8:  # decoders stretch them to 0 to 255
        pixels = pixels // (255 // (2**bits - 1))
    palette = _palette(path) if mode == 'P' else None
    return LabelMap(path, pixels, False, palette, mode in ('L', 'P') and bits == 8)


def _check_size(each: Pair, size: tuple[int, int]) -> None:
    try:
        image = read_image(str(each.image), deep=False)
    except ValueError as error:
        raise UserError(f'{each.image} {error} Repair it, or take it out.') from error
    loaded = image.loaded_size(turns=True)
    if loaded != size:
        turned = f', turned by its EXIF orientation {image.orientation}' * (loaded != image.size)
        raise UserError(
            f'{each.label_map} has {size[0]}x{size[1]} pixels (width x height), its image '
            f'{each.image} {loaded[0]}x{loaded[1]} as it is loaded{turned}; expected the same. '
            'Correct one of them, or take both out.'
        )


def _gray_bits(path: Path) -> int:
    """Bits of a pixel that the header of a gray PNG file says; 8 for others."""
    with path.open('rb') as file:
        start = file.read(26)
    return start[24] if start.startswith(b'\x89PNG') and start[25] == 0 else 8


def _palette(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        flat = image.getpalette('RGB') or []
    channels = np.zeros(256 * 3, np.int32)
    channels[: len(flat)] = flat[: 256 * 3]
    red, green, blue = channels.reshape(256, 3).T
    return red << 16 | green << 8 | blue


@dataclass
class Looked:
    """What was found in label maps.

    Attributes:
        indices: pixels of each index, of those that have indices.
        colours: of each colour, of those that have colours.
        first: a file with each index, or colour, by ``(is_colour, value)``.
        palette: colours of indices that occur, of mode P.
        contradiction: files in which an index has different colours, as part of a sentence.
        is_plain: whether mmseg reads the same values from all.
        count: of label maps.
    """

    indices: Counter[int] = field(default_factory=Counter)
    colours: Counter[int] = field(default_factory=Counter)
    first: dict[tuple[bool, int], Path] = field(default_factory=dict)
    palette: dict[int, int] = field(default_factory=dict)
    contradiction: str = ''
    is_plain: bool = True
    count: int = 0

    def add(self, label_map: LabelMap, ignored: int) -> None:
        """Adds a label map."""
        counts = Runs.of(label_map.values).counts()
        (self.colours if label_map.is_colour else self.indices).update(counts)
        for value in counts:
            self.first.setdefault((label_map.is_colour, value), label_map.path)
        self.is_plain &= label_map.is_plain
        self.count += 1
        for index in counts if label_map.palette is not None else ():
            colour = int(label_map.palette[index])
            known = self.palette.setdefault(index, colour)
            if known != colour and index != ignored and not self.contradiction:
                self.contradiction = (
                    f'{label_map.path} has the colour {colour_of(colour)} for index {index}, and '
                    f'{self.first[False, index]} has {colour_of(known)}'
                )

    @property
    def is_gray(self) -> bool:
        """Whether all colours are shades of gray, so that they stand for indices."""
        return all(code == (code & 255) * GRAY for code in self.colours)

    def all_colours(self, ignored: int) -> Counter[int]:
        """Pixels of each colour, also of indices but an ignored one."""
        counts = Counter(self.colours)
        for index, pixels in self.indices.items():
            if index != ignored:
                counts[self.palette.get(index, index * GRAY)] += pixels
        return counts

    def all_indices(self) -> Counter[int]:
        """Pixels of each index, also of shades of gray."""
        counts = Counter(self.indices)
        for code, pixels in self.colours.items():
            counts[code & 255] += pixels
        return counts


def look(pairs: Sequence[Pair], ignored: int) -> Looked:
    """Looks at up to :data:`MAX_LOOKED_AT` label maps that are spread evenly over all."""
    count = min(len(pairs), MAX_LOOKED_AT)
    looked = Looked()
    with progress_bar('Looking at label maps', count, 'file') as bar:
        for number in np.linspace(0, len(pairs) - 1, count).round().astype(int):
            looked.add(read_label_map(pairs[number]), ignored)
            bar.update()
    return looked
