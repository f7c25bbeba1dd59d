"""The page about many GPUs and small ones: memory, communication and time, predicted by counting.

Bytes and operations are counted from the configs by :mod:`tools.dev.costs.training_cost`; what a
GPU can do is its maker's data sheet; how far from that a training step stays is one measurement,
of Mask R-CNN with Focal-T, see :class:`Assumptions`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mmengine.config import Config

from mmfocal.engine.config import load_config
from mmfocal.utils.config import import_packages
from tools.dev.costs.training_cost import StepCost, backbone_cost, model_cost

__all__ = ['GPUS', 'Assumptions', 'Gpu', 'cost', 'largest_batch', 'page', 'predict', 'summary']

GIB = 2**30
Size = tuple[int, int]


@dataclass(frozen=True)
class Gpu:
    """What a GPU can do, by its maker's data sheet.

    Attributes:
        flops: dense products of 16-bit numbers summed in float32, per second.
        bandwidth: of its memory, bytes per second.
        memory: bytes.
        link: to the other GPUs of its machine, bytes per second in one direction.
    """

    flops: float
    bandwidth: float
    memory: float
    link: float


GPUS = {
    'RTX 4090': Gpu(165e12, 1.008e12, 24 * GIB, 32e9),  # PCI Express 4.0 x16
    'A100 80 GB': Gpu(312e12, 2.039e12, 80 * GIB, 300e9),  # SXM, NVLink
    'H100 80 GB': Gpu(989e12, 3.35e12, 80 * GIB, 450e9),  # SXM, NVLink
    'H200': Gpu(989e12, 4.8e12, 141e9, 450e9),  # SXM, NVLink
}


@dataclass(frozen=True)
class Assumptions:
    """What the counted figures leave open.

    Attributes:
        over_least: time of a step over the least that operators could take, each as long as its
            products at the full rate or its bytes at the full bandwidth, whichever is longer. An
            H200 was busy for 47.8 ms with a step of Mask R-CNN with Focal-T for which 9.4 ms are
            counted (docs/tables/benchmark_gpu.md); a host that is slower than that is not in it.
        network: bytes per second that leave a machine of eight GPUs, in one direction.
        hidden: share of the backward pass during which gradients can be exchanged.
        reserved: bytes of the CUDA context and of libraries.
        usable: share of the rest that can be filled; the remainder is lost between blocks.
    """

    over_least: float = 5.1
    network: float = 25e9
    hidden: float = 0.5
    reserved: float = 0.75 * GIB
    usable: float = 0.8


ASSUMED = Assumptions()
PER_MACHINE = 8

# Models by config, with the image that training pads most batches to and the images of one GPU.
MODELS: dict[str, tuple[Size, int]] = {
    'configs/mmdet/focal_maskrcnn_3x.py': ((800, 1344), 2),
    'configs/mmdet/focal-s_maskrcnn_3x.py': ((800, 1344), 2),
    'configs/mmdet/focal-b_maskrcnn_3x.py': ((800, 1344), 2),
    'configs/mmdet/focal_retinanet_3x.py': ((800, 1344), 2),
    'configs/mmdet/focal_cascade-maskrcnn_3x.py': ((800, 1344), 2),
    'configs/mmdet/focal_atss_3x.py': ((800, 1344), 2),
    'configs/mmdet/focal_reppointsv2_3x.py': ((960, 1344), 2),
    'configs/mmdet/focal_sparsercnn_3x.py': ((800, 1344), 2),
    'configs/mmdet/focal-l_htcpp_3x.py': ((1408, 1600), 1),
    'configs/mmdet/focal-l_dyhead_2x.py': ((1216, 2016), 2),
    'configs/mmseg/focal_upernet_160k.py': ((512, 512), 2),
    'configs/mmseg/focal-s_upernet_160k.py': ((512, 512), 2),
    'configs/mmseg/focal-b_upernet_160k.py': ((512, 512), 2),
    'configs/mmseg/focal-l_upernet_160k.py': ((640, 640), 2),
}
# How a step is made smaller, from the fastest to the smallest.
MODES = {
    'float32': dict(precision='fp32'),
    'AMP': dict(precision='amp'),
    'AMP, `with_cp`': dict(precision='amp', with_cp=True),
}
# Memory in MiB / 1000 that mmdet publishes for its own configs, two images on each of 8 GPUs, and
# the images that its batches are padded to: as here, or with crops of other shapes beside them.
PUBLISHED: dict[str, tuple[Size, str, float]] = {
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco': ((800, 1344), 'fp32', 4.4),
    'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco': ((800, 1344), 'fp32', 7.6),
    'swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco': ((1344, 1344), 'fp32', 10.2),
    'swin/mask-rcnn_swin-t-p4-w7_fpn_amp-ms-crop-3x_coco': ((1344, 1344), 'amp', 7.8),
    'swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco': ((1344, 1344), 'amp', 11.9),
}

SEVERAL = 32  # images, from which on each adds as much memory as the one before


@lru_cache
def cost(
    name: str, size: Size, batch: int, precision: str = 'amp', with_cp: bool = False
) -> StepCost:
    """What a training step of a config costs.

    Args:
        name: path or name of a config, or that of one of mmdet's, such as ``mmdet::...``.
        size: of the images, height and width in pixels.
        batch: images.
        precision: ``'fp32'`` or ``'amp'``.
        with_cp: whether the backbone computes activations again in the backward pass.
    """
    config = Config.fromfile(_of_mmdet(name)) if '::' in name else load_config(name)
    import_packages(config)
    return model_cost(config, *size, batch, precision, with_cp)


def _of_mmdet(name: str) -> Path:
    import mmdet

    return Path(mmdet.__file__).parent / '.mim/configs' / f'{name.partition("::")[2]}.py'


def largest_batch(
    name: str, size: Size, memory: float, mode: str, assumed: Assumptions = ASSUMED
) -> int:
    """Images in a step that one GPU can hold.

    Args:
        name: of a config.
        size: of the images, height and width in pixels.
        memory: of the GPU, in bytes.
        mode: of :data:`MODES`.
        assumed: what the counted bytes leave open.
    """
    room = (memory - assumed.reserved) * assumed.usable

    def held(batch: int) -> int:
        return cost(name, size, batch, **MODES[mode]).memory()

    def most(first: int, second: int) -> int:
        """By a line through the bytes of two batches."""
        image = (held(second) - held(first)) / (second - first)
        return max(first + int((room - held(first)) // image), 0)

    # The peak of few images of a small model is the optimizer's step, that of many is where their
    # activations are: an image adds more memory then.
    batch = most(2, 4)
    if batch > 4:
        batch = most(4, batch) if batch <= SEVERAL else most(SEVERAL // 2, SEVERAL)
    return batch


@dataclass(frozen=True)
class Prediction:
    """Of a step of several GPUs.

    Attributes:
        seconds: of a step.
        exchange: seconds that gradients take, hidden or not.
        images_per_second: of all GPUs together.
    """

    seconds: float
    exchange: float
    images_per_second: float


def predict(
    step: StepCost, batch: int, gpu: Gpu, processes: int = 1, assumed: Assumptions = ASSUMED
) -> Prediction:
    """Time of a step with DistributedDataParallel, one process for each GPU.

    Args:
        step: of one process.
        batch: images of one process.
        gpu: of all processes.
        processes: eight on each machine, and less only on a single one.
    """

    def least(operations: Iterable) -> float:
        # Without tensor cores float32 is far slower; in mixed precision little of it is products.
        return sum(
            max(each.flops / (gpu.flops if each.narrow else gpu.flops / 8), each.bytes / speed)
            for each in operations
        )

    speed = gpu.bandwidth
    backward = assumed.over_least * least(step.backward)
    compute = assumed.over_least * least(step.forward) + backward
    link = gpu.link if processes <= PER_MACHINE else min(gpu.link, assumed.network)
    # Every process sends, and every machine passes on, this much in a ring.
    exchange = 2 * (processes - 1) / processes * step.trained / link
    seconds = compute + max(0.0, exchange - assumed.hidden * backward)
    return Prediction(seconds, exchange, processes * batch / seconds)


def summary(name: str, size: Size, batch: int) -> str:
    """Memory of a training step of a config, and how fast GPUs may be, in lines of text.

    Args:
        name: path or name of a config.
        size: of the images, height and width in pixels.
        batch: images of a GPU.
    """
    steps = {mode: cost(name, size, batch, **settings) for mode, settings in MODES.items()}
    lines = [
        f'{name}, {batch} x {_size(size)} pixels on each GPU, several GPUs; counted, not measured:'
    ]
    for mode, step in steps.items():
        speeds = (
            f'{label} {predict(step, batch, gpu).images_per_second:.1f}'
            for label, gpu in GPUS.items()
        )
        memory = f'{_gib(step.memory(PER_MACHINE))} of memory'
        # The rate of products of float32 depends on settings that are not known here.
        speed = '' if mode == 'float32' else f'; images per second and GPU: {", ".join(speeds)}'
        lines.append(f'  {mode.replace("`", ""):12} {memory}{speed}')
    return '\n'.join(lines)


# The page. What stands between a pair of marks is made here, all else is written by hand.

MARK = re.compile(r'(<!-- table: (\w+) -->\n).*?(<!-- end -->)', re.DOTALL)


def page(text: str) -> str:
    """The page with its tables made anew.

    Args:
        text: of the page as it is, with a pair of marks for each table.

    Raises:
        KeyError: a mark for a table that is not known.
    """
    return MARK.sub(lambda match: match[1] + '\n' + TABLES[match[2]]() + '\n' + match[3], text)


def _backbones() -> str:
    rows = []
    for arch in ('tiny', 'small', 'base', 'large'):
        for size in ((800, 1344), (640, 640)):
            settings = dict(arch=arch, focal_windows=(15, 13, 9, 7))
            costs = [
                backbone_cost(dict(settings, with_cp=with_cp), *size, precision=precision)
                for precision, with_cp in (('fp32', False), ('amp', False), ('amp', True))
            ]
            rows.append(
                [
                    f'Focal-{arch[0].upper()}',
                    _size(size),
                    f'{costs[0].trained / 4e6:.1f} M',
                    *(_gib(each.kept) for each in costs),
                ]
            )
    return _table(['backbone', 'image', 'parameters', *MODES], rows)


def _models() -> str:
    rows = []
    for name, (size, batch) in MODELS.items():
        costs = [cost(name, size, batch, **settings) for settings in MODES.values()]
        rows.append(
            [
                f'[{Path(name).stem}](../../{name})',
                f'{batch} x {_size(size)}',
                f'{costs[0].trained / 2**20:.0f} MiB',
                *(_gib(each.memory(PER_MACHINE)) for each in costs),
            ]
        )
    return _table(['config', 'images of a GPU', 'gradients', *MODES], rows)


def _check() -> str:
    rows = []
    for name, (size, precision, published) in PUBLISHED.items():
        counted = cost(f'mmdet::{name}', size, 2, precision).memory(PER_MACHINE) / 2**20 / 1000
        ratio = f'{published / counted:.2f}'
        rows.append(
            [Path(name).name, f'2 x {_size(size)}', f'{published}', f'{counted:.1f}', ratio]
        )
    header = ['config of mmdet', 'images of a GPU', 'published', 'counted', 'published / counted']
    return _table(header, rows)


def _batches() -> str:
    names = (
        'configs/mmdet/focal_retinanet_3x.py',
        *(f'configs/mmdet/focal{s}_maskrcnn_3x.py' for s in SIZES),
    )
    memories = (6, 8, 12, 16, 24, 48, 80)
    rows = []
    for name in names:
        for size in ((1344, 1344), (800, 800)):
            for mode in ('AMP', 'AMP, `with_cp`'):
                batches = (largest_batch(name, size, each * GIB, mode) for each in memories)
                cells = [str(batch or '-') for batch in batches]
                rows.append([Path(name).stem, _size(size), mode, *cells])
    return _table(['config', 'image', 'mode', *(f'{each} GB' for each in memories)], rows)


SIZES = ('', '-s', '-b')


def _one_gpu() -> str:
    rows = []
    for name, (size, batch) in MODELS.items():
        step = cost(name, size, batch)
        again = cost(name, size, batch, with_cp=True)
        cells = []
        for gpu in GPUS.values():
            plain, checkpointed = (predict(each, batch, gpu) for each in (step, again))
            cells.append(f'{plain.images_per_second:.1f} ({checkpointed.images_per_second:.1f})')
        flops = sum(each.flops for each in (*step.forward, *step.backward)) / batch
        rows.append([Path(name).stem, f'{flops / 1e12:.2f}', *cells])
    return _table(['config', 'TFLOP an image', *GPUS], rows)


def _many_gpus() -> str:
    rows = []
    for name in SCALED:
        size, batch = MODELS[name]
        step = cost(name, size, batch)
        for label, gpu in GPUS.items():
            cells = []
            alone = predict(step, batch, gpu)
            for processes in (1, 8, 64, 256):
                found = predict(step, batch, gpu, processes)
                share = alone.seconds / found.seconds
                cells.append(f'{found.images_per_second:.0f} ({share:.0%})')
            rows.append([Path(name).stem, label, *cells])
    return _table(['config', 'GPU', '1', '8', '64', '256'], rows)


SCALED = (
    'configs/mmdet/focal_maskrcnn_3x.py',
    'configs/mmdet/focal-b_maskrcnn_3x.py',
    'configs/mmdet/focal-l_dyhead_2x.py',
    'configs/mmseg/focal_upernet_160k.py',
)


def _exchange() -> str:
    rows = []
    for name in SCALED:
        size, batch = MODELS[name]
        step = cost(name, size, batch)
        cells = [
            f'{1e3 * predict(step, batch, gpu, processes).exchange:.1f} ms'
            for processes in (8, 64)
            for gpu in GPUS.values()
        ]
        rows.append([Path(name).stem, f'{2 * step.trained / 2**20:.0f} MiB', *cells])
    header = [f'{gpu}, {processes}' for processes in (8, 64) for gpu in GPUS]
    return _table(['config', 'DDP sends', *header], rows)


def _sensitivity() -> str:
    name = 'configs/mmdet/focal_maskrcnn_3x.py'
    size, batch = MODELS[name]
    step = cost(name, size, batch)
    rows = []
    for factor in (2.0, 3.3, 5.1, 10.0):
        assumed = Assumptions(over_least=factor)
        found = [
            predict(step, batch, gpu, processes, assumed).images_per_second
            for processes in (1, 64)
            for gpu in GPUS.values()
        ]
        rows.append([f'{factor:.1f}', *(f'{each:.0f}' for each in found)])
    header = [f'{gpu}, {processes}' for processes in (1, 64) for gpu in GPUS]
    return _table(['time over least', *header], rows)


TABLES = {
    'backbones': _backbones,
    'models': _models,
    'check': _check,
    'batches': _batches,
    'one_gpu': _one_gpu,
    'many_gpus': _many_gpus,
    'exchange': _exchange,
    'sensitivity': _sensitivity,
}


def _gib(value: float) -> str:
    return f'{value / GIB:.2f} GiB'


def _size(size: Size) -> str:
    return 'x'.join(map(str, size))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines) + '\n'
