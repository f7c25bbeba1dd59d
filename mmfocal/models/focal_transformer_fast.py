"""Focal-fast: the authors' second version of the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.registry import MODELS

from mmfocal.geometry import ClosestGeometry
from mmfocal.utils.checks import check_int, require

from .focal_transformer import FocalTransformer
from .settings import Settings, is_sequence

# Settings of the first version's keys, which the closest take the place of.
WITHOUT = ('focal_windows', 'expand_sizes', 'expand_layer', 'border')


@MODELS.register_module()
class FocalTransformerFast(FocalTransformer):
    """Focal Transformer whose windows attend to the closest tokens and the closest pooled cells.

    The authors' ``classification/focal_transformer_v2.py`` (microsoft/Focal-Transformer at
    57bb303), which they call Focal-fast. Beside :class:`FocalTransformer` it differs in the keys
    (:class:`~mmfocal.geometry.ClosestGeometry`) and in the position bias, which small MLPs
    compute from relative positions
    (:class:`~mmfocal.models.position_bias.CoordinatePositionBias`). Defaults are their settings of
    the ImageNet models.

    Padding is never a key, and shifted windows have no mask, as the authors' have none.

    Args:
        arch: as of :class:`FocalTransformer`.
        top_k: keys of a window at each level.
        use_conv_embed: as of :class:`FocalTransformer`; on in all published models.
        stored_map_sizes: for each stage None or the height and width in tokens of maps for which
            relative positions of keys are buffers of the state dict instead of being computed;
            see :func:`mmfocal.weights.from_authors`. None for no stage.
        **settings: all others of :class:`FocalTransformer`, but for ``focal_windows``,
            ``expand_sizes``, ``expand_layer`` and ``border``, which have no meaning here.

    Raises:
        TypeError, ValueError: a setting of the wrong type or value, or one without meaning here;
            the message names it.

    Example:
        >>> import torch
        >>> from mmfocal import FocalTransformerFast
        >>> model = FocalTransformerFast(arch='tiny').eval()
        >>> [tuple(map_.shape) for map_ in model(torch.rand(1, 3, 64, 96))]
        [(1, 96, 16, 24), (1, 192, 8, 12), (1, 384, 4, 6), (1, 768, 2, 3)]
    """

    def __init__(
        self,
        arch: str | dict = 'tiny',
        top_k: int = 128,
        use_conv_embed: bool = True,
        stored_map_sizes: Sequence[Sequence[int] | None] | None = None,
        **settings: Any,
    ) -> None:
        if meaningless := [name for name in WITHOUT if name in settings]:
            raise TypeError(
                f'{", ".join(meaningless)}: settings of FocalTransformer that '
                'FocalTransformerFast does not have; its windows attend to the top_k closest keys'
            )
        # Before the stages are built, which happens in the constructor of the base class.
        self.top_k, self.stored_map_sizes = top_k, stored_map_sizes
        # One value for any number of stages, which `_geometry` leaves out.
        super().__init__(arch, use_conv_embed=use_conv_embed, focal_windows=1, **settings)

    def _geometry(self, settings: Settings, stage: int, block: int) -> ClosestGeometry:
        shared = settings.geometry(stage, block)
        height, width = self._stored_map_size(stage)
        return ClosestGeometry(
            **{name: shared[name] for name in ('window_size', 'shift_size', 'focal_level')},
            top_k=self.top_k,
            separate_height=height,
            separate_width=width,
        )

    def _stored_map_size(self, stage: int) -> Sequence[int]:
        """Height and width of maps with stored relative positions, zeros for none."""
        sizes, name = self.stored_map_sizes, 'stored_map_sizes'
        if sizes is None:
            return 0, 0
        expected = 'None or have one entry for each stage'
        require(is_sequence(sizes) and len(sizes) > stage, name, expected, sizes)
        if sizes[stage] is None:
            return 0, 0
        expected = 'None or have (height, width) or None for each stage'
        require(is_sequence(sizes[stage]) and len(sizes[stage]) == 2, name, expected, sizes)
        for side in sizes[stage]:
            check_int('stored_map_sizes: height and width', side, least=1)
        return sizes[stage]
