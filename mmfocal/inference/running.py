"""What ``mmfocal infer`` does: predicts for all inputs and writes as it goes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.logging import MMLogger

from mmfocal.utils.progress import ProgressBar, log_above_bars, progress_bar

from .inferencer import Inferencer
from .inputs import Input, Skipped, count_images
from .layout import Layout
from .writers import Videos, write_image

SECONDS_BETWEEN_LINES = 60.0  # of progress, where there is no terminal


@dataclass
class Outcome:
    """What became of the inputs.

    Attributes:
        predicted: images and frames.
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
    draw: bool = True,
    labels: bool = True,
) -> Outcome:
    """Predicts, draws and writes. What was written stays if it is interrupted.

    Args:
        model: with its task.
        inputs: as :func:`~mmfocal.inference.find_inputs` gives them.
        layout: of the folder of results.
        batch_size: images that are predicted together.
        every: of the frames of videos and cameras, every how many-th is taken.
        draw: whether images and videos are drawn.
        labels: whether names of classes are written on them.

    Returns:
        The sum of it. Ctrl-C is how cameras are stopped, and ends with it too if there are any.
    """
    outcome = Outcome()
    info = dict(config=model.name, checkpoint=model.checkpoint, score_thr=model.task.score_thr)
    records = model.task.records(layout, info)
    videos = Videos(layout, every)
    has_camera = any(given.kind == 'camera' for given in inputs)
    stop = suppress(KeyboardInterrupt) if has_camera else nullcontext()
    progress = _progress(outcome, count_images(inputs, every))
    # Each is completed even if the other cannot be.
    with closing(records), closing(videos), stop, progress as count:
        options = dict(batch_size=batch_size, every=every, skipped=outcome.skipped)
        for prediction in model(inputs, **options):
            image, sample = prediction
            outcome.things += records.add(image, sample)
            if draw and image.frame is None:
                write_image(layout.image(image), model.draw(prediction, labels))
                outcome.written['Images'] = layout.images
            elif draw:
                videos.add(image, model.draw(prediction, labels))
                outcome.written['Videos'] = layout.videos
            outcome.predicted += 1
            count()
    outcome.written[records.title] = records.path
    return outcome


@contextmanager
def _progress(outcome: Outcome, total: int | None) -> Iterator[Callable[[], object]]:
    """Takes the time, and gives what counts an image: on a bar, or in a line each minute."""
    began = told = time.monotonic()

    def tell() -> None:
        nonlocal told
        if (now := time.monotonic()) - told >= SECONDS_BETWEEN_LINES:
            told, counts = now, (outcome.predicted, total, now - began)
            line = ProgressBar.format_meter(*counts, ncols=0, prefix='Predicting', unit='image')
            print(line, file=sys.stderr, flush=True)

    try:
        with progress_bar('Predicting', total, 'image') as bar:
            if bar.disable:
                yield tell
            else:
                with log_above_bars(MMLogger.get_current_instance()):
                    yield bar.update
    finally:
        outcome.seconds = time.monotonic() - began
