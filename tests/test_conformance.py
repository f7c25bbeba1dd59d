"""Configs of mmdet and mmseg run as they do in mmengine's own runner."""

from __future__ import annotations

import pytest
import torch

from tools.dev.conformance.cases import CASES
from tools.dev.conformance.comparison import compare, prepare

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='processes are forked')

CHOSEN = [
    'own sampler and batch sampler of two data sets',
    'Mosaic and MixUp with a worker that persists',
    'semi-supervised: two sources, teacher',
    'video instances; TrackImgSampler',
    'pure Python config',
    'finite sampler in an iteration loop; stochastic weight averages',
    'VOC: two lists of images',
    'a config without a crop size',
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('conformance')
    prepare(folder)
    return folder


@pytest.mark.parametrize('covers', CHOSEN)
def test_run_is_as_in_mmengine(covers, folder):
    case = next(case for case in CASES if case.covers == covers)
    comparison = compare(case, folder / str(CHOSEN.index(covers)))
    assert not any(comparison.differences().values()), comparison.differences()
    # Something was compared.
    assert comparison.stock.error or comparison.stock.losses
