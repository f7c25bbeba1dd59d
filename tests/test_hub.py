"""mmengine's hub, which finds models of packages by the names of their configs."""

import pytest
from mmengine import hub

from mmfocal.engine import load_config
from mmfocal.models import FocalTransformer


@pytest.mark.parametrize(
    ('name', 'package'),
    [
        ('mmdet/focal_retinanet_shapes.py', 'mmdet'),
        ('mmdet/focal_reppointsv2_shapes.py', 'mmfocal'),  # of mmfocal.detection
        ('mmseg/focal_upernet_shapes.py', 'mmseg'),
    ],
)
def test_hub_gives_configs_and_models(name, package):
    cfg = hub.get_config(f'mmfocal::{name}')
    assert cfg.model.type == load_config(name.rpartition('/')[2]).model.type
    model = hub.get_model(f'mmfocal::{name}')
    assert type(model).__module__.split('.')[0] == package
    assert isinstance(model.backbone, FocalTransformer)


def test_pretrained_models_are_not_there():
    with pytest.raises(AssertionError, match='Cannot find `Weights`'):
        hub.get_model('mmfocal::mmdet/focal_maskrcnn_3x.py', pretrained=True)
