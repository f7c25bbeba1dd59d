"""Which metric says what is better, and validations that do not have it."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn

from mmfocal.engine import TrainOptions, settings, train
from mmfocal.engine.metrics import MAIN_METRICS, main_metric
from mmfocal.utils.config import class_of
from mmfocal.utils.errors import UserError


@pytest.fixture(scope='module', autouse=True)
def torchvision():
    """mmpretrain's metrics import it, though those here do not use it."""
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec('torchvision') is None:
            patch.syspath_prepend(Path(__file__).with_name('stand_ins'))
        yield


def metric_of(*evaluators, scope='mmdet', **sections):
    evaluators = evaluators[0] if len(evaluators) == 1 else list(evaluators)
    return tuple(
        main_metric(Config(dict(default_scope=scope, val_evaluator=evaluators, **sections)))
    )


@pytest.mark.parametrize(
    'settings, expected',
    [
        (dict(type='CocoMetric'), 'coco/bbox_mAP'),
        (dict(type='CocoMetric', metric=['segm', 'bbox']), 'coco/segm_mAP'),
        (dict(type='CocoMetric', prefix='cats', metric=['bbox', 'segm']), 'cats/bbox_mAP'),
        (dict(type='CocoMetric', metric='proposal'), 'coco/AR@100'),
        (dict(type='CocoMetric', metric='proposal_fast'), 'coco/AR@100'),
        (dict(type='CocoMetric', metric_items=['mAP_50', 'mAP']), 'coco/bbox_mAP'),
        (dict(type='CocoMetric', metric_items=['mAP_50', 'mAP_75']), 'coco/bbox_mAP_50'),
        (dict(type='mmdet.CocoMetric'), 'coco/bbox_mAP'),
        (dict(type='mmdet.evaluation.CocoMetric'), 'coco/bbox_mAP'),
        (dict(type='CocoOccludedSeparatedMetric', metric='segm'), 'coco/segm_mAP'),
        (dict(type='LVISMetric'), 'lvis/bbox_AP'),
        (dict(type='LVISFixedAPMetric'), 'lvis_fixed_ap/AP'),
        (dict(type='VOCMetric'), 'pascal_voc/mAP'),
        (dict(type='VOCMetric', metric=['recall']), 'pascal_voc/recall@100@0.5'),
        (dict(type='OpenImagesMetric'), 'openimages/mAP'),
        (dict(type='CityScapesMetric'), 'cityscapes/mAP'),
        (dict(type='CocoPanopticMetric'), 'coco_panoptic/PQ'),
        (dict(type='CrowdHumanMetric'), 'crowd_human/mAP'),
        (dict(type='YouTubeVISMetric'), 'youtube_vis/youtube_vis_ap_mAP'),
        (dict(type='MOTChallengeMetric'), 'motchallenge-metric/HOTA'),
        (
            dict(type='MOTChallengeMetric', metric=['CLEAR', 'Identity']),
            'motchallenge-metric/MOTA',
        ),
        (dict(type='ReIDMetrics', metric=['CMC', 'mAP']), 'reid-metric/mAP'),
        (dict(type='ReIDMetrics', metric='CMC'), 'reid-metric/R1'),
        (dict(type='SemSegMetric'), 'mIoU'),
        (dict(type='mmseg.IoUMetric', iou_metrics=['mDice']), 'mDice'),
        (dict(type='mmseg.CityscapesMetric'), 'averageScoreCategories'),
        (dict(type='mmseg.DepthMetric', depth_metrics=['d1', 'silog']), 'd1'),
        (dict(type='Evaluator', metrics=[dict(type='VOCMetric')]), 'pascal_voc/mAP'),
        (
            dict(
                type='MultiDatasetsEvaluator',
                dataset_prefixes=['first', 'second'],
                metrics=[dict(type='CocoMetric'), dict(type='CocoMetric')],
            ),
            'first/coco/bbox_mAP',
        ),
    ],
    ids=str,
)
def test_main_metric_follows_from_the_evaluator(settings, expected):
    assert metric_of(settings) == (expected, 'greater')


@pytest.mark.parametrize(
    'settings, expected',
    [
        (dict(type='mmseg.DepthMetric'), 'rmse'),
        (dict(type='CrowdHumanMetric', metric='MR'), 'crowd_human/mMR'),
    ],
)
def test_errors_are_better_if_they_are_less(settings, expected):
    assert metric_of(settings) == (expected, 'less')


@pytest.mark.parametrize(
    'loop, expected',
    [
        ('TeacherStudentValLoop', 'teacher/coco/bbox_mAP'),
        ('mmdet.TeacherStudentValLoop', 'teacher/coco/bbox_mAP'),
        ('ValLoop', 'coco/bbox_mAP'),
    ],
)
def test_loops_that_validate_twice_name_metrics_by_the_model(loop, expected):
    name, _ = metric_of(dict(type='CocoMetric'), val_cfg=dict(type=loop))
    assert name == expected


def test_the_first_evaluator_with_a_metric_counts():
    dump = dict(type='DumpDetResults', out_file_path='a.pkl')
    silent = dict(type='CocoMetric', format_only=True)
    assert metric_of(dump, silent, dict(type='VOCMetric'))[0] == 'pascal_voc/mAP'


def derived_from(base):
    class Own(class_of(dict(type=base), METRICS, 'mmdet')):
        default_prefix = 'own'

        def __init__(self, metric='segm', **others):
            super().__init__(metric=metric, **others)

    return Own


def test_classes_of_ones_own_have_the_metric_of_their_base():
    assert metric_of(dict(type=derived_from('CocoMetric')))[0] == 'own/segm_mAP'


@pytest.mark.parametrize(
    'given, expected',
    [
        (dict(save_best='val/loss', rule='less'), ('val/loss', 'less')),
        (dict(save_best=['a', 'b'], rule=['less', 'greater']), ('a', 'less')),
        (dict(save_best='coco/bbox_mAP_50'), ('coco/bbox_mAP_50', None)),
        (dict(save_best='auto'), ('pascal_voc/mAP', 'greater')),
    ],
)
def test_the_metric_of_the_config_comes_first(given, expected):
    hooks = dict(checkpoint=dict(type='CheckpointHook', **given))
    assert metric_of(dict(type='VOCMetric'), default_hooks=hooks) == expected


@pytest.mark.parametrize(
    'evaluator, named',
    [
        (dict(type='DumpDetResults'), 'DumpDetResults'),
        (dict(type='MissingMetric'), 'MissingMetric'),
        (dict(type='CocoMetric', format_only=True), 'CocoMetric with format_only'),
        (dict(type='mmpretrain.SingleLabelMetric', average=None), 'SingleLabelMetric'),
    ],
)
def test_unknown_evaluators_are_told_with_the_key_to_set(evaluator, named):
    with pytest.raises(UserError, match=r'checkpoint\.save_best=NAME') as error:
        metric_of(evaluator)
    assert named in str(error.value)


# --- Names as the evaluators themselves give them -------------------------------------------


def classified(count=20, classes=6):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(count, classes, generator=generator).softmax(1)
    labels = torch.randint(classes, (count,), generator=generator)
    return [
        dict(pred_score=score, gt_label=label[None], gt_score=(score > 0.17).float())
        for score, label in zip(scores, labels, strict=True)
    ]


def areas(kind):
    """Of what is found and true: both, either, found, true, in one of two forms, of two images."""
    values = [torch.tensor([4.0, 3.0, 2.0]) + offset for offset in (0, 5, 3, 4)]
    names = ('area_intersect', 'area_union', 'area_pred_label', 'area_label')
    named = dict(zip(names, values, strict=True))
    return [named if kind == 'mmdet.SemSegMetric' else tuple(values)] * 2


CLASSIFIED = [
    dict(type='Accuracy'),
    dict(type='Accuracy', topk=(1, 5)),
    dict(type='Accuracy', topk=5),
    dict(type='Accuracy', topk=(5, 1), thrs=(0.0, 0.5)),
    dict(type='Accuracy', thrs=(None, 0.5), prefix='own'),
    dict(type='SingleLabelMetric'),
    dict(type='SingleLabelMetric', items=('recall', 'precision')),
    dict(type='SingleLabelMetric', average='micro', thrs=(0.1, 0.5)),
    dict(type='MultiLabelMetric'),
    dict(type='MultiLabelMetric', thr=0.3),
    dict(type='MultiLabelMetric', topk=2, average='micro'),
    dict(type='VOCMultiLabelMetric', thr=0.5),
    dict(type='AveragePrecision'),
]


@pytest.mark.parametrize('given', CLASSIFIED, ids=str)
def test_names_are_those_of_mmpretrain(given):
    name, _ = metric_of(given, scope='mmpretrain')
    settings = {key: value for key, value in given.items() if key != 'type'}
    evaluator = class_of(given, METRICS, 'mmpretrain')(**settings)
    evaluator.results = classified()
    assert math.isfinite(evaluator.evaluate(20)[name])


@pytest.mark.parametrize('kind', ['mmseg.IoUMetric', 'mmdet.SemSegMetric'])
@pytest.mark.parametrize('metrics', [['mIoU'], ['mFscore', 'mDice'], ['mDice', 'mIoU']])
def test_names_are_those_of_label_maps(kind, metrics):
    name, _ = metric_of(dict(type=kind, iou_metrics=metrics))
    evaluator = class_of(kind, METRICS, 'mmseg')(iou_metrics=metrics)
    evaluator.dataset_meta = dict(classes=('a', 'b', 'c'))
    evaluator.results = areas(kind)
    assert math.isfinite(evaluator.evaluate(2)[name])


def test_names_are_those_of_depth():
    name, _ = metric_of(dict(type='mmseg.DepthMetric'))
    evaluator = class_of('DepthMetric', METRICS, 'mmseg')()
    evaluator.results = [(torch.rand(9) + 1, torch.rand(9) + 1)]
    assert math.isfinite(evaluator.evaluate(1)[name])


@pytest.mark.parametrize('metric', ['mAP', 'recall'])
def test_names_are_those_of_voc(metric):
    name, _ = metric_of(dict(type='VOCMetric', metric=metric))
    evaluator = class_of('VOCMetric', METRICS, 'mmdet')(metric=metric)
    evaluator.dataset_meta = dict(classes=('a',), dataset_type='VOC2007')
    box = np.array([[0, 0, 9, 9]], dtype=np.float32)
    truth = dict(
        bboxes=box,
        labels=np.array([0]),
        bboxes_ignore=np.zeros((0, 4), np.float32),
        labels_ignore=np.array([], dtype=np.int64),
    )
    evaluator.results = [(truth, [np.hstack([box, [[0.9]]]).astype(np.float32)])]
    assert evaluator.evaluate(1)[name] == pytest.approx(1)


def test_all_names_are_registered():
    found = [
        name
        for name in MAIN_METRICS
        if any(class_of(name, METRICS, scope) for scope in ('mmdet', 'mmseg', 'mmpretrain'))
    ]
    assert set(found) == set(MAIN_METRICS)


# --- Validations without the metric -----------------------------------------------------------


@DATASETS.register_module()
class FewNumbers(BaseDataset):
    def load_data_list(self):
        return [dict(number=number) for number in range(4)]

    def prepare_data(self, idx):
        return dict(inputs=torch.ones(2) * idx)


@MODELS.register_module()
class OneLayer(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, inputs, mode='tensor'):
        out = self.layer(torch.stack(inputs))
        return (
            dict(loss=out.square().mean()) if mode == 'loss' else [dict(value=row) for row in out]
        )


@METRICS.register_module()
class ToldMetric(BaseMetric):
    """Gives one of some results after another."""

    def __init__(self, told):
        super().__init__()
        self.told = iter(told)

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return next(self.told)


def run_of(work_dir, told, checkpoint=None, **options):
    loader = dict(batch_size=2, num_workers=0, dataset=dict(type='FewNumbers'))
    cfg = Config(
        dict(
            model=dict(type='OneLayer'),
            work_dir=str(work_dir),
            train_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=True)),
            val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
            train_cfg=dict(by_epoch=True, max_epochs=len(told)),
            val_cfg=dict(),
            val_evaluator=dict(type='ToldMetric', told=told),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
            default_hooks=dict(checkpoint=dict(interval=1, **(checkpoint or {}))),
            experiment_name=f'told {work_dir.name}',
        )
    )
    train(cfg, TrainOptions(log_to=[], data_check=False, **options))
    return {path.name for path in work_dir.glob('best_*')}


NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize('own', ['score', 'auto'])
def test_validations_without_the_metric_are_passed_over(tmp_path, own):
    told = [
        {'val/loss': 3.0},
        dict(score=NAN),
        dict(score=0.5),
        {},
        dict(score=INF),
        dict(other=1),
    ]
    own = dict(save_best=own, rule='greater')
    assert run_of(tmp_path, told, own) == {'best_score_epoch_3.pth'}
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'its score is nan' in log and 'its score is inf' in log


def test_less_may_be_better(tmp_path):
    told = [dict(error=NAN), dict(error=2.0), dict(error=-INF), dict(error=1.0), dict(error=3.0)]
    own = dict(save_best='error', rule='less')
    assert run_of(tmp_path, told, own) == {'best_error_epoch_4.pth'}


def test_several_metrics_are_compared_each_by_itself(tmp_path):
    told = [dict(a=1.0), dict(b=2.0), dict(a=0.0, b=3.0), dict(a=2.0)]
    own = dict(save_best=['a', 'b'], rule='greater')
    assert run_of(tmp_path, told, own) == {'best_a_epoch_4.pth', 'best_b_epoch_3.pth'}


def test_early_stop_follows_the_metric_of_the_config(tmp_path):
    told = [dict(error=2.0), dict(other=1.0), dict(error=2.0), dict(error=3.0), dict(error=0.0)]
    own = dict(save_best='error', rule='less')
    assert run_of(tmp_path, told, own, early_stop=2) == {'best_error_epoch_1.pth'}
    assert not (tmp_path / 'epoch_5.pth').exists() and (tmp_path / 'epoch_4.pth').exists()


@pytest.mark.parametrize('options', [dict(save_best=True), dict(early_stop=1)])
def test_options_that_compare_need_a_known_metric(tmp_path, options):
    with pytest.raises(UserError, match='ToldMetric'):
        run_of(tmp_path, [dict(score=1.0)], **options)


# --- Options ----------------------------------------------------------------------------------


def stopping(save_best=False, early_stop=None, **sections):
    cfg = Config(
        dict(
            val_dataloader=dict(a=1), val_evaluator=dict(type='CocoMetric'), default_scope='mmdet'
        )
    )
    cfg.merge_from_dict(sections)
    settings.set_stopping(cfg, save_best, early_stop)
    return cfg


def test_options_name_metric_and_rule():
    cfg = stopping(save_best=True, early_stop=3, val_evaluator=dict(type='mmseg.DepthMetric'))
    checkpoint = cfg.default_hooks.checkpoint
    assert (checkpoint.save_best, checkpoint.rule) == ('rmse', 'less')
    (hook,) = cfg.custom_hooks
    assert (hook.monitor, hook.rule, hook.patience) == ('rmse', 'less', 3)


def test_a_metric_of_the_config_is_kept():
    own = dict(type='CheckpointHook', save_best='coco/bbox_mAP_50', interval=4)
    cfg = stopping(save_best=True, default_hooks=dict(checkpoint=own))
    assert cfg.default_hooks.checkpoint == own


def test_runs_that_keep_no_best_keep_their_hook():
    own = dict(type='CheckpointHook', interval=4)
    cfg = stopping(default_hooks=dict(checkpoint=own))
    assert cfg.default_hooks.checkpoint == own


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(early_stop=0), 'got 0'),
        (dict(early_stop=-3), 'got -3'),
        (dict(early_stop=2.5), 'got 2.5'),
        (dict(early_stop=True), 'got True'),
        (dict(early_stop=1, val_evaluator=None), '--early-stop compares validations'),
        (dict(save_best=True, val_dataloader=None), '--save-best compares validations'),
        (dict(save_best=True, default_hooks=dict(checkpoint=None)), 'checkpoint is None'),
    ],
)
def test_options_that_cannot_be_are_told(options, message):
    with pytest.raises(UserError, match=message):
        stopping(**options)
