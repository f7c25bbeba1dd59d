"""Converts weights of others to those of mmfocal, and says what became of each.

Takes files of the authors' classifiers, of Swin Transformer (its authors, mmdet, mmpretrain, timm,
torchvision), and of mmfocal itself. Without --config only names change; with it the weights are
fitted to the backbone of that config, position biases resized, and what the file lacks is made.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import _startup

SUFFIXES = ('.pth', '.safetensors')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('src', help='path or URL')
    parser.add_argument('dst', type=Path, help=f'file to write, {" or ".join(SUFFIXES)}')
    parser.add_argument('--config', help='config with the backbone that the weights shall fit')
    parser.add_argument('--prefix', help="of the backbone's keys in SRC (default: found)")
    parser.add_argument('--sha256', help='of SRC, or the beginning of it')
    parser.add_argument('--interpolation', default='bilinear', help='of position biases')
    parser.add_argument(
        '--ring',
        type=_startup.number_or_text,
        default='normal',
        help="how a ring's bias begins that SRC lacks: normal, nearest or a number",
    )
    parser.add_argument('--force', action='store_true', help='overwrite DST')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    _startup.check_installation()
    from mmfocal.errors import user_errors_without_trace

    with user_errors_without_trace():
        convert(args)
    return 0


def convert(args: argparse.Namespace) -> None:
    from mmengine.registry import MODELS

    import mmfocal
    from mmfocal.engine import load_checkpoint_file, load_config
    from mmfocal.engine.saving import save_tensors
    from mmfocal.errors import UserError
    from mmfocal.pretrained import load_pretrained, read_weights

    if args.dst.suffix not in SUFFIXES:
        raise UserError(f'DST must end in {" or ".join(SUFFIXES)}, got {args.dst}')
    if args.dst.exists() and not args.force:
        raise UserError(f'{args.dst} exists. Choose another name, or add --force to overwrite it.')
    if args.config:
        backbone = dict(load_config(args.config).model.backbone, init_cfg=None)
        if backbone['type'] not in ('FocalTransformer', mmfocal.FocalTransformer):
            raise UserError(f'The backbone of {args.config} is {backbone["type"]}.')
        model = MODELS.build(backbone)
        try:
            accounting = load_pretrained(
                model,
                args.src,
                prefix=args.prefix,
                sha256=args.sha256,
                interpolation=args.interpolation,
                ring=args.ring,
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        tensors = model.state_dict()
        for what in ('resized', 'left_out', 'new'):
            for name in getattr(accounting, what):
                print(f'{what.replace("_", " "):9} {name}')
    else:
        checkpoint = load_checkpoint_file(args.src, sha256=args.sha256)
        weights = read_weights(checkpoint, args.src, args.prefix)
        tensors = weights.tensors
        for name in weights.left_out:
            print(f'left out  {name}')
        print(f'{args.src}, {weights.layout}: {len(tensors)} tensors renamed.')
    save_tensors(tensors, args.dst)
    print(f'Wrote {args.dst}: {sum(t.numel() for t in tensors.values()) / 1e6:.1f} M parameters.')


if __name__ == '__main__':
    sys.exit(main())
