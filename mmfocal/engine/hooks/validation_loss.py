"""The losses of training, on the validation set: whether a model overfits.

Images come as in validation, resized to one size and not turned. The truth comes as in training:
loaded before they are resized, so that it is resized with them, which detectors' pipelines of
validation do not do.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.dist import all_reduce, get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmfocal.utils.config import type_name
from mmfocal.utils.errors import UserError

from ..data_loader import ResumableDataLoader
from ..randomness import derived_seed, seed_generators, seeded

PREFIX = 'val/'  # of the names in logs: val/loss, val/loss_cls, ...


@HOOKS.register_module()
class ValidationLossHook(Hook):
    """Logs the mean losses of the validation set after each validation.

    The weights are those that were validated, averaged ones included. Drop path and dropout are
    off and batch norm keeps its statistics. What losses draw, such as the regions that they are
    taken of, follows from the run's seed and the number of the batch: equal weights give equal
    losses, and training continues as if nothing had been drawn. Each batch counts by its images.
    With several processes, a few images count twice if they cannot be shared out evenly.

    Args:
        dataloader: settings of the data loader, see :func:`loss_dataloader`.
    """

    # Before EMAHook puts back the weights that are trained, and before metrics are logged: a run
    # that is asked to end meanwhile validates again, and would log them twice.
    priority = 'HIGHEST'

    def __init__(self, dataloader: dict) -> None:
        self.settings = dataloader

    def before_train(self, runner: Runner) -> None:
        """Opens the data, so that what is wrong with it is told before hours of training."""
        loader = runner.build_dataloader(self.settings, seed=runner.seed)
        self.loader = ResumableDataLoader(loader, runner.seed, get_rank())

    def before_val_epoch(self, runner: Runner) -> None:
        """Forgets the last losses: mmengine would log means over them and the new ones."""
        scalars = runner.message_hub.log_scalars
        for name in [name for name in scalars if name.startswith(f'val/{PREFIX}')]:
            del scalars[name]

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Adds the losses to the metrics, which are logged."""
        if not hasattr(self, 'loader') or metrics is None:
            return  # a validation without training
        metrics.update({f'{PREFIX}{name}': v for name, v in self.mean_losses(runner).items()})

    @torch.no_grad()
    def mean_losses(self, runner: Runner) -> dict[str, float]:
        """Means over all images of all processes of what the model logs in training."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        sums: dict[str, torch.Tensor] = {}
        images, pads = 0, _pads_images_and_truth(model.data_preprocessor)
        runner.call_hook('before_val_loss')
        self.loader.begin(0, skip=0)
        with _losses_without_noise(model), seeded(runner.seed):
            for number, batch in enumerate(self.loader):
                # Four numbers of which the last is not 0: a stream of its own.
                seed_generators(derived_seed(runner.seed, get_rank(), number, 0, 1))
                losses = model._run_forward(model.data_preprocessor(batch, pads), mode='loss')
                _, values = model.parse_losses(losses)
                count = len(batch['inputs'])
                images += count
                for name, value in values.items():
                    sums[name] = sums.get(name, 0) + value.double() * count
                # Of our own hooks: the run may be asked to end, and progress is shown.
                runner.call_hook('after_val_loss_iter', batch_idx=number, total=len(self.loader))
        totals = torch.stack([*sums.values(), torch.full_like(sums['loss'], images)])
        all_reduce(totals)
        means = (totals[:-1] / totals[-1]).tolist()
        return dict(zip(sums, means, strict=True))


@contextmanager
def _losses_without_noise(model: nn.Module) -> Iterator[None]:
    """Layers predict, what has losses trains: some heads answer in another form in training."""
    flags = {module: module.training for module in model.modules()}
    augments = getattr(model.data_preprocessor, 'batch_augments', None)
    for module in flags:
        # Only the flag of this module, not of those in it.
        module.training = module is model or callable(getattr(module, 'loss', None))
    if augments is not None:
        model.data_preprocessor.batch_augments = None
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag
        if augments is not None:
            model.data_preprocessor.batch_augments = augments


def _pads_images_and_truth(preprocessor: nn.Module) -> bool:
    """Whether a preprocessor is to work as in training, where it pads the truth, too.

    mmseg's would pad images to the size of the crops of training, and labels with 255, which its
    weighted losses do not take. Where it does not pad in validation, it need not here.
    """
    to_crops = getattr(preprocessor, 'size', None) is not None
    return not to_crops or bool(getattr(preprocessor, 'test_cfg', None))


# --- Data -----------------------------------------------------------------------------------


def loss_dataloader(cfg: Config) -> dict:
    """Settings of a loader of the validation set with all that losses need.

    Its pipeline is that of validation, with training's way of loading annotations right after the
    image and training's way of packing at the end. Targets that training makes from annotations
    in other steps are not made.

    Raises:
        UserError: a pipeline is not of that form, or label maps are learned from and validation
            has none.
    """
    loader = copy.deepcopy(cfg.val_dataloader.to_dict())
    # A validation of hours apart: workers need not wait for the next.
    loader.update(persistent_workers=False)
    # Wrappers of data sets have pipelines, too; the innermost one loads.
    trained = [dataset.get('pipeline') or [] for dataset in _nested(cfg.train_dataloader.dataset)]
    truth = next(filter(None, ([s for s in steps if _loads_truth(s)] for steps in trained)), [])
    pack = next((s for steps in trained for s in reversed(steps) if _is(s, 'Pack')), None)
    for dataset in _nested(loader['dataset']):
        if dataset.get('datasets') or 'dataset' in dataset:
            continue
        dataset['pipeline'] = _pipeline(dataset.get('pipeline') or [], truth, pack)
        prefixes = dataset.get('data_prefix') or {}
        if any(s.get('with_seg') for s in truth) and not prefixes.get('seg'):
            raise UserError(
                '--val-loss: the model learns from label maps, and the validation set names none. '
                'Say in which folder they are: --cfg-options '
                'val_dataloader.dataset.data_prefix.seg=FOLDER (below its data_root).'
            )
    return loader


def _pipeline(steps: list[dict], truth: list[dict], pack: dict | None) -> list[dict]:
    loads = [number for number, step in enumerate(steps) if _is(step, 'LoadImage')]
    packs = [step for step in steps if _is(step, 'Pack')]
    if not loads or not packs or pack is None:
        raise UserError(
            '--val-loss: expected pipelines that load an image and pack what the model takes '
            f'(LoadImage..., Pack...), got {", ".join(map(type_name, steps))} for validation. '
            'Leave it out, or write the pipeline in this form.'
        )
    after = loads[-1] + 1
    kept = [step for step in steps[after:] if not _loads_truth(step) and step not in packs]
    return [*steps[:after], *truth, *kept, pack]


def _nested(dataset: dict) -> Iterator[dict]:
    """A data set and those that it wraps, the innermost first."""
    for each in dataset.get('datasets') or [dataset.get('dataset')]:
        if each:
            yield from _nested(each)
    yield dataset


def _loads_truth(step: dict) -> bool:
    return _is(step, 'Load') and not _is(step, 'LoadImage')


def _is(step: dict, begin: str) -> bool:
    return type_name(step).startswith(begin)
