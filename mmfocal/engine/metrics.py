"""The metric of a config that says which checkpoint is best, by its evaluators."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import METRICS

from mmfocal.utils.config import class_of, is_third_party, type_name
from mmfocal.utils.errors import UserError

# Settings of an evaluator by name, defaults of its class included.
Settings = dict[str, Any]


class MainMetric(NamedTuple):
    """A metric to compare validations by.

    Attributes:
        name: as in the results of a validation and in the log, such as ``'coco/bbox_mAP'``.
        rule: ``'greater'`` or ``'less'``, whichever is better; None for what mmengine takes the
            name for.
    """

    name: str
    rule: str | None = 'greater'


def main_metric(cfg: Config) -> MainMetric:
    """The metric that tells how good a model is.

    It is the config's own, where its hook for checkpoints names one, else the main metric of the
    first evaluator that has one.

    Raises:
        UserError: no evaluator is known; the message says which keys name a metric.
    """
    own = own_metric(cfg)
    if own is not None:
        return own
    evaluators = _evaluators(cfg.get('val_evaluator'))
    for before, evaluator in evaluators:
        metric = _metric_of(evaluator, cfg.get('default_scope'))
        if metric is not None:
            return metric._replace(name=_prefix_of_loop(cfg) + before + metric.name)
    kinds = ', '.join(
        type_name(evaluator) + (' with format_only' if evaluator.get('format_only') else '')
        for _, evaluator in evaluators
    )
    raise UserError(
        '--save-best and --early-stop compare validations by a metric, and which one cannot be '
        f'told from val_evaluator ({kinds}). Name one as in the log: --cfg-options '
        'default_hooks.checkpoint.save_best=NAME default_hooks.checkpoint.rule=greater (or less).'
    )


def own_metric(cfg: Config) -> MainMetric | None:
    """The metric that the config's hook for checkpoints names, if it does; the first of several.

    ``'auto'`` is none: it means the first metric of the first validation, whichever that is.
    """
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    name, rule = (
        value[0] if isinstance(value, list | tuple) and value else value or None
        for value in (hook.get('save_best'), hook.get('rule'))
    )
    return None if name in (None, 'auto') else MainMetric(name, rule)


def _evaluators(config: Any) -> list[tuple[str, Mapping]]:
    """Evaluators in a config, each with what its wrappers put before the names of its metrics."""
    if isinstance(config, list | tuple):
        return [pair for each in config for pair in _evaluators(each)]
    if not isinstance(config, Mapping):
        return []
    if 'metrics' in config:
        inner = _evaluators(config['metrics'])
        prefixes = config.get('dataset_prefixes')  # one for each of several data sets
        if prefixes is None:
            return inner
        return [
            (f'{prefix}/{a}', each) for prefix, (a, each) in zip(prefixes, inner, strict=False)
        ]
    return [('', config)]


def _prefix_of_loop(cfg: Config) -> str:
    """What loops that validate in two ways put before the names of metrics."""
    return LOOPS.get(type_name(cfg.get('val_cfg') or {}), '')


def _metric_of(evaluator: Mapping, scope: str | None) -> MainMetric | None:
    """The main metric of an evaluator, None if it has none or is of an unknown class."""
    kind = class_of(evaluator, METRICS, evaluator.get('_scope_') or scope)
    if kind is None:
        return None
    settings = _defaults(kind) | dict(evaluator.items())
    if settings.get('format_only'):
        return None  # it only writes predictions
    for base in kind.__mro__:
        if base.__name__ in MAIN_METRICS and not is_third_party(base):
            found = MAIN_METRICS[base.__name__](settings)
            break
    else:
        return None
    if found is None:
        return None
    metric = MainMetric(*found) if isinstance(found, tuple) else MainMetric(found)
    prefix = settings.get('prefix') or getattr(kind, 'default_prefix', None)
    return metric._replace(name=f'{prefix}/{metric.name}') if prefix else metric


def _defaults(kind: type) -> Settings:
    """Defaults of a class's arguments, those of its bases included."""
    found: Settings = {}
    for base in reversed(kind.__mro__):
        arguments = inspect.signature(base.__init__).parameters.values()
        found |= {a.name: a.default for a in arguments if a.default is not a.empty}
    return found


# --- Main metrics by class ------------------------------------------------------------------
# Each takes settings and gives a name without prefix, which may come with its rule, or None.


def _first(value: Any, preferred: Any = None) -> Any:
    """The first of some values, or the preferred one where it is among them."""
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return preferred if preferred in values else next(iter(values), None)


def _coco(settings: Settings) -> str:
    metric = _first(settings['metric'])
    if metric == 'proposal_fast':
        return f'AR@{_first(settings["proposal_nums"])}'
    if metric == 'proposal':
        return _first(settings.get('metric_items') or 'AR@100')
    return f'{metric}_{_first(settings.get("metric_items") or "mAP", "mAP")}'


def _lvis(settings: Settings) -> str:
    metric = _first(settings['metric'])
    if metric == 'proposal_fast':
        return _coco(settings)
    if metric == 'proposal':
        return _first(settings.get('metric_items') or 'AR@300')
    return f'{metric}_{_first(settings.get("metric_items") or "AP", "AP")}'


def _voc(settings: Settings) -> str:
    if _first(settings['metric']) == 'mAP':
        return 'mAP'
    return f'recall@{_first(settings["proposal_nums"])}@{_first(settings["iou_thrs"])}'


def _crowd_human(settings: Settings) -> tuple[str, str]:
    metric = _first(settings['metric'], 'AP')
    return dict(AP=('mAP', 'greater'), MR=('mMR', 'less'), JI=('JI', 'greater'))[metric]


def _tracking(settings: Settings) -> str:
    return dict(HOTA='HOTA', CLEAR='MOTA', Identity='IDF1')[_first(settings['metric'], 'HOTA')]


def _reid(settings: Settings) -> str:
    if _first(settings['metric'], 'mAP') == 'mAP':
        return 'mAP'
    ranks = (settings.get('metric_options') or {}).get('rank_list', [1])
    return f'R{_first(ranks, 1)}'


def _regions(settings: Settings) -> str:
    return _first(settings['iou_metrics'], 'mIoU')


def _depth(settings: Settings) -> tuple[str, str]:
    metric = _first(settings.get('depth_metrics') or 'rmse', 'rmse')
    return metric, 'greater' if metric in ('d1', 'd2', 'd3') else 'less'


def _accuracy(settings: Settings) -> str:
    thresholds = settings['thrs']
    return f'top{_first(settings["topk"], 1)}{_threshold(thresholds)}'


def _precision(settings: Settings) -> str | None:
    item, average = _first(settings['items'], 'f1-score'), settings['average']
    if average is None:
        return None  # a list, with a number for each class
    end = '_micro' if average == 'micro' else ''
    return f'{item}{_threshold(settings["thrs"])}{end}'


def _threshold(values: Any) -> str:
    """What names of metrics say of the first of several thresholds."""
    if not isinstance(values, Sequence) or len(values) < 2:
        return ''
    return '_no-thr' if values[0] is None else f'_thr-{values[0]:.2f}'


def _multi_label(settings: Settings) -> str | None:
    item, average = _first(settings['items'], 'f1-score'), settings['average']
    if average is None:
        return None
    threshold, topk = settings['thr'], settings['topk']
    if threshold is None and topk is None:
        threshold = 0.5
    if threshold:
        item += '' if threshold == 0.5 else f'_thr-{threshold:.2f}'
    else:
        item += f'_top{topk}'
    return item if average == 'macro' else f'{item}_{average}'


def _always(*metric: str) -> Callable[[Settings], tuple[str, ...]]:
    return lambda settings: metric


# Of detection, tracking, segmentation and classification. What derives from one has its metric.
MAIN_METRICS: dict[str, Callable[[Settings], str | tuple[str, ...] | None]] = dict(
    CocoMetric=_coco,
    LVISMetric=_lvis,
    LVISFixedAPMetric=_always('AP'),
    VOCMetric=_voc,
    OpenImagesMetric=_always('mAP'),
    CityScapesMetric=_always('mAP'),
    CrowdHumanMetric=_crowd_human,
    CocoPanopticMetric=_always('PQ'),
    YouTubeVISMetric=_coco,
    MOTChallengeMetric=_tracking,
    ReIDMetrics=_reid,
    SemSegMetric=_regions,
    IoUMetric=_regions,
    CityscapesMetric=_always('averageScoreCategories'),
    DepthMetric=_depth,
    Accuracy=_accuracy,
    SingleLabelMetric=_precision,
    MultiLabelMetric=_multi_label,
    AveragePrecision=lambda settings: None if settings['average'] is None else 'mAP',
)

LOOPS = dict(TeacherStudentValLoop='teacher/')
