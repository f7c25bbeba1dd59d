"""Layer-wise decay of the learning rate, for fine-tuning from pretrained weights."""

from __future__ import annotations

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Gives layers of the backbone lower learning rates the nearer they are to the image.

    Whatever comes after the backbone learns at full rate, its last layer at
    ``layer_decay_rate`` times that, the layer before at its square, and so on down to the patch
    embedding; a block is a layer. As in BEiT (arXiv 2106.08254, appendix H) and in mmpretrain's
    constructor of that kind, which only knows classifiers.

    Use it by ``optim_wrapper=dict(constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9))``. All other keys of ``paramwise_cfg`` mean what they
    mean to mmengine's own constructor, and their factors multiply with those of layers.

    Raises:
        ValueError: ``layer_decay_rate`` is missing or not in (0, 1], or no part of the model has
            the method ``get_layer_depth``.
    """

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs: Any
    ) -> None:
        """Adds the parameters of ``module`` to ``params``, a group for each."""
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:
            return  # a part of the model, which its other parts will follow
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if not isinstance(rate, float | int) or not 0 < rate <= 1:
            raise ValueError(
                'paramwise_cfg.layer_decay_rate must be a number above 0 and up to 1, the factor '
                f'from one layer to the one before, got {rate!r}.'
            )
        backbones = {
            name: part for name, part in module.named_modules() if hasattr(part, 'get_layer_depth')
        }
        # A classifier of mmpretrain has the method itself, and hands it on to its backbone.
        backbones.pop('', None)
        if not backbones:
            raise ValueError(
                'LayerDecayOptimWrapperConstructor needs a backbone with the method '
                f'get_layer_depth, such as FocalTransformer; {type(module).__name__} has none.'
            )
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        for group in params:
            (parameter,) = group['params']
            name = names[id(parameter)]
            for prefix, backbone in backbones.items():
                if name.startswith(f'{prefix}.'):
                    depth, layers = backbone.get_layer_depth(name, f'{prefix}.')
                    group['lr'] = group.get('lr', self.base_lr) * rate ** (layers - 1 - depth)
