"""Settings that are misspelt, impossible or read by nobody are told in one sentence."""

import copy
import inspect
import re
import sys
import traceback

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.runner import FlexibleRunner, Runner
from torch import nn

from mmfocal.cli._arguments import add_config, parser_of
from mmfocal.datasets.checks.config import check_data
from mmfocal.engine import TestOptions, TrainOptions, load_config, settings, train
from mmfocal.engine import test as run_test
from mmfocal.engine.build_errors import told_settings
from mmfocal.engine.misspelt import READ, check_options
from mmfocal.engine.sections import check_sections
from mmfocal.utils.config import import_packages
from mmfocal.utils.errors import UserError

DETECTOR = 'focal_retinanet_shapes'


def told(error):
    """The message of an error, without a trace in it."""
    message = str(error.value)
    assert 'Traceback' not in message and '  File ' not in message
    return message


# --- Options that change nothing -------------------------------------------------------------


@pytest.mark.parametrize(
    'options, instead',
    [
        (dict(lr=5), 'optim_wrapper.optimizer.lr'),
        (dict(learning_rate=5), 'optim_wrapper.optimizer.lr'),
        ({'optimizer.lr': 5}, 'optim_wrapper.optimizer.lr'),
        (dict(max_epochs=3), 'train_cfg.max_iters'),
        (dict(max_iters=3), 'train_cfg.max_iters'),
        ({'data.samples_per_gpu': 3}, 'train_dataloader.batch_size'),
        (dict(batchsize=3), 'train_dataloader.batch_size'),
        (dict(num_classes=3), 'model.bbox_head.num_classes'),
        (dict(data_root='x'), 'train_dataloader.dataset.data_root'),
        ({'train_pipeline.0.type': 'x'}, 'train_dataloader.dataset.pipeline.0.type'),
        (dict(custom_hook=[]), 'custom_hooks'),
    ],
    ids=str,
)
def test_options_that_nothing_reads_are_told_with_what_to_set(options, instead):
    with pytest.raises(UserError) as error:
        load_config(DETECTOR, options)
    assert instead in told(error) and next(iter(options)) in told(error)


def test_variables_of_a_config_are_told_apart_from_settings(tmp_path):
    path = tmp_path / 'own.py'
    path.write_text('max_epochs = 12\ntrain_cfg = dict(by_epoch=True, max_epochs=max_epochs)\n')
    with pytest.raises(UserError, match=r'variable.*train_cfg\.max_epochs'):
        load_config(path, dict(max_epochs=3))
    assert load_config(path, {'train_cfg.max_epochs': 3}).train_cfg.max_epochs == 3


def test_preprocessors_beside_a_model_that_has_one_are_not_read():
    with pytest.raises(UserError, match=r'model\.data_preprocessor\.size'):
        load_config('focal_upernet_160k', {'data_preprocessor.size': (64, 64)})


@pytest.mark.parametrize(
    'options',
    [
        {'train_cfg.max_iters': 3, 'optim_wrapper.optimizer.lr': 5, 'randomness.seed': 1},
        dict(load_from='a.pth', resume=True, work_dir='w', launcher='none', log_level='ERROR'),
        dict(tta_model=dict(type='DetTTAModel'), tta_pipeline=[], auto_scale_lr=dict(enable=True)),
        dict(model_wrapper_cfg=dict(type='A'), find_unused_parameters=True, compile=True),
        dict(custom_imports=dict(imports=['mmfocal']), sync_bn='torch', experiment_name='a'),
        {'default_hooks.own': dict(type='A'), 'model.test_cfg.score_thr': 0.5},
        dict(resume_from='a.pth', auto_resume=True),
    ],
)
def test_options_that_are_read_are_taken(options, capsys):
    load_config(DETECTOR, options)
    assert capsys.readouterr().out == ''


def test_all_keys_that_mmengine_reads_are_known():
    """Of its sources, in the form ``cfg.get('key'`` that runners use."""
    for runner in (Runner, FlexibleRunner):
        source = inspect.getsource(runner)
        keys = set(re.findall(r"(?<![\w.])(?:self\.)?cfg\.get\(\s*'(\w+)'", source))
        assert len(keys) > 20
        cfg = Config(dict(model=dict(type='A')))
        assert check_options(cfg, cfg, keys) == []
    assert 'tta_model' in READ


def test_options_that_code_of_ones_own_may_read_are_noted(capsys):
    load_config(DETECTOR, {'custom_imports.imports': ['mmfocal', 'own'], 'own_lr': 5})
    assert 'own_lr' in capsys.readouterr().out


@pytest.mark.parametrize('scope', ['model', 'train_dataloader.dataset'])
def test_code_of_ones_own_may_be_imported_otherwise(scope, capsys):
    """By a pure-Python config, or as a package whose scope a type names."""
    cfg = load_config(DETECTOR, {f'{scope}.type': 'own_package.Own'})
    (note,) = check_options(cfg, cfg, ['my_key'])
    assert 'my_key' in note


@pytest.mark.parametrize(
    'option, near',
    [
        ('model.test_cfg.score_threshold', 'score_thr'),
        ('train_dataloader.batchsize', 'batch_size'),
        ('env_cfg.cudnn_benchmarks', 'cudnn_benchmark'),
    ],
)
def test_new_keys_that_look_misspelt_are_noted(capsys, option, near):
    load_config(DETECTOR, {option: 1})
    out = capsys.readouterr().out
    assert option in out and near in out


def test_arguments_that_a_class_swallows_are_noted(capsys):
    load_config('focal_upernet_shapes', {'val_evaluator.iou_metric': ['mDice']})
    assert 'iou_metrics' in capsys.readouterr().out


# --- Settings that exclude each other, and former ones -----------------------------------------


@pytest.mark.parametrize(
    'name', ['focal_retinanet_shapes', 'focal_upernet_shapes', 'mmpretrain/focal_shapes']
)
@pytest.mark.parametrize('run', ['train', 'test'])
def test_loaders_without_workers_have_none_that_persist(name, run):
    name = name if '/' not in name else f'configs/{name}.py'
    loader = f'{run}_dataloader'
    cfg = load_config(name, {f'{loader}.num_workers': 0})
    with pytest.raises(UserError) as error:
        check_sections(cfg, run)
    assert f'{loader}.persistent_workers to False' in told(error)
    cfg[loader].persistent_workers = False
    check_sections(cfg, run)
    cfg[loader].prefetch_factor = 2
    with pytest.raises(UserError, match=r'prefetch_factor=2 exclude .*prefetch_factor to None'):
        check_sections(cfg, run)
    cfg[loader].num_workers = 1
    check_sections(cfg, run)


def test_loaders_that_are_not_used_may_be_anything():
    options = {'test_dataloader.num_workers': 0}
    check_sections(load_config('focal_retinanet_shapes', options), 'train')


@pytest.mark.parametrize(
    'former, now', [('samples_per_gpu', 'batch_size'), ('workers_per_gpu', 'num_workers')]
)
def test_former_names_in_loaders_are_told(former, now):
    cfg = load_config('focal_retinanet_shapes', {f'val_dataloader.{former}': 2})
    with pytest.raises(UserError, match=rf'val_dataloader\.{former} .*Write {now}'):
        check_sections(cfg, 'train')


def test_configs_of_former_versions_are_told(tmp_path):
    path = tmp_path / 'former.py'
    path.write_text('data = dict(samples_per_gpu=2, train=dict(type="CocoDataset"))\n')
    with pytest.raises(UserError, match=r'former\.py is of MMDetection 2\.x .*train_dataloader='):
        load_config(path)
    # A variable of a config of today may have that name.
    path.write_text('data = dict(train="a")\ntrain_dataloader = dict(dataset=dict(type="A"))\n')
    load_config(path)


# --- The command line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['a', '--cfg-options', 'max_epochs'], "expected KEY=VALUE, got 'max_epochs'"),
        (['a', '--cfg-options', 'a=[1,(2]'], 'expected KEY=VALUE'),
        (['a', '--cfg-options', 'a=f(1,2)'], 'a=f(1,2)'),
        (['a', '--cfg-options', 'a=dict(b=f(1))'], 'expected KEY=VALUE, a dict'),
        (['a', '--cfg-options', 'a=dict(**b)'], 'expected KEY=VALUE, a dict'),
        (['a', '--cfg-options', 'a={b: f(1)}'], 'expected KEY=VALUE, a dict'),
        (['a', '--cfg-options', 'a={[1]: 2}'], 'a dict of plain values'),
        (['a', '--cfg-option', 'a=1'], '--cfg-options'),
        (['a', '--cgf-options', 'a=1'], '--cfg-options'),
    ],
)
def test_options_of_another_form_are_told(capsys, arguments, message):
    parser = parser_of('A tool.')
    add_config(parser)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_whole_options_are_read(capsys):
    parser = parser_of('A tool.')
    add_config(parser)
    args = parser.parse_args(['a', '--cfg-options', 'a=[1,2]', 'b.c=x=y', 'd={n}_{m}.pth'])
    assert args.cfg_options == {'a': [1, 2], 'b.c': 'x=y', 'd': '{n}_{m}.pth'}


@pytest.mark.parametrize(
    'text, value',
    [
        ('dict(depths=(2,2), rate=1e-5, type=LN)', dict(depths=(2, 2), rate=1e-5, type='LN')),
        ("{'a.b': -1, c: None}", {'a.b': -1, 'c': None}),
        ('[dict(type=LN), dict(on=true, off=False)]', [dict(type='LN'), dict(on=True, off=False)]),
        ('dict(a=dict(b=[]), c={})', dict(a=dict(b=[]), c={})),
    ],
)
def test_dicts_are_read_as_options(text, value):
    parser = parser_of('A tool.')
    add_config(parser)
    args = parser.parse_args(['a', '--cfg-options', f'x.y={text}'])
    assert args.cfg_options == {'x.y': value}


def test_dict_replaces_what_is_none_and_merges_with_what_is_one():
    arch = dict(embed_dims=96, depths=(2, 2, 4, 2), num_heads=(3, 6, 12, 24))
    cfg = load_config('focal_maskrcnn_3x', {'model.backbone.arch': arch})
    assert cfg.model.backbone.arch == arch
    assert cfg.model.backbone.focal_windows == (15, 13, 9, 7)
    cfg = load_config(cfg, {'model.backbone.arch': dict(depths=(1, 1, 1, 1))})
    assert cfg.model.backbone.arch == dict(arch, depths=(1, 1, 1, 1))
    cfg = load_config('focal_maskrcnn_3x', {'model': dict(backbone=dict(arch=arch))})
    assert cfg.model.backbone.arch == arch and cfg.model.backbone.type == 'FocalTransformer'
    whole = {'model.backbone': dict(_delete_=True, type='Own', arch=arch)}
    assert load_config('focal_maskrcnn_3x', whole).model.backbone == dict(type='Own', arch=arch)
    items = {'test_dataloader': dict(dataset=dict(pipeline={'1': dict(keep_ratio=False)}))}
    before, after = (load_config('focal_maskrcnn_3x', each) for each in ({}, items))
    scale = before.test_dataloader.dataset.pipeline[1]
    assert after.test_dataloader.dataset.pipeline[1] == dict(scale, keep_ratio=False)


@pytest.mark.parametrize('options', [{1: 2}, {'model.backbone': {1: 2}}, {'model': {None: 2}}])
def test_keys_that_are_no_text_are_told(options):
    with pytest.raises(UserError, match=r'by dotted key|is no text'):
        load_config('focal_maskrcnn_3x', options)


# --- Files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'files, parts',
    [
        (dict(a="_base_ = './nope.py'"), ['a.py', 'nope.py', 'not there']),
        (dict(a="_base_ = './bse.py'", base='x = 1'), ['Near to it are: base']),
        (
            dict(a="_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x.py'"),
            ['retinanet_r50_fpn_1x_coco'],
        ),
        (dict(a="_base_ = 'nopackage::a.py'"), ['nopackage::a.py', 'no installed package has']),
        (dict(a='x = 1\nb = dict(\n  c=1\n  d=2)'), ['a.py, line 3']),
        (dict(a="_base_ = './base.py'", base='x = 1\ny = (\n'), ['base.py, line 2']),
        (dict(a="_base_ = './base.py'", base='x = 1\ny = z'), ['base.py, line 2', "'z'"]),
        (dict(a='x = 1\ny = 1 / 0'), ['a.py, line 2', 'ZeroDivisionError']),
    ],
)
def test_configs_that_do_not_load_are_told_with_file_and_line(tmp_path, files, parts):
    for name, text in files.items():
        (tmp_path / f'{name}.py').write_text(text + '\n')
    with pytest.raises(UserError) as error:
        load_config(tmp_path / 'a.py')
    for part in parts:
        assert part in told(error)


def test_a_config_that_inherits_from_itself_is_told(tmp_path):
    path = tmp_path / 'a.py'
    path.write_text("_base_ = './a.py'\n")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(400)  # mmengine is slow at a thousand
    try:
        with pytest.raises(UserError, match='inherits from itself'):
            load_config(path)
    finally:
        sys.setrecursionlimit(limit)


LAZY = 'from mmengine.config import read_base\n'


@pytest.mark.parametrize(
    'text, parts',
    [
        (
            'from mmdet.models import RetinaNett\nmodel = dict(type=RetinaNett)\n',
            ['own.py, line 2', 'RetinaNett', 'RetinaNet,'],
        ),
        (
            'from mmdett.models import RetinaNet\nmodel = dict(a=[dict(type=RetinaNet)])\n',
            ['own.py, line 2', 'mmdett.models'],
        ),
        ('import mmdet.models as m\nmodel = dict(type=m.RetinaNett)\n', ['own.py', 'RetinaNet,']),
        ('with read_base():\n    from .nope import *\n', ['own.py', 'nope.py', 'not there']),
        ('model = dict(\n', ['own.py, line 2']),
    ],
)
def test_wrong_imports_of_pure_python_configs_are_told(tmp_path, text, parts):
    path = tmp_path / 'own.py'
    path.write_text(LAZY + text)
    with pytest.raises(UserError) as error:
        load_config(path)
    for part in parts:
        assert part in told(error)


def test_imports_that_are_not_used_may_be_missing(tmp_path):
    path = tmp_path / 'own.py'
    path.write_text(LAZY + 'from nopackage import Nothing\nx = 3\n')
    assert load_config(path).x == 3


# --- Sections --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(default_hooks=[1]), r'default_hooks: expected a dict, got \[1\]'),
        (dict(custom_hooks=dict(type='A')), 'custom_hooks: expected a list of dicts'),
        (dict(train_dataloader=3), 'train_dataloader: expected a dict, got 3'),
        (dict(optim_wrapper='AdamW'), "optim_wrapper: expected a dict, got 'AdamW'"),
        ({'randomness.seed': -1}, 'randomness.seed: .*got -1'),
        ({'randomness.seed': 2**40}, f'randomness.seed: .*got {2**40}'),
        ({'randomness.seed': 'a'}, "randomness.seed: .*got 'a'"),
        (dict(default_scope='mmdett'), "default_scope.*'mmdett'.*mmdet"),
        (dict(custom_imports='own'), "custom_imports: expected a dict, got 'own'"),
        (dict(load_from=3), 'load_from: expected a path, got 3'),
        (dict(log_level='LOUD'), "log_level: expected one of .*INFO.*got 'LOUD'"),
        ({'env_cfg.mp_cfg.mp_start_method': 'frok'}, "mp_start_method.*spawn.*got 'frok'"),
        ({'train_cfg.max_epochs': 0}, 'train_cfg.max_epochs.*got 0'),
        ({'train_cfg.max_iters': -3}, 'train_cfg.max_iters.*got -3'),
        ({'train_cfg.val_interval': 'all'}, "train_cfg.val_interval.*got 'all'"),
        ({'train_cfg.val_interval': 1.5}, 'train_cfg.val_interval.*got 1.5'),
        ({'optim_wrapper.clip_grad': dict(maxnorm=1)}, "clip_grad.*'maxnorm'.*max_norm"),
        (
            {'optim_wrapper.paramwise_cfg': dict(custom_key={})},
            "paramwise_cfg.*'custom_key'.*custom_keys",
        ),
    ],
    ids=str,
)
def test_sections_of_another_kind_are_told(options, message):
    with pytest.raises(UserError, match=message):
        load_config(DETECTOR, options)


@pytest.mark.parametrize('value', [None, 3, 'CocoDataset'])
def test_data_sets_of_another_kind_are_told(value):
    cfg = load_config(DETECTOR, {'train_dataloader.dataset': value})
    with pytest.raises(UserError, match=f'train_dataloader.dataset: .*got {value!r}'):
        check_data(cfg)


@pytest.mark.parametrize(
    'settings',
    [
        dict(log_level=20),
        dict(train_cfg=dict(max_epochs=12.0)),
        dict(optim_wrapper=dict(clip_grad=dict(type='value', clip_value=1))),
        dict(optim_wrapper=dict(constructor='own.Constructor', paramwise_cfg=dict(a=1))),
    ],
    ids=str,
)
def test_other_forms_that_mmengine_takes_are_left_alone(settings):
    cfg = Config(copy.deepcopy(settings))
    check_sections(cfg)
    assert cfg.to_dict() == settings


def test_scopes_of_ones_own_are_taken():
    options = {'default_scope': 'own_scope', 'custom_imports.imports': ['own_package']}
    assert load_config(DETECTOR, options).default_scope == 'own_scope'


@pytest.mark.parametrize('needed', ['train', 'test'])
@pytest.mark.parametrize(
    'name',
    ['model', 'train_cfg', 'optim_wrapper', 'val_evaluator', 'val_dataloader', 'test_cfg'],
)
def test_sections_that_belong_together_are_told(name, needed):
    cfg = load_config(DETECTOR, {name: None})
    with pytest.raises(UserError, match=name):
        check_sections(cfg, needed)


def test_configs_without_a_split_are_taken():
    names = ('val_dataloader', 'val_cfg', 'val_evaluator')
    check_sections(load_config(DETECTOR, dict.fromkeys(names)), 'train')


def test_none_in_place_of_a_section_means_the_default():
    names = ('env_cfg', 'randomness', 'default_hooks', 'visualizer', 'log_level', 'custom_hooks')
    cfg = load_config(DETECTOR, dict.fromkeys(names))
    assert not set(names) & set(cfg)
    assert cfg.default_scope == 'mmdet'


# --- What is built ---------------------------------------------------------------------------


@DATASETS.register_module()
class PlainNumbers(BaseDataset):
    def load_data_list(self):
        return [dict(number=number) for number in range(4)]

    def prepare_data(self, idx):
        return dict(inputs=torch.ones(2) * idx)


@MODELS.register_module()
class PlainModel(BaseModel):
    def __init__(self, width=1, fails=None, **others):
        super().__init__(**others)
        self.layer = nn.Linear(2, width)
        self.fails = fails
        if fails == 'init':
            raise ValueError('a mistake of its own')

    def forward(self, inputs, mode='tensor'):
        if self.fails:
            self._helper(wrong=self.fails)
        return dict(loss=self.layer(torch.stack(inputs)).square().mean())

    def _helper(self):
        """Takes nothing."""


@HOOKS.register_module()
class FailingHook(Hook):
    def before_train(self, runner):
        dict(a=1)['b']


def plain_config(work_dir, **options):
    sampler = dict(type='DefaultSampler', shuffle=True)
    data = dict(type='PlainNumbers')
    cfg = Config(
        dict(
            model=dict(type='PlainModel'),
            work_dir=str(work_dir),
            train_dataloader=dict(batch_size=2, num_workers=0, dataset=data, sampler=sampler),
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)),
            param_scheduler=[dict(type='MultiStepLR', milestones=[1])],
            default_hooks=dict(logger=dict(type='LoggerHook')),
        )
    )
    cfg.merge_from_dict(options)
    return cfg


OPTIONS = dict(log_to=[], data_check=False)


@pytest.mark.parametrize(
    'options, parts',
    [
        ({'train_dataloader.batchsize': 3}, ['train_dataloader', 'batchsize', 'batch_size']),
        ({'train_dataloader.sampler.shufle': 3}, ['train_dataloader.sampler', 'shuffle']),
        ({'train_dataloader.dataset.max_refetc': 3}, ['train_dataloader.dataset', 'max_refetch']),
        ({'train_dataloader.dataset.type': 'PlainNumber'}, ['PlainNumbers']),
        ({'train_dataloader.num_workers': -1}, ['train_dataloader', 'num_workers']),
        ({'train_dataloader.persistent_workers': True}, ['train_dataloader', 'num_workers']),
        ({'train_dataloader.batch_size': 0}, ['train_dataloader', 'batch_size=0']),
        ({'train_cfg.max_epoch': 3}, ['train_cfg', 'max_epochs']),
        ({'train_cfg.type': 'EpochBasedTrainLop'}, ['train_cfg.type', 'EpochBasedTrainLoop']),
        ({'optim_wrapper.optimizer.learning_rate': 3}, ['optim_wrapper.optimizer', ': lr.']),
        ({'optim_wrapper.optimizer.lr': -3}, ['optim_wrapper.optimizer', '-3']),
        ({'optim_wrapper.optimizer.type': 'AdamWW'}, ['optim_wrapper.optimizer.type', 'AdamW,']),
        ({'optim_wrapper.clip_gradient': 3}, ['optim_wrapper', 'clip_grad.']),
        ({'param_scheduler.0.milestone': [3]}, ['param_scheduler.0', 'milestones']),
        ({'param_scheduler.0.type': 'MultiStepsLR'}, ['param_scheduler.0.type', 'MultiStepLR']),
        ({'default_hooks.logger.intervall': 3}, ['default_hooks.logger', 'interval']),
        ({'default_hooks.logger.type': 'LogerHook'}, ['default_hooks.logger.type', 'LoggerHook']),
        ({'custom_hooks': [dict(typ='A')]}, ['custom_hooks', "'type'"]),
        ({'custom_hooks': [3]}, ['3']),
        ({'model.type': 'mmengine.PlainModl'}, ['model.type', 'mmengine.PlainModel']),
        ({'model.widht': 3}, ['model (PlainModel)', 'width']),
        ({'model.data_preprocesor': 3}, ['model (PlainModel)', 'data_preprocessor']),
        ({'randomness.sed': 3}, ['randomness', 'seed']),
        ({'env_cfg.mp_cfg.mp_start_methods': 3}, ['env_cfg.mp_cfg', 'mp_start_methods']),
        (
            {'default_hooks.checkpoint': dict(save_best='score')},
            ['default_hooks.checkpoint', 'score'],
        ),
        ({'default_hooks.checkpoint.max_keep_ckpt': 1}, ["'max_keep_ckpt'", 'max_keep_ckpts']),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_told(tmp_path, options, parts):
    with pytest.raises(UserError) as error:
        train(plain_config(tmp_path, **options), TrainOptions(**OPTIONS))
    for part in parts:
        assert part in told(error)


@pytest.mark.parametrize(
    'options, kind',
    [
        ({'model.fails': 'forward'}, TypeError),
        ({'model.fails': 'init'}, ValueError),
        ({'custom_hooks': [dict(type='FailingHook')]}, KeyError),
    ],
)
def test_mistakes_in_code_of_ones_own_keep_their_trace(tmp_path, options, kind):
    with pytest.raises(kind) as error:
        train(plain_config(tmp_path, **options), TrainOptions(**OPTIONS))
    assert 'test_misspelt.py' in traceback.extract_tb(error.tb)[-1].filename


@pytest.mark.parametrize(
    'path, value, parts',
    [
        ('backbone.embed_dim', 3, ['model.backbone (FocalTransformer)', 'embed_dim']),
        ('backbone.focal_level', 3, ['focal_levels']),
        ('backbone.type', 'FocalTransformr', ['model.backbone.type', 'FocalTransformer,']),
        ('backbone.drop_path_rate', -1, ['model.backbone (FocalTransformer)', '-1']),
        ('bbox_head.anchor_generator.strids', 3, ['model.bbox_head.anchor_generator', 'strides']),
        ('neck.norm_cfg', dict(type='BNN'), ['model.neck.norm_cfg.type', 'BN']),
        ('neck', 3, ['model (RetinaNet)', '3']),
        ('bbox_head.loss_cls.type', 'mmdet.FocalLos', ['mmdet.FocalLoss']),
    ],
)
def test_settings_of_a_detector_are_told_by_their_place(path, value, parts):
    cfg = load_config(DETECTOR, {f'model.{path}': value})
    import_packages(cfg)
    with pytest.raises(UserError) as error, told_settings(cfg):
        MODELS.children['mmdet'].build(cfg.model)
    for part in parts:
        assert part in told(error)


# --- Options of runs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(seed=-1), '--seed: .*got -1'),
        (dict(seed=2**40), f'--seed: .*got {2**40}'),
        (dict(seed='a'), "--seed: .*got 'a'"),
        (dict(early_stop=0), '--early-stop: .*got 0'),
        (dict(early_stop=2), '--early-stop compares validations'),
        (dict(save_best=True), '--save-best compares validations'),
        (dict(val_loss=True), '--val-loss'),
        (dict(log_to=['wand']), "--log-to: .*got 'wand'"),
        (dict(launcher='torchrun'), "--launcher: .*got 'torchrun'"),
        (dict(launcher='pytorch'), '--launcher pytorch: .*RANK'),
        (dict(amp=True, precision='bf16'), 'exclude each other'),
        (dict(precision='fp8'), "--precision: .*got 'fp8'"),
        (dict(auto_scale_lr=True), 'base_batch_size'),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_told(tmp_path, monkeypatch, options, message):
    monkeypatch.delenv('RANK', raising=False)
    cfg = plain_config(tmp_path, auto_scale_lr=None)
    with pytest.raises(UserError, match=message):
        train(cfg, TrainOptions(**(OPTIONS | options)))


def test_losses_need_annotations():
    cfg = load_config(DETECTOR, {'val_evaluator.format_only': True})
    with pytest.raises(UserError, match='format_only'):
        settings.set_validation_loss(cfg)


@pytest.mark.parametrize('names', [dict(tta_model=None), dict(tta_pipeline=None), {}])
def test_test_time_augmentation_needs_its_settings(names):
    cfg = load_config(DETECTOR, names)
    with pytest.raises(UserError, match='lacks tta_model'):
        settings.set_test_time_augmentation(cfg)


@pytest.mark.parametrize('name', ['focal_mask2former_50e', 'focal_rtmdet-ins_100e'])
@pytest.mark.parametrize('merger', ['DetTTAModel', 'InstanceTTAModel', None])
def test_masks_that_boxes_do_not_have_are_not_merged(name, merger):
    cfg = load_config(name)
    cfg.tta_model = merger and dict(type=merger)
    with pytest.raises(UserError, match=r'--tta: .* Test without --tta'):
        settings.set_test_time_augmentation(cfg)
    cfg.tta_model, cfg.tta_pipeline = dict(type='OwnTTAModel'), [dict(type='TestTimeAug')]
    settings.set_test_time_augmentation(cfg)
    assert cfg.model.type == 'OwnTTAModel'


def test_configs_that_do_not_test_are_told(tmp_path):
    with pytest.raises(UserError, match='test_dataloader'):
        run_test(plain_config(tmp_path), TestOptions(checkpoint='a.pth'))
