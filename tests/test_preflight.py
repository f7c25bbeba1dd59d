"""Data that is missing is told before anything is built, with all that helps."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import DATASETS

from mmfocal.datasets.checks import MissingDataError, check_data
from mmfocal.datasets.coco_shapes import ShapesDataset
from mmfocal.datasets.published import DATASETS as PUBLISHED
from mmfocal.engine import load_config
from mmfocal.utils.errors import UserError

ROOT = Path(__file__).parents[1]
COCO = ('annotations/instances_train2017.json', 'annotations/instances_val2017.json')


def make_coco(folder):
    """Empty files and folders, named as COCO's."""
    for name in COCO:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{}')
    for name in ('train2017', 'val2017'):
        (folder / name).mkdir()


def message(cfg, *splits):
    with pytest.raises(MissingDataError) as error:
        check_data(cfg, splits or ('train', 'val'))
    return str(error.value)


ADE20K = [f'{what}/{split}' for what in ('images', 'annotations') for split in ('training',)]


@pytest.mark.parametrize(
    'name, root, parts, key',
    [
        ('focal_maskrcnn_ms-1x', 'data/coco', (*COCO, 'train2017', 'val2017'), 'coco'),
        ('focal_upernet_160k', 'data/ade/ADEChallengeData2016', ADE20K, 'ade20k'),
    ],
)
def test_message_says_what_where_how_and_what_else(monkeypatch, tmp_path, name, root, parts, key):
    monkeypatch.chdir(tmp_path)
    text = message(load_config(name))
    for part in parts:
        assert f'  {tmp_path}/{root}/{part}\n' in text
    for archive in PUBLISHED[key].archives:
        assert (archive.url in text) != archive.optional
    assert f'tools/prepare_dataset.py {key} ' in text
    example = re.search(r'python tools/train\.py (\S+)', text)[1]
    embedded = load_config(example)
    check_data(embedded)  # needs no data
    assert embedded.default_scope == load_config(name).default_scope


@pytest.mark.parametrize(
    'key, settings',
    [
        ('bccd', dict(type='CocoDataset', ann_file='coco/train.json', data_prefix=dict(img=''))),
        (
            'camvid',
            dict(
                type='BaseSegDataset',
                ann_file='train.txt',
                data_prefix=dict(img_path='img_dir/train', seg_map_path='label_maps/train'),
            ),
        ),
    ],
)
def test_data_sets_are_known_by_their_folder(monkeypatch, tmp_path, key, settings):
    monkeypatch.chdir(tmp_path)
    published = PUBLISHED[key]
    dataset = dict(data_root=f'{published.root}/', pipeline=[], **settings)
    scope = 'mmdet' if key == 'bccd' else 'mmseg'
    cfg = Config(dict(default_scope=scope, train_dataloader=dict(dataset=dataset)))
    text = message(cfg, 'train')
    assert f'To get {published.title}: {published.how_to_get()}\n' in text
    assert published.archives[0].url in text and 'COCO 2017' not in text
    dataset['data_root'] = 'elsewhere'
    cfg = Config(dict(default_scope=scope, train_dataloader=dict(dataset=dataset)))
    assert published.title not in message(cfg, 'train')


def test_options_of_the_message_work(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    make_coco(tmp_path / 'elsewhere')
    text = message(load_config('focal_maskrcnn_ms-1x'))
    options = dict(re.findall(r'(\S+)=(FOLDER\S*)', text))
    options = {key: value.replace('FOLDER', 'elsewhere') for key, value in options.items()}
    cfg = load_config('focal_maskrcnn_ms-1x', options)
    check_data(cfg)
    assert cfg.val_evaluator.ann_file == f'elsewhere/{COCO[1]}'


def test_label_maps_that_nothing_loads_are_not_missed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    make_coco(tmp_path / 'data/coco')
    cfg = load_config('focal_mask2former_50e')
    dataset = cfg.train_dataloader.dataset
    assert dataset.data_prefix.seg  # of the panoptic config that mmdet's inherits from
    check_data(cfg)
    (loader,) = (step for step in dataset.pipeline if step.type == 'LoadAnnotations')
    loader.with_seg = True
    assert f'/{dataset.data_prefix.seg.rstrip("/")}\n' in message(cfg)


def test_panoptic_maps_need_a_package(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'panopticapi', None)
    with pytest.raises(UserError, match=r'pip install git\+https://\S+/panopticapi\.git'):
        check_data(load_config('focal_mask2former-panoptic_50e'))


def test_present_data_passes_and_only_missing_parts_are_told(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    make_coco(tmp_path / 'data/coco')
    cfg = load_config('focal_maskrcnn_ms-1x')
    check_data(cfg, ('train', 'val', 'test'))
    (tmp_path / 'data/coco/val2017').rmdir()
    text = message(cfg)
    assert f'{tmp_path}/data/coco/val2017' in text and 'train_dataloader' not in text
    check_data(cfg, ('train',))


def dataset(**kwargs):
    return dict(type='CocoDataset', ann_file='a.json', data_prefix=dict(img='images'), **kwargs)


@pytest.mark.parametrize(
    'wrap, key',
    [
        (lambda d: dict(type='RepeatDataset', times=2, dataset=d), 'dataset'),
        (lambda d: dict(type='ConcatDataset', datasets=[dataset(data_root='.'), d]), 'datasets.1'),
        (
            lambda d: dict(
                type='ClassBalancedDataset', dataset=dict(type='ConcatDataset', datasets=[d])
            ),
            'dataset.datasets.0',
        ),
    ],
)
def test_wrapped_data_sets_are_found(monkeypatch, tmp_path, wrap, key):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.json').write_text('{}')
    (tmp_path / 'images').mkdir()
    text = message(Config(dict(train_dataloader=dict(dataset=wrap(dataset(data_root='gone'))))))
    assert f'{tmp_path}/gone/a.json' in text and f'{tmp_path}/gone/images' in text
    assert f'train_dataloader.dataset.{key}.data_root=FOLDER' in text


def test_what_draws_itself_or_lies_elsewhere_is_not_looked_for():
    shapes = dict(type='mmfocal.datasets.coco_shapes.ShapesDataset', ann_file='gone.json')
    for each in (shapes, dataset(backend_args=dict(backend='petrel')), dict(type='Random')):
        check_data(Config(dict(train_dataloader=dict(dataset=each), val_dataloader=None)))


def test_shapes_of_others_are_looked_for():
    for kind in ('MyShapesCocoDataset', 'their.module.ShapesDataset'):
        other = dataset(data_root='gone') | dict(type=kind)
        assert 'gone/a.json' in message(Config(dict(train_dataloader=dict(dataset=other))))


@DATASETS.register_module()
class RoadCocoDataset(CocoDataset):
    """Of somebody else, who has a name like ours."""


ThirdPartyShapes = type('ShapesDataset', (RoadCocoDataset,), dict(__module__=__name__))


def with_type(kind, **settings):
    loader = dict(dataset=dataset(data_root='gone', **settings) | dict(type=kind))
    return Config(dict(default_scope='mmdet', train_dataloader=loader))


@pytest.mark.parametrize('kind', ['CocoDataset', 'mmdet.CocoDataset', CocoDataset], ids=str)
def test_the_class_tells_how_to_get_its_data(kind):
    assert 'To get COCO 2017: ' in message(with_type(kind))


@pytest.mark.parametrize('kind', ['RoadCocoDataset', RoadCocoDataset, ThirdPartyShapes], ids=str)
def test_data_of_third_parties_is_looked_for_without_advice(kind):
    text = message(with_type(kind))
    assert 'gone/a.json' in text and 'To get' not in text


@pytest.mark.parametrize('kind', [ShapesDataset, 'mmfocal.datasets.coco_shapes.ShapesDataset'])
def test_drawn_data_is_not_looked_for(kind):
    check_data(with_type(kind))


def test_paths_are_joined_by_the_class():
    """Also a prefix that it has of its own."""

    class Prefixed(CocoDataset):
        def __init__(self, **kwargs):
            super().__init__(**{**kwargs, 'data_prefix': dict(img='own')})

    text = message(with_type(Prefixed))
    assert 'gone/own' in text and 'gone/images' not in text


def test_lists_of_evaluators_follow_their_data(tmp_path):
    cfg = Config(
        dict(
            test_dataloader=dict(dataset=dataset(data_root=str(tmp_path / 'gone'))),
            test_evaluator=[dict(type='VOCMetric'), dict(type='CocoMetric', ann_file='x.json')],
        )
    )
    assert 'test_evaluator.1.ann_file=FOLDER/a.json' in message(cfg, 'test')


def test_segmentation_data_is_checked_and_named(tmp_path):
    prefix = dict(img_path='images/training', seg_map_path='annotations/training')
    loader = dict(dataset=dict(type='ADE20KDataset', data_root=str(tmp_path), data_prefix=prefix))
    text = message(Config(dict(train_dataloader=loader)))
    assert f'{tmp_path}/annotations/training' in text and 'ADEChallengeData2016.zip' in text


@pytest.mark.parametrize(
    'name', ['configs/mmdet/focal_maskrcnn_1x.py', 'focal_maskrcnn_1x.py', 'focal_maskrcnn_1x']
)
def test_configs_are_found_from_anywhere(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    cfg = load_config(name, {'train_cfg.max_epochs': 1})
    assert Path(cfg.filename) == ROOT / 'configs/mmdet/focal_maskrcnn_1x.py'
    assert cfg.train_cfg.max_epochs == 1


def test_configs_of_the_current_folder_come_first(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'focal_maskrcnn_1x.py').write_text('mine = True')
    assert load_config('focal_maskrcnn_1x.py').mine


def test_configs_that_do_not_load_are_told(tmp_path):
    (tmp_path / 'broken.py').write_text("_base_ = 'gone.py'")
    with pytest.raises(UserError, match=r'broken\.py does not load: .*gone\.py'):
        load_config(tmp_path / 'broken.py')


def test_missing_data_ends_training_before_a_model_is_built(tmp_path):
    command = [sys.executable, ROOT / 'tools/train.py', 'focal_maskrcnn_ms-1x']
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert result.stderr.lstrip().startswith('The data of this config is not there.')
    assert not list(tmp_path.iterdir())


def test_configs_may_use_the_package(tmp_path):
    (tmp_path / 'mine.py').write_text('import mmfocal\nversion = mmfocal.__version__')
    code = (
        'from mmfocal.engine import load_config\n'
        'cfg = load_config("mine.py")\n'
        'import mmfocal\n'
        'assert cfg.version == mmfocal.__version__\n'
        'from mmengine.registry import MODELS\n'
        'assert MODELS.get("FocalTransformer") is mmfocal.FocalTransformer\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('installed', [False, True])
def test_package_of_a_transform_is_told_before_label_maps(monkeypatch, tmp_path, installed):
    monkeypatch.chdir(tmp_path)
    make_coco(tmp_path / 'data/coco')
    cfg = load_config('focal-l_htcpp_3x')
    cfg.train_dataloader.dataset.pipeline.insert(1, dict(type='Albu', transforms=[]))
    find_spec = importlib.util.find_spec

    def find(name, *args):
        return (installed or None) if name == 'albumentations' else find_spec(name, *args)

    monkeypatch.setattr(importlib.util, 'find_spec', find)
    if installed:
        text = message(cfg)
        assert f'  {tmp_path}/data/coco/stuffthingmaps/train2017\n' in text
        assert 'stuffthingmaps_trainval2017.zip' in text
    else:
        with pytest.raises(UserError, match=r'pipeline: Albu needs .*albumentations'):
            check_data(cfg)


def test_transform_that_calls_a_broken_package_is_told():
    cfg = load_config('focal-l_htcpp_3x')
    cfg.train_dataloader.dataset.pipeline[1].type = 'InstaBoost'
    with pytest.raises(UserError, match=r'instaboostfast, .*mmfocal\.detection\.InstaBoost'):
        check_data(cfg)


def test_images_below_a_wrapper_are_looked_for(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = message(load_config('focal-l_dyhead_2x'), 'train')
    assert 'train_dataloader.dataset.dataset.data_root=FOLDER' in text


@pytest.mark.parametrize('name', ['ann_file', 'proposal_file'])
@pytest.mark.parametrize('suffix', ['pkl', 'PKL', 'pickle', 'yaml'])
def test_files_that_can_hold_code_are_refused(name, suffix):
    dataset = dict(type='CocoDataset', ann_file='train.json', data_root='data')
    cfg = Config(dict(train_dataloader=dict(dataset=dataset | {name: f'a/b.{suffix}'})))
    with pytest.raises(UserError, match=rf'dataset\.{name}: .*JSON, got a/b\.{suffix}\.'):
        check_data(cfg)
