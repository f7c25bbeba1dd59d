"""What predictions become on the disk. Files are there as a whole or not at all."""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from mmengine.structures import BaseDataElement

from mmfocal.utils.errors import UserError
from mmfocal.utils.files import check_target, written_atomically
from mmfocal.visualization.predictions import Colour

from .inputs import Input, LoadedImage, count_frames
from .layout import Layout

SECONDS_BETWEEN_SAVES = 30.0
MAX_SHARE_OF_SAVING = 0.05  # of the time


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes an image as its suffix says.

    Args:
        path: of a file that OpenCV can write.
        image: ``(H, W)`` or ``(H, W, 3)`` of uint8, BGR.
    """
    encoded, content = cv2.imencode(path.suffix.lower(), image)
    if not encoded:
        raise UserError(f'{path}: OpenCV cannot write {image.shape[1]}x{image.shape[0]} pixels.')
    with written_atomically(path) as file:
        file.write(content)


class Records(ABC):
    """Predictions, without images."""

    title: ClassVar[str]
    path: Path  # where they are

    @abstractmethod
    def add(self, image: LoadedImage, sample: BaseDataElement) -> int:
        """Adds what was predicted for an image; returns how many things that is."""

    def close(self) -> None:  # noqa: B027  not all have something left to do
        """Writes what is not yet written."""


class CocoFile(Records):
    """Predictions in one JSON file in COCO's form.

    ``images``, ``categories`` and ``annotations`` are those of COCO, with a ``score`` in each
    annotation; ids count from 1, those of categories in the order of the classes. It is saved
    every half minute, and less often if that takes long.

    Args:
        path: of the file.
        info: what goes into it as ``info``.
        name: gives that of a class index.
        classes: how many there are; more if more are predicted.
        annotations: gives those of an image, without ids.
    """

    title = 'Predictions'

    def __init__(
        self,
        path: Path,
        info: dict[str, Any],
        name: Callable[[int], str],
        classes: int,
        annotations: Callable[[LoadedImage, BaseDataElement], list[dict[str, Any]]],
    ) -> None:
        self.path = path
        self._info = info
        self._name, self._classes = name, classes
        self._annotations_of = annotations
        # As text, which takes a fraction of the memory of dicts.
        self._images: list[str] = []
        self._annotations: list[str] = []
        self._pause = SECONDS_BETWEEN_SAVES
        self._saved = time.monotonic()

    def add(self, image: LoadedImage, sample: BaseDataElement) -> int:
        height, width = image.pixels.shape[:2]
        image_id = len(self._images) + 1
        info = dict(id=image_id, file_name=image.name, width=width, height=height)
        info['source'] = image.source.path
        if image.frame is not None:
            info['frame'] = image.frame
        annotations = self._annotations_of(image, sample)
        for annotation in annotations:
            annotation_id = len(self._annotations) + 1
            entry = dict(id=annotation_id, image_id=image_id, **annotation)
            self._annotations.append(json.dumps(entry))
            self._classes = max(self._classes, annotation['category_id'])
        self._images.append(json.dumps(info))
        if time.monotonic() - self._saved > self._pause:
            self.save()
        return len(annotations)

    def save(self) -> None:
        """Writes all that was added."""
        began = time.monotonic()
        categories = [dict(id=i + 1, name=self._name(i)) for i in range(self._classes)]
        head = json.dumps(dict(info=self._info, categories=categories))
        with written_atomically(self.path) as file:
            file.write(head[:-1].encode())
            for key, entries in (('images', self._images), ('annotations', self._annotations)):
                file.write(f',\n"{key}": [\n'.encode())
                for i, entry in enumerate(entries):
                    file.write((',\n' if i else '').encode() + entry.encode())
                file.write(b'\n]')
            file.write(b'}\n')
        self._saved = time.monotonic()
        self._pause = max(SECONDS_BETWEEN_SAVES, (self._saved - began) / MAX_SHARE_OF_SAVING)

    close = save


class LabelMaps(Records):
    """Label maps as PNG files of one byte a pixel, the class index, and the classes as JSON.

    Args:
        layout: of the folder of results.
        info: what goes into ``classes.json`` as ``info``.
        classes: names.
        palette: colours.
        label_map: gives that of a prediction, ``(H, W)`` of uint8.
    """

    title = 'Label maps'
    UNLABELLED: ClassVar[int] = 255  # as in mmseg's data; no model predicts it

    def __init__(
        self,
        layout: Layout,
        info: dict[str, Any],
        classes: Sequence[str],
        palette: Sequence[Colour],
        label_map: Callable[[BaseDataElement], np.ndarray],
    ) -> None:
        self.path = layout.label_maps
        self._path_of = layout.label_map
        self._label_map = label_map
        content = dict(
            info=info,
            classes=[
                dict(index=i, name=name, colour=colour)
                for i, (name, colour) in enumerate(zip(classes, palette, strict=True))
            ],
            unlabelled=self.UNLABELLED,
        )
        with written_atomically(layout.classes) as file:
            file.write(json.dumps(content, indent=1).encode() + b'\n')

    def add(self, image: LoadedImage, sample: BaseDataElement) -> int:
        write_image(self._path_of(image), self._label_map(sample))
        return 1


class Videos:
    """Drawn frames as videos, one after the other.

    Args:
        layout: of the folder of results.
        every: of their frames, every how many-th comes.
    """

    def __init__(self, layout: Layout, every: int) -> None:
        self.layout = layout
        self.every = every
        self._source: Input | None = None
        self._writer: cv2.VideoWriter | None = None

    def add(self, image: LoadedImage, drawn: np.ndarray) -> None:
        """Adds a frame to the video of its source, which ends the video before it."""
        if image.source is not self._source:
            self.close()
            self._open(image, drawn)
        if image.seconds is None:
            copies = 1
        else:  # at the speed at which it happened, however long predictions take
            copies = round(image.seconds * self._rate) + 1 - self._written
        if drawn.shape != self._shape:
            drawn = cv2.resize(drawn, self._shape[1::-1])
        for _ in range(copies):
            self._writer.write(drawn)
            self._written += 1

    def close(self) -> None:
        """Completes the video, which takes its name."""
        if self._writer is None:
            return
        self._writer.release()
        self._writer = self._source = None
        if count_frames(self._temporary) < self._written:  # of which OpenCV says nothing
            self._temporary.unlink(missing_ok=True)
            raise UserError(
                f'{self._path.absolute()} could not be written whole. Make room, or choose '
                'another folder.'
            )
        os.replace(self._temporary, self._path)

    def _open(self, image: LoadedImage, drawn: np.ndarray) -> None:
        source = image.source
        self._rate = image.rate / (self.every if source.kind == 'video' else 1)
        self._path = self.layout.video(image)
        self._temporary = self._path.with_name(f'.{self._path.name}.part.mp4')
        for path in (self._path, self._temporary):
            check_target(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._shape, self._written = drawn.shape, 0
        codec = cv2.VideoWriter_fourcc(*'mp4v')
        writer = cv2.VideoWriter(str(self._temporary), codec, self._rate, drawn.shape[1::-1])
        if not writer.isOpened():
            raise UserError(
                f'{self._path.absolute()}: OpenCV cannot write a video there. Make room, choose '
                'another folder, or leave videos out with --no-pictures.'
            )
        self._writer, self._source = writer, source
