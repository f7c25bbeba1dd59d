"""What a checkpoint lacks for resuming a run as if nothing had happened, and ending on request."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from mmfocal.utils.files import written_atomically

from ..data_loader import prepare_workers
from ..randomness import derived_seed, seed_generators

KEY = 'mmfocal_run'
VALIDATED = 'last_validation'  # what begins with val, train or test is logged
# What clusters send before they end a job: most SIGTERM, SLURM what `--signal` says.
SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGUSR1') if hasattr(signal, name))
EXIT_STATUS = 128 + 15  # as of a process that SIGTERM has ended


@HOOKS.register_module()
class RunStateHook(Hook):
    """Resumes a run where it was, and saves one that is asked to end.

    Into each checkpoint it writes gradients that were accumulated and not yet used, and what the
    run has to have in common with one that resumes it. Validation that was due when a run ended is
    made up for. On SIGTERM or SIGUSR1 it saves a checkpoint after the current iteration, and ends
    the process with status 143; a second signal ends it at once.
    """

    # After hooks that change the state of an iteration, before those that write it.
    priority = 85

    def __init__(self) -> None:
        self.asked_to_end = False
        self.handlers: dict[int, Any] = {}

    def before_run(self, runner: Runner) -> None:
        """Listens for signals."""
        self.handlers = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def after_train(self, runner: Runner) -> None:
        """Leaves signals to others again."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked_to_end:
            os._exit(EXIT_STATUS)
        self.asked_to_end = True

    # --- Resuming ---------------------------------------------------------------------------

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds what resuming needs, as plain tensors and numbers."""
        checkpoint[KEY] = dict(
            world_size=get_world_size(),
            num_batches=len(runner.train_dataloader),
            gradients=_pending_gradients(runner),
        )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Takes it out again, and compares it with this run if that resumes the other."""
        state = checkpoint.pop(KEY, None)
        if state is None or not runner._resume:
            return
        for name, here, text in (
            ('world_size', get_world_size(), 'processes'),
            (
                'num_batches',
                len(runner.train_dataloader),
                'batches of each process in a pass over the data',
            ),
        ):
            if state[name] != here:
                runner.logger.warning(
                    f'The run that is resumed had {state[name]} {text}, this one has {here}: it '
                    'has the same weights, but will not continue exactly as that one would have. '
                    'Iterations are counted as they are now.'
                )
        for name, parameter in _module(runner).named_parameters():
            if name in state['gradients']:
                parameter.grad = state['gradients'][name].to(parameter)

    def before_train(self, runner: Runner) -> None:
        """Validates if that was due when the run was saved."""
        # What is said here is saved; texts of configs are not taken from files (safe_loading.py).
        runner.message_hub.update_info('cfg', runner.cfg.pretty_text)
        if runner.val_loop is not None:
            prepare_workers(runner.val_loop.dataloader)
        if runner.iter > 0 and _validation_is_due(runner):
            runner.logger.info('Validation was due when this run was saved, and is made up for.')
            runner.val_loop.run()

    def before_val_epoch(self, runner: Runner) -> None:
        """Lets what validation draws, if anything, follow from the iteration as well."""
        seed_generators(derived_seed(runner.seed, get_rank(), runner.iter, 0, 0))

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Remembers that it is done."""
        runner.message_hub.update_info(VALIDATED, runner.iter)

    # --- Ending -----------------------------------------------------------------------------

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Saves and ends if asked to."""
        if self._is_to_end():
            _save_and_end(runner, runner.iter + 1)

    def after_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Saves and ends if asked to; the validation is made up for later."""
        if self._is_to_end():
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    # It has put averages in the place of the weights, which saving counts on.
                    hook._swap_ema_parameters()
            _save_and_end(runner, runner.iter)

    # Of validation_loss.py, after the others of a validation.
    after_val_loss_iter = after_val_iter

    def _is_to_end(self) -> bool:
        asked = torch.tensor(int(self.asked_to_end))
        if get_world_size() > 1:
            all_reduce(asked, 'max')  # the signal reaches processes at different iterations
        return bool(asked)


def _save_and_end(runner: Runner, iteration: int) -> None:
    hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
    out_dir = getattr(hook, 'out_dir', None) or runner.work_dir
    name = f'iter_{iteration}.pth'
    runner.save_checkpoint(
        out_dir,
        name,
        by_epoch=False,
        meta=dict(epoch=runner.epoch, iter=iteration),
        backend_args=getattr(hook, 'backend_args', None),
    )
    if is_main_process():
        with written_atomically(Path(runner.work_dir) / 'last_checkpoint') as file:
            file.write(os.path.join(out_dir, name).encode())
    runner.logger.info(f'Asked to end: saved {name} in {out_dir}. --resume resumes from there.')
    sys.exit(EXIT_STATUS)


def _module(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _pending_gradients(runner: Runner) -> dict[str, torch.Tensor]:
    """Gradients that wait for more before a step is made of them."""
    wrapper = runner.optim_wrapper
    if not isinstance(wrapper, OptimWrapper) or wrapper._accumulative_counts == 1:
        return {}
    return {
        name: parameter.grad.cpu()
        for name, parameter in _module(runner).named_parameters()
        if parameter.grad is not None
    }


def _validation_is_due(runner: Runner) -> bool:
    loop = runner.train_loop
    if runner.val_loop is None or runner.message_hub.runtime_info.get(VALIDATED) == loop.iter:
        return False
    number, end = loop.iter, loop.max_iters
    if isinstance(loop, EpochBasedTrainLoop):
        if loop.iter != loop.epoch * len(loop.dataloader):
            return False
        number, end = loop.epoch, loop.max_epochs
    loop._decide_current_val_interval()
    return number >= loop.val_begin and (number % loop.val_interval == 0 or number == end)
