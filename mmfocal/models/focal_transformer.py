"""The Focal Transformer backbone, from its smallest part to the registered model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.model import BaseModule
from mmengine.model.weight_init import trunc_normal_, update_init_info
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmfocal.geometry import FocalGeometry, FocalKeys, WindowGeometry
from mmfocal.utils.config import type_name
from mmfocal.weights import load_pretrained

from .focal_self_attention import FocalSelfAttention
from .settings import ARCH_SETTINGS, Settings

GRAPHS_OF_A_STAGE = 16  # at most, of a compiled block: see FocalTransformer.compile_blocks
# Settings of a geometry whose arguments of the backbone have the plural.
PLURALS = ('focal_level', 'focal_window', 'expand_size')


class PatchEmbed(nn.Module):
    """Strided convolution and norm: the stem, and the step from one stage to the next.

    After ``PatchEmbed`` of the authors' ``classification/focal_transformer.py``.

    Args:
        in_channels: channels of the input.
        embed_dims: channels of the output.
        stride: pixels or tokens that become one token, along each side.
        overlap: whether the patches overlap: kernel 7, padding 2 for a stride of 4, and kernel
            3, padding 1 for a stride of 2, instead of a kernel as large as the stride.
        pre_norm: whether the input is normalised over channels and positions together.
        norm_cfg: norm of the output, None for none.
    """

    # Stride to kernel size and padding of overlapping patches.
    OVERLAPPING: ClassVar[dict[int, tuple[int, int]]] = {4: (7, 2), 2: (3, 1)}

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        stride: int,
        overlap: bool = False,
        pre_norm: bool = False,
        norm_cfg: dict | None = None,
    ) -> None:
        super().__init__()
        self.stride = stride
        if overlap and stride not in self.OVERLAPPING:
            raise ValueError(
                f'use_conv_embed has patches of stride {sorted(self.OVERLAPPING)}, '
                f'got patch_size={stride}'
            )
        kernel_size, padding = self.OVERLAPPING[stride] if overlap else (stride, 0)
        self.pre_norm = nn.GroupNorm(1, in_channels) if pre_norm else None
        self.proj = nn.Conv2d(in_channels, embed_dims, kernel_size, stride, padding)
        self.norm = build_norm_layer(norm_cfg, embed_dims)[1] if norm_cfg else None

    def forward(self, x: Tensor) -> Tensor:
        """float ``(B, C, H, W)`` to ``(B, ceil(H / stride), ceil(W / stride), embed_dims)``."""
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        x = self.proj(pad_to_multiple(x, self.stride)).permute(0, 2, 3, 1)
        return x if self.norm is None else self.norm(x)


class PatchMerging(nn.Module):
    """Norm and linear layer over 2x2 tokens: the step between stages of Swin Transformer.

    After ``PatchMerging`` of the authors' ``classification/focal_transformer.py``, which does not
    use it, with channels in the order of Swin's weights: those of the upper left token, then of
    the lower left, the upper right and the lower right one.

    Args:
        in_channels: channels of the input.
        embed_dims: channels of the output.
        norm_cfg: norm over the channels of the four tokens.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        norm_cfg: dict,
    ) -> None:
        super().__init__()
        self.norm = build_norm_layer(norm_cfg, 4 * in_channels)[1]
        self.reduction = nn.Linear(4 * in_channels, embed_dims, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """float ``(B, C, H, W)`` to ``(B, ceil(H / 2), ceil(W / 2), embed_dims)``."""
        height, width = ((side + 1) // 2 for side in x.shape[-2:])
        x = pad_to_multiple(x, 2).view(-1, x.shape[1], height, 2, width, 2)
        return self.reduction(self.norm(x.permute(0, 2, 4, 5, 3, 1).flatten(3)))


def pad_to_multiple(x: Tensor, size: int, value: float = 0.0) -> Tensor:
    """``(B, C, H, W)`` padded at the bottom and right to multiples of ``size``."""
    bottom, right = ((side + size - 1) // size * size - side for side in x.shape[-2:])
    # F.pad always copies. A graph for all sizes must not decide by one of them.
    if torch.compiler.is_compiling() or bottom or right:
        x = F.pad(x, (0, right, 0, bottom), value=value)
    return x


class Mlp(nn.Module):
    """Two linear layers with an activation between and dropout after each."""

    def __init__(
        self,
        embed_dims: int,
        hidden_dims: int,
        act_cfg: dict,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.act = build_activation_layer(act_cfg)
        self.fc2 = nn.Linear(hidden_dims, embed_dims)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """float ``(..., C)`` to ``(..., C)``."""
        # As rows: torch.compile cannot order the strides of maps of symbolic sizes.
        hidden = self.drop(self.act(self.fc1(x.flatten(0, -2))))
        return self.drop(self.fc2(hidden)).view(x.shape)


class DropPath(nn.Module):
    """Adds a branch to its residual connection, in training with stochastic depth.

    Like mmcv's ``DropPath`` and a sum, but in fewer passes over the maps, and with probabilities
    that are not rounded to 16 bits in mixed precision.

    Args:
        drop_prob: probability at which the branch of an image is left out.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """float ``(B, ...)`` both, to the same."""
        if not self.training or self.drop_prob == 0:
            return x + branch
        kept = 1 - self.drop_prob
        shape = (len(x), *(1 for _ in x.shape[1:]))
        factor = torch.empty(shape, dtype=torch.float32, device=x.device)
        return torch.addcmul(x, branch, factor.bernoulli_(kept).div_(kept).to(x.dtype))


class FocalBlock(nn.Module):
    """Norm, attention, norm, MLP, each half with a residual connection.

    Args:
        attention: the attention layer.
        embed_dims: channels ``C``.
        hidden_dims: channels inside the MLP.
        norm_cfg: type of the two norms.
        act_cfg: activation of the MLP.
        drop: drop rate inside the MLP.
        drop_path: rate at which a half is left out for an image, in training.
        layer_scale: first value of the learned factors ``gamma_1`` and ``gamma_2`` of the two
            halves, one for each channel; None for no factors.
    """

    def __init__(
        self,
        attention: FocalSelfAttention,
        embed_dims: int,
        hidden_dims: int,
        norm_cfg: dict,
        act_cfg: dict,
        drop: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.attn = attention
        self.norm2 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.mlp = Mlp(embed_dims, hidden_dims, act_cfg, drop)
        self.drop_path = DropPath(drop_path)
        self.gamma_1 = self.gamma_2 = None
        if layer_scale is not None:
            self.gamma_1 = nn.Parameter(torch.full((embed_dims,), layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((embed_dims,), layer_scale))

    def forward(self, x: Tensor, keys: FocalKeys) -> Tensor:
        """float ``(B, H, W, C)`` to the same; ``keys`` belong to the map's size."""
        x = self.drop_path(x, _scaled(self.attn(self.norm1(x), keys), self.gamma_1))
        return self.drop_path(x, _scaled(self.mlp(self.norm2(x)), self.gamma_2))


def _scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    return x if gamma is None else x * gamma


class FocalStage(nn.Module):
    """Blocks that work on maps of one stride, and the step to the next stage.

    Args:
        blocks: the blocks, in order.
        downsample: step to the next stage, None for the last one.
        with_cp: whether the blocks' activations are computed again in the backward pass instead
            of being kept.
    """

    def __init__(
        self,
        blocks: Sequence[FocalBlock],
        downsample: PatchEmbed | PatchMerging | None = None,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Runs the blocks and the downsampling.

        Args:
            x: float ``(B, H, W, C)``.

        Returns:
            The map after the last block, float ``(B, H, W, C)``, and the input of the next
            stage, ``(B, ceil(H / 2), ceil(W / 2), 2 * C)``, or None after the last stage.
        """
        # Blocks differ in their keys only where every other one shifts or expands.
        layers = {block.attn.geometry: block.attn for block in self.blocks}
        keys = {geometry: layer.keys(x) for geometry, layer in layers.items()}
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, keys[block.attn.geometry], use_reentrant=False)
            else:
                x = block(x, keys[block.attn.geometry])
        if self.downsample is None:
            return x, None
        return x, self.downsample(x.permute(0, 3, 1, 2))


@MODELS.register_module()
class FocalTransformer(BaseModule):
    """Focal Transformer (Yang et al., NeurIPS 2021, arXiv 2107.00641) as a backbone.

    Takes images of any size of at least 1x1 pixel: images are padded at the bottom and right to
    whole patches, maps to whole windows, as in Swin Transformer. Defaults are the published
    ImageNet models; for dense prediction the authors widen ``focal_windows`` to
    ``(15, 13, 9, 7)``.

    A setting that takes "one or four" is either one value for all stages or one for each stage.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, ``'large'``, or a dict of ``embed_dims`` (int,
            channels of the first stage; each later one has twice as many), ``depths`` (blocks)
            and ``num_heads``, the latter two one value per stage.
        in_channels: channels of the image.
        patch_size: pixels along the side of a patch; the strides of the outputs are
            ``patch_size * (1, 2, 4, 8)``.
        window_size: side of a window in tokens; one or four.
        focal_levels: levels of granularity, the fine one included; one or four.
        focal_windows: side of the pooled region in cells, odd; one or four.
        focal_stages: stages (counted from 0) that have pooled levels at all.
        pool_method: how windows are pooled: ``'fc'``, ``'conv'``, ``'mean'``, ``'max'``, or
            ``'none'`` for no pooled levels.
        expand_sizes: width in tokens of the ring of fine tokens around a window; one or four.
        expand_layer: blocks that have a ring: ``'all'``, or as the authors name it ``'even'``
            where the even blocks (0, 2, ...) of a stage go without and ``'odd'`` where the odd
            ones do.
        border: ``'wrap'`` as the authors, or ``'mask'``; see
            :class:`~mmfocal.geometry.FocalGeometry`.
        use_shift: whether odd blocks move their windows by half a window; one or four.
        mlp_ratio: channels inside an MLP over channels outside.
        qkv_bias: whether query, key and value projections have a bias.
        qk_scale: factor of the attention products, ``D ** -0.5`` for heads of ``D`` channels by
            default.
        drop_rate: drop rate of embeddings, attention outputs and MLPs.
        attn_drop_rate: drop rate of attention weights.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        use_abs_pos_embed: whether a learned position embedding is added to the patches. It is
            made for ``pretrain_img_size`` and resized to other sizes (bicubic).
        pretrain_img_size: image size in pixels, one or (height, width), that the embedding and
            ``clamp_windows`` are for; not used without them.
        clamp_windows: whether stages whose map of ``pretrain_img_size`` is no larger than a
            window have windows as large as that map, no ring and no shift, as the authors'
            classifiers have. Needed to compute what those compute: at 224 pixels it concerns stage
            3 with windows of 7 tokens, stages 2 and 3 with windows of 14. Dense prediction, whose
            maps are larger, goes without.
        patch_norm: whether patches are normalised after the stem.
        use_conv_embed: whether patches overlap, in the stem and between stages.
        use_pre_norm: whether maps are normalised before the convolution between stages.
        downsample: step between stages: ``'conv'``, a strided convolution followed by a norm,
            as the authors, or ``'merging'``, the patch merging of Swin Transformer, whose weights
            then fit there too.
        layer_scale_init_value: first value of the layer scale (CaiT), None for no layer scale.
        out_indices: stages whose maps are returned, counted from 0. Later stages are not
            built.
        out_norm: whether each returned map is normalised by a norm of its own, ``norm0`` to
            ``norm3``, as detectors expect.
        frozen_stages: -1 trains everything, 0 freezes the stem, ``i`` also the first ``i``
            stages and their output norms.
        with_cp: whether activations inside blocks are computed again in the backward pass,
            which saves memory and costs time.
        norm_cfg: norm over channels, such as ``dict(type='LN')``.
        act_cfg: activation of the MLPs.
        attention_backend: ``backend`` of :func:`mmfocal.focal_attention`.
        compile_blocks: whether each block is compiled by :func:`torch.compile`, for symbolic
            sizes. That takes a minute or two when training begins and seldom again; compiling the
            whole backbone takes longer, and is repeated for many sizes.
        init_cfg: as in mmengine. ``dict(type='Pretrained', checkpoint=...)`` takes the authors'
            files, PaddleViT's of them, Swin Transformer's and our own, and all arguments of
            :func:`mmfocal.weights.load_pretrained`.

    Attributes:
        feature_info: for each output, in order, a dict as of timm: ``num_chs`` (channels),
            ``reduction`` (stride in pixels) and ``module``, the name of the module that computes
            it, whose own output is ``(B, H, W, C)``, or a tuple that begins with it where
            ``out_norm`` is off.

    Raises:
        TypeError, ValueError: a setting of the wrong type or value; the message names it, what
            was expected and what came.

    Example:
        >>> import torch
        >>> from mmfocal import FocalTransformer
        >>> model = FocalTransformer(arch='tiny', focal_windows=(15, 13, 9, 7)).eval()
        >>> [tuple(map_.shape) for map_ in model(torch.rand(1, 3, 64, 96))]
        [(1, 96, 16, 24), (1, 192, 8, 12), (1, 384, 4, 6), (1, 768, 2, 3)]
    """

    arch_settings: ClassVar[dict[str, dict]] = ARCH_SETTINGS

    def __init__(
        self,
        arch: str | dict = 'tiny',
        in_channels: int = 3,
        patch_size: int = 4,
        window_size: int | Sequence[int] = 7,
        focal_levels: int | Sequence[int] = 2,
        focal_windows: int | Sequence[int] = (7, 5, 3, 1),
        focal_stages: Sequence[int] = (0, 1, 2, 3),
        pool_method: str = 'fc',
        expand_sizes: int | Sequence[int] = 3,
        expand_layer: str = 'all',
        border: str = 'wrap',
        use_shift: bool | Sequence[bool] = False,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        use_abs_pos_embed: bool = False,
        pretrain_img_size: int | Sequence[int] = 224,
        clamp_windows: bool = False,
        patch_norm: bool = True,
        use_conv_embed: bool = False,
        use_pre_norm: bool = False,
        downsample: str = 'conv',
        layer_scale_init_value: float | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        out_norm: bool = True,
        frozen_stages: int = -1,
        with_cp: bool = False,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        attention_backend: str = 'auto',
        compile_blocks: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        not_settings = ('self', '__class__')
        settings = Settings(**{k: v for k, v in locals().items() if k not in not_settings})
        super().__init__(init_cfg)
        self.out_indices = settings.out_indices
        self.out_norm = out_norm
        self.frozen_stages = frozen_stages
        self.feature_info = [
            dict(
                num_chs=settings.channels(stage),
                reduction=patch_size * 2**stage,
                module=f'norm{stage}' if out_norm else f'stages.{stage}',
            )
            for stage in self.out_indices
        ]

        self.patch_embed = PatchEmbed(
            in_channels,
            settings.embed_dims,
            stride=patch_size,
            overlap=use_conv_embed,
            norm_cfg=settings.norm_cfg if patch_norm else None,
        )
        self.absolute_pos_embed = None
        if use_abs_pos_embed:
            grid = (side // patch_size for side in settings.pretrain_img_size)
            self.absolute_pos_embed = nn.Parameter(torch.empty(1, settings.embed_dims, *grid))
            trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.drop_after_pos = nn.Dropout(drop_rate)
        self.stages = nn.ModuleList(
            self._stage(settings, stage) for stage in range(settings.num_stages)
        )
        for stage in self.out_indices if out_norm else ():
            norm = build_norm_layer(settings.norm_cfg, settings.channels(stage))[1]
            self.add_module(f'norm{stage}', norm)

        self.apply(_init_linear)
        self._freeze_stages()
        if compile_blocks:
            self.compile_blocks()

    def _stage(self, settings: Settings, stage: int) -> FocalStage:
        blocks = [self._block(settings, stage, block) for block in range(settings.depths[stage])]
        channels = settings.channels(stage)
        downsample = None
        if stage < settings.num_stages - 1 and settings.downsample == 'merging':
            downsample = PatchMerging(channels, channels * 2, settings.norm_cfg)
        elif stage < settings.num_stages - 1:
            downsample = PatchEmbed(
                channels,
                channels * 2,
                stride=2,
                overlap=settings.use_conv_embed,
                pre_norm=settings.use_pre_norm,
                norm_cfg=settings.norm_cfg,
            )
        return FocalStage(blocks, downsample, settings.with_cp)

    def _block(self, settings: Settings, stage: int, block: int) -> FocalBlock:
        channels, layer_scale = settings.channels(stage), settings.layer_scale_init_value
        try:
            geometry = _only_one(self._geometry(settings, stage, block))
        except (TypeError, ValueError) as error:
            name, _, rest = str(error).partition(' ')
            name = f'{name}s' if name in PLURALS else name
            raise type(error)(f'stage {stage} of {type(self).__name__}: {name} {rest}') from None
        attention = FocalSelfAttention(
            geometry,
            channels,
            settings.num_heads[stage],
            pool_method=settings.pool_method,
            qkv_bias=settings.qkv_bias,
            qk_scale=settings.qk_scale,
            attn_drop=settings.attn_drop_rate,
            proj_drop=settings.drop_rate,
            backend=settings.attention_backend,
        )
        return FocalBlock(
            attention,
            channels,
            int(channels * settings.mlp_ratio),
            norm_cfg=settings.norm_cfg,
            act_cfg=settings.act_cfg,
            drop=settings.drop_rate,
            drop_path=settings.drop_path(stage, block),
            layer_scale=None if layer_scale is None else float(layer_scale),
        )

    def _geometry(self, settings: Settings, stage: int, block: int) -> WindowGeometry:
        return FocalGeometry(**settings.geometry(stage, block))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps of the stages in ``out_indices``.

        Args:
            x: float ``(B, in_channels, H, W)`` with ``H, W >= 1`` pixels.

        Returns:
            float ``(B, C_i, ceil(H / s_i), ceil(W / s_i))`` for each stage ``i``, with
            ``C_i = embed_dims * 2 ** i`` channels and stride ``s_i = patch_size * 2 ** i``.
        """
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            x = x + _resized(self.absolute_pos_embed, x.shape[1:3]).permute(0, 2, 3, 1)
        x = self.drop_after_pos(x)

        outs = []
        for i, stage in enumerate(self.stages):
            out, x = stage(x)
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(out) if self.out_norm else out
                outs.append(out.permute(0, 3, 1, 2).contiguous())
        return tuple(outs)

    @property
    def num_features(self) -> list[int]:
        """Channels of each output, in order: what a neck takes as ``in_channels``."""
        return [each['num_chs'] for each in self.feature_info]

    def compile_blocks(self, **options: Any) -> None:
        """Compiles each block by itself, for symbolic sizes.

        Blocks of a stage share their graphs; a stage has one for maps of whole windows, one or two
        for maps that are padded, and each of them for one image and for several. PyTorch stops
        compiling after eight graphs of one function, so its limit is raised.

        Args:
            **options: of :func:`torch.compile`, besides ``dynamic``. Modes that record CUDA graphs
                need tables of keys that are there before: run the model once for each size first.
        """
        from torch._dynamo import config  # a second of time, for those who compile

        config.recompile_limit = max(config.recompile_limit, GRAPHS_OF_A_STAGE * len(self.stages))
        # In a distributed run a block would be cut where a bucket of gradients ends, and its parts
        # cannot hand each other symbolic sizes. Gradients are exchanged between blocks anyway.
        config.optimize_ddp = False
        for stage in self.stages:
            for block in stage.blocks:
                block.compile(dynamic=True, **options)

    def init_weights(self) -> None:
        """As in mmengine, but ``Pretrained`` takes third-party checkpoints and other sizes.

        Raises:
            CheckpointError: see :func:`mmfocal.weights.load_pretrained`.
        """
        init_cfg = self.init_cfg or []
        settings = [init_cfg] if isinstance(init_cfg, dict) else init_cfg
        pretrained = [
            cfg for cfg in settings if type_name(cfg) in ('Pretrained', 'PretrainedInit')
        ]
        loads = not self.is_init
        self.init_cfg = [cfg for cfg in settings if cfg not in pretrained]
        try:
            super().init_weights()
        finally:
            self.init_cfg = init_cfg
        if not loads:
            return
        for cfg in pretrained:
            load_pretrained(self, **{key: value for key, value in cfg.items() if key != 'type'})
            if hasattr(self, '_params_init_info'):
                update_init_info(self, init_info=f'Pretrained: {cfg["checkpoint"]}')

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Which layer a parameter belongs to, for learning rates that differ by layer.

        Layer 0 is the patch embedding and every block one more. The step between two stages
        belongs to the block before it; norms of outputs and all that comes after the backbone are
        the last layer. The interface is that of mmpretrain's backbones.

        Args:
            param_name: with ``prefix`` in front.
            prefix: of the backbone's parameters, such as ``'backbone.'``.

        Returns:
            The layer, and the number of layers.
        """
        depths = [len(stage.blocks) for stage in self.stages]
        num_layers = sum(depths) + 2
        part, *rest = param_name.removeprefix(prefix).split('.')
        if not param_name.startswith(prefix) or part.startswith('norm'):
            return num_layers - 1, num_layers
        if part != 'stages':
            return 0, num_layers
        stage = int(rest[0])
        block = int(rest[2]) if rest[1] == 'blocks' else depths[stage] - 1
        return sum(depths[:stage]) + block + 1, num_layers

    def train(self, mode: bool = True) -> FocalTransformer:
        """Sets training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed, self.drop_after_pos, *self.stages[: self.frozen_stages]]
        if self.out_norm:
            frozen += [
                getattr(self, f'norm{i}') for i in self.out_indices if i < self.frozen_stages
            ]
        for module in frozen:
            module.eval().requires_grad_(False)
        if self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad_(False)


def _init_linear(module: nn.Module) -> None:
    """Truncated normal weights, as in the authors' ``FocalTransformer._init_weights``."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _resized(embedding: Tensor, size: Sequence[int]) -> Tensor:
    """``(1, C, h, w)`` as ``(1, C, *size)``; its own size leaves it as it is, bit for bit."""
    if embedding.shape[-2:] == tuple(size):
        return embedding
    return F.interpolate(embedding, size=tuple(size), mode='bicubic', align_corners=False)


@lru_cache
def _only_one(geometry: WindowGeometry) -> WindowGeometry:
    """One object for equal ones: torch.compile tells graphs apart by identity."""
    return geometry
