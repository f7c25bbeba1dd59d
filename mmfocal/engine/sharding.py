"""Training whose weights, gradients and optimizer are shared out over processes (FSDP).

PyTorch's ``fully_shard`` in place of mmengine's wrapper, which is made for its predecessor: that
one crashes on a CPU when it gathers weights, and its checkpoints need a runner of another kind.
Here checkpoints are the ordinary ones of a single process: any tool loads them, and a run goes on
from them with any number of processes, sharded or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from mmengine.model import is_model_wrapper
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from mmfocal.models.focal_transformer import FocalBlock


@MODEL_WRAPPERS.register_module()
class ShardedModel(nn.Module):
    """A model of which every process holds a share.

    Blocks of the backbone are gathered one at a time when they are used; what is left of the
    model stays together. Weights are initialised, or loaded, before they are shared out, so that
    they are those of a run without sharding.

    Args:
        module: the model, on its device and not initialised yet.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if hasattr(module, 'init_weights'):
            module.init_weights()
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)
        device = next(module.parameters()).device.type
        mesh = init_device_mesh(device, (dist.get_world_size(),))
        for child in module.modules():
            if isinstance(child, FocalBlock):
                fully_shard(child, mesh=mesh)
        fully_shard(module, mesh=mesh)
        for child in module.modules():
            child.register_load_state_dict_pre_hook(_share_out_weights)
        self.module = module

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's."""
        return self.module.train_step(*args, **kwargs)

    def val_step(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's."""
        return self.module.val_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's."""
        return self.module.test_step(*args, **kwargs)


def is_sharded(model: nn.Module) -> bool:
    """Whether processes hold shares of a model, wrapped or not."""
    module = model.module if is_model_wrapper(model) else model
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def _share_out_weights(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a module is loaded: its share of each tensor that is whole."""
    for name, parameter in module.named_parameters(recurse=False):
        whole = state.get(prefix + name)
        if isinstance(whole, Tensor) and isinstance(parameter, DTensor):
            state[prefix + name] = _share_like(whole, parameter)


def _share_like(whole: Tensor, parameter: DTensor) -> Tensor:
    if isinstance(whole, DTensor) or whole.shape != parameter.shape:
        return whole  # of another shape: whoever loads it has a message for that
    whole = whole.to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements)


def own_share(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it without sharding."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def prepare_sharded_run(runner: Runner) -> None:
    """Before a run loads anything: leaves alone what the wrapper has initialised."""
    if is_sharded(runner.model):
        # mmengine would draw weights again, for shares, and send whole ones to all processes.
        runner._init_model_weights = lambda: None
        _share_out_optimizer(runner.optim_wrapper.optimizer)


def _share_out_optimizer(optimizer: Optimizer) -> None:
    """Lets an optimizer of shares load the state of one of whole tensors."""

    def share_out(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        parameters = [each for group in optimizer.param_groups for each in group['params']]
        numbers = [number for group in state['param_groups'] for number in group['params']]
        shared = dict(state['state'])
        for number, parameter in zip(numbers, parameters, strict=False):
            if number in shared and isinstance(parameter, DTensor):
                shared[number] = {
                    name: _share_like(value, parameter) if isinstance(value, Tensor) else value
                    for name, value in shared[number].items()
                }
        return dict(state, state=shared)

    optimizer.register_load_state_dict_pre_hook(share_out)


@contextmanager
def whole_states(runner: Runner) -> Iterator[None]:
    """Lets the first process save what all have a share of. Every process has to enter.

    mmengine saves in the first process alone, where nothing can be gathered any more.
    """
    if not is_sharded(runner.model):
        yield
        return
    module, optimizer = runner.model.module, runner.optim_wrapper
    states = [(each, _whole(each.state_dict())) for each in (module, optimizer)]
    for owner, state in states:
        owner.state_dict = lambda *_, state=state, **__: state
    try:
        yield
    finally:
        for owner, _ in states:
            del owner.state_dict


def _whole(state: Any) -> Any:
    return tree_map(
        lambda value: value.full_tensor().cpu() if isinstance(value, DTensor) else value, state
    )
