"""What predictions are made for: found by path, folder or pattern, and read one by one.

Images are decoded by the config's own loader, as in training and evaluation, so upright by their
EXIF orientation, and by Pillow before that: OpenCV gives an image for half a file too.
"""

from __future__ import annotations

import glob
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePath
from typing import Literal, NamedTuple

import cv2
import numpy as np

from mmfocal.datasets.checks import check_size, leaves_folder, read_image, unfit_pixels
from mmfocal.utils.errors import UserError
from mmfocal.utils.files import IMAGE_SUFFIXES, why_no_file

VIDEOS = frozenset(('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv'))

# Ways to write images that OpenCV has everywhere; others become PNG.
WRITABLE = frozenset(('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff'))

# Frames that containers count and do not have, as a share of all, in files that are whole.
MAX_MISSING_FRAMES = 0.05
# What text that only names other files begins with. FFmpeg would read those, again and again.
PLAYLISTS = (b'#EXTM3U', b'ffconcat', b'<')
# Frames in a second: of cameras, and of videos that say nothing or more than the other.
RATE, MAX_RATE = 25.0, 1000.0

Loader = Callable[[dict], dict]


class UnreadableError(UserError):
    """An image or a video cannot be read; the message names it and the reason."""


class Skipped(NamedTuple):
    """An input, or the rest of one, without predictions, and why: part of a sentence."""

    path: str
    reason: str


@dataclass(frozen=True)
class Input:
    """An image, a video or a camera.

    Attributes:
        path: of the file, as it was given; of a camera its number.
        name: of what is written for it: the path below the folder or pattern that it was found
            by, with ``/``; with a number if another input has that, whatever its case, since some
            file systems do not tell cases apart.
        stem: ``name`` without a suffix, for what has another one; also unlike those of others.
        kind: what it is.
        array: of an image that is in memory.
    """

    path: str
    name: str
    stem: str
    kind: Literal['image', 'video', 'camera']
    array: np.ndarray | None = None


@dataclass(frozen=True)
class LoadedImage:
    """An image, or a frame, as it was read.

    Attributes:
        source: where it comes from.
        pixels: as the config's loader gives them: ``(H, W, 3)`` of uint8, BGR, unless the config
            says otherwise.
        frame: number in its video, from 0; None for an image.
        rate: frames in a second of that video; None for an image.
        seconds: since the first frame of its camera; None elsewhere.
    """

    source: Input
    pixels: np.ndarray
    frame: int | None = None
    rate: float | None = None
    seconds: float | None = None

    @property
    def name(self) -> str:
        """Name of its input; of a frame, a file below that."""
        return self.source.name if self.frame is None else f'{self.source.name}/{self.frame:06}'


# --- Finding ----------------------------------------------------------------------------------


def find_inputs(
    inputs: str | os.PathLike | int | np.ndarray | Iterable,
    exclude: str | os.PathLike | None = None,
) -> list[Input]:
    """Lists what one or several inputs mean, in their order; below folders sorted by name.

    Args:
        inputs: images and videos; folders, which are searched at all depths; patterns such as
            ``'photos/**/*.jpg'``; numbers of cameras, as int or text; images in memory,
            ``(H, W, 3)`` of uint8, BGR. A file that is meant twice is taken once. Hidden files
            and folders, and other kinds of files, are taken only if they are named themselves.
        exclude: folder that is not searched, such as that of the results.

    Raises:
        UserError: something is not there, or there is no image or video in it.
    """
    if isinstance(inputs, (str, os.PathLike, int, np.ndarray)):
        inputs = [inputs]
    excluded = None if exclude is None else os.path.realpath(exclude)
    found: list[Input] = []
    seen: set[str] = set()
    taken: dict[tuple[str, str], set[str]] = defaultdict(set)

    def add(path: str, name: str, kind: str, array: np.ndarray | None = None) -> None:
        identity = os.path.realpath(path) if array is None and kind != 'camera' else path
        if identity not in seen:
            seen.add(identity)
            name = PurePath(name).as_posix()
            name = PurePath(name).name if leaves_folder(name) else name
            stem, suffix = os.path.splitext(name)
            # Drawn images that OpenCV cannot write as they are get another suffix.
            more = '' if suffix.lower() in WRITABLE or kind != 'image' else '.png'
            name = _free(stem, suffix, more, taken[kind, 'name'])
            stem = _free(stem, '', '', taken[kind, 'stem'])
            found.append(Input(path, name, stem, kind, array))

    for number, given in enumerate(inputs):
        if isinstance(given, np.ndarray):
            _check_array(given)
            add(f'image {number} in memory', f'{number:06}.png', 'image', given)
        elif isinstance(given, int) or str(given).isdecimal():
            add(str(int(given)), f'camera-{int(given)}', 'camera')
        else:
            for path, name in _files(os.fspath(given), excluded):
                add(path, name, 'video' if _suffix(path) in VIDEOS else 'image')
    return found


def _check_array(array: np.ndarray) -> None:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise UserError(
            'Expected an image of shape (height, width, 3) and dtype uint8, in BGR as cv2.imread '
            f'gives it; got shape {array.shape} and dtype {array.dtype}.'
        )


def _files(given: str, excluded: str | None) -> list[tuple[str, str]]:
    """Paths and their names."""
    path = os.path.expanduser(given)
    if os.path.isdir(path):
        if found := [(file, os.path.relpath(file, path)) for file in _walk(path, excluded)]:
            return found
        raise UserError(f'{given}: there is no image or video in this folder. {_suffixes()}')
    if os.path.exists(path):
        return [(path, os.path.basename(path))]
    if not glob.has_magic(path):
        raise UserError(
            f'{given}: there is no such file or folder (looked for {os.path.abspath(path)}).'
        )
    base = _fixed_part(path)
    found = []
    for match in sorted(glob.glob(path, recursive=True)):
        files = _walk(match, excluded) if os.path.isdir(match) else [match]
        found += [
            (file, os.path.relpath(file, base))
            for file in files
            if _is_wanted(os.path.basename(file)) and not _is_below(file, excluded)
        ]
    if not found:
        raise UserError(f'{given}: no image or video has such a name. {_suffixes()}')
    return found


def _walk(folder: str, excluded: str | None) -> Iterator[str]:
    """Images and videos below a folder, sorted; each folder once, whatever links to it."""

    def fail(error: OSError) -> None:
        raise UserError(f'{error.filename} cannot be searched: {error.strerror}.')

    visited = set()
    for root, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(root)
        if real in visited or _is_below(real, excluded):
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        yield from (os.path.join(root, name) for name in sorted(files) if _is_wanted(name))


def _is_below(path: str, folder: str | None) -> bool:
    return folder is not None and PurePath(os.path.realpath(path)).is_relative_to(folder)


def _is_wanted(name: str) -> bool:
    return not name.startswith('.') and _suffix(name) in IMAGE_SUFFIXES | VIDEOS


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _suffixes() -> str:
    return f'Looked for names that end in {", ".join(sorted(IMAGE_SUFFIXES | VIDEOS))}.'


def _fixed_part(pattern: str) -> str:
    """The folder above the first part of a pattern that has wildcards."""
    fixed = []
    for part in Path(pattern).parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return os.path.join('', *fixed) or '.'


def _free(stem: str, suffix: str, more: str, taken: set[str]) -> str:
    """``stem + suffix``, with a number between both if ``taken`` has it with ``more`` appended."""
    for number in count(1):
        candidate = f'{stem}{"" if number == 1 else f"-{number}"}{suffix}'
        if (key := f'{candidate}{more}'.casefold()) not in taken:
            taken.add(key)
            return candidate
    raise AssertionError('unreachable')


# --- Reading ----------------------------------------------------------------------------------


def count_images(inputs: Sequence[Input], every: int = 1) -> int | None:
    """How many images and frames :func:`read` will give at most; None with cameras among them.

    Videos tell it, more or less exactly.
    """
    if any(given.kind == 'camera' for given in inputs):
        return None
    return sum(
        -(-count_frames(given.path) // every) if given.kind == 'video' else 1 for given in inputs
    )


def count_frames(path: str | os.PathLike) -> int:
    """How many frames a video says that it has; 0 if it cannot be opened."""
    if _why_no_video(path):
        return 0
    capture = cv2.VideoCapture(os.fspath(path))
    declared = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    capture.release()
    return max(0, int(declared))


def read(
    inputs: Iterable[Input], loader: Loader, every: int = 1
) -> Iterator[LoadedImage | Skipped]:
    """Reads all inputs.

    Args:
        inputs: as :func:`find_inputs` gives them.
        loader: mmcv's ``LoadImageFromFile``, built as the config says.
        every: of the frames of a video or a camera, every how many-th is wanted.

    Yields:
        Images and frames; and for each input that cannot be read, or not to its end, why.
    """
    for given in inputs:
        try:
            if given.kind != 'image':
                yield from _frames(given, loader, every)
            elif given.array is not None:
                yield LoadedImage(given, _as_loaded(given.array, loader))
            else:
                yield LoadedImage(given, load_image(given.path, loader))
        except ValueError as error:
            yield Skipped(given.path, str(error))


def load_image(path: str, loader: Loader) -> np.ndarray:
    """The image in a file.

    Raises:
        ValueError: what is wrong with it, as part of a sentence.
    """
    image = read_image(path, deep=True)
    if problem := unfit_pixels(image, loader.imdecode_backend):
        raise ValueError(problem)
    try:
        return loader(dict(img_path=path))['img']
    except Exception as error:  # decoders of mmcv raise anything
        raise ValueError(
            f'cannot be decoded by the config, whose loader uses {loader.imdecode_backend!r} '
            f'({type(error).__name__}: {" ".join(str(error).split())}).'
        ) from error


def _as_loaded(image: np.ndarray, loader: Loader) -> np.ndarray:
    """Pixels as if they had been in a file that ``loader`` reads."""
    if loader.color_type.startswith('grayscale'):
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return image.astype(np.float32) if loader.to_float32 else image


def _address(given: Input) -> str | int:
    return int(given.path) if given.kind == 'camera' else given.path


def _frames(given: Input, loader: Loader, every: int) -> Iterator[LoadedImage]:
    """Frames of a video or a camera.

    Raises:
        ValueError: it cannot be opened, or it ends too early.
    """
    if given.kind == 'video' and (problem := _why_no_video(given.path)):
        raise ValueError(problem)
    capture = cv2.VideoCapture(_address(given))
    try:
        if not capture.isOpened():
            raise ValueError(_why_unopened(given))
        check_size(capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        # A file that grows, or a stream, declares nothing that makes sense.
        declared = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        rate = capture.get(cv2.CAP_PROP_FPS) if given.kind == 'video' else RATE
        rate = rate if 0 < rate <= MAX_RATE else RATE
        began, number = None, 0
        while capture.grab():
            if number % every == 0:
                now = time.monotonic()
                began = now if began is None else began
                readable, frame = capture.retrieve()
                if not readable:
                    break
                seconds = now - began if given.kind == 'camera' else None
                yield LoadedImage(given, _as_loaded(frame, loader), number, rate, seconds)
            number += 1
    finally:
        capture.release()
    if given.kind == 'camera':
        raise ValueError(f'gave no more images after frame {number}.')
    if number == 0 or number < (1 - MAX_MISSING_FRAMES) * declared:
        raise ValueError(f'is cut off or damaged: {number} of its {declared} frames can be read.')


def _why_unopened(given: Input) -> str:
    if given.kind == 'camera':
        return 'is no camera that can be opened.'
    return (
        'is no video that OpenCV can open; it may be cut off or of a kind that it does not know.'
    )


def _why_no_video(path: str | os.PathLike) -> str | None:
    """What keeps OpenCV from opening a video without waiting for anything else."""
    if problem := why_no_file(path):
        return problem
    try:
        with open(path, 'rb') as file:
            start = file.read(64)
    except OSError as error:
        return f'cannot be read: {error.strerror}.'
    if start.lstrip().startswith(PLAYLISTS):
        return 'is a list of other files, no video. Give the videos that it names.'
    return None
