"""How many graphs torch.compile makes of a backbone's blocks over images of many sizes.

    python -m tools.dev.count_graphs [--arch tiny] [--sizes 30] [--least 64] [--most 400]

Graphs are traced and counted, and run as they are: making code of them would take minutes and add
none. Images alternate between one and two in a batch.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence

import torch
from torch._dynamo.utils import counters

from mmfocal import FocalTransformer


def count_graphs(
    model: FocalTransformer, sizes: Sequence[tuple[int, int]], batches: Sequence[int]
) -> list[int]:
    """Graphs so far after each image; training is what the model's mode says.

    Args:
        model: not compiled yet.
        sizes: height and width of images in pixels.
        batches: images of a call, taken in turn.
    """
    torch._dynamo.reset()
    counters.clear()
    model.compile_blocks(backend='eager', fullgraph=True)
    graphs = []
    for i, size in enumerate(sizes):
        images = torch.randn(batches[i % len(batches)], 3, *size)
        with torch.set_grad_enabled(model.training):
            outs = model(images)
        if model.training:
            sum(out.sum() for out in outs).backward()
        graphs.append(counters['stats']['unique_graphs'])
    return graphs


def limit_was_hit() -> bool:
    """Whether PyTorch has given up to compile, and runs something as it is."""
    return counters['frames']['total'] != counters['frames']['ok']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--arch', default='tiny')
    parser.add_argument('--sizes', type=int, default=30, help='how many (default: 30)')
    parser.add_argument('--least', type=int, default=64, help='side in pixels (default: 64)')
    parser.add_argument('--most', type=int, default=400, help='side in pixels (default: 400)')
    args = parser.parse_args()
    draw = random.Random(0)
    sizes = [
        (draw.randint(args.least, args.most), draw.randint(args.least, args.most))
        for _ in range(args.sizes)
    ]
    print(f'Focal-{args.arch}, {len(sizes)} sizes of {args.least} to {args.most} pixels a side')
    print('| mode | images | graphs after each size | all compiled |')
    print('|---|---|---|---|')
    for training, batches in ((False, (1,)), (False, (1, 2)), (True, (2,))):
        model = FocalTransformer(args.arch, focal_windows=(15, 13, 9, 7)).train(training)
        graphs = count_graphs(model, sizes, batches)
        mode = 'training' if training else 'inference'
        cells = (
            mode,
            ' or '.join(map(str, batches)),
            ' '.join(map(str, graphs)),
            'no' if limit_was_hit() else 'yes',
        )
        print(f'| {" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
    main()
