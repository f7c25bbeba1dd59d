"""What differs between a run of mmengine's ``Runner`` and one of ours."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmdet.utils
import mmseg.utils

from mmfocal.datasets import prepare_shapes
from mmfocal.engine.settings import MIN_KEPT

from .cases import Case
from .data import NUM_IMAGES, stand_in_for_panopticapi
from .runs import Record, recorded, run_ours, run_stock

# Of a record, by column of the table.
FIELDS = dict(
    samples=('samples', 'batches', 'pipelines'),
    losses=('initial', 'losses', 'rates'),
    metrics=('metrics',),
    files=('tags',),
    error=(),
)
HEADER = ('config', 'loop', 'covers', *FIELDS)
NOTES = """\
Compared are, from the beginning to the end of training and exactly:

- samples: the indices that the data set is asked for in each batch (with workers: the image files
  of each batch), the form of each batch, and the transforms of each epoch;
- losses: the initial weights, all that each iteration logs, learning rates and momenta;
- metrics: of each validation;
- files: names in the work folder, names in the log, and what checkpoints hold: weights, averages
  of them, the states of optimizer and schedules, counts;
- error: what ends the run, which one of ours may quote and say more of.

Ours is meant to be different in this, and the comparison accounts for exactly this:

- augmentation follows from the seed and the position of a sample: our run is given the batches of
  the stock run, after its own were recorded;
- what an iteration and a validation draw follows from their numbers: both runs get a seed there;
- iteration loops start their loader after the weights are drawn, those of mmengine (not of its
  OneDL fork) before: our run draws the number that stock has drawn for its loader;
- curves are drawn (not in these runs, to save time), TensorBoard's events are written where it is
  installed, and `run.lock` says who has the folder;
- checkpoints have more in them, and hold the history of the log in another form;
- two checkpoints are kept where the config keeps one;
- where the last column says so: no mixed precision without a GPU, and an earlier and longer
  message for a missing package."""

ADDED = re.compile(r'.*/events\.out\.tfevents.*|run\.lock')


@dataclass(frozen=True)
class Comparison:
    """Two runs of a config.

    Attributes:
        case: the config.
        loop: what its training counts, ``'epochs'`` or ``'iterations'``.
        spare: how many checkpoints ours keeps more.
        stock: the run of mmengine's ``Runner``.
        ours: that of mmfocal's ``train``.
    """

    case: Case
    loop: str
    spare: int
    stock: Record
    ours: Record

    def differences(self) -> dict[str, list[str]]:
        """By column of the table, what should be equal and is not."""
        found = {column: list(self._fields(*names)) for column, names in FIELDS.items()}
        found['files'] += self._files()
        found['error'] += self._errors()
        return found

    def _fields(self, *names: str) -> Iterator[str]:
        for name in names:
            stock, ours = getattr(self.stock, name), getattr(self.ours, name)
            if repr(stock) != repr(ours):  # NaN equals NaN
                yield f'{name}: {_first_difference(stock, ours)}'

    def _files(self) -> Iterator[str]:
        stock, ours = self.stock.files, self.ours.files
        if (missing := stock - ours) and not self.case.our_error:
            yield f'ours lacks {sorted(missing)}'
        added = sorted(name for name in ours - stock if not ADDED.fullmatch(name))
        checkpoints = [name for name in added if re.fullmatch(r'(epoch|iter)_\d+\.pth', name)]
        if len(added) != self.spare or added != checkpoints:
            yield f'ours adds {added}'
        for name in stock & ours & self.stock.checkpoints.keys():
            parts, our_parts = self.stock.checkpoints[name], self.ours.checkpoints[name]
            if other := [part for part in parts if parts[part] != our_parts.get(part)]:
                yield f'{", ".join(other)} of {name}'

    def _errors(self) -> Iterator[str]:
        stock, ours = self.stock.error, self.ours.error
        if self.case.our_error:
            is_meant = bool(stock) and self.case.our_error in str(ours)
        elif stock and ours and ours[0] == 'UserError':
            is_meant = _on_one_line(stock[1]) in _on_one_line(ours[1])
        else:
            is_meant = stock == ours
        if not is_meant:
            yield f'{stock} in stock, {ours} in ours'

    def cells(self) -> list[str]:
        """Of its row under :data:`HEADER`."""
        differences, stock = self.differences(), self.stock
        counts = dict(
            samples=sum(map(len, stock.samples)),
            losses=len(stock.losses),
            metrics=len({name for metrics in stock.metrics for name in metrics}),
            files=len(stock.files),
        )
        cells = [self.case.config, self.loop, self.case.covers]
        for column, count in counts.items():
            more = f', {self.spare} more' if column == 'files' and self.spare else ''
            equal = f'{count} equal{more}' if count else '-'
            cells.append(f'**{count} differ**' if differences[column] else equal)
        cells.append('**another**' if differences['error'] else self._error())
        return [_on_one_line(cell).replace('|', '\\|') for cell in cells]

    def _error(self) -> str:
        if self.case.as_if:
            return f'none; equal to stock with {self.case.as_if}'
        if self.stock.error is None:
            return '-'
        same = 'ours says more' if self.case.our_error else 'the same'
        return f'{same}: {": ".join(self.stock.error)}'


def _on_one_line(text: str) -> str:
    return ' '.join(text.split())


def _first_difference(stock: Any, ours: Any) -> str:
    if isinstance(stock, list) and len(stock) == len(ours):
        number = next(i for i, item in enumerate(stock) if repr(item) != repr(ours[i]))
        return f'number {number} is {stock[number]} in stock, {ours[number]} in ours'
    return f'{stock} in stock, {ours} in ours'


def compare(case: Case, folder: Path) -> Comparison:
    """Runs a config twice.

    Args:
        case: the config.
        folder: for the runs, not there yet; ``<folder>/../shapes`` are the drawn images.
    """
    folder.mkdir()
    (folder / 'shapes').symlink_to(folder.parent / 'shapes')
    cfg = case.load(folder / 'stock', folder)
    cfg.merge_from_dict(case.as_if)
    stock = recorded(run_stock, cfg, folder / 'batches')
    cfg = case.load(folder / 'ours', folder)
    loop = 'epochs' if 'max_epochs' in cfg.train_cfg else 'iterations'
    kept = cfg.default_hooks.checkpoint.get('max_keep_ckpts', -1)
    spare = MIN_KEPT - kept if 0 < kept < MIN_KEPT else 0
    return Comparison(case, loop, spare, stock, recorded(run_ours, cfg, folder / 'batches'))


def prepare(folder: Path) -> None:
    """Imports what the runs need, before they fork, and draws the images."""
    mmdet.utils.register_all_modules(init_default_scope=False)
    mmseg.utils.register_all_modules(init_default_scope=False)
    stand_in_for_panopticapi()
    prepare_shapes(folder / 'shapes', num_images=NUM_IMAGES)
    gc.collect()
    gc.freeze()  # mmengine's data sets collect garbage, which would copy all pages
