"""The folder of results: where what goes. Without PyTorch, so that errors come at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmfocal.utils.errors import UserError

from .inputs import WRITABLE, Picture


@dataclass(frozen=True)
class Layout:
    """Paths of results by the names of their inputs.

    Args:
        root: the folder.
    """

    root: Path

    @property
    def pictures(self) -> Path:
        """Drawn pictures."""
        return self.root / 'pictures'

    @property
    def videos(self) -> Path:
        """Drawn videos."""
        return self.root / 'videos'

    @property
    def label_maps(self) -> Path:
        """Label maps of pictures and frames."""
        return self.root / 'label_maps'

    @property
    def predictions(self) -> Path:
        """Predictions but for label maps."""
        return self.root / 'predictions.json'

    @property
    def classes(self) -> Path:
        """What the numbers in label maps mean."""
        return self.root / 'classes.json'

    def picture(self, picture: Picture) -> Path:
        """A drawn picture: its own name, with ``.png`` behind it if need be."""
        suffix = PurePosixPath(picture.name).suffix.lower()
        return self.pictures / (picture.name + ('' if suffix in WRITABLE else '.png'))

    def video(self, picture: Picture) -> Path:
        """The drawn video of a frame."""
        return self.videos / f'{picture.source.stem}.mp4'

    def label_map(self, picture: Picture) -> Path:
        """The label map of a picture or a frame, in a folder of its video."""
        name = picture.source.stem if picture.frame is None else picture.name
        return self.label_maps / f'{name}.png'

    def check(self, force: bool) -> None:
        """Refuses a folder with earlier results unless ``force``, and what is no folder.

        Nothing is ever deleted: files of equal names are replaced, and others stay.

        Raises:
            UserError: what is there, and what to do.
        """
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f'{self.root} is a file. Choose another name for the folder.')
        results = (self.pictures, self.videos, self.label_maps, self.predictions, self.classes)
        earlier = [path.name for path in results if path.exists()]
        if earlier and not force:
            raise UserError(
                f'{self.root} holds earlier results ({", ".join(earlier)}). Choose another '
                'folder, or add --force to overwrite them.'
            )
