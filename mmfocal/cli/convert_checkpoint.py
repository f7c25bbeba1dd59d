"""Converts third-party checkpoints to those of mmfocal, and says what became of each.

Takes files of the authors' classifiers, also as PaddleViT converted them (.pdparams), of Swin
Transformer (its authors, mmdet, mmpretrain, timm, torchvision), and of mmfocal itself. Without
--config only names change; with it the weights are fitted to the backbone of that config, position
biases resized, and what the file lacks is made. With a config of mmpretrain, norm and head of the
authors' classifiers are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmfocal.engine import load_config
from mmfocal.engine.checkpoints import checkpoint_of
from mmfocal.models import FocalTransformer
from mmfocal.utils.compat import import_problem
from mmfocal.utils.errors import UserError
from mmfocal.weights import load_checkpoint_file, load_pretrained, read_weights
from mmfocal.weights.classifier import load_classifier
from mmfocal.weights.saving import save_tensors

from ._arguments import number_or_text, parser_of

SUFFIXES = ('.pth', '.safetensors')


def parse_args() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument('src', help='path, URL, or work folder of a run')
    parser.add_argument('dst', type=Path, help=f'file to write, {" or ".join(SUFFIXES)}')
    parser.add_argument('--config', help='config with the backbone that the weights shall fit')
    parser.add_argument('--prefix', help="of the backbone's keys in SRC (default: found)")
    parser.add_argument('--sha256', help='of SRC, or the beginning of it')
    parser.add_argument('--interpolation', default='bilinear', help='of position biases')
    parser.add_argument(
        '--ring',
        type=number_or_text,
        default='normal',
        help="how a ring's bias begins that SRC lacks: normal, nearest or a number",
    )
    parser.add_argument('--force', action='store_true', help='overwrite DST')
    return parser.parse_args()


def build_model(config: str) -> nn.Module:
    """The backbone of a config; of mmpretrain's the whole classifier.

    Raises:
        UserError: the backbone is not of mmfocal, or mmpretrain does not work here.
    """
    cfg = load_config(config)
    backbone = MODELS.build(dict(cfg.model.backbone, init_cfg=None))
    if not isinstance(backbone, FocalTransformer):
        raise UserError(f'The backbone of {config} is {type(backbone).__name__}, not ours.')
    if cfg.get('default_scope') != 'mmpretrain':
        return backbone
    if problem := import_problem('mmpretrain.models'):
        raise UserError(str(problem))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg.model)


def main() -> None:
    args = parse_args()
    if args.dst.suffix not in SUFFIXES:
        raise UserError(f'DST must end in {" or ".join(SUFFIXES)}, got {args.dst}')
    if args.dst.exists() and not args.force:
        raise UserError(f'{args.dst} exists. Choose another name, or add --force to overwrite it.')
    args.src = checkpoint_of(args.src)
    if args.config:
        model = build_model(args.config)
        options = dict(
            prefix=args.prefix,
            sha256=args.sha256,
            interpolation=args.interpolation,
            ring=args.ring,
        )
        load = load_pretrained if isinstance(model, FocalTransformer) else load_classifier
        try:
            report = load(model, args.src, **options)
        except ValueError as error:
            raise UserError(str(error)) from error
        tensors = model.state_dict()
        left_out = report.left_out
        for what in ('resized', 'left_out', 'new'):
            for name in getattr(report, what):
                print(f'{what.replace("_", " "):9} {name}')
    else:
        checkpoint = load_checkpoint_file(args.src, sha256=args.sha256)
        weights = read_weights(checkpoint, args.src, args.prefix)
        tensors, left_out = weights.tensors, weights.left_out
        for name in weights.left_out:
            print(f'left out  {name}')
        print(f'{args.src}, {weights.layout}: {len(tensors)} tensors renamed.')
    save_tensors(tensors, args.dst)
    count = sum(each.numel() for each in tensors.values()) / 1e6
    print(f'Wrote {args.dst}: {count:.1f} M parameters.')
    if left_out:
        print(
            f'{len(left_out)} tensors of {args.src} that are no part of a backbone are not in it; '
            'mmfocal publish writes whole detectors and segmenters.'
        )
