"""Focal attention as one op with several backends, and what surrounds it on kernels."""

from .attention import available_backends, check_backend, focal_attention, why_not
from .flop_handles import FLOP_HANDLES
from .table_bias import relative_position_index, table_bias
from .tokens import focal_tokens, pools_whole_windows
from .triton import serves

__all__ = [
    'FLOP_HANDLES',
    'available_backends',
    'check_backend',
    'focal_attention',
    'focal_tokens',
    'pools_whole_windows',
    'relative_position_index',
    'serves',
    'table_bias',
    'why_not',
]
