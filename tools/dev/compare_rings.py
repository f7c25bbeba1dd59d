"""Measures what a ring that pretrained weights do not have does to a backbone's maps.

A stage that was trained on maps of a single window has no ring. On larger maps it can have one,
whose position bias begins as `ring` of init_cfg says (docs/weights.md). For each beginning, this
prints how far the maps are from those of the same weights without that ring, on the same images.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmfocal.cli._arguments import number_or_text


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the model that the checkpoint is of')
    parser.add_argument('checkpoint', help='trained weights')
    parser.add_argument('images', type=Path, nargs='+', help='files or folders')
    parser.add_argument(
        '--expand-sizes', type=int, nargs='+', required=True, help='rings of all stages, in tokens'
    )
    parser.add_argument(
        '--rings',
        type=number_or_text,
        nargs='+',
        default=['normal', 'nearest', 0, -5, -10, -20, -100],
        help='beginnings (default: normal nearest 0 -5 -10 -20 -100)',
    )
    parser.add_argument('--side', type=int, default=256, help='of the images, in pixels')
    parser.add_argument('--num-images', type=int, default=16)
    parser.add_argument('--seeds', type=int, default=3, help='repetitions of random beginnings')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    from mmfocal.utils.errors import user_errors_without_trace

    with user_errors_without_trace():
        print(compare(args))
    return 0


def compare(args: argparse.Namespace) -> str:
    """The table, as Markdown."""
    from statistics import mean

    import torch
    from mmengine.registry import MODELS

    import mmfocal  # noqa: F401  registers the backbone
    from mmfocal.engine import load_checkpoint_file, load_config
    from mmfocal.weights import load_pretrained

    cfg = load_config(args.config)
    backbone = dict(cfg.model.backbone, init_cfg=None, out_norm=False, out_indices=(0, 1, 2, 3))
    checkpoint = load_checkpoint_file(args.checkpoint)
    images = read_images(args, cfg.model.get('data_preprocessor') or cfg.data_preprocessor)

    def maps(ring: str | float, seed: int, **settings: object) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        model = MODELS.build(dict(backbone, **settings)).eval()
        load_pretrained(model, checkpoint, ring=ring)
        with torch.no_grad():
            return model(images)

    without = maps(0, 0)
    rows = []
    for ring in args.rings:
        seeds = range(args.seeds if ring == 'normal' else 1)
        runs = [maps(ring, seed, expand_sizes=tuple(args.expand_sizes)) for seed in seeds]
        stages = zip(zip(*runs, strict=True), without, strict=True)
        distances = [
            mean(float((with_ring - want).norm() / want.norm()) for with_ring in stage)
            for stage, want in stages
        ]
        rows.append([str(ring), *(f'{distance:.3f}' for distance in distances)])
    head = ['ring', *(f'stage {i + 1}' for i in range(len(without)))]
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def read_images(args: argparse.Namespace, preprocessor: dict) -> object:
    """float ``(num_images, 3, side, side)``, normalised as the model was trained."""
    import cv2
    import numpy as np
    import torch

    from mmfocal.utils.errors import UserError

    paths = []
    for path in args.images:
        paths += sorted(path.glob('*.jpg')) if path.is_dir() else [path]
    images = []
    for path in paths[: args.num_images]:
        image = cv2.imread(str(path))
        if image is None:
            raise UserError(f'{path} could not be read as an image.')
        images.append(cv2.resize(image, (args.side, args.side))[..., ::-1])
    if not images:
        raise UserError(f'There is no .jpg in {", ".join(map(str, args.images))}.')
    pixels = (np.stack(images) - np.array(preprocessor['mean'])) / np.array(preprocessor['std'])
    return torch.from_numpy(pixels).float().permute(0, 3, 1, 2)


if __name__ == '__main__':
    sys.exit(main())
