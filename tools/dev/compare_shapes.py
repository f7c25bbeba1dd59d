"""Trains every model on the embedded data set, with Focal and with Swin of the same width.

Each run is one of `mmfocal train`, from scratch, with one thread. Runs that are there already are
not repeated. In the end, curves and a table are made of all runs in the work folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import mean, median

from mmengine.config import Config

from mmfocal.datasets import prepare_shapes
from tools.dev import ROOT

# Folder of the config of each family.
FAMILIES = {
    'maskrcnn': 'mmdet',
    'cascade-maskrcnn': 'mmdet',
    'htcpp': 'mmdet',
    'retinanet': 'mmdet',
    'atss': 'mmdet',
    'reppointsv2': 'mmdet',
    'dyhead': 'mmdet',
    'sparsercnn': 'mmdet',
    'upernet': 'mmseg',
}
BACKBONES = ('focal', 'swin')
# Metrics of the table, by their names in a log, and how they are written.
METRICS = {
    'coco/bbox_mAP': ('box AP', '.3f'),
    'coco/segm_mAP': ('mask AP', '.3f'),
    'mIoU': ('mIoU, %', '.1f'),
}
# As configs/_base_/shapes_backbone.py, with the Swin Transformer of mmdet or mmseg. It has
# one window size for all stages, and embeds patches without overlap.
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
        '--families', nargs='+', choices=FAMILIES, default=list(FAMILIES), help='default: all'
    )
    parser.add_argument('--backbones', nargs='+', choices=BACKBONES, default=BACKBONES)
    parser.add_argument(
        '--seeds', nargs='+', type=int, default=[0], help='a run for each (default: 0)'
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
    prepare_shapes()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    work_dir = args.work_dir.absolute()
    runs = product(args.seeds, args.families, args.backbones)
    # Configs are read here, not by the threads: mmengine reads one at a time.
    runs = [
        (f'{backbone}_{family}_{seed}', seed, write_config(family, backbone, seed, work_dir))
        for seed, family, backbone in runs
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        done = list(pool.map(lambda run: train(*run, work_dir, args.cfg_options), runs))
    report(args)
    return 0 if all(done) else 1


def write_config(family: str, backbone: str, seed: int, work_dir: Path) -> Path:
    """The config of a run; one with Swin is written into the work folder."""
    config = ROOT / f'configs/{FAMILIES[family]}/focal_{family}_shapes.py'
    if backbone == 'focal':
        return config
    out_indices = Config.fromfile(config).model.backbone.get('out_indices', (0, 1, 2, 3))
    path = work_dir / f'{backbone}_{family}_{seed}.py'
    path.write_text(SWIN.format(config=str(config), out_indices=out_indices))
    return path


def train(name: str, seed: int, config: Path, work_dir: Path, cfg_options: list[str]) -> bool:
    """Makes one run; returns whether it is complete."""
    folder = work_dir / name
    if (folder / 'done').is_file():
        return True
    print(f'{name}: training', flush=True)
    command = [sys.executable, '-m', 'mmfocal', 'train', config, '--work-dir', folder]
    command += ['--cfg-options', f'randomness.seed={seed}', *cfg_options]
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
    """Draws and prints all runs in the work folder that are complete."""
    import matplotlib

    matplotlib.use('Agg')
    from mmfocal.engine.curves import read_scalars
    from tools.dev.comparison import draw_comparison

    runs = {}
    for family, backbone in product(FAMILIES, BACKBONES):
        complete = sorted(args.work_dir.glob(f'{backbone}_{family}_*/done'))
        if complete:
            rows = [read_scalars(done.parent) for done in complete]
            runs.setdefault(family, {})[backbone] = rows
    if not runs:
        return
    plot = args.plot or args.work_dir / 'curves.png'
    draw_comparison(runs).savefig(plot, dpi=150)
    text = table(runs)
    print(f'\n{text}\nCurves: {plot}')
    if args.markdown:
        args.markdown.write_text(text)


def table(runs: dict[str, dict[str, list[list[dict[str, float]]]]]) -> str:
    """Last value of each metric, and minutes of training, as Markdown."""
    from tools.dev.comparison import main_metric

    lines = [
        '| model | iterations | seeds | metric | Focal | Swin | minutes, Focal | Swin |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for family, by_backbone in runs.items():
        every = [rows for seeds in by_backbone.values() for rows in seeds]
        logged = {name for rows in every for row in rows for name in row}
        for metric, (name, digits) in METRICS.items():
            if metric in logged or metric == main_metric(logged):
                cells = [family, str(max(rows[-1]['step'] for rows in every))]
                cells += ['/'.join(str(len(by_backbone.get(key, []))) for key in BACKBONES), name]
                for key in BACKBONES:
                    last = [final(rows, metric) for rows in by_backbone.get(key, [])]
                    cells.append(mean_and_range(last, digits))
                for key in BACKBONES:
                    times = [minutes(rows) for rows in by_backbone.get(key, [])]
                    cells.append(mean_and_range(times, '.1f'))
                lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def final(rows: list[dict[str, float]], metric: str) -> float:
    """The last value of a metric; 0 where nothing was found, of which mmdet logs no AP."""
    return [0.0, *(row[metric] for row in rows if metric in row)][-1]


def minutes(rows: list[dict[str, float]]) -> float:
    """Time of all iterations at their median, without evaluations."""
    training = [row for row in rows if 'loss' in row]
    return median(row['time'] for row in training) * training[-1]['step'] / 60


def mean_and_range(values: list[float], digits: str) -> str:
    """``'0.54 (0.52 to 0.55)'``, without the range where there is one value, or ``'-'``."""
    if not values:
        return '-'
    text = format(mean(values), digits)
    if len(values) > 1:
        text += f' ({min(values):{digits}} to {max(values):{digits}})'
    return text


if __name__ == '__main__':
    sys.exit(main())
