"""What tools/infer.py does: predicts for all inputs and writes as it goes."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from mmfocal.utils.progress import Progress

from .inferencer import Inferencer
from .inputs import Input, Skipped, count_pictures
from .layout import Layout
from .writers import Videos, write_picture


@dataclass
class Outcome:
    """What became of the inputs.

    Attributes:
        predicted: pictures and frames.
        things: predicted for them: objects, label maps or classes.
        seconds: that it took.
        skipped: what could not be read, and why.
        written: files and folders by what is in them.
    """

    predicted: int = 0
    things: int = 0
    seconds: float = 0.0
    skipped: list[Skipped] = field(default_factory=list)
    written: dict[str, Path] = field(default_factory=dict)


def run(
    model: Inferencer,
    inputs: list[Input],
    layout: Layout,
    *,
    batch_size: int = 1,
    every: int = 1,
    pictures: bool = True,
    labels: bool = True,
) -> Outcome:
    """Predicts, draws and writes. What was written stays if it is interrupted.

    Args:
        model: with its task.
        inputs: as :func:`~mmfocal.inference.find_inputs` gives them.
        layout: of the folder of results.
        batch_size: pictures that are predicted together.
        every: of the frames of videos and cameras, every how many-th is taken.
        pictures: whether pictures and videos are drawn.
        labels: whether names of classes are written on them.

    Returns:
        The sum of it. Ctrl-C is how cameras are stopped, and ends with it too if there are any.
    """
    outcome = Outcome()
    info = dict(config=model.name, checkpoint=model.checkpoint, score_thr=model.task.score_thr)
    records = model.task.records(layout, info)
    videos = Videos(layout, every)
    progress = Progress(count_pictures(inputs, every))
    # Each is completed even if the other cannot be.
    with closing(records), closing(videos):
        try:
            with progress:
                for prediction in model(
                    inputs, batch_size=batch_size, every=every, skipped=outcome.skipped
                ):
                    picture, sample = prediction
                    outcome.things += records.add(picture, sample)
                    if pictures and picture.frame is None:
                        write_picture(layout.picture(picture), model.draw(prediction, labels))
                        outcome.written['Pictures'] = layout.pictures
                    elif pictures:
                        videos.add(picture, model.draw(prediction, labels))
                        outcome.written['Videos'] = layout.videos
                    outcome.predicted += 1
                    progress.advance()
        except KeyboardInterrupt:
            if all(given.kind != 'camera' for given in inputs):
                raise
    outcome.seconds = progress.seconds
    outcome.written[records.title] = records.path
    return outcome
