"""Which trainings a comparison consists of."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmfocal.datasets import shapes_root
from mmfocal.engine import load_config
from mmfocal.utils.errors import UserError

KEY = 'comparison'


@dataclass(frozen=True)
class Run:
    """A training.

    Attributes:
        variant: name of what is trained.
        seed: of the run.
        config: of the whole training, without the comparison.
    """

    variant: str
    seed: int
    config: Config

    @property
    def name(self) -> str:
        """Short name."""
        return f'{re.sub("[^a-z0-9]+", "-", self.variant.lower()).strip("-")}_{self.seed}'

    @property
    def folder(self) -> str:
        """Name of its folder, another one for another config, so that none resumes from that."""
        return f'{self.name}_{self.digest[:8]}'

    @property
    def digest(self) -> str:
        """Of all values of the config, by which a result is known to be of this run."""
        values = json.dumps(self.config.to_dict(), sort_keys=True, default=str)
        values = values.replace(shapes_root(), 'shapes')  # it differs between machines
        return hashlib.sha256(values.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Comparison:
    """Trainings that differ in one thing.

    Attributes:
        title: for table and figure.
        config: what all of them share.
        variants: by name, values of the config that are theirs, as ``{'model.backbone': {...}}``.
        against: variants that each is compared with; times are in steps of the first.
        metrics: names in the log, with how they are called; the first one is drawn.
        seeds: how many trainings of each variant; their seeds are 0, 1, ...
        tests: whether each model is evaluated on the test split, too.
        equal_time: whether each validation shows what a training of that length comes to, so that
            results after equal times can be read off the curves.
    """

    title: str
    config: Config
    variants: Mapping[str, Mapping[str, Any]]
    against: Sequence[str]
    metrics: Mapping[str, str]
    seeds: int
    tests: bool = False
    equal_time: bool = False

    def __post_init__(self) -> None:
        if 'max_iters' not in self.config.get('train_cfg', {}):
            raise UserError(f'{KEY} takes configs that train by iterations: train_cfg.max_iters')
        unknown = [name for name in self.against if name not in self.variants]
        if unknown or not self.against or isinstance(self.against, str):
            raise UserError(
                f'{KEY}.against: expected a list with some of {", ".join(self.variants)}; got '
                f'{self.against}'
            )
        if self.seeds < 1:
            raise UserError(f'{KEY}.seeds: expected 1 at least, got {self.seeds}')
        if not self.metrics:
            raise UserError(f'{KEY}.metrics: expected a name of a log at least, got none')

    def run(self, variant: str, seed: int) -> Run:
        """One of the trainings."""
        config = deepcopy(self.config)
        config.merge_from_dict(deepcopy(dict(self.variants[variant])))  # it takes _delete_ out
        return Run(variant, seed, config)

    def runs(self) -> Iterator[Run]:
        """All of them, one seed after the other, so that early results are of all variants."""
        for seed in range(self.seeds):
            for variant in self.variants:
                yield self.run(variant, seed)


def read_comparison(path: str | Path) -> Comparison:
    """Reads a config with one more key, ``comparison``: the fields of :class:`Comparison`.

    Raises:
        UserError: it has no such key, or one with other fields.
    """
    config = load_config(path)
    fields = config.pop(KEY, None)
    if not isinstance(fields, Mapping):
        raise UserError(f'{path}: expected a config with {KEY} = dict(variants=..., ...)')
    try:
        return Comparison(config=config, **fields)
    except TypeError as error:
        raise UserError(f'{path}: {KEY} has other fields than expected: {error}') from error
