"""Stops training at the first loss that is not finite, and says where it came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from mmfocal.utils.errors import UserError

from ..randomness import generator_states, restore_generators

MAX_NAMES = 8  # files or weights named in a message


class NonFiniteError(UserError):
    """NaN or infinity in training; the message says which layer made it, and from which files."""


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Ends training when a loss is NaN or infinite, before the weights are updated with it.

    Every loss is looked at. Only when one is not finite does the same batch run again, with the
    same random numbers, to find the first layer of the model whose output is not. Without that, a
    run continues for days on weights that are NaN. Infinite *gradients* are no error by
    themselves: loss scaling of mixed precision meets them regularly and leaves out the step.
    Weights that they did reach are found before a checkpoint is written, or with the next loss. In
    a distributed run all processes learn about it and stop together.

    mmdet's ``CheckInvalidLossHook`` looks at every fiftieth loss, after the step, and names
    nothing.

    Raises:
        NonFiniteError: from the training loop, with the iteration, the layer, and the files of the
            batch.
    """

    # Before the hook that deletes old checkpoints and writes a new one.
    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Lets the runner's optimizer wrappers look at the loss."""
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        for each in wrappers:
            if isinstance(each, OptimWrapper):  # DeepSpeed's looks at the loss itself
                self._watch(runner, each)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keeps what it takes to repeat the iteration."""
        self._batch, self._states = data_batch, generator_states()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Looks at the weights where a checkpoint of them is due."""
        if self.is_last_train_iter(runner) or any(
            self.every_n_train_iters(runner, hook.interval)
            for hook in runner.hooks
            if isinstance(hook, CheckpointHook) and not hook.by_epoch
        ):
            _check_weights(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Looks at the weights, of which a checkpoint may be due."""
        _check_weights(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Looks at the weights that are about to be saved."""
        _check_weights(runner)

    def _watch(self, runner: Runner, wrapper: OptimWrapper) -> None:
        """Tests losses between the forward pass and the step, where mmengine has no hook."""
        backward = wrapper.backward

        def watched(loss: Tensor, **kwargs: Any) -> None:
            is_bad = (~loss.detach().isfinite().all()).float()
            all_reduce(is_bad, 'max')
            if is_bad.item():
                raise NonFiniteError(self._explain(runner, wrapper, loss.detach()))
            backward(loss, **kwargs)

        wrapper.backward = watched

    def _explain(self, runner: Runner, wrapper: OptimWrapper, loss: Tensor) -> str:
        """What to tell the user; the same text in all processes."""
        restore_generators(self._states)
        cause = _find_cause(runner, wrapper, self._batch)
        text = (
            f'Training stopped in iteration {runner.iter + 1}: the loss is {loss.item()}. '
            f'{cause}\nFiles of the batch: {_some(list(_files(self._batch))) or "not known"}.\n'
            'The weights were not updated with it, and no checkpoint was written. Mend the cause: '
            'look at these files and their annotations, lower the learning rate or clip gradients '
            '(optim_wrapper.clip_grad); in mixed precision set '
            "optim_wrapper.dtype='bfloat16', whose range is that of float32 (float16 ends at "
            '65504). Then resume from the last checkpoint.'
        )
        return next(filter(None, all_gather_object(None if _is_finite(loss) else text)))


def _find_cause(runner: Runner, wrapper: OptimWrapper, batch: Any) -> str:
    """Runs a batch again, watched, and says where the first value that is not finite came from."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if names := _bad_weights(model):
        return (
            f'Weights are not finite: {_some(names)}; the gradient of an iteration before was not.'
        )
    search = _Search(model)
    try:
        # Compiled blocks would run without the hooks.
        with (
            torch.no_grad(),
            torch.compiler.set_stance('force_eager'),
            wrapper.optim_context(model),
        ):
            data = model.data_preprocessor(batch, True)
            search.found = None  # its outputs are the images, next
            if not _is_finite(data):
                return 'The images that the model gets are not finite themselves.'
            losses = model._run_forward(data, mode='loss')
    except Exception as error:  # the values that it fails on are the reason why it is run
        if search.found is None:
            return f'Running the batch again to find the cause failed: {error!r}.'
    finally:
        search.end()
    if search.found is not None:
        return search.found
    if bad := [name for name, value in losses.items() if not _is_finite(value)]:
        return f'All layers give finite values; what is computed from them is not: {_some(bad)}.'
    return (
        'The same batch, run again, gives a finite loss. If that happens again, suspect the '
        'machine or an operator that is not deterministic.'
    )


class _Search:
    """Looks for the first layer whose output is not finite, until :meth:`end`.

    Attributes:
        found: a sentence about it, None so far.
    """

    def __init__(self, model: nn.Module) -> None:
        self.found: str | None = None
        self._before = 'no layer ran before'
        # Layers that are running, the outermost first, and whether what they were given is finite.
        self._running: list[tuple[str, nn.Module, bool]] = [('', model, True)]
        self._handles = []
        # What the model itself gives are the losses.
        self._names = {module: name for name, module in model.named_modules() if name}
        for module in self._names:
            self._handles += [
                module.register_forward_pre_hook(self._begin, with_kwargs=True),
                module.register_forward_hook(self._look, with_kwargs=True),
            ]

    def end(self) -> None:
        """Takes the hooks away again."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._running.append((self._names[module], module, _is_finite((args, kwargs))))

    def _look(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        outputs = list(_tensors(output))
        bad = next((tensor for tensor in outputs if not _is_finite(tensor)), None)
        if self.found is None and bad is not None:
            self.found = self._sentence(bad)
        elif outputs:
            most = max((x.abs().max().item() for x in outputs if x.numel()), default=0.0)
            name = self._names[module]
            self._before = f'the layer before it, {name}, gives values up to {most:.3g}'
        self._running.pop()

    def _sentence(self, bad: Tensor) -> str:
        wrong = bad.numel() - int(bad.isfinite().sum())
        dtype = str(bad.dtype).removeprefix('torch.')
        count = f'{wrong:,} of {bad.numel():,} values of {dtype}; {self._before}'
        name, module, is_given_finite = self._running[-1]
        if is_given_finite:
            return (
                f'The first layer whose output is not finite is {name} '
                f'({type(module).__name__}): {count}.'
            )
        # What it was given was not finite either: that comes from the code of a layer around it.
        last = max(i for i, (_, _, is_finite) in enumerate(self._running) if is_finite)
        (around, module, _), (inner, _, _) = self._running[last : last + 2]
        return (
            f'The first values that are not finite are computed in {around or "the model"} '
            f'({type(module).__name__}), for the input of its layer '
            f'{inner.removeprefix(f"{around}.")} ({count}).'
        )


def _check_weights(runner: Runner) -> None:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if names := _bad_weights(model):
        raise NonFiniteError(
            f'Training stopped in iteration {runner.iter + 1}: weights are not finite: '
            f'{_some(names)}. The gradient of an iteration before was not. No checkpoint of them '
            'was written. Lower the learning rate or clip gradients (optim_wrapper.clip_grad), '
            'and resume from the last checkpoint.'
        )


def _bad_weights(model: nn.Module) -> list[str]:
    """Names of parameters that are not finite."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    with torch.no_grad():
        good = [each.isfinite().all().to(parameters[0].device) for each in parameters]
        good = torch.stack(good).tolist()  # one wait for the device, not one for each
    return [name for name, is_good in zip(names, good, strict=True) if not is_good]


def _is_finite(values: Any) -> bool:
    """Whether all numbers in tensors inside of containers are finite."""
    return all(bool(tensor.isfinite().all()) for tensor in _tensors(values))


def _tensors(values: Any) -> Iterator[Tensor]:
    """Floating point tensors inside tuples, lists and dicts."""
    if isinstance(values, Tensor) and values.is_floating_point():
        yield values.detach()
    for value in _contained(values):
        yield from _tensors(value)


def _files(batch: Any) -> Iterator[str]:
    """Paths of the images of a batch."""
    file = getattr(batch, 'img_path', None)
    if isinstance(file, str):
        yield file
    for part in _contained(batch):
        yield from _files(part)


def _contained(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _some(names: list[str]) -> str:
    """The first of many names."""
    more = f' and {len(names) - MAX_NAMES} more' if len(names) > MAX_NAMES else ''
    return ', '.join(names[:MAX_NAMES]) + more
