"""A model and one image, as the test of a config has them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope
from torch import Tensor, nn

from mmfocal.datasets.checks import why_unreadable
from mmfocal.engine.checkpoints import checkpoint_of
from mmfocal.models import FocalTransformer
from mmfocal.utils.config import import_packages, type_name
from mmfocal.utils.errors import UserError
from mmfocal.weights import load_pretrained

# What test pipelines do to an image, by what it does to the places of its pixels.
RESIZING = ('Resize', 'ResizeEdge', 'ResizeShortestEdge', 'ResizeToMultiple', 'FixScaleResize')
CROPPING = ('CenterCrop',)
PADDING = ('Pad',)  # at the bottom and right
PACKING = ('PackDetInputs', 'PackSegInputs', 'PackInputs')
LOADING = ('LoadImageFromFile',)
LEFT_OUT = ('LoadAnnotations', 'LoadPanopticAnnotations')
FOLLOWED = (*LOADING, *LEFT_OUT, *RESIZING, *CROPPING, *PADDING, *PACKING)


@dataclass(frozen=True)
class View:
    """An image and what a model gets to see of it.

    Places in both are continuous, in pixels from the upper left corner: pixel ``i`` reaches from
    ``i`` to ``i + 1``.

    Attributes:
        image: uint8 ``(H, W, 3)``, RGB.
        inputs: float ``(1, 3, H', W')``, resized, cropped, normalised and padded.
        scale: pixels of ``inputs`` for a pixel of the image, along x and y.
        offset: x and y in ``inputs`` of the image's upper left corner; negative where that is
            cropped away.
    """

    image: np.ndarray
    inputs: Tensor
    scale: tuple[float, float]
    offset: tuple[float, float]

    @classmethod
    def of_inputs(cls, inputs: Tensor) -> View:
        """``inputs`` as the image of themselves, their values spread over 0 to 255.

        Raises:
            ValueError: they are not one image.
        """
        if inputs.dim() != 4 or len(inputs) != 1:
            raise ValueError(f'inputs must be (1, C, H, W), got {tuple(inputs.shape)}')
        channels = 3 if inputs.shape[1] >= 3 else 1
        pixels = inputs[0, :channels].permute(1, 2, 0).float().cpu()
        pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp(min=1e-12) * 255
        return cls(pixels.byte().expand(-1, -1, 3).numpy(), inputs, (1.0, 1.0), (0.0, 0.0))

    def to_inputs(self, points: np.ndarray) -> np.ndarray:
        """From places ``(..., 2)`` in the image, x and y, to those in ``inputs``."""
        return np.asarray(points) * self.scale + self.offset

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """From places ``(..., 2)`` in ``inputs``, x and y, to those in the image."""
        return (np.asarray(points) - self.offset) / self.scale

    @property
    def seen(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of what of the image is not cropped away, in its pixels."""
        height, width = self.inputs.shape[-2:]
        left, top = np.maximum(self.to_image((0, 0)), 0)
        right, bottom = np.minimum(self.to_image((width, height)), self.image.shape[1::-1])
        return float(left), float(top), float(right), float(bottom)


def load_model(cfg: Config, checkpoint: str | None) -> nn.Module:
    """The model of a config, in evaluation mode, with the weights of its backbone.

    Args:
        cfg: the config.
        checkpoint: path, URL, or work folder of a run; anything that
            :func:`mmfocal.weights.load_pretrained` takes. None for weights as they are before
            training, without those that the config begins with.

    Returns:
        The model, whose heads are not loaded.

    Raises:
        UserError: packages that the config needs are missing, its backbone is none of ours, or
            the checkpoint does not fit it.
    """
    import_packages(cfg)
    settings = dict(cfg.model)
    # As the runner does, for configs of mmpretrain.
    if cfg.get('data_preprocessor') is not None:
        settings.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        model = MODELS.build(settings)
    backbone = find_backbone(model)
    if checkpoint is not None:
        report = load_pretrained(backbone, checkpoint_of(checkpoint), log=False)
        if report.resized or report.new:
            print_log(f'The weights are not all those of the file: {report}', 'current')
    return model.eval()


def find_backbone(model: nn.Module) -> FocalTransformer:
    """The Focal Transformer that a model has, or is.

    Raises:
        UserError: there is none.
    """
    for module in model.modules():
        if isinstance(module, FocalTransformer):
            return module
    raise UserError(
        f'{type(model).__name__} has no backbone of type FocalTransformer or '
        'FocalTransformerFast. Give a config or a model with one.'
    )


def view_image(cfg: Config, model: nn.Module, path: str | os.PathLike) -> View:
    """An image as the model sees it in the test of its config, in one piece.

    It goes through ``test_dataloader.dataset.pipeline`` and the model's preprocessor. Segmenters
    whose ``test_cfg`` slides a window over the image see the whole of it here.

    Args:
        cfg: the config.
        model: of :func:`load_model`.
        path: of the image.

    Raises:
        UserError: the image cannot be read, or the pipeline does what cannot be followed from
            pixel to pixel; the message names it.
    """
    if problem := why_unreadable(path):
        raise UserError(f'{path}: {problem}')
    steps = [step for step in test_dataset(cfg).pipeline if type_name(step) not in LEFT_OUT]
    if unknown := [type_name(step) for step in steps if type_name(step) not in FOLLOWED]:
        raise UserError(
            f'The test pipeline of {cfg.filename} has {", ".join(unknown)}, through which places '
            f'in an image cannot be followed. Known are {", ".join(FOLLOWED)}; give others with '
            '--cfg-options test_dataloader.dataset.pipeline="[...]".'
        )
    results = dict(img_path=os.fspath(path), img_id=0, sample_idx=0)
    scale, offset = np.ones(2), np.zeros(2)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        transforms = [TRANSFORMS.build(step) for step in steps]
    for step, transform in zip(steps, transforms, strict=True):
        before = np.array(results['img'].shape[1::-1]) if 'img' in results else None
        results = transform(results)
        if type_name(step) in PACKING:
            break
        after = np.array(results['img'].shape[1::-1])
        if type_name(step) in LOADING:
            image = np.atleast_3d(results['img'])[..., ::-1]
        elif type_name(step) in RESIZING:
            scale, offset = scale * after / before, offset * after / before
        elif type_name(step) in CROPPING:
            # mmcv's crop begins there, and at 0 where the image is too small for it.
            offset = offset - np.maximum(np.round((before - after) / 2), 0)
    batch = dict(inputs=[results['inputs']], data_samples=[results['data_samples']])
    with torch.no_grad():
        inputs = model.data_preprocessor(batch, False)['inputs']
    image = np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
    return View(image, inputs, tuple(scale.tolist()), tuple(offset.tolist()))


def test_dataset(cfg: Config) -> ConfigDict:
    """The data set of the tests, out of wrappers around it.

    Raises:
        UserError: there is none with a pipeline.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    while dataset is not None and 'pipeline' not in dataset:
        dataset = dataset.get('dataset') or next(iter(dataset.get('datasets') or ()), None)
    if dataset is None:
        raise UserError(
            f'{cfg.filename} has no test_dataloader.dataset.pipeline, which says how an image '
            'gets to the model. Name a config of a data set among its _base_.'
        )
    return dataset
