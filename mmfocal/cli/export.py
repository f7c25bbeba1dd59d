"""Writes a model, or its backbone, as ONNX or as a program of torch.export, and compares both.

The file serves images of all sizes and batches. It is run on 20 of them, and the largest
differences from the model itself are printed. Ends with status 1 if one is more than rounding, and
with 2 for wrong arguments and models that cannot be exported.
"""

import argparse
import sys
from pathlib import Path

import torch
from mmengine.registry import init_default_scope

from mmfocal.engine import load_config
from mmfocal.export import graph_of, write_int8, write_onnx, write_torch
from mmfocal.export.files import require_packages
from mmfocal.export.parity import (
    SIZES,
    Parity,
    compare,
    resized_image,
    run_onnx,
    run_torch,
    spread_scores,
)
from mmfocal.inference import Inferencer
from mmfocal.utils.files import check_target
from mmfocal.visualization.view import find_backbone, load_model

from ._arguments import add_checkpoint, add_config, parser_of

SUFFIXES = {'onnx': '.onnx', 'torch': '.pt2'}


def parse_args() -> argparse.Namespace:
    parser = parser_of(__doc__)
    add_config(parser)
    add_checkpoint(
        parser,
        'weights before training, whose heads are scaled such that there is something to find and '
        'to compare',
    )
    parser.add_argument(
        '--out', type=Path, required=True, metavar='FILE', help='to write, .onnx or .pt2'
    )
    parser.add_argument('--format', choices=SUFFIXES, help='(default: torch for .pt2, else onnx)')
    parser.add_argument(
        '--what',
        choices=['model', 'backbone'],
        default='model',
        help='model: raw pixels in, detections or logits out; backbone: normalised image in, maps '
        'out (default: model)',
    )
    parser.add_argument(
        '--opset',
        type=int,
        help='of ONNX, 20 to 25 (default: 23); up to 21 for detectors of two stages',
    )
    parser.add_argument(
        '--int8',
        action='store_true',
        help='also write FILE.int8.onnx with weights of linear layers in 8 bits, and compare it',
    )
    parser.add_argument(
        '--picture',
        type=Path,
        metavar='FILE',
        help='to compare on, resized to all sizes (default: drawn at random)',
    )
    args = parser.parse_args()
    by_suffix = {suffix: name for name, suffix in SUFFIXES.items()}
    args.format = args.format or by_suffix.get(args.out.suffix, 'onnx')
    if args.out.suffix != SUFFIXES[args.format]:
        parser.error(f'--out must end in {SUFFIXES[args.format]} for {args.format}: {args.out}')
    if args.format != 'onnx' and (args.int8 or args.opset is not None):
        parser.error('--int8 and --opset are for ONNX')
    return args


def main() -> int:
    args = parse_args()
    check_target(args.out)
    cfg = load_config(args.config, args.cfg_options)
    if args.format == 'onnx':
        require_packages()
    torch.manual_seed(0)  # for weights before training
    untrained = args.checkpoint == 'none'
    if untrained or args.what == 'backbone':
        model = load_model(cfg, None if untrained else args.checkpoint)
    else:
        model = Inferencer(cfg, args.checkpoint, device='cpu').model
    init_default_scope(cfg.get('default_scope'))
    if args.what == 'backbone':
        model = find_backbone(model)
    graph = graph_of(model, args.what)
    if untrained:
        spread_scores(graph, model)
    image_of = resized_image(args.picture, graph) if args.picture else None

    if args.format == 'onnx':
        write_onnx(graph, args.out, args.opset)
    else:
        write_torch(graph, args.out)
    say_file(args.out)
    run = (run_onnx if args.format == 'onnx' else run_torch)(args.out)
    parity = compare(graph, model, run, SIZES, image_of)
    report('The file against the model', parity)
    if args.int8:
        int8 = args.out.with_suffix('.int8.onnx')
        write_int8(args.out, int8)
        say_file(int8)
        rough = compare(graph, model, run_onnx(int8), SIZES, image_of)
        report('The file of 8 bits against the model', rough)
        print('\n8 bits are no rounding of float32: the task has to be evaluated with them.')
    if wrong := parity.beyond():
        print('\nNot equal: ' + '; '.join(wrong), file=sys.stderr)
        return 1
    print('\nEqual up to rounding.')
    return 0


def say_file(path: Path) -> None:
    print(f'Wrote {path} ({path.stat().st_size / 2**20:.1f} MB)')


def report(title: str, parity: Parity) -> None:
    print(f'\n{title}:\n', *parity.lines(), sep='\n')
    if parity.detections is not None:
        print(
            f'\nOf {parity.detections} detections on both sides together, {parity.unmatched} have '
            'no counterpart on the other.'
        )
