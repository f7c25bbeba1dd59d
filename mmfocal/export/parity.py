"""Parity of an exported file and the model that it came from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmfocal.datasets.checks import why_unreadable
from mmfocal.utils.errors import UserError

from .detectors import DetectorGraph
from .graphs import Graph
from .masks import paste_masks

# Batch, height and width of images: squares and not, multiples of 32 and not, primes, single
# windows, less than a patch.
SIZES = (
    (1, 224, 224),
    (1, 256, 320),
    (1, 320, 256),
    (1, 448, 448),
    (1, 480, 640),
    (1, 131, 197),
    (1, 333, 500),
    (1, 65, 33),
    (1, 32, 32),
    (1, 97, 480),
    (1, 401, 89),
    (1, 28, 28),
    (1, 7, 9),
    (1, 1, 1),
    (2, 224, 224),
    (2, 113, 226),
    (2, 64, 31),
    (3, 127, 127),
    (3, 96, 160),
    (3, 57, 61),
)
# What rounding of float32 explains, with room. Maps and logits: relative to the largest value.
# Detections: boxes in pixels, probabilities, and the part of pixels of all masks of an image.
TOLERANCES = {'maps': 1e-4, 'boxes': 0.05, 'scores': 1e-4, 'masks': 0.01}
# The part of detections that may be on one side only, because a score or an overlap is at a
# threshold, or two scores are the same.
UNMATCHED = 0.01
# Detections of both sides are the same up to here: pixels, part of the longer side, probability.
SAME_BOX, SAME_PART, SAME_SCORE = 1.0, 0.1, 0.01


@dataclass
class Parity:
    """Differences of outputs over images.

    Attributes:
        rows: of each image ``(B, H, W)``, the differences by name.
        detections: of both sides together, None for what is no detector.
        unmatched: how many of them only one side has.
    """

    rows: list[tuple[tuple[int, int, int], dict[str, float]]] = field(default_factory=list)
    detections: int | None = None
    unmatched: int = 0

    @property
    def worst(self) -> dict[str, float]:
        """The largest difference of each name over all images."""
        names = dict.fromkeys(name for _, row in self.rows for name in row)
        return {name: max(row.get(name, 0.0) for _, row in self.rows) for name in names}

    def beyond(self) -> list[str]:
        """What is wrong: names whose difference is beyond its tolerance, or nothing compared."""
        wrong = [
            f'{name}: {worst:.1e} is more than {TOLERANCES.get(name, TOLERANCES["maps"]):.0e}'
            for name, worst in self.worst.items()
            if not worst <= TOLERANCES.get(name, TOLERANCES['maps'])
        ]
        if self.detections == 0:
            wrong.append('nothing was detected in any image; give a --picture with objects')
        elif self.detections and self.unmatched > UNMATCHED * self.detections:
            wrong.append(f'{self.unmatched} of {self.detections} detections have no counterpart')
        return wrong

    def lines(self) -> Iterator[str]:
        """A Markdown table of all images, and the worst of each column."""
        names = list(self.worst)
        yield '| images | ' + ' | '.join(names) + ' |'
        yield '|---' * (len(names) + 1) + '|'
        for (batch, height, width), row in [*self.rows, ((0, 0, 0), self.worst)]:
            label = f'{batch} x {height}x{width}' if batch else 'worst'
            yield f'| {label} | ' + ' | '.join(f'{row.get(n, 0.0):.1e}' for n in names) + ' |'


def compare(
    graph: Graph,
    model: nn.Module,
    run: Callable[[Tensor], Sequence[np.ndarray]],
    sizes: Sequence[tuple[int, int, int]] = SIZES,
    image_of: Callable[[int, int, int], Tensor] | None = None,
) -> Parity:
    """Compares an exported graph with the model that it came from.

    Args:
        graph: that was exported.
        model: the model or backbone, in evaluation mode.
        run: from an image to the outputs of the exported graph.
        sizes: batch, height and width of the images.
        image_of: makes them, see :func:`resized_image`; drawn by the graph itself by default.

    Raises:
        ValueError: an output has another shape than the model's.
    """
    parity = Parity(detections=0 if isinstance(graph, DetectorGraph) else None)
    device = next(model.parameters()).device
    for size in sizes:
        image = (image_of or graph.image)(*size)
        with torch.no_grad():
            expected = [each.cpu() for each in graph.expected(model, image.to(device))]
        got = [np.asarray(output) for output in run(image)]
        if isinstance(graph, DetectorGraph):
            right = [each.numpy() for each in expected]
            row, matched = _detections(got, right, size)
            parity.detections += len(got[0]) + len(right[0])
            parity.unmatched += len(got[0]) + len(right[0]) - 2 * matched
        else:
            pairs = zip(graph.output_names, got, expected, strict=True)
            row = {name: relative_difference(*pair) for name, *pair in pairs}
        parity.rows.append((size, row))
    return parity


def resized_image(path: str | os.PathLike, graph: Graph) -> Callable[[int, int, int], Tensor]:
    """A function from batch, height and width to an image of that size, and its mirror images.

    Args:
        path: of the image.
        graph: whose input it becomes.

    Raises:
        UserError: it cannot be read.
    """
    import cv2

    if reason := why_unreadable(os.fspath(path)):
        raise UserError(f'{path} {reason}')
    pixels = np.ascontiguousarray(cv2.imread(os.fspath(path))[:, :, ::-1])

    def image(batch: int, height: int, width: int) -> Tensor:
        resized = cv2.resize(pixels, (width, height))
        upright = torch.from_numpy(resized).permute(2, 0, 1)
        flips = (upright, upright.flip(2), upright.flip(1))
        images = torch.stack([flips[number % 3] for number in range(batch)])
        return images if graph.dtype == torch.uint8 else (images.float() - 127.5) / 60

    return image


def relative_difference(got: np.ndarray, expected: Tensor) -> float:
    """The largest difference over the largest value.

    Raises:
        ValueError: the shapes differ.
    """
    if got.shape != tuple(expected.shape):
        raise ValueError(f'expected an output of {tuple(expected.shape)}, got {got.shape}')
    expected = expected.double().numpy()
    if not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return float('inf')  # a maximum over images would not show NaN
    largest = np.abs(expected).max(initial=0)
    return float(np.abs(got - expected).max(initial=0) / max(largest, 1e-30))


def _detections(
    got: Sequence[np.ndarray], expected: Sequence[np.ndarray], size: tuple[int, int, int]
) -> tuple[dict[str, float], int]:
    """Differences of detections that both sides have, and how many these are."""
    boxes, scores, labels, images = got[:4]
    right_boxes, right_scores, right_labels, right_images = expected[:4]
    row = dict(boxes=0.0, scores=0.0)
    free = np.ones(len(boxes), bool)
    matched = pixels = others = 0
    for number, box in enumerate(right_boxes):
        off = np.abs(boxes - box).max(axis=1, initial=0)
        score_off = np.abs(scores - right_scores[number])
        same = free & (labels == right_labels[number]) & (images == right_images[number])
        near = min(SAME_BOX, SAME_PART * (box[2:] - box[:2]).max())
        same &= (off < near) & (score_off < SAME_SCORE)
        if not same.any():
            continue
        # In a small image all boxes are near to each other, and differ in their scores.
        cost = off / TOLERANCES['boxes'] + score_off / TOLERANCES['scores']
        best = int(np.where(same, cost, np.inf).argmin())
        free[best] = False
        matched += 1
        row['boxes'] = max(row['boxes'], float(off[best]))
        row['scores'] = max(row['scores'], float(score_off[best]))
        if len(got) > 4:
            right = expected[4][number]
            ours = paste_masks(got[4][best : best + 1], boxes[best : best + 1], *size[1:])[0]
            pixels += int((right | ours).sum())
            others += int((right != ours).sum())
    if len(got) > 4:
        row['masks'] = others / max(pixels, 1)
    # NaN is equal to nothing, so that a few would pass among those without a counterpart.
    for name, values in zip(('boxes', 'scores', 'labels', 'images', 'masks'), got, strict=False):
        if not np.isfinite(values).all():
            row[name] = float('inf')
    return row, matched


def onnx_session(path: str | os.PathLike) -> Any:
    """ONNX Runtime's session of a file, on the CPU, with as many threads as PyTorch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Threads that wait for each other spin by default, which slows everything else.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])


def run_onnx(path: str | os.PathLike) -> Callable[[Tensor], list[np.ndarray]]:
    """A function from an image to the outputs that ONNX Runtime computes."""
    session = onnx_session(path)
    return lambda image: session.run(None, {'image': image.numpy()})


def run_torch(path: str | os.PathLike) -> Callable[[Tensor], list[np.ndarray]]:
    """A function from an image to the outputs of a program of torch.export."""
    program = torch.export.load(path).module(check_guards=False)
    return torch.no_grad()(lambda image: [output.numpy() for output in program(image)])


def spread_scores(graph: Graph, model: nn.Module) -> None:
    """Makes an untrained detector find something, so that it can be compared.

    Heads begin with scores below every threshold. Their last layers are scaled and moved so that
    scores of an image are spread, in ``model`` and in ``graph``, which is made of it.
    """
    image = graph.image(1, 256, 320)
    for name, layer in model.named_modules():
        last = name.rpartition('.')[2]
        if last not in LAST_LAYERS or not hasattr(layer, 'weight'):
            continue
        (mean, deviation), seen = LAST_LAYERS[last], []
        hook = layer.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
        with torch.no_grad():
            graph.expected(model, image)
        hook.remove()
        out = torch.cat([each.flatten() for each in seen])
        scale = deviation / float(out.std().clamp(min=1e-6))
        for copy in (layer, graph.model.get_submodule(name)):
            with torch.no_grad():
                copy.weight.mul_(scale)
                copy.bias.mul_(scale).add_(mean - float(out.mean()) * scale)


# Mean and standard deviation of what the last layers of heads give in a trained model, roughly.
LAST_LAYERS = {
    'retina_cls': (-2.5, 1.0),
    'retina_reg': (0.0, 0.3),
    'atss_cls': (-2.5, 1.0),
    'atss_reg': (0.0, 0.3),
    'rpn_cls': (0.0, 1.0),
    'rpn_reg': (0.0, 0.3),
    'fc_cls': (0.0, 1.5),
    'fc_reg': (0.0, 0.5),
    'conv_logits': (0.0, 2.0),
}
