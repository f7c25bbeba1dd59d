"""What every part of mmfocal uses and that knows none of them; imports no PyTorch."""

from .compat import register_all_modules

__all__ = ['register_all_modules']
