"""What the heads of a model take for labels: asked of their classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmfocal.utils.config import (
    class_of,
    family_of,
    is_third_party,
    parameters_of,
    setting,
    type_name,
)

# Parts of models whose labels are not those of the data: regions that may hold anything, another
# model's, and text.
OTHER_LABELS = (
    'backbone',
    'language_model',
    'neck',
    'rpn_head',
    'teacher',
    'test_cfg',
    'train_cfg',
)
# Heads of mmseg that are trained on edges.
EDGES = ('STDCHead',)
IGNORED_LABEL = 255  # by default, and by mmseg's data sets for labels that they drop


class Head(NamedTuple):
    """A head in a config.

    Attributes:
        key: where, such as ``'model.roi_head.bbox_head.0'``.
        settings: what the config says there.
        kind: its class, None if it is not known.
        scope: in which classes of its parts are looked up.
    """

    key: str
    settings: Mapping
    kind: type | None
    scope: str | None

    @property
    def is_stock(self) -> bool:
        return self.kind is not None and not is_third_party(self.kind)

    def get(self, name: str) -> Any:
        """A setting, as the config or the class says; None if neither does."""
        return setting(self.settings, self.kind, name)

    @property
    def num_classes(self) -> int | None:
        """Labels of objects, or pixels, are below this; None if any may be, or it is unknown."""
        if self.get('class_agnostic') is True:  # a mask for all of them
            return None
        number = self.get(self.counts) if self.counts else None
        number = number if type(number) is int else None
        # One output that is no or yes.
        return 2 if number == 1 and self._is_binary else number

    @property
    def counts(self) -> str | None:
        """The argument that says how many classes there are."""
        names = ('num_things_classes', 'num_classes')
        # Of the class itself before those of its parents.
        known = [*self.settings, *(parameters_of(self.kind) if self.kind is not None else ())]
        return next((name for name in known if name in names), None)

    @property
    def _is_binary(self) -> bool:
        losses = _listed(self.get('loss_decode'))
        return bool(losses) and all(loss.get('use_sigmoid') for loss in losses)

    @property
    def ignored(self) -> int | None:
        """The label of pixels that are left out; None if that is not known."""
        loss = self.get('loss_seg')  # of mmdet's heads
        value = loss.get('ignore_index') if isinstance(loss, Mapping) else self.get('ignore_index')
        return value if type(value) is int else None


def find_heads(cfg: Config) -> list[Head]:
    """Heads of a config's model that are trained on the classes of the data, or on label maps."""
    model = cfg.get('model') or {}
    if not isinstance(model, Mapping) or 'language_model' in model:
        return []
    return list(_heads('model', model, family_of(cfg)))


def _heads(
    key: str, settings: Mapping, scope: str | None, is_head: bool = False
) -> Iterator[Head]:
    scope = settings.get('_scope_', scope)
    if is_head:
        kind = class_of(settings, MODELS, scope) if 'type' in settings else None
        if type_name(settings) not in EDGES or is_third_party(kind):
            yield Head(key, settings, kind, scope)
    for name, value in settings.items():
        if name in OTHER_LABELS:
            continue
        for number, each in enumerate(value if isinstance(value, list | tuple) else [value]):
            path = f'{key}.{name}.{number}' if isinstance(value, list | tuple) else f'{key}.{name}'
            if isinstance(each, Mapping):
                yield from _heads(path, each, scope, name == 'head' or name.endswith('_head'))


def is_of_label_maps(head: Head) -> bool:
    """Whether it is one that mmdet trains on label maps beside boxes."""
    return 'semantic_head' in head.key.split('.')


def class_weight_problem(head: Head) -> str | None:
    """Why weights of classes do not fit a head, as part of a sentence."""
    number = head.num_classes
    if not head.is_stock or number is None:
        return None
    stuff = head.get('num_stuff_classes') if head.counts == 'num_things_classes' else 0
    number += 1 + (stuff if type(stuff) is int else 0)  # the last is for no object
    for loss in _listed(head.get('loss_cls')):
        weights = loss.get('class_weight')
        is_common = type_name(loss) == 'CrossEntropyLoss' and not is_third_party(loss)
        is_common = is_common and not loss.get('use_sigmoid')
        if is_common and isinstance(weights, list | tuple) and len(weights) != number:
            return f'loss_cls.class_weight has {len(weights)} numbers, expected {number}.'
    return None


def loss_problem(head: Head, has_ignored: bool) -> str | None:
    """What ends a run in a loss of one of mmseg's heads, as part of a sentence.

    That is found by trying: losses are built, and given a small image.

    Args:
        head: any head.
        has_ignored: whether a pixel of the image is ignored.
    """
    outputs = head.get('out_channels') or head.get('num_classes')
    if not _has_common_loss(head) or head.ignored is None or type(outputs) is not int:
        return None
    side = outputs + 1  # weights of classes fit no side of the image by chance
    logits = torch.zeros(1, outputs, side, side)
    labels = torch.zeros(1, side, side, dtype=torch.int64)
    labels[0, 0, 0] = head.ignored if has_ignored else 0
    for settings in _listed(head.get('loss_decode')):
        if settings.get('class_weight') is None:
            continue
        try:
            with DefaultScope.overwrite_default_scope(head.scope):
                loss = MODELS.build(settings)
            loss(logits, labels, weight=None, ignore_index=head.ignored)
        except (IndexError, RuntimeError) as error:
            return f'{type_name(settings)} with class_weight ends training ({error})'
        except Exception:  # of what is for other tensors than these
            continue
    return None


def _has_common_loss(head: Head) -> bool:
    bases = getattr(head.kind, '__mro__', ())
    common = [base for base in bases if base.__name__ == 'BaseDecodeHead']
    return bool(common) and head.kind.loss_by_feat is common[-1].loss_by_feat


def _listed(losses: Any) -> Sequence[Mapping]:
    losses = losses if isinstance(losses, list | tuple) else [losses]
    return [loss for loss in losses if isinstance(loss, Mapping)]
