"""From a config to predictions of its test set, and to what they are compared with."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope

from mmfocal.datasets.checks import check_contents, check_data
from mmfocal.engine.runner import TestOptions, test
from mmfocal.utils.errors import UserError

from .detection import analyze_detections
from .report import Report
from .segmentation import analyze_segmentations


def predict(cfg: Config, checkpoint: str, file: Path, launcher: str = 'none') -> None:
    """Runs the model over its test set, as tools/test.py does.

    Args:
        cfg: complete.
        checkpoint: path, URL or work folder.
        file: ``.json``; metrics go there, predictions beside it.
        launcher: of several processes.
    """
    _check_family(cfg)
    test(cfg, TestOptions(checkpoint, out=str(file), launcher=launcher))


def analyze(cfg: Config, file: Path, **options: Any) -> Report:
    """The report of predictions that were made before.

    Args:
        cfg: complete.
        file: that was given to :func:`predict`, or to tools/test.py as ``--out``.
        **options: of :func:`analyze_detections`; segmenters take only ``images``.

    Raises:
        UserError: a classifier, no predictions, a test set that is missing or bad, or what the
            functions of both families raise.
    """
    _check_family(cfg)
    check_data(cfg, ('test',))
    for line in check_contents(cfg, ('test',)):
        print(line)
    stem = str(file).removesuffix('.json')
    if cfg.default_scope == 'mmseg':
        return _segmentations(cfg, Path(f'{stem}.labels'), options['images'])
    found = {kind: Path(f'{stem}.{kind}.json') for kind in ('bbox', 'segm')}
    found = {kind: path for kind, path in found.items() if path.is_file()}
    if 'bbox' not in found:
        raise UserError(
            f'There is no {stem}.bbox.json. Expected predictions as tools/test.py --out FILE.json '
            'writes them, with boxes.'
        )
    dataset = cfg.test_dataloader.dataset
    folder = Path(dataset.get('data_root') or '') / (dataset.data_prefix.get('img') or '')
    evaluators = cfg.test_evaluator
    evaluators = [evaluators] if isinstance(evaluators, dict) else evaluators
    ann_file = next((each.ann_file for each in evaluators if each.get('ann_file')), None)
    if ann_file is None:
        raise UserError(
            f'{cfg.filename} has no ann_file in its test_evaluator. Expected CocoMetric with '
            'annotations of the test set.'
        )
    return analyze_detections(ann_file, folder, found, **options)


def _segmentations(cfg: Config, folder: Path, images: int) -> Report:
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        load = TRANSFORMS.build(dict(type='LoadAnnotations'))
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    missing = [info['img_path'] for info in infos if not info.get('seg_map_path')]
    if missing:
        raise UserError(
            f'{missing[0]} and {len(missing) - 1} others have no label map. Take a test set that '
            'has them: --cfg-options test_dataloader.dataset.data_prefix.seg_map_path=FOLDER'
        )

    meta = dataset.metainfo
    return analyze_segmentations(
        [(Path(info['img_path']), partial(_label_map, load, info)) for info in infos],
        folder,
        meta['classes'],
        meta.get('palette'),
        # mmseg adds 1 to what it writes where 0 is no class in the files of a data set.
        first_label=int(dataset.reduce_zero_label),
        images=images,
    )


def _label_map(load: Any, info: dict) -> np.ndarray:
    return load(dict(info, seg_fields=[]))['gt_seg_map']


def _check_family(cfg: Config) -> None:
    if cfg.get('default_scope') not in ('mmdet', 'mmseg'):
        raise UserError(
            f'{cfg.filename} is of {cfg.get("default_scope")}. Detectors and segmenters are '
            'analyzed; of classifiers see mmpretrain, tools/analysis_tools/analyze_results.py.'
        )
