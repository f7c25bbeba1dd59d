"""Stops training at the first loss that is not finite, and says where it came from."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from mmfocal.utils.errors import UserError

MAX_NAMES = 8  # files or weights named in a message


class NonFiniteError(UserError):
    """NaN or infinity in training; the message says which layer made it, and from which files."""


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Ends training when a loss is NaN or infinite, before the weights are updated with it.

    Every loss is looked at. Only when one is not finite does the same batch run again, with the
    same random numbers, to find the first layer of the model whose output is not. Without that, a
    run goes on for days on weights that are NaN. Infinite *gradients* are no error by themselves:
    loss scaling of mixed precision meets them regularly and leaves out the step. Weights that they
    did reach are found before a checkpoint is written, or with the next loss.

    It costs next to nothing: the result of the test travels to the CPU while the backward pass
    runs, and is waited for before the optimizer's step. In a distributed run all processes learn
    about it and stop together.

    mmdet's ``CheckInvalidLossHook`` looks at every fiftieth loss, after the step, and names
    nothing.

    Raises:
        NonFiniteError: from the training loop, with the iteration, the layer, and the files of the
            batch.
    """

    # Before the hook that deletes old checkpoints and writes a new one.
    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Has the backward passes of the runner's optimizer wrapper watched."""
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        for each in wrappers:
            if isinstance(each, OptimWrapper):  # DeepSpeed's looks at the loss itself
                self._watch(runner, each)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keeps what it takes to repeat the iteration."""
        self._batch, self._random = data_batch, _random_state()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Looks at the weights where a checkpoint of them is due."""
        for hook in runner.hooks:
            if (
                isinstance(hook, CheckpointHook)
                and not hook.by_epoch
                and (
                    self.every_n_train_iters(runner, hook.interval)
                    or self.is_last_train_iter(runner)
                )
            ):
                _check_weights(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Looks at the weights, of which a checkpoint may be due."""
        _check_weights(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Looks at the weights that are about to be saved."""
        _check_weights(runner)

    def _watch(self, runner: Runner, wrapper: OptimWrapper) -> None:
        """Puts a test of the loss around a wrapper's backward pass.

        mmengine has no hook between the forward pass and the optimizer's step.
        """
        backward = wrapper.backward

        def watched(loss: Tensor, **kwargs: Any) -> None:
            is_finite = _asked_whether_finite(loss)
            backward(loss, **kwargs)
            if not is_finite():
                raise NonFiniteError(self._explain(runner, wrapper, loss.item()))

        wrapper.backward = watched

    def _explain(self, runner: Runner, wrapper: OptimWrapper, loss: float) -> str:
        """What to tell the user; the same text in all processes."""
        own = None
        _restore_random_state(self._random)
        cause = _find_cause(runner, wrapper, self._batch)
        if not np.isfinite(loss):
            own = '\n'.join(
                [
                    f'Training stopped in iteration {runner.iter + 1}: the loss is {loss}. '
                    f'{cause}',
                    f'Files of the batch: {_some(_files(self._batch)) or "not known"}.',
                    'The weights were not updated with it, and no checkpoint was written. To go '
                    'on, mend the cause: look at these files and their annotations, lower the '
                    'learning rate or clip gradients (optim_wrapper.clip_grad); in mixed '
                    "precision set optim_wrapper.dtype='bfloat16', whose range is that of "
                    'float32 (float16 ends at 65504). Then resume from the last checkpoint.',
                ]
            )
        return next(filter(None, all_gather_object(own)))


def _asked_whether_finite(loss: Tensor) -> Callable[[], bool]:
    """Starts a test of the losses of all processes; the answer is there when it is called."""
    with torch.no_grad():
        bad = (~loss.detach().isfinite().all()).float()
    if not bad.is_cuda:
        all_reduce(bad, 'max')
        return lambda: bad.item() == 0
    # On a stream of its own: what waits for it does not wait for the backward pass.
    stream, event = torch.cuda.Stream(bad.device), torch.cuda.Event()
    stream.wait_stream(torch.cuda.current_stream(bad.device))
    with torch.cuda.stream(stream):
        all_reduce(bad, 'max')
        answer = bad.to('cpu', non_blocking=True)
        event.record(stream)
    bad.record_stream(stream)

    def is_finite() -> bool:
        event.synchronize()
        return answer.item() == 0

    return is_finite


def _find_cause(runner: Runner, wrapper: OptimWrapper, batch: Any) -> str:
    """Runs a batch again, watched, and says where the first value that is not finite came from."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if names := _bad_weights(model):
        return (
            f'Weights are not finite: {_some(names)}; the gradient of an iteration before was not.'
        )
    search = _Search(model)
    handles = []
    for name, module in model.named_modules():
        if name:  # what the model itself gives are the losses
            handles.append(
                module.register_forward_pre_hook(search.input_watcher(name), with_kwargs=True)
            )
            handles.append(module.register_forward_hook(search.watcher(name), with_kwargs=True))
    try:
        # Compiled blocks would run without the hooks.
        with (
            torch.no_grad(),
            torch.compiler.set_stance('force_eager'),
            wrapper.optim_context(model),
        ):
            data = model.data_preprocessor(batch, True)
            search.found = None  # its outputs are the pictures, next
            if not all(map(_is_finite, _tensors(data))):
                return 'The pictures that the model gets are not finite themselves.'
            losses = model._run_forward(data, mode='loss')
    except Exception as error:  # the values that it fails on are the reason why it is run
        if search.found is None:
            return f'Running the batch again to find the cause failed: {error!r}.'
    finally:
        for handle in handles:
            handle.remove()
    if search.found is not None:
        return search.found
    bad = [name for name, value in losses.items() if not all(map(_is_finite, _tensors(value)))]
    if bad:
        return f'All layers give finite values; what is computed from them is not: {_some(bad)}.'
    return (
        'The same batch, run again, gives a finite loss. If that happens again, suspect the '
        'machine or an operator that is not deterministic.'
    )


class _Search:
    """Looks for the first layer whose output is not finite.

    Attributes:
        found: a sentence about it, None so far.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.found: str | None = None
        self.before = 'no layer ran before'
        self.is_given_finite: dict[str, bool] = {}

    def input_watcher(self, name: str) -> Callable[..., None]:
        """A hook in front of the layer of that name."""

        def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if self.found is None:
                self.is_given_finite[name] = all(map(_is_finite, _tensors((args, kwargs))))

        return look

    def watcher(self, name: str) -> Callable[..., None]:
        """A forward hook for the layer of that name."""

        def look(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if self.found is not None:
                return
            outputs = list(_tensors(output))
            bad = [tensor for tensor in outputs if not _is_finite(tensor)]
            if bad:
                self.found = self._sentence(name, bad[0])
            elif outputs:
                most = max((x.abs().max().item() for x in outputs if x.numel()), default=0.0)
                self.before = f'the layer before it, {name}, gives values up to {most:.3g}'

        return look

    def _sentence(self, name: str, bad: Tensor) -> str:
        wrong = bad.numel() - int(bad.isfinite().sum())
        dtype = str(bad.dtype).removeprefix('torch.')
        count = f'{wrong:,} of {bad.numel():,} values of {dtype}; {self.before}'
        kind = type(self.model.get_submodule(name)).__name__
        if self.is_given_finite[name]:
            return f'The first layer whose output is not finite is {name} ({kind}): {count}.'
        # What it was given was not finite either: that comes from the code of a layer around it.
        # Lists of layers are around it too, but have no code of their own.
        around, inner = name, name
        while around and not self.is_given_finite.get(around):
            inner = around if around in self.is_given_finite else inner
            around = around.rpartition('.')[0]
        kind = type(self.model.get_submodule(around)).__name__
        inner = inner.removeprefix(f'{around}.')
        return (
            f'The first values that are not finite are computed in {around or "the model"} '
            f'({kind}), for the input of its layer {inner} ({count}).'
        )


def _check_weights(runner: Runner) -> None:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if names := _bad_weights(model):
        raise NonFiniteError(
            f'Training stopped in iteration {runner.iter + 1}: weights are not finite: '
            f'{_some(names)}. The gradient of an iteration before was not. No checkpoint of them '
            'was written. To go on, lower the learning rate or clip gradients '
            '(optim_wrapper.clip_grad), and resume from the last checkpoint.'
        )


def _bad_weights(model: nn.Module) -> list[str]:
    """Names of parameters that are not finite."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    with torch.no_grad():
        good = [each.isfinite().all().to(parameters[0].device) for each in parameters]
        good = torch.stack(good).tolist()  # one wait for the device, not one for each
    return [name for name, is_good in zip(names, good, strict=True) if not is_good]


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _tensors(values: Any) -> Iterator[Tensor]:
    """Floating point tensors inside tuples, lists and dicts."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values.detach()
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif _is_list(values):
        for value in values:
            yield from _tensors(value)


def _files(batch: Any) -> list[str]:
    """Paths of the pictures of a batch."""
    file = getattr(batch, 'img_path', None)
    if isinstance(file, str):
        return [file]
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    return [file for part in batch for file in _files(part)] if _is_list(batch) else []


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _some(names: Sequence[str]) -> str:
    """The first of many names."""
    more = f' and {len(names) - MAX_NAMES} more' if len(names) > MAX_NAMES else ''
    return ', '.join(names[:MAX_NAMES]) + more


def _random_state() -> tuple:
    """States of all generators that a forward pass draws from; takes microseconds."""
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), gpu


def _restore_random_state(state: tuple) -> None:
    for restore, part in zip(
        (random.setstate, np.random.set_state, torch.set_rng_state, torch.cuda.set_rng_state),
        state,
        strict=True,
    ):
        if part is not None:
            restore(part)
