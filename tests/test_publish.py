"""Published files: what is in them, who reads them, and what is refused."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import test_stock_tools as stock
import torch
from mmengine.registry import MODELS, DefaultScope

from mmfocal import Inferencer, cli, publish
from mmfocal.datasets import prepare_shapes
from mmfocal.engine import CheckpointError, TrainOptions, load_checkpoint_file, load_config, train
from mmfocal.utils.config import import_packages
from mmfocal.utils.errors import UserError
from mmfocal.weights.embedded_config import config_of, portable, text_of

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.stem for path in ROOT.glob('configs/mm*/*_shapes.py'))


@pytest.fixture
def torchvision(monkeypatch):
    """mmpretrain imports it, and uses nothing of it here."""
    monkeypatch.syspath_prepend(ROOT / 'tests/stand_ins')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The folder of a run with averaged weights, after two iterations and validations."""
    folder = tmp_path_factory.mktemp('runs') / 'mine'
    options = {**stock.OPTIONS, 'train_dataloader.batch_size': 2, 'train_cfg.val_interval': 1}
    cfg = load_config('focal_upernet_shapes', options)
    cfg.default_hooks.checkpoint.interval = 1
    cfg.test_dataloader.dataset.backend_args = dict(backend='local')
    train(
        cfg,
        TrainOptions(str(folder), ema=True, save_best=True, log_to=[], data_check=False, seed=0),
    )
    return folder


@pytest.fixture(scope='module')
def published(run):
    """Of its newest checkpoint: the .pth."""
    out = run.parent / 'published'
    return publish(run, out=out, checkpoint='last').files


def as_run(cfg, path):
    """A checkpoint as a run with this config writes it, with weights before training."""
    import_packages(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        model.init_weights()
    hub = dict(runtime_info=dict(cfg=cfg.pretty_text), log_scalars={})
    meta = dict(epoch=1, iter=2, dataset_meta=dict(classes=('a', 'b'), palette=None))
    state = dict(state_dict=model.state_dict(), optimizer={})
    torch.save(dict(**state, meta=meta, message_hub=hub), path)
    return model


def image(folder):
    path = folder / 'image.png'
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8))
    return path


def ended_well(*command, folder, **environment):
    ended = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


# --- What is in them ------------------------------------------------------------------------


@pytest.mark.parametrize('name', CONFIGS)
def test_whole_model_of_every_kind_of_config(name, tmp_path, monkeypatch, torchvision):
    monkeypatch.chdir(tmp_path)
    cfg = load_config(name)
    model = as_run(cfg, 'run.pth')
    pth, config, safetensors = publish('run.pth').files
    expected = model.state_dict()
    for file in (pth, safetensors):
        loaded = load_checkpoint_file(file)
        assert loaded['state_dict'].keys() == expected.keys()
        assert all(torch.equal(loaded['state_dict'][k], v) for k, v in expected.items())
        predicting = Inferencer(file, device='cpu', score_thr=0)
        assert predicting.task.classes == ('a', 'b')
        (prediction,) = predicting(image(tmp_path))
        assert len(prediction.sample.keys()) > 0
    assert load_config(config).model == load_config(pth).model
    assert 'http' not in config.read_text() and str(Path.home()) not in config.read_text()


def test_both_files_say_the_same_and_are_named_by_their_hash(published):
    pth, config, safetensors = published
    assert config == pth.with_suffix('.py')
    for file in (pth, safetensors):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert file.name == f'published-{digest[:8]}{file.suffix}'
    one, other = load_checkpoint_file(pth), load_checkpoint_file(safetensors)
    assert json.loads(json.dumps(one['meta'])) == other['meta']
    assert text_of(load_config(pth).to_dict()) == one['message_hub']['runtime_info']['cfg']
    assert one['message_hub']['runtime_info']['cfg'] == config.read_text()
    assert one['meta']['mmfocal']['versions']['mmfocal']
    assert one['meta']['dataset_meta']['classes'][1] == 'circle'


def test_nothing_of_a_run_or_machine_is_in_them(run, published):
    pth, config, _ = published
    loaded = torch.load(pth, weights_only=True)
    assert loaded.keys() == {'meta', 'state_dict', 'message_hub'}
    assert pth.stat().st_size < 0.3 * (run / 'iter_2.pth').stat().st_size
    own = [str(run), str(Path.home()), 'atomic']
    for file in published:
        assert not [text for text in own if text.encode() in file.read_bytes()]
    cfg = load_config(config)
    assert cfg.train_cfg.max_iters == 2 and 'work_dir' not in cfg and 'max_iters' not in cfg
    assert cfg.test_dataloader.dataset.data_root == 'data/shapes-v1'
    assert cfg.test_dataloader.dataset.backend_args is None


def test_average_is_taken_with_the_metrics_that_are_its(run, published):
    whole = load_checkpoint_file(run / 'iter_2.pth')
    loaded = load_checkpoint_file(published[0])
    name = 'decode_head.conv_seg.weight'
    assert torch.equal(loaded['state_dict'][name], whole['state_dict'][name])
    assert not torch.equal(loaded['state_dict'][name], whole['ema_state_dict'][f'module.{name}'])
    about = loaded['meta']['mmfocal']
    log = next(run.glob('*/vis_data/scalars.json'))
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    (expected,) = [row for row in rows if 'mIoU' in row and row['step'] == 2]
    assert about['averaged'] and about['checkpoint'] == 'iter_2.pth'
    assert about['metrics'] == {k: expected[k] for k in ('aAcc', 'mIoU', 'mAcc')}


@pytest.mark.parametrize(
    ('average', 'training', 'expected'), [(0.5, 0.4, True), (0.4, 0.5, False), (0.5, None, True)]
)
def test_better_of_average_and_trained_weights(run, tmp_path, average, training, expected):
    """Of mmpretrain's hook, which can measure both."""
    loaded = load_checkpoint_file(run / 'iter_2.pth')
    history = {'val/mIoU': average, 'val/mIoU_origin': training}
    loaded['mmfocal_log_history'] = {
        name: dict(values=torch.tensor([0.1, value], dtype=torch.float64))
        for name, value in history.items()
        if value is not None
    }
    torch.save(loaded, tmp_path / 'best_mIoU_iter_2.pth')
    got = publish(tmp_path / 'best_mIoU_iter_2.pth', out=tmp_path / 'x')
    name = 'decode_head.conv_seg.weight'
    source = loaded['state_dict'][name] if expected else loaded['ema_state_dict'][f'module.{name}']
    assert torch.equal(load_checkpoint_file(got.files[0])['state_dict'][name], source)
    assert got.averaged is expected
    assert got.metrics['mIoU'] == (average if expected else training)


def test_best_checkpoint_is_taken_unless_told(run, tmp_path):
    best = publish(run, out=tmp_path / 'a')
    assert Path(best.checkpoint).name.startswith('best_mIoU') and best.metrics['mIoU'] > 0
    assert publish(run, out=tmp_path / 'b', checkpoint='iter_1.pth').checkpoint.endswith('r_1.pth')
    again = publish(best.files[2], out=tmp_path / 'c')
    assert again.metrics == best.metrics and again.averaged
    assert load_checkpoint_file(again.files[0])['meta']['dataset_meta']['classes']


def test_metrics_of_a_run_without_average(run, tmp_path):
    loaded = load_checkpoint_file(run / 'iter_2.pth')
    del loaded['ema_state_dict']
    torch.save(loaded, tmp_path / 'best_mIoU_iter_2.pth')
    got = publish(tmp_path / 'best_mIoU_iter_2.pth', out=tmp_path / 'x')
    assert not got.averaged and got.metrics['mIoU'] > 0


def test_prefixes_of_wrappers_are_left_out(tmp_path):
    model = as_run(load_config('focal_retinanet_shapes'), tmp_path / 'a.pth')
    loaded = torch.load(tmp_path / 'a.pth', weights_only=True)
    loaded['state_dict'] = {f'module.{k}': v for k, v in loaded['state_dict'].items()}
    torch.save(loaded, tmp_path / 'a.pth')
    files = publish(tmp_path / 'a.pth', out=tmp_path / 'b').files
    assert load_checkpoint_file(files[0])['state_dict'].keys() == model.state_dict().keys()


def test_config_is_that_beside_a_checkpoint_without_one(run, tmp_path, monkeypatch):
    loaded = load_checkpoint_file(run / 'iter_2.pth')
    del loaded['message_hub'], loaded['meta']['cfg']
    torch.save(loaded, tmp_path / 'iter_2.pth')
    with pytest.raises(UserError, match=r'holds no config.*--config'):
        publish(tmp_path, out=tmp_path / 'x')
    (tmp_path / 'mine.py').write_text((run / 'focal_upernet_shapes.py').read_text())
    monkeypatch.chdir(tmp_path)
    assert publish(tmp_path).files[1].name.startswith('mine-')


# --- Who reads them -------------------------------------------------------------------------

STOCK = """
import sys
import numpy as np
import torch
file, config = sys.argv[1:]
torch.load(file, weights_only=True)
from mmseg.apis import MMSegInferencer, inference_model, init_model

image = np.zeros((64, 64, 3), np.uint8)
model = init_model(config, file, device='cpu')
inferencer = MMSegInferencer(model=None, weights=file, device='cpu')
found = inference_model(model, image).pred_sem_seg.data[0].numpy()
assert (inferencer(image)['predictions'] == found).all()
assert all((a == b).all() for a, b in zip(model.parameters(), inferencer.model.parameters()))
from mmfocal.weights import install_safe_loading
install_safe_loading()
again = MMSegInferencer(model=None, weights=file, device='cpu')
assert all((a == b).all() for a, b in zip(model.parameters(), again.model.parameters()))
print(model.dataset_meta['classes'])
"""
STOCK_DETECTOR = """
import sys
import numpy as np
file, config, safetensors = sys.argv[1:]
from mmdet.apis import DetInferencer, init_detector

model = init_detector(config, file, device='cpu')
inferencer = DetInferencer(weights=file, device='cpu')
assert all((a == b).all() for a, b in zip(model.parameters(), inferencer.model.parameters()))
assert set(inferencer(np.zeros((64, 64, 3), np.uint8))['predictions'][0]) >= {'labels', 'bboxes'}
from mmfocal.engine import install_safe_loading, load_config
init_detector(load_config(file), file, device='cpu')
install_safe_loading()
again = DetInferencer(weights=safetensors, device='cpu')
assert all((a == b).all() for a, b in zip(model.parameters(), again.model.parameters()))
print(model.dataset_meta['classes'])
"""


def test_stock_mmseg_reads_them(published, tmp_path):
    out = ended_well('-c', STOCK, *published[:2], folder=tmp_path)
    assert "('ground', 'circle'" in out


def test_stock_mmdet_reads_them(tmp_path):
    cfg = load_config('focal_reppointsv2_shapes')
    as_run(cfg, tmp_path / 'run.pth')
    files = publish(tmp_path / 'run.pth', out=tmp_path / 'x').files
    # mmdet asks the data set for its classes, so it has to be there; drawing it takes a minute.
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/shapes-v1').symlink_to(prepare_shapes())
    out = ended_well('-c', STOCK_DETECTOR, *files, folder=tmp_path)
    assert "('a', 'b')" in out


def test_tools_take_a_published_file_for_config_and_checkpoint(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in (published[0], published[2]):
        out = ended_well(
            '-m',
            'mmfocal',
            'infer',
            '--out',
            'results',
            file,
            image(tmp_path),
            '--force',
            folder=tmp_path,
        )
        assert '1 images and frames, 1 label maps' in out
    loaders = [f'test_dataloader.{k}' for k in ('num_workers=0', 'persistent_workers=False')]
    few = [f'test_dataloader.dataset.num_images.{split}=2' for split in ('train', 'val')]
    options = ('--cfg-options', *loaders, *few)
    ended_well('-m', 'mmfocal', 'test', published[0], '--out', 'm.json', *options, folder=tmp_path)
    assert json.loads(Path('m.json').read_text())['metrics']['mIoU'] >= 0
    assert Path('data/shapes-v1').is_dir()  # drawn there, since the config names it


TOOLS = {
    'test': (
        '--cfg-options',
        'test_dataloader.dataset.indices=2',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
    ),
    'infer': ('IMAGE',),
    'show_attention': ('IMAGE', '--point', '20', '20', '--dpi', '50'),
    'analyze_results': (
        '--cfg-options',
        'test_dataloader.dataset.indices=2',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
    ),
    'export': ('--out', 'x.pt2', '--what', 'backbone'),
}
# PyTorch takes half a minute to trace the backbone of the run, and seconds for this one.
EXPORTED = {
    'model.backbone.arch.depths': (1,),
    'model.backbone.arch.num_heads': (1,),
    'model.backbone.window_size': 8,
    'model.backbone.expand_sizes': 0,
    'model.backbone.focal_levels': 1,
    'model.backbone.focal_windows': 1,
    'model.backbone.focal_stages': (),
    'model.backbone.out_indices': (0,),
    'model.decode_head.in_channels': (32,),
    'model.decode_head.in_index': (0,),
    'model.auxiliary_head': None,
}


@pytest.fixture
def called(monkeypatch, capsys):
    def call(tool, *arguments):
        monkeypatch.setattr(sys, 'argv', [f'mmfocal {tool}', *map(str, arguments)])
        module = cli.importlib.import_module(f'mmfocal.cli.{tool}')
        status = module.main()
        return status, capsys.readouterr().out

    return call


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """The folder of a run of a smaller model, and the .safetensors of its publication."""
    folder = tmp_path_factory.mktemp('exported')
    as_run(load_config('focal_upernet_shapes', EXPORTED), folder / 'iter_2.pth')
    return folder, publish(folder, out=folder / 'published').files[2]


@pytest.mark.parametrize('kind', ['folder', 'file', 'published'])
@pytest.mark.parametrize('tool', TOOLS)
def test_every_tool_takes_what_test_takes(
    tool, kind, run, published, exported, tmp_path, called, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    rest = [image(tmp_path) if each == 'IMAGE' else each for each in TOOLS[tool]]
    weights = published[2]
    if tool == 'export':
        run, weights = exported
        if kind != 'published':
            rest += ['--cfg-options', *(f'{key}={value}' for key, value in EXPORTED.items())]
    if kind == 'published':  # its data is drawn here
        monkeypatch.setattr('mmfocal.datasets.shapes.NUM_IMAGES', dict(train=2, val=2))
    given = {
        'folder': ('focal_upernet_shapes', run),
        'file': ('focal_upernet_shapes', run / 'iter_2.pth'),
        'published': (weights,),
    }[kind]
    status, _ = called(tool, *given, *rest)
    assert not status


def test_converter_takes_a_work_folder_and_says_what_it_leaves_out(run, tmp_path, called):
    _, out = called('convert_checkpoint', run, tmp_path / 'x.safetensors')
    assert 'mmfocal publish' in out
    assert all(
        name.startswith(('stages.', 'patch_embed.', 'norm'))
        for name in load_checkpoint_file(tmp_path / 'x.safetensors')
    )


@pytest.mark.parametrize(
    ('arguments', 'places'),
    [
        (['a.pth', 'x.png'], ('a.pth', 'a.pth', ['x.png'])),
        (['--out', 'o', 'a.pth', 'x.png'], ('a.pth', 'a.pth', ['x.png'])),
        (['--force', 'a.safetensors', 'x', 'y'], ('a.safetensors', 'a.safetensors', ['x', 'y'])),
        (['--out=o', 'a.pth', 'b.pth', 'x'], ('a.pth', 'b.pth', ['x'])),
        (['c.py', 'b.pth', 'x'], ('c.py', 'b.pth', ['x'])),
        (['c.py', 'run', 'x', '--cfg-options', 'a=1'], ('c.py', 'run', ['x'])),
    ],
)
def test_file_of_weights_stands_for_both(arguments, places, monkeypatch):
    from mmfocal.cli import infer

    monkeypatch.setattr(sys, 'argv', ['mmfocal infer', *arguments])
    args = infer.parse_args()
    assert (args.config, args.checkpoint, args.inputs) == places


# --- What is refused ------------------------------------------------------------------------

HOSTILE = [
    "model = dict(type='os.system', command='touch ran')",
    "model = dict(type='subprocess.run')",
    "model = dict(type='builtins.exec')",
    "model = dict(backbone=dict(type='torch.hub.load'))",
    "model = dict(type='mmengine.utils.install_package', package='x')",
    "model = dict(type='mmengine.Config.fromfile', filename='x.py')",
    "model = dict(type='mmengine.runner.Runner')",
    "model = dict(type='mmdet.apis.inference.torch.load')",
    "model = dict(type='antigravity')",
    "model = dict(type='mmdet.antigravity')",
    "model = dict(type='antigravity.py')",
    "model = dict(type='not-a-name.run')",
    "model = dict(_scope_='antigravity')",
    "model = dict(type='KnowledgeDistillationSingleStageDetector', teacher_config='x.py')",
    'model = {"a\': 0}; import antigravity; {\'": 1}',
    "model = dict(type='{{$HOME:x}}')",
    "model = dict(classes=['{{$HOME:x}}'])",
    "test_pipeline = [dict(type='LoadBiomedicalData', decode_backend='pickle')]",
    "model = dict(nms=dict(type=\"[license['touch ran'] for license.__class__.__getitem__ in "
    '[torch.os.system]]"))',
    'model = dict(trust_remote_code=True)',
    'model = dict(test_cfg=dict(nms=dict(type=\'__import__("os").system("touch ran")\')))',
    "custom_hooks = [dict(type='EMAHook', ema_type='os.system')]",
    "optim_wrapper = dict(constructor='antigravity')",
    "custom_imports = dict(imports=['antigravity'])",
    "custom_imports = dict(imports='antigravity')",
    'custom_imports = dict(imports=7)',
    "default_scope = 'antigravity'",
    "model = __import__('os').system('touch ran')",
    'import os',
    'model = (lambda: 1)()',
    "model = dict(**{'a': 1})",
    "model = [each for each in 'a']",
    "model = f'{open}'",
    'model.a = 1',
    'model = {[]: 1}',
    'model = ' + '[' * 5000 + ']' * 5000,
    'model = ' + '-' * 100_000 + '1',
    'model = "\0"',
    'a = 1\n' * 1_000_000,
    'model = 5',
]


@pytest.mark.parametrize('text', HOSTILE, ids=lambda text: text[:60])
def test_hostile_configs_are_refused_and_not_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path('not-a-name.py').write_text('open("ran", "w")')
    info = dict(cfg=text)
    checkpoint = dict(state_dict={'a': torch.ones(1)}, message_hub=dict(runtime_info=info))
    torch.save(checkpoint, 'x.pth')
    with pytest.raises(CheckpointError, match=r'x\.pth'):
        Inferencer('x.pth')
    assert not Path('ran').exists() and 'antigravity' not in sys.modules


def test_hostile_pickle_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path}/ran',)

    torch.save(dict(state_dict=Evil()), tmp_path / 'x.pth')
    for call in (Inferencer, publish):
        with pytest.raises(CheckpointError, match='refused'):
            call(tmp_path / 'x.pth')
    assert not (tmp_path / 'ran').exists()


def test_paths_and_addresses_of_others_lead_nowhere():
    config = dict(
        model=dict(
            type='A',
            pretrained='torchvision://x',
            backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='http://x/y.pth')),
            neck=dict(init_cfg=[dict(type='Normal'), dict(type='X', checkpoint='y')]),
            head=dict(init_cfg=dict(type='Normal', std=1)),
        ),
        train_dataloader=dict(
            dataset=dict(
                data_root='/elsewhere/me/photos/',
                ann_file='/elsewhere/me/photos/a/b.json',
                data_prefix=dict(img='images/'),
                metainfo=dict(classes=['/m/01', 'a (b)']),
            )
        ),
        test_evaluator=dict(output_dir='src', outfile_prefix='src'),
        val_evaluator=dict(a='C:\\Users\\me\\x.json', b='s3://me/x', c='../../x', d='~/x.json'),
        visualizer=dict(vis_backends=[dict(type='WandbVisBackend')], save_dir='/x'),
        load_from='x.pth',
        resume=True,
        work_dir='/elsewhere/me/runs',
        my_variable='/elsewhere/me',
    )
    got = portable(config)
    assert got == dict(
        model=dict(type='A', backbone={}, neck={}, head=config['model']['head']),
        train_dataloader=dict(
            dataset=dict(
                data_root='data/photos/',
                ann_file='data/photos/a/b.json',
                data_prefix=dict(img='images/'),
                metainfo=dict(classes=['/m/01', 'a (b)']),
            )
        ),
        test_evaluator={},
        val_evaluator=dict(a='data/x.json', b='data/x', c='data/x', d='data/x.json'),
        visualizer=dict(vis_backends=[dict(type='LocalVisBackend')]),
    )
    assert portable(got) == got == config_of(text_of(got), 'x')


def test_keys_that_are_no_names_are_kept():
    """As settings of optimizers have them, which mmengine writes as ``dict({...})``."""
    keys = {'.norm': dict(decay_mult=0.0), 'backbone.0': {'a.b': [{'c.d': 1}]}}
    config = dict(optim_wrapper=dict(paramwise_cfg=dict(custom_keys=keys)))
    assert config_of(text_of(config), 'x') == config


def test_modules_that_were_imported_may_be_named():
    text = "custom_imports = dict(imports=['test_stock_tools', 'mmfocal.detection'])"
    assert config_of(text, 'x')['custom_imports']['imports'][0] == 'test_stock_tools'


def test_config_with_classes_and_values_that_are_no_literals(tmp_path):
    cfg = load_config('focal_retinanet_shapes')
    as_run(cfg, tmp_path / 'a.pth')
    kind = MODELS.children['mmdet'].get('RetinaNet')
    given = cfg.copy()
    given.model.type = kind
    files = publish(tmp_path / 'a.pth', config=given, out=tmp_path / 'b').files
    assert load_config(files[0]).model.type == 'mmdet.models.detectors.retinanet.RetinaNet'
    assert Inferencer(files[0], device='cpu').task.classes == ('a', 'b')
    given.model.bbox_head.loss_cls.loss_weight = float('inf')
    with pytest.raises(UserError, match='cannot be written'):
        publish(tmp_path / 'a.pth', config=given, out=tmp_path / 'c')


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda run, tmp: publish(tmp), 'no checkpoint in .*before it first saves'),
        (lambda run, tmp: publish(run, checkpoint='iter_9.pth'), 'no checkpoint iter_9.pth'),
        (lambda run, tmp: publish(run / 'iter_2.pth', checkpoint='last'), 'no work folder'),
        (lambda run, tmp: publish(run / 'curves.png'), 'curves.png'),
        (lambda run, tmp: publish(run, config='no.py'), 'no config no.py'),
        (lambda run, tmp: publish(run, config='focal_retinanet_shapes'), 'does not fit the model'),
        (lambda run, tmp: publish(run, out=run / 'curves.png/x'), 'can be no folder'),
        (lambda run, tmp: Inferencer(load_config('focal_retinanet_shapes')), 'no checkpoint'),
        (lambda run, tmp: Inferencer('focal_retinanet_shapes'), 'no checkpoint'),
        (lambda run, tmp: load_config(tmp / 'x.pth'), 'no checkpoint'),
    ],
)
def test_what_cannot_be_published(spoil, message, run, tmp_path):
    with pytest.raises(UserError, match=message):
        spoil(run, tmp_path)


def test_nan_and_damage(run, tmp_path):
    loaded = load_checkpoint_file(run / 'iter_2.pth')
    loaded['state_dict']['decode_head.conv_seg.bias'][0] = float('nan')
    torch.save(loaded, tmp_path / 'nan.pth')
    with pytest.raises(CheckpointError, match=r'conv_seg.bias has 1 of 7 .* NaN'):
        publish(tmp_path / 'nan.pth', out=tmp_path / 'x')
    (tmp_path / 'cut.pth').write_bytes((run / 'iter_2.pth').read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match='cut off or damaged'):
        publish(tmp_path / 'cut.pth', out=tmp_path / 'x')
    assert not list(tmp_path.glob('x*'))


def test_nothing_is_overwritten(run, published):
    before = {path: path.stat().st_mtime_ns for path in published}
    with pytest.raises(UserError, match=r'There already: .*published-.*\.pth'):
        publish(run, out=run.parent / 'published', checkpoint='last')
    assert before == {path: path.stat().st_mtime_ns for path in published}


def test_folder_takes_the_name_of_the_config_and_a_missing_package_is_told(
    run, tmp_path, monkeypatch
):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name: None if name == 'safetensors' else found(name)
    )
    written = publish(run, out=tmp_path)
    assert {path.parent for path in written.files} == {tmp_path}
    assert [path.suffix for path in written.files] == ['.pth', '.py']
    assert any('pip install safetensors' in note for note in written.notes)


def test_metadata_that_is_no_json(published, tmp_path):
    content = published[2].read_bytes().replace(b'"mmfocal":"{', b'"mmfocal":"[')
    (tmp_path / 'x.safetensors').write_bytes(content)
    with pytest.raises(CheckpointError, match='no JSON object'):
        load_checkpoint_file(tmp_path / 'x.safetensors')


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_publishing_again_changes_nothing(published, suffix, tmp_path):
    (file,) = (each for each in published if each.suffix == suffix)
    again = publish(file, out=tmp_path / 'published')
    assert again.averaged and again.metrics['mIoU'] >= 0
    # The package safetensors writes its metadata in an order that is another each time.
    assert [each.name for each in again.files[:2]] == [each.name for each in published[:2]]
    one, other = (load_checkpoint_file(files[2]) for files in (again.files, published))
    assert one['meta'] == other['meta'] and one['message_hub'] == other['message_hub']


def test_saved_models_keep_what_a_published_file_says(published, tmp_path):
    Inferencer(published[0], device='cpu').save_pretrained(tmp_path / 'saved')
    one, other = (
        load_checkpoint_file(path)['meta']['mmfocal']
        for path in (tmp_path / 'saved/model.safetensors', published[0])
    )
    assert one == other and one['metrics']


# --- Folders of hubs ------------------------------------------------------------------------


@pytest.fixture(scope='module')
def saved(run):
    """A folder with the model of the newest checkpoint."""
    folder = run.parent / 'saved'
    Inferencer(run / 'iter_2.pth', device='cpu').save_pretrained(folder)
    return folder


def test_saved_model_predicts_the_same(run, saved, tmp_path):
    path = image(tmp_path)
    original, model = (
        Inferencer(run / 'iter_2.pth', device='cpu'),
        Inferencer.from_pretrained(saved, device='cpu'),
    )
    (one,), (other,) = original(path), model(path)
    assert torch.equal(one.sample.pred_sem_seg.data, other.sample.pred_sem_seg.data)
    assert model.task.classes == original.task.classes
    assert model.task.palette == original.task.palette
    assert json.loads((saved / 'config.json').read_text())['model']['backbone']['arch']
    head, _, card = (saved / 'README.md').read_text().partition('\n---\n')
    assert 'pipeline_tag: image-segmentation' in head and 'circle' in card
    meta = load_checkpoint_file(saved / 'model.safetensors')['meta']['mmfocal']
    assert meta['averaged'] and meta['metrics'] and f'{meta["metrics"]["mIoU"]:.4g}' in card


def test_tools_take_the_folder_of_a_saved_model(saved):
    assert load_config(saved).model.type == 'EncoderDecoder'


def test_home_is_expanded_and_what_is_said_survives_another_save(saved, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(saved.parent))
    Inferencer.from_pretrained(f'~/{saved.name}', device='cpu').save_pretrained(tmp_path / 'x')
    assert load_config(f'~/{saved.name}').model.type == 'EncoderDecoder'
    Inferencer(f'~/{saved.name}', device='cpu')
    one, other = (
        load_checkpoint_file(folder / 'model.safetensors')['meta']['mmfocal']
        for folder in (saved, tmp_path / 'x')
    )
    assert other['averaged'] and other['metrics'] == one['metrics']


def test_metrics_are_not_said_of_other_weights(run, tmp_path):
    model = Inferencer(run / 'iter_2.pth', device='cpu')
    with torch.no_grad():
        next(model.model.parameters()).add_(1)
    model.save_pretrained(tmp_path / 'changed')
    loaded = load_checkpoint_file(tmp_path / 'changed' / 'model.safetensors')
    assert loaded['meta']['mmfocal']['metrics'] == {}
    name, changed = next(model.model.named_parameters())
    assert torch.equal(loaded['state_dict'][name], changed)


def test_saved_models_are_not_overwritten(run, saved):
    before = (saved / 'model.safetensors').read_bytes()
    with pytest.raises(UserError, match=r'holds model\.safetensors, config\.json, README\.md'):
        Inferencer(run / 'iter_2.pth', device='cpu').save_pretrained(saved)
    assert (saved / 'model.safetensors').read_bytes() == before


def test_names_of_the_hub_are_downloaded_by_its_package(saved, monkeypatch):
    calls = []

    def hf_hub_download(name, file, **options):
        calls.append((name, file, options['revision']))
        if name == 'nobody/nothing':
            raise OSError('404 Client Error\nmore')
        return str(saved / file)

    hub = types.ModuleType('huggingface_hub')
    hub.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
    model = Inferencer.from_pretrained('somebody/shapes', revision='v1', device='cpu')
    assert model.task.classes[1] == 'circle'
    assert calls == [('somebody/shapes', 'model.safetensors', 'v1')]
    with pytest.raises(UserError, match=r'nobody/nothing.*404 Client Error$'):
        Inferencer.from_pretrained('nobody/nothing', device='cpu')
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(UserError, match='pip install huggingface_hub'):
        Inferencer.from_pretrained('somebody/shapes')
