"""The folder of results: where what goes."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from mmfocal.utils.errors import UserError

from .inputs import WRITABLE, LoadedImage


class Layout:
    """Paths of results by the names of their inputs.

    Args:
        root: the folder.

    Attributes:
        images: folder of drawn images.
        videos: folder of drawn videos.
        label_maps: folder of the label maps of images and frames.
        predictions: file of predictions other than label maps.
        classes: file that says what the numbers in label maps mean.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = root / 'pictures'
        self.videos = root / 'videos'
        self.label_maps = root / 'label_maps'
        self.predictions = root / 'predictions.json'
        self.classes = root / 'classes.json'

    def image(self, image: LoadedImage) -> Path:
        """A drawn image: its own name, with ``.png`` appended if need be."""
        suffix = PurePosixPath(image.name).suffix.lower()
        return self.images / (image.name + ('' if suffix in WRITABLE else '.png'))

    def video(self, image: LoadedImage) -> Path:
        """The drawn video of a frame."""
        return self.videos / f'{image.source.stem}.mp4'

    def label_map(self, image: LoadedImage) -> Path:
        """The label map of an image, or of a frame, in a folder of its video."""
        name = image.source.stem if image.frame is None else image.name
        return self.label_maps / f'{name}.png'

    def check(self, force: bool) -> None:
        """Refuses a folder with earlier results unless ``force``, and what is no folder.

        Nothing is ever deleted: files of equal names are replaced, and others stay.

        Raises:
            UserError: what is there, and what to do.
        """
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f'{self.root} is a file. Choose another name for the folder.')
        results = (self.images, self.videos, self.label_maps, self.predictions, self.classes)
        earlier = [path.name for path in results if path.exists()]
        if earlier and not force:
            raise UserError(
                f'{self.root} holds earlier results ({", ".join(earlier)}). Choose another '
                'folder, or add --force to overwrite them.'
            )
