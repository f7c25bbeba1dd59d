"""What detectors of the paper need and mmdet lacks, registered in mmdet on import.

Configs name it in ``custom_imports``. ``import mmfocal`` leaves it out, since it needs mmdet.
"""

from .bifpn import BiFPN
from .instaboost import InstaBoost
from .instance_tta import InstanceTTAModel
from .losses import InclusiveGIoULoss, VerificationFocalLoss
from .reppoints_v2 import RepPointsV2Detector, RepPointsV2Head
from .verification import (
    CornerPooling,
    corner_radius,
    corner_targets,
    foreground_weights,
    refine_corners,
)

__all__ = [
    'BiFPN',
    'CornerPooling',
    'InclusiveGIoULoss',
    'InstaBoost',
    'InstanceTTAModel',
    'RepPointsV2Detector',
    'RepPointsV2Head',
    'VerificationFocalLoss',
    'corner_radius',
    'corner_targets',
    'foreground_weights',
    'refine_corners',
]
