"""Publishing: one slim file with which others use a trained model."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmfocal.engine.checkpoints import SAVED, checkpoint_of, latest_valid
from mmfocal.engine.config import embedded_config, load_config
from mmfocal.engine.hooks.plain_checkpoint import KEY as HISTORY
from mmfocal.engine.hooks.plain_checkpoint import plain
from mmfocal.engine.hooks.provenance import KEY as PROVENANCE
from mmfocal.engine.hooks.provenance import package_versions
from mmfocal.engine.loops import VALIDATED
from mmfocal.engine.metrics import main_metric
from mmfocal.utils.config import SCOPES, family_of, import_packages, type_name
from mmfocal.utils.errors import UserError
from mmfocal.utils.files import check_folder, check_target, written_atomically
from mmfocal.visualization.view import test_dataset
from mmfocal.weights import CheckpointError, load_checkpoint_file
from mmfocal.weights.contents import refuse_unusable
from mmfocal.weights.embedded_config import portable, text_of
from mmfocal.weights.layouts import state_dict_of
from mmfocal.weights.saving import PUBLISHED, safetensors_of, save_published

from .inferencer import Inferencer, built_model, classes_of, known_family

# mmpretrain's hook for averages can validate both weights, and logs those of training so.
_OF_TRAINING = '_origin'


@dataclass(frozen=True)
class Published:
    """What was published.

    Attributes:
        files: ``.pth``, ``.py``, and ``.safetensors`` where that package is installed.
        checkpoint: that was taken.
        averaged: whether its weights are an average over iterations (EMA).
        reason: why those were taken.
        metrics: that the run recorded for these weights, by name; empty if it has none.
        classes: names of the model's classes.
        notes: what readers need to know.
    """

    files: tuple[Path, ...]
    checkpoint: str
    averaged: bool
    reason: str
    metrics: dict[str, float]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def publish(
    source: str | os.PathLike,
    *,
    config: str | os.PathLike | Config | None = None,
    out: str | os.PathLike | None = None,
    checkpoint: str | os.PathLike = 'best',
) -> Published:
    """Writes the whole model of a run, with config, classes and metrics, into files for others.

    ``NAME-<hash>.pth`` is a checkpoint of mmengine for every tool that takes one, the ``.py``
    beside it the config by itself, ``NAME-<hash>.safetensors`` the same as the first for tools
    that want no pickle. Optimizer, log and paths of this machine are not in them.

    Of a run with averaged weights (EMA), those are published whose recorded metric is the better
    one. mmengine validates only the average, so that this is the average unless the hook of the
    run measured both.

    Args:
        source: work folder of a run, or a checkpoint.
        config: of the checkpoint; None for the one in the checkpoint, or else beside it.
        out: path without suffix and hash, or a folder that is there; None for the name of the
            config, in this folder.
        checkpoint: of a work folder: ``'best'`` for the best one, and without that the newest;
            ``'last'`` for the newest; or a path.

    Raises:
        UserError: there is no checkpoint or config, both do not fit each other, weights are NaN
            or otherwise unusable, or the files cannot be written or are there already.
    """
    path = _chosen(os.fspath(source), os.fspath(checkpoint))
    loaded = load_checkpoint_file(path)
    cfg = _config(config, loaded, path)
    # Without the hash of a file that was published before.
    name = re.sub(r'-[0-9a-f]{8}$', '', Path(str(cfg.filename or 'model')).stem)
    stem = Path(out) if out is not None else Path(name)
    if stem.is_dir():
        stem /= name
    if stem.suffix in ('.pth', '.safetensors', '.py'):
        stem = stem.with_suffix('')
    check_target(stem.with_name(f'{stem.name}.pth'))

    measured = _measured(cfg, loaded, path)
    averaged, reason = _averaged(cfg, loaded, measured)
    tensors = _tensors(loaded, path, averaged)
    import_packages(cfg)
    with DefaultScope.overwrite_default_scope(known_family(cfg)):
        model = built_model(cfg, dict(loaded, state_dict=tensors), path)
        classes, palette = classes_of(loaded, cfg)
    metrics = measured.training if measured.training and not averaged else measured.average
    content = _content(model, cfg, loaded, (classes, palette), averaged, metrics, path)
    files = save_published(content.tensors, content.config, content.meta, stem)
    notes = content.notes
    if len(files) < 3:
        notes += ('No .safetensors is written. For one, run: pip install safetensors',)
    return Published(tuple(files), path, averaged, reason, metrics, classes, notes)


def save_folder(model: Inferencer, folder: str | os.PathLike) -> None:
    """Writes a model as hubs keep them, see :meth:`Inferencer.save_pretrained`.

    Args:
        model: with its weights as they are now.
        folder: made if it is not there.

    Raises:
        UserError: a file is there already or cannot be written, or safetensors is missing.
    """
    folder = Path(folder).expanduser()
    if present := [name for name in (SAVED, *_BESIDE) if os.path.lexists(folder / name)]:
        raise UserError(
            f'{folder} holds {", ".join(present)} already. Choose another folder, or remove them.'
        )
    loaded = load_checkpoint_file(model.checkpoint)
    tensors = model.model.state_dict()
    refuse_unusable(tensors, 'The model')
    # Metrics are those of the file, if the weights still are.
    read = state_dict_of(loaded, model.checkpoint)
    is_read = all(name in read and torch.equal(read[name], t.cpu()) for name, t in tensors.items())
    metrics = _measured(model.cfg, loaded, model.checkpoint).average if is_read else {}
    before = _dict(_meta(loaded), PUBLISHED)
    averaged = is_read and bool(before.get('averaged') or 'ema_state_dict' in loaded)
    classes = (model.task.classes, model.task.palette)
    content = _content(
        model.model, model.cfg, loaded, classes, averaged, metrics, model.checkpoint
    )
    tensors = safetensors_of(content.tensors, content.config, content.meta, folder / SAVED)
    check_folder(folder)
    card = _CARD.format(
        tag=model.task.tag,
        name=Path(model.name).stem,
        classes=', '.join(model.task.classes),
        metrics=''.join(f'- {name}: {value:.4g}\n' for name, value in metrics.items()),
    )
    settings = json.dumps(content.settings, indent=2)
    for name, text in zip(_BESIDE, (settings, card), strict=True):
        with written_atomically(folder / name) as file:
            file.write(text.encode())
    with written_atomically(folder / SAVED) as file:
        file.write(tensors)


_BESIDE = ('config.json', 'README.md')
_CARD = """\
---
library_name: mmfocal
pipeline_tag: {tag}
---

# {name}

A model with a Focal Transformer as its backbone, trained with mmfocal. Classes: {classes}.

{metrics}
```python
from mmfocal import Inferencer

model = Inferencer.from_pretrained('this folder, or its name on the hub')
for image, sample in model('photo.jpg'): ...
```
"""


@dataclass(frozen=True)
class _Content:
    """What a published file holds: tensors, config as values and text, ``meta``; and notes."""

    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    config: str
    meta: dict[str, Any]
    notes: tuple[str, ...]


def _content(
    model: nn.Module,
    cfg: Config,
    loaded: dict,
    classes: tuple[tuple[str, ...], Any],
    averaged: bool,
    metrics: dict[str, float],
    path: str,
) -> _Content:
    """What is published of a model.

    Args:
        model: with its weights.
        cfg: its config.
        loaded: the checkpoint.
        classes: their names and colours.
        averaged: whether the weights are an average.
        metrics: of these weights.
        path: of the checkpoint.
    """
    settings, notes = _settings(cfg, classes[0])
    before = _dict(_meta(loaded), PUBLISHED)  # of a file that was published
    meta = {key: loaded['meta'][key] for key in ('epoch', 'iter', 'seed') if key in _meta(loaded)}
    meta |= {
        'mmengine_version': mmengine.__version__,
        'dataset_meta': dict(classes=classes[0], palette=classes[1]),
        PUBLISHED: dict(
            averaged=averaged,
            metrics=metrics,
            checkpoint=before.get('checkpoint') or os.path.basename(path),
            versions=before.get('versions')
            or _dict(loaded, PROVENANCE).get('versions')
            or package_versions(),
        ),
    }
    meta = plain(meta, 'meta', [])
    return _Content(_own(model.state_dict()), settings, text_of(settings), meta, tuple(notes))


def _chosen(source: str, checkpoint: str) -> str:
    """The checkpoint of a work folder that is asked for, or the one that is given."""
    if checkpoint == 'best':
        return checkpoint_of(source)
    if not os.path.isdir(source):
        raise UserError(
            f'--checkpoint {checkpoint}: {source} is no work folder. Give either a checkpoint, or '
            'a work folder and which of its checkpoints.'
        )
    if checkpoint != 'last':
        inside = os.path.join(source, checkpoint)
        return checkpoint_of(inside if os.path.isfile(inside) else checkpoint)
    newest, _ = latest_valid(source)
    if newest is None:
        raise UserError(
            f'{source} holds no checkpoint from which training could resume, as epoch_3.pth is. '
            'Leave out --checkpoint last, or name the file.'
        )
    return str(newest)


def _config(config: str | os.PathLike | Config | None, loaded: dict, path: str) -> Config:
    """The config of a checkpoint: as given, as the checkpoint holds it, or as it lies beside."""
    if isinstance(config, Config):
        return config.copy()
    if config is not None:
        return load_config(config)
    beside = sorted(Path(path).parent.glob('*.py')) if '://' not in path else []
    try:
        cfg = embedded_config(loaded, path)
    except CheckpointError:
        if len(beside) != 1:
            raise
        return load_config(beside[0])
    if len(beside) != 1:
        return cfg
    return Config(cfg._cfg_dict, cfg_text=cfg.text, filename=str(beside[0]))  # as the run names it


# --- Which weights --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """Metrics that a run recorded for the weights of a checkpoint.

    Attributes:
        average: of averaged weights; of all, in a run without an average.
        training: of those that were trained, in a run with an average.
    """

    average: dict[str, float]
    training: dict[str, float]


def _measured(cfg: Config, loaded: dict, path: str) -> _Measured:
    found = _recorded(cfg, loaded, path)
    training = {
        name.removesuffix(_OF_TRAINING): value
        for name, value in found.items()
        if name.endswith(_OF_TRAINING)
    }
    average = {name: value for name, value in found.items() if not name.endswith(_OF_TRAINING)}
    hooks = [hook for hook in cfg.get('custom_hooks') or [] if type_name(hook) == 'EMAHook']
    if any(not hook.get('evaluate_on_ema', True) for hook in hooks):
        return _Measured({}, average)  # of mmpretrain, which can leave the average out
    return _Measured(average, training)


def _recorded(cfg: Config, loaded: dict, path: str) -> dict[str, float]:
    """Metrics of the validation that followed the last iteration of a checkpoint."""
    meta, info = _meta(loaded), _dict(_dict(loaded, 'message_hub'), 'runtime_info')
    if PUBLISHED in meta:
        return _dict(meta[PUBLISHED], 'metrics')
    if os.path.basename(path).startswith('best_') or (
        'iter' in meta and info.get(VALIDATED) == meta['iter']
    ):
        return {
            name.removeprefix('val/'): values[-1]
            for name, values in _histories(loaded)
            if name.startswith('val/') and values and not _is_time(name)
        }
    logger = (cfg.get('default_hooks') or {}).get('logger') or {}
    by_epoch = logger.get('log_metric_by_epoch', True)
    if by_epoch and not os.path.basename(path).startswith('epoch_'):
        return {}
    step = meta.get('epoch' if by_epoch else 'iter')
    for log in sorted(Path(path).parent.glob('*/vis_data/scalars.json'), reverse=True):
        for line in reversed(log.read_text().splitlines()):
            try:
                row = json.loads(line)
            except ValueError:  # cut off by a kill
                continue
            if row.get('step') == step and 'lr' not in row and 'loss' not in row:
                return {k: v for k, v in row.items() if k != 'step' and not _is_time(k)}
    return {}


def _is_time(name: str) -> bool:
    return name.rpartition('/')[2] in ('time', 'data_time')


def _histories(loaded: dict) -> Iterator[tuple[str, list[float]]]:
    """Values by name, as this package keeps them and as mmengine does."""
    for name, state in _dict(loaded, HISTORY).items():
        yield name, state['values'].tolist()
    for name, history in _dict(_dict(loaded, 'message_hub'), 'log_scalars').items():
        yield name, history.data[0].tolist()


def _averaged(cfg: Config, loaded: dict, measured: _Measured) -> tuple[bool, str]:
    """Whether to take the averaged weights of a checkpoint, and why."""
    if before := _dict(_meta(loaded), PUBLISHED):
        return bool(before.get('averaged')), 'as they were published before'
    if not _dict(loaded, 'ema_state_dict'):
        return False, 'the run has no average'
    if not measured.training:
        of = 'the recorded metrics are its' if measured.average else 'no metrics are recorded'
        return True, f'average (EMA): {of}'
    if not measured.average:
        return False, "weights of training: the recorded metrics are theirs, not the average's"
    metric = main_metric(cfg)
    average, training = (each.get(metric.name) for each in (measured.average, measured.training))
    if average is None or training is None:
        return True, f'average (EMA): {metric.name} is not recorded for both'
    is_better = average <= training if metric.rule == 'less' else average >= training
    told = f'{metric.name} {average:.4g} of the average (EMA), {training:.4g} without it'
    return is_better, told


def _tensors(loaded: dict, path: str, averaged: bool) -> dict[str, Tensor]:
    """Weights by name.

    mmengine has the average under ``state_dict``, and what was trained under ``ema_state_dict``.
    """
    tensors = dict(state_dict_of(loaded, path))
    if not averaged:
        trained = _dict(loaded, 'ema_state_dict').items()
        tensors |= {k.removeprefix('module.'): v for k, v in trained if k != 'steps'}
    refuse_unusable(tensors, path)
    return tensors


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without the storage that they may be a view of."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


# --- What is said of them -------------------------------------------------------------------


def _settings(cfg: Config, classes: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The config for readers, and notes about it."""
    left_out: list[str] = []
    told = _named(cfg.to_dict())
    # Where mmseg's inference_model looks for it.
    told.setdefault('test_pipeline', _named(test_dataset(cfg).to_dict())['pipeline'])
    settings = portable(plain(told, 'config', left_out))
    custom = settings.get('custom_imports') or {}
    imports = custom.get('imports') or []
    imports = [imports] if isinstance(imports, str) else [*imports]
    settings['custom_imports'] = dict(
        imports=[*dict.fromkeys(['mmfocal', *imports])], allow_failed_imports=False
    )
    settings['default_scope'] = family_of(cfg)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = _dict(settings, name).get('dataset')
        if isinstance(_dict(dataset, 'metainfo').get('classes'), str):  # a file of names
            dataset['metainfo']['classes'] = tuple(classes)
    notes = [f'The config is written without {name}.' for name in left_out]
    if others := [name for name in imports if name.partition('.')[0] not in SCOPES]:
        notes.append(
            f'The config imports {", ".join(others)}, which readers need as well. Tools of '
            'mmfocal ask them to import it first, or to give the config as a file.'
        )
    return settings, notes


def _named(value: Any) -> Any:
    """Settings with classes and functions by the names under which they are imported."""
    if isinstance(value, dict):
        return {key: _named(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_named(each) for each in value)
    is_named = inspect.isclass(value) or inspect.isfunction(value)
    return f'{value.__module__}.{value.__qualname__}' if is_named else value


def _meta(loaded: dict) -> dict[str, Any]:
    return _dict(loaded, 'meta')


def _dict(holder: Any, key: str) -> dict[str, Any]:
    found = holder.get(key) if isinstance(holder, Mapping) else None
    return found if isinstance(found, dict) else {}
