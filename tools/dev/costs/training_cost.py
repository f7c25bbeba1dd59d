"""What a training step costs a GPU, counted operator by operator instead of measured on one.

Models run on fake tensors, which have shapes and no contents, so that any model and image takes
seconds on any machine. Mixed precision is CPU autocast with the rules of CUDA for the operators
that matter.

What is not counted: memory inside of a kernel, such as the workspace of a convolution, what the
allocator loses by fragmentation, and the CUDA context of about half a gigabyte.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tools.dev.costs.complexity import call_detector_parts, ordinary_products
from tools.dev.timing.measure import moved_bytes, moves_nothing, product_flops

__all__ = ['StepCost', 'StepMeter', 'backbone_cost', 'cost_of_step', 'model_cost']

# Both 16-bit types cost the same.
PRECISIONS = {'fp32': None, 'amp': torch.bfloat16}
IGNORED = 255  # mmseg's label of pixels that have none


class Operation(NamedTuple):
    """What one operator does.

    Attributes:
        flops: of products, an addition and a multiplication each one.
        bytes: read and written, each tensor once.
        narrow: whether the product is one of 16-bit numbers.
    """

    flops: int
    bytes: int
    narrow: bool


@dataclass(frozen=True)
class StepCost:
    """Bytes and operations of a training step in one process.

    Attributes:
        weights: bytes of parameters and buffers.
        trained: of these, of parameters that have a gradient.
        kept: bytes that the forward pass keeps for the backward pass, weights that are cast to
            16 bit included.
        peak: the most bytes that are there at any moment between the beginning of the forward pass
            and the end of the backward pass, weights left out, gradients included.
        forward: operators of the forward pass, in order.
        backward: those of the backward pass.
    """

    weights: int
    trained: int
    kept: int
    peak: int
    forward: tuple[Operation, ...] = field(repr=False)
    backward: tuple[Operation, ...] = field(repr=False)

    @property
    def optimizer(self) -> int:
        """Bytes of both averages of Adam, in float32."""
        return 2 * self.trained

    def memory(self, processes: int = 1) -> int:
        """All bytes together at the peak.

        Args:
            processes: of the job; with more than one DistributedDataParallel has a second copy of
                the gradients, in buckets.
        """
        buckets = self.trained if processes > 1 else 0
        return self.weights + self.optimizer + buckets + self.peak


class StepMeter(TorchDispatchMode):
    """Counts what operators do while it is active, and the bytes that they leave.

    A storage counts once, however many tensors look into it, until the last of them is gone.
    Real tensors and fake ones count alike.

    Attributes:
        live: bytes of tensors that were made here and are still there.
        peak: the most so far.
        operations: all operators but those that only make views or new memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.operations: list[Operation] = []
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not moves_nothing(func):
            narrow = any(each.dtype in (torch.float16, torch.bfloat16) for each in given)
            flops = product_flops(func, args, kwargs, out)
            self.operations.append(Operation(flops, moved_bytes(args, kwargs, out), narrow))
        # Views, and what is changed in place, may be of what was there before the meter.
        given_storages = {each.untyped_storage()._cdata for each in given}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in given_storages:
                    self._add(storage)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def cost_of_step(model: nn.Module, loss: Callable[[], Tensor], precision: str) -> StepCost:
    """Runs a training step and counts.

    Args:
        model: on the CPU, real or fake, without gradients.
        loss: computes what is minimised, a scalar.
        precision: of :data:`PRECISIONS`.
    """
    meter, dtype = StepMeter(), PRECISIONS[precision]
    # The rules hold in the backward pass too, for activations that are computed again.
    with meter, _cuda_rules():
        with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
            value = loss()
        kept, forward = meter.live, len(meter.operations)
        value.backward()
    parameters = list(model.parameters())
    return StepCost(
        weights=_bytes(parameters) + _bytes(model.buffers()),
        trained=_bytes(each for each in parameters if each.requires_grad),
        kept=kept,
        peak=meter.peak,
        forward=tuple(meter.operations[:forward]),
        backward=tuple(meter.operations[forward:]),
    )


def backbone_cost(
    settings: dict[str, Any],
    height: int,
    width: int,
    batch: int = 1,
    precision: str = 'fp32',
) -> StepCost:
    """A training step of a backbone by itself, without computing it.

    Args:
        settings: arguments of :class:`~mmfocal.FocalTransformer`, such as ``arch``,
            ``focal_windows`` and ``with_cp``.
        height: of the images, in pixels.
        width: in the same unit.
        batch: images.
        precision: of :data:`PRECISIONS`.
    """
    from mmfocal.models import FocalTransformer

    # Tables of keys are real tensors, which the backbone keeps for all its calls.
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = FocalTransformer(**settings).train()
        images = torch.empty(batch, 3, height, width)
        return cost_of_step(model, lambda: _sum(model(images)), precision)


def model_cost(
    config: Config,
    height: int,
    width: int,
    batch: int = 1,
    precision: str = 'fp32',
    with_cp: bool = False,
) -> StepCost:
    """A training step of a whole detector or segmenter, without computing it.

    Regions are as many as the sampler of the config takes, with its share of positive ones for
    the masks. Instead of a detector's losses, each prediction is widened to float32 and goes
    through one smooth function; the search for matching boxes is left out. A test compares the
    result with real training steps.

    Args:
        config: complete, of mmdet or mmseg, whose packages are imported.
        height: of the images, in pixels.
        width: in the same unit.
        batch: images.
        precision: of :data:`PRECISIONS`.
        with_cp: whether the backbone computes activations again in the backward pass.
    """
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, DefaultScope

    settings = config.model.copy()
    settings.backbone = dict(settings.backbone, with_cp=with_cp, init_cfg=None)
    scope = config.default_scope
    with DefaultScope.overwrite_default_scope(scope):
        model = revert_sync_batchnorm(MODELS.build(settings)).train()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    _without_contents(model, fake)
    with fake, ordinary_products():  # mmcv's deformable ones know no fake tensors
        images = torch.empty(batch, 3, height, width)
        return cost_of_step(model, partial(LOSSES[scope], model, images), precision)


def _without_contents(model: nn.Module, fake: FakeTensorMode) -> None:
    """Makes weights fake; those that modules share stay shared."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                tensors[name] = None if tensor is None else fake.from_tensor(tensor)


def _detection_loss(model: nn.Module, images: Tensor) -> Tensor:
    regions = masks = 0
    rcnn = model.train_cfg.get('rcnn') if model.train_cfg else None
    if rcnn:
        sampler = (rcnn[0] if isinstance(rcnn, (list, tuple)) else rcnn).sampler
        regions = len(images) * sampler.get('num', 0)
        masks = int(regions * sampler.get('pos_fraction', 0))
    sums = []

    def call(part: str, function: Callable, *args: Any) -> Any:
        out = function(*args)
        if part.endswith('head'):
            sums.append(_sum(out))
        elif part == 'neck':  # for heads that see only regions of it
            sums.extend(features.float().sum() for features in out)
        return out

    call_detector_parts(model, images, regions, masks, call)
    return torch.stack(sums).sum()


def _segmentation_loss(model: nn.Module, images: Tensor) -> Tensor:
    features = model.backbone(images)
    if model.with_neck:
        features = model.neck(features)
    heads = [model.decode_head]
    if model.with_auxiliary_head:
        auxiliary = model.auxiliary_head
        heads += list(auxiliary) if isinstance(auxiliary, nn.ModuleList) else [auxiliary]
    labels = torch.empty(len(images), *images.shape[-2:], dtype=torch.int64)
    losses = []
    for head in heads:
        logits = F.interpolate(head(features), labels.shape[-2:], mode='bilinear')
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction='none')
        losses.append(loss.mean())
    return torch.stack(losses).sum()


LOSSES = {'mmdet': _detection_loss, 'mmseg': _segmentation_loss}


def _sum(predictions: Any) -> Tensor:
    """A scalar whose backward pass needs all predictions in float32, as those of losses do."""
    tensors = [leaf for leaf in tree_leaves(predictions) if isinstance(leaf, Tensor)]
    return torch.stack([F.softplus(tensor.float()).sum() for tensor in tensors]).sum()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# What autocast computes in float32 on CUDA, and in 16 bit on a CPU.
WIDE = ('layer_norm', 'group_norm', 'softmax', 'log_softmax', 'cross_entropy')


@contextmanager
def _cuda_rules() -> Iterator[None]:
    """Lets norms and losses see float32 under CPU autocast, as CUDA's rules have it."""

    def widened(function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_autocast_enabled('cpu'):
                return function(*args, **kwargs)
            with torch.autocast('cpu', enabled=False):
                args, kwargs = tree_map(_widened, (args, kwargs))
                return function(*args, **kwargs)

        return call

    # A TorchFunctionMode would not see what the backward pass computes again.
    originals = {name: getattr(F, name) for name in WIDE}
    for name, function in originals.items():
        setattr(F, name, widened(function))
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(F, name, function)


def _widened(value: Any) -> Any:
    is_narrow = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if is_narrow else value
