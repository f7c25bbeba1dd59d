"""The authors' classifiers in those of mmpretrain, so that their accuracy can be checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from .layouts import state_dict_of
from .loading import LoadReport, load_backbone
from .safe_loading import CheckpointError, load_checkpoint_file

_BEHIND_BACKBONE = r'(norm|head|head\.fc)\.(weight|bias)'


def load_classifier(
    model: nn.Module,
    checkpoint: str | Mapping[str, Any],
    source: str = 'the given state dict',
    **options: Any,
) -> LoadReport:
    """Loads a file of the authors' classifiers, Focal-fast included, or of Swin Transformer.

    Args:
        model: mmpretrain's ``ImageClassifier`` with a backbone of ours that returns and
            normalises its last map, and a ``LinearClsHead``.
        checkpoint: path, URL, or what such a file holds.
        source: name of the file, for messages.
        **options: as for :func:`~mmfocal.weights.load_pretrained`.

    Returns:
        What became of each tensor, under its name in the classifier.

    Raises:
        CheckpointError: the file lacks norm and head of a classifier, has other classes, or its
            backbone does not fit, see :func:`~mmfocal.weights.load_pretrained`.
    """
    if not isinstance(checkpoint, Mapping):
        source = str(checkpoint)
        checkpoint = load_checkpoint_file(checkpoint, sha256=options.pop('sha256', None))
    # timm's head holds its linear layer as fc.
    tensors = {
        name.replace('head.fc.', 'head.'): value
        for name, value in state_dict_of(checkpoint, source).items()
    }
    report = load_backbone(model.backbone, checkpoint, source=source, **options)
    for what in ('loaded', 'resized', 'new'):
        setattr(report, what, [f'backbone.{name}' for name in getattr(report, what)])
    for name, place in (
        ('norm', f'backbone.norm{max(model.backbone.out_indices)}'),
        ('head', 'head.fc'),
    ):
        module = model.get_submodule(place)
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
        report.loaded += [f'{place}.{entry}' for entry in part]
    report.new = [name for name in report.new if name not in report.loaded]
    report.left_out = [
        name for name in report.left_out if not re.fullmatch(_BEHIND_BACKBONE, name)
    ]
    print_log(f'Pretrained weights: {report}', logger='current')
    return report


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
        load_classifier(model, checkpoint, source=str(runner._load_from))
        checkpoint['state_dict'] = model.state_dict()
