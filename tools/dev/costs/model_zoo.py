"""The page of models: what was published, and what the configs of this repository amount to.

Figures of results are the authors' and come from ``configs/published.yaml``; sizes and costs are
counted from the configs, so that the page cannot say what they do not.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from mmengine.config import Config
from torch import nn

from mmfocal.engine.config import REPOSITORY, load_config
from mmfocal.geometry import FocalGeometry, FocalKeys
from mmfocal.models.focal_self_attention import FocalSelfAttention
from tools.dev.costs.complexity import (
    build_without_weights,
    count_flops,
    count_parameters,
    detector_flops,
    segmenter_flops,
)

__all__ = ['Cost', 'load_published', 'measure', 'metafile', 'page', 'unpublished']

PUBLISHED = REPOSITORY / 'configs' / 'published.yaml'
# What published tables count by family, in pixels, height and width.
IMAGES = {'mmdet': (800, 1280), 'mmseg': (512, 2048), 'mmpretrain': (224, 224)}
SHAPES = {'mmdet': (128, 128), 'mmseg': (128, 128), 'mmpretrain': (64, 64)}
# Of small data sets, by what the names of their configs end with.
SMALL_IMAGES = {'bccd': (240, 320), 'camvid': (360, 480)}
# By parts of names; the others have that of their family.
TRAINING_DATA = {
    'shapes': 'drawn shapes',
    'cityscapes': 'Cityscapes',
    'bccd': 'BCCD',
    'camvid': 'CamVid',
}
FIELDS = {
    *('method', 'backbone', 'epochs', 'box_ap', 'mask_ap', 'multi_scale', 'miou', 'top'),
    *('parameters', 'gflops', 'image', 'unsure', 'tolerance'),
}
TITLES = {
    'mmdet': ('config', 'backbone', 'epochs', 'box AP', 'mask AP', 'parameters', 'GFLOPs'),
    'mmseg': ('config', 'backbone', 'image', 'mIoU', 'multi-scale', 'parameters', 'GFLOPs'),
    'mmpretrain': ('config', 'backbone', 'top-1', 'top-5', 'parameters', 'GFLOPs'),
}
OTHERS_TITLES = ('config', 'backbone', 'image', 'parameters', 'GFLOPs', 'what it is')
# Of configs that no published result belongs to, as papers call them.
METHODS = {'dino': 'DINO', 'mask2former': 'Mask2Former', 'rtmdet-ins': 'RTMDet-Ins'}


@dataclass(frozen=True)
class Cost:
    """What a model amounts to.

    Attributes:
        parameters: number of weights.
        flops: multiplications with addition for one image, by part of the model.
        listed_twice: multiplications with addition that the authors' attention has more, for
            positions of the ring that it lists twice.
    """

    parameters: int
    flops: Mapping[str, int]
    listed_twice: int

    @property
    def gflops(self) -> float:
        """All parts together, in billions."""
        return sum(self.flops.values()) / 1e9

    @property
    def authors_gflops(self) -> float:
        """The same with the positions that the authors list twice, in billions."""
        return self.gflops + self.listed_twice / 1e9


def load_published(path: Path = PUBLISHED) -> dict[str, dict[str, Any]]:
    """Published figures by config, in the order of the file.

    Raises:
        ValueError: an entry for a config that is not there, or an unknown field.
    """
    published = yaml.safe_load(path.read_text())
    for name, entry in published.items():
        if not (path.parent / name).is_file():
            raise ValueError(f'{path}: there is no config {path.parent / name}.')
        unknown = set(entry) - FIELDS
        if unknown:
            raise ValueError(f'{path}: {name}: unknown fields {sorted(unknown)}.')
    return published


def unpublished(published: Iterable[str]) -> list[str]:
    """Configs that no published result belongs to."""
    configs = REPOSITORY / 'configs'
    names = (str(path.relative_to(configs)) for path in sorted(configs.glob('[!_]*/*.py')))
    return [name for name in names if name not in set(published)]


def measure(name: str, image: Sequence[int] | None = None) -> Cost:
    """Counts the model of a config of this repository.

    Args:
        name: as ``'mmdet/focal_maskrcnn_ms-1x.py'`` below ``configs/``, or whatever
            :func:`~mmfocal.engine.config.load_config` finds.
        image: height and width in pixels, by default what published tables count, or of the small
            data set that the config is for.
    """
    config = _load(name)
    family = config.default_scope
    if image is None:
        image = _image(name, family)
    key = str(config.model), *image
    if key not in _COUNTED:  # configs differ in schedules, too
        model = _build(config)
        count = {
            'mmdet': detector_flops,
            'mmseg': segmenter_flops,
            'mmpretrain': _classifier_flops,
        }[family]
        with _SeenKeys(model) as seen:
            flops = count(model, *image)
        _COUNTED[key] = Cost(count_parameters(model), flops, seen.listed_twice)
    return _COUNTED[key]


def _image(name: str, family: str) -> tuple[int, int]:
    """Height and width in pixels for which a config is counted."""
    for ending, image in SMALL_IMAGES.items():
        if Path(name).stem.endswith(ending):
            return image
    return (SHAPES if 'shapes' in name else IMAGES)[family]


_COUNTED: dict[tuple[str, int, int], Cost] = {}


@functools.cache
def _load(name: str) -> Config:
    file = REPOSITORY / 'configs' / name
    return load_config(file if file.is_file() else name)


def _build(config: Config) -> nn.Module:
    """The model of a config without memory for its weights."""
    family = config.default_scope
    if family == 'mmdet':
        import mmfocal.detection  # noqa: F401  registers what configs name
    if family != 'mmpretrain':
        return build_without_weights(config.model, family)
    # Importing mmpretrain's heads takes torchvision, and ours are one linear layer.
    head = config.model.head
    with torch.device('meta'):
        fc = nn.Linear(head.in_channels, head.num_classes)
    return nn.ModuleDict(dict(backbone=build_without_weights(config.model.backbone), head=fc))


def _classifier_flops(model: nn.ModuleDict, height: int, width: int) -> dict[str, int]:
    image = torch.empty(1, 3, height, width, device='meta')
    flops, (*_, features) = count_flops(model['backbone'], image)
    head, _ = count_flops(model['head'], features.mean((2, 3)))
    return dict(backbone=flops, head=head)


class _SeenKeys:
    """Adds up what positions that the authors list twice would cost in a forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.attentions = [
            each for each in model.modules() if isinstance(each, FocalSelfAttention)
        ]
        self.listed_twice = 0

    def __enter__(self) -> _SeenKeys:
        self.hooks = [each.register_forward_pre_hook(self._see) for each in self.attentions]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _see(self, attention: nn.Module, args: tuple[torch.Tensor, FocalKeys]) -> None:
        x, keys = args
        if not isinstance(keys.geometry, FocalGeometry) or not keys.geometry.expand_size:
            return
        _, twice, _ = keys.geometry.ring_listings()
        pairs = keys.num_windows * keys.num_queries * len(twice)
        self.listed_twice += 2 * pairs * x.shape[-1]  # scores and values


def page(published: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of ``docs/model_zoo.md``."""
    costs = {name: measure(name, entry.get('image')) for name, entry in published.items()}
    sections = [HEAD]
    for method in dict.fromkeys(entry['method'] for entry in published.values()):
        names = [name for name in published if published[name]['method'] == method]
        titles = TITLES[Path(names[0]).parts[0]]
        rows = [_row(name, published[name], costs[name]) for name in names]
        sections.append(f'## {method}\n')
        sections.append(_table(titles, rows))
    sections += [_differences(costs), OTHERS]
    sections.append(_table(OTHERS_TITLES, [_other_row(name) for name in unpublished(published)]))
    return '\n'.join(sections).rstrip() + '\n'


METAFILE_HEAD = """# What `mmfocal list` and OpenMMLab's package manager mim know of the models. By
# tools/dev/model_zoo.py from the configs, which tell the parameters, and published.yaml: as there
# all results are the authors', not of this repository, which offers no weights.
"""


def metafile(published: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of ``configs/metafile.yml``, in the form that OpenMMLab's packages have.

    Args:
        published: as :func:`load_published` gives it.
    """
    paper = dict(
        Title='Focal Self-attention for Local-Global Interactions in Vision Transformers',
        URL='https://arxiv.org/abs/2107.00641',
    )
    methods = METHODS | {_head(name): entry['method'] for name, entry in published.items()}
    models = []
    for name in [*published, *unpublished(published)]:
        config = _load(name)
        entry = published.get(name, {})
        metadata = {
            'Method': methods[_head(name)],
            'Backbone': entry['backbone'] if entry else _backbone(name, config),
            'Tasks': _tasks(config),
            'Training Data': _training_data(name),
            'Parameters': measure(name, entry.get('image')).parameters,
        }
        models.append(
            {
                'Name': Path(name).stem,
                'In Collection': 'Focal Transformer',
                'Config': f'configs/{name}',
                'Metadata': metadata,
                **(dict(Results=_results(entry)) if entry else {}),
            }
        )
    collection = dict(Name='Focal Transformer', Paper=paper)
    text = yaml.safe_dump(dict(Collections=[collection], Models=models), sort_keys=False, width=99)
    return METAFILE_HEAD + text


def _head(name: str) -> str:
    """What configs of one method have in common in their names."""
    if name.startswith('mmpretrain/'):
        return 'classifier'
    return Path(name).stem.split('_')[1].removesuffix('-fpn').removesuffix('-panoptic')


def _backbone(name: str, config: Config) -> str:
    """As published.yaml names backbones; those of the embedded data set by their width."""
    arch = config.model.backbone.arch
    if not isinstance(arch, str):
        return f'Focal, {arch["embed_dims"]} channels'
    fast = '-fast' if name.partition('/')[2].startswith('focal-fast') else ''
    return f'Focal{fast}-{arch[0].upper()}'


def _tasks(config: Config) -> list[str]:
    """What a model of the config predicts, in the words of model-index."""
    if config.default_scope == 'mmseg':
        return ['Semantic Segmentation']
    if config.default_scope == 'mmpretrain':
        return ['Image Classification']
    evaluators = config.val_evaluator
    evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
    tasks = ['Object Detection']
    if any('segm' in each.get('metric', ()) for each in evaluators):
        tasks.append('Instance Segmentation')
    if any('Panoptic' in each.type for each in evaluators):
        tasks.append('Panoptic Segmentation')
    return tasks


def _training_data(name: str) -> str:
    for part, title in TRAINING_DATA.items():
        if part in name:
            return title
    return dict(mmdet='COCO', mmseg='ADE20K', mmpretrain='ImageNet-1K')[Path(name).parts[0]]


def _results(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    if 'top' in entry:
        metrics = dict(zip(('Top 1 Accuracy', 'Top 5 Accuracy'), entry['top'], strict=True))
        return [dict(Task='Image Classification', Dataset='ImageNet-1K', Metrics=metrics)]
    if 'miou' in entry:
        metrics = dict(zip(('mIoU', 'mIoU (ms+flip)'), entry['miou'], strict=True))
        return [dict(Task='Semantic Segmentation', Dataset='ADE20K', Metrics=metrics)]
    results = []
    for task, kind in (('Object Detection', 'box'), ('Instance Segmentation', 'mask')):
        if values := entry.get(f'{kind}_ap'):
            metrics = {f'{kind} AP': values[0]}
            results.append(dict(Task=task, Dataset='COCO', Metrics=metrics))
    return results


HEAD = """# Models

Made by `python -m tools.dev.model_zoo` from the configs and from
[published.yaml](../configs/published.yaml); a test compares the two with this page.

**AP, mIoU and accuracies are the authors' figures**, on COCO val2017 (AP, AP50, AP75) and the
validation splits of ADE20K and ImageNet-1K, in percent, not measurements of ours: training these
models takes days on eight GPUs and has not been repeated here. Parameters and GFLOPs stand as
"published / counted (difference)". Counted are the models of this repository, for one image of 800
x 1280 pixels, of the size that is given, or of 224 x 224 for classifiers; a multiplication with
its addition is one FLOP, and regions are the 1000 that the proposal stage may hand on, with 100
masks, as in other published tables. Figures with a question mark are remembered from the paper and
could not be looked up.

Batches are of 16 images, 8 GPUs x 2, but for HTC++, 16 GPUs x 1, and RTMDet-Ins, 4 GPUs x 32;
`--auto-scale-lr` adapts the learning rate to others. A result "multi-scale" is that of
`tools/test.py --tta`. To train a model: [weights](weights.md) to start from, and
[training](training.md#coco-ade20k-and-other-public-data).
"""

OTHERS = """## Configs without a published result

Parameters and GFLOPs are counted, for one image of the size that is given: that of the tables
above, or of the small data set that it is for. Those of DINO are of MMDetection 3.3; in OneDL's
fork one layer of its decoder is twice as wide.
"""


def _row(name: str, entry: Mapping[str, Any], cost: Cost) -> list[str]:
    unsure = entry.get('unsure', ())
    marks = ('', '?' * ('ap50' in unsure), '?' * ('ap75' in unsure))

    def ap(kind: str) -> str:
        values = entry.get(kind)
        if not values:
            return '-'
        text = ' / '.join(f'{value}{mark}' for value, mark in zip(values, marks, strict=False))
        multi = entry.get('multi_scale', {}).get(kind)
        return f'{text}, multi-scale {multi[0]}' if multi else text

    def compare(kind: str, counted: float) -> str:
        if kind not in entry:
            return f'- / {counted:.1f}'
        value = entry[kind]
        mark = '?' * (kind in unsure)
        return f'{value}{mark} / {counted:.1f} ({100 * (counted / value - 1):+.1f} %)'

    if 'miou' in entry:
        one_scale, multi_scale = map(str, entry['miou'])
        results = [' x '.join(map(str, entry['image'])), one_scale, multi_scale]
    elif 'top' in entry:
        results = list(map(str, entry['top']))
    else:
        results = [str(entry['epochs']), ap('box_ap'), ap('mask_ap')]
    return [
        f'[{Path(name).stem}](../configs/{name})',
        entry['backbone'],
        *results,
        compare('parameters', cost.parameters / 1e6) + ' M',
        compare('gflops', cost.gflops),
    ]


def _other_row(name: str) -> list[str]:
    config = _load(name)
    image = _image(name, config.default_scope)
    cost = measure(name)
    return [
        f'[{Path(name).stem}](../configs/{name})',
        _backbone(name, config),
        ' x '.join(map(str, image)),
        f'{cost.parameters / 1e6:.1f} M',
        f'{cost.gflops:.1f}',
        _first_comment(name),
    ]


def _table(titles: Sequence[str], rows: list[list[str]]) -> str:
    lines = [titles, ['---'] * len(titles), *rows]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines) + '\n'


def _differences(costs: Mapping[str, Cost]) -> str:
    """What explains the differences, in figures that are counted here."""
    tiny, small, base = (
        [costs[f'mmdet/focal{size}_{model}_ms-1x.py'] for model in ('maskrcnn', 'retinanet')]
        for size in ('', '-s', '-b')
    )
    heads = [mask.gflops - retina.gflops for mask, retina in (tiny, small, base)]
    square = measure('mmdet/focal_reppointsv2_3x.py', (1280, 1280)).gflops
    wide = {ring: _large(window_size=12, expand_sizes=ring) for ring in (3, 6)}
    large = _large()
    dyhead, htc = costs['mmdet/focal-l_dyhead_2x.py'], costs['mmdet/focal-l_htcpp_3x.py']
    rest = [cost.parameters / 1e6 - large for cost in (dyhead, htc)]
    upernet = [costs[f'mmseg/focal{size}_upernet_160k.py'].flops for size in ('', '-s', '-b')]
    counted = [flops['backbone'] / 1e9 for flops in upernet]
    backbones = [
        published - flops['decode_head'] / 1e9
        for published, flops in zip((998, 1130, 1354), upernet, strict=True)
    ]
    text = f"""## Where the differences come from

**Parameters.** The published totals of T, S and B lie up to 0.3 M above the released code of the
authors, which the counted ones equal: an older version of it may have made the tables.

**Keys that are listed twice.** The authors' ring of 132 keys has 12 positions twice. Here they are
folded into one key each, with the same result, which saves Focal-T
{tiny[0].listed_twice / 1e9:.1f} GFLOPs at this size, Focal-B {base[0].listed_twice / 1e9:.1f}.
With them Mask R-CNN has {tiny[0].authors_gflops:.1f} (published: 291), ATSS
{costs['mmdet/focal_atss_3x.py'].authors_gflops:.1f} (239), Sparse R-CNN
{costs['mmdet/focal_sparsercnn_3x.py'].authors_gflops:.1f} (196) and Cascade Mask R-CNN
{costs['mmdet/focal_cascade-maskrcnn_3x.py'].authors_gflops:.1f} (770). What is left, 3 to 8, could
not be explained; it is about the same in detectors that have only the backbone in common, so it is
likely to lie in how that was counted.

**Published GFLOPs that contradict each other.** Mask R-CNN and RetinaNet differ in necks and
heads, which are the same for every backbone: counted, by {heads[0]:.1f}, {heads[1]:.1f} and
{heads[2]:.1f} for T, S and B. The published differences are 26, 34 and 19.

**RepPointsV2** costs 491 as published; at 1280 x 1280 pixels {square:.0f} are counted. Swin
Transformer's authors give 283 for Swin-T with the same head, to which the counted figure fits. The
parameters come to 45.4 M if the two coarsest maps of the pyramid are pooled after the projection
of the last map instead of before it; the number given for Swin-T, 45 M, speaks for before.

**Focal-L.** Neither weights nor settings were released. The backbone counted here has
{large:.1f} M parameters, with windows of 7 tokens; published totals minus what is counted for the
rest leave {229 - rest[0]:.0f} M (DyHead) and {265 - rest[1]:.0f} M (HTC++). Windows of 12 tokens
would give {wide[3]:.1f} M with a ring of 3 and {wide[6]:.1f} M with one of 6, so neither fits
both. Windows of 7 are those of the Swin-L weights for 224 pixels, which the authors began from.
Their GFLOPs, which are remembered, do not say for which image.

**UPerNet.** The published models are 1.1 to 2.5 M larger than the counted ones. They leave
{backbones[0]:.0f}, {backbones[1]:.0f} and {backbones[2]:.0f} GFLOPs for the backbones of T, S and
B, of which {counted[0]:.0f}, {counted[1]:.0f} and {counted[2]:.0f} are counted. Larger focal
windows or further levels for
segmentation would explain both; the authors did not say which they used. For L, the size of the
image is a guess.
"""
    title, *paragraphs = text.split('\n\n')
    return '\n\n'.join([title, *(textwrap.fill(each, 99) for each in paragraphs)]) + '\n'


def _large(**settings: Any) -> float:
    """Parameters of a Focal-L backbone for detection, in millions."""
    backbone = dict(
        type='FocalTransformer', arch='large', focal_windows=(15, 13, 9, 7), **settings
    )
    return count_parameters(build_without_weights(Config(dict(model=backbone)).model)) / 1e6


def _first_comment(name: str) -> str:
    """What a config says of itself in its first lines."""
    words = []
    for line in (REPOSITORY / 'configs' / name).read_text().splitlines():
        if not line.startswith('#'):
            break
        words.append(line.removeprefix('#').strip())
    return ' '.join(words)
