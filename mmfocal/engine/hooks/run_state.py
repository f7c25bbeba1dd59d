"""What a checkpoint lacks for resuming a run as if nothing had happened, and ending on request."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from mmfocal.utils.files import written_atomically

from ..checkpoints import last_checkpoint
from ..data_loader import prepare_workers
from ..data_order import data_order, inexact_parts
from ..loops import VALIDATED, ResumableEpochBasedTrainLoop
from ..randomness import derived_seed, seed_generators

KEY = 'mmfocal_run'
# What clusters send before they end a job: most SIGTERM, SLURM what `--signal` says.
SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGUSR1') if hasattr(signal, name))
EXIT_STATUS = 128 + 15  # as of a process that SIGTERM has ended


@HOOKS.register_module()
class RunStateHook(Hook):
    """Resumes a run where it was, and saves one that is asked to end.

    Into each checkpoint it writes where in an epoch it is, gradients that were accumulated and not
    yet used, what other hooks have counted, and what determines the order of the data. On SIGTERM
    or SIGUSR1 it saves a checkpoint after the current iteration, and ends the process with status
    143; a second signal ends it at once.

    Hooks that count are mmengine's ``EarlyStoppingHook``, and those that have ``state_dict()`` and
    ``load_state_dict(state)``, which are called before ``before_train`` of a resumed run.
    """

    # After hooks that change the state of an iteration, before those that write it.
    priority = 85

    def __init__(self) -> None:
        self.asked_to_end = self._is_ending = False
        self.handlers: dict[int, Any] = {}
        self._superseded: Path | None = None  # a checkpoint, by the next that is written
        self._num_saved = 0
        self._batches_of_all = 0  # of a validation, that every process has
        self._data_order: dict[str, Any] = {}

    def listen(self) -> None:
        """Listens for signals, which Python only lets the main thread do.

        Not before training: a test of the same config has nothing to save, and ends at once.
        """
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def after_train(self, runner: Runner) -> None:
        """Leaves signals to others again."""
        self._remove_superseded()
        self.stop_listening()

    def stop_listening(self) -> None:
        """Gives signals back to who had them before."""
        while self.handlers:
            number, handler = self.handlers.popitem()
            if signal.getsignal(number) == self._ask:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked_to_end:
            os._exit(EXIT_STATUS)
        self.asked_to_end = True

    # --- Resuming ---------------------------------------------------------------------------

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds what resuming needs, as plain tensors and numbers."""
        meta, loop = checkpoint['meta'], runner.train_loop
        checkpoint[KEY] = dict(
            order=self._order(runner),
            gradients=_pending_gradients(runner),
            hooks=_states(runner),
            is_extra=self._is_ending and not _saves_anyway(runner, meta['iter']),
        )
        if isinstance(loop, ResumableEpochBasedTrainLoop):
            done = loop.batches_done(meta['epoch'], meta['iter'])
            checkpoint[KEY]['batches_done'] = done
        if 'optimizer' in checkpoint:
            self._remove_superseded()
            self._num_saved += 1

    def _order(self, runner: Runner) -> dict[str, Any]:
        """What determines the order of the data, by the names under which users know it."""
        wrapper = runner.optim_wrapper
        self._data_order = self._data_order or data_order(runner.train_dataloader)
        return {
            'seed': runner.seed,
            'number of processes': get_world_size(),
            'accumulated batches': getattr(wrapper, '_accumulative_counts', 1),
            **self._data_order,
        }

    def _remove_superseded(self) -> None:
        """Removes the checkpoint of a request to end once a later one is there."""
        if self._num_saved > 0 and self._superseded is not None and is_main_process():
            self._superseded.unlink(missing_ok=True)
            self._superseded = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Takes it out again, and compares it with this run if that resumes the other."""
        state = checkpoint.pop(KEY, None)
        if not runner._resume:
            return
        _remove_empty_scalers(checkpoint.get('optimizer'))
        meta = checkpoint['meta']
        here, there = self._order(runner), (state or {}).get('order', {})
        there.setdefault('seed', meta.get('seed'))
        differences = {
            name: value
            for name, value in here.items()
            if None not in (value, there.get(name)) and there[name] != value
        }
        if differences:
            told = [
                name if name == 'files' else f'{name} ({there[name]}, now {value})'
                for name, value in differences.items()
            ]
            runner.logger.warning(
                f'The run that is resumed had other {", ".join(told)}: this one continues from '
                'its weights, and counts iterations on, but not exactly as that one would have. '
                'An epoch that it had begun begins anew.'
            )
        # Else mmengine would take the other seed for what is drawn from now on, and not for the
        # order of the data, which it has made already.
        meta['seed'] = runner.seed
        if state is not None:
            self._restore(runner, state, same_order=not differences)

    def _restore(self, runner: Runner, state: dict, same_order: bool) -> None:
        loop = runner.train_loop
        if isinstance(loop, ResumableEpochBasedTrainLoop) and 'batches_done' in state:
            loop.resume_epoch(state['batches_done'], same_order)
        if same_order:
            for name, parameter in _module(runner).named_parameters():
                if name in state['gradients']:
                    parameter.grad = state['gradients'][name].to(parameter)
        _load_states(runner, state.get('hooks', {}))
        # mmengine's own Runner resumes from what last_checkpoint names if it is told no file.
        source = Path(runner._load_from or last_checkpoint(runner.work_dir) or '')
        if state.get('is_extra') and source.parent == checkpoint_folder(runner):
            self._superseded = source

    def before_train(self, runner: Runner) -> None:
        """Listens, and prepares log, workers of validation, and search for the best checkpoint."""
        self.listen()
        # What is said here is saved; texts of configs are not taken from files (safe_loading.py).
        runner.message_hub.update_info('cfg', runner.cfg.pretty_text)
        if runner.val_loop is not None and isinstance(runner.val_loop.dataloader, DataLoader):
            prepare_workers(runner.val_loop.dataloader)
        self._find_best_checkpoints(runner)
        if names := inexact_parts(runner.train_dataloader):
            runner.logger.warning(
                f'{", ".join(names)}: the samples of this run cannot be repeated exactly, since '
                'they depend on more than the seed and the position. If it is resumed, it will '
                'not continue exactly as it would have.'
            )

    def _find_best_checkpoints(self, runner: Runner) -> None:
        """Lets the log name those of this folder, which was moved or copied perhaps.

        Another folder's best checkpoint would be deleted once there is a better one.
        """
        info, folder = runner.message_hub.runtime_info, checkpoint_folder(runner)
        for key in [key for key in info if key.split('_')[:2] == ['best', 'ckpt']]:
            path = Path(str(info[key]))
            if path.parent.resolve() == folder.resolve():
                continue
            if (folder / path.name).is_file():
                info[key] = str(folder / path.name)
            else:
                del info[key]

    def before_val_epoch(self, runner: Runner) -> None:
        """Lets what validation draws, if anything, follow from the iteration as well."""
        seed_generators(derived_seed(runner.seed, get_rank(), runner.iter, 0, 0))
        batches = torch.tensor(len(runner.val_loop.dataloader))
        if get_world_size() > 1:
            all_reduce(batches, 'min')  # a sampler may give some processes one more
        self._batches_of_all = int(batches)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Remembers that it is done."""
        runner.message_hub.update_info(VALIDATED, runner.iter)

    # --- Ending -----------------------------------------------------------------------------

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Saves and ends if asked to."""
        if self._is_to_end():
            _save_and_end(runner, runner.iter + 1)

    def after_val_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Saves and ends if asked to; the validation is made up for later."""
        if batch_idx < self._batches_of_all and self._is_to_end():
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
        # Not `asked_to_end`: this process may get its signal yet, as the first one.
        self._is_ending = bool(asked)
        return self._is_ending


def _leave_signals_to_children() -> None:
    """Gives signals back in a forked process, which nobody else could end by them."""
    for number in SIGNALS:
        while isinstance(
            hook := getattr(signal.getsignal(number), '__self__', None), RunStateHook
        ):
            hook.stop_listening()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_leave_signals_to_children)


def checkpoint_folder(runner: Runner) -> Path:
    """Where the run writes its checkpoints."""
    hook, work_dir = _checkpoint_hook(runner), Path(runner.work_dir)
    folder = Path(getattr(hook, 'out_dir', None) or work_dir)
    # The hook itself joins them before training.
    return (
        folder if folder == work_dir or hasattr(hook, 'file_backend') else folder / work_dir.name
    )


def _checkpoint_hook(runner: Runner) -> CheckpointHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)


def _saves_anyway(runner: Runner, iteration: int) -> bool:
    """Whether the checkpoint after an iteration is one that the config asks for."""
    hook = _checkpoint_hook(runner)
    if hook is None or hook.by_epoch or hook.interval < 1:
        return False
    return iteration % hook.interval == 0


def _save_and_end(runner: Runner, iteration: int) -> None:
    hook = _checkpoint_hook(runner)
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


def _remove_empty_scalers(optimizer: Any) -> None:
    """Removes scalers of losses that a run in bfloat16 had switched off, from all optimizers.

    PyTorch refuses them where losses are scaled now, as on a GPU without bfloat16.
    """
    if not isinstance(optimizer, dict):
        return
    if optimizer.get('loss_scaler') == {}:
        del optimizer['loss_scaler']
    for each in optimizer.values():
        _remove_empty_scalers(each)


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


def _hooks_by_name(runner: Runner) -> dict[str, Hook]:
    """Hooks by class, and of several of a class by number."""
    counts: Counter[str] = Counter()
    found = {}
    for hook in runner.hooks:
        name = type(hook).__name__
        found[f'{name} {counts[name]}'] = hook
        counts[name] += 1
    return found


def _states(runner: Runner) -> dict[str, dict]:
    """What hooks have counted."""
    states = {}
    for name, hook in _hooks_by_name(runner).items():
        if isinstance(hook, EarlyStoppingHook):
            states[name] = dict(wait_count=hook.wait_count, best_score=hook.best_score)
        elif hasattr(hook, 'state_dict') and hasattr(hook, 'load_state_dict'):
            states[name] = hook.state_dict()
    return states


def _load_states(runner: Runner, states: dict[str, dict]) -> None:
    for name, hook in _hooks_by_name(runner).items():
        if name not in states:
            continue
        if isinstance(hook, EarlyStoppingHook):
            vars(hook).update(states[name])
        else:
            hook.load_state_dict(states[name])
