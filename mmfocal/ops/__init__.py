"""Focal attention as one op with several backends."""

from .attention import available_backends, check_backend, focal_attention, why_not

__all__ = ['available_backends', 'check_backend', 'focal_attention', 'why_not']
