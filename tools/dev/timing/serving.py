"""Serving on a CPU: one backbone in PyTorch, compiled, and exported to ONNX."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch._dynamo
from torch import Tensor, nn

from mmfocal.export import BackboneGraph, write_int8, write_onnx
from mmfocal.export.parity import compare, onnx_session

from .cases import ParityError, focal_tiny
from .measure import Spread, interleaved, ratios
from .parts import DETECTION, Report, Settings, milliseconds, ratio_text, size_text

EAGER, COMPILED = 'PyTorch', 'PyTorch, compile_blocks'
ONNX, INT8 = 'ONNX Runtime', 'ONNX Runtime, int8'
BATCHES = (1, 4)
CHECKED = ((1, 96, 130), (2, 64, 64))


def time_serving(report: Report, settings: Settings) -> None:
    """Latency and throughput of Focal-T with detection windows, runtime against runtime."""
    with TemporaryDirectory() as folder:
        runtimes = _runtimes(Path(folder))

        def rows() -> Iterator[list[str]]:
            for size in settings.sizes:
                for batch in BATCHES:
                    image = torch.randn(batch, 3, *size)
                    calls = {name: partial(run, image) for name, run in runtimes.items()}
                    seconds = report.runs(
                        'serving',
                        calls,
                        lambda name, size=size, batch=batch: dict(
                            size=size, batch=batch, runtime=name
                        ),
                    )
                    interleaved(calls, settings.runs, torch.device('cpu'), seconds)
                    against = ratios(seconds, EAGER)
                    for name, times in seconds.items():
                        spread = Spread.of(times)
                        rate = f'{batch / spread.median:.2f}'
                        ratio = ratio_text(against[name])
                        yield [
                            size_text(size),
                            str(batch),
                            name,
                            milliseconds(spread),
                            rate,
                            ratio,
                        ]

        header = ['pixels', 'batch', 'runtime', 'latency', 'images / s', f'over {EAGER}']
        report.table(f'Serving on the CPU: {DETECTION}, float32 where not said', header, rows())


def _runtimes(folder: Path) -> dict[str, Callable[[Tensor], Sequence]]:
    """From an image to maps, by name; compared with each other.

    Raises:
        ParityError: the exported backbone does not compute what the backbone does.
    """
    model = focal_tiny(DETECTION, 'auto').eval()
    compiled = focal_tiny(DETECTION, 'auto', compiled=True).eval()
    compiled.load_state_dict(model.state_dict())
    graph = BackboneGraph(model)
    files = {ONNX: folder / 'backbone.onnx', INT8: folder / 'backbone.int8.onnx'}
    write_onnx(graph, files[ONNX])
    write_int8(files[ONNX], files[INT8])
    runtimes = {EAGER: partial(_run, model), COMPILED: partial(_run, compiled)}
    for name, path in files.items():
        session = onnx_session(path)
        runtimes[name] = lambda image, session=session: session.run(None, {'image': image.numpy()})
    for name in (COMPILED, ONNX):
        if wrong := compare(graph, model, runtimes[name], CHECKED).beyond():
            raise ParityError(f'{name} is not the model: {"; ".join(wrong)}; nothing was timed')
    return runtimes


def _run(model: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return model(image)
