"""The authors' classifiers in those of mmpretrain, so that their accuracy can be checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from .contents import CheckpointError, refuse_unusable
from .layouts import state_dict_of
from .loading import LoadReport, load_pretrained
from .safe_loading import load_checkpoint_file


def load_classifier(
    model: nn.Module,
    checkpoint: str | Mapping[str, Any],
    source: str = 'the given state dict',
    **options: Any,
) -> LoadReport:
    """Loads a file of the authors' classifiers, Focal-fast included, or of Swin Transformer.

    PaddleViT's conversions of the former (``.pdparams``) are files of the authors' here.

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
    # Names in the model by those in the file. timm's head holds its linear layer as fc.
    places = {
        f'{theirs}.{kind}': f'{ours}.{kind}'
        for theirs, ours in (
            ('norm', f'backbone.norm{max(model.backbone.out_indices)}'),
            ('head', 'head.fc'),
        )
        for kind in ('weight', 'bias')
    }
    own, tensors = model.state_dict(), {}
    given = state_dict_of(checkpoint, source)
    for key, place in places.items():
        tensor = given.get(key, given.get(key.replace('head', 'head.fc')))
        if tensor is None:
            raise CheckpointError(
                f'{source} lacks {key}, which a classifier has after its backbone.'
            )
        if tensor.shape != own[place].shape:
            raise CheckpointError(
                f"{source}: the classifier's {key} is {tuple(tensor.shape)}, that of the model "
                f'{tuple(own[place].shape)}. A head has one row for each class: set '
                'model.head.num_classes to that of the file.'
            )
        tensors[place] = tensor
    refuse_unusable(tensors, source)
    report = load_pretrained(model.backbone, checkpoint, source=source, log=False, **options)
    model.load_state_dict(tensors, strict=False)
    loaded = [f'backbone.{name}' for name in report.loaded]
    new = [f'backbone.{name}' for name in report.new]
    report = replace(
        report,
        loaded=[*loaded, *tensors],
        resized=[f'backbone.{name}' for name in report.resized],
        new=[name for name in new if name not in tensors],
        left_out=[key for key in report.left_out if key.replace('.fc.', '.') not in places],
    )
    print_log(f'Pretrained weights: {report}', logger='current')
    return report


@HOOKS.register_module()
class AuthorsClassifierHook(Hook):
    """Lets ``tools/test.py`` and ``load_from`` take the authors' classifiers as they are.

    mmengine loads by name, and leaves out, with no more than a warning, what has another name.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Loads a third-party classifier, and puts the model's state dict in its place."""
        if any(name.startswith('backbone.') for name in state_dict_of(checkpoint, 'load_from')):
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        load_classifier(model, checkpoint, source=str(runner._load_from))
        checkpoint['state_dict'] = model.state_dict()
