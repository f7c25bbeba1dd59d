"""The authors' classifiers in those of mmpretrain, so that their accuracy can be checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmfocal.engine.safe_loading import CheckpointError

from .layouts import state_dict_of
from .loading import load_pretrained


def load_classifier(
    model: nn.Module, checkpoint: Mapping[str, Any], source: str = 'the checkpoint'
) -> None:
    """Loads a file of the authors' classifiers, Focal-fast included, or of Swin Transformer.

    Args:
        model: mmpretrain's ``ImageClassifier`` with a backbone of ours that returns and
            normalises its last map, and a ``LinearClsHead``.
        checkpoint: what the file holds.
        source: its name, for messages.

    Raises:
        CheckpointError: the file lacks norm and head of a classifier, has other classes, or its
            backbone does not fit, see :func:`~mmfocal.pretrained.load_pretrained`.
    """
    load_pretrained(model.backbone, checkpoint)
    # timm's head holds its linear layer as fc.
    norm = getattr(model.backbone, f'norm{max(model.backbone.out_indices)}')
    tensors = {
        name.replace('head.fc.', 'head.'): value
        for name, value in state_dict_of(checkpoint, source).items()
    }
    for name, module in (('norm', norm), ('head', model.head.fc)):
        part = {entry: tensors.get(f'{name}.{entry}') for entry in ('weight', 'bias')}
        if any(tensor is None for tensor in part.values()):
            raise CheckpointError(
                f"{source} lacks the classifier's {name}.weight and {name}.bias, which a "
                'classifier has behind its backbone.'
            )
        if part['weight'].shape != module.weight.shape:
            raise CheckpointError(
                f"{source}: the classifier's {name} is {tuple(part['weight'].shape)}, that of the "
                f'model {tuple(module.weight.shape)}. A head has one row for each class: set '
                'model.head.num_classes to that of the file.'
            )
        module.load_state_dict(part)
    print_log('Pretrained weights: norm and head of the classifier loaded.', logger='current')


@HOOKS.register_module()
class AuthorsClassifierHook(Hook):
    """Lets ``tools/test.py`` and ``load_from`` take the authors' classifiers as they are.

    mmengine loads by name, and leaves out, with no more than a warning, what has another name.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Replaces the state dict of a classifier of others by the model's, once it is loaded."""
        if any(name.startswith('backbone.') for name in state_dict_of(checkpoint, 'load_from')):
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        load_classifier(model, checkpoint, str(runner._load_from))
        checkpoint['state_dict'] = model.state_dict()
