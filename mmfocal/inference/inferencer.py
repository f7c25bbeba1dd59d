"""A trained model with its config's test pipeline: images in, predictions out."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import nn

from mmfocal.datasets.checks import check_lists
from mmfocal.engine import install_safe_loading, load_checkpoint_file, load_config
from mmfocal.engine.checkpoints import SAVED, checkpoint_of
from mmfocal.utils.config import family_of, import_packages, type_name
from mmfocal.utils.errors import UserError
from mmfocal.visualization.predictions import as_shown
from mmfocal.visualization.view import test_dataset
from mmfocal.weights.classifier import load_classifier
from mmfocal.weights.layouts import state_dict_of
from mmfocal.weights.safe_loading import names_weights

from .inputs import Input, LoadedImage, Skipped, UnreadableError, find_inputs, read
from .tasks import TASKS, Task

# Images that are read ahead, in batches, to find some of equal size.
BATCHES_AHEAD = 4


class Prediction(NamedTuple):
    """An image, and what the model says of it.

    Attributes:
        image: as it was read.
        sample: ``DetDataSample``, ``SegDataSample`` or ``DataSample`` of the family, on the CPU;
            without ground truth, without what has a low score, and without logits of pixels.
    """

    image: LoadedImage
    sample: BaseDataElement


class Inferencer:
    """A model of mmdet, mmseg or mmpretrain that takes images, folders, videos and cameras.

    ::

        from mmfocal.inference import Inferencer
        model = Inferencer('focal_maskrcnn_3x', 'checkpoint.pth')
        model = Inferencer('focal_maskrcnn_3x-1a2b3c4d.pth')  # a published file has its config
        for image, sample in model(['photos', 'clip.mp4'], batch_size=4): ...

    The families' own inferencers do not serve here: they load checkpoints as mmengine does, which
    is unsafely, or not at all on PyTorch 2.6 and newer; they stop at the first file that cannot be
    read, keep all results in memory, give results of equal names to files of different folders,
    and know no videos.

    Args:
        config: path, name of a config of this repository, or a config that is loaded; or a file
            of weights that holds its config, a URL of one, or a folder with one.
        checkpoint: path, URL, or work folder of a run; None where ``config`` is a file of weights.
            It is read as data; from now on mmengine reads all checkpoints so, see
            :mod:`mmfocal.weights.safe_loading`.
        device: as PyTorch names it; a GPU if there is one by default.
        cfg_options: values of the config by dotted key.
        score_thr: least score of an object that is kept; 0 to keep all that the model gives.

    Attributes:
        cfg: the config.
        checkpoint: path or URL of the file of weights.
        model: with weights, in evaluation mode.
        task: what the family's predictions are: names and colours of classes, and how to draw.

    Raises:
        UserError: the config, the checkpoint or the device does not serve.
    """

    def __init__(
        self,
        config: str | os.PathLike | Config,
        checkpoint: str | os.PathLike | None = None,
        *,
        device: str | None = None,
        cfg_options: dict[str, Any] | None = None,
        score_thr: float = 0.3,
    ) -> None:
        if checkpoint is None:
            if isinstance(config, Config) or not (
                names_weights(config) or os.path.isdir(os.path.expanduser(config))
            ):
                raise UserError(
                    'Inferencer: expected a config and a checkpoint, or a file of weights that '
                    'holds its config; got no checkpoint.'
                )
            checkpoint = config
        if isinstance(config, Config):
            cfg = config.copy()
            cfg.merge_from_dict(cfg_options or {})
        else:
            cfg = load_config(config, cfg_options)
        self.cfg = cfg
        self.device = _device(device)
        self.name = str(cfg.filename or 'config')
        self.checkpoint = checkpoint_of(os.fspath(checkpoint))
        family = known_family(cfg)
        import_packages(cfg)
        install_safe_loading()
        weights = load_checkpoint_file(self.checkpoint)
        dataset = test_dataset(cfg)
        self.family = family
        with DefaultScope.overwrite_default_scope(family):
            self.loader, self.pipeline = _pipeline(dataset.pipeline)
            self.model = built_model(cfg, weights, self.checkpoint).to(self.device).eval()
            classes, palette = classes_of(weights, cfg)
        if getattr(self.model, 'num_stuff_classes', 0):
            print_log(
                f'{self.name}: of panoptic predictions, instances are drawn and written; segments '
                'are in sample.pred_panoptic_seg.',
                'current',
                logging.WARNING,
            )
        classes = classes or tuple(f'class {i}' for i in range(_num_classes(self.model)))
        self.task: Task = TASKS[family](classes, palette, score_thr)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> Inferencer:
        """The model of a folder that :meth:`save_pretrained` wrote, here or on Hugging Face's hub.

        Args:
            source: the folder; or its name on the hub, ``OWNER/NAME``, for which the package
                huggingface_hub is needed.
            revision: branch, tag or commit on the hub; this and the next are its own arguments.
            token: for models that are not public.
            cache_dir: where it keeps what it downloads.
            local_files_only: whether only what was downloaded before is taken.
            **options: of this class.

        Raises:
            UserError: the model is not there, or is refused.
        """
        source = os.path.expanduser(source)
        if os.path.exists(source):
            return cls(source, **options)
        try:
            from huggingface_hub import hf_hub_download
        except ImportError:
            raise UserError(
                f'There is no folder {source} (looked for {os.path.abspath(source)}). If it is a '
                'name on the hub: pip install huggingface_hub'
            ) from None
        try:
            path = hf_hub_download(
                source,
                SAVED,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        except (OSError, ValueError) as error:  # of which those of the hub are
            reason = str(error).strip().partition('\n')[0]
            raise UserError(
                f'There is no folder {source}, nor {SAVED} under that name on the hub: {reason}'
            ) from error
        return cls(path, **options)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the model with its config into a folder, as hubs keep models.

        ``model.safetensors`` holds all of it, see :func:`mmfocal.publish`; ``config.json`` repeats
        the config, and ``README.md`` is the page that the hub shows. :meth:`from_pretrained` and
        all tools take the folder.

        Args:
            folder: made if it is not there.

        Raises:
            UserError: a file is there already or cannot be written, or safetensors is missing.
        """
        from .publishing import save_folder

        save_folder(self, folder)

    def __call__(
        self,
        inputs: str | os.PathLike | int | np.ndarray | Iterable,
        *,
        batch_size: int = 1,
        every: int = 1,
        skipped: list[Skipped] | None = None,
    ) -> Iterator[Prediction]:
        """Predicts, in the order of the inputs.

        Images that the pipeline makes equally large share a batch, so that none is padded for
        another's sake and the size of batches does not change results.

        Args:
            inputs: see :func:`~mmfocal.inference.find_inputs`; or what that gives.
            batch_size: images that are predicted together.
            every: of the frames of videos and cameras, every how many-th is taken.
            skipped: takes what cannot be read or predicted, and why.

        Raises:
            UnreadableError: something cannot be read, or needs more memory than there is, and
                there is no list for it.
            UserError: an input is not there.
        """
        for name, value in (('batch_size', batch_size), ('every', every)):
            if value < 1:
                raise UserError(f'{name} must be at least 1, got {value}.')
        if not (isinstance(inputs, list) and all(isinstance(each, Input) for each in inputs)):
            inputs = find_inputs(inputs)
        prepared = (self._prepared(image) for image in read(inputs, self.loader, every))
        window = batch_size * BATCHES_AHEAD if batch_size > 1 else 1
        windows = iter(lambda: list(islice(prepared, window)), [])
        with ThreadPoolExecutor(1, 'reader') as reader:
            upcoming = reader.submit(next, windows, None)
            while (entries := upcoming.result()) is not None:
                upcoming = reader.submit(next, windows, None)
                yield from self._predict(entries, batch_size, skipped)

    def draw(self, prediction: Prediction, labels: bool = True) -> np.ndarray:
        """The image with its prediction, ``(H, W, 3)`` of uint8, BGR.

        On a CPU this takes 0.06 s for 5 objects on 160x128 pixels, and 0.4 s for 50 with masks on
        1333x800: see ``--no-pictures`` and ``--every`` of ``mmfocal infer``.

        Args:
            prediction: of this model.
            labels: whether names of classes are written, with scores if there are any.
        """
        return self.task.drawn(as_shown(prediction.image.pixels), prediction.sample, labels)

    def _prepared(self, image: LoadedImage | Skipped) -> tuple[LoadedImage, dict] | Skipped:
        """An image as the model takes it."""
        if isinstance(image, Skipped):
            return image
        size = image.pixels.shape[:2]
        path = image.source.path
        try:
            data = self.pipeline(
                dict(
                    img=image.pixels.copy(),  # transforms may write into it
                    img_path=path,
                    img_id=0,
                    img_shape=size,
                    ori_shape=size,
                )
            )
        except Exception as error:  # pipelines may raise anything
            reason = f'{type(error).__name__}: {" ".join(str(error).split())}'
            return Skipped(path, f'cannot be used: {reason}')
        return image, data

    def _predict(
        self,
        entries: list[tuple[LoadedImage, dict] | Skipped],
        batch_size: int,
        skipped: list[Skipped] | None,
    ) -> Iterator[Prediction]:
        """Predicts in batches of equal sizes, and gives each result when its turn has come."""
        by_size = defaultdict(list)
        results: dict[int, Prediction | Skipped] = {}
        for i, entry in enumerate(entries):
            if isinstance(entry, Skipped):
                results[i] = entry
            else:
                by_size[tuple(entry[1]['inputs'].shape)].append(i)
        batches = [
            places[start : start + batch_size]
            for places in by_size.values()
            for start in range(0, len(places), batch_size)
        ]
        turn = 0
        for batch in [*sorted(batches), []]:
            results.update(zip(batch, self._forward([entries[i] for i in batch]), strict=True))
            while turn in results:
                result = results.pop(turn)
                turn += 1
                if isinstance(result, Prediction):
                    yield result
                elif skipped is None:
                    raise UnreadableError(f'{result.path}: {result.reason}')
                else:
                    skipped.append(result)

    @torch.no_grad()
    def _forward(self, batch: list[tuple[LoadedImage, dict]]) -> list[Prediction | Skipped]:
        """Predicts for a batch; one by one if there is too little memory for all together."""
        if not batch:
            return []
        try:
            with DefaultScope.overwrite_default_scope(self.family):
                samples = self.model.test_step(pseudo_collate([data for _, data in batch]))
            return [
                Prediction(image, self.task.kept(sample))
                for (image, _), sample in zip(batch, samples, strict=True)
            ]
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        # After the except clause, since the error's stack holds on to the memory.
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()
        if len(batch) > 1:
            print_log(
                f'{self.device} has too little memory for {len(batch)} images at once, such as '
                f'{batch[0][0].name}: predicting one by one. A lower batch size takes less time.',
                'current',
                logging.WARNING,
            )
            return [result for entry in batch for result in self._forward([entry])]
        image, _ = batch[0]
        height, width = image.pixels.shape[:2]
        return [
            Skipped(
                image.source.path,
                f'needs more memory than {self.device} has, at {width}x{height} pixels '
                '(width x height).',
            )
        ]


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"The device {name!r} cannot be used: {str(error).splitlines()[0]} Use 'cpu', or run "
            '`python tools/doctor.py` if there should be a GPU.'
        ) from error
    return device


def _is_out_of_memory(error: Exception) -> bool:
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


# --- The config and the checkpoint ------------------------------------------------------------


def _pipeline(steps: list[dict]) -> tuple[LoadImageFromFile, Compose]:
    """What loads images, and what prepares them, without what is about ground truth."""
    # Not even built: LoadPanopticAnnotations, for one, asks for a package of its own.
    steps = [step for step in steps if not type_name(step).endswith('Annotations')]
    try:
        loader, *others = Compose(steps).transforms
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f'The test pipeline cannot be built: {error}') from error
    if not isinstance(loader, LoadImageFromFile):
        raise UserError(
            'Predictions need a test pipeline that begins with LoadImageFromFile, got '
            f'{type(loader).__name__}.'
        )
    pipeline = Compose([])
    pipeline.transforms = others
    return loader, pipeline


def known_family(cfg: Config) -> str:
    """The package that a config is for.

    Raises:
        UserError: it is none of those that predict.
    """
    family = family_of(cfg)
    if family not in TASKS:
        raise UserError(
            f'{cfg.filename or "config"}: default_scope is {family!r}; predictions can be made '
            f'with configs of {", ".join(TASKS)}.'
        )
    return family


def built_model(cfg: Config, checkpoint: dict, source: str) -> nn.Module:
    """The model with its weights, on the CPU.

    mmengine loads what fits and says the rest in a warning; a model with weights left at random
    gives predictions that look like some.

    Raises:
        UserError: the checkpoint is not one of this model; the names of parameters tell.
    """
    cfg.model.pop('pretrained', None)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    tensors = state_dict_of(checkpoint, source)
    state = {str(name).removeprefix('module.'): tensor for name, tensor in tensors.items()}
    if cfg.default_scope == 'mmpretrain' and not any(n.startswith('backbone.') for n in state):
        load_classifier(model, checkpoint, source)  # the authors', as tools/test.py takes them
        return model
    try:
        missing = set(model.load_state_dict(state, strict=False).missing_keys)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise _unfit(source, cfg, [line for line in lines[1:] if line] or lines) from error
    if lacking := sorted(missing & {name for name, _ in model.named_parameters()}):
        raise _unfit(source, cfg, [f'{name} is missing.' for name in lacking])
    return model


def _unfit(source: str, cfg: Config, reasons: list[str]) -> UserError:
    more = f'\n  and {len(reasons) - 5} more' if len(reasons) > 5 else ''
    return UserError(
        f'{source} does not fit the model of {cfg.filename}:\n  '
        + '\n  '.join(reasons[:5])
        + f'{more}\nGive the config that the checkpoint was trained with.'
    )


def _num_classes(model: nn.Module) -> int:
    """Of the head that tells most apart; proposals, for one, are of a single class."""
    return max(int(getattr(module, 'num_classes', 0) or 0) for module in model.modules())


def classes_of(checkpoint: dict, cfg: Config) -> tuple[tuple[str, ...], Any]:
    """Names of the checkpoint's classes, or of the config's if it has none, and their colours.

    The data set is not built: that may need annotations, which are not here.
    """
    dataset = test_dataset(cfg)
    check_lists(dataset)
    kind = dataset.type
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    told = kind._load_metainfo(dataset.get('metainfo')) if hasattr(kind, '_load_metainfo') else {}
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    saved = meta.get('dataset_meta')
    saved = saved if isinstance(saved, dict) else meta
    saved = {str(key).lower(): value for key, value in saved.items()}
    classes = saved.get('classes') or told.get('classes') or ()
    if not isinstance(classes, (list, tuple)):
        classes = (classes,)
    palette = told.get('palette') or saved.get('palette')
    return tuple(map(str, classes)), palette
