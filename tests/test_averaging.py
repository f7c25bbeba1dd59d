"""The average of weights is mmdet's, and there for every family."""

import copy

import torch
from mmdet.models.layers.ema import ExpMomentumEMA
from torch import nn

from mmfocal.engine.optim.averaging import WarmedUpEMA


def test_average_is_that_of_mmdet():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    options = dict(momentum=0.0002, update_buffers=True)
    theirs, ours = ExpMomentumEMA(model, **options), WarmedUpEMA(copy.deepcopy(model), **options)
    for _ in range(20):
        model(torch.randn(4, 3))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        theirs.update_parameters(model)
        ours.update_parameters(model)
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-6, atol=1e-6)
        is_moving = value.dtype.is_floating_point and value.numel() > 1
        assert not (is_moving and torch.equal(value, model.state_dict()[name[len('module.') :]]))
