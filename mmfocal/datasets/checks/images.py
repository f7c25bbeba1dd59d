"""Images and label maps: what can be known of a file, and what is wrong with it."""

from __future__ import annotations

import os
import struct
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from mmfocal.utils.files import why_no_file
from mmfocal.utils.progress import progress_bar

from .class_counts import ClassCounts
from .report import Report, some

# Sampled per data set: headers of images, and label maps, which have to be decoded.
MAX_HEADERS, MAX_LABEL_MAPS = 10_000, 200
MAX_SECONDS = 10.0  # for the sampled files of a data set, on a slow disk
# Up to which images are decoded: Pillow's own limit. OpenCV's would be 2**30, gigabytes for each
# image. Both read the variable, OpenCV when it is imported.
MAX_PIXELS = 178_956_970
PIXELS_VARIABLE = 'OPENCV_IO_MAX_IMAGE_PIXELS'
# Of one side to the other: classifiers resize the shorter one to 256 pixels or so, and make
# gigabytes of a line of pixels.
MAX_RATIO = 5000
ORIENTATION = 0x0112  # EXIF tag; 1 is upright, from 5 on sides are swapped
# What PNG, JPEG, GIF, WebP and TIFF files begin with.
SIGNATURES = (b'\x89PNG', b'\xff\xd8', b'GIF8', b'RIFF', b'II*\0', b'MM\0*')
# How JPEG and PNG files end.
ENDS = {'JPEG': b'\xff\xd9', 'PNG': b'IEND'}
# Ways of storing pixels that loaders convert to three channels of 8 bits.
CONVERTED = {
    'CMYK': 'CMYK',
    'YCbCr': 'YCbCr',
    'LAB': 'CIELAB',
    'L': 'gray',
    'LA': 'gray with alpha',
    '1': 'of 1 bit',
    'P': 'with a palette',
    'PA': 'with a palette',
    'RGBA': 'with alpha',
}


def max_pixels() -> int:
    """Pixels up to which images are decoded, :data:`MAX_PIXELS` unless the user says more."""
    given = os.environ.get(PIXELS_VARIABLE, '')
    return int(given) if given.isdecimal() else MAX_PIXELS


if PIXELS_VARIABLE in os.environ and Image.MAX_IMAGE_PIXELS:  # Pillow refuses twice its value
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels() // 2 + 1)


# --- A file -----------------------------------------------------------------------------------


class ImageFile(NamedTuple):
    """What is known of an image's file.

    Attributes:
        size: width and height in pixels, as stored.
        mode: of its pixels, as Pillow names it.
        orientation: of EXIF, 1 to 8; 1 is upright.
        is_animated: whether it has several frames.
        pixels: ``(H, W)`` or ``(H, W, C)``; None if they were not decoded.
    """

    size: tuple[int, int]
    mode: str
    orientation: int
    is_animated: bool
    pixels: np.ndarray | None

    def loaded_size(self, turns: bool) -> tuple[int, int]:
        """Width and height in pixels, after EXIF orientation if the loader ``turns`` images."""
        return self.size[::-1] if turns and self.orientation >= 5 else self.size


class ImageTooLargeError(ValueError):
    """An image would take too much memory; the message is part of a sentence."""


def check_size(width: float, height: float) -> None:
    """Raises ImageTooLargeError for an image, or a frame, that would take too much memory."""
    size = f'has {width:.0f}x{height:.0f} pixels (width x height)'
    if width * height > max_pixels():
        raise ImageTooLargeError(
            f'{size}, more than the {max_pixels():,} that are decoded, which bounds the memory. '
            f'Cut it into tiles, or set {PIXELS_VARIABLE}={width * height:.0f} in the environment.'
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageTooLargeError(
            f'{size}; expected sides of which none is more than {MAX_RATIO:,} times the other. '
            'Cut it.'
        )


def read_image(path: str, deep: bool) -> ImageFile:
    """Reads an image's header, and its pixels on request.

    Args:
        path: of the file; anything but an ordinary file is not opened.
        deep: whether it is decoded; without, that is done only where its end is missing.

    Raises:
        ValueError: what is wrong with it, as part of a sentence.
    """
    if problem := why_no_file(path):
        raise ValueError(problem)
    try:
        with open(path, 'rb') as file, warnings.catch_warnings():
            warnings.simplefilter('ignore')  # odd tags are no news here
            start = file.read(16)
            file.seek(-min(os.path.getsize(path), 64), os.SEEK_END)
            end = file.read()
            with _opened(file, start) as image:
                check_size(*image.size)
                animated = getattr(image, 'is_animated', False)
                decodes = deep or ENDS.get(image.format, b'') not in end
                pixels = np.asarray(image) if decodes else None
                return ImageFile(image.size, image.mode, _orientation(image), animated, pixels)
    except PermissionError:
        raise ValueError('may not be read: its permissions forbid it.') from None
    except Image.UnidentifiedImageError:
        if start.startswith(SIGNATURES):
            raise ValueError('is damaged: it begins as an image, but has no header.') from None
        raise ValueError(f'is no image; it begins with {start!r}.') from None
    except MemoryError:
        raise ValueError('needs more memory than there is to be decoded.') from None
    except ImageTooLargeError:
        raise
    except Exception as error:  # Pillow's readers raise anything
        raise ValueError(f'is cut off or damaged ({error}).') from None


def refuse_large(path: str) -> None:
    """Raises ImageTooLargeError for such an image, by its header alone.

    What Pillow does not know, or may not read, is left to whoever loads it.
    """
    try:
        with open(path, 'rb') as file, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with _opened(file, file.read(16)) as image:
                size = image.size
    except Exception:  # Pillow's readers raise anything
        return
    check_size(*size)


def _opened(file: BinaryIO, start: bytes) -> Image.Image:
    """An image of any size, of which the header is read.

    That is ``Image.open`` without its limit, which would not say how large an image is and holds
    for the whole process; and without PostScript, since that is a program.
    """
    Image.preinit()
    Image.init()
    for name in Image.ID:
        factory, accepts = Image.OPEN[name]
        accepted = True if accepts is None else accepts(start)
        if name == 'EPS' or not accepted or isinstance(accepted, str):  # a text says why not
            continue
        file.seek(0)
        try:
            return factory(file, file.name)
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
    raise Image.UnidentifiedImageError


def _orientation(image: Image.Image) -> int:
    # For a PNG without it, Pillow would decode the image to look after its pixels.
    if image.format == 'PNG' and 'exif' not in image.info:
        return 1
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError):
        return 1
    return orientation if orientation in range(1, 9) else 1


def decoded(path: str) -> np.ndarray:
    """Pixels of an image, ``(H, W)`` or ``(H, W, C)``; raises as :func:`read_image` does."""
    return read_image(path, deep=True).pixels


def why_unreadable(path: str) -> str | None:
    """Why an image cannot be decoded, as part of a sentence; None if it can."""
    try:
        read_image(path, deep=True)
    except ValueError as error:
        return str(error)
    return None


def unfit_pixels(image: ImageFile, backend: str) -> str | None:
    """What keeps a loader from giving an image as it looks, as part of a sentence."""
    if image.mode == 'F' and backend != 'tifffile':
        return 'its pixels are floating point numbers; expected 8 or 16 bits a channel.'
    if image.mode.startswith('I') and backend == 'pillow':
        return (
            "has 16 bits a pixel, which imdecode_backend='pillow' clips to white. Leave it out, "
            "or set it to 'cv2'."
        )
    return None


def leaves_folder(name: str) -> bool:
    """Whether a path from an annotation file leads out of the folder that it is relative to."""
    parts = name.replace('\\', '/').split('/')
    return name.startswith(('/', '\\')) or '..' in parts or '://' in name or parts[0][1:] == ':'


# --- All files of a data set ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """What is known of the images of a data set, and how a config reads them.

    Attributes:
        images: folder that the names of images are relative to.
        classes: names in the order of labels; None if they are not known.
        first_label: of the first class in label maps.
        num_labels: values in label maps are below this, or ignored; None if that is not known.
        ignored: values in label maps that are left out, or no pixel's class.
        turns: whether EXIF orientation is applied.
        backend: of mmcv's decoder, such as ``'cv2'``.
        label_backend: of mmcv's decoder for label maps.
        loader: name of the user's own transform that reads images, which may read anything; None
            for mmcv's.
        label_loader: the same for label maps.
        longest: the smallest of all bounds of the longer side in pixels that images are resized to
            with their aspect ratio kept; None for no such resizing.
        min_size: images with a side below that, in pixels, are left out of training.
    """

    images: str
    classes: tuple[str, ...] | None = None
    first_label: int = 0
    num_labels: int | None = None
    ignored: frozenset[int] = frozenset([255])
    turns: bool = True
    backend: str = 'cv2'
    label_backend: str = 'pillow'
    loader: str | None = None
    label_loader: str | None = None
    longest: int | None = None
    min_size: int = 0


class Entry(NamedTuple):
    """An image of a data set.

    Attributes:
        name: below the folder of images.
        label_map: path of its label map, None if there is none.
        size: width and height in pixels that its annotations are for, None if they do not say.
    """

    name: str
    label_map: str | None = None
    size: tuple[float, float] | None = None


def check_files(
    entries: Iterable[Entry],
    where: str,
    data: ImageData,
    report: Report,
    deep: bool = False,
    most: int | None = None,
    counts: ClassCounts | None = None,
) -> tuple[int, int]:
    """Looks whether images and label maps are there, and opens a sample.

    Args:
        entries: the images.
        where: the file or folder that lists them.
        data: what they belong to.
        report: takes what is found.
        deep: whether all files are decoded, however long it takes.
        most: images, and label maps, that are opened; None for all if ``deep``, else for up to
            :data:`MAX_HEADERS` and :data:`MAX_LABEL_MAPS` for :data:`MAX_SECONDS` each.
        counts: takes numbers of pixels.

    Returns:
        Numbers of images that were opened, and of label maps that are there.
    """
    listings = _Listings()
    images, label_maps = [], []
    for entry in entries:
        if leaves_folder(entry.name):
            report.error(
                where,
                '{name!r} leads out of {images}. Name files by paths below that folder.',
                name=entry.name,
                images=data.images,
            )
            continue
        path = os.path.join(data.images, entry.name)
        if listings.has(path):
            images.append((path, entry.size))
        else:
            report.error(path, 'is missing; {where} needs it.', where=where)
        if entry.label_map and listings.has(entry.label_map):
            label_maps.append((path, entry.label_map))
        elif entry.label_map:
            report.error(
                entry.label_map, 'this label map is missing; {where} needs it.', where=where
            )
    opened = 0
    for path, size in _sample(images, deep, most, MAX_HEADERS):
        _check_image(path, size, data, deep, report)
        opened += 1
    if counts is not None:
        counts.of = len(label_maps)
    for path, label_map in _sample(label_maps, deep, most, MAX_LABEL_MAPS):
        _check_label_map(path, label_map, data, report, counts)
    return opened, len(label_maps)


class _Listings(dict):
    """Names of files by folder; reads each folder once, which is faster than asking for files."""

    def __missing__(self, folder: str) -> Collection[str]:
        try:
            self[folder] = set(os.listdir(folder))
        except OSError:
            self[folder] = ()
        return self[folder]

    def has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        # Some file systems take names in another case.
        return name in self[folder] or os.path.isfile(path)


def _sample(items: Sequence, deep: bool, most: int | None, most_if_quick: int) -> Iterator[Any]:
    """All items, or some of them, evenly spaced, until the time is over unless ``deep``."""
    if most is None:
        most = len(items) if deep else most_if_quick
    chosen = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    if deep:
        with progress_bar('Decoding', len(chosen), 'file') as bar:
            for index in chosen:
                yield items[index]
                bar.update()
        return
    # In an order that covers the whole range early.
    end = time.monotonic() + MAX_SECONDS
    for index in np.concatenate([chosen[start::8] for start in range(8)]):
        yield items[index]
        if time.monotonic() > end:
            return


def _check_image(
    path: str, declared: tuple[float, float] | None, data: ImageData, deep: bool, report: Report
) -> None:
    """Reads an image's header, or all of it, and compares its size with the annotations."""
    # Others may read what Pillow does not, and give it another size.
    is_known = data.loader is None and data.backend != 'tifffile'
    tell = report.error if data.loader is None else report.note
    try:
        image = read_image(path, deep)
    except ImageTooLargeError as error:
        said = '' if declared is None else ' Its annotations say {}x{}.'.format(*declared)
        report.error(path, '{error}{said}', error=error, said=said)
        return
    except ValueError as error:
        if is_known or why_no_file(path):
            report.error(path, '{error}', error=error)
        else:
            reader = data.loader or f'imdecode_backend={data.backend!r}'
            report.note(path, '{error} {reader} may read it.', error=error, reader=reader)
        return
    width, height = image.loaded_size(data.turns)
    values = dict(size=f'{width}x{height}', orientation=image.orientation, longest=data.longest)
    if declared is not None and (width, height) != declared:
        values['declared'] = f'{declared[0]}x{declared[1]}'
        if (width, height) != image.size == declared:
            tell(
                path,
                'its EXIF orientation ({orientation}) turns it to {size} pixels (width x height), '
                'and its annotations are for {declared}, so that boxes would be misplaced. Set '
                "color_type='color_ignore_orientation' of LoadImageFromFile, or store the image "
                'upright.',
                **values,
            )
        else:
            problem = 'has {size} pixels (width x height), its annotations say {declared}.'
            tell(path, problem, **values)
    elif data.turns and image.orientation != 1:
        report.note(
            path,
            'is turned by its EXIF orientation ({orientation}) when it is loaded; annotations '
            'have to be those of the turned image.',
            **values,
        )
    short_side, long_side = sorted((width, height))
    if data.longest is not None and short_side * data.longest / long_side < 0.5:
        tell(
            path,
            '{size} pixels (width x height), resized to a longer side of {longest}, would have a '
            'side of 0 pixels.',
            **values,
        )
    elif short_side < max(data.min_size, 8):
        report.note(path, 'has {size} pixels (width x height), which is tiny.', **values)
    if image.is_animated:
        report.note(path, 'is animated; its first frame is used.')
    if problem := unfit_pixels(image, data.backend):
        tell(path, problem)
    elif how := '16-bit gray' if image.mode.startswith('I') else CONVERTED.get(image.mode):
        report.note(path, f'is {how}; it is converted to three channels of 8 bits.')


def _check_label_map(
    path: str, label_map: str, data: ImageData, report: Report, counts: ClassCounts | None
) -> None:
    """Decodes a label map, compares it with its image and the classes, and counts pixels."""
    tell = report.error if data.label_loader is None else report.note
    try:
        found = read_image(label_map, deep=True)
    except ValueError as error:
        tell(label_map, '{error}', error=error)
        return
    if found.pixels.ndim != 2:
        tell(
            label_map,
            'expected one channel of labels, got {channels} (mode {mode}). Colours have to become '
            'the numbers of classes: mmfocal new_config converts them.',
            channels=found.pixels.shape[2],
            mode=found.mode,
        )
        return
    if found.mode == 'P' and data.label_backend == 'cv2':
        tell(
            label_map,
            "has a palette, and imdecode_backend='cv2' gives its colours. Set it to 'pillow' in "
            'LoadAnnotations, which gives the numbers of classes.',
        )
    try:
        size = read_image(path, deep=False).loaded_size(data.turns)
    except ValueError:
        size = found.size  # reported with the images
    if found.size != size:
        tell(
            label_map,
            'has {found} pixels (width x height), its image {size}.',
            found='{}x{}'.format(*found.size),
            size='{}x{}'.format(*size),
        )
    labels, pixels = _count_labels(found.pixels)
    is_ignored = np.isin(labels, list(data.ignored))
    if data.num_labels is not None:
        outside = labels[((labels >= data.num_labels) | (labels < data.first_label)) & ~is_ignored]
        if len(outside):
            tell(
                label_map,
                'holds {outside}; labels are from {first} to {last}{ignored}.{hint}',
                outside=some(outside),
                first=data.first_label,
                last=data.num_labels - 1,
                ignored=''.join(f', or {label}' for label in sorted(data.ignored)),
                hint=_hint(labels[~is_ignored], data),
            )
    if counts is not None:
        counts.values.update(labels.tolist())
        counts.add_label_map(np.where(is_ignored, -1, labels - data.first_label), pixels)


def _hint(labels: np.ndarray, data: ImageData) -> str:
    """What a label map with labels that are no classes may need."""
    if data.first_label == 0 and labels.min() >= 0 and labels.max() == data.num_labels:
        return ' If its labels count from 1, and 0 is no class, set reduce_zero_label=True.'
    return ' Other numbers have to become those of classes: mmfocal new_config converts them.'


def _count_labels(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a label map, int64 ``(L,)``, and their numbers of pixels, int64 ``(L,)``."""
    if values.dtype == np.uint8:  # np.unique would sort all pixels
        pixels = np.bincount(values.ravel(), minlength=256)
        return np.flatnonzero(pixels), pixels[pixels > 0]
    labels, pixels = np.unique(values, return_counts=True)
    return labels.astype(np.int64), pixels
