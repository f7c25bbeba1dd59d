"""Makes a config of mmdet or mmseg small enough to run it within seconds on a CPU.

What a run does stays as its authors have it: data sets and their wrappers, pipelines, samplers,
loops, hooks, schedules. Numbers become smaller: pixels, channels, layers, queries, iterations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from mmfocal.utils.config import type_name

from .data import lay_out

SIDE = 64  # pixels of the images that models see
EPOCHS, ITERATIONS, INTERVAL = 2, 6, 3
DIVISOR = 8  # of channels
QUERIES = 10

SIZES = {'scale', 'scales', 'img_scale', 'size', 'crop_size', 'input_size', 'max_size', 'min_size'}
SIZES |= {'random_size_range', 'border'}
CHANNELS = re.compile('.*(channels?|dims?|num_feats|feat_shape|filters)')


def shrink(cfg: Config, root: Path, workers: int = 0) -> None:
    """Makes a config small, without pretrained weights, on drawn data.

    Args:
        cfg: the config, changed in place.
        root: folder for the drawn data.
        workers: of each data loader.
    """
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.load_from = None
    cfg.randomness = dict(cfg.get('randomness', {}), seed=0)
    cfg.default_hooks.logger.interval = 1
    _shrink_loop(cfg)
    _shrink_data(cfg, root, workers)
    for node in _dicts(cfg.model):
        _forget_pretrained(node)
        _shrink_sizes(node, {'crop_size', 'size', 'scale', 'random_size_range', 'stride'})
        for name in {'num_queries', 'num_query', 'num_proposals'} & node.keys():
            node[name] = QUERIES
            cfg.model.setdefault('test_cfg', {})['max_per_img'] = QUERIES
        if type_name(node) in ('SyncBN', 'MMSyncBN'):  # of GPUs only
            node['type'] = 'BN'
        if 'pos_fraction' in node:  # of regions
            node['num'] = 32
        if 'score_thr' in node:  # weights that have learnt nothing shall detect, too
            node['score_thr'] = 0.0
    kinds = {type_name(node) for node in _dicts(cfg.model)}
    if {
        'ResNet',
        'ResNetV1c',
        'UNet',
    } & kinds and 'DINO' not in kinds:  # some of its numbers are fixed
        for node in _dicts(cfg.model):
            _divide(node)


def _dicts(node: Any) -> Iterator[dict]:
    """All dicts in a config."""
    if isinstance(node, dict):
        yield node
    children = node.values() if isinstance(node, dict) else node
    for child in children if isinstance(node, (dict, list, tuple)) else ():
        yield from _dicts(child)


def _shrink_loop(cfg: Config) -> None:
    loop, checkpoint = cfg.train_cfg, cfg.default_hooks.get('checkpoint', {})
    end, interval = (EPOCHS, 1) if 'max_epochs' in loop else (ITERATIONS, INTERVAL)
    loop['max_epochs' if 'max_epochs' in loop else 'max_iters'] = end
    loop.val_interval = checkpoint['interval'] = interval
    if 'val_begin' in loop:
        loop.val_begin = min(loop.val_begin, interval + 1)
    if 'dynamic_intervals' in loop:
        loop.dynamic_intervals = [(end - 1, 1)]
    for hook in cfg.get('custom_hooks') or []:
        for name in {'num_last_epochs', 'switch_epoch'} & hook.keys():
            hook[name] = 1


def _shrink_data(cfg: Config, root: Path, workers: int) -> None:
    for split in ('train', 'val'):
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        if split == 'train':
            loader['batch_size'] = min(loader['batch_size'], 2)
        if 'source_ratio' in loader['sampler']:
            loader['batch_size'] = 3
            loader['sampler'].update(batch_size=3, source_ratio=[1, 2])
        loader.update(num_workers=workers, persistent_workers=workers > 0)
        loader.pop('prefetch_factor', None)
        for node in _dicts(loader['dataset']):
            _shrink_sizes(node, SIZES - ({'min_size'} if 'filter_empty_gt' in node else set()))
            if 'data_prefix' in node:
                kind = DATASETS.get(f'{cfg.default_scope}.{type_name(node)}')
                lay_out(node, kind, split, root)
            if 'times' in node:
                node['times'] = 2
    for node in _dicts(cfg.get('val_evaluator')):
        if 'ann_file' in node:
            dataset = cfg.val_dataloader.dataset
            node['ann_file'] = dataset['data_root'] + dataset['ann_file']
        for name in {'outfile_prefix', 'out_file_path'} & node.keys():
            node[name] = f'{cfg.work_dir}/results{Path(node[name] or "").suffix}'


def _forget_pretrained(node: dict) -> None:
    if type_name(node.get('init_cfg')) == 'Pretrained':
        node['init_cfg'] = None
    for name in {'pretrained', 'teacher_ckpt'} & node.keys():
        node[name] = None


def _shrink_sizes(node: dict, names: set[str]) -> None:
    for name in names & node.keys():
        node[name] = _smaller(node[name])


def _smaller(size: Any) -> Any:
    """A size in pixels, or several, of at most :data:`SIDE`."""
    return _mapped(size, lambda side: max(-SIDE, min(side, SIDE)))


def _divide(node: dict) -> None:
    for name in filter(CHANNELS.fullmatch, node):
        if all(isinstance(number, int) for number in _numbers(node[name])):
            node[name] = _mapped(node[name], lambda n: n // DIVISOR if n >= 2 * DIVISOR else n)
    if 'num_groups' in node:
        node['num_groups'] = 2
    if isinstance(node.get('num_layers'), int):
        node['num_layers'] = min(node['num_layers'], 2)
    if type_name(node) in ('ResNet', 'ResNetV1c') and 'depth' in node:
        width = 64 // DIVISOR if node['depth'] < 50 else 256 // DIVISOR  # of the first stage
        stem = 2 * width if type_name(node) == 'ResNetV1c' else width
        node.update(depth=18, base_channels=width, stem_channels=stem)


def _numbers(node: Any) -> list[int | float]:
    if isinstance(node, (list, tuple)):
        return [number for child in node for number in _numbers(child)]
    return [node] if isinstance(node, (int, float)) else []


def _mapped(node: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(node, (list, tuple)):
        return type(node)(_mapped(child, function) for child in node)
    return function(node) if isinstance(node, (int, float)) else node
