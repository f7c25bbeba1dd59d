"""The parts of a benchmark, each from measuring to its table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from .cases import COMPILED, FOCAL_WINDOWS, MODES, YARDSTICK, attention_calls, loss, step
from .measure import (
    OpGroup,
    OpMeter,
    Spread,
    added_memory,
    bandwidth,
    growth,
    interleaved,
    matrix_rate,
    on_device,
    ratios,
)

Size = tuple[int, int]
DETECTION = 'Focal-T, detection windows'


@dataclass(frozen=True)
class Settings:
    """What to measure, on what.

    Attributes:
        makers: of the models, by name; the yardstick among them.
        sizes: height and width of images in pixels.
        growth_sizes: height and width in pixels, for the growth of time with the image.
        batch: images at once.
        runs: counted runs of each candidate.
        device: where everything runs.
        dtype: of autocast; float32 for none.
        memory_of: bytes that a training step of a model adds for an image of a size.
    """

    makers: Mapping[str, Callable[[], nn.Module]]
    sizes: Sequence[Size]
    growth_sizes: Sequence[Size]
    batch: int
    runs: int
    device: torch.device
    dtype: torch.dtype
    memory_of: Callable[[str, Size], int]

    def image(self, size: Size) -> Tensor:
        return torch.randn(self.batch, 3, *size, device=self.device)

    def models(self) -> dict[str, nn.Module]:
        return {name: make().to(self.device) for name, make in self.makers.items()}


@dataclass
class Report:
    """Tables as they are finished: printed at once, kept for a file; and the numbers in them."""

    lines: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def say(self, *lines: str) -> None:
        print(*lines, sep='\n', flush=True)
        self.lines += lines

    def table(self, title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Prints rows as they come, which may be while they are measured."""
        self.say('', f'**{title}**', '', '| ' + ' | '.join(header) + ' |')
        self.say('|' + '---|' * len(header))
        for row in rows:
            self.say('| ' + ' | '.join(row) + ' |')

    def runs(
        self, part: str, calls: Iterable[Any], describe: Callable[[Any], dict[str, Any]]
    ) -> dict[Any, list[float]]:
        """Empty lists of seconds for each of ``calls``, which the report has from now on."""
        seconds = {call: [] for call in calls}
        self.data.setdefault(part, []).extend(
            dict(**describe(call), seconds=times) for call, times in seconds.items()
        )
        return seconds


def time_models(report: Report, settings: Settings) -> None:
    """Inference and training step of each model and size; of a GPU also without the host."""
    models = settings.models()

    def rows(mode: str, part: str, measure: Callable[..., object]) -> Iterator[list[str]]:
        for size in settings.sizes:
            image = settings.image(size)
            calls = {name: _step(model, image, mode, settings) for name, model in models.items()}
            seconds = report.runs(
                part, calls, lambda name, size=size: dict(mode=mode, size=size, model=name)
            )
            measure(calls, settings.runs, settings.device, seconds)
            against = ratios(seconds, YARDSTICK)
            for name, times in seconds.items():
                yield [
                    size_text(size),
                    name,
                    milliseconds(Spread.of(times)),
                    ratio_text(against[name]),
                ]

    header = ['pixels', 'model', 'time', f'over {YARDSTICK}']
    for mode in MODES:
        report.table(mode.capitalize(), header, rows(mode, 'models', interleaved))
    if settings.device.type == 'cuda':
        for mode in MODES:
            title = f'{mode.capitalize()}, the GPU alone, as a CUDA graph'
            report.table(title, header, rows(mode, 'models on the GPU alone', on_device))


def measure_memory(report: Report, settings: Settings) -> None:
    """What a training step of each model adds at its peak."""
    results = report.data.setdefault('memory', [])

    def rows() -> Iterator[list[str]]:
        for size in settings.sizes:
            added = {name: settings.memory_of(name, size) for name in settings.makers}
            for name, value in added.items():
                results.append(dict(size=size, model=name, bytes=value))
                ratio = value / max(added[YARDSTICK], 1)
                yield [size_text(size), name, f'{value / 2**20:.0f} MB', f'{ratio:.2f}']

    header = ['pixels', 'model', 'added at the peak', f'over {YARDSTICK}']
    report.table('Memory of a training step', header, rows())


def memory_of_step(
    make: Callable[[], nn.Module], size: Size, batch: int, device: torch.device, dtype: torch.dtype
) -> int:
    """Bytes that a training step adds to a model and its image. On a CPU for fresh processes."""
    model, mode = make().to(device), 'training step'
    step(model, torch.randn(batch, 3, 64, 64, device=device), mode, dtype)
    image = torch.randn(batch, 3, *size, device=device)
    return added_memory(lambda: step(model, image, mode, dtype), device)


def time_op(report: Report, settings: Settings) -> None:
    """Focal attention alone, backend against backend, in the largest of the images."""
    size = max(settings.sizes, key=lambda size: size[0] * size[1])
    windows = FOCAL_WINDOWS[DETECTION]

    def rows(mode: str, part: str, measure: Callable[..., object]) -> Iterator[list[str]]:
        for stage in range(4):
            calls = attention_calls(
                stage, size, windows, settings.batch, settings.device, settings.dtype, mode
            )
            seconds = report.runs(
                part, calls, lambda name, stage=stage: dict(mode=mode, stage=stage, backend=name)
            )
            measure(calls, settings.runs, settings.device, seconds)
            against = ratios(seconds, 'reference')
            for name, times in seconds.items():
                yield [str(stage), name, milliseconds(Spread.of(times)), ratio_text(against[name])]

    header = ['stage', 'backend', 'time', 'over reference']
    for mode in MODES:
        title = f'Focal attention alone, {mode}, {size_text(size)}, detection windows'
        report.table(title, header, rows(mode, 'op', interleaved))
        if settings.device.type == 'cuda':
            title += ', the GPU alone, as a CUDA graph'
            report.table(title, header, rows(mode, 'op on the GPU alone', on_device))


def measure_growth(report: Report, settings: Settings) -> None:
    """How time grows with pixels."""
    models, sizes = settings.models(), settings.growth_sizes
    pixels = [height * width for height, width in sizes]
    base, fits = _middle(pixels), report.data.setdefault('fits', [])

    def rows() -> Iterator[list[str]]:
        for mode in MODES:
            # All sizes of all models in turn: drift of the machine would look like growth.
            calls = {
                (name, size): _step(model, settings.image(size), mode, settings)
                for size in sizes
                for name, model in models.items()
            }
            seconds = report.runs(
                'growth',
                calls,
                lambda call, mode=mode: dict(mode=mode, size=call[1], model=call[0]),
            )
            interleaved(calls, settings.runs, settings.device, seconds)
            for name in models:
                times = [Spread.of(seconds[name, size]).median for size in sizes]
                per_pixel = [time / count for time, count in zip(times, pixels, strict=True)]
                exponent, grown = growth(pixels, times), per_pixel[-1] / per_pixel[base]
                fits.append(dict(mode=mode, model=name, exponent=exponent, per_pixel=grown))
                reached = [f'{1e9 * value:.0f}' for value in per_pixel]
                yield [mode, name, *reached, f'{grown:.2f}', f'{exponent:.2f}']

    compared = f'{size_text(sizes[-1])} over {size_text(sizes[base])}'
    report.table(
        'Growth with the image: nanoseconds per pixel',
        ['mode', 'model', *map(size_text, sizes), compared, 'exponent'],
        rows(),
    )


def _middle(pixels: Sequence[int]) -> int:
    """Place of 448 x 448, or of the smallest size if that is not among them."""
    return pixels.index(448 * 448) if 448 * 448 in pixels else 0


def compare_with_limits(report: Report, settings: Settings) -> None:
    """A training step operator by operator, and the least time that the machine could take."""
    size = max(settings.sizes, key=lambda size: size[0] * size[1])
    # Of compiled models a meter sees no operators.
    models = {n: model for n, model in settings.models().items() if not n.endswith(COMPILED)}
    image = settings.image(size)
    meters: dict[str, list[OpMeter]] = {name: [] for name in models}

    def metered(name: str) -> None:
        with OpMeter(settings.device) as meter:
            value = loss(models[name], image, settings.dtype)
            meter.phase = 'backward'
            value.backward()
        models[name].zero_grad()
        meters[name].append(meter)

    calls = {name: partial(metered, name) for name in models}
    interleaved(calls, settings.runs, settings.device, shortest=0)
    rate = matrix_rate(settings.device, settings.dtype, settings.runs)
    copying = bandwidth(settings.device, settings.runs)
    report.data['limits'] = dict(flops_per_second=rate, bytes_per_second=copying, models=[])
    report.say(
        '',
        f'Measured limits: products {rate / 1e9:.0f} GFLOP/s, copies {copying / 1e9:.1f} GB/s.',
    )
    for name, metered_runs in meters.items():
        counted = metered_runs[-settings.runs :]  # others were to warm up
        groups = {
            key: replace(group, seconds=median(m.groups[key].seconds for m in counted))
            for key, group in counted[0].groups.items()
        }
        groups = dict(sorted(groups.items(), key=lambda item: -item[1].seconds))
        report.data['limits']['models'].append(
            dict(
                model=name, size=size, groups={key: asdict(group) for key, group in groups.items()}
            )
        )
        least = {
            key: max(group.flops / rate, group.bytes / copying) for key, group in groups.items()
        }
        total = OpGroup(
            *(sum(getattr(g, part) for g in groups.values()) for part in OpGroup.__annotations__)
        )
        groups['all'], least['all'] = total, sum(least.values())
        rows = [
            [
                key,
                str(group.calls),
                f'{1e3 * group.seconds:.1f} ms',
                f'{group.seconds / total.seconds:.0%}',
                f'{group.flops / 1e9:.1f}',
                f'{group.bytes / 1e9:.2f}',
                f'{1e3 * least[key]:.1f} ms',
                f'{group.seconds / least[key]:.1f}',
            ]
            for key, group in groups.items()
            if least[key] > 0
        ]
        header = ['operators', 'calls', 'time', 'share', 'GFLOP', 'GB', 'least time', 'over least']
        report.table(f'{name}, training step, {size_text(size)}: time and its limit', header, rows)


PARTS: dict[str, Callable[[Report, Settings], None]] = {
    'models': time_models,
    'memory': measure_memory,
    'op': time_op,
    'growth': measure_growth,
    'limits': compare_with_limits,
}


def _step(model: nn.Module, image: Tensor, mode: str, settings: Settings) -> Callable[[], None]:
    return lambda: step(model, image, mode, settings.dtype)


def size_text(size: Size) -> str:
    return 'x'.join(map(str, size))


def milliseconds(spread: Spread) -> str:
    digits = 1 if spread.median >= 0.01 else 3  # kernels take fractions of a millisecond
    least, most = (f'{1e3 * value:.{digits - 1}f}' for value in (spread.least, spread.most))
    return f'{1e3 * spread.median:.{digits}f} ms ({least} to {most})'


def ratio_text(spread: Spread) -> str:
    return f'{spread.median:.2f} ({spread.least:.2f} to {spread.most:.2f})'
