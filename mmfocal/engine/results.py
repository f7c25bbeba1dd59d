"""What a test writes: metrics and predictions as JSON, and images."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import master_only
from mmengine.registry import METRICS

from mmfocal.utils.config import class_of, is_third_party, parameters_of, type_name
from mmfocal.utils.errors import UserError
from mmfocal.utils.files import check_target, written_atomically
from mmfocal.utils.fonts import install_fonts

# In place of mmseg's; a room above this one.
LABEL_MAPS = 'mmfocal.visualization.label_maps.LabelMapVisualizer'


def set_predictions_file(cfg: Config, out: str) -> None:
    """Lets COCO and IoU metrics write their predictions beside ``out``, a ``.json`` file.

    Raises:
        UserError: another kind of file.
    """
    if not out.endswith('.json'):
        raise UserError(
            f'--out writes JSON, got {out}. Pickles are not written, since reading one can run '
            'code; name a file that ends in .json.'
        )
    check_target(out)
    Path(out).absolute().parent.mkdir(parents=True, exist_ok=True)
    evaluators = cfg.test_evaluator
    for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
        kind = class_of(evaluator, METRICS, cfg.get('default_scope'))
        bases = {
            base.__name__ for base in getattr(kind, '__mro__', ()) if not is_third_party(base)
        }
        if 'CocoMetric' in bases and 'outfile_prefix' in parameters_of(kind):
            evaluator.outfile_prefix = os.path.abspath(out.removesuffix('.json'))
        elif 'IoUMetric' in bases and 'output_dir' in parameters_of(kind):
            evaluator.output_dir = os.path.abspath(out.removesuffix('.json') + '.labels')


@master_only
def write_metrics(out: str, metrics: dict[str, Any], config: str, checkpoint: str) -> None:
    """Writes ``metrics`` and what they belong to."""
    content = dict(config=config, checkpoint=checkpoint, metrics=metrics)
    with written_atomically(out) as file:
        file.write(json.dumps(content, indent=1, default=float).encode() + b'\n')


def set_visualization(cfg: Config, show: bool, show_dir: str | None) -> None:
    """Draws predictions of the test set, in a window, into a folder, or both.

    Raises:
        UserError: the config has no hook for it.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UserError(
            f'--show and --show-dir need a visualization hook, and {cfg.filename} has none in its '
            'default_hooks. Add default_hooks = dict(visualization=dict('
            "type='DetVisualizationHook')), or 'SegVisualizationHook' for mmseg, or "
            "'VisualizationHook' for mmpretrain."
        )
    setattr(hook, 'enable' if cfg.default_scope == 'mmpretrain' else 'draw', True)
    if show:
        hook.show = True
        hook.wait_time = 2  # seconds
    install_fonts()
    if type_name(cfg.get('visualizer') or {}) == 'SegLocalVisualizer':
        cfg.visualizer.type = LABEL_MAPS
    # mmdet's hook draws every image. The others draw a few, and mmseg's leaves the writing to
    # the visualizer.
    if cfg.default_scope != 'mmdet':
        hook.interval = 1
    if show_dir and cfg.default_scope == 'mmseg':
        cfg.visualizer.save_dir = show_dir
    elif show_dir and cfg.default_scope == 'mmpretrain':
        hook.out_dir = os.path.abspath(show_dir)
    elif show_dir:
        hook.test_out_dir = os.path.abspath(show_dir)
