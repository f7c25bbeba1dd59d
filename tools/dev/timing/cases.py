"""What is timed: backbones, and focal attention alone; and the checks that come first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from mmfocal.geometry import ClosestGeometry, FocalGeometry
from mmfocal.models import FocalTransformer, FocalTransformerFast
from mmfocal.models.focal_self_attention import FocalSelfAttention
from mmfocal.ops import available_backends, check_backend, focal_attention, why_not

YARDSTICK = 'Swin-T'
FOCAL_WINDOWS = {
    'Focal-T': (7, 5, 3, 1),  # as published for classification
    'Focal-T, detection windows': (15, 13, 9, 7),
}
FAST = 'Focal-fast-T'
TINY_HEADS = (3, 6, 12, 24)
HEAD_DIM = 32
MODES = ('inference', 'training step')
COMPILED = ', compiled'  # end of the names of models with compiled blocks


def swin_tiny() -> nn.Module:
    """The Swin-T of MMDetection, the yardstick."""
    from mmdet.models.backbones.swin import SwinTransformer

    return SwinTransformer(drop_path_rate=0.0)


def focal_tiny(name: str, backend: str, compiled: bool = False) -> nn.Module:
    return FocalTransformer(
        'tiny',
        focal_windows=FOCAL_WINDOWS[name],
        drop_path_rate=0.0,
        attention_backend=backend,
        compile_blocks=compiled,
    )


def focal_fast_tiny(backend: str, compiled: bool = False) -> nn.Module:
    return FocalTransformerFast(
        'tiny', drop_path_rate=0.0, attention_backend=backend, compile_blocks=compiled
    )


def backbones(
    backends: Sequence[str] = ('auto',), compiled: bool = False
) -> dict[str, Callable[[], nn.Module]]:
    """Makers of the models, by name.

    Args:
        backends: of attention; Focal-T and Focal-fast-T are there once for each.
        compiled: whether they are there with compiled blocks, too.

    Raises:
        ValueError: a backend that does not exist.
    """
    makers: dict[str, Callable[[], nn.Module]] = {YARDSTICK: swin_tiny}
    for backend in backends:
        check_backend(backend)
        models = {name: partial(focal_tiny, name) for name in FOCAL_WINDOWS}
        for name, make in (models | {FAST: focal_fast_tiny}).items():
            label = name if backend == 'auto' else f'{name}, {backend}'
            makers[label] = partial(make, backend)
            if compiled:
                makers[label + COMPILED] = partial(make, backend, True)
    return makers


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast | nullcontext:
    """As MMEngine's AmpOptimWrapper trains; float32 is left as it is."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def step(model: nn.Module, image: Tensor, mode: str, dtype: torch.dtype) -> None:
    """Inference, or a training step without optimizer.

    Args:
        model: backbone.
        image: float ``(B, 3, H, W)``.
        mode: one of :data:`MODES`.
        dtype: of autocast; float32 for none.
    """
    model.train(mode == 'training step')
    if model.training:
        loss(model, image, dtype).backward()
        model.zero_grad()
    else:
        with torch.no_grad(), autocast(image.device, dtype):
            model(image)


def loss(model: nn.Module, image: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum of the means of all maps, which gives every one of them a gradient."""
    with autocast(image.device, dtype):
        return sum(out.float().mean() for out in model(image))


def runnable_backends(device: torch.device, dtype: torch.dtype) -> list[str]:
    return [name for name in available_backends() if not why_not(name, device, dtype, HEAD_DIM)]


def attention_calls(
    stage: int,
    size: tuple[int, int],
    focal_windows: tuple[int, ...],
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
    mode: str,
) -> dict[str, Callable[[], None]]:
    """One call of focal attention in a stage of Focal-T, by backend.

    Args:
        stage: counted from 0.
        size: of the image, in pixels.
    """
    stride, heads = 4 * 2**stage, TINY_HEADS[stage]
    keys = FocalGeometry(focal_window=focal_windows[stage]).keys(
        *((side + stride - 1) // stride for side in size)
    )
    training = mode == 'training step'
    qkv = torch.randn(batch, keys.num_tokens, 3, heads, HEAD_DIM, device=device).to(dtype)
    bias = torch.randn(heads, keys.num_queries, keys.num_keys, device=device)
    qkv.requires_grad_(training)
    bias.requires_grad_(training)

    def call(backend: str) -> None:
        out = focal_attention(qkv, keys, bias, backend=backend)
        if training:
            torch.autograd.grad(out, (qkv, bias), torch.ones_like(out))

    return {name: partial(call, name) for name in runnable_backends(device, dtype)}


class ParityError(RuntimeError):
    """A backend does not compute focal attention, so that its time means nothing."""


def check_parity(device: torch.device, dtype: torch.dtype) -> None:
    """Compares every backend that can run with the reference in float64, before any is timed.

    Raises:
        ParityError: an output or a gradient differs by more than its precision explains.
    """
    for geometry in (
        FocalGeometry(focal_window=3),
        FocalGeometry(focal_window=3, shift_size=3, border='mask'),
        ClosestGeometry(top_k=40),
    ):
        keys = geometry.keys(11, 17)
        qkv = torch.randn(2, keys.num_tokens, 3, 2, HEAD_DIM, dtype=torch.float64, device=device)
        columns = keys.num_bias_columns(device)
        bias = torch.randn(2, keys.num_queries, columns, dtype=torch.float64, device=device)
        upstream = torch.randn(2, keys.num_outputs, 2, HEAD_DIM, device=device).double()
        expected = _out_and_grads(qkv, keys, bias, upstream, 'reference')
        for backend in runnable_backends(device, dtype):
            got = _out_and_grads(qkv.to(dtype), keys, bias.float(), upstream.to(dtype), backend)
            for name, ours, right in zip(('out', 'qkv', 'bias'), got, expected, strict=True):
                error = float((ours.double() - right).norm() / right.norm())
                if not error < 16 * torch.finfo(dtype).eps:
                    raise ParityError(
                        f'{backend} is off by {error:.1e} ({name}, {dtype}) from the reference '
                        'in float64; nothing was timed'
                    )


def check_models(
    makers: Mapping[str, Callable[[], nn.Module]], device: torch.device, dtype: torch.dtype
) -> None:
    """Compares each FocalTransformer with its like on the reference backend, in float64.

    Raises:
        ParityError: a map is further off than that of the reference backend in the same
            precision explains.
    """
    image = torch.randn(1, 3, 60, 92, device=device)
    for name, make in makers.items():
        model = make().to(device).eval()
        if not isinstance(model, FocalTransformer):
            continue
        reference = deepcopy(model)
        for module in reference.modules():
            if isinstance(module, FocalSelfAttention):
                module.backend = 'reference'
        with torch.no_grad():
            with autocast(device, dtype):
                ours, rounded = model(image), reference(image)
            exact = reference.double()(image.double())
        for stage, (got, as_good_as, right) in enumerate(zip(ours, rounded, exact, strict=True)):
            error, allowed = (float((t - right).norm() / right.norm()) for t in (got, as_good_as))
            if not error < 2 * allowed + torch.finfo(dtype).eps:
                raise ParityError(
                    f'{name}: map {stage} is off by {error:.1e} from the reference in float64, '
                    f'which is off by {allowed:.1e} in {dtype}; nothing was timed'
                )


def _out_and_grads(
    qkv: Tensor, keys: object, bias: Tensor, upstream: Tensor, backend: str
) -> tuple[Tensor, ...]:
    qkv, bias = qkv.detach().requires_grad_(), bias.detach().requires_grad_()
    out = focal_attention(qkv, keys, bias, backend=backend)
    return out.detach(), *torch.autograd.grad(out, (qkv, bias), upstream)
