"""Trains every detector on the embedded data set, with Focal and with Swin of the same width.

Each run is one of tools/train.py, from scratch, with one thread. Runs that are there already are
not repeated. In the end, curves and a table are made of all runs in the work folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import _startup
from _startup import REPOSITORY

FAMILIES = (
    'maskrcnn',
    'cascade-maskrcnn',
    'htcpp',
    'retinanet',
    'atss',
    'reppointsv2',
    'dyhead',
    'sparsercnn',
)
# As configs/mmdet/_base_/shapes_backbone.py, with mmdet's own Swin Transformer. It has one window
# size for all stages, and embeds patches without overlap.
SWIN = """_base_ = {config!r}

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        embed_dims=32,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        window_size=8,
        mlp_ratio=3,
        drop_path_rate=0.0,
        out_indices={out_indices},
    )
)
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--families', nargs='+', choices=FAMILIES, default=FAMILIES, help='default: all'
    )
    parser.add_argument(
        '--backbones', nargs='+', choices=['focal', 'swin'], default=['focal', 'swin']
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/compare_shapes'),
        help='folder of all runs',
    )
    parser.add_argument('--jobs', type=int, default=2, help='runs at a time (default: 2)')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='for every run'
    )
    parser.add_argument('--plot', type=Path, help='default: curves.png in the work folder')
    parser.add_argument('--markdown', type=Path, help='write the table here as well')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    _startup.check_installation()
    from mmfocal.datasets import prepare_shapes

    prepare_shapes()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    runs = [(family, backbone) for family in args.families for backbone in args.backbones]
    with ThreadPoolExecutor(args.jobs) as pool:
        done = list(
            pool.map(lambda run: train(*run, args.work_dir.absolute(), args.cfg_options), runs)
        )
    report(args)
    return 0 if all(done) else 1


def train(family: str, backbone: str, work_dir: Path, cfg_options: list[str]) -> bool:
    """Makes one run; returns whether it is complete."""
    from mmengine.config import Config

    name = f'{backbone}_{family}'
    folder = work_dir / name
    config = REPOSITORY / f'configs/mmdet/focal_{family}_shapes.py'
    if (folder / 'done').is_file():
        return True
    if backbone == 'swin':
        out_indices = Config.fromfile(config).model.backbone.get('out_indices', (0, 1, 2, 3))
        text = SWIN.format(config=str(config), out_indices=out_indices)
        config = work_dir / f'{name}.py'
        config.write_text(text)
    print(f'{name}: training', flush=True)
    command = [sys.executable, REPOSITORY / 'tools/train.py', config, '--work-dir', folder]
    if cfg_options:
        command += ['--cfg-options', *cfg_options]
    with (work_dir / f'{name}.log').open('w') as log:
        environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
        status = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment
        ).returncode
    if status == 0:
        (folder / 'done').touch()
    print(f'{name}: {"done" if status == 0 else f"failed, see {log.name}"}', flush=True)
    return status == 0


def report(args: argparse.Namespace) -> None:
    """Draws and prints all runs that are complete."""
    import matplotlib

    matplotlib.use('Agg')
    from mmfocal.visualization.curves import draw_comparison, read_scalars

    runs = {}
    for family in FAMILIES:
        for backbone in ('focal', 'swin'):
            folder = args.work_dir / f'{backbone}_{family}'
            if (folder / 'done').is_file():
                runs.setdefault(family, {})[backbone] = read_scalars(folder)
    if not runs:
        return
    plot = args.plot or args.work_dir / 'curves.png'
    draw_comparison(runs).savefig(plot, dpi=150)
    text = table(runs)
    print(f'\n{text}\nCurves: {plot}')
    if args.markdown:
        args.markdown.write_text(text)


def table(runs: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Final box and mask AP, iterations and minutes of each run, as Markdown."""
    lines = [
        '| detector | iterations | Focal: box AP | mask AP | minutes | Swin: box AP | mask AP '
        '| minutes |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for family, by_backbone in runs.items():
        cells, iterations = [family], 0
        for backbone in ('focal', 'swin'):
            rows = by_backbone.get(backbone, [])
            training = [row for row in rows if 'loss' in row]
            final = ([row for row in rows if 'coco/bbox_mAP' in row] or [{}])[-1]
            iterations = max(iterations, training[-1]['step'] if training else 0)
            for metric in ('coco/bbox_mAP', 'coco/segm_mAP'):
                cells.append(f'{final[metric]:.3f}' if metric in final else '-')
            seconds = [row['time'] for row in training]
            share = len(seconds) and sum(seconds) / len(seconds) * training[-1]['step'] / 60
            cells.append(f'{share:.1f}' if seconds else '-')
        lines.append(f'| {" | ".join([cells[0], str(iterations), *cells[1:]])} |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    sys.exit(main())
