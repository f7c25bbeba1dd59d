"""Files of weights: read without running them, recognised, renamed, resized and reported on.

The models are not known here: what differs by model is asked of the module.
"""

from .authors import authors_version, from_authors
from .contents import CheckpointError
from .layouts import read_weights
from .loading import LoadReport, load_pretrained
from .safe_loading import install_safe_loading, load_checkpoint_file

__all__ = [
    'CheckpointError',
    'LoadReport',
    'authors_version',
    'from_authors',
    'install_safe_loading',
    'load_checkpoint_file',
    'load_pretrained',
    'read_weights',
]
